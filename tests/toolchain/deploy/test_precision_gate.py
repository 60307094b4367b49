"""A precision ships if it costs little enough on clips of the gate's own; otherwise another does, and it is said."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from leanear.benchmarks.measure.transcripts import Transcript
from leanear.benchmarks.report.precision_section import precision_section, precision_sentences, read_precision
from leanear.benchmarks.report.report import write_report
from leanear.benchmarks.results import write_results
from leanear.deploy import precision_gate
from leanear.deploy.precision_gate import (
    Candidate,
    PrecisionGate,
    gate_clips,
    plain_precision,
    precision_stage,
    precisions_to_try,
    quantiser_clips,
    ships_by_record,
)
from leanear.progress import Narrator
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.choose import choose_runtime
from leanear.runtimes.clips import Clips, read_clips, write_clips
from leanear.runtimes.errors import BadInput, GateMissed, MeasurementFailed, ParityFailed
from leanear.runtimes.files import sha256_file
from leanear.targets.target import Target, read_target, with_precision
from tests.measured import loud_clip
from tests.runtimes.integer_artifact import rounded, set_precision, write_integer_artifact
from tests.runtimes.tiny_artifact import LABELS, expected_logits, loudness_weights, write_tiny_artifact

pytestmark = pytest.mark.usefixtures("measured_here")

FINE = 1 / 40 / 100  # of the weights, which are 0 or 1/40
COARSE = 0.06  # every weight is nearer to 0 than to this
CLIPS = 60
ALL_OPENVINO = ("fp32", "bf16", "int8", "int8-bf16")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A deployment folder with 60 calibration clips, of which the gate has 40."""
    clips = Clips(
        waveforms=tuple(loud_clip(number % len(LABELS), number) for number in range(CLIPS)),
        label_ids=np.arange(CLIPS) % len(LABELS),
        names=tuple(f"{number}.wav" for number in range(CLIPS)),
        labels=LABELS,
        sample_rate_hz=16_000,
    )
    write_clips(tmp_path / "clips" / "calibration.npz", clips)
    return tmp_path


@pytest.fixture
def narrator():
    narrator = Narrator()
    narrator.console = Console(file=io.StringIO(), width=400)
    return narrator


class Exporter:
    """Puts hand-made artifacts where the pipeline would, and remembers which it was asked to make."""

    def __init__(self, folder: Path, scale: float = FINE) -> None:
        self.folder, self.scale, self.made, self.raises = folder, scale, [], {}

    def __call__(self, precision: str) -> Path:
        if precision in self.raises:
            raise self.raises[precision]
        out = self.folder / "trials" / precision
        if not out.exists():
            self.made.append(precision)
            if precision == "int8":
                write_integer_artifact(out, loudness_weights(), self.scale)
            else:
                write_tiny_artifact(out, loudness_weights())
                set_precision(out, precision)
        return out


def candidate(folder, precision, export=None, runtime="onnxruntime", **target) -> Candidate:
    asked = Target("mine", "a target", runtime, "portable", precision, 1, 4, 4, **target)
    return Candidate(folder, asked, {"checkpoint": "x"}, export or Exporter(folder), None)


def said(narrator) -> str:
    return narrator.console.file.getvalue()


def slim_precision(folder) -> str:
    return read_artifact(folder / "slim").manifest.graphs["classifier"].precision


def test_8_bits_that_cost_nothing_ship(folder, narrator):
    assert precision_stage(candidate(folder, "int8"), PrecisionGate(), narrator) == ("int8", True)
    assert slim_precision(folder) == "int8"
    document = read_precision(folder / "precision.json")
    (trial,) = document.trials
    assert (trial.verdict, trial.differing, trial.reference, trial.measured) == ("PASS", 0, 1.0, 1.0)
    assert (document.gate.clips, document.gate.quantiser_clips) == (40, 20)
    assert document.slim_manifest_sha256 == sha256_file(folder / "slim" / "manifest.json")
    assert "int8 passed its gate: 0 points of accuracy against fp32" in said(narrator)


