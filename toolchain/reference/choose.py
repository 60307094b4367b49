"""Decide what every attention block keeps, from scores: channels or heads, against a global or a local threshold.

Everything here counts heads and channels within the scored model, dense or already slim. The rules are those of
arXiv 2509.26207: query/key and value/output channels are two separate pools, the heads of a block keep equally many
channels, but different ones.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from typing import Literal

import numpy as np

from leanear.calibration.scores import SiteScores
from leanear.plan import HeadPlan, Plan, SitePlan, compose
from leanear.runtimes.errors import BadInput

Scheme = Literal["channels", "heads"]
Threshold = Literal["global", "local"]
SCHEMES: tuple[Scheme, ...] = ("channels", "heads")
THRESHOLDS: tuple[Threshold, ...] = ("global", "local")

ROUNDING = 1e-9  # 0.29 * 100 is 28.999999999999996: a share of a count is rounded only beyond this


def choose_share(
    names: Sequence[str],
    scores: Sequence[SiteScores],
    scheme: Scheme,
    threshold: Threshold,
    share: float,
    untouched: Collection[str] = (),
) -> tuple[SitePlan, ...]:
    """What is kept when the lowest-scored `share` of what is there goes: one step of the method.

    channels, global: per pool floor(share * channels of all blocks), spent greedily on "one more channel in every head
    of a block" at the lowest loss per channel; channels, local: ceil(share * width) of every head; heads, global:
    ceil(share * heads) of all heads; heads, local: ceil(share * heads of the block). One channel per head and one head
    per block, the highest-scored, always stay. untouched: names of blocks that keep everything and count for nothing.
    """
    if untouched:
        others = [(name, site) for name, site in zip(names, scores, strict=True) if name not in untouched]
        kept = choose_share([name for name, _ in others], [site for _, site in others], scheme, threshold, share)
        return _beside_whole(names, scores, kept)
    if scheme == "channels":
        query_key = [site.query_key for site in scores]
        value_output = [site.value_output for site in scores]
        if threshold == "global":
            budgets = ((pool, math.floor(share * _channels(pool) + ROUNDING)) for pool in (query_key, value_output))
            dropped = [_spend_on_bundles(*each) for each in budgets]
        else:
            dropped = [  # of every head ceil(share * width), but one stays
                [[min(_ceil(share * len(head)), len(head) - 1) for head in site] for site in pool]
                for pool in (query_key, value_output)
            ]
        return _keep_channels(names, scores, *dropped)
    if threshold == "global":
        dropped_heads = _drop_order_global(scores)[: _ceil(share * sum(len(site.head) for site in scores))]
    else:
        dropped_heads = [
            (index, head)
            for index, site in enumerate(scores)
            for head in _lowest_heads(site)[: _ceil(share * len(site.head))]
        ]
    return _keep_heads(names, scores, dropped_heads)


def choose_sparsity(
    plan: Plan,
    scores: Sequence[SiteScores],
    scheme: Scheme,
    threshold: Threshold,
    sparsity: float,
    untouched: Collection[str] = (),
) -> tuple[SitePlan, ...]:
    """What is kept of the model that `plan` describes when the dense model's attention loses at least `sparsity`.

    The smallest step of the scheme that reaches the target is taken. channels: the smallest share, a multiple of one
    channel; heads, global: the fewest heads; heads, local: the fewest heads of which no block loses more than one more
    than another that has as many. untouched: as in `choose_share`; the sparsity is that of all blocks all the same.

    Raises:
        BadInput: the target cannot be reached because one channel per head, or one head per block, stays.
    """
    names = [site.name for site in plan.sites]
    prunable = [(name, site) for name, site in zip(names, scores, strict=True) if name not in untouched]

    def realised(kept: tuple[SitePlan, ...]) -> float:
        return dataclasses.replace(plan, sites=compose(plan.sites, kept)).sparsity

    def candidates(number: int) -> tuple[SitePlan, ...]:
        return _beside_whole(names, scores, some_kept(number))

    some_kept, count = _candidates([name for name, _ in prunable], [site for _, site in prunable], scheme, threshold)
    most = realised(candidates(count))
    if most < sparsity - ROUNDING:
        unit = "channel per head" if scheme == "channels" else "head per block"
        raise BadInput(f"sparsity {sparsity:g} is out of reach: one {unit} stays, so {most:.4f} is the most")
    below, reaches = -1, count
    while reaches - below > 1:
        middle = (below + reaches) // 2
        if realised(candidates(middle)) >= sparsity - ROUNDING:
            reaches = middle
        else:
            below = middle
    return candidates(reaches)


def _candidates(
    names: Sequence[str], scores: Sequence[SiteScores], scheme: Scheme, threshold: Threshold
) -> tuple[Callable[[int], tuple[SitePlan, ...]], int]:
    """Ever smaller choices by number, 0 keeping all, and the number of the smallest."""
    if scheme == "heads":
        order = _drop_order_global(scores) if threshold == "global" else _drop_order_in_rounds(scores)
        return lambda number: _keep_heads(names, scores, order[:number]), len(order)
    pools = [[site.query_key for site in scores], [site.value_output for site in scores]]
    if threshold == "global":
        finest = max(_channels(pool) for pool in pools)
    else:
        finest = max(len(head) for pool in pools for site in pool for head in site)
    return lambda number: choose_share(names, scores, "channels", threshold, number / finest), finest


def _beside_whole(names: Sequence[str], scores: Sequence[SiteScores], kept: Sequence[SitePlan]) -> tuple[SitePlan, ...]:
    """All blocks in their order: those of `kept` as they are there, and the others whole."""
    chosen = {site.name: site for site in kept}
    whole = {site.name: site for site in _keep_heads(names, scores, ())}
    return tuple(chosen.get(name, whole[name]) for name in names)


def _channels(pool: Sequence[Sequence[np.ndarray]]) -> int:
    return sum(len(head) for site in pool for head in site)


def _ceil(count: float) -> int:
    return math.ceil(count - ROUNDING)


def _spend_on_bundles(pool: Sequence[Sequence[np.ndarray]], budget: int) -> list[list[int]]:
    """Per block and head, how many channels go so that at most `budget` go in all and little score is lost.

    A bundle is the lowest remaining channel of every head of one block. The bundle with the lowest loss per channel
    that still fits is taken, again and again. Where all blocks have equally many heads this is the optimum, because
    the bundles of a block only become dearer.
    """
    prices = [_bundle_prices(site) for site in pool]
    taken = [0] * len(pool)
    while True:
        fitting = [
            (prices[index][taken[index]], index)
            for index, site in enumerate(pool)
            if taken[index] < len(prices[index]) and len(site) <= budget
        ]
        if not fitting:
            return [[count] * len(site) for count, site in zip(taken, pool, strict=True)]
        _, cheapest = min(fitting)
        taken[cheapest] += 1
        budget -= len(pool[cheapest])


def _bundle_prices(heads: Sequence[np.ndarray]) -> list[float]:
    """Loss per channel of the first, second, ... bundle of a block; one channel of the narrowest head is never sold."""
    bundles = min(len(head) for head in heads) - 1
    ascending = np.stack([np.sort(head)[:bundles] for head in heads])
    return ascending.mean(axis=0).tolist()


def _keep_channels(
    names: Sequence[str],
    scores: Sequence[SiteScores],
    query_key_dropped: Sequence[Sequence[int]],
    value_output_dropped: Sequence[Sequence[int]],
) -> tuple[SitePlan, ...]:
    counts = zip(query_key_dropped, value_output_dropped, strict=True)
    return tuple(
        SitePlan(
            name=name,
            dense_heads=len(site.head),
            heads=tuple(
                HeadPlan(head, _highest(site.query_key[head], fewer_qk), _highest(site.value_output[head], fewer_vo))
                for head, (fewer_qk, fewer_vo) in enumerate(zip(query_key, value_output, strict=True))
            ),
        )
        for name, site, (query_key, value_output) in zip(names, scores, counts, strict=True)
    )


def _highest(scores: np.ndarray, dropped: int) -> tuple[int, ...]:
    """Indices, ascending, of all but the `dropped` lowest scores; of equal scores the later index stays."""
    return tuple(sorted(np.argsort(scores, kind="stable")[dropped:].tolist()))


def _lowest_heads(site: SiteScores) -> list[int]:
    """The block's heads from the lowest score up, without the best, which always stays."""
    return np.argsort(site.head, kind="stable")[:-1].tolist()


