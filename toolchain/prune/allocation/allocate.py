"""Share one budget among all heads: which ones stay, and how wide, at the least damage (a multiple-choice knapsack).

Everything is made of frontiers: what a head, a site or several sites may become, by rising cost and falling damage,
dominated choices left out. Two frontiers are combined by adding each point of the one to each point of the other. As
long as few enough points result, none is lost and the optimum is exact. Beyond that the costs are cut into cells, and
of the points in a cell the least damage stays, with its exact cost, so that no budget is passed by rounding. Where all
costs are whole numbers (parameters, MACs) a cell is their common divisor, unless that makes too many cells: no two
costs share such a cell, and the optimum is exact again.

Dimension letters: H heads, K per-head query/key width, V per-head value/output width.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from leanear.prune.allocation.frontier import as_floats, choose_each, least_cost, limit_of, pareto, use_slack
from leanear.prune.allocation.options import (
    BlockOptions,
    HeadOptions,
    RaggedCost,
    TiedCost,
    Widths,
    check_options,
    chosen_widths,
    frontiers_of_sites,
)
from leanear.runtimes.errors import BadInput


@dataclass(frozen=True)
class Allocation:
    """The widths that are kept, per site and head (K, V), (0, 0) being a removed head; summed cost and damage.

    feed_forward: of blocks of one width that share the budget, by name.
    """

    widths: tuple[Widths, ...]
    cost: float
    damage: float
    feed_forward: dict[str, int] = field(default_factory=dict)


def allocate(
    sites: Sequence[Sequence[HeadOptions]],
    budget: float,
    *,
    resolution: int = 4096,
    tied: Sequence[TiedCost] | None = None,
    ragged: Sequence[RaggedCost] | None = None,
    blocks: Sequence[BlockOptions] = (),
    removals: Sequence[float] | None = None,
) -> Allocation:
    """The options of least summed damage whose summed cost is within the budget, a head at least kept in every site.

    Of equal damage the lower cost is taken, then the option named first. The budget is kept to rounding of the sum
    (1e-12 of it).

    tied: per site, cost of a block of H kept heads that all have the widths (K, V); such blocks compete with those of
    any widths, at this cost. ragged: per site, true cost of a block of kept heads of the given (K, V), in whatever
    order; it takes the place of the sum of the heads' costs. Where a site has few widths to choose among (`COUNTS`),
    the best of all its blocks is found; otherwise the sum of the heads' costs proposes blocks, `PROPOSALS` a site: the
    result is the best of the proposals, and need not be the best of all. Either may return infinity for a block that
    cannot be had.
    blocks: others that share the budget, each with one width. removals: per site, the damage of all its heads' removal,
    at no cost; infinite where that is not offered, as it is not without them.
    resolution: cells of cost over the budget, where costs are neither few enough nor whole numbers with a divisor that
    is large enough to be exact.

    Raises:
        BadInput: options that do not fit together; a budget below the least possible cost, which the text states.
    """
    check_options(sites, tied, ragged, blocks)
    of_blocks = [pareto(as_floats(b.costs), as_floats(b.damages), np.arange(len(b.costs))[:, None]) for b in blocks]
    frontiers = [*frontiers_of_sites(sites, limit_of(budget), resolution, tied, ragged, removals), *of_blocks]
    if not least_cost(frontiers) <= min(limit_of(budget), sys.float_info.max):
        least = least_cost([*frontiers_of_sites(sites, math.inf, resolution, tied, ragged, removals), *of_blocks])
        kept = "" if np.isfinite(removals or ()).any() else " with a head kept in every block"
        raise BadInput(f"budget of {budget:.10g} is below {least:.10g}, the least possible cost{kept}")
    picks = use_slack(frontiers, choose_each(frontiers, budget, resolution), budget)
    places = [frontier.choices[pick] for frontier, pick in zip(frontiers, picks, strict=True)]
    return Allocation(
        widths=tuple(chosen_widths(heads, place) for heads, place in zip(sites, places[: len(sites)], strict=True)),
        cost=math.fsum(float(frontier.costs[pick]) for frontier, pick in zip(frontiers, picks, strict=True)),
        damage=math.fsum(float(frontier.damages[pick]) for frontier, pick in zip(frontiers, picks, strict=True)),
        feed_forward={
            block.name: int(block.widths[place[0]]) for block, place in zip(blocks, places[len(sites) :], strict=True)
        },
    )
