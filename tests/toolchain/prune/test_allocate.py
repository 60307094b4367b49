"""Allocations against enumeration of all of them, or against integer programming where there are too many."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from leanear.prune.allocation import allocate as allocating
from leanear.prune.allocation import frontier
from leanear.prune.allocation.allocate import Allocation, HeadOptions, allocate
from leanear.runtimes.errors import BadInput


def random_head(generator: np.random.Generator, widths, whole: bool, removable: bool = True) -> HeadOptions:
    pairs = [(0, 0)] * removable + [(k, v) for k in widths for v in widths]
    count = len(pairs)
    if whole:
        costs, damages = 6.0 * generator.integers(0, 9, count), generator.integers(-1, 12, count) / 4
    else:
        costs, damages = generator.random(count), generator.normal(1.0, 0.8, count)
    shuffled = generator.permutation(count)
    query_key, value_output = (np.array([pairs[i][axis] for i in shuffled]) for axis in (0, 1))
    return HeadOptions(query_key, value_output, costs, damages)


def random_sites(seed: int, sites: int = 2, heads: int = 2, widths=(8, 16), whole: bool = False):
    generator = np.random.default_rng(seed)
    return [
        [random_head(generator, widths, whole, removable=bool(generator.random() < 0.8)) for _ in range(heads)]
        for _ in range(sites)
    ]


def ordinary_sites(seed: int, sites: int, heads: int, widths, cost_of=lambda k, v: float(k + v)):
    """Sites as models have them: costs of widths alone, damages that fall to zero at the full width."""
    generator = np.random.default_rng(seed)
    pairs = np.array([(0, 0), *itertools.product(widths, widths)])
    costs = np.array([0.0] + [cost_of(int(k), int(v)) for k, v in pairs[1:]])
    made = []
    for _ in range(sites):
        made.append([])
        for _ in range(heads):
            of_width = [np.cumsum(generator.gamma(0.3, size=max(widths) + 1))[::-1] for _ in range(2)]
            damages = sum(curve[pairs[:, axis]] - curve[-1] for axis, curve in enumerate(of_width))
            made[-1].append(HeadOptions(pairs[:, 0], pairs[:, 1], costs, damages))
    return made


def of_widths(head: HeadOptions, allowed) -> HeadOptions:
    """The options whose two widths are one of these."""
    keys, values = head.query_key_widths, head.value_output_widths
    places = np.flatnonzero((keys == values) & np.isin(keys, allowed))
    return HeadOptions(keys[places], values[places], head.costs[places], head.damages[places])


def pair(head: HeadOptions, place: int) -> tuple[int, int]:
    return int(head.query_key_widths[place]), int(head.value_output_widths[place])


def all_blocks(heads, index: int, tied=None, ragged=None):
    """(cost, damage, widths) of everything that a site may become."""
    for places in itertools.product(*(range(len(head.costs)) for head in heads)):
        widths = tuple(pair(head, place) for head, place in zip(heads, places))
        kept = tuple(width for width in widths if width != (0, 0))
        if not kept:
            continue
        damage = sum(float(head.damages[place]) for head, place in zip(heads, places))
        summed = sum(float(head.costs[place]) for head, place in zip(heads, places))
        cost = ragged[index](kept) if ragged else summed
        if tied and len(set(kept)) == 1:
            cost = min(cost, tied[index](len(kept), *kept[0]))
        yield cost, damage, widths


def enumerate_best(sites, budget: float, tied=None, ragged=None) -> tuple[float, float]:
    """Damage and cost of the best of all allocations."""
    blocks = [list(all_blocks(heads, index, tied, ragged)) for index, heads in enumerate(sites)]
    sums = ((sum(b[1] for b in chosen), sum(b[0] for b in chosen)) for chosen in itertools.product(*blocks))
    return min(total for total in sums if total[1] <= budget)


def assert_adds_up(allocation: Allocation, sites, tied=None, ragged=None) -> None:
    """The stated cost and damage are those of the stated widths."""
    cost, damage = 0.0, 0.0
    for index, (heads, widths) in enumerate(zip(sites, allocation.widths)):
        matching = [b for b in all_blocks(heads, index, tied, ragged) if b[2] == widths]
        assert len(matching) == 1
        cost, damage = cost + matching[0][0], damage + matching[0][1]
    assert allocation.cost == pytest.approx(cost, abs=1e-9)
    assert allocation.damage == pytest.approx(damage, abs=1e-9)


def least_cost(sites, tied=None, ragged=None) -> float:
    return sum(min(b[0] for b in all_blocks(heads, i, tied, ragged)) for i, heads in enumerate(sites))


def budgets_of(sites, tied=None, ragged=None) -> list[float]:
    least = least_cost(sites, tied, ragged)
    most = sum(max(b[0] for b in all_blocks(heads, i, tied, ragged)) for i, heads in enumerate(sites))
    return [least * (1 + 1e-9) + 1e-9 + share * (most - least) for share in (0.0, 0.1, 0.3, 0.6, 1.0)]


@pytest.mark.parametrize("seed", range(12))
def test_best_of_all_allocations_with_whole_costs_even_among_ties(seed):
    sites = random_sites(seed, whole=True)
    for budget in budgets_of(sites):
        found = allocate(sites, budget)
        assert (found.damage, found.cost) == enumerate_best(sites, budget)
        assert_adds_up(found, sites)


@pytest.mark.parametrize("seed", range(12))
def test_best_of_all_allocations_with_costs_in_milliseconds(seed):
    sites = (
        random_sites(seed, sites=3, heads=2, widths=(8,) if seed % 2 else (4, 12)) if seed < 6 else random_sites(seed)
    )
    for budget in budgets_of(sites)[:4]:
        found = allocate(sites, budget)
        assert found.cost <= budget
        assert found.damage == pytest.approx(enumerate_best(sites, budget)[0], abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_tied_blocks_compete_at_their_own_cost(seed):
    sites = random_sites(seed, heads=3, widths=(8, 16) if seed < 3 else (8,), sites=1 if seed < 3 else 2)
    tied = [lambda heads, k, v, site=site: 0.1 + 0.02 * site + heads * (k + v) / 64 for site in range(len(sites))]
    changed = False
    for budget in budgets_of(sites, tied):
        found = allocate(sites, budget, tied=tied)
        assert found.cost <= budget
        assert found.damage == pytest.approx(enumerate_best(sites, budget, tied)[0], abs=1e-9)
        assert_adds_up(found, sites, tied)
        changed |= budget < least_cost(sites) or found.damage < allocate(sites, budget).damage
    assert changed


@pytest.mark.parametrize("seed", range(6))
def test_ragged_blocks_are_judged_by_their_true_cost(seed, monkeypatch):
    sites = ordinary_sites(seed, sites=2, heads=3, widths=(4, 8))

    def true_cost(widths):
        return 10.0 * len(set(widths)) + sum(k + v for k, v in widths)

    ragged = [true_cost, true_cost]
    tied = [lambda heads, k, v: 10.0 + heads * (k + v)] * 2
    for budget in budgets_of(sites, tied, ragged):
        found = allocate(sites, budget, tied=tied, ragged=ragged)
        assert found.cost <= budget
        assert_adds_up(found, sites, tied, ragged)
        assert found.cost == sum(true_cost(tuple(w for w in site if w != (0, 0))) for site in found.widths)
        best = enumerate_best(sites, budget, tied, ragged)[0]
        assert found.damage == pytest.approx(best, abs=1e-9)
        # Where there are too many blocks, what summed costs propose may miss the best, but tied blocks are all there.
        monkeypatch.setattr(allocating, "COUNTS", 0)
        proposed = allocate(sites, budget, tied=tied, ragged=ragged)
        monkeypatch.undo()
        assert_adds_up(proposed, sites, tied, ragged)
        best_tied = enumerate_best(sites, budget, tied, [lambda kept: math.inf] * 2)
        assert best - 1e-9 <= proposed.damage <= best_tied[0] + 1e-9


@pytest.mark.parametrize("seed", range(12))
def test_blocks_that_cannot_be_had_are_left_out_and_the_rest_is_solved_exactly(seed):
    """Also where some heads cannot be removed, or not be kept at some widths."""
    generator = np.random.default_rng(100 + seed)
    sites = []
    for _ in range(2):
        heads = [random_head(generator, (16,), True, bool(generator.random() < 0.8)) for _ in range(3)]
        widths = np.array([0, 16, 32, 48])
        for _ in range(2):
            among = np.flatnonzero([generator.random() < 0.8, True, True, generator.random() < 0.8])
            damages = generator.integers(-1, 12, 4) / 4
            heads.append(HeadOptions(widths[among], widths[among], 6.0 * widths[among], damages[among]))
        sites.append(heads)

    def true_cost(kept):
        return math.inf if len(set(kept)) == 2 else 10.0 + sum(k for k, _ in kept)

    for budget in (40.0, 90.0, 150.0, 400.0):
        try:
            best = enumerate_best(sites, budget, None, [true_cost] * 2)
        except ValueError:  # no allocation is within the budget
            with pytest.raises(BadInput, match="below"):
                allocate(sites, budget, ragged=[true_cost] * 2)
            continue
        found = allocate(sites, budget, ragged=[true_cost] * 2)
        assert (found.damage, found.cost) == pytest.approx(best, abs=1e-9)
        assert_adds_up(found, sites, None, [true_cost] * 2)


def test_ragged_costs_that_add_up_change_nothing():
    sites = ordinary_sites(3, sites=2, heads=3, widths=(4, 8))
    for budget in (30.0, 52.0, 70.0):
        ragged = [lambda kept: float(sum(k + v for k, v in kept))] * 2
        assert allocate(sites, budget, ragged=ragged) == allocate(sites, budget)


def test_a_head_at_least_is_kept_in_every_block():
    sites = [[HeadOptions(np.array([0, 8]), np.array([0, 8]), np.array([0.0, 1.0]), np.array([0.0, 5.0]))] * 3] * 2
    found = allocate(sites, 100.0)
    assert [sum(width != (0, 0) for width in site) for site in found.widths] == [1, 1]
    assert found.damage == 10.0


def test_widths_of_zero_are_not_a_removed_head_unless_both_are():
    averaging = HeadOptions(np.array([0, 0]), np.array([0, 8]), np.array([0.0, 1.0]), np.array([0.0, 5.0]))
    assert allocate([[averaging]], 1.0).widths == (((0, 8),),)


def solve_by_integer_programming(sites, budget: float) -> float:
    """The least damage by HiGHS, an option of a head being one binary variable."""
    heads = [(index, head) for index, site in enumerate(sites) for head in site]
    damages, costs = (np.concatenate([getattr(head, name) for _, head in heads]) for name in ("damages", "costs"))
    owner = np.repeat(np.arange(len(heads)), [len(head.costs) for _, head in heads])
    one_option = (owner == np.arange(len(heads))[:, None]).astype(float)
    kept = np.concatenate([(head.query_key_widths + head.value_output_widths) > 0 for _, head in heads])
    site_of = np.array([index for index, _ in heads])[owner]
    some_head = ((site_of == np.arange(len(sites))[:, None]) & kept).astype(float)
    constraints = [
        LinearConstraint(one_option, 1, 1),
        LinearConstraint(some_head, 1, np.inf),
        LinearConstraint(costs[None], 0, budget),
    ]
    options = {"mip_rel_gap": 1e-9}
    solved = milp(
        damages, constraints=constraints, integrality=np.ones(len(costs)), bounds=Bounds(0, 1), options=options
    )
    assert solved.success
    return float(solved.fun)


@pytest.mark.parametrize("share", [0.08, 0.3, 0.6])
def test_many_heads_with_whole_costs_are_solved_exactly(share):
    sites = ordinary_sites(1, sites=4, heads=4, widths=(4, 8, 12, 16), cost_of=lambda k, v: 96.0 * (k + v) + 4 * v)
    budget = share * sum(head.costs.max() for site in sites for head in site)
    found = allocate(sites, budget)
    assert found.cost <= budget
    assert found.damage == pytest.approx(solve_by_integer_programming(sites, budget), rel=1e-7)


@pytest.mark.parametrize("share", [0.08, 0.3, 0.6])
def test_many_heads_with_costs_in_milliseconds_are_solved_to_the_cells(share):
    sites = ordinary_sites(2, 6, 6, (4, 8, 12, 16), cost_of=lambda k, v: 0.02 + 0.00137 * k + 0.00171 * v**1.1)
    budget = share * sum(head.costs.max() for site in sites for head in site)
    best = solve_by_integer_programming(sites, budget)
    found = allocate(sites, budget)
    assert found.cost <= budget
    assert best * (1 - 1e-7) <= found.damage <= best * 1.002
    coarse = allocate(sites, budget, resolution=128)
    assert coarse.cost <= budget
    assert found.damage <= coarse.damage <= best * 1.05


@pytest.mark.parametrize("whole", [True, False])
def test_cells_lose_nothing_where_every_cost_has_its_own(whole, monkeypatch):
    """Sums that are sorted into cells are the sums that are listed one by one."""
    cost_of = (lambda k, v: 12.0 * (k + v)) if whole else (lambda k, v: 0.375 * (k + v))
    sites = ordinary_sites(5, sites=3, heads=3, widths=(2, 4, 6), cost_of=cost_of)
    budget = 0.5 * sum(head.costs.max() for site in sites for head in site)
    listed = allocate(sites, budget)
    monkeypatch.setattr(frontier, "ALL_PAIRS", 0)
    assert allocate(sites, budget) == listed


def test_more_budget_is_never_more_damage():
    sites = ordinary_sites(7, sites=3, heads=4, widths=(4, 8, 16))
    damages = [allocate(sites, budget).damage for budget in range(24, 420, 12)]
    assert damages == sorted(damages, reverse=True)
    assert damages[0] > damages[-1] == 0.0


def test_all_that_damages_when_it_goes_is_kept_under_a_huge_budget():
    sites = ordinary_sites(8, sites=3, heads=4, widths=(4, 8, 16))
    for budget in (1e12, math.inf):
        found = allocate(sites, budget)
        assert found.damage == 0.0
        assert set(itertools.chain(*found.widths)) == {(16, 16)}


def test_of_equal_damage_the_cheapest_and_then_the_first_is_kept():
    same = HeadOptions(np.array([8, 8, 4]), np.array([8, 4, 8]), np.array([2.0, 1.0, 1.0]), np.zeros(3))
    assert allocate([[same]], 10.0) == Allocation((((8, 4),),), 1.0, 0.0)


def test_same_result_again_with_whole_and_with_broken_costs():
    for cost_of in (lambda k, v: float(k + v), lambda k, v: 0.1 + k / 7 + v / 9):
        sites = ordinary_sites(9, 3, 4, (4, 8, 16), cost_of)
        budget = 0.4 * sum(head.costs.max() for site in sites for head in site)
        assert repr(allocate(sites, budget)) == repr(allocate(sites, budget))


@pytest.mark.parametrize("cost_of", [lambda k, v: float(k + v), lambda k, v: 0.013 + k / 700 + v / 900])
@pytest.mark.parametrize("pairs", [0, 1 << 16])
def test_least_possible_cost_is_enough_and_less_is_refused_with_its_number(cost_of, pairs, monkeypatch):
    monkeypatch.setattr(frontier, "ALL_PAIRS", pairs)
    sites = ordinary_sites(10, 3, 4, (4, 8, 16), cost_of)
    least = 3 * cost_of(4, 4)
    assert allocate(sites, least, resolution=16).cost == pytest.approx(least, rel=1e-11)
    with pytest.raises(BadInput, match=f"below {least:.10g}, the least possible cost"):
        allocate(sites, least * 0.999, resolution=16)


def test_a_budget_that_is_the_sum_of_costs_in_another_order_is_met():
    costs = [0.1, 0.2, 0.3, 0.7]
    sites = [[HeadOptions(np.array([8]), np.array([8]), np.array([cost]), np.zeros(1))] for cost in costs]
    for order in itertools.permutations(costs):
        assert allocate(sites, sum(order)).cost == math.fsum(costs)


@pytest.mark.parametrize("seed", range(4))
def test_entire_heads_are_the_best_of_all_subsets(seed):
    sites = ordinary_sites(seed, sites=2, heads=3, widths=(4, 8))
    entire = [
        [
            HeadOptions(
                *(values[[0, -1]] for values in (h.query_key_widths, h.value_output_widths, h.costs, h.damages))
            )
            for h in heads
        ]
        for heads in sites
    ]
    tied = [lambda heads, k, v: 3.0 + heads * (k + v)] * 2
    dear = [lambda kept: 1000.0] * 2
    for budget in (40.0, 60.0, 90.0, 102.0):
        assert allocate(entire, budget).damage == pytest.approx(enumerate_best(entire, budget)[0])
        found = allocate(entire, budget, tied=tied, ragged=dear)
        assert found.damage == pytest.approx(enumerate_best(entire, budget, tied, dear)[0])
        assert set(itertools.chain(*found.widths)) <= {(0, 0), (8, 8)}


def test_any_widths_are_never_worse_than_one_width_or_entire_heads_under_the_same_costs():
    sites = ordinary_sites(12, 3, 4, (4, 8, 12, 16))
    tied = [lambda heads, k, v: 5.0 + heads * (k + v)] * 3
    ragged = [lambda kept: 5.0 * len(set(kept)) + sum(k + v for k, v in kept)] * 3
    for budget in (120.0, 200.0, 300.0):
        best = allocate(sites, budget, tied=tied, ragged=ragged).damage
        for allowed in ((0, 4), (0, 8), (0, 16)):
            fewer = [[of_widths(head, allowed) for head in heads] for heads in sites]
            assert best <= allocate(fewer, budget, tied=tied, ragged=ragged).damage


def test_blocks_that_cannot_be_had_are_left_out():
    sites = ordinary_sites(13, sites=1, heads=2, widths=(4, 8))
    unavailable = [lambda kept: math.inf]
    tied = [lambda heads, k, v: math.inf if k == 8 else float(heads * (k + v))]
    assert allocate(sites, 1e9, tied=tied, ragged=unavailable).widths == (((4, 8), (4, 8)),)
    for budget in (1e9, math.inf):
        with pytest.raises(BadInput, match="below inf"):
            allocate(sites, budget, ragged=unavailable)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ([], "no block"),
        ([[HeadOptions(np.array([8]), np.array([8, 8]), np.ones(1), np.ones(1))]], "block 0, head 0.*one length"),
        ([[HeadOptions(np.array([8]), np.array([8]), -np.ones(1), np.ones(1))]], "negative"),
        ([[HeadOptions(np.array([8]), np.array([8]), np.ones(1), np.array([np.nan]))]], "not finite"),
        ([[HeadOptions(np.array([0]), np.array([0]), np.zeros(1), np.ones(1))]], "block 0 has no head"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(sites, message):
    with pytest.raises(BadInput, match=message):
        allocate(sites, 10.0)


def test_cost_functions_are_one_per_block_and_give_costs():
    sites = ordinary_sites(14, sites=2, heads=2, widths=(4,))
    with pytest.raises(BadInput, match="1 tied cost functions for 2 blocks"):
        allocate(sites, 10.0, tied=[lambda heads, k, v: 1.0])
    with pytest.raises(BadInput, match="nan"):
        allocate(sites, 10.0, tied=[lambda heads, k, v: math.nan] * 2)
