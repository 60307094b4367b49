"""An AST classifier as an ONNX graph, built from its weights: no tracing, every operator chosen."""

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from leanear.export.ast.front_end import add_front_end, read_front_end
from leanear.export.onnx.attention import add_attention, add_first_tokens, add_output_bias, add_reader_attention
from leanear.export.onnx.graph import FORMS, OPSET, ExportedGraph, Graph
from leanear.export.onnx.half_precision import add_half_precision, has_half_precision, too_large_for_half
from leanear.export.onnx.heads import read_attention
from leanear.export.onnx.layers import add_bias_alone, add_layernorm, add_linear, array
from leanear.export.onnx.observed import Observed, observe, tensors_to_observe
from leanear.export.onnx.static_eight_bit import add_static_products
from leanear.runtimes.choose import check_half
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import replaced_file

INPUTS = ("waveform", "features")
CACHE_PERIOD_BYTES = 4096  # 64 sets of 64 bytes
PADDING_COLUMNS = 16  # a cache line
LOGITS = "logits"
FLOAT_PREFIX = "front_end."
READ_TOKENS = 2  # the classifier reads the class token and the distillation token, which come first
# Forms in which the last layer's attention is computed for all tokens, not for those that are read alone: TensorRT-RTX
# 1.7 ends with an internal error where it compiles attention of two queries in float16.
WHOLE_LAST_ATTENTION = ("tensorrt",)


def export_ast(
    model: Any,
    feature_extractor: Any,
    out: Path,
    form: str = "portable",
    input: str = "waveform",
    precision: str = "fp32",
    observed: Mapping[str, Observed] | None = None,
    too_large: Collection[str] = (),
) -> ExportedGraph:
    """Write a loaded AST classifier (stock or slim) as one ONNX file with its front end inside.

    Input "waveform": float32 (1, samples) of any length; "features": the extractor's (1, frames, mel bins). Output
    "logits": float32 (1, labels). The last layer is computed for the two tokens that the classifier reads.
    Form "portable" has plain ONNX operators alone, "onnxruntime" has operators of ONNX Runtime's own where they are
    faster, "openvino" has plain operators arranged for OpenVINO's faster kernels, "tensorrt" for TensorRT's fused ones.
    Precision "fp16", of form "tensorrt" alone, has products in float16, as `leanear.export.onnx.half_precision` says;
    "int8" has products of 8-bit integers in the ranges `observed` (see `observe_ast`), in form "tensorrt" the rest as
    "fp16". too_large: tensors that float16 does not hold (see `too_large_in_ast`).

    Raises:
        BadInput: `form` or `input` is unknown.
    """
    if form not in FORMS:
        raise BadInput(f"form {form!r}: expected one of {', '.join(FORMS)}")
    if input not in INPUTS:
        raise BadInput(f"input {input!r}: expected one of {', '.join(INPUTS)}")
    check_half(precision, form)
    if (precision == "int8") != (observed is not None):
        raise ValueError("products in 8 bits need what was observed, and nothing else does")
    front_end = read_front_end(feature_extractor)
    graph = Graph()
    if input == "waveform":
        source = helper.make_tensor_value_info("waveform", TensorProto.FLOAT, [1, "samples"])
        features = add_front_end(graph, "waveform", front_end)
    else:
        source = helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, front_end.frames, front_end.mel_bins])
        features = "features"
    _add_classifier(graph, features, model, form, observed)
    if observed is not None:
        add_static_products(graph, observed, form, lambda name: name.startswith(FLOAT_PREFIX) or name == LOGITS)
    if has_half_precision(precision, form):
        add_half_precision(graph, [input], [LOGITS], too_large=too_large)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, model.config.num_labels])
    with replaced_file(Path(out)) as part:
        graph.write(part, [source], [logits], "ast")
    return ExportedGraph(Path(out), form, OPSET, len(graph.nodes), precision)


