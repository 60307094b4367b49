"""Which window audio is put in: by hand, second by second."""

from __future__ import annotations

import json

import pytest

from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.errors import BadInput
from leanear.runtimes.speech.encoder_windows import (
    EncoderWindows,
    artifact_windows,
    check_window_choice,
    choose_windows,
    full_window,
    windows_text,
)
from tests.export.whisper_cases import small_artifact

RATE_HZ, STEP = 16_000, 320
FULL = 30 * RATE_HZ


def chosen(choice: str, full: int = FULL) -> EncoderWindows:
    return choose_windows(choice, full, RATE_HZ, STEP)


@pytest.mark.parametrize(
    ("audio_s", "window_s"),
    [(0.1, 10), (8.0, 10), (8.001, 12), (9.0, 12), (13.1, 16), (25.9, 28), (26.1, 30), (28.5, 30), (30, 30)],
)
def test_the_shortest_window_that_holds_the_audio_and_two_seconds(audio_s, window_s):
    assert chosen("auto").holding(round(audio_s * RATE_HZ)) == window_s * RATE_HZ


def test_the_full_window_is_one_and_needs_no_tail():
    windows = chosen("full")
    assert windows == full_window(FULL)
    assert windows.holding(1) == windows.holding(FULL) == windows.longest_piece == FULL
    assert windows_text(windows, RATE_HZ) == "full (30 s)"


def test_seconds_hold_pieces_that_leave_the_tail():
    windows = chosen("12")
    assert windows.lengths == (12 * RATE_HZ, FULL)
    assert windows.longest_piece == 10 * RATE_HZ
    assert windows.holding(windows.longest_piece) == 12 * RATE_HZ
    assert windows.holding(windows.longest_piece + 1) == FULL
    assert windows_text(windows, RATE_HZ) == "12 s (else 30 s)"
    assert chosen("12.001").lengths[0] == 12 * RATE_HZ + STEP, "whole steps of the encoder"
    assert chosen("30") == chosen("full")


def test_auto_of_a_model_with_a_short_window():
    assert chosen("auto", 6 * RATE_HZ).lengths == (6 * RATE_HZ,)
    assert chosen("auto", 12 * RATE_HZ).lengths == (10 * RATE_HZ, 12 * RATE_HZ)
    assert chosen("auto").lengths == tuple(seconds * RATE_HZ for seconds in range(10, 31, 2))
    assert chosen("auto").longest_piece == FULL, "long audio is cut as ever"
    assert windows_text(chosen("auto"), RATE_HZ) == "auto (10 to 30 s)"


@pytest.mark.parametrize("choice", ["", "half", "2", "0", "-5", "30.1", "nan", "inf", "1e9"])
def test_what_is_no_window_is_refused(choice):
    with pytest.raises(BadInput, match="^--window .*: expected full, auto, or seconds"):
        chosen(choice)


def test_a_choice_is_looked_at_before_there_is_a_model():
    assert [check_window_choice(choice) for choice in ("full", "auto", "12.5")] == ["full", "auto", "12.5"]
    for choice in ("half", "2", "nan", "inf"):
        with pytest.raises(BadInput, match="--window"):
            check_window_choice(choice)


def test_an_artifact_of_the_full_window_takes_no_other(tmp_path):
    artifact = small_artifact(tmp_path / "artifact")
    assert artifact.manifest.input.windows == EncoderWindows("full", (32_000,), 0)
    assert artifact_windows(artifact) == artifact_windows(artifact, "full") == full_window(32_000)
    assert artifact_windows(artifact, "auto").lengths == (32_000,), "of 2 s there is no shorter one"
    with pytest.raises(BadInput, match="expected full, auto"):
        artifact_windows(artifact, "5")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"lengths": []}, "input.windows.lengths is"),
        ({"lengths": [32_000, 16_000]}, "input.windows.lengths is"),
        ({"lengths": [16_000]}, "input.windows.lengths is"),
        ({"lengths": [0.5, 32_000]}, r"input.windows.lengths\[0\] is 0.5"),
        ({"tail": -1}, "input.windows.tail is"),
        ({"choice": None}, "input.windows.choice is None"),
        ({"more": 1}, "unknown key 'input.windows.more'"),
    ],
)
def test_a_manifest_with_other_windows_is_refused(tmp_path, change, complaint):
    folder = small_artifact(tmp_path / "artifact").folder
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["input"]["windows"].update(change)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match=complaint):
        read_artifact(folder)


def test_an_older_manifest_has_the_full_window(tmp_path):
    folder = small_artifact(tmp_path / "artifact").folder
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["input"]["windows"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert artifact_windows(read_artifact(folder)) == full_window(32_000)
