"""The exported graph against the model in torch, on two runtimes, and what its file promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

from leanear.export.ast.graph import FORMS, export_ast
from leanear.export.onnx.graph import Graph
from leanear.export.onnx.heads import HeadGroup, group_heads, head_rows
from leanear.runtimes.errors import BadInput
from tests.export.conftest import SETTINGS


def _torch_logits(model: torch.nn.Module, extractor: ASTFeatureExtractor, clip: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(extractor(clip, sampling_rate=16000, return_tensors="pt")["input_values"]).logits.numpy()


def _onnxruntime_logits(path: Path, name: str, value: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value})[0]


def _openvino_logits(path: Path, name: str, value: np.ndarray) -> np.ndarray:
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
    compiled = openvino.Core().compile_model(str(path), "CPU", hints)
    return compiled({name: value})[0]


@pytest.mark.parametrize("kind", ["dense", "slim", "narrow"])
@pytest.mark.parametrize("form", FORMS)
def test_computes_what_the_model_computes(
    kind: str, form: str, extractor, clips, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    exported = export_ast(model, extractor, tmp_path / "model.onnx", form)
    for clip in clips:
        expected = _torch_logits(model, extractor, clip)
        np.testing.assert_allclose(
            _onnxruntime_logits(exported.path, "waveform", clip[None]),
            expected,
            rtol=0,
            atol=1e-5 * np.abs(expected).max(),
        )


@pytest.mark.parametrize("kind", ["dense", "slim", "narrow"])
@pytest.mark.parametrize("form", ["portable", "openvino"])
def test_openvino_computes_the_forms_of_plain_operators(
    kind: str, form: str, extractor, clips, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    exported = export_ast(model, extractor, tmp_path / "model.onnx", form)
    for clip in clips:
        expected = _torch_logits(model, extractor, clip)
        np.testing.assert_allclose(
            _openvino_logits(exported.path, "waveform", clip[None]),
            expected,
            rtol=0,
            atol=1e-5 * np.abs(expected).max(),
        )


@pytest.mark.parametrize("form", ["portable", "onnxruntime", "openvino"])
def test_computes_the_same_with_heads_in_groups(
    form: str, slim, extractor, clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leanear.export.onnx.heads.GROUP_MACS", 0)
    exported = export_ast(slim, extractor, tmp_path / "model.onnx", form)
    assert "layers.1.attention.group2.attended" in {node.name for node in onnx.load(str(exported.path)).graph.node}
    expected = _torch_logits(slim, extractor, clips[0])
    np.testing.assert_allclose(
        _onnxruntime_logits(exported.path, "waveform", clips[0][None]),
        expected,
        rtol=0,
        atol=1e-5 * np.abs(expected).max(),
    )


@pytest.mark.parametrize("form", FORMS)
def test_takes_features_when_asked(form: str, slim, extractor, clips, tmp_path: Path) -> None:
    exported = export_ast(slim, extractor, tmp_path / "model.onnx", form, input="features")
    features = extractor(clips[0], sampling_rate=16000, return_tensors="np")["input_values"]
    expected = _torch_logits(slim, extractor, clips[0])
    np.testing.assert_allclose(
        _onnxruntime_logits(exported.path, "features", features), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


def test_scale_is_the_models_own_and_not_derived_from_a_width(slim, extractor, clips, tmp_path: Path) -> None:
    for layer in slim.audio_spectrogram_transformer.layers:
        layer.attention.scaling = 0.61
    exported = export_ast(slim, extractor, tmp_path / "model.onnx")
    expected = _torch_logits(slim, extractor, clips[0])
    np.testing.assert_allclose(
        _onnxruntime_logits(exported.path, "waveform", clips[0][None]),
        expected,
        rtol=0,
        atol=1e-5 * np.abs(expected).max(),
    )


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_shallow_models_and_models_without_projection_biases(
    layers: int, qkv_bias: bool, extractor, clips, tmp_path: Path
) -> None:
    torch.manual_seed(layers)
    config = ASTConfig(**{**SETTINGS, "num_hidden_layers": layers, "qkv_bias": qkv_bias, "initializer_range": 0.3})
    model = ASTForAudioClassification(config).eval()
    exported = export_ast(model, extractor, tmp_path / "model.onnx")
    expected = _torch_logits(model, extractor, clips[0])
    np.testing.assert_allclose(
        _onnxruntime_logits(exported.path, "waveform", clips[0][None]),
        expected,
        rtol=0,
        atol=1e-5 * np.abs(expected).max(),
    )


@pytest.mark.parametrize("form", ["portable", "openvino"])
def test_is_valid_onnx_of_plain_operators(form: str, slim, extractor, tmp_path: Path) -> None:
    exported = export_ast(slim, extractor, tmp_path / "model.onnx", form)
    onnx.checker.check_model(str(exported.path), full_check=True)
    assert {node.domain for node in onnx.load(str(exported.path)).graph.node} == {""}


@pytest.mark.parametrize("form", FORMS)
def test_same_model_gives_the_same_bytes(form: str, slim, extractor, tmp_path: Path) -> None:
    first = export_ast(slim, extractor, tmp_path / "first.onnx", form).path.read_bytes()
    assert export_ast(slim, extractor, tmp_path / "second.onnx", form).path.read_bytes() == first
    # Protobuf's own encoder agrees on what the file says.
    assert onnx.load_from_string(first).ByteSize() == len(first)


def test_slim_file_is_smaller(dense, slim, extractor, tmp_path: Path) -> None:
    sizes = [export_ast(model, extractor, tmp_path / "m.onnx").path.stat().st_size for model in (dense, slim)]
    assert sizes[1] < sizes[0]


def test_weights_are_made_one_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive.remove(id(self))

    def make() -> np.ndarray:
        array = np.zeros(1000, dtype=np.float32).view(Counted)
        alive.append(id(array))
        assert len(alive) == 1
        return array

    graph = Graph()
    for number in range(5):
        graph.weight(f"weight.{number}", (1000,), make)
    graph.write(tmp_path / "weights.onnx", [], [], "weights")
    assert not alive
    assert len(onnx.load(str(tmp_path / "weights.onnx")).graph.initializer) == 5


def test_weight_that_is_not_as_promised_is_refused(tmp_path: Path) -> None:
    graph = Graph()
    graph.weight("weight", (3,), lambda: np.zeros(4, dtype=np.float32))
    with pytest.raises(ValueError, match="'weight': promised"):
        graph.write(tmp_path / "weights.onnx", [], [], "weights")


def test_file_beyond_two_gigabytes_is_refused_before_any_weight_is_made(tmp_path: Path) -> None:
    graph = Graph()
    graph.weight("weight", (1 << 29,), lambda: pytest.fail("made"))
    with pytest.raises(BadInput, match="less than 2 GiB"):
        graph.write(tmp_path / "weights.onnx", [], [], "weights")


def test_rows_of_heads_are_filled_up_with_zeros() -> None:
    stacked = np.arange(1, 7, dtype=np.float32)
    np.testing.assert_array_equal(head_rows(stacked, [1, 3, 2], [(2, 3), (0, 2), (1, 3)]), [5, 6, 0, 1, 0, 2, 3, 4])
    assert head_rows(stacked, [3, 3], [(0, 3), (1, 3)]) is stacked


def test_heads_of_equal_widths_are_one_group() -> None:
    assert group_heads([8] * 4, [6] * 4, 1214, 768) == (HeadGroup((0, 1, 2, 3), 8, 6),)


def test_heads_are_filled_up_where_that_is_less_work_than_another_group() -> None:
    widths = [30, 8, 30, 32]
    # Many tokens: even two columns are more work than a group. Few: a group is more work than any column.
    assert group_heads(widths, widths, 1214, 768) == (
        HeadGroup((1,), 8, 8), HeadGroup((0, 2), 30, 30), HeadGroup((3,), 32, 32),
    )  # fmt: skip
    assert group_heads(widths, widths, 20, 64) == (HeadGroup((0, 1, 2, 3), 32, 32),)


@pytest.mark.parametrize(
    ("change", "message"), [({"form": "fast"}, "form 'fast'"), ({"input": "video"}, "input 'video'")]
)
def test_refuses_what_it_cannot_export(change: dict, message: str, dense, extractor, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        export_ast(**{"model": dense, "feature_extractor": extractor, "out": tmp_path / "m.onnx", **change})
    assert not list(tmp_path.iterdir())
