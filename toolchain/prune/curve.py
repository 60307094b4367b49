"""Size against loss: from one scoring, what models of every size would lose, and where that begins to matter."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanear.evaluate.measured_loss import MATTERS_NATS
from leanear.families.family import Family
from leanear.prune.allocation.allocate import Allocation
from leanear.prune.closed_loop import NOTHING_NATS, Corrections
from leanear.prune.costs import Costs
from leanear.prune.scoring import Scores
from leanear.prune.widths import RotatedRecipe, choose_widths
from leanear.runtimes.errors import BadInput

TENTHS = tuple(tenth / 10 for tenth in range(1, 10))
STEP = 0.01

Ratio = Callable[[float], float]


@dataclass(frozen=True)
class Estimate:
    """A share of the prunable parameters that is removed, the widths that stay, and their estimated loss, nats."""

    sparsity: float
    loss: float
    allocation: Allocation


def estimated_curve(
    family: Family,
    model: Any,
    scores: Scores,
    corrections: Corrections,
    costs: Costs,
    recipe: RotatedRecipe,
    sparsities: Sequence[float] = TENTHS,
) -> tuple[Estimate, ...]:
    """The estimates of all these sparsities that can be had; costs: in prunable parameters."""
    losses, sites = corrections.applied(scores.losses), family.attention_sites(model)
    estimates = []
    for sparsity in sparsities:
        try:
            allocation = choose_widths(sites, losses, costs, (1 - sparsity) * costs.dense, recipe.estimated)
        except BadInput:  # narrower than the narrowest model, as is all that follows
            break
        estimates.append(Estimate(sparsity, allocation.damage, allocation))
    return tuple(estimates)


def loss_begins_at(estimates: Callable[[Sequence[float]], Sequence[Estimate]], ratio: Ratio | None = None) -> float:
    """The largest sparsity, in whole per cent, whose estimate, times its ratio, does not matter; 0 if there is none."""
    low, high = 0, round(1 / STEP)
    while high - low > 1:
        middle = (low + high) // 2
        found = estimates((middle * STEP,))
        factor = 1.0 if ratio is None else ratio(middle * STEP)
        matters = not found or found[0].loss * factor >= MATTERS_NATS
        low, high = (low, middle) if matters else (middle, high)
    return low * STEP


def measured_ratio(points: Sequence[tuple[float, float, float]]) -> Ratio:
    """By how much losses are above their estimates at any sparsity, from points (sparsity, estimated, measured).

    Between two points the ratio goes from the one's to the other's evenly in its logarithm, and beyond them it stays.
    Points where next to nothing is lost, estimated and measured, say nothing and are left out.
    """
    finite = [
        (place, max(said, NOTHING_NATS), max(found, NOTHING_NATS))
        for place, said, found in sorted(points)
        if math.isfinite(found)
    ]
    telling = [(place, math.log(found / said)) for place, said, found in finite if max(said, found) > NOTHING_NATS]
    places, logarithms = zip(*telling or [(0.0, 0.0)], strict=True)
    return lambda sparsity: math.exp(np.interp(sparsity, places, logarithms))


def knee(estimates: Sequence[Estimate]) -> float | None:
    """The sparsity at which losses begin to rise steeply, None of fewer than three.

    The point farthest below the straight line from the first to the last, both axes scaled to 1 (Satopaa et al. 2011,
    "Finding a kneedle in a haystack").
    """
    if len(estimates) < 3:
        return None
    along = np.array([each.sparsity for each in estimates])
    up = np.array([each.loss for each in estimates])
    if up[-1] <= up[0]:
        return None
    scaled = (along - along[0]) / (along[-1] - along[0]) - (up - up[0]) / (up[-1] - up[0])
    return float(along[scaled.argmax()])
