"""The benchmark end to end: order, samples, accuracy by hand, resuming, and every way to fail."""

from __future__ import annotations

import json

import numpy as np
import pytest

import leanear.benchmarks.measure.parts
from leanear.benchmarks.device.commands import main
from leanear.benchmarks.measure.evaluation import evaluate_logits
from leanear.benchmarks.measure.measure import benchmark
from leanear.benchmarks.measure.parts import interleaved
from leanear.benchmarks.measure.processes import Outcome
from leanear.benchmarks.results import read_results
from leanear.runtimes.clips import clips_sha256, read_clips, write_clips
from leanear.runtimes.errors import BadInput, MeasurementFailed
from leanear.runtimes.sessions import SessionOptions
from tests.measured import in_this_process
from tests.runtimes.tiny_artifact import LABELS, expected_logits, loudness_weights, weights, write_tiny_artifact

OPTIONS = SessionOptions(threads=1)
QUICK = {"budget_s": 0.5, "samples": 24, "repeats": 3}
ONCE = {**QUICK, "repeats": 1}


@pytest.fixture(scope="module")
def measured(dense_folder, slim_folder, clips_path, tmp_path_factory):
    """One benchmark of both artifacts on ONNX Runtime, and the progress that it showed."""
    out = tmp_path_factory.mktemp("results") / "onnxruntime-fp32.json"
    shown = []
    results = benchmark(
        dense_folder,
        slim_folder,
        clips_path,
        "onnxruntime",
        OPTIONS,
        out,
        command=["leanear", "bench", "it"],
        progress=lambda text, fraction: shown.append((text, fraction)),
        **QUICK,
    )
    return results, shown


def replace_run_fresh(monkeypatch, function):
    monkeypatch.setattr(leanear.benchmarks.measure.parts, "run_fresh", function)


def test_processes_alternate_so_that_drift_falls_on_both_alike():
    assert "".join(interleaved("AB", 4)) == "ABBAABBA"
    places = {role: [place for place, other in enumerate(interleaved("AB", 6)) if other == role] for role in "AB"}
    assert np.mean(places["A"]) == np.mean(places["B"])
    assert interleaved(("slim",), 3) == ("slim",) * 3


def test_every_process_gives_its_samples_and_cold_path_apart(measured):
    results, _ = measured
    latency = results.document["latency"]
    assert latency["order"] == ["dense", "slim", "slim", "dense", "dense", "slim"]
    assert [repeat["role"] for repeat in latency["repeats"]] == latency["order"]
    for role in ("dense", "slim"):
        assert [len(samples) for samples in results.samples_ms(role)] == [8, 8, 8]
    for repeat in latency["repeats"]:
        assert min(repeat["import_ms"], repeat["load_ms"], repeat["first_inference_ms"], *repeat["samples_ms"]) > 0
        assert len(repeat["warm_up"]["timings_ms"]) == repeat["warm_up"]["runs"]


def test_the_runtime_says_what_it_used(measured):
    session = measured[0].document["latency"]["session"]
    assert session["slim"]["execution_providers"] == ["CPUExecutionProvider"]
    assert session["slim"]["threads"] == session["dense"]["threads"] == 1


def test_memory_grows_from_interpreter_to_peak(measured):
    for stages in measured[0].document["memory"]["roles"].values():
        assert 0 < stages["rss_interpreter_bytes"] < stages["rss_runtime_imported_bytes"]
        assert stages["rss_runtime_imported_bytes"] <= stages["peak_rss_bytes"]
        assert 3 <= len(stages["rss_run_bytes"]) <= 50
        assert max(stages["rss_run_bytes"]) <= stages["peak_rss_bytes"] < 2**31


