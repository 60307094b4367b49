"""Temperatures, clocks, free memory and how far a processor is held back, from files of the kernel."""

from __future__ import annotations

import re
from pathlib import Path

from leanear.benchmarks.sensors.readings import (
    ABSOLUTE_ZERO_C,
    HOTTEST_C,
    Sensor,
    by_number,
    monitoring_chips,
    readable,
    scaled,
    text_in,
)

FIXED_ZONE = re.compile(r"PMIC", re.IGNORECASE)  # on a Jetson Nano a constant, 50 or 100 degrees
JETSON_GPU = re.compile(r"(gpu|ga10b|gv11b|gp10b|gm20b|gb10b)", re.IGNORECASE)
CONTROLLED = re.compile(r"cpufreq|cpu-|processor|devfreq|gpu|soctherm|thermal-cpufreq", re.IGNORECASE)


def kernel_sensors(root: Path) -> list[Sensor]:
    """All of them that can be read."""
    return [*_temperatures(root), *_clocks(root), *_memory(root), *_cooling(root), *_throttle_counts(root)]


def _temperatures(root: Path) -> list[Sensor]:
    sensors: list[Sensor] = []
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*"), key=by_number):
        kind = text_in(zone / "type")
        if FIXED_ZONE.match(kind):
            continue
        name = f"{zone.name} {kind}".strip()
        read = scaled(zone / "temp", 1e-3, ABSOLUTE_ZERO_C, HOTTEST_C)
        sensors += readable("temperature_c", name, zone / "temp", root, read)
    for folder, chip in monitoring_chips(root):
        for path in sorted(folder.glob("temp*_input"), key=by_number):
            label = text_in(path.with_name(path.name.replace("_input", "_label"))) or path.name[: -len("_input")]
            read = scaled(path, 1e-3, ABSOLUTE_ZERO_C, HOTTEST_C)
            sensors += readable("temperature_c", f"{chip} {label}", path, root, read)
    return sensors


def _clocks(root: Path) -> list[Sensor]:
    sensors: list[Sensor] = []
    for policy in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*"), key=by_number):
        cores = text_in(policy / "affected_cpus") or policy.name
        read = scaled(policy / "scaling_cur_freq", 1e-3, 0.001)
        sensors += readable("clock_mhz", f"cpu {cores}", policy / "scaling_cur_freq", root, read)
    if not sensors:
        path = root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"
        sensors += readable("clock_mhz", "cpu 0", path, root, scaled(path, 1e-3, 0.001))
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if JETSON_GPU.search(folder.name):
            read = scaled(folder / "cur_freq", 1e-6, 0.001)
            sensors += readable("clock_mhz", f"gpu {folder.name}", folder / "cur_freq", root, read)
    return sensors


def _memory(root: Path) -> list[Sensor]:
    path = root / "proc/meminfo"

    def read() -> float | None:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", text_in(path), re.MULTILINE)
        return float(found.group(1)) * 1024 if found else None

    return readable("memory_available_bytes", "available", path, root, read)


def _cooling(root: Path) -> list[Sensor]:
    """How far the kernel holds a processor back because it is hot: 0 is not at all."""
    sensors: list[Sensor] = []
    for folder in sorted((root / "sys/class/thermal").glob("cooling_device*"), key=by_number):
        name = text_in(folder / "type")
        if CONTROLLED.search(name):
            path = folder / "cur_state"
            sensors += readable("cooling_state", f"{folder.name} {name}", path, root, scaled(path, 1.0, 0.0))
    return sensors


def _throttle_counts(root: Path) -> list[Sensor]:
    """Counters that go up whenever hardware holds itself back."""
    paths = [
        (root / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "core 0, heat"),
        (root / "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count", "package, heat"),
    ]
    for folder, chip in monitoring_chips(root):
        if chip == "soctherm_oc":
            paths += [
                (path, f"over-current {path.name}") for path in sorted(folder.glob("oc*_event_cnt"), key=by_number)
            ]
    return [
        sensor
        for path, name in paths
        for sensor in readable("throttle_count", name, path, root, scaled(path, 1.0, 0.0))
    ]
