"""Share one budget among all heads: which ones stay, and how wide, at the least damage (a multiple-choice knapsack).

Everything is made of frontiers: what a head, a site or several sites may become, by rising cost and falling damage,
dominated choices left out. Two frontiers are combined by adding each point of the one to each point of the other. As
long as few enough points result, none is lost and the optimum is exact. Beyond that the costs are cut into cells, and
of the points in a cell the least damage stays, with its exact cost, so that no budget is passed by rounding. Where all
costs are whole numbers (parameters, MACs) a cell is their common divisor, unless that makes too many cells: no two
costs share such a cell, and the optimum is exact again.

Dimension letters: H heads, K per-head query/key width, V per-head value/output width.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from leanear.runtimes.errors import BadInput

Widths = tuple[tuple[int, int], ...]  # (K, V) of heads
TiedCost = Callable[[int, int, int], float]
RaggedCost = Callable[[Widths], float]

ALL_PAIRS = 1 << 16  # so many sums are all listed and sorted, exactly; above, they are sorted into cells
COUNTS = 1 << 18  # so many ways to say how many heads of a site have which widths are all looked at, exactly,
COUNTED_BLOCKS = 1 << 14  # if so many of them at most are blocks of the site, each of which has to be costed
WHOLE_CELLS = 1 << 15  # so many cells at most for whole-number costs: every channel of AST-base has its own
PROPOSALS = 512  # ragged blocks of a site that are re-costed: a cost function takes up to a millisecond
ROUNDING = 1e-12  # sums of the same floats in two orders differ by less, relatively


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


@dataclass(frozen=True)
class Allocation:
    """The widths that are kept, per site and head (K, V), (0, 0) being a removed head; summed cost and damage.

    feed_forward: of blocks of one width that share the budget, by name.
    """

    widths: tuple[Widths, ...]
    cost: float
    damage: float
    feed_forward: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Frontier:
    """Choices by rising cost and falling damage: costs (n,), damages (n,), and what is chosen, choices (n, parts)."""

    costs: np.ndarray
    damages: np.ndarray
    choices: np.ndarray

    def __len__(self) -> int:
        return len(self.costs)

    def take(self, places: np.ndarray) -> _Frontier:
        return _Frontier(self.costs[places], self.damages[places], self.choices[places])


def allocate(
    sites: Sequence[Sequence[HeadOptions]],
    budget: float,
    *,
    resolution: int = 4096,
    tied: Sequence[TiedCost] | None = None,
    ragged: Sequence[RaggedCost] | None = None,
    blocks: Sequence[BlockOptions] = (),
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
    blocks: others that share the budget, each with one width.
    resolution: cells of cost over the budget, where costs are neither few enough nor whole numbers with a divisor that
    is large enough to be exact.

    Raises:
        BadInput: options that do not fit together; a budget below the least possible cost, which the text states.
    """
    _check(sites, tied, ragged, blocks)
    of_blocks = [_pareto(_floats(b.costs), _floats(b.damages), np.arange(len(b.costs))[:, None]) for b in blocks]
    frontiers = [*_site_frontiers(sites, _limit(budget), resolution, tied, ragged), *of_blocks]
    if not _least_cost(frontiers) <= min(_limit(budget), sys.float_info.max):
        least = _least_cost([*_site_frontiers(sites, math.inf, resolution, tied, ragged), *of_blocks])
        raise BadInput(
            f"budget of {budget:.10g} is below {least:.10g}, the least possible cost with a head kept in every block"
        )
    picks = _use_slack(frontiers, _choose_sites(frontiers, budget, resolution), budget)
    places = [frontier.choices[pick] for frontier, pick in zip(frontiers, picks, strict=True)]
    return Allocation(
        widths=tuple(_widths(heads, place) for heads, place in zip(sites, places[: len(sites)], strict=True)),
        cost=math.fsum(float(frontier.costs[pick]) for frontier, pick in zip(frontiers, picks, strict=True)),
        damage=math.fsum(float(frontier.damages[pick]) for frontier, pick in zip(frontiers, picks, strict=True)),
        feed_forward={
            block.name: int(block.widths[place[0]]) for block, place in zip(blocks, places[len(sites) :], strict=True)
        },
    )


