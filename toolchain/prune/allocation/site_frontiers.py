"""What one attention block may become, as a frontier of choices of an option per head."""

import math
from collections.abc import Sequence

import numpy as np

from leanear.prune.allocation.frontier import Frontier, as_floats, cell_size, combine, join, pareto, thin_evenly
from leanear.prune.allocation.options import (
    HeadOptions,
    RaggedCost,
    TiedCost,
    Widths,
    checked_cost,
    chosen_widths,
    damage_at,
    has_widths,
    least_damage,
    pairs_of,
    removes,
)

COUNTS = 1 << 18  # so many ways to say how many heads of a site have which widths are all looked at, exactly,
COUNTED_BLOCKS = 1 << 14  # if so many of them at most are blocks of the site, each of which has to be costed
PROPOSALS = 512  # ragged blocks of a site that are re-costed: a cost function takes up to a millisecond


def frontiers_of_sites(
    sites: Sequence[Sequence[HeadOptions]],
    limit: float,
    resolution: int,
    tied: Sequence[TiedCost] | None,
    ragged: Sequence[RaggedCost] | None,
    removals: Sequence[float] | None = None,
) -> list[Frontier]:
    """What every site may become, in choices of an option per head (n, H); empty where nothing is within the limit.

    removals: the damage of each site without heads, infinite where one has to stay; None: everywhere.
    """
    frontiers = []
    for index, heads in enumerate(sites):
        frontier = _any_blocks(heads, ragged[index], resolution) if ragged else _any_widths(heads, limit, resolution)
        if tied:
            frontier = join(frontier, _one_width(heads, tied[index]))
        if removals is not None and math.isfinite(removals[index]):
            frontier = join(_no_head(heads, removals[index]), frontier)
        frontiers.append(frontier.take(np.flatnonzero(frontier.costs <= limit)))
    return frontiers


def _any_widths(heads: Sequence[HeadOptions], limit: float, resolution: int) -> Frontier:
    """Additive costs, a head at least kept: heads are added one by one, blocks without a head so far apart."""
    span = min(limit, sum(float(head.costs.max()) for head in heads))
    cell = cell_size([head.costs for head in heads], span, resolution)
    none = Frontier(np.zeros(1), np.zeros(1), np.zeros((1, 0), dtype=np.int32))
    some = none.take(np.arange(0))
    for head in heads:
        removed = removes(head)
        some = join(
            combine(some, _options(head, np.full(removed.shape, True)), limit, cell),
            combine(none, _options(head, ~removed), limit, cell),
        )
        none = combine(none, _options(head, removed), limit, cell)
    return some


def _no_head(heads: Sequence[HeadOptions], damage: float) -> Frontier:
    choice = np.array([[least_damage(head, removes(head)) for head in heads]], dtype=np.int32)
    return Frontier(np.zeros(1), np.array([damage]), choice)


def _options(head: HeadOptions, among: np.ndarray) -> Frontier:
    places = np.flatnonzero(among)
    choices = places[:, None].astype(np.int32)
    return pareto(as_floats(head.costs[places]), as_floats(head.damages[places]), choices)


def _one_width(heads: Sequence[HeadOptions], cost: TiedCost) -> Frontier:
    """Blocks whose kept heads all have the same (K, V): of each number of kept heads the ones of least damage."""
    removals = [least_damage(head, removes(head)) for head in heads]
    costs, damages, choices = [], [], []
    for pair in sorted({pair for head in heads for pair in pairs_of(head) if pair != (0, 0)}):
        keeps = [least_damage(head, has_widths(head, pair)) for head in heads]
        kept_damages = np.array([damage_at(head, place) for head, place in zip(heads, keeps, strict=True)])
        removed_damages = np.array([damage_at(head, place) for head, place in zip(heads, removals, strict=True)])
        if np.any(np.isinf(kept_damages) & np.isinf(removed_damages)):
            continue
        # -inf where the head cannot be kept at these widths, so goes first; inf where it cannot be removed
        order = np.argsort(removed_damages - kept_damages, kind="stable")
        for kept_count in range(1, len(heads) + 1):
            goes = np.full(len(heads), False)
            goes[order[: len(heads) - kept_count]] = True
            damage = float(np.where(goes, removed_damages, kept_damages).sum())
            block_cost = checked_cost(cost(kept_count, *pair)) if math.isfinite(damage) else math.inf
            if math.isfinite(block_cost):
                costs.append(block_cost)
                damages.append(damage)
                choices.append([r if gone else k for gone, r, k in zip(goes, removals, keeps, strict=True)])
    return pareto(np.array(costs), np.array(damages), np.array(choices, dtype=np.int32).reshape(-1, len(heads)))


