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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from leanear.prune.allocation.frontier import (
    Frontier,
    as_floats,
    cell_size,
    choose_each,
    combine,
    join,
    least_cost,
    limit_of,
    pareto,
    thin_evenly,
    use_slack,
)
from leanear.runtimes.errors import BadInput

COUNTS = 1 << 18  # so many ways to say how many heads of a site have which widths are all looked at, exactly,
COUNTED_BLOCKS = 1 << 14  # if so many of them at most are blocks of the site, each of which has to be costed
PROPOSALS = 512  # ragged blocks of a site that are re-costed: a cost function takes up to a millisecond

Widths = tuple[tuple[int, int], ...]  # (K, V) of heads
TiedCost = Callable[[int, int, int], float]
RaggedCost = Callable[[Widths], float]


@dataclass(frozen=True)
class HeadOptions:
    """What one head may become; arrays of equal length (n,).

    Both widths 0: the head is removed. costs: at least 0 and additive over heads: parameters, MACs or milliseconds.
    damages: nats; noise may make them slightly negative, and they are taken as they are.
    """

    query_key_widths: np.ndarray
    value_output_widths: np.ndarray
    costs: np.ndarray
    damages: np.ndarray


@dataclass(frozen=True)
class BlockOptions:
    """What a block of one width may become, as `HeadOptions`, on its own: arrays of equal length (n,)."""

    name: str
    widths: np.ndarray
    costs: np.ndarray
    damages: np.ndarray


def check_options(
    sites: Sequence[Sequence[HeadOptions]],
    tied: Sequence[TiedCost] | None,
    ragged: Sequence[RaggedCost] | None,
    blocks: Sequence[BlockOptions] = (),
) -> None:
    """See that the options fit together.

    Raises:
        BadInput: they do not; the text names the block and the head.
    """
    for block in blocks:
        _check_lengths(f"allocation: {block.name}", block.costs, block.damages, (block.widths,))
    if not sites and not blocks:
        raise BadInput("allocation: there is no block to allocate to")
    for name, functions in (("tied", tied), ("ragged", ragged)):
        if functions is not None and len(functions) != len(sites):
            raise BadInput(f"allocation: {len(functions)} {name} cost functions for {len(sites)} blocks")
    for index, heads in enumerate(sites):
        for number, head in enumerate(heads):
            where = f"allocation: block {index}, head {number}"
            _check_lengths(where, head.costs, head.damages, (head.query_key_widths, head.value_output_widths))
        if all(removes(head).all() for head in heads):
            raise BadInput(f"allocation: block {index} has no head that could be kept")


def _check_lengths(where: str, costs: np.ndarray, damages: np.ndarray, widths: Sequence[np.ndarray]) -> None:
    if len({array.shape for array in (*widths, costs, damages)}) > 1 or costs.ndim != 1 or not costs.size:
        raise BadInput(f"{where}: widths, costs and damages are not of one length, at least 1")
    if not (np.isfinite(costs).all() and (costs >= 0).all() and np.isfinite(damages).all()):
        raise BadInput(f"{where}: a cost is negative or a number is not finite")


def removes(head: HeadOptions) -> np.ndarray:
    """Which options remove the head (n,)."""
    return (head.query_key_widths == 0) & (head.value_output_widths == 0)


def pairs_of(head: HeadOptions) -> list[tuple[int, int]]:
    """(K, V) of every option."""
    return [(int(k), int(v)) for k, v in zip(head.query_key_widths, head.value_output_widths, strict=True)]


def chosen_widths(heads: Sequence[HeadOptions], choice: np.ndarray) -> Widths:
    """(K, V) of every head by the place of its chosen option."""
    return tuple(
        (int(head.query_key_widths[place]), int(head.value_output_widths[place]))
        for head, place in zip(heads, choice, strict=True)
    )


def has_widths(head: HeadOptions, pair: tuple[int, int]) -> np.ndarray:
    """Which options have these (K, V) (n,)."""
    return (head.query_key_widths == pair[0]) & (head.value_output_widths == pair[1])


def least_damage(head: HeadOptions, among: np.ndarray) -> int:
    """Place of the option of least damage among some; -1 if there is none."""
    return int(np.argmin(np.where(among, head.damages, math.inf))) if among.any() else -1


def damage_at(head: HeadOptions, place: int) -> float:
    """The damage of the option at `place`, infinite where there is none."""
    return math.inf if place < 0 else float(head.damages[place])


def checked_cost(cost: float) -> float:
    """What a cost function says of a block.

    Raises:
        BadInput: it is negative or not a number.
    """
    if not cost >= 0:
        raise BadInput(f"allocation: a block's cost of {cost} is not a number that is at least 0")
    return float(cost)


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
    widths = (
        tuple(pair for pair, times in zip(pairs, count, strict=True) for _ in range(times)) for count in counts.tolist()
    )
    costs = np.array([checked_cost(cost(each)) for each in widths])
    available = np.flatnonzero(np.isfinite(costs))
    counts, costs = counts[available], costs[available]
    found = pareto(costs, damages[tuple(counts.T)], counts)
    choices = [_last_choices(heads, pairs, places, count) for count in found.choices.tolist()]
    return Frontier(found.costs, found.damages, np.array(choices, dtype=np.int32).reshape(-1, len(heads)))


def _along(axis: int, array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, axis, 0)


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
