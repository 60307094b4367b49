"""The artifact folder and the proof of parity, which has to be able to fail."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from leanear.export.artifact import export_artifact
from leanear.export.options import ExportOptions
from leanear.export.parity import compare_logits, prove_parity, prove_parity_here
from leanear.runtimes.artifact import read_artifact, read_golden
from leanear.runtimes.errors import BadInput, ParityFailed
from leanear.runtimes.files import sha256_file
from leanear.runtimes.process.isolation import code_command

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(slim, extractor, clips, tmp_path: Path) -> Path:
    return export_artifact(
        slim,
        extractor,
        clips,
        tmp_path / "artifact",
        ExportOptions(form="onnxruntime", source={"name": "small"}, made_from={"checkpoint": "0" * 64}),
    )


def _change_weight(folder: Path, name: str, change) -> None:
    """Change one weight and let the manifest agree, as a faulty exporter would."""
    path = folder / "model.onnx"
    model = onnx.load(str(path))
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))
    onnx.save(model, str(path))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["graphs"]["classifier"]["sha256"] = sha256_file(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _scale_unevenly(weight: np.ndarray) -> np.ndarray:
    """A change that no normalisation hides."""
    return weight * np.linspace(0.8, 1.1, weight.size, dtype=np.float32).reshape(weight.shape)


def test_artifact_reads_back_and_says_what_the_model_is(folder: Path, slim, extractor, clips) -> None:
    artifact = read_artifact(folder)
    manifest = artifact.manifest
    assert sorted(path.name for path in folder.iterdir()) == ["golden.npz", "manifest.json", "model.onnx"]
    assert artifact.labels == tuple(slim.config.id2label[number] for number in range(5))
    assert artifact.sample_rate_hz == 16000
    assert manifest.parity is None
    assert manifest.made_from == {"checkpoint": "0" * 64}
    assert manifest.model["name"] == "small"
    assert manifest.model["parameters"] == slim.num_parameters()
    assert manifest.model["checkpoint_bytes"] == 4 * slim.num_parameters()
    assert manifest.graphs["classifier"].bytes == artifact.graph_bytes == artifact.graphs["classifier"].stat().st_size
    assert manifest.input.window_samples == 9840
    golden = read_golden(artifact)
    for clip, waveform, logits in zip(clips, golden.waveforms, golden.logits, strict=True):
        np.testing.assert_array_equal(waveform, clip)
        with torch.inference_mode():
            features = extractor(clip, sampling_rate=16000, return_tensors="pt")["input_values"]
            np.testing.assert_array_equal(logits, slim(features).logits[0].numpy())


def test_same_arguments_give_the_same_bytes(folder: Path, slim, extractor, clips, tmp_path: Path) -> None:
    again = export_artifact(
        slim,
        extractor,
        clips,
        tmp_path / "again",
        ExportOptions(form="onnxruntime", source={"name": "small"}, made_from={"checkpoint": "0" * 64}),
    )
    for path in folder.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_failed_export_leaves_nothing(slim, extractor, tmp_path: Path) -> None:
    for clips, message in (
        ([], "at least one"),
        ([np.zeros(239, np.float32)], "golden clip 0"),
        ([np.zeros((2, 999))], "mono"),
    ):
        with pytest.raises(BadInput, match=message):
            export_artifact(
                slim, extractor, clips, tmp_path / "a", ExportOptions(form="portable", source={}, made_from={})
            )
    assert not list(tmp_path.iterdir())


def test_proved_figures_are_in_the_manifest(folder: Path) -> None:
    parity = prove_parity(folder, dense_graph_bytes=10**9)
    assert 0 < parity.relative_difference <= 1e-5
    assert parity.clips == parity.same_top1 == 3
    recorded = read_artifact(folder).manifest.parity
    assert recorded["relative_difference"] == parity.relative_difference
    assert recorded["architecture"] == parity.architecture == platform.machine()
    assert recorded["dense_graph_bytes"] == 10**9


@pytest.mark.parametrize(
    "name", ["layers.0.attention.query.weight", "layers.2.mlp.fc2.bias", "patches.positions", "front_end.mean"]
)
def test_a_wrong_weight_fails(folder: Path, name: str) -> None:
    _change_weight(folder, name, _scale_unevenly)
    with pytest.raises(ParityFailed, match="logits differ by"):
        prove_parity_here(folder)
    assert read_artifact(folder).manifest.parity is None


def test_nan_fails(folder: Path) -> None:
    _change_weight(folder, "classifier.dense.bias", lambda weight: weight * np.float32("nan"))
    with pytest.raises(ParityFailed, match="golden clip 0: the graph's logits are not finite"):
        prove_parity_here(folder)


def test_a_graph_that_is_not_smaller_fails(folder: Path) -> None:
    size = (folder / "model.onnx").stat().st_size
    with pytest.raises(ParityFailed, match="not fewer than the dense"):
        prove_parity_here(folder, dense_graph_bytes=size)
    prove_parity_here(folder, dense_graph_bytes=size + 1)


def test_a_process_that_dies_has_its_last_lines_in_the_error(folder: Path, monkeypatch) -> None:
    dying = code_command("import sys; sys.exit('Traceback of old\\nno room\\nin the graph\\nlast words')")
    monkeypatch.setattr("leanear.export.parity.module_command", lambda module: dying)
    with pytest.raises(ParityFailed, match=r"ended with status 1; it said: no room \| in the graph \| last words$"):
        prove_parity(folder)


def test_a_damaged_file_is_bad_input(folder: Path) -> None:
    with open(folder / "model.onnx", "ab") as stream:
        stream.write(b"\0")
    with pytest.raises(BadInput, match="sha256 differs"):
        prove_parity(folder)


def test_first_labels_have_to_agree_unless_they_tie() -> None:
    settings = {"runtime_version": "", "graph_bytes": 1, "dense_graph_bytes": None, "name": "graph"}
    moved = np.array([[3.9e-4, -3.9e-4, 0.0]])  # less than the bound, which is 4e-4 at a scale of 4
    tied = np.array([[0.0, 3e-4, -4.0]])
    apart = np.array([[0.0, 6e-4, -4.0]])
    assert (tied + moved).argmax() == (apart + moved).argmax() == 0
    assert compare_logits(tied, tied + moved, **settings).same_top1 == 1
    with pytest.raises(ParityFailed, match="golden clip 0: first label is 0, the checkpoint's is 1"):
        compare_logits(apart, apart + moved, **settings)


def test_program_says_so_and_exits_with_the_errors_status(folder: Path) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "leanear.export.parity", str(folder)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    proved = run()
    assert (proved.returncode, proved.stderr) == (0, "")
    assert "same first label, on 3 clips" in proved.stdout
    _change_weight(folder, "layers.0.attention.query.weight", lambda weight: -weight)
    failed = run()
    assert failed.returncode == ParityFailed.exit_status
    assert failed.stdout == ""
    assert failed.stderr.count("\n") == 1
    assert "logits differ by" in failed.stderr
