"""Whisper as two ONNX graphs, built from its weights: no tracing, every operator chosen."""

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from leanear.export.onnx.eight_bit_weights import add_block_products, add_eight_bit_weights
from leanear.export.onnx.graph import FORMS, OPSET, ExportedGraph, Graph, graph_facts
from leanear.export.onnx.half_precision import add_half_precision, has_half_precision
from leanear.export.onnx.heads import read_widths
from leanear.export.onnx.observed import Observed, observe, tensors_to_observe
from leanear.export.onnx.static_eight_bit import add_static_products
from leanear.export.whisper.decoder import EMBEDDING, add_decoder, first_special
from leanear.export.whisper.encoder import Tensor, add_encoder, cache_group
from leanear.export.whisper.integer_attention import INTEGER_FORM, cross_units
from leanear.export.whisper.log_mel import read_log_mel
from leanear.export.whisper.two_stage_vocabulary import two_stages
from leanear.runtimes.choose import check_half
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import replaced_file
from leanear.runtimes.manifest import Blocks, Cache, CacheLayer, EmbeddingPlace, GraphFile, TwoStages

CACHED = ("self_", "new_", "cross_")  # how the names of keys and values begin
KEPT = "front_end."  # how nodes of an encoder are named whose products stay in float32
FRAMES_PER_POSITION = 2  # the stride of the second convolution


@dataclass(frozen=True)
class ExportedWhisper:
    """The two graphs that were written.

    embedding: where the embedding is, as the manifest says it: file, offset in bytes, shape, precision, and the blocks
    of a row that have a scale each where it is in 8 bits; stages: in which the logits are computed.
    """

    encoder: ExportedGraph
    decoder: ExportedGraph
    embedding: EmbeddingPlace
    stages: TwoStages | None

    def facts(self) -> dict[str, GraphFile]:
        """What a manifest says of them."""
        return {"encoder": graph_facts(self.encoder), "decoder": graph_facts(self.decoder)}


def export_whisper(
    model: Any,
    feature_extractor: Any,
    encoder_out: Path,
    decoder_out: Path,
    form: str = "portable",
    precision: str = "fp32",
    observed: Mapping[str, Observed] | None = None,
    any_window: bool = False,
    alignment_heads: Sequence[tuple[int, int]] = (),
    too_large: Collection[str] = (),
    decoder_weights: bool = True,
) -> ExportedWhisper:
    """Write a loaded Whisper (stock or slim) as two ONNX files: encoder with its front end, and decoder.

    Beside each comes a file of the same name with the ending .bin, which has its large weights.

    The encoder takes "waveform", float32 (1, samples) of any length, filled up or cut to the model's window; with
    `any_window`, which the form "tensorrt" has not, it takes a window of any whole number of positions up to the
    model's. Inputs and outputs of the decoder are those of `leanear.export.whisper.decoder.add_decoder`. Form
    "portable" has plain ONNX operators alone, "onnxruntime" has operators of ONNX Runtime's own where they are faster,
    "openvino" has plain operators arranged for OpenVINO's faster kernels, "tensorrt" for TensorRT's fused ones.
    Precision "fp16", of form "tensorrt" alone, has products, keys and values in float16. Precision "int8" has 8-bit
    integers in the encoder's products, in the ranges `observed` (see `observe_encoder`), and 8-bit weights in the
    decoder, whose steps take as long as it takes to read them; of form "tensorrt" all but the encoder's products with
    weights is in float16. alignment_heads: (layer, head) of the decoder, ascending, whose attention it gives as well,
    which that form does not. too_large: tensors of either graph that float16 does not hold
    (`leanear.export.whisper_artifact`). decoder_weights: False leaves them in float32, whatever else is in 8 bits.

    Raises:
        BadInput: `form` or `precision` is unknown.
    """
    _check_form(form, precision, observed is not None, any_window, bool(alignment_heads))
    log_mel = read_log_mel(feature_extractor)
    encoder, decoder = Graph(), Graph()
    produced = add_encoder(encoder, "waveform", model, log_mel, form, observed, any_window)
    stages = two_stages(model.config.vocab_size, first_special(model), form, precision)
    inputs, outputs = add_decoder(decoder, model, form, any_window, alignment_heads, stages, observed)
    if observed is not None:
        add_static_products(encoder, observed, form, lambda name: name.startswith(KEPT))
        if decoder_weights:
            _add_eight_bit_weights(decoder, form)
    is_half = has_half_precision(precision, form)
    half: set[str] = set()
    if is_half:
        half = {tensor.name for tensor in produced}
        add_half_precision(encoder, ["waveform"], half, half=half, too_large=too_large)
        half |= _add_half_decoder(decoder, inputs, outputs, half, too_large)
    _write_encoder(encoder, encoder_out, produced, half)
    tensors = [_value_info(i, half) for i in inputs], [_value_info(o, half) for o in outputs]
    with replaced_file(Path(decoder_out)) as part:
        offsets = decoder.write(part, *tensors, "whisper_decoder", _data_file(decoder_out))
    return ExportedWhisper(
        _exported(encoder, encoder_out, form, precision),
        _exported(decoder, decoder_out, form, "fp16" if is_half else precision),
        _place_of_embedding(model, decoder, _data_file(decoder_out), offsets),
        stages,
    )


