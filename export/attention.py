"""Multi-head attention whose heads have their own widths, as ONNX operators over tokens (T, D).

Three identities are used, each exact in real arithmetic:
- the softmax scale is folded into the query weights;
- the key bias adds the same number to every score of a query, which softmax does not see, so it is left out;
- attention weights sum to one, so the value bias passes through and is folded into the output bias.

Dimension letters: T tokens, D model width, H heads, K per-head query/key width, V per-head value/output width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.graph import CONTRIB_DOMAIN, Graph
from runtimes.errors import BadInput


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
    """The attention block of a stock or of a slim AST layer.

    Raises:
        BadInput: the projections do not have the widths that the block states.
    """
    query_key_widths, value_output_widths = read_widths(module)
    attention = Attention(
        query_weight=_array(module.q_proj.weight),
        key_weight=_array(module.k_proj.weight),
        value_weight=_array(module.v_proj.weight),
        output_weight=_array(module.o_proj.weight),
        query_bias=_bias(module.q_proj),
        value_bias=_bias(module.v_proj),
        output_bias=_bias(module.o_proj),
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
    """Query/key width and value/output width of every head of a stock or of a slim AST attention block."""
    if hasattr(module, "query_key_widths"):
        return tuple(module.query_key_widths), tuple(module.value_output_widths)
    heads = module.q_proj.out_features // module.head_dim
    return (module.head_dim,) * heads, (module.head_dim,) * heads


def group_heads(query_key_widths: Sequence[int], value_output_widths: Sequence[int]) -> tuple[HeadGroup, ...]:
    """Heads in groups of equal widths, the order of first appearance."""
    groups: dict[tuple[int, int], list[int]] = {}
    for head, widths in enumerate(zip(query_key_widths, value_output_widths, strict=True)):
        groups.setdefault(widths, []).append(head)
    return tuple(HeadGroup(tuple(heads), *widths) for widths, heads in groups.items())


def add_attention(graph: Graph, tokens: str, attention: Attention, form: str, token_count: int, name: str) -> str:
    """Add the whole block, output projection included: (T, D) in, (T, D) out."""
    groups = group_heads(attention.query_key_widths, attention.value_output_widths)
    contexts = []
    for number, group in enumerate(groups):
        here = name if len(groups) == 1 else f"{name}.group{number}"
        contexts.append(_add_group(graph, tokens, attention, group, form, token_count, here))
    context = contexts[0] if len(contexts) == 1 else graph.node("Concat", contexts, f"{name}.context", axis=1)
    return _add_output(graph, context, attention, groups, name)


def _add_group(
    graph: Graph, tokens: str, attention: Attention, group: HeadGroup, form: str, token_count: int, name: str
) -> str:
    """Context of a group's heads, one after the other: (T, H V)."""
    query, key, value = _add_projections(graph, tokens, attention, group, name)
    heads, width, value_width = len(group.heads), group.query_key_width, group.value_output_width
    if form == "onnxruntime":
        batched = [
            graph.reshape(query, (1, token_count, heads * width), f"{name}.query.batch"),
            graph.reshape(key, (1, token_count, heads * width), f"{name}.key.batch"),
            graph.reshape(value, (1, token_count, heads * value_width), f"{name}.value.batch"),
        ]
        attended = graph.node(
            "MultiHeadAttention", batched, f"{name}.attended", domain=CONTRIB_DOMAIN, num_heads=heads, scale=1.0
        )
        return graph.reshape(attended, (token_count, heads * value_width), f"{name}.joined")
    query = graph.reshape(query, (1, token_count, heads, width), f"{name}.query.split")
    key = graph.reshape(key, (1, token_count, heads, width), f"{name}.key.split")
    value = graph.reshape(value, (1, token_count, heads, value_width), f"{name}.value.split")
    query = graph.node("Transpose", [query], f"{name}.query.heads", perm=[0, 2, 1, 3])
    key = graph.node("Transpose", [key], f"{name}.key.heads", perm=[0, 2, 3, 1])
    value = graph.node("Transpose", [value], f"{name}.value.heads", perm=[0, 2, 1, 3])
    scores = graph.node("MatMul", [query, key], f"{name}.scores")
    weights = graph.node("Softmax", [scores], f"{name}.weights", axis=-1)
    attended = graph.node("MatMul", [weights, value], f"{name}.attended")
    joined = graph.node("Transpose", [attended], f"{name}.tokens", perm=[0, 2, 1, 3])
    return graph.reshape(joined, (token_count, heads * value_width), f"{name}.joined")


def _add_projections(
    graph: Graph, tokens: str, attention: Attention, group: HeadGroup, name: str
) -> tuple[str, str, str]:
    """Query (scaled), key and value of a group's heads: (T, H K), (T, H K), (T, H V)."""
    width, scaling, heads = attention.model_width, attention.scaling, len(group.heads)

    def query_rows(weight: np.ndarray) -> np.ndarray:
        return group_rows(weight, attention.query_key_widths, group.heads, group.query_key_width)

    def value_rows(weight: np.ndarray) -> np.ndarray:
        return group_rows(weight, attention.value_output_widths, group.heads, group.value_output_width)

    query_weight = graph.weight(
        f"{name}.query.weight",
        (width, heads * group.query_key_width),
        lambda: query_rows(attention.query_weight).T * np.float32(scaling),
    )
    query_bias = graph.weight(
        f"{name}.query.bias",
        (heads * group.query_key_width,),
        lambda: query_rows(attention.query_bias) * np.float32(scaling),
    )
    key_weight = graph.weight(
        f"{name}.key.weight", (width, heads * group.query_key_width), lambda: query_rows(attention.key_weight).T
    )
    value_weight = graph.weight(
        f"{name}.value.weight", (width, heads * group.value_output_width), lambda: value_rows(attention.value_weight).T
    )
    query = graph.node("Gemm", [tokens, query_weight, query_bias], f"{name}.query")
    key = graph.node("MatMul", [tokens, key_weight], f"{name}.key")
    value = graph.node("MatMul", [tokens, value_weight], f"{name}.value")
    return query, key, value


