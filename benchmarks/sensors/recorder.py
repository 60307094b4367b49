"""The sensors of a device, read about once a second while something runs."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from leanear.benchmarks.sensors.readings import Ask, Sensor, run_program
from leanear.benchmarks.sensors.sensors import find_sensors
from leanear.benchmarks.sensors.tegrastats import Tegrastats

INTERVAL_S = 1.0


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
