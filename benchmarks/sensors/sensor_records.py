"""What a record of sensors says: whether the device was held back, and what happened between two moments."""

from __future__ import annotations

from statistics import median
from typing import Any, Sequence

PI_FLAGS = {0: "under-voltage", 1: "ARM frequency capped", 2: "throttled", 3: "soft temperature limit"}
CLOCK_FALL = 0.9
LEAST_TICKS = 3


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
