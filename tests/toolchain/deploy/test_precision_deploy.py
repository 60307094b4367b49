"""`leanear deploy --precision`: from flags to the report, with the gate between, and what a device is given."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leanear.benchmarks.device.bundled import RUNNER_FILE, read_bundle, unpack_bundle
from leanear.benchmarks.report.precision_section import read_precision
from leanear.benchmarks.results import read_results
from leanear.cli.commands import run
from leanear.deploy import exporting
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.errors import BadInput, ParityFailed
from tests.toolchain.recipes import recipe_flags
from tests.toolchain.speech_folder import write_speech_folder
from tests.whisper_models import write_whisper

pytestmark = pytest.mark.usefixtures("measured_here", "markdown_alone_here")

NOTHING = """description = "Nothing"
runtime = "null"
graph_form = "portable"
precision = "bf16"
threads = 1
"""
TEXTS = [f"the colour of number {number}" for number in range(30)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_whisper(tmp_path_factory.mktemp("model") / "tiny-whisper")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_speech_folder(tmp_path_factory.mktemp("data") / "clips", TEXTS)


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    path = tmp_path_factory.mktemp("target") / "nothing.toml"
    path.write_text(NOTHING)
    return path


def deploy(model, data, target, out, *more):
    clips = ["--calibration-clips", "9", "--budget", "1"]
    return run(["deploy", str(model), "--data", str(data), "--target", str(target), "--out", str(out), *clips, *more])


@pytest.fixture(scope="module")
def deployed(model, data, nothing, tmp_path_factory):
    out = tmp_path_factory.mktemp("deployed") / "out"
    assert deploy(model, data, nothing, out) == 0
    return out


def prove_8_bits(patch: pytest.MonkeyPatch, proof: Callable[[Path], None]) -> None:
    """Let graphs in 8 bits have another proof than the real one."""
    prove = exporting.prove_parity

    def chosen(folder: Path, **given: Any) -> Any:
        is_8_bits = read_artifact(folder).manifest.graphs["decoder"].precision == "int8"
        return proof(folder) if is_8_bits else prove(folder, **given)

    patch.setattr(exporting, "prove_parity", chosen)


def stop(folder: Path) -> None:
    """Ends a deployment at the proof of graphs in 8 bits."""
    raise BadInput(f"{folder}: stopped in the middle")


def complaint(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("leanear: ")]
    return line


def test_both_sides_are_measured_each_in_its_own_precision(deployed):
    results = read_results(deployed / "results" / "null-bf16.json")
    assert results.precisions == {"dense": "fp32", "slim": "bf16"}
    document = read_precision(deployed / "precision.json")
    assert (document.asked, document.ships, document.gate.clips) == ("bf16", "bf16", 3)
    report = (deployed / "report.md").read_text()
    assert "1 thread, dense in fp32, slim in bf16, measured" in report
    assert "bf16 passed its gate: no change of word error rate against fp32" in report
    assert "| precision | dense in fp32, slim in bf16 |" in report


def test_what_is_done_is_not_done_again_and_another_precision_is(deployed, model, data, nothing, tmp_path, capsys):
    out = Path(shutil.copytree(deployed, tmp_path / "out"))
    assert deploy(model, data, nothing, out) == 0
    assert "nothing to do" in capsys.readouterr().err
    trial = out / "trials" / "fp32" / "manifest.json"
    exported = trial.stat().st_mtime_ns
    (out / "trials" / ".int8.left-by-a-kill.part").mkdir()
    for name in ("clips/.evaluation.npz", "results/.null-bf16.json", ".stages/.slim.json", "calibration/.c.npz"):
        (out / f"{name}.left-by-a-kill.part").touch()
    (out / "clips" / ".mine.part").touch()
    with pytest.MonkeyPatch.context() as patch:
        prove_8_bits(patch, stop)
        assert deploy(model, data, nothing, out, "--precision", "int8-bf16", "--precision-drop", "2") == 2
    assert "stopped in the middle" in complaint(capsys)
    assert [path.name for path in out.rglob("*.part")] == [".mine.part"]
    assert deploy(model, data, nothing, out, "--precision-drop", "2") == 0
    assert "nothing to do" not in capsys.readouterr().err
    assert trial.stat().st_mtime_ns == exported
    assert deploy(model, data, nothing, out, "--precision", "fp32") == 0
    assert not (out / "precision.json").exists()
    assert read_results(out / "results" / "null-fp32.json").precisions == {"dense": "fp32", "slim": "fp32"}
    assert "## Precision" not in (out / "report.md").read_text()


def test_the_report_is_written_again_as_it_was(deployed, tmp_path):
    out = Path(shutil.copytree(deployed, tmp_path / "out"))
    before = (out / "report.md").read_bytes()
    assert run(["report", str(out)]) == 0
    assert (out / "report.md").read_bytes() == before


def test_a_bad_quantiser_is_found_and_float32_ships(model, data, tmp_path, capsys, monkeypatch):
    """Real graphs on a real runtime, of which those in 8 bits fail their proof."""

    def refuse(folder: Path) -> None:
        raise ParityFailed(f"{folder}: products in 8 bits move the logits by 3 of their spread; the bound is 0.1")

    prove_8_bits(monkeypatch, refuse)
    out = tmp_path / "out"
    flags = ("--precision", "int8", *recipe_flags(tmp_path, "compensate = false"))
    assert deploy(model, data, "cpu", out, *flags, "--no-fallback") == 6
    line = complaint(capsys)
    assert "precision gate: int8 failed before its gate" in line
    assert "products in 8 bits" in line
    assert not (out / "slim").exists()
    assert deploy(model, data, "cpu", out, *flags) == 0
    said = capsys.readouterr()
    assert "fp32 ships in place of int8" in said.err
    assert "median" not in said.out
    results = read_results(out / "results" / "onnxruntime-fp32.json")
    assert results.precisions == {"dense": "fp32", "slim": "fp32"}
    report = (out / "report.md").read_text()
    assert report.split("\n")[4].startswith("**Removing 50 % of the attention does damage here"), "of random weights"
    assert "It ships in fp32, not in int8.**" in report.split("\n")[6]
    assert "\nThe slim model ships in fp32, not in int8 as it was asked for" in report
    assert "| precision | fp32 (int8 was asked for) |" in report
    assert "| recipe file | compensate = false |" in report
    assert deploy(model, data, "cpu", out, *flags) == 0
    assert "nothing to do" in capsys.readouterr().err


@pytest.fixture(scope="module")
def bundled(model, data, tmp_path_factory, shortest_benchmark):
    """A deployment in 8 bits for a device, whose bundle nobody fetched yet.

    8 bits change much of what random weights say, so that they are not held to the checkpoint here.
    """
    out = tmp_path_factory.mktemp("bundled") / "pi"
    one_shot = recipe_flags(out.parent, "shots = 1")  # of which 8 bits change fewer words
    with pytest.MonkeyPatch.context() as patch:
        prove_8_bits(patch, lambda _: None)
        assert deploy(model, data, "raspberrypi", out, "--precision", "int8", "--precision-drop", "100", *one_shot) == 0
    return out


def test_a_device_is_given_two_precisions(bundled):
    bundle = read_bundle(bundled / "bundle")
    unpack_bundle(bundle)
    assert (bundle.precision, bundle.precision_of("dense")) == ("int8", "fp32")
    graphs = {role: read_artifact(folder).manifest.graphs["decoder"] for role, folder in bundle.artifacts.items()}
    assert {role: graph.precision for role, graph in graphs.items()} == {"dense": "fp32", "slim": "int8"}
    report = (bundled / "report.md").read_text()
    assert "## Precision" in report
    assert "Asked for: int8. Ships: int8." in report


@pytest.mark.parametrize("verb", ["compile", "bench", "eval"])
def test_a_device_runs_each_artifact_in_its_own(bundled, tmp_path, verb):
    out = tmp_path / "results.json"
    more = ["--out", str(out), "--budget", "0.5"] if verb == "bench" else []
    command = [sys.executable, str(bundled / "bundle" / RUNNER_FILE), verb, *more]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    if verb == "bench":
        results = read_results(out)
        assert results.precisions == {"dense": "fp32", "slim": "int8"}
        session = results.document["latency"]["session"]
        assert {role: facts["precision"] for role, facts in session.items()} == results.precisions


def test_an_artifact_is_run_in_what_its_graphs_are_of(bundled, data, tmp_path, capsys):
    clip, slim = str(data / "0.flac"), str(bundled / "slim")
    assert run(["transcribe", clip, "--model", slim, "--output-format", "txt"]) == 0
    assert run(["eval", slim, "--data", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["precision"] == "int8"
    assert run(["eval", slim, "--data", str(data), "--precision", "fp32"]) == 2
    assert "fp32 was asked for, but the graphs of" in complaint(capsys)
    out = tmp_path / "results.json"
    pair = ["bench", slim, "--against", str(bundled / "dense"), "--budget", "1", "--threads", "1", "--out", str(out)]
    for flags in ([], ["--precision", "int8"]):
        assert run([*pair, *flags]) == 0
        assert read_results(out).precisions == {"dense": "fp32", "slim": "int8"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--precision", "bf16"], "--precision bf16: onnxruntime computes in fp32, int8"),
        (["--precision", "fp4"], "--precision"),
        (["--precision-drop", "-1"], "--precision-drop"),
        (["--precision-drop", "nan"], "--precision-drop"),
    ],
)
def test_flags_that_make_no_sense(model, data, tmp_path, capsys, flags, message):
    assert deploy(model, data, "cpu", tmp_path / "out", *flags) == 2
    assert message in complaint(capsys)
    assert not (tmp_path / "out").exists()
