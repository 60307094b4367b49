"""The GPU's own time, from the events of a made-up CUDA to results and report."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest

import leanear.benchmarks.measure.engine_check
import leanear.benchmarks.measure.parts
import leanear.benchmarks.measure.sustained
from leanear.benchmarks.device.commands import main
from leanear.benchmarks.measure.latency import measure_latency
from leanear.benchmarks.measure.measure import benchmark
from leanear.benchmarks.report.report import write_report
from leanear.benchmarks.results import read_results, write_results
from leanear.runtimes.errors import BadInput
from leanear.runtimes.sessions import SessionOptions
from tests.export.whisper_cases import noise, small_artifact
from tests.measured import in_this_process
from tests.runtimes.fake_tensorrt import FakeCuda, FakeTensorRT
from tests.runtimes.tiny_artifact import WINDOW_SAMPLES, weights, write_tiny_artifact

RUN_MS = 1.25  # of every run, as the made-up events say


@pytest.fixture
def library(monkeypatch, tmp_path) -> FakeTensorRT:
    cuda = FakeCuda()
    fake = FakeTensorRT(cuda)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setenv("LEANEAR_CACHE", str(tmp_path / "cache"))
    return fake


@pytest.fixture
def workers(library, monkeypatch) -> None:
    """What would run in fresh processes runs in this one, which has the made-up library."""
    for module in (
        leanear.benchmarks.measure.parts,
        leanear.benchmarks.measure.engine_check,
        leanear.benchmarks.measure.sustained,
    ):
        monkeypatch.setattr(module, "run_fresh", in_this_process)


@pytest.fixture
def results(workers, dense_folder, slim_folder, clips_path, tmp_path):
    options, quick = SessionOptions(threads=1), {"budget_s": 1.0, "samples": 12, "repeats": 2}
    return benchmark(dense_folder, slim_folder, clips_path, "tensorrt", options, tmp_path / "tensorrt.json", **quick)


def test_every_sample_has_the_gpus_own_time_beside_the_wall_clocks(results):
    read = read_results(results.path)
    for role in ("dense", "slim"):
        for repeat in read.repeats(role):
            assert repeat.gpu_ms == {"inference": [RUN_MS] * len(repeat.samples_ms)}
        assert read.gpu_ms(role) == {"inference": [RUN_MS] * 12}
    assert "GPU or NPU" not in read.document["not_measured"]
    assert "not among them" in read.document["not_measured"]["GPU memory"]
    assert read.document["latency"]["session"]["slim"]["execution_devices"] == ["Fake Orin (compute capability 8.7)"]


def test_what_bfloat16_gets_wrong_is_measured_in_float32(workers, tmp_path, capsys):
    """Weights that differ by less than a step of bfloat16, on a GPU that takes them for equal."""
    artifact = write_tiny_artifact(tmp_path / "model", 100.0 + 0.1 * weights())
    out = tmp_path / "results.json"
    asked = ["--runtime", "tensorrt", "--precision", "bf16,fp32", "--threads", "1", "--budget", "0.2"]
    assert main(["bench", str(artifact), *asked, "--out", str(out)]) == 0
    (first,) = [line for line in capsys.readouterr().err.splitlines() if "next precision" in line]
    assert first.startswith("leanear: bf16: ")
    assert "does not answer as the checkpoint does" in first
    results = read_results(out)
    assert results.precisions == {"slim": "fp32"}
    assert results.document["check"]["roles"]["slim"]["verdict"] == "passed"


def test_the_report_shows_both(results, tmp_path, markdown_alone):
    text = write_report(results.path, tmp_path / "report").markdown.read_text(encoding="utf-8")
    wall = float(np.median([ms for samples in results.samples_ms("dense") for ms in samples]))
    assert "by CUDA events, beside the wall clock" in text
    assert f"| dense | inference | {wall:.3f} | 1.250 | {RUN_MS / wall:.1%} |" in text


def test_where_no_gpu_tells_its_time_there_is_no_table(null_results, tmp_path, markdown_alone):
    assert null_results.gpu_ms("slim") == {}
    assert "GPU memory" not in null_results.document["not_measured"]
    text = write_report(null_results.path, tmp_path / "report").markdown.read_text(encoding="utf-8")
    assert "CUDA events" not in text


@pytest.fixture
def speech_answer(library, tmp_path):
    small_artifact(tmp_path / "speech", "ragged", "tensorrt", [noise(20_000)])
    np.save(tmp_path / "waveform.npy", noise(WINDOW_SAMPLES))
    request = {
        "artifact": str(tmp_path / "speech"), "runtime": "tensorrt", "threads": 1, "precision": "fp32", "window": None,
        "waveform": str(tmp_path / "waveform.npy"), "samples": 4, "share_s": 1.0, "tokens": 7,
    }  # fmt: skip
    return measure_latency(request, lambda *_: None)


def test_a_windows_stages_each_have_theirs(speech_answer):
    assert len(speech_answer["samples_ms"]) == 4
    assert speech_answer["gpu_ms"] == {
        "encoder": [RUN_MS] * 4,
        "first_token": [RUN_MS] * 4,
        "later_tokens": [6 * RUN_MS] * 4,
    }


def test_the_report_of_speech_has_a_row_for_each_stage(speech_answer, speech_results, tmp_path, markdown_alone):
    document = copy.deepcopy(speech_results.document)
    for repeat in document["latency"]["repeats"]:
        times = len(repeat["samples_ms"])
        repeat["stages_ms"] = {name: [10.0 * RUN_MS] * times for name in repeat["stages_ms"]}
        repeat["samples_ms"] = [30.0 * RUN_MS] * times
        repeat["gpu_ms"] = {name: samples[:1] * times for name, samples in speech_answer["gpu_ms"].items()}
    results = write_results(tmp_path / "speech.json", document)
    text = write_report(results.path, tmp_path / "report").markdown.read_text(encoding="utf-8")
    for row in (
        "| slim | whole | 37.500 | 10.000 | 26.7% |",
        "| slim | encoder | 12.500 | 1.250 | 10.0% |",
        "| slim | first token | 12.500 | 1.250 | 10.0% |",
        "| slim | later tokens | 12.500 | 7.500 | 60.0% |",
    ):
        assert row in text
    document["latency"]["repeats"][1]["gpu_ms"]["encoder"].pop()
    with pytest.raises(BadInput, match=r"repeats\[1\]\.gpu_ms\.encoder: \d+ for \d+ samples"):
        write_results(tmp_path / "speech.json", document)