def test_accuracy_is_that_of_the_matrix_by_hand(measured, clips_path):
    accuracy = measured[0].document["accuracy"]
    clips = read_clips(clips_path)
    logits = {
        role: np.stack([expected_logits(waveform, matrix) for waveform in clips.waveforms])
        for role, matrix in (("dense", weights(5)), ("slim", loudness_weights()))
    }
    divergence = np.zeros(len(clips))
    for role, values in logits.items():
        assert accuracy["roles"][role]["predicted_ids"] == values.argmax(axis=1).tolist()
        shares = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
        own = shares[np.arange(len(clips)), clips.label_ids]
        np.testing.assert_allclose(accuracy["roles"][role]["cross_entropy_nats"], -np.log(own), atol=1e-5)
        divergence += (1 if role == "dense" else -1) * (np.exp(logits["dense"]) * np.log(shares)).sum(axis=1)
    divergence /= np.exp(logits["dense"]).sum(axis=1)
    np.testing.assert_allclose(accuracy["kl_dense_slim_nats"], divergence, atol=1e-4)
    assert accuracy["label_ids"] == clips.label_ids.tolist()


def test_identities_are_recorded(measured, slim_folder, clips_path):
    from leanear.runtimes.files import sha256_file

    document = measured[0].document
    assert document["artifacts"]["slim"]["graphs"]["classifier"]["sha256"] == sha256_file(slim_folder / "model.onnx")
    assert document["clips"]["sha256"] == clips_sha256(read_clips(clips_path))
    assert document["command"] == ["leanear", "bench", "it"]
    assert document["artifacts"]["dense"]["model"]["macs"] == 80_000


def test_progress_goes_from_nothing_to_all(measured):
    fractions = [fraction for _, fraction in measured[1]]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert any("slim, process 2 of 3" in text for text, _ in measured[1])


def test_finished_results_are_not_measured_again(measured, dense_folder, slim_folder, clips_path, monkeypatch):
    results, _ = measured
    replace_run_fresh(monkeypatch, lambda *_, **__: pytest.fail("a process was started"))
    again = benchmark(dense_folder, slim_folder, clips_path, "onnxruntime", OPTIONS, results.path, **QUICK)
    assert again.document == read_results(results.path).document
    assert not list(results.path.parent.glob(".*"))


@pytest.mark.usefixtures("run_in_one_process")
def test_one_artifact_alone_without_clips(slim_folder, tmp_path):
    results = benchmark(None, slim_folder, None, "null", OPTIONS, tmp_path / "r.json", **ONCE)
    assert results.roles == ("slim",)
    assert results.document["accuracy"]["status"] == "not measured"
    assert "no evaluation clips" in results.document["accuracy"]["reason"]
    assert all(sample >= 1.0 for samples in results.samples_ms("slim") for sample in samples)


def test_an_interrupted_benchmark_goes_on_where_it_stopped(slim_folder, clips_path, tmp_path, monkeypatch):
    out = tmp_path / "r.json"

    def interrupted(module, *arguments, **keywords):
        if module == "leanear.benchmarks.measure.accuracy":
            raise KeyboardInterrupt
        return in_this_process(module, *arguments, **keywords)

    replace_run_fresh(monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt):
        benchmark(None, slim_folder, clips_path, "null", OPTIONS, out, **ONCE)
    assert not out.exists()

    started = []

    def recorded(module, *arguments, **keywords):
        started.append(module)
        return in_this_process(module, *arguments, **keywords)

    replace_run_fresh(monkeypatch, recorded)
    (tmp_path / f".{out.name}.k1ll3d.part").write_text("{")
    benchmark(None, slim_folder, clips_path, "null", OPTIONS, out, **ONCE)
    assert started == ["leanear.benchmarks.measure.accuracy"]
    assert list(tmp_path.iterdir()) == [out]


def test_accuracy_goes_on_from_the_clips_that_were_done(slim_folder, clips_path, tmp_path):
    from leanear.benchmarks.measure.accuracy import measure_logits, read_logits

    store = tmp_path / "logits.npz"
    request = {
        "artifact": str(slim_folder),
        "runtime": "null",
        "threads": 1,
        "precision": "fp32",
        "clips": str(clips_path),
        "logits": str(store),
    }
    with open(store, "wb") as stream:
        np.savez(stream, logits=np.full((3, len(LABELS)), 7, np.float32))
    assert measure_logits(request, lambda *_: None) == {"clips": 40}
    logits = read_logits(store, len(LABELS))
    assert (logits[:3] == 7).all()
    assert (logits[3:] < 1).all()


