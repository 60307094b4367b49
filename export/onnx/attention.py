"""Multi-head attention whose heads have their own widths, as ONNX operators over tokens (T, D).

Three identities are used, each exact in real arithmetic:
- the softmax scale is folded into the query weights;
- the key bias adds the same number to every score of a query, which softmax does not see, so it is left out;
- attention weights sum to one, so the value bias passes through and is folded into the output bias.

In 8 bits the two products of attention between tokens are of integers, by operators of ONNX Runtime's own. Scores are
products of queries and keys with one scale each. Attention weights are small in most rows and near one in some, so each
row of them has a scale of its own, its largest weight; values have one scale. Queries are taken some rows at a time, so
that scores stay in the processor's cache.

Dimension letters: T tokens, D model width, H heads, K per-head query/key width, V per-head value/output width.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from leanear.export.onnx.eight_bit_weights import LARGEST
from leanear.export.onnx.graph import CONTRIB_DOMAIN, Graph
from leanear.export.onnx.heads import (
    VECTOR_COLUMNS,
    Attention,
    HeadGroup,
    groups_in_form,
    output_bias,
    query_key_rows,
    round_up,
    value_output_rows,
)
from leanear.export.onnx.observed import Observed
from leanear.export.onnx.static_eight_bit import (
    HALF_LARGEST,
    HALF_MIDDLE,
    HALF_STEPS,
    add_integers,
    add_pair,
    signed_scale,
)

CACHED_BYTES = 4_000_000  # of scores that are made at a time
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

    sizes: H, K, V. any_count: T may be less than `token_count`; the last parts of the queries are then empty.
    """
    heads, width, value_width = sizes
    tokens = -1 if any_count else token_count
    query, query_numbers = _add_integers(graph, query, heads, width, tokens, observed, [0, 2, 1, 3], signed=False)
    key, key_numbers = _add_integers(graph, key, heads, width, tokens, observed, [0, 2, 3, 1])
    value, value_numbers = _add_integers(graph, value, heads, value_width, tokens, observed, [0, 2, 1, 3])
    step = rows_at_a_time(heads, token_count)
    parts = []
    for number, begin in enumerate(range(0, token_count, step)):
        here, rows = f"{name}.rows{number}", min(step, token_count - begin)
        part = query if step == token_count else graph.slice(query, begin, begin + rows, 2, f"{here}.query")
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
    scale, zero = signed_scale(observed[source]), np.int8(0) if signed else np.uint8(HALF_MIDDLE)
    quantised = add_integers(graph, source, scale if signed else scale * np.float32(LARGEST / HALF_LARGEST), zero)
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
    step = graph.constant("weights.127th", np.array(1 / HALF_STEPS, np.float32))
    none = graph.constant("weights.zero", np.array(0, np.uint8))
    by_row = graph.node("Flatten", [weights], f"{name}.by_row", axis=3)  # (H R, T)
    largest = graph.node("ReduceMax", [by_row, last], f"{name}.largest", keepdims=0)
    units = graph.node("Mul", [largest, step], f"{name}.units")
    integers = graph.node("QuantizeLinear", [by_row, units], f"{name}.by_row.integers", axis=0)  # unsigned around 0
    shape_of_weights = graph.node("Shape", [weights], f"{name}.weights.shape")
    integers = graph.node("Reshape", [integers, shape_of_weights], f"{name}.integers", allowzero=1)
    product = _product(graph, integers, value, [step, none], value_numbers, f"{name}.product")
    largest = graph.reshape(largest, (1, heads, rows, 1), f"{name}.largest.column")
    return graph.node("Mul", [product, largest], f"{name}.attended")


def add_attention(
    graph: Graph,
    tokens: str,
    attention: Attention,
    form: str,
    token_count: int,
    name: str,
    observed: Mapping[str, Observed] | None = None,
    any_count: bool = False,
) -> str:
    """Add the whole block, output projection included: (T, D) in, (T, D) out.

    observed: of queries, keys and values, whose products between tokens then are of 8-bit integers as far as the form
    goes; None, or where these are not among them: they are of float32. any_count: there may be fewer tokens than
    `token_count`, by which the heads are grouped all the same.
    """
    widths = attention.query_key_widths, attention.value_output_widths
    groups = groups_in_form(*widths, token_count, attention.model_width, form)
    query, key, value = _add_projections(graph, tokens, attention, groups, name)
    contexts, rows = [], -1 if any_count else token_count
    for number, group in enumerate(groups):
        here = name if len(groups) == 1 else f"{name}.group{number}"
        parts = query[number], key[number], value[number]
        is_eight_bit = observed is not None and all(part in observed for part in parts)
        if observed is not None and is_eight_bit and form == "onnxruntime":
            sizes = len(group.heads), group.query_key_width, group.value_output_width
            contexts.append(add_eight_bit_group(graph, *parts, sizes, token_count, observed, here, any_count))
            continue
        if observed is not None and is_eight_bit and form == "openvino":
            scores = [add_pair(graph, part, signed_scale(observed[part]), np.int8(0)) for part in parts[:2]]
            parts = scores[0], scores[1], parts[2]
        if form == "onnxruntime":
            contexts.append(_add_onnxruntime_group(graph, *parts, group, rows, here))
        else:
            whole, turned = form == "openvino", is_eight_bit and form == "openvino" and not any_count
            contexts.append(_add_plain_group(graph, *parts, group, rows, here, whole, turned))
    context = contexts[0] if len(contexts) == 1 else graph.node("Concat", contexts, f"{name}.context", axis=1)
    return add_output(graph, context, attention, groups, name)


