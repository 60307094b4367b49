"""Every runtime gives numpy's logits for a tiny graph, says what it used, and refuses what it cannot do."""

from __future__ import annotations

import numpy as np
import pytest

from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.audio.waveforms import checked_waveform
from leanear.runtimes.choose import MODULES, choose_runtime, graph_precision, require_runtime
from leanear.runtimes.errors import BadInput, MeasurementFailed, RuntimeUnavailable
from leanear.runtimes.sessions import SessionOptions, checked_logits
from tests.runtimes.tiny_artifact import LABELS, WINDOW_SAMPLES, expected_logits, weights, write_tiny_artifact

REAL_RUNTIMES = ("onnxruntime", "openvino")
LENGTHS = (1, 7, WINDOW_SAMPLES - 1, WINDOW_SAMPLES, WINDOW_SAMPLES + 1, 1000)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return read_artifact(write_tiny_artifact(tmp_path_factory.mktemp("tiny") / "artifact", weights()))


@pytest.mark.parametrize("name", REAL_RUNTIMES)
def test_logits_are_numpys_for_every_length(artifact, name):
    session = require_runtime(name, SessionOptions(threads=1)).load(artifact, SessionOptions(threads=1))
    for length in LENGTHS:
        waveform = np.random.default_rng(length).uniform(-1, 1, length).astype(np.float32)
        logits = session.run(waveform)
        assert logits.dtype == np.float32
        assert logits.shape == (len(LABELS),)
        np.testing.assert_allclose(logits, expected_logits(waveform, weights()), rtol=1e-4, atol=1e-5)
    session.close()


@pytest.mark.parametrize("name", REAL_RUNTIMES)
def test_logits_of_one_run_survive_the_next(artifact, name):
    session = choose_runtime(name).load(artifact, SessionOptions(threads=1))
    loud = session.run(np.ones(WINDOW_SAMPLES, np.float32))
    kept = loud.copy()
    session.run(np.zeros(WINDOW_SAMPLES, np.float32))
    np.testing.assert_array_equal(loud, kept)
    session.close()


@pytest.mark.parametrize("name", REAL_RUNTIMES)
@pytest.mark.parametrize("threads", [1, 2])
def test_facts_report_the_threads_asked_for(artifact, name, threads):
    session = choose_runtime(name).load(artifact, SessionOptions(threads=threads))
    facts = session.facts()
    session.close()
    assert facts["threads"] == threads
    assert facts["version"][0].isdigit()


def test_onnxruntime_uses_the_cpu_provider_alone(artifact):
    facts = choose_runtime("onnxruntime").load(artifact, SessionOptions(threads=1)).facts()
    assert facts["execution_providers"] == ["CPUExecutionProvider"]


def test_onnxruntime_refuses_bf16(artifact):
    with pytest.raises(BadInput, match="fp32 only"):
        choose_runtime("onnxruntime").load(artifact, SessionOptions(threads=1, precision="bf16"))
    with pytest.raises(BadInput, match="bf16"):
        require_runtime("onnxruntime", SessionOptions(threads=1, precision="bf16"))


def test_openvino_reports_f32_when_asked_for_fp32(artifact):
    facts = choose_runtime("openvino").load(artifact, SessionOptions(threads=1)).facts()
    assert facts["INFERENCE_PRECISION_HINT"] == "f32"
    assert "bf16" not in facts["node_precisions"]
    assert facts["streams"] == 1


def test_openvino_bf16_is_named_and_coarser(artifact):
    runtime = choose_runtime("openvino")
    options = SessionOptions(threads=1, precision="bf16")
    if "bf16" not in runtime.precisions():
        with pytest.raises(BadInput, match="bf16"):
            runtime.load(artifact, options)
        pytest.skip("this CPU has no bf16")
    session = runtime.load(artifact, options)
    assert session.facts()["INFERENCE_PRECISION_HINT"] == "bf16"
    waveform = np.random.default_rng(3).uniform(-1, 1, WINDOW_SAMPLES).astype(np.float32)
    error = np.abs(session.run(waveform) - expected_logits(waveform, weights())).max()
    assert 1e-5 < error < 0.5


