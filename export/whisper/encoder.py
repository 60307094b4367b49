"""Whisper's encoder as an ONNX graph: a waveform in, the keys and values of all cross-attention out.

Dimension letters: T encoder positions, D model width, H heads, K per-head query/key width, V per-head value/output
width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from onnx import TensorProto

from leanear.export.onnx.attention import add_attention, add_output_bias, add_stacked_weights
from leanear.export.onnx.frames import span
from leanear.export.onnx.graph import Graph
from leanear.export.onnx.heads import (
    Attention,
    HeadGroup,
    query_key_rows,
    read_attention,
    read_widths,
    together_in_form,
    value_output_rows,
)
from leanear.export.onnx.layers import add_bias_alone, add_layernorm, add_linear, array
from leanear.export.onnx.observed import Observed
from leanear.export.onnx.static_eight_bit import add_integers
from leanear.export.whisper.integer_attention import CrossUnits, cross_units, in_units
from leanear.export.whisper.log_mel import LogMel, add_log_mel

MLP_COLUMNS = 1024  # of an encoder's MLP that are in memory at a time
POSITIONS = "positions"  # an encoder's, where they are as many as the window has
STATES = "encoder.layer_norm"  # what cross-attention's keys and values are products of
FLAT_FORMS = ("onnxruntime", "openvino")  # whose products of integers have two dimensions
Shape = list[int | str]


@dataclass(frozen=True)
class Tensor:
    """An input or output of a graph; kind: its ONNX element type."""

    name: str
    shape: Shape
    kind: int = TensorProto.FLOAT


def cross_kinds(units: CrossUnits) -> tuple[int, int]:
    """The element types of a layer's keys and values of encoded windows."""
    key, value = (TensorProto.FLOAT if each is None else TensorProto.INT8 for each in (units.keys, units.values))
    return key, value


def cache_group(module: Any, form: str) -> HeadGroup:
    """The heads of a decoder's attention block as the caches hold them: all filled up with zeros to the widest."""
    return together_in_form(*read_widths(module), form)