def equal_widths_allocation(
    sites: Sequence[Sequence[HeadOptions]],
    budget: float,
    *,
    tied: Sequence[TiedCost] | None = None,
    ragged: Sequence[RaggedCost] | None = None,
) -> Allocation:
    """The same width K = V in every head of every site, none removed: the one of least damage within the budget.

    Costs are those of `allocate`: of each block the lowest that the cost functions give.

    Raises:
        BadInput: no width is an option of every head; a budget below the cost of the cheapest.
    """
    _check(sites, tied, ragged)
    all_widths = [set(_pairs(head)) for heads in sites for head in heads]
    shared = sorted(key for key, value in set.intersection(*all_widths) if key == value and key > 0)
    if not shared:
        raise BadInput("equal widths: no width K = V is an option of every head")
    allocations = []
    for width in shared:
        costs = [_equal_block_cost(index, heads, width, tied, ragged) for index, heads in enumerate(sites)]
        damages = [
            float(head.damages[_least_damage(head, _has(head, (width, width)))]) for heads in sites for head in heads
        ]
        widths = tuple(((width, width),) * len(heads) for heads in sites)
        allocations.append(Allocation(widths, math.fsum(costs), math.fsum(damages)))
    within = [allocation for allocation in allocations if allocation.cost <= _limit(budget)]
    if not within:
        least = min(allocation.cost for allocation in allocations)
        raise BadInput(f"budget of {budget:.10g} is below {least:.10g}, the least possible cost with equal widths")
    return min(within, key=lambda allocation: (allocation.damage, allocation.cost))


def entire_heads_allocation(
    sites: Sequence[Sequence[HeadOptions]],
    budget: float,
    *,
    resolution: int = 4096,
    tied: Sequence[TiedCost] | None = None,
    ragged: Sequence[RaggedCost] | None = None,
) -> Allocation:
    """What `allocate` gives when a head is either removed or keeps the widest of its options.

    Raises:
        BadInput: as `allocate`.
    """
    _check(sites, tied, ragged)
    entire = [[_removed_or_widest(head) for head in heads] for heads in sites]
    return allocate(entire, budget, resolution=resolution, tied=tied, ragged=ragged)


def _removed_or_widest(head: HeadOptions) -> HeadOptions:
    total = head.query_key_widths + head.value_output_widths
    places = np.flatnonzero(_removes(head) | (total == total.max()))
    return HeadOptions(
        head.query_key_widths[places], head.value_output_widths[places], head.costs[places], head.damages[places]
    )


def _check(
    sites: Sequence[Sequence[HeadOptions]],
    tied: Sequence[TiedCost] | None,
    ragged: Sequence[RaggedCost] | None,
    blocks: Sequence[BlockOptions] = (),
) -> None:
    for block in blocks:
        _check_options(f"allocation: {block.name}", block.costs, block.damages, (block.widths,))
    if not sites and not blocks:
        raise BadInput("allocation: there is no block to allocate to")
    for name, functions in (("tied", tied), ("ragged", ragged)):
        if functions is not None and len(functions) != len(sites):
            raise BadInput(f"allocation: {len(functions)} {name} cost functions for {len(sites)} blocks")
    for index, heads in enumerate(sites):
        for number, head in enumerate(heads):
            where = f"allocation: block {index}, head {number}"
            _check_options(where, head.costs, head.damages, (head.query_key_widths, head.value_output_widths))
        if all(_removes(head).all() for head in heads):
            raise BadInput(f"allocation: block {index} has no head that could be kept")


