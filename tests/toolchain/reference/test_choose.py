"""Choices against enumeration of everything that could have been chosen, and against the method's known widths."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from leanear.calibration.scores import SiteScores
from leanear.plan import HeadPlan, Plan, SitePlan, compose
from leanear.reference.choose import choose_share, choose_sparsity
from leanear.runtimes.errors import BadInput


def random_scores(seed: int, sites: int = 3, heads: int = 2, width: int = 4) -> tuple[SiteScores, ...]:
    generator = np.random.default_rng(seed)
    return tuple(
        SiteScores(
            query_key=tuple(generator.random(width) for _ in range(heads)),
            value_output=tuple(generator.random(width) for _ in range(heads)),
            head=generator.random(heads),
        )
        for _ in range(sites)
    )


def names_of(scores) -> list[str]:
    return [f"layers.{index}.attention" for index in range(len(scores))]


def dense_plan(scores) -> Plan:
    width = len(scores[0].query_key[0])
    every = tuple(range(width))
    sites = tuple(
        SitePlan(name, len(site.head), tuple(HeadPlan(h, every, every) for h in range(len(site.head))))
        for name, site in zip(names_of(scores), scores, strict=True)
    )
    return Plan("ast", width, 24, True, width**-0.5, sites)


def lost_score(scores, kept, kind: str) -> float:
    everything = sum(float(head.sum()) for site in scores for head in getattr(site, kind))
    return everything - sum(
        float(getattr(site, kind)[head.head][channel])
        for site, plan in zip(scores, kept, strict=True)
        for head in plan.heads
        for channel in getattr(head, kind)
    )


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("kind", ["query_key", "value_output"])
def test_global_channels_are_the_best_allocation(seed, share, kind):
    """Of all ways to drop m_l lowest channels per head of block l within the budget, using as much of it as fits."""
    scores = random_scores(seed)
    kept = choose_share(names_of(scores), scores, "channels", "global", share)
    budget = int(share * 24 + 1e-9)
    dropped = [4 - len(getattr(site.heads[0], kind)) for site in kept]
    assert all(len(getattr(head, kind)) == 4 - m for site, m in zip(kept, dropped, strict=True) for head in site.heads)
    allocations = [m for m in itertools.product(range(4), repeat=3) if 2 * sum(m) <= budget]
    fullest = max(map(sum, allocations))
    assert sum(dropped) == fullest

    def loss(m) -> float:
        return sum(
            float(np.sort(head)[:count].sum())
            for count, site in zip(m, scores, strict=True)
            for head in getattr(site, kind)
        )

    best = min(loss(m) for m in allocations if sum(m) == fullest)
    assert lost_score(scores, kept, kind) == pytest.approx(best)


def test_pools_are_separate():
    """Query/key scores far above value/output scores do not shield them."""
    scores = tuple(
        SiteScores(tuple(1000 + h for h in s.query_key), s.value_output, s.head) for s in random_scores(1, width=8)
    )
    kept = choose_share(names_of(scores), scores, "channels", "global", 0.5)
    assert sum(width for site in kept for width in site.query_key_widths) == 24
    assert sum(width for site in kept for width in site.value_output_widths) == 24


def test_a_block_with_more_heads_is_priced_per_channel():
    """Bundles of 1 channel at 0.5 and of 4 channels at 0.4 each: the second is cheaper per channel, dearer in all."""
    scores = tuple(
        SiteScores((np.full(3, price),) * heads, (np.full(3, price),) * heads, np.ones(heads))
        for price, heads in ((0.5, 1), (0.4, 4))
    )
    kept = choose_share(names_of(scores), scores, "channels", "global", 4 / 15)
    assert [site.query_key_widths for site in kept] == [(3,), (2, 2, 2, 2)]


def test_local_channels_walk_the_known_widths():
    """64, 57, 51, 45, 40, 36, 32, 28, 25, 22, 19: ten steps of a tenth of what remains, rounded up."""
    widths = []
    scores = random_scores(0, sites=2, width=64)
    for _ in range(10):
        kept = choose_share(names_of(scores), scores, "channels", "local", 0.1)
        width = {w for site in kept for w in site.query_key_widths + site.value_output_widths}
        assert len(width) == 1
        widths.append(width.pop())
        scores = tuple(
            SiteScores(
                tuple(s.query_key[h.head][list(h.query_key)] for h in site.heads),
                tuple(s.value_output[h.head][list(h.value_output)] for h in site.heads),
                s.head,
            )
            for s, site in zip(scores, kept, strict=True)
        )
    assert widths == [57, 51, 45, 40, 36, 32, 28, 25, 22, 19]


@pytest.mark.parametrize("scheme_threshold", [("channels", "local"), ("channels", "global")])
def test_kept_channels_outscore_dropped_ones_in_every_head(scheme_threshold):
    scores = random_scores(4, width=8)
    for site, plan in zip(scores, choose_share(names_of(scores), scores, *scheme_threshold, 0.4), strict=True):
        for head in plan.heads:
            kept = site.query_key[head.head][list(head.query_key)]
            assert kept.min() > np.delete(site.query_key[head.head], list(head.query_key)).max(initial=-1)
    assert any(a.query_key != b.query_key for a, b in [plan.heads[:2]]), "channels differ from head to head"


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.7, 0.9, 1.0])
def test_global_heads_are_the_best_subset(seed, share):
    scores = random_scores(seed, sites=3, heads=3)
    kept = choose_share(names_of(scores), scores, "heads", "global", share)
    drop = min(int(np.ceil(share * 9 - 1e-9)), 6)
    everything = [(index, head) for index in range(3) for head in range(3)]
    subsets = [s for s in itertools.combinations(everything, 9 - drop) if {index for index, _ in s} == {0, 1, 2}]
    best = max(subsets, key=lambda s: sum(scores[index].head[head] for index, head in s))
    assert {(index, head.head) for index, site in enumerate(kept) for head in site.heads} == set(best)
    assert all(head.query_key == (0, 1, 2, 3) == head.value_output for site in kept for head in site.heads)


def test_an_emptied_block_keeps_its_best_head_and_the_count_is_made_up_elsewhere():
    """The source keeps head 0 of such a block, however bad it is, and then prunes less than it was asked to."""
    feeble, strong = np.array([0.1, 0.3, 0.2]), np.array([5.0, 4.0, 6.0])
    channels = (np.ones(4),) * 3
    scores = tuple(SiteScores(channels, channels, head) for head in (feeble, strong))
    kept = choose_share(names_of(scores), scores, "heads", "global", 0.5)
    assert [[head.head for head in site.heads] for site in kept] == [[1], [0, 2]]


@pytest.mark.parametrize(("share", "left"), [(0.1, 5), (0.2, 4), (0.5, 3), (0.51, 2), (0.9, 1), (1.0, 1)])
def test_local_heads_lose_the_rounded_up_share_of_every_block(share, left):
    scores = random_scores(2, sites=4, heads=6)
    for site, plan in zip(scores, choose_share(names_of(scores), scores, "heads", "local", share), strict=True):
        assert [head.head for head in plan.heads] == sorted(np.argsort(site.head)[6 - left :].tolist())


VARIANTS = list(itertools.product(("channels", "heads"), ("global", "local")))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sparsity", [0.05, 0.3, 0.5, 0.7, 0.8])
def test_sparsity_is_reached_by_the_smallest_step(variant, sparsity):
    scores = random_scores(6, sites=4, heads=6, width=16)
    plan = dense_plan(scores)
    kept = choose_sparsity(plan, scores, *variant, sparsity)
    realised = Plan("ast", 16, 24, True, 0.25, compose(plan.sites, kept)).sparsity
    # channels, local: one channel of 16 per head; channels, global: one bundle per pool, and as the pools' channels
    # differ in parameters a little, one more; heads: one head of 24
    step = {("channels", "local"): 1 / 16, ("channels", "global"): 1 / 64}.get(variant, 1 / 24)
    assert sparsity - 1e-9 <= realised < sparsity + step
    if variant == ("heads", "local"):
        counts = [len(site.heads) for site in kept]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_sparsity_counts_from_the_dense_model(variant):
    scores = random_scores(8, sites=4, heads=6, width=16)
    plan = dense_plan(scores)
    first = choose_sparsity(plan, scores, *variant, 0.3)
    slim = Plan("ast", 16, 24, True, 0.25, compose(plan.sites, first))
    left = tuple(
        SiteScores(
            tuple(s.query_key[h.head][list(h.query_key)] for h in site.heads),
            tuple(s.value_output[h.head][list(h.value_output)] for h in site.heads),
            s.head[[h.head for h in site.heads]],
        )
        for s, site in zip(scores, first, strict=True)
    )
    second = choose_sparsity(slim, left, *variant, 0.6)
    twice = Plan("ast", 16, 24, True, 0.25, compose(slim.sites, second))
    assert 0.6 - 1e-9 <= twice.sparsity < 0.6 + 1 / 16
    if variant != ("channels", "global"):
        once = Plan("ast", 16, 24, True, 0.25, compose(plan.sites, choose_sparsity(plan, scores, *variant, 0.6)))
        assert once == twice, "with unchanged scores two steps must end where one does"


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_more_goes_where_the_target_is_met(variant):
    scores = random_scores(3, sites=2, heads=4, width=4)
    plan = dataclasses.replace(dense_plan(scores), dense_head_width=8)
    assert plan.sparsity == 0.5, "widths 4 of dense 8"
    assert choose_sparsity(plan, scores, *variant, 0.5) == plan.sites


def test_unreachable_sparsity_is_refused_with_the_limit():
    scores = random_scores(0, sites=2, heads=2, width=16)
    with pytest.raises(BadInput, match=r"one head per block stays, so 0\.5000 is the most"):
        choose_sparsity(dense_plan(scores), scores, "heads", "global", 0.6)
    with pytest.raises(BadInput, match=r"one channel per head stays, so 0\.9375 is the most"):
        choose_sparsity(dense_plan(scores), scores, "channels", "local", 0.97)
