"""A classifier whose products are of 8-bit integers in observed ranges: numbers, graphs, parity, attention."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from leanear.export.artifact import export_artifact
from leanear.export.ast.graph import observe_ast
from leanear.export.onnx.attention import add_eight_bit_group, rows_at_a_time
from leanear.export.onnx.graph import FORMS, Graph
from leanear.export.onnx.observed import Observed
from leanear.export.onnx.static_eight_bit import signed_scale, unsigned_range
from leanear.export.options import ExportOptions
from leanear.export.parity import prove_parity_here
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.choose import choose_runtime
from leanear.runtimes.errors import BadInput, ParityFailed
from leanear.runtimes.files import sha256_file
from leanear.runtimes.records import write
from leanear.runtimes.sessions import SessionOptions


@pytest.fixture(autouse=True)
def _all_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' models are so small that all their weights would be kept."""
    monkeypatch.setattr("leanear.export.onnx.eight_bit_weights.SMALLEST_WEIGHT", 1)


def _calm(model: torch.nn.Module) -> torch.nn.Module:
    """Its attention is not so sharp that a little noise makes it look elsewhere, as a trained model's."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.mul_(0.3)
    return model


def _export(model: Any, extractor: Any, clips: list[np.ndarray], folder: Path, form: str) -> Path:
    return export_artifact(
        model,
        extractor,
        clips,
        folder,
        ExportOptions(form=form, source={}, made_from={}, precision="int8", quantiser_waveforms=clips),
    )


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0), (-1e-30, 1e-30)])
def test_ranges_hold_all_that_was_seen_and_zero(low: float, high: float) -> None:
    seen = Observed(np.array([low], np.float32), np.array([high], np.float32))
    scale, zero = unsigned_range(seen)
    for value in (low, high, 0.0):
        integer = np.clip(np.rint(value / scale) + zero, 0, 255)
        assert abs((integer - zero) * scale - value) <= scale * 1.001
    assert (np.clip(np.rint(np.array([low, high]) / signed_scale(seen)), -127, 127) * signed_scale(seen)) == (
        pytest.approx([low, high], abs=float(signed_scale(seen)))
    )


@pytest.mark.parametrize("form", FORMS)
def test_observed_are_the_models_own_activations(form: str, slim, extractor, clips, tmp_path: Path) -> None:
    """The oracle is torch's hooks: what layer norms and attention blocks of the model itself put out."""
    seen: dict[str, list[torch.Tensor]] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: seen.setdefault(name, []).append(output[0].detach())

    layers = slim.audio_spectrogram_transformer.layers
    for number, layer in enumerate(layers[:-1]):
        layer.layernorm_before.register_forward_hook(keep(f"layers.{number}.layernorm_before"))
        layer.layernorm_after.register_forward_hook(keep(f"layers.{number}.layernorm_after"))
    with torch.inference_mode():
        for clip in clips:
            slim(extractor(clip, sampling_rate=16_000, return_tensors="pt")["input_values"])
    observed = observe_ast(slim, extractor, form, clips)
    assert len(seen) == 4
    for name, outputs in seen.items():
        rows = torch.cat(outputs)
        np.testing.assert_allclose(observed[name].lows, rows.amin(dim=0).numpy(), rtol=1e-3)
        np.testing.assert_allclose(observed[name].highs, rows.amax(dim=0).numpy(), rtol=1e-3)


@pytest.mark.parametrize("kind", ["dense", "slim", "narrow"])
@pytest.mark.parametrize("form", FORMS)
def test_proved_with_the_noise_in_the_manifest(
    form: str, kind: str, request: pytest.FixtureRequest, extractor, clips, tmp_path: Path
) -> None:
    model = _calm(request.getfixturevalue(kind))
    folder = _export(model, extractor, clips, tmp_path / "int8", form)
    parity = prove_parity_here(folder)
    assert parity.noise is not None
    assert 1e-4 < parity.noise <= parity.bound == 0.1
    assert "products in 8 bits move the logits by" in parity.sentence
    assert f"of {len(clips)} clips is the checkpoint's" in parity.sentence
    artifact = read_artifact(folder)
    assert artifact.precisions == {"int8"}
    initializers = onnx.load(str(artifact.graphs["classifier"])).graph.initializer
    wide = [tensor for tensor in initializers if len(tensor.dims) == 2 and tensor.name.startswith("layers.")]
    assert wide
    assert {tensor.data_type for tensor in wide} == {TensorProto.INT8}
    kept = [tensor for tensor in initializers if tensor.name.startswith(("front_end.", "classifier.", "layernorm"))]
    assert TensorProto.INT8 not in {tensor.data_type for tensor in kept}


