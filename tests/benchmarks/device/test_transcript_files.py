"""Several recordings and folders: names of transcripts, forms, and one that cannot be heard among others."""

from __future__ import annotations

import json
import resource

import numpy as np
import pytest
import soundfile

from leanear.benchmarks.device.commands import main
from leanear.benchmarks.device.transcript_files import FORMATS
from tests.benchmarks.speech_artifact import SAMPLE_RATE_HZ, say, write_speech_artifact


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return write_speech_artifact(tmp_path_factory.mktemp("speech") / "slim", source="slim")


@pytest.fixture
def talks(tmp_path):
    folder = tmp_path / "talks"
    (folder / "monday").mkdir(parents=True)
    soundfile.write(folder / "cat.wav", say("the", "cat", "sat"), SAMPLE_RATE_HZ, subtype="FLOAT")
    soundfile.write(folder / "monday" / "dog.wav", say("a", "dog", "ran"), SAMPLE_RATE_HZ, subtype="FLOAT")
    return folder


def transcribe(capsys, artifact, *arguments):
    status = main(["transcribe", str(artifact), *map(str, arguments), "--runtime", "null", "--no-timestamps"])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_a_folder_is_printed_file_by_file(capsys, artifact, talks):
    status, out, err = transcribe(capsys, artifact, talks, "--output-format", "txt")
    assert (status, err) == (0, "")
    assert out == f"{talks}/cat.wav\nthe cat sat\n{talks}/monday/dog.wav\na dog ran\n"


def test_every_form_of_every_file_is_written_beside_the_others(capsys, artifact, talks, tmp_path):
    forms = [word for name in FORMATS for word in ("--output-format", name)]
    status, out, err = transcribe(capsys, artifact, talks, *forms, "--output-dir", tmp_path / "out")
    assert (status, out) == (0, "")
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert written == [*(f"cat.{end}" for end in ("json", "srt", "txt", "vtt")), *(
        f"monday/dog.{end}" for end in ("json", "srt", "txt", "vtt"))]  # fmt: skip
    assert set(err.split()) == {str(tmp_path / "out" / name) for name in written}
    assert (tmp_path / "out" / "monday" / "dog.txt").read_text() == "a dog ran\n"
    assert json.loads((tmp_path / "out" / "cat.json").read_text())["text"] == "the cat sat"
    srt = transcribe(capsys, artifact, talks / "cat.wav", "--output-format", "srt")[1]
    assert (tmp_path / "out" / "cat.srt").read_text() == srt


def test_what_cannot_be_written_ends_the_run(capsys, artifact, talks, tmp_path):
    (talks / "broken.wav").symlink_to("/proc/self/mem")  # which cannot be read
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, before[1]))
    try:
        status, _, err = transcribe(capsys, artifact, talks, "--output-dir", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status != 0
    assert err == (
        f"leanear: {talks}/broken.wav: Input/output error\nleanear: {tmp_path}/out/cat.txt: File too large\n"
    )
    assert not list((tmp_path / "out").rglob("*.*"))


def test_one_that_cannot_be_heard_does_not_stop_the_others(capsys, artifact, talks, tmp_path):
    (talks / "broken.wav").write_bytes(b"RIFFxxxxWAVE")
    status, out, err = transcribe(capsys, artifact, talks, "--output-dir", tmp_path / "out")
    assert (status, out) == (2, "")
    assert "broken.wav: a WAV file without a format" in err
    assert err.endswith("leanear: 1 of 3 recordings was not transcribed\n")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*")) == ["cat.txt", "dog.txt"]


def test_a_missing_one_of_several_is_told_and_the_others_are_heard(capsys, artifact, talks):
    given = talks / "no.wav", talks / "cat.wav", talks / "neither.wav"
    status, out, err = transcribe(capsys, artifact, *given)
    assert status == 2
    assert out.splitlines()[0] == f"{given[1]}"
    assert out.endswith("the cat sat\n")
    missing = [f"leanear: {path}: no such file" for path in (given[0], given[2])]
    assert err.splitlines() == [*missing, "leanear: 2 of 3 recordings were not transcribed"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("talks", "--output-format", "srt"), "--output-format srt of several recordings: say where with --output-dir"),
        (
            ("talks/cat.wav", "--output-format", "srt", "--output-format", "json"),
            "--output-format srt and json: choose one, or name an --output-dir",
        ),
        (("talks/cat.wav", "talks/monday/cat.wav", "--output-dir", "out"), "the name of that of"),
        (("talks/no.wav",), "no.wav: no such file"),
        (("talks/cat.wav", "-"), "standard input is one recording"),
    ],
)
def test_what_has_no_place_of_its_own_is_refused_before_work(
    capsys, artifact, talks, monkeypatch, arguments, complaint
):
    monkeypatch.chdir(talks.parent)
    soundfile.write(talks / "monday" / "cat.wav", np.zeros(100), SAMPLE_RATE_HZ)
    status, out, err = transcribe(capsys, artifact, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert complaint in err
    assert not (talks.parent / "out").exists()
