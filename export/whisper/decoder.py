"""Whisper's decoder as one ONNX graph for the first step and all later ones.

A token's row of the embedding is an input: the graph multiplies with all of the embedding, which a runtime keeps in an
arrangement of its own, and whoever runs it reads a row from the file where the embedding is stored once.

The keys and values of tokens that were fed before are inputs whose shape has room for more; the graph gives those of
the new tokens alone, and whoever runs it puts them into their place. So no step copies what is already there: scores
over the room and over the new tokens are put side by side, keys and values never are.

Dimension letters: W encoded windows, R rows (hypotheses, as many of each window), N new tokens of each, C positions
that there is room for, T encoder positions, D model width, H heads, K per-head query/key width, V per-head value/output
width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from leanear.export.onnx.attention import add_output, add_query_weights
from leanear.export.onnx.graph import Graph
from leanear.export.onnx.heads import Attention, HeadGroup, query_key_rows, read_attention, value_output_rows
from leanear.export.onnx.layers import add_layernorm, array
from leanear.export.onnx.observed import Observed
from leanear.export.whisper.encoder import POSITIONS, Shape, Tensor, add_mlp, cache_group, cross_kinds
from leanear.export.whisper.integer_attention import CrossUnits, add_attended, add_scores, cross_units
from leanear.export.whisper.two_stage_vocabulary import TwoStages, add_two_stage_logits

EMBEDDING = "decoder.embedding"


@dataclass(frozen=True)
class _Step:
    """What all layers of a step read: sizes that are only known when it runs, and what may not be looked at."""

    rows_and_tokens: str  # int64 (2,): R, N
    room_and_tokens: str  # int64 (2,): C, N
    windows: str  # int64 (1,): W
    bias: str  # (N, C + N)


def add_decoder(
    graph: Graph,
    model: Any,
    form: str,
    any_window: bool = False,
    alignment_heads: Sequence[tuple[int, int]] = (),
    stages: TwoStages | None = None,
    observed: Mapping[str, Observed] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Add the whole decoder; its inputs and outputs are returned. any_window: T is as many as the window has; stages:
    in which the logits are computed, None: all at once; observed: what the encoder gives in 8 bits.

    Inputs: `embedded` (R, N, D), the new tokens' rows of EMBEDDING; `positions` int64 (N,), where they stand; `bias`
    (N, C + N), added to all scores: 0 where a token may look, a large negative number where not; per layer `self_key.I`
    (R, H, K, C), `self_value.I` (R, H, C, V), `cross_key.I` (W, H, K, T), `cross_value.I` (W, H, T, V), of form
    "tensorrt" without W: the rows of each window follow one another.
    Outputs: `logits` (R, vocabulary) after the last token; per layer `new_key.I` (R, H, K, N), `new_value.I`
    (R, H, N, V). With `alignment_heads`, (layer, head) ascending, `alignment` (A, R N, T) as well: their scores before
    the softmax.
    """
    config = model.config
    positions: int | str = POSITIONS if any_window else config.max_source_positions
    inputs = [
        Tensor("embedded", ["rows", "new", config.d_model]),
        Tensor("positions", ["new"], TensorProto.INT64),
        Tensor("bias", ["new", "room_and_new"]),
    ]
    outputs = [Tensor("logits", ["rows", config.vocab_size])]
    step = _add_step(graph, form)
    hidden = _add_embeddings(graph, model)
    for number, layer in enumerate(model.model.decoder.layers):
        units = cross_units(observed, form, f"decoder.layers.{number}.encoder_attn")
        hidden = _add_layer(graph, hidden, layer, step, number, form, units)
        cached, new = _keys_and_values(layer, number, form, positions, units)
        inputs, outputs = inputs + cached, outputs + new
    _add_logits(graph, hidden, model, step, stages, form)
    if alignment_heads:
        _add_alignment(graph, alignment_heads)
        outputs.append(Tensor("alignment", [len(alignment_heads), "rows_and_new", positions]))
    return inputs, outputs


def _add_step(graph: Graph, form: str) -> _Step:
    shape = graph.node("Shape", ["embedded"], "decoder.shape", start=0, end=2)
    room = graph.node("Shape", ["self_key.0"], "decoder.room", start=3, end=4)
    new = graph.node("Shape", ["positions"], "decoder.new")
    windows = "" if form == "tensorrt" else graph.node("Shape", ["cross_key.0"], "decoder.windows", start=0, end=1)
    return _Step(shape, graph.node("Concat", [room, new], "decoder.parts", axis=0), windows, "bias")


