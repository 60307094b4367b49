"""Notes: one line each on standard error, beside a result that standard output holds alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from leanear.benchmarks.device.classify import classify_files
from leanear.cli.commands import run
from leanear.runtimes.process.notes import note_first
from leanear.runtimes.sessions import SessionOptions
from tests.conftest import tone
from tests.runtimes.tiny_artifact import loudness_weights, write_tiny_artifact
from tests.wav_bytes import wav_bytes

ROOT = Path(__file__).parents[3]


def test_notes_go_to_standard_error_and_results_to_standard_output(tmp_path):
    model = write_tiny_artifact(tmp_path / "artifact", loudness_weights())
    stereo = np.stack([tone(300), -tone(300)], axis=1) * 32767
    (tmp_path / "odd.wav").write_bytes(wav_bytes(stereo.astype("<i2").tobytes(), channels=2, data_size=8_000))
    command = [sys.executable, "-m", "leanear.entry", "classify", "odd.wav", "--json", "--model", str(model)]
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)[0]["label"]
    notes = [line for line in ended.stderr.splitlines() if line.startswith("note: ")]
    assert len(notes) == 3
    assert notes[0].startswith("note: odd.wav: its header promises 8,000 bytes of audio")
    assert notes[1].startswith("note: odd.wav: its channels cancel")
    assert notes[2] == "note: odd.wav: the model hears only the first 0.01 s of 0.40 s"


@pytest.mark.parametrize(("seconds", "said"), [(0.4, []), (0.5, []), (2.0, ["only the first 0.47 s of 2.00 s"])])
def test_a_clip_that_the_model_hears_only_a_part_of(tiny_folder, tmp_path, caplog, seconds, said):
    soundfile.write(tmp_path / "clip.wav", tone(300, seconds), 16_000)
    assert run(["classify", str(tmp_path / "clip.wav"), "--model", str(tiny_folder)]) == 0
    assert [f"note: {tmp_path / 'clip.wav'}: the model hears {each}" for each in said] == caplog.messages


@pytest.mark.parametrize(("kind", "rate_hz"), [("flac", 8000), ("ogg", 44_100), ("wav", 96_000), ("mp3", 16_000)])
def test_how_much_is_not_heard_is_said_by_the_header(tiny_folder, tmp_path, caplog, kind, rate_hz):
    path = tmp_path / f"long.{kind}"
    soundfile.write(path, np.zeros((5 * rate_hz, 2)), rate_hz)
    assert soundfile.info(path).duration == pytest.approx(5, abs=0.1)
    assert run(["classify", str(path), "--model", str(tiny_folder)]) == 0
    of_all = "" if kind == "mp3" else " of 5.00 s"  # an MP3's length is a guess until it was read
    assert caplog.messages == [f"note: {path}: the model hears only the first 0.47 s{of_all}"]


def test_what_lies_behind_the_window_is_not_read(tiny_folder, tmp_path, caplog):
    samples = tone(300, 40.0).astype(np.float32)
    samples[39 * 16_000 :] = np.nan  # whoever reads it refuses it
    soundfile.write(tmp_path / "long.wav", samples, 16_000, subtype="FLOAT")
    assert run(["classify", str(tmp_path / "long.wav"), "--model", str(tiny_folder)]) == 0
    assert caplog.messages == [f"note: {tmp_path / 'long.wav'}: the model hears only the first 0.47 s of 40.00 s"]
    write_tiny_artifact(tmp_path / "artifact", loudness_weights())
    ((_, ranked),) = classify_files(
        tmp_path / "artifact", [tmp_path / "long.wav"], "null", SessionOptions(threads=1), 1
    )
    assert ranked


def test_clips_of_a_folder_that_are_heard_in_part_are_counted(tiny_folder, tmp_path, caplog):
    for label, seconds in (("yes", 0.4), ("up", 2.0)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(4):
            soundfile.write(tmp_path / "data" / label / f"{number}.wav", tone(300, seconds), 16_000)
    assert run(["eval", str(tiny_folder), "--data", str(tmp_path / "data"), "--calibration-clips", "2"]) == 0
    assert caplog.messages == [
        f"note: {tmp_path / 'data'}: the model hears only the first 0.47 s of 2 of 4 clips, which are longer"
    ]


def test_a_device_says_so_too(tmp_path, caplog):
    matrix = loudness_weights()
    write_tiny_artifact(tmp_path / "artifact", matrix)
    for name, seconds in (("short.wav", 0.05), ("long.wav", 1.0)):
        soundfile.write(tmp_path / name, tone(300, seconds), 16_000)
    paths = [tmp_path / "short.wav", tmp_path / "long.wav"]
    list(classify_files(tmp_path / "artifact", paths, "null", SessionOptions(threads=1), 1))
    assert caplog.messages == [f"note: {paths[1]}: the model hears only the first 0.01 s of 1.00 s"]


def test_many_notes_of_one_kind_are_counted(caplog):
    note_first([f"{number}.wav: odd" for number in range(3)], "clip")
    for number in (4, 8):
        note_first([f"{number}.wav: odd" for number in range(number)], "clip")
    first = [f"note: {number}.wav: odd" for number in range(3)]
    more = ["note: and so of 1 more clip", "note: and so of 5 more clips"]
    assert caplog.messages == [*first, *first, more[0], *first, more[1]]


def test_a_clip_that_is_no_sample_at_the_models_rate_is_named(tiny_folder, tmp_path, capsys):
    soundfile.write(tmp_path / "click.wav", np.full(1, 0.5), 96_000)
    assert run(["classify", str(tmp_path / "click.wav"), "--model", str(tiny_folder)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"leanear: {tmp_path / 'click.wav'}: no audio left at 16000 Hz: it is shorter than one sample"
