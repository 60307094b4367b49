"""Graphs in float16: what is rounded and what is not, and what they compute; the form for TensorRT's fused kernels."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from leanear.export.ast.graph import export_ast, too_large_in_ast
from leanear.export.onnx.graph import Graph
from leanear.export.onnx.half_precision import add_half_precision
from leanear.export.onnx.heads import fused_width
from leanear.export.whisper.golden_speech import collect_golden_speech
from leanear.export.whisper.graph import export_whisper
from leanear.export.whisper_artifact import too_large_in_whisper, written_feeds
from leanear.runtimes.errors import BadInput
from leanear.runtimes.speech.encoder_windows import FULL, choose_windows
from tests.export.whisper_cases import WINDOW_SAMPLES, make_extractor, noise, small_speech, small_whisper
from tests.whisper_models import make_whisper


def _types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input, *inferred.output)}


@pytest.mark.parametrize("kind", ["dense", "slim", "narrow"])
def test_an_ast_in_float16_says_what_the_model_says(
    kind: str, extractor, clips, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    exported = export_ast(model, extractor, tmp_path / "model.onnx", "tensorrt", precision="fp16")
    assert exported.precision == "fp16"
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        features = extractor(clips[0], sampling_rate=16000, return_tensors="pt")["input_values"]
        expected = model(features).logits.numpy()
    (logits,) = session.run(None, {"waveform": clips[0][None]})
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-2 * np.abs(expected).max())


def test_norms_softmax_and_front_end_stay_in_float32(slim, extractor, tmp_path: Path) -> None:
    exported = export_ast(slim, extractor, tmp_path / "model.onnx", "tensorrt", precision="fp16")
    model = onnx.load(str(exported.path))
    types = _types(model)
    for node in model.graph.node:
        kind = types.get(node.output[0])
        if node.op_type in ("LayerNormalization", "Softmax") or node.name.startswith("front_end.l"):
            assert kind == TensorProto.FLOAT, node.name
        elif node.op_type in ("Gemm", "Gelu") and node.output[0] != "logits":
            assert kind == TensorProto.FLOAT16, node.name
    assert types["waveform"] == types["logits"] == TensorProto.FLOAT


def test_heads_are_of_one_width_that_a_fused_kernel_takes(slim, extractor, tmp_path: Path) -> None:
    exported = export_ast(slim, extractor, tmp_path / "model.onnx", "tensorrt")
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in onnx.shape_inference.infer_shapes(onnx.load(str(exported.path))).graph.value_info
    }
    query, value = shapes["layers.0.attention.query.split"], shapes["layers.0.attention.value.split"]
    assert query == value
    assert query[3] % 16 == 0


@pytest.mark.parametrize(("widths", "expected"), [((64, 64), 64), ((8, 8), 16), ((16, 48), 48), ((20, 12), 32)])
def test_fused_width(widths: tuple[int, int], expected: int) -> None:
    assert fused_width(*widths) == expected


def test_a_whisper_in_float16_keeps_its_keys_and_values_in_float16(tmp_path: Path) -> None:
    exported = export_whisper(
        make_whisper(), make_extractor(), tmp_path / "encoder.onnx", tmp_path / "decoder.onnx", "tensorrt", "fp16"
    )
    assert exported.embedding.precision == "fp16"
    decoder = onnx.load(str(exported.decoder.path), load_external_data=False)
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*decoder.graph.input, *decoder.graph.output)}
    for name, kind in kinds.items():
        cached = name.startswith(("self_", "cross_", "new_"))
        wanted = TensorProto.FLOAT16 if cached else TensorProto.INT64 if name == "positions" else TensorProto.FLOAT
        assert kind == wanted, name
    encoder = onnx.load(str(exported.encoder.path), load_external_data=False)
    assert {v.type.tensor_type.elem_type for v in encoder.graph.output} == {TensorProto.FLOAT16}


def test_a_weight_that_float16_cannot_hold_is_an_error_that_names_it(tmp_path: Path) -> None:
    graph = Graph()
    graph.node("MatMul", ["input", graph.weight("large", (2, 2), lambda: np.full((2, 2), 1e5, np.float32))], "output")
    add_half_precision(graph, ["input"], ["output"])
    tensors = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2])] for name in ("input", "output")]
    with pytest.raises(BadInput, match="large has a weight of 1e"):
        graph.write(tmp_path / "model.onnx", *tensors, "graph")


@pytest.mark.parametrize("form", ["portable", "onnxruntime", "openvino"])
def test_float16_is_refused_for_runtimes_that_compute_in_float32(form: str, slim, extractor, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="'fp16'"):
        export_ast(slim, extractor, tmp_path / "model.onnx", form, precision="fp16")


def _enlarged(model, factor: float):
    """The model with the first layer's wide tensor so many times as large, and all else as it was: Gelu of what is
    far from zero is linear, or nothing."""
    model = copy.deepcopy(model)
    mlp = model.audio_spectrogram_transformer.layers[0].mlp
    with torch.no_grad():
        mlp.fc1.weight.mul_(factor)
        mlp.fc1.bias.mul_(factor)
        mlp.fc2.weight.div_(factor)
    return model


def test_what_float16_does_not_hold_stays_in_float32(dense, extractor, clips, tmp_path: Path) -> None:
    """By ONNX's own reference evaluator, whose float16 is numpy's: ONNX Runtime computes it in float32."""
    model = _enlarged(dense, 6e4)
    with torch.inference_mode():
        features = extractor(clips[0], sampling_rate=16000, return_tensors="pt")["input_values"]
        expected = model(features).logits.numpy()
    found = too_large_in_ast(model, extractor, "tensorrt", clips)
    assert set(found) == {"layers.0.mlp.wide", "layers.0.mlp.active"}
    assert min(found.values()) > 65504 / 2
    arguments = (model, extractor, tmp_path / "model.onnx", "tensorrt")
    export_ast(*arguments, precision="fp16", too_large=found)
    evaluator = ReferenceEvaluator(str(tmp_path / "model.onnx"))
    (logits,) = evaluator.run(None, {"waveform": clips[0][None]})
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-2 * np.abs(expected).max())
    types = _types(onnx.load(str(tmp_path / "model.onnx")))
    assert types["layers.0.mlp.wide"] == types["layers.0.mlp.active"] == TensorProto.FLOAT
    assert types["layers.1.mlp.wide"] == TensorProto.FLOAT16
    export_ast(*arguments, precision="fp16")
    with np.errstate(all="ignore"):
        (logits,) = ReferenceEvaluator(str(tmp_path / "model.onnx")).run(None, {"waveform": clips[0][None]})
    assert not np.isfinite(logits).all()


def test_what_float16_does_not_hold_in_a_decoder_stays_in_float32(tmp_path: Path) -> None:
    """Its logits after a clip's tokens are torch's, by the reference evaluator; without it they are no numbers."""
    model, extractor, clips = small_whisper("stock"), make_extractor(), [noise(20_000)]
    layer = model.model.decoder.layers[0]
    with torch.no_grad():
        layer.fc1.weight.mul_(4e4)
        layer.fc1.bias.mul_(4e4)
        layer.fc2.weight.div_(4e4)
    speech = small_speech(model)
    windows = choose_windows(FULL, WINDOW_SAMPLES, 16_000, 320)
    golden = collect_golden_speech(model, extractor, clips, speech.decoding, windows)
    found = too_large_in_whisper(model, extractor, "tensorrt", clips, golden)
    assert set(found) == {"decoder.layers.0.wide", "decoder.layers.0.active"}

    def logits(folder: Path, too_large) -> np.ndarray:
        folder.mkdir()
        exported = export_whisper(
            model, extractor, folder / "encoder.onnx", folder / "decoder.onnx", "tensorrt", "fp16", too_large=too_large
        )
        decoder = onnx.load(str(exported.decoder.path))
        wide = _types(decoder)["decoder.layers.0.wide"]
        assert wide == (TensorProto.FLOAT if too_large else TensorProto.FLOAT16)
        assert _types(decoder)["decoder.layers.1.wide"] == TensorProto.FLOAT16
        kinds = {v.name: helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in decoder.graph.input}
        feed = next(written_feeds(model, export_whisper(model, extractor, *paths, "tensorrt"), golden))
        with np.errstate(all="ignore"):
            return ReferenceEvaluator(decoder).run(
                ["logits"], {name: value.astype(kinds[name]) for name, value in feed.items()}
            )[0]

    paths = tmp_path / "encoder.onnx", tmp_path / "decoder.onnx"
    expected = golden.logits[0, -1]
    kept = logits(tmp_path / "kept", found)[0, golden.speech.columns]
    np.testing.assert_allclose(kept, expected, rtol=0, atol=2e-2 * np.abs(expected).max())
    assert not np.isfinite(logits(tmp_path / "lost", {})).all()


def test_nothing_is_kept_where_all_fits(dense, extractor, clips) -> None:
    assert too_large_in_ast(dense, extractor, "tensorrt", clips) == {}


def test_an_output_in_float16_cannot_be_too_large() -> None:
    graph = Graph()
    graph.node("Neg", ["input"], "output")
    with pytest.raises(BadInput, match="output holds more than float16 does"):
        add_half_precision(graph, ["input"], ["output"], half=["output"], too_large=["output"])