def observe_ast(model: Any, feature_extractor: Any, form: str, waveforms: Sequence[np.ndarray]) -> dict[str, Observed]:
    """The ranges of what the products of a graph of that form are of, over real clips.

    waveforms: float32 (samples,) each, at the model's rate.
    """
    graph = Graph()
    _add_classifier(graph, "features", model, form)
    with tempfile.TemporaryDirectory(prefix="leanear-observe-") as folder:
        exported = export_ast(model, feature_extractor, Path(folder, "fp32.onnx"), form)
        return observe(exported.path, tensors_to_observe(graph), ({"waveform": clip[None]} for clip in waveforms))


def too_large_in_ast(
    model: Any, feature_extractor: Any, form: str, waveforms: Sequence[np.ndarray]
) -> dict[str, float]:
    """The largest magnitudes of tensors of a graph of that form that float16 does not hold; waveforms: real clips."""
    with tempfile.TemporaryDirectory(prefix="leanear-ranges-") as folder:
        exported = export_ast(model, feature_extractor, Path(folder, "fp32.onnx"), form)
        return too_large_for_half(exported.path, ({"waveform": clip[None]} for clip in waveforms))


def token_count(config: Any) -> int:
    """How many tokens the attention layers see: patches, class token and distillation token."""
    frequencies, times = _patch_grid(config)
    return frequencies * times + READ_TOKENS


def _patch_grid(config: Any) -> tuple[int, int]:
    height, width = patch_size(config)
    return (
        (config.num_mel_bins - height) // config.frequency_stride + 1,
        (config.max_length - width) // config.time_stride + 1,
    )


def patch_size(config: Any) -> tuple[int, int]:
    """Mel bins and frames of one patch."""
    size = config.patch_size
    return (int(size[0]), int(size[1])) if isinstance(size, (list, tuple)) else (int(size), int(size))


def _add_classifier(
    graph: Graph, features: str, model: Any, form: str, observed: Mapping[str, Observed] | None = None
) -> None:
    config, body = model.config, model.audio_spectrogram_transformer
    tokens = token_count(config)
    hidden = _add_embeddings(graph, features, body.embeddings, config)
    for number, layer in enumerate(body.layers):
        name = f"layers.{number}"
        is_last = number + 1 == len(body.layers)
        attended = _add_attended(graph, hidden, layer, form, tokens, name, is_last, observed)
        if is_last:
            hidden = add_first_tokens(graph, hidden, READ_TOKENS, f"{name}.read")
        hidden = graph.node("Add", [attended, hidden], f"{name}.attention.residual")
        hidden = add_mlp(graph, hidden, layer, form, name, observed)
    hidden = add_layernorm(graph, hidden, body.layernorm, "layernorm")
    pooled = graph.node(
        "ReduceMean", [hidden, graph.constant("pool.axis", np.array([0], dtype=np.int64))], "pooled", keepdims=1
    )
    pooled = add_layernorm(graph, pooled, model.classifier.layernorm, "classifier.layernorm")
    add_linear(graph, pooled, model.classifier.dense, "classifier.dense", LOGITS)


def _add_attended(
    graph: Graph,
    hidden: str,
    layer: Any,
    form: str,
    tokens: int,
    name: str,
    is_last: bool,
    observed: Mapping[str, Observed] | None,
) -> str:
    """Layer norm and attention, of the last layer for the tokens that are read; of a block without heads its bias."""
    here, attention = f"{name}.attention", read_attention(layer.attention)
    if not attention.query_key_widths:
        return add_output_bias(graph, attention, here)
    normed = add_layernorm(graph, hidden, layer.layernorm_before, f"{name}.layernorm_before")
    if not is_last:
        return add_attention(graph, normed, attention, form, tokens, here, observed)
    if form in WHOLE_LAST_ATTENTION:
        every = add_attention(graph, normed, attention, form, tokens, here)
        return add_first_tokens(graph, every, READ_TOKENS, f"{name}.readers")
    return add_reader_attention(graph, normed, attention, READ_TOKENS, here)