def _check_options(where: str, costs: np.ndarray, damages: np.ndarray, widths: Sequence[np.ndarray]) -> None:
    if len({array.shape for array in (*widths, costs, damages)}) > 1 or costs.ndim != 1 or not costs.size:
        raise BadInput(f"{where}: widths, costs and damages are not of one length, at least 1")
    if not (np.isfinite(costs).all() and (costs >= 0).all() and np.isfinite(damages).all()):
        raise BadInput(f"{where}: a cost is negative or a number is not finite")


def _removes(head: HeadOptions) -> np.ndarray:
    return (head.query_key_widths == 0) & (head.value_output_widths == 0)


def _pairs(head: HeadOptions) -> list[tuple[int, int]]:
    return [(int(k), int(v)) for k, v in zip(head.query_key_widths, head.value_output_widths, strict=True)]


def _widths(heads: Sequence[HeadOptions], choice: np.ndarray) -> Widths:
    return tuple(
        (int(head.query_key_widths[place]), int(head.value_output_widths[place]))
        for head, place in zip(heads, choice, strict=True)
    )


def _limit(budget: float) -> float:
    return budget + ROUNDING * abs(budget)


# Frontiers of one site


def _site_frontiers(
    sites: Sequence[Sequence[HeadOptions]],
    limit: float,
    resolution: int,
    tied: Sequence[TiedCost] | None,
    ragged: Sequence[RaggedCost] | None,
) -> list[_Frontier]:
    """What every site may become, in choices of an option per head (n, H); empty where nothing is within the limit."""
    frontiers = []
    for index, heads in enumerate(sites):
        frontier = _any_blocks(heads, ragged[index], resolution) if ragged else _any_widths(heads, limit, resolution)
        if tied:
            frontier = _join(frontier, _one_width(heads, tied[index]))
        frontiers.append(frontier.take(np.flatnonzero(frontier.costs <= limit)))
    return frontiers


def _any_widths(heads: Sequence[HeadOptions], limit: float, resolution: int) -> _Frontier:
    """Additive costs, a head at least kept: heads are added one by one, blocks without a head so far apart."""
    span = min(limit, sum(float(head.costs.max()) for head in heads))
    cell = _cell([head.costs for head in heads], span, resolution)
    none = _Frontier(np.zeros(1), np.zeros(1), np.zeros((1, 0), dtype=np.int32))
    some = none.take(np.arange(0))
    for head in heads:
        removed = _removes(head)
        some = _join(
            _combine(some, _options(head, np.full(removed.shape, True)), limit, cell),
            _combine(none, _options(head, ~removed), limit, cell),
        )
        none = _combine(none, _options(head, removed), limit, cell)
    return some


def _options(head: HeadOptions, among: np.ndarray) -> _Frontier:
    places = np.flatnonzero(among)
    choices = places[:, None].astype(np.int32)
    return _pareto(_floats(head.costs[places]), _floats(head.damages[places]), choices)


def _one_width(heads: Sequence[HeadOptions], cost: TiedCost) -> _Frontier:
    """Blocks whose kept heads all have the same (K, V): of each number of kept heads the ones of least damage."""
    removals = [_least_damage(head, _removes(head)) for head in heads]
    costs, damages, choices = [], [], []
    for pair in sorted({pair for head in heads for pair in _pairs(head) if pair != (0, 0)}):
        keeps = [_least_damage(head, _has(head, pair)) for head in heads]
        kept_damages = np.array([_damage_at(head, place) for head, place in zip(heads, keeps, strict=True)])
        removed_damages = np.array([_damage_at(head, place) for head, place in zip(heads, removals, strict=True)])
        if np.any(np.isinf(kept_damages) & np.isinf(removed_damages)):
            continue
        # -inf where the head cannot be kept at these widths, so goes first; inf where it cannot be removed
        order = np.argsort(removed_damages - kept_damages, kind="stable")
        for kept_count in range(1, len(heads) + 1):
            goes = np.full(len(heads), False)
            goes[order[: len(heads) - kept_count]] = True
            damage = float(np.where(goes, removed_damages, kept_damages).sum())
            block_cost = _checked(cost(kept_count, *pair)) if math.isfinite(damage) else math.inf
            if math.isfinite(block_cost):
                costs.append(block_cost)
                damages.append(damage)
                choices.append([r if gone else k for gone, r, k in zip(goes, removals, keeps, strict=True)])
    return _pareto(np.array(costs), np.array(damages), np.array(choices, dtype=np.int32).reshape(-1, len(heads)))