def _add_layer(graph: Graph, hidden: str, layer: Any, step: _Step, number: int, form: str, units: CrossUnits) -> str:
    """One layer: (R N, D) in and out."""
    name = f"decoder.layers.{number}"
    normed = add_layernorm(graph, hidden, layer.self_attn_layer_norm, f"{name}.self_attn_layer_norm")
    attention, group = read_attention(layer.self_attn), cache_group(layer.self_attn, form)
    attended = _add_self_attention(graph, normed, attention, group, step, number, form)
    hidden = graph.node("Add", [attended, hidden], f"{name}.self_attn.residual")
    normed = add_layernorm(graph, hidden, layer.encoder_attn_layer_norm, f"{name}.encoder_attn_layer_norm")
    attention, group = read_attention(layer.encoder_attn), cache_group(layer.encoder_attn, form)
    attended = _add_cross_attention(graph, normed, attention, group, step, number, form, units)
    hidden = graph.node("Add", [attended, hidden], f"{name}.encoder_attn.residual")
    return add_mlp(graph, hidden, layer, name)


def _keys_and_values(
    layer: Any, number: int, form: str, positions: int | str, units: CrossUnits
) -> tuple[list[Tensor], list[Tensor]]:
    """A layer's inputs, of earlier tokens and of encoded windows, and its outputs, of the new tokens."""
    group, cross = cache_group(layer.self_attn, form), cache_group(layer.encoder_attn, form)
    heads, key, value = len(group.heads), group.query_key_width, group.value_output_width
    of_each: Shape = [] if form == "tensorrt" else ["windows"]
    key_kind, value_kind = cross_kinds(units)
    cached = [
        Tensor(f"self_key.{number}", ["rows", heads, key, "room"]),
        Tensor(f"self_value.{number}", ["rows", heads, "room", value]),
        Tensor(f"cross_key.{number}", [*of_each, len(cross.heads), cross.query_key_width, positions], key_kind),
        Tensor(f"cross_value.{number}", [*of_each, len(cross.heads), positions, cross.value_output_width], value_kind),
    ]
    new = [
        Tensor(f"new_key.{number}", ["rows", heads, key, "new"]),
        Tensor(f"new_value.{number}", ["rows", heads, "new", value]),
    ]
    return cached, new


def _add_alignment(graph: Graph, heads: Sequence[tuple[int, int]]) -> None:
    """The cross-attention scores of `heads`, layer by layer, one after the other."""
    chosen: dict[int, list[int]] = {}
    for layer, head in heads:
        chosen.setdefault(layer, []).append(head)
    parts = []
    for layer, of_layer in chosen.items():
        indices = graph.constant(f"alignment.heads.{layer}", np.array(of_layer, dtype=np.int64))
        scores = f"decoder.layers.{layer}.encoder_attn.scores"  # (W, H, R N / W, T)
        parts.append(graph.node("Gather", [scores, indices], f"alignment.{layer}", axis=1))
    together = graph.node("Concat", parts, "alignment.windows", axis=1)
    by_head = graph.node("Transpose", [together], "alignment.heads", perm=[1, 0, 2, 3])
    positions = graph.node("Shape", [together], "alignment.positions", start=3, end=4)
    rows = graph.constant("alignment.rows", np.array([len(heads), -1], dtype=np.int64))
    graph.node("Reshape", [by_head, graph.node("Concat", [rows, positions], "alignment.shape", axis=0)], "alignment")


def _add_embeddings(graph: Graph, model: Any) -> str:
    """Tokens and their positions: (R N, D)."""
    config, decoder = model.config, model.model.decoder
    embedding = decoder.embed_tokens.weight
    graph.stored(EMBEDDING, tuple(embedding.shape), lambda: array(embedding), is_tied(model))
    places = graph.weight(
        "decoder.positions",
        (config.max_target_positions, config.d_model),
        lambda: array(decoder.embed_positions.weight),
    )
    placed = graph.node("Gather", [places, "positions"], "decoder.places", axis=0)
    together = graph.node("Add", ["embedded", placed], "decoder.placed")
    return graph.reshape(together, (-1, config.d_model), "decoder.hidden")


def _add_self_attention(
    graph: Graph, tokens: str, attention: Attention, group: HeadGroup, step: _Step, number: int, form: str
) -> str:
    """Attention over the tokens fed before and the new ones: (R N, D) in and out."""
    name = f"decoder.layers.{number}.self_attn"
    heads, width, value_width = len(group.heads), group.query_key_width, group.value_output_width
    query, key, value = _add_fused_projections(graph, tokens, attention, group, name)
    query = _add_heads(graph, query, step, heads, width, [0, 2, 1, 3], f"{name}.query.heads")
    key = _add_heads(graph, key, step, heads, width, [0, 2, 3, 1], f"new_key.{number}")
    value = _add_heads(graph, value, step, heads, value_width, [0, 2, 1, 3], f"new_value.{number}")
    if form == "tensorrt":
        attended = _add_fused_self_attention(graph, query, key, value, step, number)
    else:
        attended = _add_split_self_attention(graph, query, key, value, step, number)
    joined = graph.node("Transpose", [attended], f"{name}.tokens", perm=[0, 2, 1, 3])
    context = graph.reshape(joined, (-1, heads * value_width), f"{name}.joined")
    return add_output(graph, context, attention, [group], name)


