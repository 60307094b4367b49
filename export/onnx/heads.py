"""The heads of an attention block: their widths, their groups of one width, and the rows of their weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from leanear.export.onnx.layers import array
from leanear.runtimes.errors import BadInput

VECTOR_COLUMNS = (
    16  # float32 values of an AVX-512 vector, by which the kernels of both runtimes cut a right-hand matrix
)


ROW_COLUMNS = 4  # ONNX Runtime's matrix product is slow where rows of the values do not end on a 16-byte boundary
GROUP_MACS = 2_000_000  # what starting the operators of one more group costs, about 40 microseconds


# TensorRT has a fused kernel for heads whose two widths are equal and at least 16, and fills up what is no multiple of
# 16 by kernels of their own: of 19 pairs of widths built with TensorRT-RTX 1.7 for SM 8.6, none with two widths fused.
FUSED_COLUMNS = 16
FUSED_GROUP_MACS = 100_000_000  # what a group's kernels cost to start, 20 microseconds of 5 TMAC/s: an estimate


@dataclass(frozen=True)
class Attention:
    """The weights of one attention block, heads one after the other, as views of the model's own memory.

    query_weight, key_weight: (sum K, D); value_weight: (sum V, D); output_weight: (D, sum V); query_bias: (sum K,);
    value_bias: (sum V,); output_bias: (D,); a bias that the block does not have is zero. scaling: the trained model's.
    """

    query_weight: np.ndarray
    key_weight: np.ndarray
    value_weight: np.ndarray
    output_weight: np.ndarray
    query_bias: np.ndarray
    value_bias: np.ndarray
    output_bias: np.ndarray
    query_key_widths: tuple[int, ...]
    value_output_widths: tuple[int, ...]
    scaling: float

    @property
    def model_width(self) -> int:
        return int(self.query_weight.shape[1])


@dataclass(frozen=True)
class HeadGroup:
    """Heads that are computed together, all of them filled up with zeros to the same two widths."""

    heads: tuple[int, ...]
    query_key_width: int
    value_output_width: int


def read_attention(module: Any) -> Attention:
    """The attention block of a stock or of a slim layer of AST or Whisper.

    Raises:
        BadInput: the projections do not have the widths that the block states.
    """
    query_key_widths, value_output_widths = read_widths(module)
    output = module.out_proj if hasattr(module, "out_proj") else module.o_proj
    attention = Attention(
        query_weight=array(module.q_proj.weight),
        key_weight=array(module.k_proj.weight),
        value_weight=array(module.v_proj.weight),
        output_weight=array(output.weight),
        query_bias=_bias(module.q_proj),
        value_bias=_bias(module.v_proj),
        output_bias=_bias(output),
        query_key_widths=query_key_widths,
        value_output_widths=value_output_widths,
        scaling=float(module.scaling),
    )
    rows = (len(attention.query_weight), len(attention.key_weight), len(attention.value_weight))
    if rows != (sum(query_key_widths), sum(query_key_widths), sum(value_output_widths)):
        raise BadInput(
            f"attention block: projections of {rows} rows do not fit heads of {query_key_widths} and"
            f" {value_output_widths}"
        )
    return attention


def read_widths(module: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Query/key width and value/output width of every head of a stock or of a slim attention block."""
    if hasattr(module, "query_key_widths"):
        return tuple(module.query_key_widths), tuple(module.value_output_widths)
    heads = module.q_proj.out_features // module.head_dim
    return (module.head_dim,) * heads, (module.head_dim,) * heads


def group_heads(
    query_key_widths: Sequence[int],
    value_output_widths: Sequence[int],
    token_count: int,
    model_width: int,
    group_macs: int | None = None,
) -> tuple[HeadGroup, ...]:
    """Heads in the groups that are the least work: heads of one group are filled up to its widest.

    Work is counted in multiply-accumulates, a value width being rounded up to the kernels' 16 columns, and every group
    costs `group_macs` (by default GROUP_MACS) on top. Heads are sorted by width, and of all ways to cut the sorted
    heads the cheapest is taken.
    """
    start = GROUP_MACS if group_macs is None else group_macs
    widths = list(zip(query_key_widths, value_output_widths, strict=True))
    order = sorted(range(len(widths)), key=lambda head: (round_up(widths[head][1], VECTOR_COLUMNS), widths[head]))

    def group(first: int, end: int) -> HeadGroup:
        heads = order[first:end]
        return HeadGroup(tuple(sorted(heads)), max(widths[h][0] for h in heads), max(widths[h][1] for h in heads))

    def work(part: HeadGroup) -> int:
        width, value_width = part.query_key_width, part.value_output_width
        per_head = token_count * token_count * (width + round_up(value_width, VECTOR_COLUMNS))
        return start + len(part.heads) * (per_head + 2 * token_count * model_width * (width + value_width))

    cheapest: list[tuple[int, tuple[HeadGroup, ...]]] = [(0, ())]
    for end in range(1, len(order) + 1):
        lasts = [group(first, end) for first in range(end)]
        totals = [cheapest[first][0] + work(last) for first, last in enumerate(lasts)]
        first = totals.index(min(totals))
        cheapest.append((totals[first], (*cheapest[first][1], lasts[first])))
    return cheapest[-1][1]


