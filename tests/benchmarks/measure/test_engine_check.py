"""An engine that is wrong on purpose is found by golden clips where it runs, and nothing of it is measured."""

from __future__ import annotations

import json
import shutil

import jiwer
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from leanear.benchmarks.device.commands import main
from leanear.benchmarks.measure.engine_check import check_engine, chosen_clips, edits
from leanear.benchmarks.measure.measure import benchmark
from leanear.benchmarks.report.report import write_report
from leanear.benchmarks.results import read_results
from leanear.runtimes.artifact import read_artifact, read_golden
from leanear.runtimes.choose import choose_runtime
from leanear.runtimes.errors import BadInput, MeasurementFailed, ParityFailed
from leanear.runtimes.files import sha256_file, write_json
from leanear.runtimes.sessions import SessionOptions
from tests.runtimes.tiny_artifact import weights, write_tiny_artifact

ONE_THREAD = SessionOptions(threads=1)


def restamped(folder, change=lambda manifest: None):
    """The manifest again of files that were changed, as if they had been exported so."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for graph in manifest["graphs"].values():
        graph["sha256"] = sha256_file(folder / graph["file"])
        if graph["data"] is not None:
            graph["data"]["sha256"] = sha256_file(folder / graph["data"]["file"])
    change(manifest)
    write_json(folder / "manifest.json", manifest)
    return folder


def perturbed(folder, share):
    """A tiny artifact whose matrix is off by a share of its values' spread."""
    model = onnx.load(str(folder / "model.onnx"))
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "matrix")
    matrix = numpy_helper.to_array(tensor)
    noise = np.random.default_rng(1).normal(0, share * matrix.std(), matrix.shape).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(matrix + noise, "matrix"))
    onnx.save(model, str(folder / "model.onnx"))
    return restamped(folder)


def through_float16(folder, factor):
    """A tiny artifact whose window is multiplied by a factor, kept in float16, and divided by it at the end.

    The casts are explicit: of what it casts by itself around float16 ONNX Runtime leaves most in float32.
    """
    model = onnx.load(str(folder / "model.onnx"))
    (product,) = (node for node in model.graph.node if node.op_type == "MatMul")
    model.graph.node.remove(product)
    model.graph.node.extend(
        [
            helper.make_node("Mul", ["row", "factor"], ["larger"]),
            helper.make_node("Cast", ["larger"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", ["half"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["floats", "matrix"], ["products"]),
            helper.make_node("Div", ["products", "factor"], ["logits"]),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    onnx.save(model, str(folder / "model.onnx"))
    return restamped(folder, lambda manifest: manifest["graphs"]["classifier"].update(precision="fp16"))


@pytest.fixture
def tiny(tmp_path):
    return write_tiny_artifact(tmp_path / "tiny", weights(5), source="tiny")


def verdict(folder, runtime="onnxruntime", precision="fp32"):
    request = {"artifact": str(folder), "runtime": runtime, "threads": 1, "precision": precision}
    return check_engine(request, lambda text, fraction: None)


@pytest.mark.usefixtures("run_in_one_process")
def test_a_right_engine_passes_and_its_figures_are_kept(
    dense_folder, slim_folder, clips_path, tmp_path, markdown_alone
):
    out = tmp_path / "results.json"
    results = benchmark(
        dense_folder, slim_folder, clips_path, "onnxruntime", ONE_THREAD, out, budget_s=0.5, samples=9, repeats=3
    )
    check = results.document["check"]
    assert check["status"] == "ok"
    for role in ("dense", "slim"):
        assert check["roles"][role]["verdict"] == "passed"
        assert check["roles"][role]["error"] < 1e-6
        assert check["roles"][role]["cosine"] == pytest.approx(1.0)
    assert not results.is_wrong
    assert "answered what the checkpoint answers" in write_report(out, tmp_path / "report").markdown.read_text()


def test_an_engine_with_other_weights_is_not_measured(tiny, dense_folder, clips_path, tmp_path, markdown_alone):
    out = tmp_path / "results.json"
    perturbed(tiny, 0.05)
    with pytest.raises(ParityFailed, match="nothing was measured: slim: the engine does not answer as the checkpoint"):
        benchmark(dense_folder, tiny, clips_path, "onnxruntime", ONE_THREAD, out, budget_s=0.5, samples=9, repeats=3)
    results = read_results(out)
    assert results.is_wrong
    assert not results.samples_ms("dense")
    assert not results.samples_ms("slim")
    for part in ("latency", "memory", "accuracy", "sustained"):
        assert results.document[part]["status"] == "not measured"
        assert results.document[part]["roles" if part != "latency" else "repeats"] in ({}, [])
    answer = results.document["check"]["roles"]["slim"]
    logits = np.stack([w @ matrix_of(tiny) for w in read_golden(read_artifact(tiny)).waveforms])
    expected = read_golden(read_artifact(tiny)).logits
    error = (np.sqrt(((logits - expected) ** 2).mean(1)) / expected.std(1)).mean()
    assert answer["error"] == pytest.approx(error, rel=1e-3)
    text = write_report(out, tmp_path / "report").markdown.read_text()
    assert "## Check of the engines" in text
    assert "Failed, so nothing was measured" in text
    assert " ms" not in text.partition("## Check of the engines")[2].partition("## ")[0]


def matrix_of(folder):
    model = onnx.load(str(folder / "model.onnx"))
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == "matrix"))


@pytest.mark.usefixtures("run_in_one_process")
def test_float16_that_overflows_is_no_number(tiny, tmp_path, capsys):
    assert verdict(tiny)["verdict"] == "passed"
    answer = verdict(through_float16(tiny, 100_000))
    assert answer["verdict"] == "failed"
    assert answer["error"] is None
    assert "NaN or infinite" in answer["reason"]
    out = tmp_path / "results.json"
    assert main(["bench", str(tiny), "--out", str(out), "--budget", "0.2", "--threads", "1"]) == 3
    assert "nothing was measured" in capsys.readouterr().err
    assert read_results(out).is_wrong


def test_what_float16_rounds_passes_as_float16(tiny):
    answer = verdict(through_float16(tiny, 3))
    assert answer["verdict"] == "passed"
    assert answer["bound"] == 0.05
    assert 1e-6 < answer["error"] < 0.01


@pytest.mark.parametrize(
    ("parity", "bound"), [(None, 0.35), ({"noise": 0.004}, 0.05), ({"noise": 0.03}, 0.12), ({"noise": 0.2}, 0.35)]
)
def test_in_8_bits_the_proof_says_how_far_off_an_engine_may_be(tiny, parity, bound):
    perturbed(tiny, 0.1)

    def in_8_bits(manifest):
        manifest["graphs"]["classifier"]["precision"] = "int8"
        manifest["parity"] = parity

    answer = verdict(restamped(tiny, in_8_bits), precision="int8")
    assert answer["bound"] == pytest.approx(bound)
    assert (answer["verdict"] == "passed") == (answer["error"] <= bound)
    assert 0.05 < answer["error"] < 0.12


def test_a_process_that_ends_without_an_answer_fails_and_nothing_is_measured(tiny, clips_path, tmp_path):
    graph = tiny / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-40])
    restamped(tiny)
    with pytest.raises((MeasurementFailed, BadInput)):
        benchmark(None, tiny, clips_path, "onnxruntime", ONE_THREAD, tmp_path / "r.json", budget_s=0.5, samples=9)


