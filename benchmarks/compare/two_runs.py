"""By how much two separate runs differ, A before and B after; swapping the two mirrors every answer.

The processes of two runs are no pairs, so each run is resampled by itself, processes and then samples within them as
everywhere in a report, and every draw of the one is set against every draw of the other.
"""

from __future__ import annotations

import math
from typing import Sequence, Tuple

import numpy as np

from leanear.benchmarks.summary import Interval, resampled_medians, resampled_speed_ups

CLIP_RESAMPLES = 10_000
CLIPS_AT_ONCE = 100

Processes = Sequence[Sequence[float]]
DenseAndSlim = Tuple[Processes, Processes]


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
