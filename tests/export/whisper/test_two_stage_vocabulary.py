"""Logits in two stages: the likeliest and all that are no text are those of one product, and so is every word."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from onnx import TensorProto, helper

from leanear.export.onnx.graph import Graph
from leanear.export.parity import prove_parity_here
from leanear.export.whisper import speech_parity, two_stage_vocabulary
from leanear.export.whisper.two_stage_vocabulary import TwoStages, add_two_stage_logits, two_stages
from leanear.runtimes.backends.embedding import Embedding
from leanear.runtimes.errors import ParityFailed
from tests.export.whisper_cases import small_artifact, small_whisper

TEXT, SPECIAL, WIDTH, RESCORED = 900, 70, 96, 20


def product(rows: np.ndarray, hidden: np.ndarray, folder: Path, form: str) -> np.ndarray:
    """Logits of a graph of two stages, (R, V)."""
    graph = Graph()
    table = graph.weight("table", rows.shape, lambda: rows)
    add_two_stage_logits(graph, "hidden", table, TwoStages(RESCORED, TEXT), form)
    assert graph.weights[table].dtype == (np.float16 if (rows == rows.astype(np.float16)).all() else np.float32)
    source = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["rows", WIDTH])
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", len(rows)])
    graph.write(folder / "graph.onnx", [source], [result], "logits")
    if form == "openvino":
        compiled = openvino.Core().compile_model(str(folder / "graph.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return compiled({"hidden": hidden})["logits"]
    session = onnxruntime.InferenceSession(str(folder / "graph.onnx"), providers=["CPUExecutionProvider"])
    return session.run(None, {"hidden": hidden})[0]


@pytest.mark.parametrize("form", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("rows", "published"), [(1, np.float32), (3, np.float32), (2, np.float16)])
def test_what_is_likeliest_is_exact_and_the_rest_is_near(rows: int, published: type, form: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weights = (0.1 * generator.standard_normal((TEXT + SPECIAL, WIDTH))).astype(published).astype(np.float32)
    hidden = generator.standard_normal((rows, WIDTH)).astype(np.float32)
    found, expected = product(weights, hidden, tmp_path, form), hidden.astype(np.float64) @ weights.T.astype(np.float64)
    np.testing.assert_allclose(found[:, TEXT:], expected[:, TEXT:], atol=1e-5)
    for said, wanted in zip(found[:, :TEXT], expected[:, :TEXT], strict=True):
        likeliest = np.argsort(-wanted)[: RESCORED // 3]
        np.testing.assert_allclose(said[likeliest], wanted[likeliest], atol=1e-5)
        assert said.argmax() == wanted.argmax()
        rough = np.abs(said - wanted)
        assert (rough > 1e-5).sum() >= TEXT - RESCORED - 40, "most were not rescored"
        assert rough.max() < 0.1 * wanted.std()


@pytest.mark.parametrize(
    ("changes", "there"),
    [
        ({}, True),
        ({"form": "openvino"}, True),
        ({"form": "portable"}, False),
        ({"form": "tensorrt"}, False),
        ({"precision": "int8"}, False),
        ({"vocabulary": 9000, "first_special": 8000}, False),
    ],
)
def test_only_large_vocabularies_in_float32_on_onnx_runtime(changes: dict, there: bool) -> None:
    given = {"vocabulary": 51864, "first_special": 50256, "form": "onnxruntime", "precision": "fp32"}
    expected = TwoStages(two_stage_vocabulary.RESCORED, 50256) if there else None
    assert two_stages(**{**given, **changes}) == expected


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages for a vocabulary of a few hundred tokens."""
    monkeypatch.setattr(two_stage_vocabulary, "SMALLEST_VOCABULARY", 16)
    monkeypatch.setattr(two_stage_vocabulary, "RESCORED", 48)
    monkeypatch.setattr(speech_parity, "SURELY_RESCORED", 12)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("form", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", ["stock", "ragged"])
def test_an_artifact_of_two_stages_is_proved(kind: str, form: str, tmp_path: Path) -> None:
    artifact = small_artifact(tmp_path / "artifact", kind, form)
    stages = artifact.speech.output.two_stages
    assert stages.rescored == 48
    assert stages.exact_from == artifact.speech.decoding.text_tokens
    parity = prove_parity_here(artifact.folder)
    assert parity.relative_difference < 1e-4
    assert parity.same_tokens == parity.tokens


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("form", ["onnxruntime", "openvino"])
def test_a_table_that_was_published_in_half_is_stored_so(form: str, tmp_path: Path) -> None:
    model = small_whisper("stock")
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        table.copy_(table.half().float())
    artifact = small_artifact(tmp_path / "artifact", form=form, model=model)
    assert artifact.speech.embedding.precision == "fp16"
    rows = np.empty((1, len(table), table.shape[1]), np.float32)
    Embedding(artifact).read(np.arange(len(table))[None], rows)
    np.testing.assert_array_equal(rows[0], table.detach().numpy())
    parity = prove_parity_here(artifact.folder)
    assert parity.relative_difference < 1e-4
    assert parity.same_tokens == parity.tokens


@pytest.mark.usefixtures("small")
def test_logits_that_were_not_rescored_fail_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_stage_vocabulary, "RESCORED", 1)
    artifact = small_artifact(tmp_path / "artifact", "stock", "onnxruntime")
    with pytest.raises(ParityFailed, match="logits differ"):
        prove_parity_here(artifact.folder)


@pytest.mark.usefixtures("small")
def test_sums_that_rough_logits_move_fail_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = small_artifact(tmp_path / "artifact", "stock", "onnxruntime")
    monkeypatch.setattr(speech_parity, "ROUGH_SUMS_BOUND", 1e-7)
    with pytest.raises(
        ParityFailed, match=r"golden clip 0: the sum of all probabilities is \S+ nats off; the bound is 1e-07"
    ):
        prove_parity_here(artifact.folder)
