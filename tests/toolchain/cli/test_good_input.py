"""The command as its users meet it: good input is a result, and what was interrupted goes on."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile

from leanear.cli.commands import run
from leanear.runtimes.errors import BadInput
from tests.conftest import TINY_LABELS
from tests.toolchain.cli.test_cli import one_line
from tests.toolchain.interrupting import interrupted_at
from tests.toolchain.recipes import recipe_flags

pytestmark = pytest.mark.usefixtures("measured_here")


@pytest.mark.parametrize(
    ("flags", "recipe", "basis"),
    [
        ((), "", "rotated by fisher"),
        ((), 'basis = "activations"\nlabels = "observed"\nshots = 2', "rotated by activations"),
        ((), "compensate = false", "rotated by fisher"),
        (("--macs", "0.97"), "", "rotated by fisher"),
        (("--max-drop", "100"), "", "rotated by fisher"),
        ((), 'method = "reference"\nscore = "magnitude"', "channels as trained"),
        ((), 'method = "reference"\nscheme = "heads"\nthreshold = "global"\nbatch_size = 4', "channels as trained"),
    ],
)
def test_each_method_prunes_and_says_how(capsys, model, data, tmp_path, flags, recipe, basis):
    method = "reference" if "reference" in recipe else "rotated"
    flags = (*flags, *recipe_flags(tmp_path, recipe))
    arguments = ["prune", str(model), "--data", str(data), "--out", str(tmp_path / "slim"), "--json"]
    assert run([*arguments, *flags]) == 0
    pruned = json.loads(capsys.readouterr().out)
    plan = json.loads((tmp_path / "slim" / "plan.json").read_text())
    assert (plan["basis"], plan["recipe"]["method"], pruned["pruning"]["method"]) == (basis, method, method)
    assert plan["sparsity"] == pytest.approx(pruned["sparsity"], abs=1e-6)
    if not {"--macs", "--max-drop"} & set(flags):
        assert pruned["sparsity"] >= 0.5
    assert ("search" in pruned["pruning"]) == ("--max-drop" in flags)
    assert ("compensation" in pruned["pruning"]) == (method == "rotated" and "compensate" not in recipe)
    assert json.loads((tmp_path / "slim" / "pruning.json").read_text()) == pruned["pruning"]
    for name, value in tomllib.loads(recipe).items():
        assert plan["recipe"]["compensation" if name == "compensate" else name] == value


def stopped(*_: object) -> bool:
    raise BadInput("stopped in the middle")


def test_interrupted_deploy_goes_on(capsys, caplog, request, monkeypatch, model, data, tmp_path):
    out = tmp_path / "deployment"
    arguments = ["deploy", str(model), "--data", str(data), "--out", str(out), "--budget", "1"]
    assert interrupted_at("leanear.deploy.pipeline.bench_stage", arguments) == 130
    errors = capsys.readouterr().err
    assert errors.strip().splitlines()[-1].startswith("leanear: interrupted")
    assert "Traceback" not in errors
    dense_made_ns = (out / "dense" / "model.onnx").stat().st_mtime_ns

    assert run(arguments) == 0
    assert (out / "dense" / "model.onnx").stat().st_mtime_ns == dense_made_ns, "what was finished is kept"
    assert "report:" in capsys.readouterr().out
    assert (out / "report.html").stat().st_size > 10_000
    request.getfixturevalue("markdown_alone")

    assert run(arguments) == 0
    errors = capsys.readouterr().err
    assert "nothing to do" in errors
    assert "replaces" not in errors

    caplog.clear()
    with monkeypatch.context() as patch:
        patch.setattr("leanear.deploy.pipeline.clips_stage", stopped)  # after what it says, before all work
        assert run([*arguments, "--sparsity", "0.3"]) == 2
    assert capsys.readouterr().err.endswith("leanear: stopped in the middle\n")
    said = "replaces the results of another request (goal: 50 % of the attention parameters removed)"
    assert f"note: {out}: {said}; --out FOLDER keeps both" in caplog.messages

    slim = out / "slim" / "model.onnx"
    slim.write_bytes(slim.read_bytes()[:-1] + b"\0")
    assert run(["classify", str(data / "yes" / "0.wav"), "--model", str(out / "slim")]) == 2
    assert "sha256 differs" in one_line(capsys)


def test_prune_export_eval_classify_agree(capsys, model, data, tmp_path):
    slim, artifact = tmp_path / "slim", tmp_path / "artifact"
    assert run(["prune", str(model), "--data", str(data), "--sparsity", "0.5", "--out", str(slim), "--json"]) == 0
    pruned = json.loads(capsys.readouterr().out)
    assert 0.5 <= pruned["sparsity"] < 0.6
    assert run(["export", str(slim), "--form", "onnxruntime", "--out", str(artifact)]) == 0
    assert "bound 1e-04" in capsys.readouterr().out
    results = []
    for folder in (slim, artifact):
        assert run(["eval", str(folder), "--data", str(data), "--threads", "1", "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert [result["kind"] for result in results] == ["checkpoint", "artifact"]
    assert results[0]["correct"] == results[1]["correct"]
    assert results[0]["cross_entropy"] == pytest.approx(results[1]["cross_entropy"], rel=1e-4)
    labels = []
    for folder in (slim, artifact):
        assert run(["classify", str(data / "yes" / "0.wav"), "--model", str(folder), "--json"]) == 0
        labels.append(json.loads(capsys.readouterr().out))
    assert {entry["label"] for entry in labels[0]} == set(TINY_LABELS)
    assert [entry["label"] for entry in labels[0]] == [entry["label"] for entry in labels[1]]
    assert sum(entry["probability"] for entry in labels[0]) == pytest.approx(1.0)
    plan = json.loads((slim / "plan.json").read_text())
    (slim / "plan.json").write_text(json.dumps({**plan, "colour": "red"}))
    for arguments in (["classify", str(data / "yes" / "0.wav"), "--model"], ["eval", "--data", str(data)]):
        assert run([*arguments, str(slim)]) == 2
        assert one_line(capsys) == f"leanear: {slim / 'plan.json'}: unknown key 'colour'"


@pytest.mark.parametrize(("target", "halves"), [("cpu", False), ("jetson", True)])
def test_export_for_a_target_is_in_its_precision(target, halves, model, tmp_path):
    assert run(["export", str(model), "--target", target, "--out", str(tmp_path / "artifact")]) == 0
    graph = onnx.load(tmp_path / "artifact" / "model.onnx").graph
    types = {weight.data_type for weight in graph.initializer}
    assert (onnx.TensorProto.FLOAT16 in types) == halves


@pytest.fixture(scope="module")
def artifact(model, tmp_path_factory, measured_here) -> Path:
    out = tmp_path_factory.mktemp("artifact") / "artifact"
    assert run(["export", str(model), "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("samples", [1, 160, 239, 240, 399])
def test_clips_shorter_than_a_frame_are_silence_everywhere(capsys, model, artifact, tmp_path, samples):
    soundfile.write(tmp_path / "click.wav", np.full(samples, 0.5), 16000)
    answers = []
    for folder in (model, artifact):
        capsys.readouterr()
        assert run(["classify", str(tmp_path / "click.wav"), "--model", str(folder), "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    for one, other in zip(*answers, strict=True):
        assert one["label"] == other["label"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
