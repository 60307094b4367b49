"""What heads of some widths cost, in parameters, multiply-accumulates or measured milliseconds, for an allocation.

In a graph heads that are computed together are filled up to the widest of them, and so is every head of a Whisper's
decoder, whose keys and values are kept together. Zeros take memory and time like other numbers, so what is allocated
for a graph that is filled up is not what runs. With blocks left out that would be, plan and graph are of one size.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from leanear.benchmarks.formatting import PRUNED_PARTS
from leanear.calibration.sites import AttentionSite, FeedForwardKind, FeedForwardSite
from leanear.export.blocks import exported_groups
from leanear.export.macs import HeadCost, Macs
from leanear.families.family import Family
from leanear.plan import Plan, feed_forward_parameters, head_parameters
from leanear.timing.latency_table import Table, tie_widths
from leanear.timing.model_timing import Tables

Widths = tuple[tuple[int, int], ...]
"""(K, V) of every kept head of one block."""
Held = Callable[[Widths], Widths]
Unfilled = Callable[[Widths], bool]


@dataclass(frozen=True)
class FeedForwardCost:
    """What a feed-forward block that is pruned costs: width hidden channels, each of `channel`, and `block` for them.

    Without channels the block is gone.
    """

    name: str
    kind: FeedForwardKind
    width: int
    channel: float
    block: float = 0.0

    def of(self, width: int) -> float:
        """The cost of so many channels."""
        return self.block + width * self.channel if width else 0.0


@dataclass(frozen=True)
class Costs:
    """Costs of a model's heads in one unit.

    dense: of all that counts, at the dense widths; fixed: of what no head's width changes; heads: per block, the cost
    of one head of widths (K, V). Where they do not add up over a block's heads: ragged, per block, is the cost of any
    heads; widened, per block, are the widths that cost no more than those given. feed_forward: the feed-forward blocks
    that share the budget.
    """

    unit: str
    dense: float
    fixed: float
    heads: tuple[HeadCost, ...]
    ragged: tuple[Callable[[Widths], float], ...] | None = None
    widened: tuple[Callable[[Widths], Sequence[tuple[int, int]]], ...] | None = None
    feed_forward: tuple[FeedForwardCost, ...] = ()

    def block(self, index: int, widths: Widths) -> float:
        """The cost of one block whose heads keep these widths."""
        if self.ragged is not None:
            return self.ragged[index](widths)
        return sum(self.heads[index](*head) for head in widths)

    def of(self, sites: Sequence[Widths], feed_forward: Mapping[str, int] | None = None) -> float:
        """The cost of the model whose blocks keep heads and, by name, hidden channels of these widths, else all."""
        kept = feed_forward or {}
        channels = sum(block.of(kept.get(block.name, block.width)) for block in self.feed_forward)
        return self.fixed + channels + sum(self.block(index, widths) for index, widths in enumerate(sites))


def parameter_costs(plan: Plan) -> Costs:
    """The parameters of the blocks that are pruned, as the plan counts them for its sparsity."""

    def head(query_key: int, value_output: int) -> float:
        return float(head_parameters(query_key, value_output, plan)) if plan.prune != "feed-forward" else 0.0

    channels = [float(feed_forward_parameters(plan))] * len(plan.feed_forward)
    return Costs(
        f"{PRUNED_PARTS[plan.prune]} parameters", float(plan.parameters_dense), 0.0, (head,) * len(plan.sites),
        feed_forward=_feed_forward(plan, channels),
    )  # fmt: skip


def mac_costs(plan: Plan, macs: Macs) -> Costs:
    """The multiply-accumulates of one inference; macs: of the dense model."""
    width = plan.dense_head_width
    feed_forward = _feed_forward(plan, macs.channels)
    dense = sum(site.dense_heads * head(width, width) for site, head in zip(plan.sites, macs.heads, strict=True))
    dense += sum(block.of(block.width) for block in feed_forward)
    return Costs("MACs", float(macs.total), macs.total - dense, macs.heads, feed_forward=feed_forward)


def _feed_forward(plan: Plan, channels: Sequence[float]) -> tuple[FeedForwardCost, ...]:
    """The costs of the plan's dense feed-forward blocks, none where they are not pruned."""
    if plan.prune == "attention":
        return ()
    return tuple(
        FeedForwardCost(block.name, block.kind, block.dense_width, channel)
        for block, channel in zip(plan.feed_forward, channels, strict=True)
    )


