"""Goals in time for a tiny Whisper through the command line; milliseconds are by a known law, nothing is timed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from leanear.cli.commands import run
from leanear.families import whisper
from leanear.families.checkpoint import load_checkpoint
from leanear.targets.target import read_target
from leanear.timing import model_timing
from leanear.timing.block_timing import InTurn
from leanear.timing.latency_table import HEAD_PARTS
from leanear.timing.speech_latency import KINDS, SpeechTable
from leanear.timing.speech_timing import speech_geometry
from leanear.timing.speech_work import SpeechWork
from tests.toolchain.recipes import recipe_flags
from tests.toolchain.speech_folder import write_speech_folder
from tests.whisper_models import write_whisper

REST_MS, COLUMN_MS = 10.0, {"encoder": 0.05, "decoder": 0.02, "cross": 0.04}
DENSE_MS = REST_MS + 2 * 2 * 2 * 16 * sum(COLUMN_MS.values())  # two blocks of each kind, two heads of 16 and 16


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_whisper(tmp_path_factory.mktemp("model") / "tiny-whisper")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_speech_folder(tmp_path_factory.mktemp("data") / "clips", [f"the colour of {n}" for n in range(10)])


@pytest.fixture
def asked(monkeypatch) -> list:
    """Tables and finished models by a law of the columns that the graphs hold; what was to be timed is kept."""
    seen: list = []

    def table(checkpoint, target, work):
        seen.append((target, work))
        columns = {kind: dict.fromkeys(("query_key_ms", "value_output_ms"), COLUMN_MS[kind]) for kind in KINDS}
        parts = {kind: {**dict.fromkeys(HEAD_PARTS, 0.0), **columns[kind]} for kind in KINDS}
        made = SpeechTable(speech_geometry(checkpoint, work), "portable", REST_MS, parts, (), 0.0, {})
        return SimpleNamespace(get=lambda **_: made, kept=lambda: made)

    def measured(self, slim, *_):
        costs = self.attention.kept()
        sites = [
            list(zip(site.query_key_widths, site.value_output_widths, strict=True))
            for site in whisper.attention_sites(slim)
        ]
        return InTurn(DENSE_MS, costs.model_ms(sites))

    monkeypatch.setattr(model_timing, "speech_table", table)
    monkeypatch.setattr(model_timing.SpeechTiming, "dense_and_slim", measured)
    return seen


def arguments(model: Path, data: Path, out: Path) -> list[str]:
    flags = ["--out", str(out), "--calibration-clips", "5", *recipe_flags(out.parent / "recipes", "compensate = false")]
    return ["prune", str(model), "--data", str(data), *flags]


@pytest.mark.parametrize(
    ("goal", "most_ms"), [("--speedup 1.25", DENSE_MS / 1.25), ("--latency-ms 19", 19.0), ("--rtf 0.016", 16.0)]
)
def test_a_goal_is_met_by_the_finished_model(model, data, tmp_path, asked, capsys, goal, most_ms):
    flags = [*goal.split(), "--clip-seconds", "1", "--tokens", "9", "--precision", "int8", "--window", "full", "--json"]
    assert run([*arguments(model, data, tmp_path / "slim"), *flags]) == 0
    facts = json.loads(capsys.readouterr().out)["pruning"]
    check = facts["latency_checks"][-1]
    assert check["met"]
    assert check["measured_ms"] <= most_ms * 1.005
    assert check["predicted_ms"] == pytest.approx(check["measured_ms"])
    assert facts["timed"] == {"precision": "int8", "audio_s": 1.0, "tokens": 9, "window": "full", "window_s": 2.0}
    assert {(target.precision, work.tokens, work.clip_samples) for target, work in asked} == {("int8", 9, 16_000)}
    slim = load_checkpoint(tmp_path / "slim")
    assert slim.model.__class__.__name__.startswith("Slim")
    plan = json.loads((tmp_path / "slim" / "plan.json").read_text())
    assert (plan["recipe"]["work_clip_s"], plan["recipe"]["work_tokens"]) == (1.0, 9)


def test_prediction_and_measurement_are_said(model, data, tmp_path, asked, capsys):
    assert run([*arguments(model, data, tmp_path / "slim"), "--speedup", "1.2"]) == 0
    said = capsys.readouterr().out
    assert "Timed when it was pruned, 2 s of audio in a window of 2 s and 7 tokens, in fp32: predicted" in said
    assert "The goal was met, by plan 1 of 1." in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--speedup 3", "--speedup 3: 8.027 ms are out of reach: the narrowest model"),
        ("--rtf 0.001", "--rtf 0.001: 2 ms are out of reach"),
        ("--speedup 1.2 --clip-seconds 2.5", "--clip-seconds 2.5: the model's window is 2 s"),
        ("--speedup 1.2 --tokens 99", "--tokens 99: behind the prompt the model's decoder has"),
        ("--speedup 1.2 --rtf 0.1", "--speedup and --rtf: give one of them"),
        ("--tokens 9", "--tokens belongs to --speedup, --latency-ms and --rtf"),
        ("--clip-seconds 1", "--clip-seconds belongs to --speedup, --latency-ms and --rtf"),
        ("--window full", "--window belongs to --speedup, --latency-ms and --rtf"),
        ("--precision int8", "--precision belongs to --speedup, --latency-ms and --rtf"),
        ("--speedup 1.2 --target jetson", "--speedup: engines in fp16, the precision of target jetson, are not timed"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(model, data, tmp_path, asked, capsys, flags, message):
    assert run([*arguments(model, data, tmp_path / "slim"), *flags.split()]) == 2
    (complaint,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("leanear: "))
    assert message in complaint
    assert not (tmp_path / "slim").exists()


def test_a_classifier_has_one_window(tiny_folder):
    checkpoint = load_checkpoint(tiny_folder)
    timing = model_timing.timing_of(checkpoint, read_target("cpu"), SpeechWork())
    assert timing.audio_s == pytest.approx(checkpoint.model.config.max_length / 100)