def test_8_bits_that_are_too_coarse_fall_back_and_it_is_said(folder, narrator):
    export = Exporter(folder, COARSE)
    assert precision_stage(candidate(folder, "int8", export), PrecisionGate(), narrator) == ("fp32", True)
    assert slim_precision(folder) == "fp32"
    document = read_precision(folder / "precision.json")
    (trial,) = document.trials
    clips = gate_clips(read_clips(folder / "clips" / "calibration.npz"))
    answers = [int(expected_logits(w, rounded(loudness_weights(), COARSE)).argmax()) for w in clips.waveforms]
    right = float((np.array(answers) == clips.label_ids).mean())
    assert trial.verdict == "FAIL"
    assert trial.measured == pytest.approx(right)
    assert trial.change.estimate == pytest.approx(right - 1.0)
    assert trial.differing == sum(answers != clips.label_ids)
    for text in (said(narrator), " ".join(precision_sentences(document))):
        assert "int8 missed its gate: a loss of 75 points of accuracy against fp32" in text
        assert "on 40 calibration clips, where at most 1 point may be lost; the whole 95% interval" in text
        assert "is beyond it; the answer is another one on 30" in text
    assert "fp32 ships in place of int8" in said(narrator)
    assert precision_sentences(document)[0] == (
        "The slim model ships in fp32, not in int8 as it was asked for, because of the precision gate."
    )


def test_without_fallback_a_miss_is_an_error_and_nothing_ships(folder, narrator):
    strict, export = PrecisionGate(fallback=False), Exporter(folder, COARSE)
    with pytest.raises(GateMissed, match=r"precision gate: int8 missed its gate: a loss of 75 points") as caught:
        precision_stage(candidate(folder, "int8", export), strict, narrator)
    assert caught.value.exit_status == 6
    assert not (folder / "slim").exists()
    precision_stage(candidate(folder, "int8", export), PrecisionGate(), narrator)
    with pytest.raises(GateMissed, match="int8 missed its gate"):
        precision_stage(candidate(folder, "int8", export), strict, narrator)
    assert export.made == ["int8", "fp32"]


def test_a_verdict_is_kept_until_what_it_was_made_from_changes(folder, narrator):
    export = Exporter(folder, COARSE)
    asked = candidate(folder, "int8", export)
    assert ships_by_record(asked, PrecisionGate()) is None
    precision_stage(asked, PrecisionGate(), narrator)
    assert ships_by_record(asked, PrecisionGate()) == "fp32"
    assert precision_stage(asked, PrecisionGate(), narrator) == ("fp32", False)
    assert ships_by_record(asked, PrecisionGate(80.0)) is None
    assert precision_stage(asked, PrecisionGate(80.0), narrator) == ("int8", True)
    assert slim_precision(folder) == "int8"
    assert export.made == ["int8", "fp32"]
    (folder / "slim" / "manifest.json").unlink()
    assert precision_stage(asked, PrecisionGate(80.0), narrator) == ("int8", True)
    assert ships_by_record(candidate(folder, "fp32"), PrecisionGate()) == "fp32"


def test_an_interrupted_gate_goes_on(folder, narrator, monkeypatch):
    evaluated, evaluate = [], precision_gate.evaluate_logits

    def interrupted(artifact, *arguments, **keywords):
        if artifact.name == "int8" and len(evaluated) < 2:
            evaluated.append("int8, interrupted")
            raise KeyboardInterrupt
        evaluated.append(artifact.name)
        return evaluate(artifact, *arguments, **keywords)

    monkeypatch.setattr(precision_gate, "evaluate_logits", interrupted)
    export = Exporter(folder)
    with pytest.raises(KeyboardInterrupt):
        precision_stage(candidate(folder, "int8", export), PrecisionGate(), narrator)
    assert not (folder / "precision.json").exists()
    (kept,) = (folder / "trials").glob("answers-fp32-*.npz")
    changed = kept.stat().st_mtime_ns
    assert precision_stage(candidate(folder, "int8", export), PrecisionGate(), narrator) == ("int8", True)
    assert (export.made, evaluated) == (["int8", "fp32"], ["fp32", "int8, interrupted", "fp32", "int8"])
    assert kept.stat().st_mtime_ns == changed, "the answers were kept"


