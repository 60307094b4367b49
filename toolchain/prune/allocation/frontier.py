"""Choices by rising cost and falling damage: dominated ones left out, two such lists combined, one of each chosen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ALL_PAIRS = 1 << 16  # so many sums are all listed and sorted, exactly; above, they are sorted into cells
WHOLE_CELLS = 1 << 15  # so many cells at most for whole-number costs: every channel of AST-base has its own
ROUNDING = 1e-12  # sums of the same floats in two orders differ by less, relatively


@dataclass(frozen=True)
class Frontier:
    """Choices by rising cost and falling damage: costs (n,), damages (n,), and what is chosen, choices (n, parts)."""

    costs: np.ndarray
    damages: np.ndarray
    choices: np.ndarray

    def __len__(self) -> int:
        return len(self.costs)

    def take(self, places: np.ndarray) -> Frontier:
        """The points at `places`."""
        return Frontier(self.costs[places], self.damages[places], self.choices[places])


def limit_of(budget: float) -> float:
    """The highest cost within a budget: it is kept to the rounding of a sum."""
    return budget + ROUNDING * abs(budget)


def least_cost(frontiers: Sequence[Frontier]) -> float:
    """Infinite if a site has nothing that could be chosen."""
    return math.fsum(float(frontier.costs[0]) if len(frontier) else math.inf for frontier in frontiers)


def choose_each(frontiers: Sequence[Frontier], budget: float, resolution: int) -> list[int]:
    """The point of every site's frontier that is taken, within the budget, which the cheapest points keep."""
    least = [float(frontier.costs[0]) for frontier in frontiers]
    span = min(budget, math.fsum(float(frontier.costs[-1]) for frontier in frontiers))
    cell = cell_size([frontier.costs for frontier in frontiers], span, resolution)
    total = Frontier(np.zeros(1), np.zeros(1), np.zeros((1, 0), dtype=np.int32))
    for index, frontier in enumerate(frontiers):
        places = np.arange(len(frontier), dtype=np.int32)[:, None]
        site = Frontier(frontier.costs, frontier.damages, places)
        if len(total) * len(site) > ALL_PAIRS:
            site = _thin(site, cell)
        total = combine(total, site, limit_of(budget) - math.fsum(least[index + 1 :]), cell)
    return [int(place) for place in total.choices[-1]]


def use_slack(frontiers: Sequence[Frontier], picks: list[int], budget: float) -> list[int]:
    """Picks that no exact exchange of two sites' points improves any more: cells may have lost a little damage."""
    picks = list(picks)
    improved = True
    while improved:
        improved = False
        for first, second in itertools.combinations(range(len(frontiers)), 2):
            others = [i for i in range(len(frontiers)) if i not in (first, second)]
            room = limit_of(budget) - math.fsum(float(frontiers[i].costs[picks[i]]) for i in others)
            one, other = frontiers[first], frontiers[second]
            partner = np.searchsorted(other.costs, room - one.costs, side="right") - 1
            damages = np.where(partner >= 0, one.damages + other.damages[partner], math.inf)
            best = int(np.argmin(damages))
            now = float(one.damages[picks[first]] + other.damages[picks[second]])
            if damages[best] < now - ROUNDING * abs(now):
                picks[first], picks[second] = best, int(partner[best])
                improved = True
    return picks


def as_floats(values: np.ndarray) -> np.ndarray:
    """The values as float64."""
    return np.asarray(values, dtype=np.float64)


def pareto(costs: np.ndarray, damages: np.ndarray, choices: np.ndarray) -> Frontier:
    """The points that no other one dominates; of equal points the one that comes first."""
    order = np.lexsort((damages, costs))
    lowest_before = np.concatenate([[math.inf], np.minimum.accumulate(damages[order])[:-1]])[: len(order)]
    places = order[damages[order] < lowest_before]
    return Frontier(costs[places], damages[places], choices[places])


def join(left: Frontier, right: Frontier) -> Frontier:
    """The frontier of what either offers."""
    return pareto(
        np.concatenate([left.costs, right.costs]),
        np.concatenate([left.damages, right.damages]),
        np.concatenate([left.choices, right.choices]),
    )


def combine(left: Frontier, right: Frontier, limit: float, cell: float) -> Frontier:
    """The frontier of a point of the one with a point of the other, at a summed cost of `limit` at most."""
    if len(left) * len(right) <= ALL_PAIRS:
        left_places, right_places = _all_sums(left, right, limit)
    elif len(left) >= len(right):
        left_places, right_places = _sums_in_cells(left, right, limit, cell)
    else:
        right_places, left_places = _sums_in_cells(right, left, limit, cell)
    return pareto(
        left.costs[left_places] + right.costs[right_places],
        left.damages[left_places] + right.damages[right_places],
        np.concatenate([left.choices[left_places], right.choices[right_places]], axis=1),
    )


def _all_sums(left: Frontier, right: Frontier, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Places in both of all sums within the limit that are on the frontier."""
    within = np.flatnonzero(np.add.outer(left.costs, right.costs).ravel() <= limit)
    left_places, right_places = np.divmod(within, max(1, len(right)))
    costs = left.costs[left_places] + right.costs[right_places]
    damages = left.damages[left_places] + right.damages[right_places]
    kept = pareto(costs, damages, np.arange(len(within))[:, None]).choices[:, 0]
    return left_places[kept], right_places[kept]


def _sums_in_cells(longer: Frontier, shorter: Frontier, limit: float, cell: float) -> tuple[np.ndarray, np.ndarray]:
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


def cell_size(costs: Sequence[np.ndarray], span: float, resolution: int) -> float:
    """Width of a cell of cost: the costs' common divisor if they are whole and it makes few enough cells."""
    values = np.concatenate(costs)
    if np.all(values == np.floor(values)) and float(values.max()) < 2.0**53:
        divisor = int(np.gcd.reduce(values.astype(np.int64)))
        if divisor and span / divisor <= WHOLE_CELLS:
            return float(divisor)
    return span / resolution or 1.0


def _thin(frontier: Frontier, cell: float) -> Frontier:
    """The last point of every cell, that of least damage; the first of all points has a cell of its own."""
    cells = np.ceil((frontier.costs - frontier.costs[0]) / cell)
    return frontier.take(np.flatnonzero(np.append(cells[1:] != cells[:-1], True)))


def thin_evenly(frontier: Frontier, count: int) -> Frontier:
    """About `count` points, evenly spaced by cost, if there are more."""
    if len(frontier) <= count:
        return frontier
    return _thin(frontier, float(frontier.costs[-1] - frontier.costs[0]) / count)