def latency_costs(tables: Tables, sites: Sequence[AttentionSite], blocks: Sequence[FeedForwardSite]) -> Costs:
    """Milliseconds of one inference, as the tables of the target's device predict them of what is pruned.

    What a block costs apart from its heads or channels goes with the last of them, and is fixed where a head stays.
    """
    attention, feed_forward = tables.attention, tables.feed_forward
    if attention is not None:
        costs = _attention_costs(attention, sites)
    else:
        assert feed_forward is not None
        costs = Costs("ms", feed_forward.dense_ms, feed_forward.dense_ms, (lambda *_: 0.0,) * len(sites))
    if feed_forward is None:
        return costs
    of_blocks = tuple(
        FeedForwardCost(block.name, block.kind, block.width, parts.channel_ms, parts.block_ms)
        for block, parts in zip(blocks, feed_forward.parts_beside(costs.dense), strict=True)
    )
    fixed = costs.fixed - sum(block.of(block.width) for block in of_blocks)
    return replace(costs, fixed=fixed, feed_forward=of_blocks)


def _attention_costs(table: Table, sites: Sequence[AttentionSite]) -> Costs:
    kinds = tuple(zip(table.site_kinds, (site.may_go for site in sites), strict=True))

    def head(kind: str) -> HeadCost:
        return lambda query_key, value_output: (
            table.head_ms(kind, query_key, value_output) if query_key and value_output else 0.0
        )

    def ragged(kind: str, may_go: bool) -> Callable[[Widths], float]:
        fixed_ms = 0.0 if may_go else table.block_ms(kind)
        return lambda widths: table.site_ms(kind, list(widths)) - fixed_ms if widths else 0.0

    def widened(kind: str) -> Callable[[Widths], Sequence[tuple[int, int]]]:
        return lambda widths: tie_widths(table, kind, list(widths))

    return Costs(
        unit="ms",
        dense=table.model_ms([table.dense_site] * len(sites)),
        fixed=table.rest_ms + sum(table.block_ms(kind) for kind, may_go in kinds if not may_go),
        heads=tuple(head(kind) for kind, _ in kinds),
        ragged=tuple(ragged(*kind) for kind in kinds),
        widened=tuple(widened(kind) for kind, _ in kinds),
    )


def held_blocks(family: Family, model: Any, form: str) -> tuple[Held, ...]:
    """Block by block, the (K, V) that a graph of `form` gives to each of the block's heads of some (K, V)."""
    blocks = family.attention_blocks(model)

    def held(kind: str) -> Held:
        def of_block(widths: Widths) -> Widths:
            found = {}
            for group in exported_groups(kind, widths, blocks.tokens, blocks.model_width, form):
                found.update(dict.fromkeys(group.heads, (group.query_key_width, group.value_output_width)))
            return tuple(found[head] for head in range(len(widths)))

        return of_block

    by_kind = {kind: held(kind) for kind in blocks.kinds}
    return tuple(by_kind[kind] for kind in blocks.kinds)


def unfilled_blocks(family: Family, model: Any, form: str) -> tuple[Unfilled, ...]:
    """Block by block, whether a graph of `form` holds heads of these (K, V), in whatever order, as it would each alone.

    A head that is filled up even alone, because its widths are none that the form has, counts as held.
    """

    @functools.cache
    def unfilled(held: Held) -> Unfilled:
        @functools.cache
        def as_alone(widths: Widths) -> bool:
            alone = {pair: held((pair,))[0] for pair in set(widths)}
            return held(widths) == tuple(alone[pair] for pair in widths)

        return lambda widths: as_alone(tuple(sorted(widths)))

    return tuple(unfilled(held) for held in held_blocks(family, model, form))


def without_filled(costs: Costs, unfilled: Sequence[Unfilled]) -> Costs:
    """`costs` where a block cannot be had that would be filled up."""

    def ragged(index: int) -> Callable[[Widths], float]:
        return lambda widths: costs.block(index, widths) if unfilled[index](widths) else math.inf

    return dataclasses.replace(costs, ragged=tuple(map(ragged, range(len(costs.heads)))))