def _has(head: HeadOptions, pair: tuple[int, int]) -> np.ndarray:
    return (head.query_key_widths == pair[0]) & (head.value_output_widths == pair[1])


def _least_damage(head: HeadOptions, among: np.ndarray) -> int:
    """Place of the option of least damage among some; -1 if there is none."""
    return int(np.argmin(np.where(among, head.damages, math.inf))) if among.any() else -1


def _damage_at(head: HeadOptions, place: int) -> float:
    return math.inf if place < 0 else float(head.damages[place])


def _any_blocks(heads: Sequence[HeadOptions], cost: RaggedCost, resolution: int) -> _Frontier:
    """Blocks whose cost is not the sum of their heads': all of them, or the best of many."""
    pairs = sorted({pair for head in heads for pair in _pairs(head)} - {(0, 0)})
    blocks = math.comb(len(heads) + len(pairs), len(pairs))
    if blocks <= COUNTED_BLOCKS and (len(heads) + 1) ** len(pairs) <= COUNTS:
        return _by_counts(heads, pairs, cost)
    return _recost(heads, _thin_evenly(_any_widths(heads, math.inf, resolution), PROPOSALS), cost)


def _by_counts(heads: Sequence[HeadOptions], pairs: Sequence[tuple[int, int]], cost: RaggedCost) -> _Frontier:
    """The block of least damage for every number of heads of every (K, V), of which alone the cost is a function.

    Heads are added one by one; after each, a cell of `damages` has the least damage of blocks with so many heads of the
    first of `pairs`, of the second, and so on, and `places` the option that its last head takes there.
    """
    damages = np.full((len(heads) + 1,) * len(pairs), math.inf)
    damages[(0,) * len(pairs)] = 0.0
    places = np.zeros((len(heads), *damages.shape), dtype=np.int32)
    for number, head in enumerate(heads):
        gone = _least_damage(head, _removes(head))
        before, damages = damages, damages + _damage_at(head, gone)
        places[number] = gone
        for axis, pair in enumerate(pairs):
            kept = _least_damage(head, _has(head, pair))
            one_more = np.full(before.shape, math.inf)
            _along(axis, one_more)[1:] = _along(axis, before)[:-1] + _damage_at(head, kept)
            better = one_more < damages
            damages[better], places[number][better] = one_more[better], kept
    counts = np.argwhere(np.isfinite(damages))
    counts = counts[counts.any(axis=1)]
    costs = np.array([_checked(cost(_repeated(pairs, count))) for count in counts.tolist()])
    available = np.flatnonzero(np.isfinite(costs))
    counts, costs = counts[available], costs[available]
    found = _pareto(costs, damages[tuple(counts.T)], counts)
    choices = [_last_choices(heads, pairs, places, count) for count in found.choices.tolist()]
    return _Frontier(found.costs, found.damages, np.array(choices, dtype=np.int32).reshape(-1, len(heads)))


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
        pair = _pairs(heads[number])[place]
        if pair != (0, 0):
            left[pairs.index(pair)] -= 1
        chosen.append(place)
    return chosen[::-1]


def _recost(heads: Sequence[HeadOptions], proposed: _Frontier, cost: RaggedCost) -> _Frontier:
    """The proposed blocks that remain at their true costs."""
    costs = [_checked(cost(_kept(_widths(heads, choice)))) for choice in proposed.choices]
    available = np.flatnonzero(np.isfinite(costs))
    return _pareto(np.array(costs)[available], proposed.damages[available], proposed.choices[available])


