"""The sensors of a device: temperature, clocks, power and free memory, as far as it shows them.

They are files of the kernel, INA3221 and other monitoring chips, RAPL, and what a Raspberry Pi's firmware tells.

Each is named with its source. What a device does not show is "not measured", with the reason, and never 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from leanear.benchmarks.sensors.readings import (
    ABSOLUTE_ZERO_C,
    HOTTEST_C,
    Ask,
    Sensor,
    by_number,
    monitoring_chips,
    number_in,
    readable,
    run_program,
    scaled,
    shown,
    text_in,
)

FIXED_ZONE = re.compile(r"PMIC", re.IGNORECASE)  # on a Jetson Nano a constant, 50 or 100 degrees
JETSON_GPU = re.compile(r"(gpu|ga10b|gv11b|gp10b|gm20b|gb10b)", re.IGNORECASE)
CONTROLLED = re.compile(r"cpufreq|cpu-|processor|devfreq|gpu|soctherm|thermal-cpufreq", re.IGNORECASE)
KINDS = (
    "temperature_c",
    "clock_mhz",
    "power_w",
    "energy_j",
    "memory_available_bytes",
    "cooling_state",
    "throttle_count",
)


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


def _powers(root: Path) -> list[Sensor]:
    """Rails: volts times amperes of an INA3221, or watts where a chip gives them; and the one that is the total."""
    rails: list[Sensor] = []
    for folder, chip in monitoring_chips(root):
        for path in sorted(folder.glob("in*_label"), key=by_number):
            number = re.sub(r"\D", "", path.name)
            label = text_in(path)
            volts, amperes = folder / f"in{number}_input", folder / f"curr{number}_input"
            if label and label != "NC" and not label.startswith("sum") and amperes.exists():
                rails += readable("power_w", f"{label} ({chip})", amperes, root, _product(volts, amperes))
        for path in sorted(folder.glob("power*_input"), key=by_number) + sorted(
            folder.glob("power*_average"), key=by_number
        ):
            label = (
                text_in(path.with_name(re.sub(r"_(input|average)$", "_label", path.name)))
                or path.name.partition("_")[0]
            )
            rails += readable("power_w", f"{label} ({chip})", path, root, scaled(path, 1e-6, 0.0))
    for folder in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio:device*")):  # JetPack 4
        for path in sorted(folder.glob("rail_name_*"), key=by_number):
            watts = folder / f"in_power{re.sub(r'[^0-9]', '', path.name)}_input"
            if text_in(path) not in ("", "NC"):
                rails += readable("power_w", f"{text_in(path)} (ina3221x)", watts, root, scaled(watts, 1e-3, 0.0))
    return rails


def _product(volts: Path, amperes: Path) -> Callable[[], float | None]:
    """Watts from files that show millivolts and milliamperes."""

    def read() -> float | None:
        v, a = number_in(volts), number_in(amperes)
        return None if v is None or a is None or v < 0 or a < 0 else v * a * 1e-6

    return read


def _energies(root: Path) -> list[Sensor]:
    """Energy counters of x86 packages and their memory (RAPL), which run on past their largest value."""
    sensors: list[Sensor] = []
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        name = text_in(zone / "name")
        if name.startswith(("package", "psys", "dram")):
            most = number_in(zone / "max_energy_range_uj")
            read = _unwrapped(zone / "energy_uj", most)
            sensors += readable("energy_j", f"{name} (RAPL, {zone.name})", zone / "energy_uj", root, read)
    return sensors


def _unwrapped(path: Path, most: float | None) -> Callable[[], float | None]:
    """Joules of a counter in microjoules that starts again from 0 above `most`."""
    laps, earlier = 0, 0.0

    def read() -> float | None:
        nonlocal laps, earlier
        value = number_in(path)
        if value is None:
            return None
        if value < earlier:
            laps += 1
        earlier = value
        return (value + laps * (most or 0.0)) * 1e-6

    return read


def pi_sensors(ask: Ask, there: set[str]) -> list[Sensor]:
    """Of the firmware: of each kind that is not in `there`, and whether it holds the processor back."""

    def flags() -> float | None:
        found = re.search(r"throttled=(0x[0-9a-fA-F]+)", ask(["vcgencmd", "get_throttled"]) or "")
        return None if found is None else float(int(found.group(1), 16))

    def temperature() -> float | None:
        found = re.search(r"temp=([\d.]+)", ask(["vcgencmd", "measure_temp"]) or "")
        return None if found is None else float(found.group(1))

    def clock() -> float | None:
        found = re.search(r"=(\d+)\s*$", ask(["vcgencmd", "measure_clock", "arm"]) or "")
        return None if found is None else int(found.group(1)) / 1e6

    def power() -> float | None:
        return parse_pmic(ask(["vcgencmd", "pmic_read_adc"]) or "")

    offered = [
        Sensor("throttle_flags", "firmware", "vcgencmd get_throttled", flags),
        Sensor("temperature_c", "firmware", "vcgencmd measure_temp", temperature),
        Sensor("clock_mhz", "arm", "vcgencmd measure_clock arm", clock),
        Sensor("power_w", "sum of the PMIC's rails", "vcgencmd pmic_read_adc", power),
    ]
    return [sensor for sensor in offered if sensor.kind not in there and sensor.read() is not None]


def parse_pmic(text: str) -> float | None:
    """Watts, the sum over rails of volts times amperes, in what `vcgencmd pmic_read_adc` of a Pi 5 prints."""
    amperes = dict(re.findall(r"(\w+)_A current\(\d+\)=([\d.]+)A", text))
    volts = dict(re.findall(r"(\w+)_V volt\(\d+\)=([\d.]+)V", text))
    both = [float(amperes[rail]) * float(volts[rail]) for rail in amperes if rail in volts]
    return sum(both) if both else None


@dataclass(frozen=True)
class Found:
    """The sensors of a device, and the reason for each kind that it has none of."""

    sensors: tuple[Sensor, ...]
    missing: dict[str, str]

    def of(self, kind: str) -> list[Sensor]:
        """The sensors of one kind."""
        return [sensor for sensor in self.sensors if sensor.kind == kind]


def find_sensors(root: Path = Path("/"), ask: Ask = run_program) -> Found:
    """What this device shows of itself."""
    of_kernel = (_temperatures, _clocks, _memory, _cooling, _throttle_counts, _powers, _energies)
    sensors = [sensor for find in of_kernel for sensor in find(root)]
    if ask(["vcgencmd", "measure_temp"]) is not None:
        sensors += pi_sensors(ask, {sensor.kind for sensor in sensors})
    kinds = {sensor.kind for sensor in sensors}
    missing = {kind: _why_missing(kind, root) for kind in KINDS if kind not in kinds}
    return Found(tuple(sensors), missing)


def _why_missing(kind: str, root: Path) -> str:
    if kind == "energy_j":
        counters = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
        if counters:
            return f"{shown(counters[0] / 'energy_uj', root)} is for root alone; run as root, or chmod a+r it"
        return "no energy counter (RAPL) in /sys/class/powercap"
    return {
        "temperature_c": "no thermal zone and no temperature of a monitoring chip in /sys",
        "clock_mhz": "the kernel shows no cpufreq",
        "power_w": "no power rail (INA3221 or another hwmon chip), no tegrastats, no vcgencmd pmic_read_adc",
        "memory_available_bytes": "/proc/meminfo has no MemAvailable",
        "cooling_state": "no cooling device of a processor in /sys/class/thermal",
        "throttle_count": "no counter of throttling in /sys",
    }[kind]