def _drop_order_global(scores: Sequence[SiteScores]) -> list[tuple[int, int]]:
    """(block, head) from the lowest score up, without the best head of each block."""
    candidates = [
        (float(site.head[head]), index, head) for index, site in enumerate(scores) for head in _lowest_heads(site)
    ]
    return [(index, head) for _, index, head in sorted(candidates)]


def _drop_order_in_rounds(scores: Sequence[SiteScores]) -> list[tuple[int, int]]:
    """(block, head), first the lowest head of every block, then the second lowest of every block, and so on."""
    candidates = [
        (turn, float(site.head[head]), index, head)
        for index, site in enumerate(scores)
        for turn, head in enumerate(_lowest_heads(site))
    ]
    return [(index, head) for _, _, index, head in sorted(candidates)]


def _keep_heads(
    names: Sequence[str], scores: Sequence[SiteScores], dropped: Sequence[tuple[int, int]]
) -> tuple[SitePlan, ...]:
    gone = set(dropped)
    return tuple(
        SitePlan(
            name=name,
            dense_heads=len(site.head),
            heads=tuple(
                HeadPlan(head, tuple(range(len(query_key))), tuple(range(len(value_output))))
                for head, (query_key, value_output) in enumerate(zip(site.query_key, site.value_output, strict=True))
                if (index, head) not in gone
            ),
        )
        for index, (name, site) in enumerate(zip(names, scores, strict=True))
    )