def _kept(widths: Widths) -> Widths:
    return tuple(pair for pair in widths if pair != (0, 0))


def _checked(cost: float) -> float:
    if not cost >= 0:
        raise BadInput(f"allocation: a block's cost of {cost} is not a number that is at least 0")
    return float(cost)


def _equal_block_cost(
    index: int,
    heads: Sequence[HeadOptions],
    width: int,
    tied: Sequence[TiedCost] | None,
    ragged: Sequence[RaggedCost] | None,
) -> float:
    """The lowest cost that is known of a block all of whose heads have K = V = width."""
    costs = []
    if ragged:
        costs.append(_checked(ragged[index](((width, width),) * len(heads))))
    else:
        costs.append(math.fsum(float(head.costs[_least_damage(head, _has(head, (width, width)))]) for head in heads))
    if tied:
        costs.append(_checked(tied[index](len(heads), width, width)))
    return min(costs)


# Frontiers of all sites


def _least_cost(frontiers: Sequence[_Frontier]) -> float:
    """Infinite if a site has nothing that could be chosen."""
    return math.fsum(float(frontier.costs[0]) if len(frontier) else math.inf for frontier in frontiers)


def _choose_sites(frontiers: Sequence[_Frontier], budget: float, resolution: int) -> list[int]:
    """The point of every site's frontier that is taken, within the budget, which the cheapest points keep."""
    least = [float(frontier.costs[0]) for frontier in frontiers]
    span = min(budget, math.fsum(float(frontier.costs[-1]) for frontier in frontiers))
    cell = _cell([frontier.costs for frontier in frontiers], span, resolution)
    total = _Frontier(np.zeros(1), np.zeros(1), np.zeros((1, 0), dtype=np.int32))
    for index, frontier in enumerate(frontiers):
        places = np.arange(len(frontier), dtype=np.int32)[:, None]
        site = _Frontier(frontier.costs, frontier.damages, places)
        if len(total) * len(site) > ALL_PAIRS:
            site = _thin(site, cell)
        total = _combine(total, site, _limit(budget) - math.fsum(least[index + 1 :]), cell)
    return [int(place) for place in total.choices[-1]]


def _use_slack(frontiers: Sequence[_Frontier], picks: list[int], budget: float) -> list[int]:
    """Picks that no exact exchange of two sites' points improves any more: cells may have lost a little damage."""
    picks = list(picks)
    improved = True
    while improved:
        improved = False
        for first, second in itertools.combinations(range(len(frontiers)), 2):
            others = [i for i in range(len(frontiers)) if i not in (first, second)]
            room = _limit(budget) - math.fsum(float(frontiers[i].costs[picks[i]]) for i in others)
            one, other = frontiers[first], frontiers[second]
            partner = np.searchsorted(other.costs, room - one.costs, side="right") - 1
            damages = np.where(partner >= 0, one.damages + other.damages[partner], math.inf)
            best = int(np.argmin(damages))
            now = float(one.damages[picks[first]] + other.damages[picks[second]])
            if damages[best] < now - ROUNDING * abs(now):
                picks[first], picks[second] = best, int(partner[best])
                improved = True
    return picks


# Arithmetic of frontiers


