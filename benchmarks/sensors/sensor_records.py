"""What a record of sensors says: whether the device was held back, and the joules and watts between two moments."""

from __future__ import annotations

from statistics import median
from typing import Any, Sequence

PI_FLAGS = {0: "under-voltage", 1: "ARM frequency capped", 2: "throttled", 3: "soft temperature limit"}
CLOCK_FALL = 0.9
LEAST_TICKS = 3
TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "VIN")  # of a whole module, where a board has such a rail
LEAST_READINGS = 3


def throttling(record: dict[str, Any]) -> dict[str, Any]:
    """Whether the device was held back while it was recorded: {"verdict", "reasons", "looked_at"}.

    verdict: "throttled", "no sign of it", or "not measured" where nothing that would show it was there.
    """
    series = record["series"]
    reasons, looked_at = [], []
    for name, values in series.get("throttle_count", {}).items():
        known = _known(values)
        looked_at.append(name)
        if len(known) > 1 and known[-1] > known[0]:
            reasons.append(f"{name}: the counter went up by {known[-1] - known[0]:.0f}")
    for name, values in series.get("cooling_state", {}).items():
        known = _known(values)
        looked_at.append(name)
        held = sum(value > 0 for value in known)
        if held:
            reasons.append(f"{name}: held back in {held} of {len(known)} readings")
    for values in series.get("throttle_flags", {}).values():
        looked_at.append("vcgencmd get_throttled")
        now = 0
        for value in _known(values):
            now |= int(value)
        said = [text for bit, text in PI_FLAGS.items() if now >> bit & 1]
        if said:
            reasons.append(f"firmware: {', '.join(said)}")
    reasons += _fallen_clocks(series, looked_at)
    if not looked_at:
        return {"verdict": "not measured", "reasons": ["the device shows neither clocks nor counters"], "looked_at": []}
    return {
        "verdict": "throttled" if reasons else "no sign of it",
        "reasons": reasons,
        "looked_at": sorted(set(looked_at)),
    }


def _fallen_clocks(series: dict[str, Any], looked_at: list[str]) -> list[str]:
    """Clocks whose last third lies below their first third while it became warmer."""
    reasons = []
    for name, values in series.get("clock_mhz", {}).items():
        known = _known(values)
        if len(known) < 3 * LEAST_TICKS:
            continue
        looked_at.append(f"clock of {name}")
        third = len(known) // 3
        first, last = median(known[:third]), median(known[-third:])
        if last < CLOCK_FALL * first and _became_warmer(series):
            reasons.append(f"clock of {name}: from {first:.0f} to {last:.0f} MHz while it became warmer")
    return reasons


def _became_warmer(series: dict[str, Any]) -> bool:
    temperatures = [_known(values) for values in series.get("temperature_c", {}).values()]
    return any(len(known) > 1 and max(known[len(known) // 2 :]) > known[0] + 1.0 for known in temperatures)


def between(record: dict[str, Any], start_s: float, end_s: float) -> dict[str, Any]:
    """The part of a record that lies between two moments of `time.monotonic()`."""
    first = record["start_monotonic_s"]
    kept = [place for place, second in enumerate(record["seconds"]) if start_s <= first + second <= end_s]
    series = {
        kind: {name: [values[place] for place in kept] for name, values in readings.items()}
        for kind, readings in record["series"].items()
    }
    return {**record, "seconds": [record["seconds"][place] for place in kept], "series": series}


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


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