def _add_fused_self_attention(graph: Graph, query: str, key: str, value: str, step: _Step, number: int) -> str:
    """What is attended to, (R, H, N, V), by the operators that TensorRT fuses: keys and values are put side by side."""
    name = f"decoder.layers.{number}.self_attn"
    keys = graph.node("Concat", [f"self_key.{number}", key], f"{name}.keys", axis=3)
    values = graph.node("Concat", [f"self_value.{number}", value], f"{name}.values", axis=2)
    scores = graph.node("MatMul", [query, keys], f"{name}.scores")
    allowed = graph.node("Add", [scores, step.bias], f"{name}.scores.allowed")
    weights = graph.node("Softmax", [allowed], f"{name}.weights", axis=-1)
    return graph.node("MatMul", [weights, values], f"{name}.attended")


def _add_split_self_attention(graph: Graph, query: str, key: str, value: str, step: _Step, number: int) -> str:
    """What is attended to, (R, H, N, V), without a copy of what is there: the room and the new tokens one by one."""
    name = f"decoder.layers.{number}.self_attn"
    before = graph.node("MatMul", [query, f"self_key.{number}"], f"{name}.scores.before")
    new = graph.node("MatMul", [query, key], f"{name}.scores.new")
    scores = graph.node("Concat", [before, new], f"{name}.scores", axis=3)
    allowed = graph.node("Add", [scores, step.bias], f"{name}.scores.allowed")
    weights = graph.node("Softmax", [allowed], f"{name}.weights", axis=-1)
    before, new = graph.split_by(weights, step.room_and_tokens, 3, [f"{name}.weights.before", f"{name}.weights.new"])
    before = graph.node("MatMul", [before, f"self_value.{number}"], f"{name}.attended.before")
    new = graph.node("MatMul", [new, value], f"{name}.attended.new")
    return graph.node("Add", [before, new], f"{name}.attended")


def _add_fused_projections(
    graph: Graph, tokens: str, attention: Attention, group: HeadGroup, name: str
) -> tuple[str, str, str]:
    """Query (scaled), key and value of the new tokens, (R N, H K), (R N, H K) and (R N, H V), by one product."""
    scaling, groups = np.float32(attention.scaling), [group]
    query_key, value_output = len(group.heads) * group.query_key_width, len(group.heads) * group.value_output_width
    sizes = [query_key, query_key, value_output]

    def weight() -> np.ndarray:
        query = query_key_rows(attention.query_weight, attention, groups) * scaling
        key = query_key_rows(attention.key_weight, attention, groups)
        return np.concatenate([query, key, value_output_rows(attention.value_weight, attention, groups)]).T

    def bias() -> np.ndarray:
        query = query_key_rows(attention.query_bias, attention, groups) * scaling
        return np.concatenate([query, np.zeros(query_key + value_output, dtype=np.float32)])

    weights = graph.weight(f"{name}.query_key_value.weight", (attention.model_width, sum(sizes)), weight)
    biases = graph.weight(f"{name}.query_key_value.bias", (sum(sizes),), bias)
    fused = graph.node("Gemm", [tokens, weights, biases], f"{name}.query_key_value")
    query, key, value = graph.split(fused, sizes, 1, [f"{name}.query", f"{name}.key", f"{name}.value"])
    return query, key, value


def _add_heads(graph: Graph, source: str, step: _Step, heads: int, width: int, order: list[int], name: str) -> str:
    """(R N, H width) as (R, N, H, width), its dimensions in another order."""
    sizes = graph.constant(f"heads.{heads}x{width}", np.array([heads, width], dtype=np.int64))
    shape = f"shape.heads.{heads}x{width}"
    if not graph.has(shape):
        graph.node("Concat", [step.rows_and_tokens, sizes], shape, axis=0)
    split = graph.node("Reshape", [source, shape], f"{name}.split")
    return graph.node("Transpose", [split], name, perm=order)


