"""The squared changes, and the statistics, of a batch that goes through both passes for them alone."""

from __future__ import annotations

from leanear.calibration.losses import squares_of
from leanear.calibration.passes import pass_through_all
from leanear.calibration.statistics import statistics_of


def collect_squares(model, sites, bases, grids, inputs, targets, logits, **settings):
    """As `squares_of`; settings: of `pass_through_all`."""
    passed = pass_through_all(model, sites, (), inputs, targets, logits, query_gradients=False, **settings)
    return squares_of(passed.attention, sites, bases, grids, targets)


def collect_statistics(model, sites, inputs, targets, logits, *, attended_keys=False, **settings):
    """As `statistics_of`, by block; settings: of `pass_through_all`."""
    passed = pass_through_all(model, sites, (), inputs, targets, logits, **settings)
    return statistics_of(passed.attention, sites, targets, attended_keys)
