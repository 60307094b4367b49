"""What a comparison of two results files is made of: its two sides, and a row for each quantity that both may have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Sequence, Tuple

from leanear.benchmarks.results import Results
from leanear.benchmarks.results_document import Part, ResultsDocument, Role
from leanear.benchmarks.summary import Interval, no_interval

BETTER, WORSE, NOISE, SAME, NOT_MEASURED = "better", "worse", "noise", "same", "not measured"
COUNT_FLOOR = 0.001  # counted, not measured: what differs by less is the same


@dataclass(frozen=True)
class Side:
    """One side of a comparison: "A" (before) or "B" (after), its results, and which of their models is meant."""

    name: str
    results: Results
    role: Role

    @property
    def content(self) -> ResultsDocument:
        """What the results file holds."""
        return self.results.content


Sides = Tuple[Side, Side]


@dataclass(frozen=True)
class Quantity:
    """What a row is of. unit: "ms", "bytes", "count", "ratio", "J", or "share".

    timed: whether what disturbs timings disturbs it. A share's change is B - A, every other's is B / A.
    """

    key: str
    name: str
    unit: str
    timed: bool = False
    lower_is_better: bool = True

    @property
    def relative(self) -> bool:
        """Whether its change is B / A."""
        return self.unit != "share"


@dataclass(frozen=True)
class Figure:
    """A value, or None and why there is none."""

    value: float | None
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """One quantity on both sides; a, b and change are None where they are unknown.

    low, high: the change's 95% interval, None where there is none, as of one measurement on each side; verdict:
    "better", "worse", "noise", "same" (counted), or "not measured"; floor: the relative change below which it is noise
    whatever the interval says; note: how it was compared, or why not; by_process: of a median, each process's own.
    """

    what: Quantity
    a: float | None
    b: float | None
    change: float | None
    low: float | None
    high: float | None
    verdict: str
    floor: float | None = None
    note: str = ""
    by_process: tuple[tuple[float, ...], ...] | None = None


def measured_row(
    what: Quantity,
    values: Sequence[Figure],
    change: Interval,
    floor: float,
    note: str,
    by_process: tuple[tuple[float, ...], ...] | None = None,
) -> Row:
    """Of a quotient with an interval: noise where that holds 1 or the change is below `floor`."""
    verdict = NOISE
    if not _small(change.estimate, floor) and not change.low <= 1 <= change.high:
        verdict = WORSE if change.estimate > 1 else BETTER
    a, b = values[0].value, values[1].value
    return Row(what, a, b, change.estimate, change.low, change.high, verdict, floor, note, by_process)


def single_row(what: Quantity, values: Sequence[Figure], floor: float) -> Row:
    """Of one measurement on each side, so that `floor` alone says what is noise."""
    return _plain_row(what, values, floor, NOISE, "one measurement on each side")


def counted_row(what: Quantity, values: Sequence[Figure]) -> Row:
    """Of something that is counted, so that a difference is never noise."""
    return _plain_row(what, values, COUNT_FLOOR, SAME, "counted")


def share_row(what: Quantity, values: Sequence[Figure], change: Interval, verdict: str, note: str) -> Row:
    """Of a difference of two shares."""
    a, b = values[0].value, values[1].value
    if not change.has_spread:
        return Row(what, a, b, change.estimate, None, None, verdict, note=f"{note}; {no_interval(change.estimate)}")
    return Row(what, a, b, change.estimate, change.low, change.high, verdict, note=note)


def missing_row(what: Quantity, values: Sequence[Figure], why: str = "") -> Row:
    """Of what cannot be compared; `why` stands for the sides' own reasons."""
    a, b = values
    reasons = [f"{side}: {figure.reason}" for side, figure in (("A", a), ("B", b)) if figure.value is None]
    if len(reasons) == 2 and a.reason == b.reason:
        reasons = [f"A and B: {a.reason}"]
    return Row(what, a.value, b.value, None, None, None, NOT_MEASURED, note=why or "; ".join(reasons))


def both_known(values: Sequence[Figure]) -> bool:
    """Whether both sides have a value."""
    return all(figure.value is not None for figure in values)


def positive(value: Any, reason: str) -> Figure:
    """`value`, where it is a number greater than 0."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    return Figure(float(value)) if known else Figure(None, reason)


def part_reason(part: Part) -> str:
    """Why a part of a results file has nothing to compare."""
    return f"{part.status}: {part.reason}" if part.status != NOT_MEASURED else part.reason


def _plain_row(what: Quantity, values: Sequence[Figure], floor: float, little: str, note: str) -> Row:
    a, b = (figure.value for figure in values)
    if a is None or b is None:
        return missing_row(what, values)
    change = b / a
    verdict = little if _small(change, floor) else WORSE if change > 1 else BETTER
    return Row(what, a, b, change, None, None, verdict, floor, note)


def _small(ratio: float, floor: float) -> bool:
    return max(ratio, 1 / ratio) < 1 + floor
