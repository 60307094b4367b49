"""A latency goal is met as measured: with a device whose milliseconds are a known law, nothing being timed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from leanear.prune.latency_goal import MOST_CHECKS, prune_to_latency
from leanear.prune.recipe import Goal
from leanear.runtimes.errors import BadInput
from leanear.timing.block_timing import InTurn

COSTS = SimpleNamespace(dense=20.0, fixed=8.0)
FEWEST_MS = 8.5


def device(law, dense_ms: float = 20.0, doubt: str = ""):
    """Models are their predicted milliseconds, in steps of 0.25; measured, they take law(predicted)."""
    asked = []

    def prune(budget_ms):
        asked.append(budget_ms)
        steps = max(FEWEST_MS, budget_ms - budget_ms % 0.25)
        return SimpleNamespace(cost=steps, model=steps)

    def dense_and_slim(slim, _report, _share_s):
        return InTurn(dense_ms, law(slim), doubt)

    return prune, SimpleNamespace(dense_and_slim=dense_and_slim, audio_s=8.0), asked


@pytest.mark.parametrize("goal", [Goal("latency_ms", 16.0), Goal("speedup", 1.25), Goal("rtf", 0.002)])
def test_a_prediction_that_holds_is_checked_once(goal):
    prune, timing, asked = device(lambda predicted: predicted)
    pruned, (check,) = prune_to_latency(goal, COSTS, prune, timing)
    assert asked == [16.0]
    assert pruned.cost == check.predicted_ms == check.measured_ms == check.goal_ms == 16.0
    assert (check.predicted_dense_ms, check.measured_dense_ms, check.met) == (20.0, 20.0, True)


@pytest.mark.parametrize(
    "law",
    [
        lambda predicted: 1.06 * predicted,
        lambda predicted: predicted + 0.7,
        lambda predicted: 8 + 0.2 * 12 + 0.8 * (predicted - 8),
    ],
)
def test_a_prediction_that_is_too_low_is_corrected(law):
    """Until what is measured, not what is predicted, is within the goal; then it ends."""
    prune, timing, asked = device(law)
    pruned, checks = prune_to_latency(Goal("latency_ms", 16.0), COSTS, prune, timing)
    assert 1 < len(checks) == len(asked) <= MOST_CHECKS
    assert [check.met for check in checks] == [False] * (len(checks) - 1) + [True]
    assert all((law(check.predicted_ms) <= 16.0 * 1.005) == check.met for check in checks)
    assert asked == sorted(asked, reverse=True)
    assert pruned.cost == checks[-1].predicted_ms


def test_a_speedup_is_of_the_measured_dense_model():
    """The device is a fifth slower than its table, dense and slim alike: the ratio holds."""
    prune, timing, _ = device(lambda predicted: 1.2 * predicted, dense_ms=24.0)
    _, (check,) = prune_to_latency(Goal("speedup", 1.25), COSTS, prune, timing)
    assert (check.goal_ms, check.measured_ms, check.met) == (pytest.approx(19.2), pytest.approx(19.2), True)


def test_what_the_dense_model_meets_is_not_pruned():
    prune, timing, asked = device(lambda predicted: predicted)
    with pytest.raises(BadInput, match="the dense model meets it already, with 20 of 20 ms"):
        prune_to_latency(Goal("latency_ms", 20.0), COSTS, prune, timing)
    assert not asked


def test_a_check_that_was_disturbed_says_so():
    prune, timing, _ = device(lambda predicted: predicted, doubt="other processes kept the cores 40% busy meanwhile")
    _, (check,) = prune_to_latency(Goal("latency_ms", 16.0), COSTS, prune, timing)
    assert (check.met, check.doubt) == (True, "other processes kept the cores 40% busy meanwhile")


def test_what_cannot_be_met_ends_and_says_so():
    prune, timing, asked = device(lambda _predicted: 19.0)
    _, checks = prune_to_latency(Goal("latency_ms", 9.0), COSTS, prune, timing)
    assert len(checks) == len(asked) == MOST_CHECKS
    assert not any(check.met for check in checks)