def _floats(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def _pareto(costs: np.ndarray, damages: np.ndarray, choices: np.ndarray) -> _Frontier:
    """The points that no other one dominates; of equal points the one that comes first."""
    order = np.lexsort((damages, costs))
    lowest_before = np.concatenate([[math.inf], np.minimum.accumulate(damages[order])[:-1]])[: len(order)]
    places = order[damages[order] < lowest_before]
    return _Frontier(costs[places], damages[places], choices[places])


def _join(left: _Frontier, right: _Frontier) -> _Frontier:
    """The frontier of what either offers."""
    return _pareto(
        np.concatenate([left.costs, right.costs]),
        np.concatenate([left.damages, right.damages]),
        np.concatenate([left.choices, right.choices]),
    )


def _combine(left: _Frontier, right: _Frontier, limit: float, cell: float) -> _Frontier:
    """The frontier of a point of the one with a point of the other, at a summed cost of `limit` at most."""
    if len(left) * len(right) <= ALL_PAIRS:
        left_places, right_places = _all_sums(left, right, limit)
    elif len(left) >= len(right):
        left_places, right_places = _sums_in_cells(left, right, limit, cell)
    else:
        right_places, left_places = _sums_in_cells(right, left, limit, cell)
    return _pareto(
        left.costs[left_places] + right.costs[right_places],
        left.damages[left_places] + right.damages[right_places],
        np.concatenate([left.choices[left_places], right.choices[right_places]], axis=1),
    )


def _all_sums(left: _Frontier, right: _Frontier, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Places in both of all sums within the limit that are on the frontier."""
    within = np.flatnonzero(np.add.outer(left.costs, right.costs).ravel() <= limit)
    left_places, right_places = np.divmod(within, max(1, len(right)))
    costs = left.costs[left_places] + right.costs[right_places]
    damages = left.damages[left_places] + right.damages[right_places]
    kept = _pareto(costs, damages, np.arange(len(within))[:, None]).choices[:, 0]
    return left_places[kept], right_places[kept]


def _sums_in_cells(longer: _Frontier, shorter: _Frontier, limit: float, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Places in both of the sum of least damage in every cell of cost within the limit, then of least cost.

    The cheapest sum of all has a cell of its own, so that it is never lost.
    """
    least = float(longer.costs[0] + shorter.costs[0])
    most = min(limit, float(longer.costs[-1] + shorter.costs[-1]))
    if most < least:
        return np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp)
    count = math.ceil((most - least) / cell) + 2
    lowest, lowest_costs = np.full(count, math.inf), np.full(count, math.inf)
    longer_places, shorter_places = np.zeros(count, dtype=np.intp), np.zeros(count, dtype=np.intp)
    for place in range(len(shorter)):
        end = int(np.searchsorted(longer.costs, limit - shorter.costs[place], side="right"))
        costs = longer.costs[:end] + shorter.costs[place]
        damages = longer.damages[:end] + shorter.damages[place]
        cells = np.ceil((costs - least) / cell).astype(np.intp)
        better = damages < lowest[cells]
        better |= (damages == lowest[cells]) & (costs < lowest_costs[cells])
        # Of several points in one cell the last is written, which on a frontier has the least damage.
        winners = np.flatnonzero(better)
        cells = cells[winners]
        lowest[cells], lowest_costs[cells] = damages[winners], costs[winners]
        longer_places[cells], shorter_places[cells] = winners, place
    found = np.isfinite(lowest)
    return longer_places[found], shorter_places[found]


def _cell(costs: Sequence[np.ndarray], span: float, resolution: int) -> float:
    """Width of a cell of cost: the costs' common divisor if they are whole and it makes few enough cells."""
    values = np.concatenate(costs)
    if np.all(values == np.floor(values)) and float(values.max()) < 2.0**53:
        divisor = int(np.gcd.reduce(values.astype(np.int64)))
        if divisor and span / divisor <= WHOLE_CELLS:
            return float(divisor)
    return span / resolution or 1.0


def _thin(frontier: _Frontier, cell: float) -> _Frontier:
    """The last point of every cell, that of least damage; the first of all points has a cell of its own."""
    cells = np.ceil((frontier.costs - frontier.costs[0]) / cell)
    return frontier.take(np.flatnonzero(np.append(cells[1:] != cells[:-1], True)))


def _thin_evenly(frontier: _Frontier, count: int) -> _Frontier:
    """About `count` points, evenly spaced by cost, if there are more."""
    if len(frontier) <= count:
        return frontier
    return _thin(frontier, float(frontier.costs[-1] - frontier.costs[0]) / count)
