"""Several clips to classify, one of which is no audio: the others are done, and how many were not is said."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from leanear.benchmarks.device.classify import classify_files, print_labels
from leanear.benchmarks.device.transcript_files import clips_in, each_usable
from leanear.runtimes.errors import BadInput
from leanear.runtimes.sessions import SessionOptions
from tests.runtimes.tiny_artifact import LABELS, WINDOW_SAMPLES, loudness_weights, write_tiny_artifact


@pytest.fixture
def artifact(tmp_path):
    return write_tiny_artifact(tmp_path / "artifact", loudness_weights())


@pytest.fixture
def clips(tmp_path):
    """Two clips, loud where the first and the last label listen, and between them one that is no audio."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, part in (("a.wav", slice(0, 40)), ("c.wav", slice(120, 160))):
        samples = np.zeros(WINDOW_SAMPLES, np.float32)
        samples[part] = 0.5
        soundfile.write(folder / name, samples, 16_000, subtype="FLOAT")
    (folder / "b.wav").write_bytes(b"no audio")
    return folder


@pytest.mark.parametrize("as_json", [True, False])
def test_one_that_is_no_audio_does_not_stop_the_others(artifact, clips, capsys, as_json):
    answers = classify_files(artifact, [clips], "null", SessionOptions(threads=1), 1)
    with pytest.raises(BadInput, match="1 of 3 clips was not classified"):
        print_labels(answers, as_json=as_json)
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert err.startswith(f"leanear: {clips / 'b.wav'}: not a WAV file")
    if as_json:
        found = [(answer["file"], answer["labels"][0]["label"]) for answer in json.loads(out)]
    else:
        lines = out.splitlines()
        found = [(name, line.split()[-1]) for name, line in zip(lines[::2], lines[1::2], strict=True)]
    assert found == [(str(clips / "a.wav"), LABELS[0]), (str(clips / "c.wav"), LABELS[-1])]


def test_one_that_the_system_cannot_read_does_not_stop_the_others(artifact, clips, capsys):
    (clips / "b.wav").unlink()
    (clips / "b.wav").symlink_to("/proc/self/mem")  # a file that opens, and whose first bytes are an input/output error
    with pytest.raises(BadInput, match="1 of 3 clips was not classified"):
        print_labels(classify_files(artifact, [clips], "null", SessionOptions(threads=1), 1), as_json=True)
    out, err = capsys.readouterr()
    assert err == f"leanear: {clips / 'b.wav'}: Input/output error\n"
    assert [answer["file"] for answer in json.loads(out)] == [str(clips / "a.wav"), str(clips / "c.wav")]


def test_a_link_that_leads_nowhere_is_told_of(clips, caplog):
    for name, target in {"gone.wav": "nowhere.wav", "loop.wav": "loop.wav", "good.wav": "a.wav"}.items():
        (clips / name).symlink_to(target)
    assert [path.name for path in clips_in(clips, (".wav",))] == ["a.wav", "b.wav", "c.wav", "good.wav"]
    assert caplog.messages == [f"note: {clips}: links that lead nowhere are passed over: gone.wav, loop.wav"]


def test_a_folder_that_cannot_be_read_is_told_of(clips, monkeypatch, caplog):
    (clips / "closed").mkdir()
    (clips / "open").mkdir()
    (clips / "open" / "d.wav").write_bytes(b"")
    scandir = os.scandir

    def refusing(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert [path.name for path in clips_in(clips, (".wav",))] == ["a.wav", "b.wav", "c.wav", "d.wav"]
    assert caplog.messages == [f"note: {clips / 'closed'}: passed over, for it cannot be read (Permission denied)"]


def test_one_alone_is_its_own_error(artifact, clips, capsys):
    answers = classify_files(artifact, [clips / "b.wav"], "null", SessionOptions(threads=1), 1)
    with pytest.raises(BadInput, match=r"b\.wav: not a WAV file"):
        print_labels(answers, as_json=True, one=True)
    assert capsys.readouterr() == ("", "")


def test_several_that_are_not_usable_are_counted(capsys):
    def refused(number: int) -> int:
        raise BadInput(f"{number} is odd")

    with pytest.raises(BadInput, match="2 of 2 clips were not counted"):
        list(each_usable([1, 3], refused, "clip", "counted", several=True))
    assert capsys.readouterr().err == "leanear: 1 is odd\nleanear: 3 is odd\n"