def _add_output(graph: Graph, context: str, attention: Attention, groups: tuple[HeadGroup, ...], name: str) -> str:
    """Output projection of the context, whose columns are the groups' heads one after the other: (T, D)."""
    widths = attention.value_output_widths
    columns = sum(len(group.heads) * group.value_output_width for group in groups)
    weight = graph.weight(
        f"{name}.output.weight",
        (columns, attention.model_width),
        lambda: np.concatenate(
            [group_rows(attention.output_weight.T, widths, group.heads, group.value_output_width) for group in groups]
        ),
    )
    bias = graph.weight(f"{name}.output.bias", (attention.model_width,), lambda: output_bias(attention))
    return graph.node("Gemm", [context, weight, bias], f"{name}.output")


def add_reader_attention(graph: Graph, tokens: str, attention: Attention, readers: int, name: str) -> str:
    """Add the block for the first `readers` tokens' outputs alone: tokens (T, D) in, (readers, D) out.

    With so few queries it is cheaper not to project keys and values: q.(W x) = (W' q).x, and attention weights applied
    to W x are W applied to the weighted mean of x. Both are the same sums in another order.
    """
    heads, width = len(attention.query_key_widths), attention.model_width
    query_width, value_width = max(attention.query_key_widths), max(attention.value_output_widths)
    group = HeadGroup(tuple(range(heads)), query_width, value_width)

    def query_rows(weight: np.ndarray) -> np.ndarray:
        return group_rows(weight, attention.query_key_widths, group.heads, query_width)

    def value_rows(weight: np.ndarray) -> np.ndarray:
        return group_rows(weight, attention.value_output_widths, group.heads, value_width)

    query_weight = graph.weight(
        f"{name}.query.weight",
        (width, heads * query_width),
        lambda: query_rows(attention.query_weight).T * np.float32(attention.scaling),
    )
    query_bias = graph.weight(
        f"{name}.query.bias",
        (heads * query_width,),
        lambda: query_rows(attention.query_bias) * np.float32(attention.scaling),
    )
    key_weight = graph.weight(
        f"{name}.key.weight",
        (heads, query_width, width),
        lambda: query_rows(attention.key_weight).reshape(heads, query_width, width),
    )
    value_weight = graph.weight(
        f"{name}.value.weight",
        (heads, width, value_width),
        lambda: value_rows(attention.value_weight).reshape(heads, value_width, width).transpose(0, 2, 1),
    )
    reading = add_first_tokens(graph, tokens, readers, f"{name}.readers")
    query = graph.node("Gemm", [reading, query_weight, query_bias], f"{name}.query")
    query = graph.reshape(query, (readers, heads, query_width), f"{name}.query.split")
    query = graph.node("Transpose", [query], f"{name}.query.heads", perm=[1, 0, 2])
    probe = graph.node("MatMul", [query, key_weight], f"{name}.probe")  # (H, readers, D)
    probe = graph.reshape(probe, (heads * readers, width), f"{name}.probes")
    columns = graph.node("Transpose", [tokens], f"{name}.columns", perm=[1, 0])
    scores = graph.node("MatMul", [probe, columns], f"{name}.scores")  # (H readers, T)
    weights = graph.node("Softmax", [scores], f"{name}.weights", axis=-1)
    means = graph.node("MatMul", [weights, tokens], f"{name}.means")  # (H readers, D)
    means = graph.reshape(means, (heads, readers, width), f"{name}.means.split")
    context = graph.node("MatMul", [means, value_weight], f"{name}.attended")  # (H, readers, V)
    context = graph.node("Transpose", [context], f"{name}.tokens", perm=[1, 0, 2])
    context = graph.reshape(context, (readers, heads * value_width), f"{name}.joined")
    return _add_output(graph, context, attention, (group,), name)


def add_first_tokens(graph: Graph, tokens: str, count: int, name: str) -> str:
    """Add a Slice that keeps the first `count` rows of (T, D)."""
    begin = graph.constant("first.begin", np.array([0], dtype=np.int64))
    end = graph.constant(f"first.{count}", np.array([count], dtype=np.int64))
    axis = graph.constant("first.axis", np.array([0], dtype=np.int64))
    return graph.node("Slice", [tokens, begin, end, axis], name)


def group_rows(stacked: np.ndarray, widths: Sequence[int], heads: Sequence[int], padded: int) -> np.ndarray:
    """The rows of some heads from an array of all heads' rows, each head filled up with zero rows to `padded`."""
    starts = np.concatenate([[0], np.cumsum(widths)])
    if tuple(heads) == tuple(range(len(widths))) and all(width == padded for width in widths):
        return stacked
    rows = np.zeros((len(heads), padded, *stacked.shape[1:]), dtype=stacked.dtype)
    for place, head in enumerate(heads):
        rows[place, : widths[head]] = stacked[starts[head] : starts[head + 1]]
    return rows.reshape(len(heads) * padded, *stacked.shape[1:])


def output_bias(attention: Attention) -> np.ndarray:
    """The output bias with the value bias passed through the output weights: (D,), summed in float64."""
    through = attention.output_weight.astype(np.float64) @ attention.value_bias.astype(np.float64)
    return (attention.output_bias + through).astype(np.float32)


def _array(parameter: Any) -> np.ndarray:
    return parameter.detach().numpy()


def _bias(linear: Any) -> np.ndarray:
    return np.zeros(linear.out_features, dtype=np.float32) if linear.bias is None else _array(linear.bias)
