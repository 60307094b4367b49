"""Joules and watts of a stretch of a record of sensors."""

from __future__ import annotations

from typing import Any

TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "VIN")  # of a whole module, where a board has such a rail
LEAST_READINGS = 3


def energy(record: dict[str, Any], start_s: float, end_s: float) -> dict[str, Any]:
    """Joules and mean watts between two moments of `time.monotonic()`, by the sensor that sees most of the device.

    {"status": "ok", "joules", "mean_w", "sensor", "readings"} or {"status": "not measured", "reason"}.
    """
    moments = [record["start_monotonic_s"] + second for second in record["seconds"]]
    counters = record["series"].get("energy_j", {})
    if counters:
        # the platform's counter where there is one, and else those of the packages and of their memory
        names = [name for name in counters if name.startswith("psys")] or list(counters)
        values = [_sum_at(counters, names, place) for place in range(len(moments))]
        joules = _difference(moments, values, start_s, end_s)
        what = " + ".join(names)
    else:
        rails = record["series"].get("power_w", {})
        if not rails:
            return {"status": "not measured", "reason": record["not_measured"].get("power_w", "no power sensor")}
        names, what = _total_rail(list(rails))
        values = [_sum_at(rails, names, place) for place in range(len(moments))]
        joules = _integral(moments, values, start_s, end_s)
    inside = sum(start_s <= moment <= end_s and value is not None for moment, value in zip(moments, values))
    if joules is None or inside < LEAST_READINGS or end_s <= start_s:
        return {"status": "not measured", "reason": f"{what}: {inside} readings in {end_s - start_s:.1f} s are too few"}
    return {
        "status": "ok",
        "joules": round(joules, 4),
        "mean_w": round(joules / (end_s - start_s), 4),
        "sensor": what,
        "readings": inside,
    }


def _total_rail(names: list[str]) -> tuple[list[str], str]:
    """The rails whose sum is the device, and how that is called."""
    for total in TOTAL_RAILS:
        for name in names:
            if name.partition(" ")[0] == total:
                return [name], f"{name}, the whole module"
    if len(names) == 1:
        return names, names[0]
    return names, "sum of " + " + ".join(names)


def _sum_at(series: dict[str, list[float | None]], names: list[str], place: int) -> float | None:
    values = [series[name][place] for name in names]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(names) else None


def _difference(moments: list[float], values: list[float | None], start_s: float, end_s: float) -> float | None:
    """How far a counter went between two moments, drawn straight between its readings."""
    start, end = _at(moments, values, start_s), _at(moments, values, end_s)
    return None if start is None or end is None else end - start


def _integral(moments: list[float], values: list[float | None], start_s: float, end_s: float) -> float | None:
    """The area under readings between two moments, drawn straight between them."""
    start, end = _at(moments, values, start_s), _at(moments, values, end_s)
    if start is None or end is None:
        return None
    inner = [(m, v) for m, v in zip(moments, values) if v is not None and start_s < m < end_s]
    points = [(start_s, start), *inner, (end_s, end)]
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in zip(points, points[1:]))


def _at(moments: list[float], values: list[float | None], moment: float) -> float | None:
    """The value at a moment between two readings."""
    known = [(m, v) for m, v in zip(moments, values) if v is not None]
    for (before, low), (after, high) in zip(known, known[1:]):
        if before <= moment <= after:
            return low if after == before else low + (high - low) * (moment - before) / (after - before)
    return None
