"""What a target's graph makes of heads of some widths: which blocks it holds as they are, which it fills with zeros.

Heads that are computed together are filled up to the widest of them, and so is every head of a Whisper's decoder, whose
keys and values are kept together. Zeros take memory and time like other numbers, so what is allocated for a graph that
is filled up is not what runs. With blocks left out that would be filled up, the plan and the graph are of one size.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from leanear.export.blocks import exported_groups
from leanear.families.family import Family
from leanear.prune.costs import Costs, Widths

Held = Callable[[Widths], Widths]
Unfilled = Callable[[Widths], bool]


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