def test_integers_that_do_not_fit_fail_the_proof(dense, extractor, clips, tmp_path: Path) -> None:
    quiet = [1e-4 * clip for clip in clips]
    folder = export_artifact(
        _calm(dense),
        extractor,
        clips,
        tmp_path / "int8",
        ExportOptions(form="openvino", source={}, made_from={}, precision="int8", quantiser_waveforms=quiet[:1]),
    )
    artifact = read_artifact(folder)
    graph = onnx.load(str(artifact.graphs["classifier"]))
    for tensor in graph.graph.initializer:
        if tensor.name.endswith(".step"):
            tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) / 64).tobytes()
    onnx.save(graph, str(artifact.graphs["classifier"]))
    changed = sha256_file(artifact.graphs["classifier"])
    graph = replace(artifact.manifest.graphs["classifier"], sha256=changed)
    write(folder / "manifest.json", replace(artifact.manifest, graphs={"classifier": graph}))
    with pytest.raises(ParityFailed, match=r"products in 8 bits move the logits by .* the bound is 0.1"):
        prove_parity_here(folder)
    assert read_artifact(folder).manifest.parity is None


@pytest.mark.parametrize("precision", ["int8", "int8-bf16"])
def test_openvino_classifies_in_8_bits(precision: str, slim, extractor, clips, tmp_path: Path) -> None:
    runtime = choose_runtime("openvino")
    if precision not in runtime.precisions():
        pytest.skip(f"this CPU does not compute in {precision}")
    model = _calm(slim)
    artifact = read_artifact(_export(model, extractor, clips, tmp_path / "int8", "openvino"))
    session = runtime.load(artifact, SessionOptions(threads=1, precision=precision))
    for clip in clips:
        features = extractor(clip, sampling_rate=16_000, return_tensors="pt")["input_values"]
        with torch.inference_mode():
            expected = model(features).logits[0].numpy()
        assert np.sqrt(((session.run(clip) - expected) ** 2).mean()) < 0.15 * expected.std()
    session.close()


def test_same_model_and_clips_give_the_same_bytes(slim, extractor, clips, tmp_path: Path) -> None:
    for form in ("onnxruntime", "openvino"):
        first, second = (_export(slim, extractor, clips, tmp_path / f"{form}{n}", form) for n in (1, 2))
        assert (first / "model.onnx").read_bytes() == (second / "model.onnx").read_bytes()


def test_integers_of_tensorrt_are_around_zero_and_all_else_is_half(slim, extractor, clips, tmp_path: Path) -> None:
    """TensorRT takes signed integers whose zero is 0, and a strongly typed network computes in its graph's types."""
    graph = onnx.load(str(_export(slim, extractor, clips, tmp_path / "a", "tensorrt") / "model.onnx")).graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        assert values[node.input[1]].data_type == TensorProto.FLOAT16
        zero = values[node.input[2]]
        assert zero.data_type == TensorProto.INT8
        assert not np.any(onnx.numpy_helper.to_array(zero))
    assert TensorProto.INT32 not in {tensor.data_type for tensor in values.values()}


def test_no_clip_is_refused(slim, extractor, clips, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="precision 'int8': at least one clip is needed"):
        export_artifact(
            slim,
            extractor,
            clips,
            tmp_path / "a",
            ExportOptions(form="openvino", source={}, made_from={}, precision="int8"),
        )


@pytest.mark.parametrize(("heads", "width", "value_width", "tokens"), [(2, 8, 12, 70), (3, 16, 4, 33), (1, 4, 4, 5)])
@pytest.mark.parametrize("sharpness", [0.2, 4.0])
@pytest.mark.parametrize("room", [1, 12])
def test_attention_of_integers_is_near_that_of_floats(
    heads: int, width: int, value_width: int, tokens: int, sharpness: float, room: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Diffuse and sharp attention alike, of as many tokens as the graph has room for and of a twelfth.

    The oracle is torch's scaled_dot_product_attention in float64.
    """
    most = room * tokens
    monkeypatch.setattr("leanear.export.onnx.attention.CACHED_BYTES", 32 * heads * most * 4)
    generator = np.random.default_rng(tokens)
    widths = {"query": width, "key": width, "value": value_width}
    feeds = {name: generator.standard_normal((tokens, heads * each)) for name, each in widths.items()}
    feeds["query"] *= sharpness / np.sqrt(width)
    feeds = {name: values.astype(np.float32) for name, values in feeds.items()}
    seen = {name: Observed(v.min(axis=0), v.max(axis=0)) for name, v in feeds.items()}
    graph = Graph()
    sizes = heads, width, value_width
    context = add_eight_bit_group(graph, *feeds, sizes, most, seen, "attention", any_count=room > 1)
    declared = [helper.make_tensor_value_info(name, TensorProto.FLOAT, v.shape) for name, v in feeds.items()]
    result = helper.make_tensor_value_info(context, TensorProto.FLOAT, [tokens, heads * value_width])
    graph.write(tmp_path / "a.onnx", declared, [result], "a")
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    split = {
        name: torch.tensor(v, dtype=torch.float64).view(tokens, heads, -1).movedim(0, 1) for name, v in feeds.items()
    }
    expected = torch.nn.functional.scaled_dot_product_attention(*split.values(), scale=1.0)
    expected = expected.movedim(0, 1).reshape(tokens, -1).numpy()
    difference = session.run(None, feeds)[0] - expected
    assert 0 < np.sqrt((difference**2).mean()) < 0.05 * expected.std()


def test_scores_of_some_rows_at_a_time_fit_the_cache() -> None:
    assert rows_at_a_time(12, 1214) == 64
    assert rows_at_a_time(12, 100) == 100
    assert rows_at_a_time(20, 100_000) == 16