@pytest.mark.usefixtures("run_in_one_process")
def test_other_settings_are_measured_anew(slim_folder, tmp_path):
    first = benchmark(None, slim_folder, None, "null", OPTIONS, tmp_path / "r.json", **ONCE)
    second = benchmark(None, slim_folder, None, "null", SessionOptions(threads=2), tmp_path / "r.json", **ONCE)
    assert first.document["inputs_sha256"] != second.document["inputs_sha256"]
    assert second.document["options"]["threads"] == 2


@pytest.mark.usefixtures("run_in_one_process")
def test_each_side_is_measured_in_its_own_precision(dense_folder, slim_folder, clips_path, tmp_path):
    bf16, out = SessionOptions(threads=1, precision="bf16"), tmp_path / "r.json"
    pair = (dense_folder, slim_folder, clips_path, "null", bf16, out)
    results = benchmark(*pair, dense_precision="fp32", **ONCE)
    assert results.precisions == {"dense": "fp32", "slim": "bf16"}
    session = results.document["latency"]["session"]
    assert {role: facts["precision"] for role, facts in session.items()} == results.precisions
    same = benchmark(*pair, **ONCE)
    assert same.precisions == {"dense": "bf16", "slim": "bf16"}
    assert same.document["inputs_sha256"] != results.document["inputs_sha256"]
    assert benchmark(None, slim_folder, None, "null", bf16, out, **ONCE).precisions == {"slim": "bf16"}


@pytest.mark.usefixtures("run_in_one_process")
def test_of_two_at_once_into_one_file_the_second_is_refused(slim_folder, tmp_path, capsys):
    out, statuses = tmp_path / "r.v1", {}
    session = ["--runtime", "null", "--threads", "1", "--budget", "0.2"]

    def others(text, _share):
        for name in ("r.v1", "r.v2") if "latency: model, process 1" in text and not statuses else ():
            statuses[name] = main(["bench", str(slim_folder), "--out", str(tmp_path / name), *session])

    benchmark(None, slim_folder, None, "null", OPTIONS, out, progress=others, **ONCE)
    assert statuses == {"r.v1": 2, "r.v2": 0}
    (refused,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("leanear: "))
    assert refused.startswith(f"leanear: {tmp_path}/.r.v1.parts: another leanear is at work")
    assert not read_results(out).failures()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.v1", "r.v2"]


def test_a_precision_that_one_side_cannot_have_is_refused(dense_folder, slim_folder, tmp_path):
    with pytest.raises(BadInput, match="onnxruntime does not compute in bf16"):
        benchmark(
            dense_folder, slim_folder, None, "onnxruntime", OPTIONS, tmp_path / "r", dense_precision="bf16", **QUICK
        )


def test_a_worker_that_dies_leaves_a_reason_and_no_number(slim_folder, tmp_path, monkeypatch):
    def dying(module, *arguments, **keywords):
        if module == "leanear.benchmarks.measure.memory":
            return Outcome(None, "the process was ended by SIGKILL", ("last words",))
        return in_this_process(module, *arguments, **keywords)

    monkeypatch.setattr(leanear.benchmarks.measure.parts, "run_fresh", dying)
    out = tmp_path / "r.json"
    with pytest.raises(MeasurementFailed, match="memory on null failed: model: the process was ended by SIGKILL"):
        benchmark(None, slim_folder, None, "null", OPTIONS, out, **ONCE)
    results = read_results(out)
    assert results.failures() == {"memory": "model: the process was ended by SIGKILL"}
    assert results.document["memory"]["roles"] == {}
    assert results.document["memory"]["log_tail"] == ["last words"]
    assert results.document["latency"]["status"] == "ok"
    monkeypatch.undo()  # in processes, as it is
    assert not benchmark(None, slim_folder, None, "null", OPTIONS, out, **ONCE).failures()