def test_openvino_offers_what_its_cpu_has(monkeypatch):
    import openvino

    runtime = choose_runtime("openvino")
    for has, offered in (
        (["FP32", "INT8", "BIN"], ("fp32", "int8")),
        (["FP32", "BF16"], ("fp32", "bf16")),
        (["FP32", "INT8", "BF16"], ("fp32", "bf16", "int8", "int8-bf16")),
    ):
        monkeypatch.setattr(openvino.Core, "get_property", lambda *_, has=has: has)
        assert runtime.precisions() == offered


@pytest.mark.parametrize(
    ("precision", "graph"),
    [("fp32", "fp32"), ("bf16", "fp32"), ("fp16", "fp16"), ("int8", "int8"), ("int8-bf16", "int8")],
)
def test_what_a_graph_has_to_be_exported_in(precision, graph):
    assert graph_precision(precision) == graph
    with pytest.raises(BadInput, match="expected one of fp32, bf16, fp16, int8, int8-bf16, got 'int4'"):
        graph_precision("int4")


@pytest.mark.parametrize("precision", ["int8", "int8-bf16"])
def test_8_bits_are_not_found_in_a_graph_of_float32(artifact, precision):
    from leanear.runtimes.sessions import check_precision

    with pytest.raises(BadInput, match=f"{precision} was asked for, but the graphs of .* are fp32"):
        check_precision(artifact, SessionOptions(threads=1, precision=precision))


def test_openvino_that_changes_the_precision_is_an_error(artifact, monkeypatch):
    import openvino

    original = openvino.Core.compile_model

    def disobedient(self, graph, device, settings):
        quiet = {key: value for key, value in settings.items() if "PRECISION" not in str(key)}
        return original(self, graph, device, quiet)

    monkeypatch.setattr(openvino.Core, "compile_model", disobedient)
    runtime = choose_runtime("openvino")
    if "bf16" not in runtime.precisions():
        pytest.skip("OpenVINO computes in fp32 by itself on this CPU")
    with pytest.raises(RuntimeUnavailable, match="asked for fp32"):
        runtime.load(artifact, SessionOptions(threads=1))


@pytest.mark.parametrize("name", REAL_RUNTIMES)
def test_a_damaged_graph_is_one_clear_line(artifact, name, tmp_path):
    from dataclasses import replace

    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph at all")
    with pytest.raises(BadInput) as caught:
        choose_runtime(name).load(replace(artifact, graphs={"classifier": broken}), SessionOptions(threads=1))
    assert "broken.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_null_says_which_stretch_is_loudest(artifact):
    session = choose_runtime("null").load(artifact, SessionOptions(threads=3, precision="bf16"))
    waveform = np.zeros(WINDOW_SAMPLES, np.float32)
    waveform[2 * WINDOW_SAMPLES // len(LABELS) : 3 * WINDOW_SAMPLES // len(LABELS)] = 0.5
    logits = session.run(waveform)
    assert logits.shape == (len(LABELS),)
    assert logits.argmax() == 2
    assert session.facts()["threads"] == 3


def test_every_runtime_has_the_verbs():
    for name in MODULES:
        runtime = choose_runtime(name)
        assert name == runtime.NAME
        assert all(callable(getattr(runtime, verb)) for verb in ("available", "precisions", "compile", "load"))


def test_unknown_runtime_lists_the_known():
    with pytest.raises(BadInput, match="onnxruntime, openvino, tensorrt, tensorrt_rtx$"):
        choose_runtime("tensorflow")


def test_a_runtime_that_is_not_installed_says_how_to_install_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RuntimeUnavailable, match="pip install openvino"):
        require_runtime("openvino", SessionOptions(threads=1))


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_are_a_positive_whole_number(threads):
    with pytest.raises(BadInput, match="threads"):
        SessionOptions(threads=threads)


def test_unknown_precision_is_refused():
    with pytest.raises(BadInput, match="fp8"):
        SessionOptions(threads=1, precision="fp8")


@pytest.mark.parametrize("waveform", [np.zeros((1, 4)), np.zeros(0), np.array([0.0, np.nan]), np.array([np.inf])])
def test_bad_waveforms_are_refused(waveform):
    with pytest.raises(BadInput, match="waveform"):
        checked_waveform(waveform)


def test_bad_logits_are_a_failed_measurement():
    with pytest.raises(MeasurementFailed, match="shape"):
        checked_logits(np.zeros((1, 3)), 4)
    with pytest.raises(MeasurementFailed, match="NaN"):
        checked_logits(np.array([[0.0, np.nan]]), 2)