def _add_embeddings(graph: Graph, features: str, embeddings: Any, config: Any) -> str:
    """Class, distillation and patch tokens with their positions: features (1, frames, mel bins) in, (T, D) out."""
    projection, positions = embeddings.patch_embeddings.projection, array(embeddings.position_embeddings)[0]
    patches, width = token_count(config) - READ_TOKENS, config.hidden_size
    spectrogram = graph.node("Transpose", [features], "patches.spectrogram", perm=[0, 2, 1])
    image = graph.reshape(spectrogram, (1, 1, config.num_mel_bins, config.max_length), "patches.image")
    kernel = graph.weight("patches.weight", tuple(projection.weight.shape), lambda: array(projection.weight))
    grid = graph.node("Conv", [image, kernel], "patches.grid", strides=[config.frequency_stride, config.time_stride])
    channels_last = graph.node("Transpose", [grid], "patches.channels_last", perm=[0, 2, 3, 1])
    rows = graph.reshape(channels_last, (patches, width), "patches.rows")
    # The convolution's bias is added together with the positions, which are a constant too.
    places = graph.weight(
        "patches.positions", (patches, width), lambda: positions[READ_TOKENS:] + array(projection.bias)
    )
    placed = graph.node("Add", [rows, places], "patches.placed")
    first = graph.weight(
        "patches.first",
        (READ_TOKENS, width),
        lambda: (
            np.concatenate([array(embeddings.cls_token)[0], array(embeddings.distillation_token)[0]])
            + positions[:READ_TOKENS]
        ),
    )
    return graph.node("Concat", [first, placed], "embeddings", axis=0)


def add_mlp(
    graph: Graph, hidden: str, layer: Any, form: str, name: str, observed: Mapping[str, Observed] | None
) -> str:
    """Add a layer's feed-forward block, layer norm before and residual behind, and return the result's name."""
    is_eight_bit = observed is not None
    if layer.mlp.fc1.out_features == 0:
        return add_bias_alone(graph, hidden, layer.mlp.fc2, f"{name}.mlp")
    padding = _row_padding(layer.mlp.fc1.out_features) if form == "onnxruntime" and not is_eight_bit else 0
    normed = add_layernorm(graph, hidden, layer.layernorm_after, f"{name}.layernorm_after")
    wide = add_linear(graph, normed, layer.mlp.fc1, f"{name}.mlp.fc1", f"{name}.mlp.wide", more_outputs=padding)
    active = graph.node("Gelu", [wide], f"{name}.mlp.active")
    narrow = add_linear(graph, active, layer.mlp.fc2, f"{name}.mlp.fc2", f"{name}.mlp.narrow", more_inputs=padding)
    if form == "openvino" and not is_eight_bit:
        # Of slope one, so it changes nothing. But OpenVINO has two kernels for a linear layer, and an activation behind
        # it selects the one that is faster where rows are a multiple of 4 KiB long. It also keeps OpenVINO 2026.4
        # from a fusion that crashes while it compiles narrow models for one thread.
        narrow = graph.node("LeakyRelu", [narrow], f"{name}.mlp.unchanged", alpha=1.0)
    return graph.node("Add", [narrow, hidden], f"{name}.mlp.residual")


def _row_padding(width: int) -> int:
    """How many zero columns a matrix of `width` float32 columns gets so that its rows do not share cache sets.

    In rows that are a multiple of 4 KiB long a column's values all fall into one set of a first-level cache, which
    holds 8 to 12 of them; ONNX Runtime's matrix product reads 12 rows at a time. OpenVINO gains nothing by it.
    """
    return PADDING_COLUMNS if width * np.dtype(np.float32).itemsize % CACHE_PERIOD_BYTES == 0 else 0
