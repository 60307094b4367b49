"""The sensors of a device, read about once a second while something runs; of a Jetson, with `tegrastats`."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Callable

from leanear.benchmarks.sensors.readings import ABSOLUTE_ZERO_C, ASK_LIMIT_S, HOTTEST_C, Ask, Sensor, run_program
from leanear.benchmarks.sensors.sensors import FIXED_ZONE, find_sensors

INTERVAL_S = 1.0


def parse_tegrastats(line: str) -> dict[str, dict[str, float]]:
    """What one line of `tegrastats` says, by kind and name; sensors that are switched off are left out."""
    said: dict[str, dict[str, float]] = {
        "temperature_c": {},
        "clock_mhz": {},
        "power_w": {},
        "memory_available_bytes": {},
    }
    for name, value in re.findall(r"\b([A-Za-z][\w-]*)@(-?[\d.]+)C\b", line):
        if ABSOLUTE_ZERO_C <= float(value) <= HOTTEST_C and not FIXED_ZONE.match(name):
            said["temperature_c"][name] = float(value)
    cpus = re.search(r"CPU \[([^\]]*)\]", line)
    running = re.findall(r"\d+%@(\d+)", cpus.group(1)) if cpus else []
    if running:
        said["clock_mhz"]["cpu"] = max(float(clock) for clock in running)
    gpu = re.search(r"GR3D_FREQ \d+%@\[?(\d+)", line)
    if gpu:
        said["clock_mhz"]["gpu"] = float(gpu.group(1))
    for name, now in re.findall(r"\b([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/\d+(?:mW)?(?=\s|$)", line):
        said["power_w"][name] = int(now) / 1e3
    memory = re.search(r"\bRAM (\d+)/(\d+)MB", line)
    if memory:
        said["memory_available_bytes"]["available"] = (int(memory.group(2)) - int(memory.group(1))) * 2.0**20
    return said


class Tegrastats:
    """The last line that `tegrastats` printed, read in the background until `close`."""

    def __init__(self, program: str, interval_ms: int = 500) -> None:
        self._process = subprocess.Popen(
            [program, "--interval", str(interval_ms)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )
        self._said: dict[str, dict[str, float]] = {}
        self._first = threading.Event()
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said = parse_tegrastats(line)
            self._first.set()
        self._said = {}

    def sensors(self, there: set[str]) -> list[Sensor]:
        """A sensor for each reading of a kind that is not in `there`."""
        self._first.wait(ASK_LIMIT_S)
        return [
            Sensor(kind, name, "tegrastats", self._reader(kind, name))
            for kind, readings in self._said.items()
            if kind not in there
            for name in readings
        ]

    def _reader(self, kind: str, name: str) -> Callable[[], float | None]:
        return lambda: self._said.get(kind, {}).get(name)

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.wait()


class Recorder:
    """Reads every sensor once an interval in a thread, from `with` until its end; `record()` is what it read.

    Times are those of `time.monotonic()`, which on Linux is one clock for all processes.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        interval_s: float = INTERVAL_S,
        ask: Ask = run_program,
        tegrastats: str | None = None,
    ) -> None:
        self._interval_s = interval_s
        self._program = tegrastats if tegrastats is not None else shutil.which("tegrastats")
        self._root, self._ask = root, ask
        self._ticks: list[tuple[float, list[float | None]]] = []
        self._sensors: tuple[Sensor, ...] = ()
        self._missing: dict[str, str] = {}
        self._stop = threading.Event()
        self._cpu_s = 0.0

    def __enter__(self) -> Recorder:
        found = find_sensors(self._root, self._ask)
        self._sensors, self._missing = found.sensors, dict(found.missing)
        self._stream = None
        if self._program:
            with contextlib.suppress(OSError):
                self._stream = Tegrastats(self._program, int(1000 * min(self._interval_s, 0.5)))
                more = self._stream.sensors({sensor.kind for sensor in self._sensors})
                self._sensors += tuple(more)
                for sensor in more:
                    self._missing.pop(sensor.kind, None)
        self._tick()
        self._thread = threading.Thread(target=self._run, name="sensors", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._tick()
        if self._stream is not None:
            self._stream.close()

    def _run(self) -> None:
        before = time.thread_time()
        while not self._stop.wait(self._interval_s):
            self._tick()
        self._cpu_s = time.thread_time() - before

    def _tick(self) -> None:
        self._ticks.append((time.monotonic(), [sensor.read() for sensor in self._sensors]))

    def record(self) -> dict[str, Any]:
        """What was read: {seconds since the first reading, series by kind and name, sources, why kinds are missing}."""
        start = self._ticks[0][0] if self._ticks else 0.0
        series: dict[str, dict[str, list[float | None]]] = {}
        sources: dict[str, dict[str, str]] = {}
        for place, sensor in enumerate(self._sensors):
            values = [values[place] for _, values in self._ticks]
            series.setdefault(sensor.kind, {})[sensor.name] = [None if v is None else round(v, 4) for v in values]
            sources.setdefault(sensor.kind, {})[sensor.name] = sensor.source
        return {
            # To the microsecond: rounded more, the last reading would seem to come before the work that it closes.
            "start_monotonic_s": round(start, 6),
            "interval_s": self._interval_s,
            "seconds": [round(moment - start, 6) for moment, _ in self._ticks],
            "series": series,
            "sources": sources,
            "not_measured": dict(self._missing),
            "sampling_cpu_s": round(self._cpu_s, 4),
        }