def test_the_slower_precisions_are_tried_in_turn(folder, narrator):
    if choose_runtime("openvino").precisions() != ALL_OPENVINO:
        pytest.skip("this CPU does not have all of them")
    export = Exporter(folder, COARSE)
    ships, _ = precision_stage(candidate(folder, "int8-bf16", export, "openvino"), PrecisionGate(), narrator)
    assert ships == "bf16"
    assert slim_precision(folder) == "fp32", "bf16 is a way to run a graph of float32"
    document = read_precision(folder / "precision.json")
    assert [(trial.precision, trial.verdict) for trial in document.trials] == [
        ("int8-bf16", "FAIL"),
        ("int8", "FAIL"),
        ("bf16", "PASS"),
    ]
    assert export.made == ["int8", "fp32"]
    rows = precision_section(document).blocks[-2].rows
    assert [row[0] for row in rows] == ["int8-bf16", "int8", "bf16"]


@pytest.mark.parametrize(
    ("asked", "offered", "tried"),
    [
        ("int8-bf16", ALL_OPENVINO, ("int8-bf16", "int8", "bf16", "fp32")),
        ("int8", ("fp32", "int8"), ("int8", "fp32")),
        ("int8", ALL_OPENVINO, ("int8", "bf16", "fp32")),
        ("bf16", ALL_OPENVINO, ("bf16", "fp32")),
        ("fp16", ("fp32", "fp16"), ("fp16", "fp32")),
        ("int8", ("fp32", "fp16", "int8"), ("int8", "fp16", "fp32")),
        ("int8", ("fp32", "bf16", "fp16", "int8"), ("int8", "fp16", "bf16", "fp32")),
    ],
)
def test_what_is_tried_after_a_miss(asked, offered, tried):
    assert precisions_to_try(asked, offered) == tried


def test_no_gpus_bf16_takes_the_place_of_another_precision_unjudged(folder):
    asked = candidate(folder, "int8", runtime="tensorrt", on_device=True).target
    assert precisions_to_try("int8", precision_gate._offered(asked)) == ("int8", "fp16", "fp32")
    asked = candidate(folder, "bf16", runtime="tensorrt", on_device=True).target
    assert precisions_to_try("bf16", precision_gate._offered(asked)) == ("bf16", "fp32")


@pytest.mark.parametrize(
    ("runtime", "ships", "plain"),
    [
        ("onnxruntime", "int8", "fp32"),
        ("openvino", "int8-bf16", "fp32"),
        ("tensorrt", "fp16", "fp16"),
        ("tensorrt_rtx", "fp32", "fp32"),
    ],
)
def test_what_the_dense_model_is_measured_in(runtime, ships, plain):
    assert plain_precision(runtime, ships) == plain


def test_the_gate_has_clips_of_its_own(folder):
    clips = read_clips(folder / "clips" / "calibration.npz")
    assert [quantiser_clips(number) for number in (1, 6, 9, 60, 192, 256, 5000)] == [1, 6, 6, 20, 64, 64, 64]
    own = gate_clips(clips)
    assert own.names == clips.names[20:]
    assert list(own.label_ids) == list(clips.label_ids[20:])
    many = dataclasses.replace(
        clips, waveforms=clips.waveforms * 10, names=clips.names * 10, label_ids=np.tile(clips.label_ids, 10)
    )
    assert len(gate_clips(many)) == 192


def test_a_loss_of_just_what_is_allowed_passes(folder, narrator, monkeypatch):
    def answered(artifact, clips, *_, **__):
        read = read_clips(clips)
        truth, wrong = read.label_ids, 2 if artifact.name == "int8" else 0
        predicted = np.where(np.arange(len(truth)) < wrong, (truth + 1) % len(LABELS), truth)
        return read, np.eye(len(LABELS), dtype=np.float32)[predicted]

    monkeypatch.setattr(precision_gate, "evaluate_logits", answered)
    assert precision_stage(candidate(folder, "int8"), PrecisionGate(5.0), narrator)[0] == "int8"
    assert precision_stage(candidate(folder, "int8"), PrecisionGate(4.99), narrator)[0] == "fp32"


