"""Power rails and energy counters, from files of the kernel: INA3221 and other monitoring chips, RAPL."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Callable

from leanear.benchmarks.sensors.readings import (
    Sensor,
    by_number,
    monitoring_chips,
    number_in,
    readable,
    scaled,
    text_in,
)


def power_sensors(root: Path) -> list[Sensor]:
    """All of them that can be read."""
    return [*_powers(root), *_energies(root)]


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
