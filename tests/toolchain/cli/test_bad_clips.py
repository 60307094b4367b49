"""Clips that cannot be used, among others that can: what each command does with them, and when it says so."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import soundfile

from leanear.cli.commands import run
from leanear.evaluate import evaluation
from leanear.prune import pruning
from tests.conftest import tone, write_tones

FLAGS = ["--calibration-clips", "4"]


@pytest.fixture
def data(tmp_path):
    """Eight clips, of which one is truncated, one holds nothing and one is text; one more is silent."""
    data = write_tones(tmp_path / "data", 6)
    (data / "up" / "0.wav").write_bytes((data / "up" / "1.wav").read_bytes()[:400])
    soundfile.write(data / "up" / "2.wav", np.zeros(0), 16_000)
    (data / "yes" / "3.wav").write_text("no audio")
    soundfile.write(data / "yes" / "5.wav", np.zeros(6_400), 16_000)
    return data


def test_those_that_the_system_cannot_read_do_not_stop_the_others(tiny_folder, tmp_path, capsys):
    up = write_tones(tmp_path / "data", 4) / "up"
    for name, unreadable in (("0.wav", "/proc/self/mem"), ("1.wav", "/proc/sys/vm/compact_memory")):
        (up / name).unlink()
        (up / name).symlink_to(unreadable)  # of which one cannot be read, and the other not even opened, by root either
    assert run(["classify", str(up), "--model", str(tiny_folder), "--json"]) == 2
    out, err = capsys.readouterr()
    assert [line for line in err.splitlines() if line.startswith("leanear: ")] == [
        f"leanear: {up}/0.wav: Input/output error",
        f"leanear: {up}/1.wav: Permission denied",
        "leanear: 2 of 4 clips were not classified",
    ]
    assert [each["file"] for each in json.loads(out)] == [f"{up}/2.wav", f"{up}/3.wav"]


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_the_others_are_classified(tiny_folder, data, capsys, caplog, as_json):
    assert run(["classify", str(data / "up"), str(data / "yes"), "--model", str(tiny_folder), *as_json]) == 2
    out, err = capsys.readouterr()
    assert [line for line in err.splitlines() if line.startswith("leanear: ")] == [
        f"leanear: {data}/up/0.wav: truncated: the file ends before the audio that its header promises",
        f"leanear: {data}/up/2.wav: no audio in it (zero samples)",
        f"leanear: {data}/yes/3.wav: not readable as audio (Format not recognised.)",
        "leanear: 3 of 12 clips were not classified",
    ]
    named = [each["file"] for each in json.loads(out)] if as_json else [w for w in out.split() if w.endswith(".wav")]
    assert len(named) == 9
    assert caplog.messages == [f"note: {data}/yes/5.wav: it is silent: every sample is 0"]


@pytest.mark.parametrize("command", ["eval", "prune", "deploy"])
def test_bad_clips_are_found_before_the_work(tiny_folder, data, tmp_path, capsys, monkeypatch, command):
    for module, name in ((evaluation, "_all_logits"), (pruning, "write_slim_checkpoint")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("work was begun"))
    out = [] if command == "eval" else ["--out", str(tmp_path / "out")]
    for split in ("train", "test"):
        shutil.copytree(data, tmp_path / "split" / split)
    assert run([command, str(tiny_folder), "--data", str(tmp_path / "split"), *out, *FLAGS[: 2 * bool(out)]]) == 2
    (said,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("leanear: "))
    assert ".wav: " in said
    if command == "eval":
        assert said.endswith("header promises; 2 more of 12 clips cannot be used")


def test_silent_clips_are_counted_beside_the_result(tiny_folder, data, capsys):
    for bad in ("up/0.wav", "up/2.wav", "yes/3.wav"):
        (data / bad).unlink()
    flags = ["--split", "evaluation", *FLAGS]
    results = []
    for silent in (True, False):
        if not silent:
            soundfile.write(data / "yes" / "5.wav", tone(500), 16_000)
        soundfile.write(data / "yes" / "4.wav", tone(500) * (not silent), 16_000)
        assert run(["eval", str(tiny_folder), "--data", str(data), *flags, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert run(["eval", str(tiny_folder), "--data", str(data), *flags]) == 0
        results.append((result["silent_clips"], capsys.readouterr().out.rstrip()))
    (count, said), (none, without) = results
    assert count > 0
    assert said.endswith(f"; {count} of them {'is' if count == 1 else 'are'} silent")
    assert none == 0
    assert "silent" not in without