def _check_form(form: str, precision: str, is_observed: bool, any_window: bool, gives_attention: bool) -> None:
    """See that there are graphs of this form that have what is asked of them."""
    if form not in FORMS:
        raise BadInput(f"form {form!r}: expected one of {', '.join(FORMS)}")
    check_half(precision, form)
    if (precision == "int8") != is_observed:
        raise ValueError("products in 8 bits need what was observed, and nothing else does")
    if any_window and form == "tensorrt":
        raise BadInput("--window: an engine is built for one window, so the form 'tensorrt' has the full one alone")
    if gives_attention and form == "tensorrt":
        raise BadInput("--word-timestamps: TensorRT's fused kernels give no attention, so the form 'tensorrt' has none")


def _add_eight_bit_weights(decoder: Graph, form: str) -> None:
    if form == "onnxruntime":
        add_block_products(decoder)
    elif form != "tensorrt":
        add_eight_bit_weights(decoder)


def _add_half_decoder(
    decoder: Graph,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    half: Collection[str],
    too_large: Collection[str],
) -> set[str]:
    """Products, keys and values of the decoder in float16; the names of its inputs and outputs that are."""
    cached = {tensor.name for tensor in (*inputs, *outputs) if tensor.name.startswith(CACHED)}
    floats = [tensor.name for tensor in inputs if tensor.kind == TensorProto.FLOAT]
    given, both = [tensor.name for tensor in outputs], {*half, *cached}
    add_half_precision(decoder, floats, given, half=both, kept_inputs=["bias"], too_large=too_large)
    return cached


def _write_encoder(encoder: Graph, out: Path, produced: Sequence[Tensor], half: Collection[str] = ()) -> None:
    """half: which of the produced keys and values are in float16."""
    inputs = [helper.make_tensor_value_info("waveform", TensorProto.FLOAT, [1, "samples"])]
    outputs = [_value_info(tensor, half) for tensor in produced]
    with replaced_file(Path(out)) as part:
        encoder.write(part, inputs, outputs, "whisper_encoder", _data_file(out))


def _data_file(out: Path) -> str:
    """The file beside a graph that has its large weights."""
    return f"{Path(out).stem}.bin"


def _exported(graph: Graph, out: Path, form: str, precision: str) -> ExportedGraph:
    return ExportedGraph(Path(out), form, OPSET, len(graph.nodes), precision, _data_file(out))


def observe_encoder(
    model: Any, feature_extractor: Any, form: str, waveforms: Sequence[np.ndarray]
) -> dict[str, Observed]:
    """The ranges of what the products of an encoder's graph of that form are of, over real clips.

    waveforms: float32 (samples,) each, at the model's rate.
    """
    graph = Graph()
    produced = add_encoder(graph, "waveform", model, read_log_mel(feature_extractor), form, observed={})
    looked_at = ("encoder.", "decoder.") if form == INTEGER_FORM else "encoder."
    names = [name for name in tensors_to_observe(graph) if name.startswith(looked_at)]
    with tempfile.TemporaryDirectory(prefix="leanear-observe-") as folder:
        encoder = Path(folder, "encoder.onnx")
        _write_encoder(graph, encoder, produced)
        return observe(encoder, names, ({"waveform": clip[None]} for clip in waveforms))


def _place_of_embedding(model: Any, decoder: Graph, file: str, offsets: dict[str, int]) -> EmbeddingPlace:
    weight = decoder.weights[EMBEDDING]
    place = partial(EmbeddingPlace, file, offsets[EMBEDDING], (model.config.vocab_size, model.config.d_model))
    if weight.dtype != np.uint8:
        return place("fp16" if weight.dtype == np.float16 else "fp32", None)
    blocks, length = weight.shape[1:] if len(weight.shape) == 3 else (1, weight.shape[1])
    return place("int8", Blocks(blocks, length, offsets[f"{EMBEDDING}.scales"]))


def _value_info(tensor: Tensor, half: Collection[str]) -> Any:
    kind = TensorProto.FLOAT16 if tensor.name in half else tensor.kind
    return helper.make_tensor_value_info(tensor.name, kind, tensor.shape)


def cache_sizes(
    model: Any, form: str = "portable", value_bytes: int = 4, observed: Mapping[str, Observed] | None = None
) -> Cache:
    """What the manifest says of keys and values: per decoder layer heads and widest width, and bytes.

    value_bytes: of one key or value, 2 in float16; observed: what is in 8 bits, a byte each; bytes_per_token,
    cross_bytes: of the widths that the model keeps; padded_bytes_per_token, padded_cross_bytes: as the graphs of `form`
    hold them, where narrower heads are filled up.
    """
    positions, layers = model.config.max_source_positions, []
    kept, padded, cross_kept, cross_padded = 0, 0, 0, 0
    for number, layer in enumerate(model.model.decoder.layers):
        (key, value), (cross_key, cross_value) = read_widths(layer.self_attn), read_widths(layer.encoder_attn)
        layers.append(
            CacheLayer(
                (len(key), max(key)),
                (len(value), max(value)),
                (len(cross_key), positions, max(cross_key)),
                (len(cross_value), positions, max(cross_value)),
            )
        )
        group, cross = cache_group(layer.self_attn, form), cache_group(layer.encoder_attn, form)
        kept += value_bytes * (sum(key) + sum(value))
        padded += value_bytes * len(group.heads) * (group.query_key_width + group.value_output_width)
        units = cross_units(observed, form, f"decoder.layers.{number}.encoder_attn")
        key_bytes, cross_bytes = (value_bytes if each is None else 1 for each in (units.keys, units.values))
        cross_kept += positions * (key_bytes * sum(cross_key) + cross_bytes * sum(cross_value))
        columns = key_bytes * cross.query_key_width + cross_bytes * cross.value_output_width
        cross_padded += positions * len(cross.heads) * columns
    return Cache(tuple(layers), kept, cross_kept, padded, cross_padded)
