"""Blocks of attention that a target's graph holds as they are, and blocks that it fills up with zeros.

Heads that are computed together are filled up to the widest of them, and so is every head of a Whisper's decoder, whose
keys and values are kept together. Zeros take memory and time like other numbers, so what is allocated for a graph that
is filled up is not what runs. With blocks left out that would be filled up, the plan and the graph are of one size.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from export.ast_graph import token_count
from export.blocks import exported_groups
from toolchain.costs import Costs, Widths
from toolchain.latency_table import site_kind

Unfilled = Callable[[Widths], bool]


def unfilled_blocks(family: ModuleType, model: Any, form: str) -> tuple[Unfilled, ...]:
    """Block by block, whether a graph of `form` holds heads of these (K, V), in whatever order, as it would each alone.

    A head that is filled up even alone, because its widths are none that the form has, counts as held.
    """
    if family.FAMILY == "whisper":
        tokens, width = model.config.max_source_positions, model.config.d_model
        kinds = ["ordinary" if site.kind == "encoder" else "cached" for site in family.attention_sites(model)]
    else:
        tokens, width = token_count(model.config), model.config.hidden_size
        layers = model.config.num_hidden_layers
        kinds = [site_kind(layer, layers) for layer in range(layers)]

    def unfilled(kind: str) -> Unfilled:
        @functools.cache
        def held(widths: Widths) -> bool:
            alone = {pair: exported_groups(kind, [pair], tokens, width, form)[0] for pair in set(widths)}
            return all(
                (group.query_key_width, group.value_output_width)
                == (alone[widths[head]].query_key_width, alone[widths[head]].value_output_width)
                for group in exported_groups(kind, widths, tokens, width, form)
                for head in group.heads
            )

        return lambda widths: held(tuple(sorted(widths)))

    by_kind = {kind: unfilled(kind) for kind in kinds}
    return tuple(by_kind[kind] for kind in kinds)


def without_filled(costs: Costs, unfilled: Sequence[Unfilled]) -> Costs:
    """`costs` where a block cannot be had that would be filled up."""

    def ragged(index: int) -> Callable[[Widths], float]:
        return lambda widths: costs.block(index, widths) if unfilled[index](widths) else math.inf

    def tied(index: int) -> Callable[[int, int, int], float]:
        return lambda heads, query_key, value_output: ragged(index)(((query_key, value_output),) * heads)

    blocks = range(len(costs.heads))
    return dataclasses.replace(costs, ragged=tuple(map(ragged, blocks)), tied=tuple(map(tied, blocks)))