def _add_onnxruntime_group(
    graph: Graph, query: str, key: str, value: str, group: HeadGroup, token_count: int, name: str
) -> str:
    """Context of a group's heads, one after the other (T, H V), by ONNX Runtime's operator, which stores no scores."""
    heads = len(group.heads)
    inputs = [
        graph.reshape(query, (1, token_count, heads * group.query_key_width), f"{name}.query.batch"),
        graph.reshape(key, (1, token_count, heads * group.query_key_width), f"{name}.key.batch"),
        graph.reshape(value, (1, token_count, heads * group.value_output_width), f"{name}.value.batch"),
    ]
    attended = graph.node(
        "MultiHeadAttention", inputs, f"{name}.attended", domain=CONTRIB_DOMAIN, num_heads=heads, scale=1.0
    )
    return graph.reshape(attended, (token_count, heads * group.value_output_width), f"{name}.joined")


def _add_plain_group(
    graph: Graph, query: str, key: str, value: str, group: HeadGroup, token_count: int, name: str,
    whole: bool, turned: bool,
) -> str:  # fmt: skip
    """Context of a group's heads, one after the other (T, H V), by plain operators.

    whole: values are filled up to full vectors: OpenVINO multiplies by a part of one of 16 columns more slowly. turned:
    keys are turned by a node of its own, which OpenVINO makes a part of a product of integers.
    """
    heads, width, value_width = len(group.heads), group.query_key_width, group.value_output_width
    padding = round_up(value_width, VECTOR_COLUMNS) - value_width if whole else 0
    query = graph.reshape(query, (1, token_count, heads, width), f"{name}.query.split")
    key = graph.reshape(key, (1, token_count, heads, width), f"{name}.key.split")
    value = graph.reshape(value, (1, token_count, heads, value_width), f"{name}.value.split")
    if padding:
        pads = graph.constant(f"pads.{padding}", np.array([0] * 7 + [padding], dtype=np.int64))
        value = graph.node("Pad", [value, pads], f"{name}.value.padded")
    joined = _add_scores_and_values(graph, query, key, value, name, turned)
    if padding:
        begin = graph.constant("unpad.begin", np.array([0], dtype=np.int64))
        end = graph.constant(f"unpad.{value_width}", np.array([value_width], dtype=np.int64))
        axis = graph.constant("unpad.axis", np.array([3], dtype=np.int64))
        joined = graph.node("Slice", [joined, begin, end, axis], f"{name}.unpadded")
    return graph.reshape(joined, (token_count, heads * value_width), f"{name}.joined")


def _add_scores_and_values(graph: Graph, query: str, key: str, value: str, name: str, turned: bool) -> str:
    """Attention of (1, T, H, K), (1, T, H, K) and (1, T, H, V): (1, T, H, V)."""
    query = graph.node("Transpose", [query], f"{name}.query.heads", perm=[0, 2, 1, 3])
    if turned:
        key = graph.node("Transpose", [key], f"{name}.key.rows", perm=[0, 2, 1, 3])
    key = graph.node("Transpose", [key], f"{name}.key.heads", perm=[0, 1, 3, 2] if turned else [0, 2, 3, 1])
    value = graph.node("Transpose", [value], f"{name}.value.heads", perm=[0, 2, 1, 3])
    scores = graph.node("MatMul", [query, key], f"{name}.scores")
    weights = graph.node("Softmax", [scores], f"{name}.weights", axis=-1)
    attended = graph.node("MatMul", [weights, value], f"{name}.attended")
    return graph.node("Transpose", [attended], f"{name}.tokens", perm=[0, 2, 1, 3])


def _add_projections(
    graph: Graph, tokens: str, attention: Attention, groups: tuple[HeadGroup, ...], name: str
) -> tuple[list[str], list[str], list[str]]:
    """Query (scaled), key and value of every group's heads: (T, H K), (T, H K) and (T, H V) each.

    One product makes all groups' queries, which are cut afterwards: a product per group would be narrow, thus slow.
    """
    width = attention.model_width
    query_key_sizes = [len(group.heads) * group.query_key_width for group in groups]
    value_sizes = [len(group.heads) * group.value_output_width for group in groups]
    query_weights = add_query_weights(graph, attention, groups, name)
    key_weight = graph.weight(
        f"{name}.key.weight",
        (width, sum(query_key_sizes)),
        lambda: query_key_rows(attention.key_weight, attention, groups).T,
    )
    value_weight = graph.weight(
        f"{name}.value.weight",
        (width, sum(value_sizes)),
        lambda: value_output_rows(attention.value_weight, attention, groups).T,
    )
    query = graph.node("Gemm", [tokens, *query_weights], f"{name}.query")
    key = graph.node("MatMul", [tokens, key_weight], f"{name}.key")
    value = graph.node("MatMul", [tokens, value_weight], f"{name}.value")
    return (
        _add_cut(graph, query, query_key_sizes, f"{name}.query"),
        _add_cut(graph, key, query_key_sizes, f"{name}.key"),
        _add_cut(graph, value, value_sizes, f"{name}.value"),
    )


