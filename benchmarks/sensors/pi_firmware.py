"""What a Raspberry Pi's firmware tells through `vcgencmd`."""

from __future__ import annotations

import re

from leanear.benchmarks.sensors.readings import Ask, Sensor


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
