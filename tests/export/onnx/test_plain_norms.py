"""Norms that have given scale and shift to the weights behind them: numbers against numpy in float64, and the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from leanear.export.ast.graph import export_ast, observe_ast
from leanear.export.onnx.eight_bit_weights import weight_of
from leanear.export.onnx.graph import Graph
from leanear.export.onnx.observed import Observed
from leanear.export.onnx.static_eight_bit import add_plain_norms

TOKENS, WIDTH, COLUMNS = 9, 128, 48
EPSILON = 1e-5
GENERATOR = np.random.default_rng(5)
SCALE = GENERATOR.standard_normal(WIDTH).astype(np.float32) * np.logspace(-2, 1, WIDTH, dtype=np.float32)
SHIFT = GENERATOR.standard_normal(WIDTH).astype(np.float32)
HIDDEN = GENERATOR.standard_normal((TOKENS, WIDTH)).astype(np.float32)
MATRICES = {name: GENERATOR.standard_normal((WIDTH, COLUMNS)).astype(np.float32) for name in ("a", "b", "c")}
BIASES = {name: GENERATOR.standard_normal(COLUMNS).astype(np.float32) for name in ("b", "c")}


def _graph(scale: np.ndarray = SCALE) -> Graph:
    graph = Graph()
    inputs = ["hidden", *(graph.weight(f"norm.{n}", (WIDTH,), lambda v=v: v) for n, v in (("s", scale), ("t", SHIFT)))]
    normed = graph.node("LayerNormalization", inputs, "normed", axis=-1, epsilon=EPSILON)
    weights = {
        name: graph.weight(f"{name}.w", matrix.T.shape if name == "c" else matrix.shape,
                           lambda m=matrix, n=name: m.T if n == "c" else m)
        for name, matrix in MATRICES.items()
    }  # fmt: skip
    biases = {name: graph.weight(f"{name}.b", (COLUMNS,), lambda b=bias: b) for name, bias in BIASES.items()}
    graph.node("MatMul", [normed, weights["a"]], "a")
    graph.node("Gemm", [normed, weights["b"], biases["b"]], "b")
    graph.node("Gemm", [normed, weights["c"], biases["c"]], "c", transB=1)
    return graph


def _normed(hidden: np.ndarray) -> np.ndarray:
    wide = hidden.astype(np.float64)
    return (wide - wide.mean(axis=1, keepdims=True)) / np.sqrt(wide.var(axis=1, keepdims=True) + EPSILON)


def _seen(scale: np.ndarray = SCALE) -> dict[str, Observed]:
    values = (_normed(HIDDEN) * scale + SHIFT).astype(np.float32)
    return {"normed": Observed(values.min(axis=0), values.max(axis=0))}


def _run(graph: Graph, path: Path) -> dict[str, np.ndarray]:
    source = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [TOKENS, WIDTH])
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [TOKENS, COLUMNS]) for name in MATRICES]
    graph.write(path, [source], results, "norms")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip(MATRICES, session.run(list(MATRICES), {"hidden": HIDDEN}), strict=True))


def test_products_are_the_same_and_ranges_are_those_of_the_norm_alone(tmp_path: Path) -> None:
    graph = _graph()
    plain = add_plain_norms(graph, _seen(), lambda node: weight_of(graph, node) is not None)
    for name, product in _run(graph, tmp_path / "m.onnx").items():
        expected = (_normed(HIDDEN) * SCALE + SHIFT) @ MATRICES[name] + BIASES.get(name, 0.0)
        np.testing.assert_allclose(product, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    alone = _normed(HIDDEN)[:, np.abs(SCALE) > 1e-3 * np.abs(SCALE).max()]
    assert plain["normed"].low == pytest.approx(alone.min(), rel=1e-3)
    assert plain["normed"].high == pytest.approx(alone.max(), rel=1e-3)


def test_a_channel_that_hardly_counts_does_not_set_the_range() -> None:
    scale = SCALE.copy()
    scale[7] = 1e-12
    graph = _graph(scale)
    plain = add_plain_norms(graph, _seen(scale), lambda node: weight_of(graph, node) is not None)
    assert np.abs([plain["normed"].low, plain["normed"].high]).max() <= np.abs(_normed(HIDDEN)).max() * 1.001


def test_a_norm_that_something_else_reads_stays(tmp_path: Path) -> None:
    graph = _graph()
    graph.node("Identity", ["normed"], "kept")
    before = _run(_graph(), tmp_path / "before.onnx")
    assert add_plain_norms(graph, _seen(), lambda node: weight_of(graph, node) is not None) == {}
    for name, product in _run(graph, tmp_path / "after.onnx").items():
        np.testing.assert_array_equal(product, before[name])


def test_a_norm_whose_scale_is_all_zero_stays(dense, extractor, clips, tmp_path: Path, monkeypatch) -> None:
    graph, nothing = _graph(np.zeros_like(SCALE)), np.zeros_like(SCALE)
    assert add_plain_norms(graph, _seen(nothing), lambda node: weight_of(graph, node) is not None) == {}
    for name, product in _run(graph, tmp_path / "m.onnx").items():
        expected = SHIFT.astype(np.float64) @ MATRICES[name] + BIASES.get(name, 0.0)
        np.testing.assert_allclose(product, np.tile(expected, (TOKENS, 1)), rtol=0, atol=1e-5 * np.abs(expected).max())
    monkeypatch.setattr("leanear.export.onnx.eight_bit_weights.SMALLEST_WEIGHT", 1)
    torch.nn.init.zeros_(dense.audio_spectrogram_transformer.layers[0].layernorm_after.weight)
    observed = observe_ast(dense, extractor, "openvino", clips)
    path = export_ast(dense, extractor, tmp_path / "int8.onnx", "openvino", precision="int8", observed=observed).path
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    features = extractor(clips[0], sampling_rate=16_000, return_tensors="pt")["input_values"]
    with torch.inference_mode():
        expected = dense(features).logits.numpy()
    logits = session.run(None, {session.get_inputs()[0].name: clips[0][None].astype(np.float32)})[0]
    assert np.abs(logits - expected).max() < 0.1 * np.ptp(expected)


def test_every_norm_before_integers_is_plain_and_rounded_at_once(
    dense, extractor, clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leanear.export.onnx.eight_bit_weights.SMALLEST_WEIGHT", 1)  # so small is the model
    observed = observe_ast(dense, extractor, "openvino", clips)
    path = export_ast(dense, extractor, tmp_path / "m.onnx", "openvino", precision="int8", observed=observed).path
    model = onnx.load(str(path))
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    layers = [n for n in model.graph.node if n.op_type == "LayerNormalization" and n.name.startswith("layers.")]
    rounded = [n for n in layers if (values[n.input[1]] == 1).all() and (values[n.input[2]] == 0).all()]
    assert len(layers) - len(rounded) <= 1  # that of the last attention, which is in float32
    for norm in rounded:
        assert [n.op_type for n in model.graph.node if norm.output[0] in n.input] == ["QuantizeLinear"]
