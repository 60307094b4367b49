"""`--window` from the command line to manifest, results, report and comparison, on a tiny Whisper of a 6 s window."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from leanear.benchmarks.results import read_results
from leanear.cli.commands import run
from tests.conftest import write_tones
from tests.toolchain.deploy.test_speech_deploy import TARGET, TEXTS, deploy_arguments, only_complaint
from tests.toolchain.speech_folder import write_speech_folder
from tests.whisper_models import write_whisper

pytestmark = pytest.mark.usefixtures("measured_here")

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_whisper(tmp_path_factory.mktemp("model") / "six-seconds", window_s=6, positions=48, seed=3, calm=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_speech_folder(tmp_path_factory.mktemp("data") / "clips", TEXTS)


@pytest.fixture(scope="module")
def artifact(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("artifact") / "short"
    assert run(["export", str(model), "--window", "4", "--out", str(out)]) == 0
    return out


@pytest.fixture
def clip(tmp_path):
    samples = 0.3 * np.random.default_rng(0).standard_normal(round(1.5 * RATE_HZ))
    soundfile.write(tmp_path / "clip.wav", np.clip(samples, -1, 1), RATE_HZ)
    return tmp_path / "clip.wav"


def windows_of(folder) -> dict:
    return json.loads((folder / "manifest.json").read_text())["input"]["windows"]


def test_deploy_ships_the_window_and_says_so(model, data, tmp_path, markdown_alone):
    (tmp_path / "nothing.toml").write_text(TARGET)
    out = tmp_path / "out"
    arguments = [*deploy_arguments(model, data, tmp_path / "nothing.toml", out), "--window", "4"]
    assert run(arguments) == 0
    assert windows_of(out / "dense") == {"choice": "full", "lengths": [96_000], "tail": 0}
    assert windows_of(out / "slim") == {"choice": "4", "lengths": [64_000, 96_000], "tail": 32_000}
    results = read_results(out / "results" / "null-fp32.json")
    assert results.content.options.windows == {"dense": "full (6 s)", "slim": "4 s (else 6 s)"}
    answers = results.document["accuracy"]["roles"]
    assert all(len(answers[role]["second_tries"]) == len(answers[role]["texts"]) for role in ("dense", "slim"))
    assert sum(answers["dense"]["second_tries"]) == 0
    report = (out / "report.md").read_text()
    for said in ("4 s (else 6 s)", "full (6 s)", "second tries", "heard by dense in: full"):
        assert said in report
    slim = (out / "slim" / "manifest.json").stat().st_mtime_ns
    assert run(arguments) == 0
    assert (out / "slim" / "manifest.json").stat().st_mtime_ns == slim, "nothing is done twice"


def test_transcribe_counts_second_tries(artifact, clip, capsys):
    assert run(["transcribe", str(clip), "--model", str(artifact), "--threads", "1", "--output-format", "json"]) == 0
    printed = capsys.readouterr()
    windows = json.loads(printed.out)["windows"]
    assert windows["decoded"] >= windows["short"] >= windows["second_tries"]
    assert windows["short"] >= 1
    assert sum(windows["second_tries_because"].values()) == windows["second_tries"]
    assert ("heard again" in printed.err) == (windows["second_tries"] > 0)
    base = ["transcribe", str(clip), "--model", str(artifact), "--threads", "1"]
    assert run([*base, "--window", "full", "--output-format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["windows"]["short"] == 0


def test_a_checkpoint_is_heard_in_short_windows_as_its_artifact_is(model, artifact, clip, capsys):
    said = []
    for which in (model, artifact):
        options = ["--window", "4", "--threads", "1", "--temperatures", "0", "--output-format", "json"]
        assert run(["transcribe", str(clip), "--model", str(which), *options]) == 0
        document = json.loads(capsys.readouterr().out)
        said.append(([segment["tokens"] for segment in document["segments"]], document["windows"]))
    assert said[0] == said[1]


def test_bench_and_compare_say_the_window(artifact, data, tmp_path, capsys):
    for name, flags in (("short", []), ("full", ["--window", "full"])):
        out = str(tmp_path / f"{name}.json")
        common = ["--data", str(data), "--threads", "1", "--budget", "1"]
        assert run(["bench", str(artifact), *common, "--out", out, *flags]) == 0
    assert read_results(tmp_path / "short.json").content.options.windows == {"slim": "4 s (else 6 s)"}
    assert read_results(tmp_path / "full.json").content.options.windows == {"slim": "full (6 s)"}
    capsys.readouterr()
    assert run(["compare", str(tmp_path / "full.json"), str(tmp_path / "short.json"), "--json"]) in (0, 8)
    compared = json.loads(capsys.readouterr().out)
    different = {each["name"]: each for each in compared["circumstances"] if each["a"] != each["b"]}
    assert different["encoder's window"]["b"] == "4 s (else 6 s)"


def test_what_is_no_window_is_refused_in_one_line(model, artifact, clip, data, tiny_folder, tmp_path, capsys):
    full, out, tones = tmp_path / "full", str(tmp_path / "out"), tmp_path / "tones"
    write_tones(tones, 4)
    assert run(["export", str(model), "--window", "full", "--out", str(full)]) == 0
    capsys.readouterr()
    for arguments, complaint in (
        (["export", str(model), "--window", "half", "--out", out], "--window half: expected full, auto, or seconds"),
        (["export", str(model), "--window", "1.5", "--out", out], "--window 1.5"),
        (["export", str(model), "--window", "7", "--out", out], "up to the model's own 6"),
        (["export", str(model), "--form", "tensorrt", "--window", "4", "--out", out], "full one alone"),
        (["export", str(tiny_folder), "--window", "auto", "--out", out], "it is for Whisper"),
        (["deploy", str(tiny_folder), "--data", str(tones), "--window", "auto", "--out", out], "it is for Whisper"),
        (
            ["prune", str(tiny_folder), "--data", str(tones), "--speedup", "2", "--window", "4", "--out", out],
            "it is for Whisper",
        ),
        (["deploy", str(model), "--data", str(data), "--target", "jetson", "--window", "4", "--out", out], "full one"),
        (["transcribe", str(clip), "--model", str(full), "--window", "4"], "takes its full window alone"),
        (["transcribe", str(clip), "--model", str(artifact), "--window", "9"], "up to the model's own 6"),
        (["bench", str(full), "--window", "4", "--out", out], "takes its full window alone"),
    ):
        assert run(arguments) == 2, arguments
        assert complaint in only_complaint(capsys), arguments
    assert not (tmp_path / "out").exists()


def test_the_default_is_auto_where_graphs_take_it(model, tmp_path):
    assert run(["export", str(model), "--out", str(tmp_path / "portable")]) == 0
    assert windows_of(tmp_path / "portable") == {"choice": "auto", "lengths": [96_000], "tail": 0}, "6 s are short"
