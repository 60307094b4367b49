"""Values of a latency table's file, checked as they are read."""

from __future__ import annotations

import math
from typing import Any


def checked_site(site: Any) -> tuple[tuple[int, int], ...]:
    """(K, V) of every head of a block; raises ValueError where they are not whole numbers of at least 1."""
    return tuple((checked_whole(query_key), checked_whole(value_output)) for query_key, value_output in site)


def checked_whole(value: Any) -> int:
    """A whole number of at least 1; raises ValueError where it is none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is not a whole number of at least 1")
    return value


def checked_numbers(values: dict[str, Any]) -> dict[str, float]:
    """Numbers by name; raises ValueError as `checked_number`."""
    return {name: checked_number(value) for name, value in values.items()}


def checked_number(value: Any) -> float:
    """A finite number of at least 0; raises ValueError where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r} is not a number of at least 0")
    return float(value)
