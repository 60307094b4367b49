"""Attention between tokens whose two products are of 8-bit integers, by operators of ONNX Runtime's own.

Scores are products of queries and keys with one scale each. Attention weights are small in most rows and near one in
some, so each row of them has a scale of its own, its largest weight; values have one scale. Queries are taken some rows
at a time, so that scores stay in the processor's cache.
"""

from collections.abc import Mapping

import numpy as np

from leanear.export.onnx.graph import CONTRIB_DOMAIN, Graph
from leanear.export.onnx.observed import Observed
from leanear.export.onnx.static_eight_bit import STEPS, add_integers, signed_scale

MIDDLE = 128  # what stands for 0 in a query
CACHED_BYTES = 8_000_000  # of scores that are made at a time
ROW_STEP = 16


def rows_at_a_time(heads: int, token_count: int) -> int:
    """How many queries' scores of all heads are made at a time."""
    most = CACHED_BYTES // (heads * token_count * np.dtype(np.float32).itemsize)
    return min(token_count, max(ROW_STEP, most // ROW_STEP * ROW_STEP))


def add_eight_bit_group(
    graph: Graph,
    query: str,
    key: str,
    value: str,
    sizes: tuple[int, int, int],
    token_count: int,
    observed: Mapping[str, Observed],
    name: str,
    any_count: bool = False,
) -> str:
    """Context of heads of the same two widths, one after the other: (T, H K), (T, H K), (T, H V) in, (T, H V) out.

    sizes: H, K, V. any_count: T may be less than `token_count`, and queries are taken in as many parts all the same.
    """
    heads, width, value_width = sizes
    tokens = -1 if any_count else token_count
    query, query_numbers = _add_integers(graph, query, heads, width, tokens, observed, [0, 2, 1, 3], signed=False)
    key, key_numbers = _add_integers(graph, key, heads, width, tokens, observed, [0, 2, 3, 1])
    value, value_numbers = _add_integers(graph, value, heads, value_width, tokens, observed, [0, 2, 1, 3])
    step = rows_at_a_time(heads, token_count)
    lengths = [min(step, token_count - begin) for begin in range(0, token_count, step)]
    queries, names = [query], [f"{name}.query.rows{number}" for number in range(len(lengths))]
    if len(lengths) > 1:
        queries = graph.split_evenly(query, 2, names) if any_count else graph.split(query, lengths, 2, names)
    parts = []
    for number, (rows, part) in enumerate(zip(lengths, queries, strict=True)):
        here = f"{name}.rows{number}"
        scores = _product(graph, part, key, query_numbers, key_numbers, f"{here}.scores")
        weights = graph.node("Softmax", [scores], f"{here}.weights", axis=-1)
        shape = (heads, -1 if any_count else rows, tokens)
        parts.append(_add_weighted(graph, weights, value, value_numbers, shape, here))
    context = parts[0] if len(parts) == 1 else graph.node("Concat", parts, f"{name}.rows", axis=2)
    context = graph.node("Transpose", [context], f"{name}.tokens", perm=[0, 2, 1, 3])
    return graph.reshape(context, (tokens, heads * value_width), f"{name}.joined")


def _add_integers(
    graph: Graph,
    source: str,
    heads: int,
    width: int,
    token_count: int,
    observed: Mapping[str, Observed],
    order: list[int],
    signed: bool = True,
) -> tuple[str, list[str]]:
    """Integers of (T, H W) as heads in the given order of axes, and the names of their scale and zero."""
    zero = np.int8(0) if signed else np.uint8(MIDDLE)
    quantised = add_integers(graph, source, signed_scale(observed[source]), zero)
    split = graph.reshape(quantised.integers, (1, token_count, heads, width), f"{source}.by_head")
    return graph.node("Transpose", [split], f"{source}.heads", perm=order), [quantised.step, quantised.zero]


def _product(graph: Graph, left: str, right: str, left_numbers: list[str], right_numbers: list[str], name: str) -> str:
    scales_and_zeros = [left_numbers[0], right_numbers[0], left_numbers[1], right_numbers[1]]
    return graph.node("MatMulIntegerToFloat", [left, right, *scales_and_zeros], name, domain=CONTRIB_DOMAIN)


def _add_weighted(
    graph: Graph, weights: str, value: str, value_numbers: list[str], shape: tuple[int, int, int], name: str
) -> str:
    """Means of values by attention weights (1, H, R, T), each row in units of its largest: (1, H, R, V)."""
    heads, rows, _ = shape
    last = graph.constant("number.1", np.array([1], np.int64))
    step = graph.constant("weights.255th", np.array(1 / STEPS, np.float32))
    none = graph.constant("weights.zero", np.array(0, np.uint8))
    by_row = graph.node("Flatten", [weights], f"{name}.by_row", axis=3)  # (H R, T)
    largest = graph.node("ReduceMax", [by_row, last], f"{name}.largest", keepdims=0)
    units = graph.node("Mul", [largest, step], f"{name}.units")
    integers = graph.node("QuantizeLinear", [by_row, units], f"{name}.by_row.integers", axis=0)  # unsigned around 0
    shape_of_weights = graph.node("Shape", [weights], f"{name}.weights.shape")
    integers = graph.node("Reshape", [integers, shape_of_weights], f"{name}.integers")
    product = _product(graph, integers, value, [step, none], value_numbers, f"{name}.product")
    largest = graph.reshape(largest, (1, heads, rows, 1), f"{name}.largest.column")
    return graph.node("Mul", [product, largest], f"{name}.attended")