def _add_cross_attention(
    graph: Graph,
    tokens: str,
    attention: Attention,
    group: HeadGroup,
    step: _Step,
    number: int,
    form: str,
    units: CrossUnits,
) -> str:
    """Attention over encoded windows, the tokens of a window's rows as one batch of queries: (R N, D) in and out."""
    name = f"decoder.layers.{number}.encoder_attn"
    heads, width, value_width = len(group.heads), group.query_key_width, group.value_output_width
    query_weights = add_query_weights(graph, attention, [group], name, units.of_queries())
    query = graph.node("Gemm", [tokens, *query_weights], f"{name}.query")
    key, value = f"cross_key.{number}", f"cross_value.{number}"
    if form == "tensorrt":  # its engines are of one window, and it fuses what has four dimensions
        axis = graph.constant("decoder.batch.axis", np.array([0], dtype=np.int64))
        key = graph.node("Unsqueeze", [key, axis], f"{name}.key.batch")
        value = graph.node("Unsqueeze", [value, axis], f"{name}.value.batch")
        query = graph.reshape(query, (1, -1, heads, width), f"{name}.query.split")
    else:
        shape = f"shape.windows.{heads}x{width}"
        if not graph.has(shape):
            rest = graph.constant(f"rows.{heads}x{width}", np.array([-1, heads, width], dtype=np.int64))
            graph.node("Concat", [step.windows, rest], shape, axis=0)
        query = graph.node("Reshape", [query, shape], f"{name}.query.split")
    query = graph.node("Transpose", [query], f"{name}.query.heads", perm=[0, 2, 1, 3])
    if units.keys is None:
        scores = graph.node("MatMul", [query, key], f"{name}.scores")
    else:
        scores = add_scores(graph, query, key, name)
    if units.values is not None:
        attended = add_attended(graph, scores, value, name)
    elif form == "openvino":
        attended = _add_divided_attention(graph, scores, value, name)
    else:
        weights = graph.node("Softmax", [scores], f"{name}.weights", axis=-1)
        attended = graph.node("MatMul", [weights, value], f"{name}.attended")
    joined = graph.node("Transpose", [attended], f"{name}.tokens", perm=[0, 2, 1, 3])
    context = graph.reshape(joined, (-1, heads * value_width), f"{name}.joined")
    return add_output(graph, context, attention, [group], name, units.of_attended())


def _add_divided_attention(graph: Graph, scores: str, value: str, name: str) -> str:
    """Softmax of the scores times the values, divided by the sum of exponentials only when they are weighted.

    OpenVINO has one kernel for product, softmax and product, which is the slower way for a step of one token.
    """
    axis = graph.constant("scores.axis", np.array([-1], dtype=np.int64))
    largest = graph.node("ReduceMax", [scores, axis], f"{name}.largest", keepdims=1)
    exponentials = graph.node("Exp", [graph.node("Sub", [scores, largest], f"{name}.centred")], f"{name}.exponentials")
    total = graph.node("ReduceSum", [exponentials, axis], f"{name}.total", keepdims=1)
    weighted = graph.node("MatMul", [exponentials, value], f"{name}.weighted")
    return graph.node("Div", [weighted, total], f"{name}.attended")


def _add_logits(graph: Graph, hidden: str, model: Any, step: _Step, stages: TwoStages | None, form: str) -> None:
    """Logits (R, vocabulary) of each row's last token, by the embedding itself where the model has it so."""
    config, decoder = model.config, model.model.decoder
    width = graph.constant("decoder.width", np.array([config.d_model], dtype=np.int64))
    shape = graph.node("Concat", [step.rows_and_tokens, width], "decoder.rows.shape", axis=0)
    rows = graph.node("Reshape", [hidden, shape], "decoder.rows")
    last = graph.constant("decoder.last.index", np.array(-1, dtype=np.int64))
    final = graph.node("Gather", [rows, last], "decoder.last", axis=1)
    normed = add_layernorm(graph, final, decoder.layer_norm, "decoder.layer_norm")
    table = EMBEDDING
    if not is_tied(model):
        table, shape_of_table = "decoder.output.weight", tuple(model.proj_out.weight.shape)
        graph.weight(table, shape_of_table, lambda: array(model.proj_out.weight))
    if stages is not None:
        add_two_stage_logits(graph, normed, table, stages, form)
        return
    graph.node("Gemm", [normed, table], "logits", transB=1)


def first_special(model: Any) -> int:
    """The first token that is no text: the end or the start of a transcript."""
    ends = model.config.eos_token_id
    return int(min(model.config.decoder_start_token_id, *(ends if isinstance(ends, list) else [ends])))


def is_tied(model: Any) -> bool:
    """Whether logits are products with the embedding itself."""
    return model.proj_out.weight is model.model.decoder.embed_tokens.weight