def _any_blocks(heads: Sequence[HeadOptions], cost: RaggedCost, resolution: int) -> Frontier:
    """Blocks whose cost is not the sum of their heads': all of them, or the best of many."""
    pairs = sorted({pair for head in heads for pair in pairs_of(head)} - {(0, 0)})
    blocks = math.comb(len(heads) + len(pairs), len(pairs))
    if blocks <= COUNTED_BLOCKS and (len(heads) + 1) ** len(pairs) <= COUNTS:
        return _by_counts(heads, pairs, cost)
    return _recost(heads, thin_evenly(_any_widths(heads, math.inf, resolution), PROPOSALS), cost)


def _by_counts(heads: Sequence[HeadOptions], pairs: Sequence[tuple[int, int]], cost: RaggedCost) -> Frontier:
    """The block of least damage for every number of heads of every (K, V), of which alone the cost is a function.

    Heads are added one by one; after each, a cell of `damages` has the least damage of blocks with so many heads of the
    first of `pairs`, of the second, and so on, and `places` the option that its last head takes there.
    """
    damages = np.full((len(heads) + 1,) * len(pairs), math.inf)
    damages[(0,) * len(pairs)] = 0.0
    places = np.zeros((len(heads), *damages.shape), dtype=np.int32)
    for number, head in enumerate(heads):
        gone = least_damage(head, removes(head))
        before, damages = damages, damages + damage_at(head, gone)
        places[number] = gone
        for axis, pair in enumerate(pairs):
            kept = least_damage(head, has_widths(head, pair))
            one_more = np.full(before.shape, math.inf)
            _along(axis, one_more)[1:] = _along(axis, before)[:-1] + damage_at(head, kept)
            better = one_more < damages
            damages[better], places[number][better] = one_more[better], kept
    counts = np.argwhere(np.isfinite(damages))
    counts = counts[counts.any(axis=1)]
    costs = np.array([checked_cost(cost(_repeated(pairs, count))) for count in counts.tolist()])
    available = np.flatnonzero(np.isfinite(costs))
    counts, costs = counts[available], costs[available]
    found = pareto(costs, damages[tuple(counts.T)], counts)
    choices = [_last_choices(heads, pairs, places, count) for count in found.choices.tolist()]
    return Frontier(found.costs, found.damages, np.array(choices, dtype=np.int32).reshape(-1, len(heads)))


def _along(axis: int, array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, axis, 0)


def _repeated(pairs: Sequence[tuple[int, int]], count: Sequence[int]) -> Widths:
    return tuple(pair for pair, times in zip(pairs, count, strict=True) for _ in range(times))


def _last_choices(
    heads: Sequence[HeadOptions], pairs: Sequence[tuple[int, int]], places: np.ndarray, count: Sequence[int]
) -> list[int]:
    """The option of every head in the block with so many heads of each of `pairs`, the last head's looked up first."""
    left, chosen = list(count), []
    for number in range(len(heads) - 1, -1, -1):
        place = int(places[(number, *left)])
        pair = pairs_of(heads[number])[place]
        if pair != (0, 0):
            left[pairs.index(pair)] -= 1
        chosen.append(place)
    return chosen[::-1]


def _recost(heads: Sequence[HeadOptions], proposed: Frontier, cost: RaggedCost) -> Frontier:
    """The proposed blocks that remain at their true costs."""
    costs = [checked_cost(cost(_kept(chosen_widths(heads, choice)))) for choice in proposed.choices]
    available = np.flatnonzero(np.isfinite(costs))
    return pareto(np.array(costs)[available], proposed.damages[available], proposed.choices[available])


def _kept(widths: Widths) -> Widths:
    return tuple(pair for pair in widths if pair != (0, 0))
