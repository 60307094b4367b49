"""The study that turns a model of single labels into one of several, on a tiny model and tones."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import soundfile

from leanear.benchmarks.peers import multi_label
from leanear.families.ast import load_checkpoint
from leanear.runtimes.clips import Clips
from tests.conftest import TINY_LABELS, tone


def test_both_parts_of_a_mixture_are_equally_loud():
    quiet, loud = 0.01 * tone(500, 0.5), 3 * tone(2000, 1.0)
    clips = Clips((quiet, loud), np.array([0, 1]), ("a", "b"), ("x", "y"), 16_000)
    mixed = multi_label.mixture(clips, 0, 1)
    spectrum = np.abs(np.fft.rfft(mixed[:8000]))
    assert spectrum[250] == pytest.approx(spectrum[1000], rel=0.02), "500 and 2,000 Hz over half a second"
    assert len(mixed) == len(loud)
    assert np.abs(mixed).max() <= 1


def test_the_study_runs_and_goes_on(tiny_folder, tmp_path, monkeypatch, capsys):
    data, state = tmp_path / "data", tmp_path / "state"
    for part, count in (("train", 3), ("test", 2)):
        for place, label in enumerate(TINY_LABELS):
            (data / part / label).mkdir(parents=True)
            for number in range(count):
                soundfile.write(data / part / label / f"{number}.wav", tone(300 + 900 * place + 50 * number), 16_000)
    arguments = ["multi_label", str(tiny_folder), "--data", str(data), "--state", str(state), "--mixtures", "16"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--epochs", "1", "--sparsity", "0.4"])
    printed = []
    for _ in range(2):
        assert multi_label.main() == 0
        printed.append([line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")])
    assert printed[0] == printed[1], "nothing is made again"
    (_, dense, slim) = ([cell.strip() for cell in line.strip("|").split("|")] for line in printed[0])
    for row in (dense, slim):
        assert row[1].split()[0] == row[2]
        assert row[3] == row[4]
    assert load_checkpoint(state / "slim-0.4").task == load_checkpoint(state / "dense").task == "audio-tagging"