def groups_in_form(
    query_key_widths: Sequence[int], value_output_widths: Sequence[int], token_count: int, model_width: int, form: str
) -> tuple[HeadGroup, ...]:
    """The groups in which a graph of that form computes the heads, filled up as its runtime wants them."""
    if form == "tensorrt":
        return fused_groups(query_key_widths, value_output_widths, token_count, model_width)
    groups = group_heads(query_key_widths, value_output_widths, token_count, model_width)
    return tuple(_in_rows(group, form) for group in groups)


def together_in_form(query_key_widths: Sequence[int], value_output_widths: Sequence[int], form: str) -> HeadGroup:
    """All heads as one group, as a decoder's caches hold them, filled up in the same way."""
    query_key, value_output = max(query_key_widths), max(value_output_widths)
    if form == "tensorrt":
        query_key = value_output = fused_width(query_key, value_output)
    return _in_rows(HeadGroup(tuple(range(len(query_key_widths))), query_key, value_output), form)


def _in_rows(group: HeadGroup, form: str) -> HeadGroup:
    if form != "onnxruntime":
        return group
    return replace(group, value_output_width=round_up(group.value_output_width, ROW_COLUMNS))


def fused_width(query_key_width: int, value_output_width: int) -> int:
    """The one width that heads of these two are filled up to, so that TensorRT's fused kernel takes them."""
    return round_up(max(query_key_width, value_output_width), FUSED_COLUMNS)


def fused_groups(
    query_key_widths: Sequence[int], value_output_widths: Sequence[int], token_count: int, model_width: int
) -> tuple[HeadGroup, ...]:
    """The groups of heads in the form for TensorRT, each filled up to one width for both."""
    widths = [fused_width(*pair) for pair in zip(query_key_widths, value_output_widths, strict=True)]
    return group_heads(widths, widths, token_count, model_width, FUSED_GROUP_MACS)


def round_up(width: int, multiple: int) -> int:
    return -(-width // multiple) * multiple


def query_key_rows(stacked: np.ndarray, attention: Attention, groups: Sequence[HeadGroup]) -> np.ndarray:
    """The rows (sum K, ...) of all heads in the groups' order, every head filled up with zero rows."""
    padded = [(head, group.query_key_width) for group in groups for head in group.heads]
    return head_rows(stacked, attention.query_key_widths, padded)


def value_output_rows(stacked: np.ndarray, attention: Attention, groups: Sequence[HeadGroup]) -> np.ndarray:
    """The rows (sum V, ...) of all heads in the groups' order, every head filled up with zero rows."""
    padded = [(head, group.value_output_width) for group in groups for head in group.heads]
    return head_rows(stacked, attention.value_output_widths, padded)


def head_rows(stacked: np.ndarray, widths: Sequence[int], padded: Sequence[tuple[int, int]]) -> np.ndarray:
    """Rows of all heads in another order: `padded` has a head and the width that it is filled up to, row by row.

    The array itself, not a copy, if order and widths are those that it has.
    """
    if list(padded) == list(enumerate(widths)):
        return stacked
    starts = np.concatenate([[0], np.cumsum(widths)])
    rows = np.zeros((sum(width for _, width in padded), *stacked.shape[1:]), dtype=stacked.dtype)
    place = 0
    for head, width in padded:
        rows[place : place + widths[head]] = stacked[starts[head] : starts[head + 1]]
        place += width
    return rows


def output_bias(attention: Attention) -> np.ndarray:
    """The output bias with the value bias passed through the output weights: (D,), summed in float64."""
    through = attention.output_weight.astype(np.float64) @ attention.value_bias.astype(np.float64)
    return (attention.output_bias + through).astype(np.float32)


def _bias(linear: Any) -> np.ndarray:
    return np.zeros(linear.out_features, dtype=np.float32) if linear.bias is None else array(linear.bias)