def test_too_few_clips_are_no_gate_and_it_is_said(folder, narrator):
    path = folder / "clips" / "calibration.npz"
    clips = read_clips(path)
    few = dataclasses.replace(
        clips, waveforms=clips.waveforms[:5], names=clips.names[:5], label_ids=clips.label_ids[:5]
    )
    write_clips(path, few)
    assert precision_stage(candidate(folder, "int8", Exporter(folder, COARSE)), PrecisionGate(), narrator)[0] == "int8"
    document = read_precision(folder / "precision.json")
    assert "int8 was not gated: all calibration clips calibrate the quantiser" in " ".join(
        precision_sentences(document)
    )


def test_a_runtime_that_is_elsewhere_is_not_gated_and_it_is_said(folder, narrator, monkeypatch):
    monkeypatch.setattr(
        "leanear.runtimes.backends.openvino_cpu.available", lambda: "the package openvino does not import"
    )
    asked = candidate(folder, "int8", Exporter(folder, COARSE), "openvino", on_device=True)
    assert precision_stage(asked, PrecisionGate(), narrator)[0] == "int8"
    assert "int8 was not gated: the package openvino does not import" in said(narrator)


def test_a_precision_that_only_the_device_has_is_not_gated(folder, narrator, monkeypatch):
    monkeypatch.setattr("leanear.runtimes.backends.openvino_cpu.precisions", lambda: ("fp32",))
    asked = candidate(folder, "bf16", runtime="openvino", on_device=True)
    assert precision_stage(asked, PrecisionGate(), narrator)[0] == "bf16"
    assert "bf16 was not gated: openvino does not compute in bf16 on this machine" in said(narrator)


def test_engines_are_stood_for_by_onnxruntime(folder, narrator, monkeypatch):
    monkeypatch.setattr("leanear.runtimes.backends.tensorrt_gpu.available", lambda: "no GPU")
    asked = candidate(folder, "fp16", runtime="tensorrt", on_device=True)
    assert precision_stage(asked, PrecisionGate(), narrator)[0] == "fp16"
    document = read_precision(folder / "precision.json")
    assert document.trials[0].verdict == "PASS"
    assert document.gate.runtime == "onnxruntime"
    assert "rounds weights to float16" in precision_section(document).blocks[-1].text

    def refused(*_, **__):
        raise BadInput("model.onnx: ONNX Runtime refuses the graph")

    monkeypatch.setattr(precision_gate, "evaluate_logits", refused)
    assert precision_stage(asked, PrecisionGate(2.0), narrator)[0] == "fp16"
    assert "fp16 was not gated: model.onnx: ONNX Runtime refuses the graph" in said(narrator)


def test_a_graph_that_its_proof_refuses_fails_before_its_gate(folder, narrator):
    export = Exporter(folder)
    export.raises = {"int8": ParityFailed("decoder.onnx: products in 8 bits move the logits by 3 of their spread")}
    assert precision_stage(candidate(folder, "int8", export), PrecisionGate(), narrator)[0] == "fp32"
    document = read_precision(folder / "precision.json")
    text = " ".join(precision_sentences(document))
    assert "int8 failed before its gate: decoder.onnx: products in 8 bits move the logits by 3" in text
    assert precision_section(document).blocks[2].rows[0] == ("int8", *("not measured",) * 4, "FAIL")
    export.raises["fp32"] = ParityFailed("the model itself")
    with pytest.raises(ParityFailed, match="the model itself"):
        precision_stage(candidate(folder, "int8", export), PrecisionGate(2.0), narrator)


def test_answers_that_are_no_numbers_fail_the_gate(folder, narrator, monkeypatch):
    evaluate = precision_gate.evaluate_logits

    def overflowing(artifact, *arguments, **keywords):
        if artifact.name == "int8":
            raise MeasurementFailed("logits: the graph gave NaN or infinite values")
        return evaluate(artifact, *arguments, **keywords)

    monkeypatch.setattr(precision_gate, "evaluate_logits", overflowing)
    assert precision_stage(candidate(folder, "int8"), PrecisionGate(), narrator)[0] == "fp32"
    assert "int8 failed before its gate: logits: the graph gave NaN" in said(narrator)

    def dead(*_, **__):
        raise MeasurementFailed("it was killed")

    monkeypatch.setattr(precision_gate, "evaluate_logits", dead)
    with pytest.raises(MeasurementFailed, match="it was killed"):
        precision_stage(candidate(folder, "int8"), PrecisionGate(2.0), narrator)


