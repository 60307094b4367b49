"""What a comparison of two results files is made of: its two sides, and a row for each quantity that both may have.

Swapping the two mirrors every answer. The processes of two runs are no pairs, so each run is resampled by itself,
processes and then samples within them as everywhere in a report, and every draw of the one is set against every draw of
the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Sequence, Tuple

import numpy as np

from leanear.benchmarks.results import Results
from leanear.benchmarks.results_document import Part, ResultsDocument, Role
from leanear.benchmarks.summary import Interval, no_interval, resampled_medians, resampled_speed_ups

BETTER, WORSE, NOISE, SAME, NOT_MEASURED = "better", "worse", "noise", "same", "not measured"
COUNT_FLOOR = 0.001  # counted, not measured: what differs by less is the same
CLIP_RESAMPLES = 10_000
CLIPS_AT_ONCE = 100

Processes = Sequence[Sequence[float]]
DenseAndSlim = Tuple[Processes, Processes]


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


def ratio_of_medians(before: Processes, after: Processes) -> Interval:
    """The median over all samples of `after` divided by that of `before`; samples of each process, greater than 0."""
    sides = [[np.asarray(samples, np.float64) for samples in processes] for processes in (before, after)]
    medians = [float(np.median(np.concatenate(side))) for side in sides]
    draws = [resampled_medians(side, np.random.default_rng(0)) for side in sides]
    return _quotient(medians[1] / medians[0], *draws)


def ratio_of_slim_to_dense(before: DenseAndSlim, after: DenseAndSlim) -> Interval:
    """Slim's median in units of dense's median of the same run, `after` divided by `before`.

    What slows both models of a run alike cancels out. Each run: samples of dense's and of slim's processes, which were
    measured in turn and are resampled in pairs, as for the report's speed-up.
    """
    estimates, draws = [], []
    for dense, slim in (before, after):
        pair = [[np.asarray(samples, np.float64) for samples in processes] for processes in (slim, dense)]
        estimates.append(float(np.median(np.concatenate(pair[0])) / np.median(np.concatenate(pair[1]))))
        draws.append(resampled_speed_ups(pair[0], pair[1], np.random.default_rng(0)))
    return _quotient(estimates[1] / estimates[0], *draws)


def ratio_of_sums(before: Sequence[float], after: Sequence[float]) -> Interval:
    """The sum of `after` divided by that of `before`, both of the same clips; a bootstrap over clips."""
    sides = np.array([before, after], np.float64)
    generator, clips = np.random.default_rng(0), sides.shape[1]
    logs = []
    for _ in range(CLIP_RESAMPLES // CLIPS_AT_ONCE):
        sums = sides[:, generator.integers(clips, size=(CLIPS_AT_ONCE, clips))].sum(axis=2)
        logs.append(np.log(sums[1]) - np.log(sums[0]))
    low, high = np.exp(np.percentile(np.concatenate(logs), (2.5, 97.5)))
    return Interval(float(sides[1].sum() / sides[0].sum()), float(low), float(high))


def unpaired_change(before: Interval, after: Interval) -> Interval:
    """`after` less `before` of two independent estimates, from their own intervals, squared and added.

    R. G. Newcombe, Statistics in Medicine 17 (1998) 873, method 10 where the two are Wilson's.
    """
    estimate = after.estimate - before.estimate
    down = math.hypot(after.estimate - after.low, before.high - before.estimate)
    up = math.hypot(after.high - after.estimate, before.estimate - before.low)
    return Interval(estimate, estimate - down, estimate + up)


def _quotient(estimate: float, before: np.ndarray, after: np.ndarray) -> Interval:
    """Every draw of `after` divided by every draw of `before`; taken as logarithms, so that the inverse mirrors."""
    low, high = np.exp(np.percentile(np.log(after)[:, None] - np.log(before)[None, :], (2.5, 97.5)))
    return Interval(estimate, float(low), float(high))
