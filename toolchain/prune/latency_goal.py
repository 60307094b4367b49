"""Prune to a latency on the target: by its latency tables, then checked and corrected on the finished model.

The tables add up blocks that were timed alone. A whole model may be a few per cent off, so the pruned model
is exported and timed in turn with the dense one; where it misses the goal, the budget is corrected by what was
measured, and the widths are chosen again.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from leanear.calibration import shards
from leanear.families.family import Checkpoint
from leanear.families.registry import family_of
from leanear.progress import Report, quiet
from leanear.prune.costs import Costs, latency_costs
from leanear.prune.recipe import Goal
from leanear.prune.rotated import Rotated
from leanear.prune.widths import RotatedRecipe, least_cost, narrowest_model, narrowest_name
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.errors import BadInput
from leanear.runtimes.sessions import SessionOptions
from leanear.targets.target import Target
from leanear.timing.model_timing import ModelTiming, kept_tables

MOST_CHECKS = 4
ALLOWANCE = 0.005  # a goal that is missed by less is met: timings of the same model differ by more
MARGIN = 0.005  # by which a correction aims below the goal
CHECK_SHARE_S = 25.0
BOUND_SHARE_S = 4.0
BOUND_MARGIN = 0.1  # short timings on a machine that may be busy


@dataclass(frozen=True)
class LatencyCheck:
    """One pruned model, milliseconds predicted by the table and measured in turn with the dense model, medians.

    goal_ms: what it may take, of the dense model's measured time if the goal is a speed-up; doubt: why not to trust the
    measured times, or "".
    """

    budget_ms: float
    predicted_ms: float
    predicted_dense_ms: float
    measured_ms: float
    measured_dense_ms: float
    goal_ms: float
    met: bool
    doubt: str = ""


@dataclass(frozen=True)
class LatencyBound:
    """Milliseconds of the dense model and of the narrowest one that it can be pruned to.

    margin: the share by which the two may err: none by the latency table, which is what widths are chosen by.
    """

    dense_ms: float
    narrowest_ms: float
    margin: float


def refuse_out_of_reach(
    checkpoint: Checkpoint,
    goal: Goal,
    target: Target,
    recipe: RotatedRecipe,
    timing: ModelTiming,
    report: Report = quiet,
) -> None:
    """See that the narrowest model meets a goal of milliseconds, and the dense one not yet: by the latency table where
    it is there, else timed.

    Under `torchrun` the first process finds out, and tells the others.

    Raises:
        BadInput: it is not so.
        RuntimeUnavailable, MeasurementFailed: the target's runtime does not work here.
    """
    told = torch.zeros(3, dtype=torch.float64)
    if shards.rank() == 0:
        bound = latency_bound(checkpoint, target, recipe, timing, report)
        told = torch.tensor([bound.dense_ms, bound.narrowest_ms, bound.margin], dtype=torch.float64)
    shards.broadcast([told])
    dense_ms, narrowest_ms, margin = told.tolist()
    wanted_ms = goal.milliseconds(dense_ms, timing.audio_s)
    if dense_ms * (1 + margin) <= wanted_ms:
        raise BadInput(f"{goal.flag} {goal.value:g}: {_met_by_dense(wanted_ms, dense_ms)}")
    if wanted_ms < narrowest_ms * (1 - margin):
        narrowest = narrowest_name(family_of(checkpoint).attention_sites(checkpoint.model), recipe)
        raise BadInput(
            f"{goal.flag} {goal.value:g}: {wanted_ms:.4g} ms are out of reach: {narrowest}"
            f" takes {narrowest_ms:.4g} ms on {target.name}, {dense_ms / narrowest_ms:.3g} times as fast as the dense"
            f" one with {dense_ms:.4g} ms"
        )


def latency_bound(
    checkpoint: Checkpoint, target: Target, recipe: RotatedRecipe, timing: ModelTiming, report: Report = quiet
) -> LatencyBound:
    """What the latency tables say of both, or one timing of them in turn."""
    family, tables = family_of(checkpoint), kept_tables(timing, recipe.prune)
    if tables is not None:
        sites = family.attention_sites(checkpoint.model)
        costs = latency_costs(tables, sites, family.feed_forward_sites(checkpoint.model))
        return LatencyBound(costs.dense, least_cost(sites, costs, recipe), 0.0)
    require_runtime(target.runtime, SessionOptions(target.threads, target.precision))
    narrowest = narrowest_model(family, checkpoint.model, recipe)
    timed = timing.dense_and_slim(narrowest, report, BOUND_SHARE_S)
    return LatencyBound(timed.dense_ms, timed.slim_ms, BOUND_MARGIN)


def prune_to_latency(
    goal: Goal, costs: Costs, prune: Callable[[float], Rotated], timing: ModelTiming, report: Report = quiet
) -> tuple[Rotated, tuple[LatencyCheck, ...]]:
    """The pruned model that meets the goal when timed here, or the last one tried, and all checks in order.

    goal: of milliseconds; costs: of the target's latency tables; prune(budget_ms): the model of that predicted latency.
    Under `torchrun` the first process measures and tells the others.

    Raises:
        BadInput: the dense model meets it.
    """
    budget = goal.milliseconds(costs.dense, timing.audio_s)
    if costs.dense <= budget:
        raise BadInput(_met_by_dense(budget, costs.dense))
    checks: list[LatencyCheck] = []
    while True:
        pruned = prune(budget)
        measured, doubt = torch.zeros(2, dtype=torch.float64), ""
        if shards.rank() == 0:
            report(f"timing what was pruned to {budget:.4g} ms", None)
            timed = timing.dense_and_slim(pruned.model, report, CHECK_SHARE_S)
            measured, doubt = torch.tensor([timed.dense_ms, timed.slim_ms], dtype=torch.float64), timed.doubt
        shards.broadcast([measured])
        dense_ms, slim_ms = measured.tolist()
        goal_ms = goal.milliseconds(dense_ms, timing.audio_s)
        met = slim_ms <= goal_ms * (1 + ALLOWANCE)
        checks.append(LatencyCheck(budget, pruned.cost, costs.dense, slim_ms, dense_ms, goal_ms, met, doubt))
        if met or len(checks) == MOST_CHECKS:
            return pruned, tuple(checks)
        rest_ms = costs.fixed / costs.dense * dense_ms
        budget = costs.fixed + (pruned.cost - costs.fixed) * _shrinking(slim_ms, goal_ms, rest_ms)


def _met_by_dense(wanted_ms: float, dense_ms: float) -> str:
    return f"the dense model meets it already, with {dense_ms:.4g} of {wanted_ms:.4g} ms: there is nothing to prune"


def _shrinking(slim_ms: float, goal_ms: float, rest_ms: float) -> float:
    """By what to multiply the share of the blocks that are pruned, which alone can shrink, so that the goal is met."""
    blocks_ms, wanted_ms = slim_ms - rest_ms, goal_ms * (1 - MARGIN) - rest_ms
    return min(0.98, max(0.5, wanted_ms / blocks_ms)) if blocks_ms > 0 else 0.9
