"""The sensors of a device: temperature, clocks, power and free memory, as far as it shows them.

Each is named with its source. What a device does not show is "not measured", with the reason, and never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leanear.benchmarks.sensors.kernel_sensors import kernel_sensors
from leanear.benchmarks.sensors.pi_firmware import pi_sensors
from leanear.benchmarks.sensors.power_sensors import power_sensors
from leanear.benchmarks.sensors.readings import Ask, Sensor, run_program, shown

KINDS = (
    "temperature_c",
    "clock_mhz",
    "power_w",
    "energy_j",
    "memory_available_bytes",
    "cooling_state",
    "throttle_count",
)


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
    sensors = [*kernel_sensors(root), *power_sensors(root)]
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