def test_a_latency_process_that_dies_stops_the_pass_and_not_the_others(slim_folder, tmp_path, monkeypatch):
    started = []

    def dying(module, *arguments, **keywords):
        started.append(module)
        if module == "leanear.benchmarks.measure.latency" and len(started) == 2:
            return Outcome(None, "the process ended with status 1: MemoryError", ("MemoryError",))
        return in_this_process(module, *arguments, **keywords)

    monkeypatch.setattr(leanear.benchmarks.measure.parts, "run_fresh", dying)
    out = tmp_path / "r.json"
    with pytest.raises(MeasurementFailed, match="latency on null failed"):
        benchmark(None, slim_folder, None, "null", OPTIONS, out, **QUICK)
    assert started == [
        "leanear.benchmarks.measure.latency",
        "leanear.benchmarks.measure.latency",
        "leanear.benchmarks.measure.memory",
    ]
    results = read_results(out)
    assert [repeat["status"] for repeat in results.document["latency"]["repeats"]] == ["ok", "failed"]
    assert len(results.samples_ms("slim")) == 1
    assert results.document["memory"]["status"] == "ok"


def test_clips_of_other_labels_are_refused(slim_folder, clips_path, tmp_path):
    from dataclasses import replace

    other = replace(read_clips(clips_path), labels=tuple(reversed(LABELS)))
    write_clips(tmp_path / "other.npz", other)
    with pytest.raises(BadInput, match="labels"):
        benchmark(None, slim_folder, tmp_path / "other.npz", "null", OPTIONS, tmp_path / "r.json", **QUICK)
    write_clips(tmp_path / "slow.npz", replace(read_clips(clips_path), sample_rate_hz=8000))
    with pytest.raises(BadInput, match="8000 Hz"):
        evaluate_logits(slim_folder, tmp_path / "slow.npz", "null", OPTIONS)


def test_artifacts_of_different_labels_are_not_compared(slim_folder, tmp_path):
    other = write_tiny_artifact(tmp_path / "other", weights(), labels=("a", "b", "c", "d"))
    with pytest.raises(BadInput, match="labels differ"):
        benchmark(other, slim_folder, None, "null", OPTIONS, tmp_path / "r.json", **QUICK)


@pytest.mark.usefixtures("run_in_one_process")
def test_evaluate_counts_what_the_null_runtime_says(slim_folder, clips_path):
    clips, logits = evaluate_logits(slim_folder, clips_path, "null", OPTIONS)
    assert ((logits.argmax(axis=1) == clips.label_ids).sum(), len(clips)) == (30, 40)


@pytest.mark.usefixtures("run_in_one_process")
def test_the_device_command_measures_and_evaluates(dense_folder, slim_folder, clips_path, tmp_path, capsys):
    session = ["--runtime", "null", "--threads", "1"]
    out = tmp_path / "r.json"
    inputs = [str(slim_folder), "--dense", str(dense_folder), "--clips", str(clips_path)]
    status = main(["bench", *inputs, "--out", str(out), "--budget", "0.2", *session])
    said = capsys.readouterr().out
    assert status == 0
    assert "Accuracy: not decided: no loss on 40 clips, too few to rule out a loss of 8.76 points; " in said
    assert str(out) in said
    assert main(["eval", str(slim_folder), "--clips", str(clips_path), "--json", *session]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["clips"], answer["correct"], answer["accuracy"]) == (40, 30, 0.75)


def test_the_device_command_says_errors_in_one_line(slim_folder, tmp_path, capsys):
    assert main(["eval", str(tmp_path / "none"), "--clips", "x.npz", "--runtime", "null"]) == 2
    assert main(["eval", str(slim_folder), "--clips", str(tmp_path / "x.npz"), "--runtime", "tpu"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("leanear: ") for line in lines)


def test_doctor_names_runtimes_and_what_it_cannot_read(capsys):
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert set(facts["runtimes"]) == {"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"}
    assert facts["device"]["memory_bytes"] > 0
    assert main(["doctor"]) == 0