def test_the_null_runtime_is_not_checked_and_says_so(null_results):
    assert null_results.document["check"]["status"] == "not measured"
    assert "computes nothing" in null_results.document["check"]["reason"]


@pytest.mark.usefixtures("run_in_one_process")
def test_the_next_precision_is_tried_where_it_is_asked_for(tiny, tmp_path, capsys):
    if "bf16" not in choose_runtime("openvino").precisions():
        pytest.skip("OpenVINO does not compute in bfloat16 on this processor")
    perturbed(tiny, 1.0)
    out = tmp_path / "results.json"
    asked = ["--runtime", "openvino", "--precision", "bf16,fp32", "--threads", "1"]
    assert main(["bench", str(tiny), *asked, "--out", str(out), "--budget", "0.2"]) == 3
    first, second = capsys.readouterr().err.splitlines()[-2:]
    assert first.startswith("leanear: bf16: ")
    assert first.endswith("the next precision is tried")
    assert "next precision" not in second
    with pytest.raises(SystemExit):
        main(["bench", str(tiny), "--precision", "bf16,fp8"])


def test_few_clips_are_enough():
    assert chosen_clips(2) == [0, 1]
    assert chosen_clips(8) == [0, 1, 6, 7]


@pytest.mark.parametrize(
    ("expected", "found"), [("a b c", "a b c"), ("a b c", "a c"), ("a b", "x a b y"), ("a b c d", "b a d c"), ("a", "")]
)
def test_edits_are_those_of_jiwer(expected, found):
    aligned = jiwer.process_words(expected, found)
    assert edits(expected.split(), found.split()) == aligned.substitutions + aligned.deletions + aligned.insertions


def test_a_wrong_engine_over_a_copy_is_a_copy(tiny, tmp_path):
    """Files of the artifact that were damaged are still refused before the check, by their sha256."""
    shutil.copytree(tiny, tmp_path / "copy")
    (tmp_path / "copy" / "model.onnx").write_bytes(b"x")
    with pytest.raises(BadInput, match="sha256 differs"):
        verdict(tmp_path / "copy")