def add_query_weights(
    graph: Graph, attention: Attention, groups: Sequence[HeadGroup], name: str, units: np.ndarray | None = None
) -> tuple[str, str]:
    """Query weight (D, H K) and bias (H K,) of every group's heads, the softmax scale in both.

    units: float32 (H K,), what the keys count in, if not in 1.
    """
    columns = sum(len(group.heads) * group.query_key_width for group in groups)
    scaling = np.float32(attention.scaling) * (np.float32(1.0) if units is None else units)
    weight = graph.weight(
        f"{name}.query.weight",
        (attention.model_width, columns),
        lambda: query_key_rows(attention.query_weight, attention, groups).T * scaling,
    )
    bias = graph.weight(
        f"{name}.query.bias", (columns,), lambda: query_key_rows(attention.query_bias, attention, groups) * scaling
    )
    return weight, bias


def add_stacked_weights(graph: Graph, attention: Attention, group: HeadGroup, name: str) -> tuple[str, str]:
    """Key weights (H, K, D) and value weights (H, D, V) of a group's heads, each a matrix of its own."""
    heads, width = len(group.heads), attention.model_width
    key_width, value_width = group.query_key_width, group.value_output_width
    key_weight = graph.weight(
        f"{name}.key.weight",
        (heads, key_width, width),
        lambda: query_key_rows(attention.key_weight, attention, [group]).reshape(heads, key_width, width),
    )
    value_weight = graph.weight(
        f"{name}.value.weight",
        (heads, width, value_width),
        lambda: (
            value_output_rows(attention.value_weight, attention, [group])
            .reshape(heads, value_width, width)
            .transpose(0, 2, 1)
        ),
    )
    return key_weight, value_weight


def _add_cut(graph: Graph, source: str, sizes: list[int], name: str) -> list[str]:
    if len(sizes) == 1:
        return [source]
    return graph.split(source, sizes, 1, [f"{name}.group{number}" for number in range(len(sizes))])


def add_output(
    graph: Graph,
    context: str,
    attention: Attention,
    groups: Sequence[HeadGroup],
    name: str,
    units: np.ndarray | None = None,
) -> str:
    """Output projection of the context, whose columns are the groups' heads one after the other: (T, D).

    units: float32 (columns,), what the context counts in, if not in 1.
    """
    columns = sum(len(group.heads) * group.value_output_width for group in groups)

    def rows() -> np.ndarray:
        weight = value_output_rows(attention.output_weight.T, attention, groups)
        return weight if units is None else weight * units[:, None]

    weight = graph.weight(f"{name}.output.weight", (columns, attention.model_width), rows)
    return graph.node("Gemm", [context, weight, add_output_bias(graph, attention, name)], f"{name}.output")


def add_output_bias(graph: Graph, attention: Attention, name: str) -> str:
    """Add what is the same for every token (D,): all that is left of a block without heads."""
    return graph.weight(f"{name}.output.bias", (attention.model_width,), lambda: output_bias(attention))


def add_reader_attention(graph: Graph, tokens: str, attention: Attention, readers: int, name: str) -> str:
    """Add the block for the first `readers` tokens' outputs alone: tokens (T, D) in, (readers, D) out.

    With so few queries it is cheaper not to project keys and values: q.(W x) = (W' q).x, and attention weights applied
    to W x are W applied to the weighted mean of x. Both are the same sums in another order.
    """
    heads, width = len(attention.query_key_widths), attention.model_width
    query_width, value_width = max(attention.query_key_widths), max(attention.value_output_widths)
    group = HeadGroup(tuple(range(heads)), query_width, value_width)
    query_weights = add_query_weights(graph, attention, (group,), name)
    key_weight, value_weight = add_stacked_weights(graph, attention, group, name)
    reading = add_first_tokens(graph, tokens, readers, f"{name}.readers")
    query = graph.node("Gemm", [reading, *query_weights], f"{name}.query")
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
    return add_output(graph, context, attention, (group,), name)


def add_first_tokens(graph: Graph, tokens: str, count: int, name: str) -> str:
    """Add a Slice that keeps the first `count` rows of (T, D)."""
    begin = graph.constant("first.begin", np.array([0], dtype=np.int64))
    end = graph.constant(f"first.{count}", np.array([count], dtype=np.int64))
    axis = graph.constant("first.axis", np.array([0], dtype=np.int64))
    return graph.node("Slice", [tokens, begin, end, axis], name)
