"""The whole job for a tiny Whisper, on a runtime that computes nothing; and what its users may get wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from leanear.benchmarks.results import read_results
from leanear.cli.commands import run
from tests.conftest import write_tones
from tests.toolchain.recipes import recipe_flags
from tests.toolchain.speech_folder import write_speech_folder
from tests.whisper_models import write_whisper

pytestmark = pytest.mark.usefixtures("measured_here", "markdown_alone_here")

TARGET = """description = "Nothing"
runtime = "null"
graph_form = "portable"
precision = "fp32"
threads = 1
"""
TEXTS = [f"the colour of number {number}" for number in range(10)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_whisper(tmp_path_factory.mktemp("model") / "tiny-whisper")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_speech_folder(tmp_path_factory.mktemp("data") / "clips", TEXTS)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    path = tmp_path_factory.mktemp("target") / "nothing.toml"
    path.write_text(TARGET)
    return path


def deploy_arguments(model, data, target, out):
    clips = ["--calibration-clips", "4", "--budget", "1"]
    return ["deploy", str(model), "--data", str(data), "--target", str(target), "--out", str(out), *clips]


@pytest.fixture(scope="module")
def deployed(model, data, target, tmp_path_factory):
    out = tmp_path_factory.mktemp("deployed") / "out"
    assert run(deploy_arguments(model, data, target, out)) == 0
    return out


def only_complaint(capsys) -> str:
    said = capsys.readouterr().err.strip().splitlines()
    complaints = [line for line in said if line.startswith("leanear: ")]
    assert len(complaints) == 1, said
    assert not any("Traceback" in line for line in said)
    return complaints[0]


def test_everything_is_left_in_the_folder(deployed):
    for name in (
        "checkpoint/plan.json",
        "dense/encoder.onnx",
        "slim/decoder.onnx",
        "slim/vocabulary.json",
        "slim/voice.onnx",
        "report.md",
    ):
        assert (deployed / name).is_file(), name
    results = read_results(deployed / "results" / "null-fp32.json")
    assert results.is_speech
    errors = results.document["accuracy"]["word_errors"]
    assert errors["reference_words"] == [5] * 5
    assert "BasicTextNormalizer" in errors["metric"], "nobody said which of its four languages the model hears"
    report = (deployed / "report.md").read_text()
    for said in ("cross-attention, decoder to encoder", "## Word errors", "## Stages of a window", "real-time factor"):
        assert said in report


def test_what_is_done_is_not_done_again_and_other_transcripts_are_other_clips(
    deployed, model, data, target, tmp_path, capsys
):
    out = Path(shutil.copytree(deployed, tmp_path / "out"))
    assert run(deploy_arguments(model, data, target, out)) == 0
    printed = capsys.readouterr()
    assert "nothing to do" in printed.err
    assert "measuring" not in printed.err
    assert "word error rate" in printed.out
    assert "cache of keys and values" in printed.out
    corrected = Path(shutil.copytree(data, tmp_path / "corrected"))
    metadata = corrected / "metadata.csv"
    metadata.write_text(metadata.read_text().replace("number 3", "number three or four"))
    assert run(deploy_arguments(model, corrected, target, out)) == 0
    assert "reading 4 calibration and 5 evaluation clips: done" in capsys.readouterr().err


def test_bench_and_report_count_words(deployed, data, tmp_path, capsys):
    out = tmp_path / "results.json"
    arguments = ["bench", str(deployed / "slim"), "--data", str(data), "--budget", "1", "--out", str(out)]
    assert run([*arguments, "--threads", "1"]) == 0
    assert "word error rate" in capsys.readouterr().out
    results = json.loads(out.read_text())
    assert results["accuracy"]["word_errors"]["metric"].startswith("word error rate by jiwer")
    counted = results["accuracy"]["word_errors"]["roles"]
    results["accuracy"]["word_errors"] = None
    out.write_text(json.dumps(results))
    assert run(["report", str(out), "--out", str(tmp_path / "report"), "--max-drop", "5"]) == 6
    assert "INCONCLUSIVE" in capsys.readouterr().err, "one artifact alone"
    assert set(json.loads(out.read_text())["accuracy"]["word_errors"]["roles"]["slim"]) == set(counted["slim"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--speedup", "1.3", "--clip-seconds", "31"], "--clip-seconds 31: the model's window is 2 s"),
        (["--latency-ms", "9", "--tokens", "400"], "--tokens 400: behind the prompt the model's decoder has"),
        (["--sparsity", "0.5", "--tokens", "9"], "--tokens belongs to --speedup, --latency-ms and --rtf"),
    ],
)
def test_flags_that_make_no_sense_for_speech(model, data, target, tmp_path, capsys, flags, message):
    assert run([*deploy_arguments(model, data, target, tmp_path / "out"), *flags]) == 2
    assert message in only_complaint(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("key", "value"), [("pools", "by-kind"), ("sites", "self-attention")])
def test_keys_for_several_kinds_of_attention_are_for_models_that_have_them(tiny_folder, tmp_path, capsys, key, value):
    data = tmp_path / "tones"
    write_tones(data, 4)
    flags = recipe_flags(tmp_path, f'{key} = "{value}"')
    assert run(["prune", str(tiny_folder), "--data", str(data), "--out", str(tmp_path / "slim"), *flags]) == 2
    assert f"{key} is for models with several kinds of attention" in only_complaint(capsys)


@pytest.mark.parametrize(("recipe", "left"), [('sites = "self-attention"', {"cross"}), ('pools = "by-kind"', set())])
def test_kinds_of_attention_are_pruned_as_told(model, data, tmp_path, capsys, recipe, left):
    arguments = ["prune", str(model), "--data", str(data), "--calibration-clips", "4", "--sparsity", "0.3"]
    flags = ["--out", str(tmp_path / "slim"), "--json", *recipe_flags(tmp_path, recipe)]
    assert run([*arguments, *flags]) == 0
    shares = json.loads(capsys.readouterr().out)["sparsity_by_kind"]
    assert {kind for kind, share in shares.items() if share == 0} == left
    if not left:
        assert max(shares.values()) - min(shares.values()) < 0.15


@pytest.mark.parametrize("command", ["prune", "explore"])
def test_a_clip_longer_than_the_window_is_left_out_of_calibration_alone(model, data, tmp_path, caplog, command):
    """One clip of 3 s does not stop what the others are enough for."""
    import soundfile

    from tests.toolchain.speech_folder import RATE_HZ, sound

    folder = Path(shutil.copytree(data, tmp_path / "data" / "train"))
    soundfile.write(folder / "3.flac", sound(3, 3.0), RATE_HZ)
    shutil.copytree(folder, tmp_path / "data" / "test")
    arguments = [str(model), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "slim")]
    assert run([command, *arguments]) == 0
    left_out = "1 of 10 clips, train/3.flac the first, is not calibrated on: longer than the model's window of 2 s"
    assert caplog.messages.count(f"note: {left_out}") == 1


def test_deploying_with_a_long_and_a_silent_clip(model, data, target, tmp_path, caplog):
    """Both are evaluated and neither is calibrated on."""
    import soundfile

    from leanear.runtimes.clips import read_clips
    from tests.toolchain.speech_folder import RATE_HZ, sound

    train = Path(shutil.copytree(data, tmp_path / "data" / "train"))
    soundfile.write(train / "3.flac", sound(3, 3.0), RATE_HZ)
    metadata = train / "metadata.csv"
    metadata.write_text(metadata.read_text().replace(TEXTS[5], ""))
    shutil.copytree(train, tmp_path / "data" / "test")
    arguments = deploy_arguments(model, tmp_path / "data", target, tmp_path / "out")
    assert run([*arguments, "--calibration-clips", "10"]) == 0
    clips = {part: read_clips(tmp_path / "out" / "clips" / f"{part}.npz") for part in ("calibration", "evaluation")}
    assert {"train/3.flac", "train/5.flac"} & set(clips["calibration"].names) == set()
    assert len(clips["calibration"]) == 8
    assert len(clips["evaluation"]) == 10
    assert clips["evaluation"].texts[5] == ""
    assert len([message for message in caplog.messages if "window of 2 s" in message]) == 1
    assert len([message for message in caplog.messages if "an empty transcript" in message]) == 2


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("long", "the transcript takes more than"),
        ("empty", "the transcripts of all clips to calibrate on are empty"),
        ("stranger", "audio without transcripts: stranger.flac; metadata.csv does not list"),
        ("gone", "transcript without audio: line 5 names '3.flac'"),
        ("labels", "no column 'text' in its first line; it has 'label'"),
        ("window", "longer than the model's window of 2 s"),
    ],
)
def test_unusable_transcripts(model, data, tmp_path, capsys, kind, message):
    import numpy as np
    import soundfile

    folder = Path(shutil.copytree(data, tmp_path / "data"))
    metadata = folder / "metadata.csv"
    rows = metadata.read_text()
    if kind == "long":
        rows = rows.replace("the colour", "the colour " + "of the many things that one might say " * 9)
    if kind == "empty":
        for text in TEXTS:
            rows = rows.replace(text, "")
    if kind == "stranger":
        shutil.copy(folder / "0.flac", folder / "stranger.flac")
    if kind == "gone":
        (folder / "3.flac").unlink()
    if kind == "labels":
        rows = rows.replace("file_name,text", "file_name,label")
    if kind == "window":
        for path in folder.glob("*.flac"):
            soundfile.write(path, np.random.default_rng(0).normal(size=16000 * 3) * 0.1, 16000)
    metadata.write_text(rows)
    arguments = [
        "prune",
        str(model),
        "--data",
        str(folder),
        "--calibration-clips",
        "4",
        "--out",
        str(tmp_path / "slim"),
    ]
    assert run(arguments) == 2
    assert message in only_complaint(capsys)
    assert not (tmp_path / "slim").exists()