def add_encoder(
    graph: Graph,
    waveform: str,
    model: Any,
    log_mel: LogMel,
    form: str,
    observed: Mapping[str, Observed] | None = None,
    any_window: bool = False,
) -> list[Tensor]:
    """Add everything from the waveform (1, samples) to the outputs, which are returned.

    The outputs are, per decoder layer, `cross_key.N` (H, K, T) and `cross_value.N` (H, T, V): what a decoder step
    multiplies with, as it multiplies with it. any_window: the waveform is the window, of any number of positions up to
    the model's, the first of which they are, and T is called POSITIONS; otherwise it is filled up to the model's.
    """
    encoder = model.model.encoder
    features = add_log_mel(graph, waveform, log_mel, any_window)
    hidden = _add_convolutions(graph, features, encoder, log_mel.frames, any_window)
    positions = model.config.max_source_positions
    for number, layer in enumerate(encoder.layers):
        name = f"encoder.layers.{number}"
        attention, here = read_attention(layer.self_attn), f"{name}.self_attn"
        if attention.query_key_widths:
            normed = add_layernorm(graph, hidden, layer.self_attn_layer_norm, f"{name}.self_attn_layer_norm")
            attended = add_attention(graph, normed, attention, form, positions, here, observed, any_window)
        else:
            attended = add_output_bias(graph, attention, here)
        hidden = graph.node("Add", [attended, hidden], f"{here}.residual")
        parts = -(-layer.fc1.out_features // MLP_COLUMNS) if form == "onnxruntime" else 1
        hidden = add_mlp(graph, hidden, layer, name, parts)
    states = add_layernorm(graph, hidden, encoder.layer_norm, STATES)
    # OpenVINO does not multiply a tensor of any length with one of more dimensions: all heads are one product then.
    flat = (any_window and form != "onnxruntime") or (observed is not None and form in FLAT_FORMS)
    return _add_cross_keys_and_values(
        graph, states, model.model.decoder.layers, POSITIONS if any_window else positions, form, flat, observed
    )


def add_mlp(graph: Graph, hidden: str, layer: Any, name: str, parts: int = 1) -> str:
    """Add the two linear layers of an encoder's or decoder's layer, norm before and residual behind.

    parts: into how many the columns between the two are cut. The second product of each part adds to that of the part
    before, so nothing is computed twice, and only one part is in memory at a time.
    """
    if layer.fc1.out_features == 0:
        return add_bias_alone(graph, hidden, layer.fc2, name)
    normed = add_layernorm(graph, hidden, layer.final_layer_norm, f"{name}.final_layer_norm")
    if parts == 1:
        wide = add_linear(graph, normed, layer.fc1, f"{name}.fc1", f"{name}.wide")
        active = graph.node("Gelu", [wide], f"{name}.active")
        narrow = add_linear(graph, active, layer.fc2, f"{name}.fc2", f"{name}.narrow")
        return graph.node("Add", [narrow, hidden], f"{name}.residual")
    columns, width = layer.fc1.out_features, layer.fc2.out_features
    total = graph.weight(f"{name}.fc2.bias", (width,), lambda: array(layer.fc2.bias))
    edges = [columns * number // parts for number in range(parts + 1)]
    for number, (begin, end) in enumerate(pairwise(edges)):
        first, second, bias = _part_of_mlp(graph, layer, begin, end, f"{name}.part{number}")
        wide = graph.node("Gemm", [normed, first, bias], f"{name}.part{number}.wide")
        active = graph.node("Gelu", [wide], f"{name}.part{number}.active")
        total = graph.node("Gemm", [active, second, total], f"{name}.part{number}.narrow")
    return graph.node("Add", [total, hidden], f"{name}.residual")


def _part_of_mlp(graph: Graph, layer: Any, begin: int, end: int, name: str) -> tuple[str, str, str]:
    """Weights of both linear layers and the bias of the first, for the columns between them from `begin` to `end`."""
    first = graph.weight(
        f"{name}.fc1.weight", (layer.fc1.in_features, end - begin), lambda: array(layer.fc1.weight)[begin:end].T
    )
    second = graph.weight(
        f"{name}.fc2.weight", (end - begin, layer.fc2.out_features), lambda: array(layer.fc2.weight)[:, begin:end].T
    )
    return first, second, graph.weight(f"{name}.fc1.bias", (end - begin,), lambda: array(layer.fc1.bias)[begin:end])


def _add_convolutions(graph: Graph, features: str, encoder: Any, frames: int, any_window: bool) -> str:
    """Both convolutions over three neighbours as matrix products, and the positions: (frames, mel bins) to (T, D)."""
    width = encoder.conv1.out_channels
    around = graph.constant("encoder.around", np.array([1, 0, 1, 0], dtype=np.int64))
    padded = graph.node("Pad", [features, around], "encoder.conv1.padded")
    neighbours = [
        graph.slice(padded, *span(place, 2, frames, any_window), 0, f"encoder.conv1.neighbour{place}")
        for place in range(3)
    ]
    joined = graph.node("Concat", neighbours, "encoder.conv1.joined", axis=1)
    first = _add_kernel(graph, joined, encoder.conv1, "encoder.conv1")

    # The second one moves by two rows: its three neighbours are a pair of rows and the first row of the next pair.
    tokens = frames // 2
    padded = graph.node("Pad", [first, around], "encoder.conv2.padded")
    pairs = graph.reshape(padded, (-1 if any_window else tokens + 1, 2 * width), "encoder.conv2.pairs")
    pair = graph.slice(pairs, *span(0, 1, tokens, any_window), 0, "encoder.conv2.pair")
    following = graph.slice(pairs, *span(1, 1, tokens, any_window), 0, "encoder.conv2.following")
    third = graph.slice(following, 0, width, 1, "encoder.conv2.third")
    joined = graph.node("Concat", [pair, third], "encoder.conv2.joined", axis=1)
    second = _add_kernel(graph, joined, encoder.conv2, "encoder.conv2")
    places = graph.weight("encoder.positions", (tokens, width), lambda: array(encoder.embed_positions.weight))
    if any_window:
        zero = graph.constant("number.0", np.array([0], np.int64))
        end = graph.node("Shape", [second], "encoder.places.end", start=0, end=1)
        places = graph.node("Slice", [places, zero, end, zero], "encoder.places")
    return graph.node("Add", [second, places], "encoder.embeddings")


def _add_kernel(graph: Graph, neighbours: str, convolution: Any, name: str) -> str:
    """The convolution's kernel as a matrix over three rows side by side, its bias and the activation."""
    outputs, inputs, length = convolution.weight.shape
    weight = graph.weight(
        f"{name}.weight",
        (length * inputs, outputs),
        lambda: array(convolution.weight).transpose(2, 1, 0).reshape(length * inputs, outputs),
    )
    bias = graph.weight(f"{name}.bias", (outputs,), lambda: array(convolution.bias))
    return graph.node("Gelu", [graph.node("Gemm", [neighbours, weight, bias], f"{name}.linear")], f"{name}.active")


def _add_cross_keys_and_values(
    graph: Graph,
    states: str,
    layers: Sequence[Any],
    positions: int | str,
    form: str,
    flat: bool,
    observed: Mapping[str, Observed] | None,
) -> list[Tensor]:
    outputs: list[Tensor] = []
    columns = "" if flat else graph.node("Transpose", [states], "encoder.columns", perm=[1, 0])
    for number, layer in enumerate(layers):
        attention, group = read_attention(layer.encoder_attn), cache_group(layer.encoder_attn, form)
        name = f"decoder.layers.{number}.encoder_attn"
        units = cross_units(observed, form, name)
        if flat:
            key, value = _add_flat_keys_and_values(graph, states, attention, group, number, units)
        else:
            key_weight, value_weight = add_stacked_weights(graph, attention, group, name)
            key = graph.node("MatMul", [key_weight, columns], f"cross_key.{number}")
            value = graph.node("MatMul", [states, value_weight], f"cross_value.{number}")
        key_kind, value_kind = cross_kinds(units)
        outputs += [
            Tensor(key, [len(group.heads), group.query_key_width, positions], key_kind),
            Tensor(value, [len(group.heads), positions, group.value_output_width], value_kind),
        ]
    return outputs


def _add_flat_keys_and_values(
    graph: Graph, states: str, attention: Attention, group: HeadGroup, number: int, units: CrossUnits
) -> tuple[str, str]:
    """Keys (H, K, T) and values (H, T, V) by products of two dimensions, as integers where they have units."""
    name, heads = f"decoder.layers.{number}.encoder_attn", len(group.heads)

    def keys() -> np.ndarray:
        return in_units(query_key_rows(attention.key_weight, attention, [group]).T, units.keys)

    def values() -> np.ndarray:
        return in_units(value_output_rows(attention.value_weight, attention, [group]).T, units.values)

    made = []
    for part, width, order, weight_of_part, of_part in (
        ("key", group.query_key_width, [1, 2, 0], keys, units.keys),
        ("value", group.value_output_width, [1, 0, 2], values, units.values),
    ):
        weight = graph.weight(f"{name}.{part}.weight", (attention.model_width, heads * width), weight_of_part)
        product = graph.node("MatMul", [states, weight], f"{name}.{part}")
        if of_part is not None:
            product = add_integers(graph, product, np.float32(1.0), np.int8(0)).integers
        split = graph.reshape(product, (-1, heads, width), f"{name}.{part}.split")
        made.append(graph.node("Transpose", [split], f"cross_{part}.{number}", perm=order))
    return made[0], made[1]