def test_speech_is_judged_by_its_words(tmp_path, narrator, monkeypatch):
    from tests.benchmarks.speech_artifact import write_speech_artifact

    texts = ("the cat sat", "a dog ran home", "lights on", "seven lights off") * 5
    clips = Clips(
        waveforms=tuple(np.full(1600, 0.01, np.float32) for _ in texts),
        label_ids=np.zeros(0, np.int64),
        names=tuple(f"{number}.wav" for number in range(len(texts))),
        labels=(),
        sample_rate_hz=16_000,
        texts=texts,
    )
    write_clips(tmp_path / "clips" / "calibration.npz", clips)
    heard = {"fp32": ("the cat sat!", "a dog ran home", "lights on", "seven lights of")}
    heard["fp16"] = heard["fp32"]
    heard["int8"] = ("The cat, sat", "a dog run", "lights on", "seven lights of")

    def transcribed(artifact, path, *_, **__):
        references = read_clips(path).texts
        by_text = dict(zip(texts, heard[artifact.name] * 5, strict=True))
        return tuple(Transcript(by_text[text], "en", 3, 1.0, 0.1) for text in references)

    def export(precision):
        out = tmp_path / "trials" / precision
        return out if out.exists() else write_speech_artifact(out, source=precision)

    monkeypatch.setattr(precision_gate, "evaluate_transcripts", transcribed)
    asked = candidate(tmp_path, "int8", export, "null")
    ships, _ = precision_stage(asked, PrecisionGate(20.0), narrator)
    document = read_precision(tmp_path / "precision.json")
    (trial,) = document.trials
    gated = texts[6:]  # from "lights on": 4 of "lights on", 4 of "seven lights off", 3 of each of the others
    words = sum(len(text.split()) for text in gated)
    dog, off = gated.count("a dog ran home"), gated.count("seven lights off")
    assert trial.reference == pytest.approx(off / words)
    assert trial.measured == pytest.approx((off + 2 * dog) / words)
    assert trial.change.estimate == pytest.approx(2 * dog / words)
    assert trial.differing == dog, "a comma is no other answer"
    assert (ships, document.metric) == ("int8", "word error rate")
    assert "where at most 20 points may be added" in said(narrator)
    assert precision_stage(asked, PrecisionGate(10.0), narrator)[0] == "fp16", "it is over 10 points"
    assert trial.change.estimate > 0.1


def test_the_report_says_what_was_asked_measured_and_shipped(folder, narrator, null_results, markdown_alone):
    export = Exporter(folder, COARSE)
    precision_stage(candidate(folder, "int8", export), PrecisionGate(), narrator)
    results = json.loads(json.dumps(null_results.document))
    results["artifacts"]["slim"]["manifest_sha256"] = sha256_file(folder / "slim" / "manifest.json")
    write_results(folder / "r.json", results)
    paths = write_report(folder / "r.json", folder / "out", precision_path=folder / "precision.json")
    text = paths.markdown.read_text()
    (summary,) = [line for line in text.split("\n") if line.startswith("The slim model ships")]
    assert summary.startswith("The slim model ships in fp32, not in int8 as it was asked for")
    assert "int8 missed its gate: a loss of 75 points of accuracy" in summary
    assert "It ships in fp32, not in int8.**" in text
    assert text.index("## Precision") < text.index("## Latency")
    assert "**Asked for: int8. Ships: fp32.**" in text
    results["artifacts"]["slim"]["manifest_sha256"] = "another"
    write_results(folder / "r.json", results)
    paths = write_report(folder / "r.json", folder / "out", precision_path=folder / "precision.json")
    assert "## Precision" not in paths.markdown.read_text(), "it tells of another artifact"


def test_a_target_can_be_given_another_precision():
    assert with_precision(read_target("cpu"), None) == read_target("cpu")
    assert with_precision(read_target("openvino"), "int8-bf16").precision == "int8-bf16"
    with pytest.raises(BadInput, match="--precision bf16: onnxruntime computes in fp32, int8"):
        with_precision(read_target("cpu"), "bf16")
    with pytest.raises(BadInput, match="--precision int8-bf16: tensorrt computes in fp32, bf16, fp16"):
        with_precision(read_target("jetson"), "int8-bf16")
    assert with_precision(read_target("jetson"), "bf16").precision == "bf16"
