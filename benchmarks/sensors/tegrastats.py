"""What a Jetson's `tegrastats` prints, line by line."""

from __future__ import annotations

import re
import subprocess
import threading
from typing import Callable

from leanear.benchmarks.sensors.kernel_sensors import FIXED_ZONE
from leanear.benchmarks.sensors.readings import ABSOLUTE_ZERO_C, ASK_LIMIT_S, HOTTEST_C, Sensor


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
