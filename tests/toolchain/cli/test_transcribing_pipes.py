"""`leanear transcribe -`: what comes through a pipe says what the file says, and says it while it comes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile

from leanear.benchmarks.device.commands import main as device_main
from leanear.cli.commands import run
from tests.benchmarks.speech_artifact import SAMPLE_RATE_HZ, say, write_speech_artifact
from tests.whisper_models import WINDOW_S, make_whisper, write_whisper

WORDS = np.concatenate([say("the", "cat", "sat"), say("a", "dog", "ran"), say("lights", "off", "seven")])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_whisper(tmp_path_factory.mktemp("whisper") / "tiny", make_whisper(seed=5, positions=32))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return write_speech_artifact(tmp_path_factory.mktemp("speech") / "slim", source="slim")


def wav(samples: np.ndarray, subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE_HZ, subtype=subtype, format="WAV")
    return buffer.getvalue()


@pytest.fixture
def pipe_in(monkeypatch):
    """Makes what it is given come through standard input, which ends behind it."""

    def give(content: bytes):
        reads, writes = os.pipe()
        stream = open(reads, "rb")  # noqa: SIM115 (the thread of the reader owns it)
        monkeypatch.setattr(sys, "stdin", stream)

        def write():
            with open(writes, "wb") as out:
                out.write(content)

        threading.Thread(target=write, daemon=True).start()

    return give


def test_a_pipe_says_what_the_file_says(capsys, checkpoint, tmp_path, pipe_in):
    sound = 0.1 * np.random.default_rng(1).standard_normal(round(3.6 * WINDOW_S * SAMPLE_RATE_HZ))
    content = wav(sound)
    (tmp_path / "clip.wav").write_bytes(content)
    base = ("--model", str(checkpoint), "--threads", "1", "--temperatures", "0", "--vad", "off")
    assert run(["transcribe", str(tmp_path / "clip.wav"), *base]) == 0
    expected = capsys.readouterr().out
    assert expected.count("\n") > 2
    for given, flags in ((content, ()), (content[44:], ("--raw", "--rate", "16000"))):
        pipe_in(given)
        assert run(["transcribe", "-", *base, *flags]) == 0
        assert capsys.readouterr().out == expected


def test_a_pipe_into_a_device_is_written_too(capsys, artifact, tmp_path, pipe_in):
    pipe_in(wav(WORDS, "FLOAT"))
    arguments = ("transcribe", str(artifact), "-", "--runtime", "null", "--no-timestamps")
    assert device_main([*arguments, "--output-dir", str(tmp_path)]) == 0
    assert (tmp_path / "stdin.txt").read_text() == "the cat sat\na dog ran\nlights off seven\n"
    capsys.readouterr()
    assert device_main([*arguments, "--raw", "--rate", "7"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "flags", "said"),
    [
        (bytes(64_000), ("--raw", "--rate", "8000"), "no words were found in what was taken for 8000 Hz, channels: 1"),
        (bytes(64_000), ("--raw", "--channels", "2"), "taken for 16000 Hz, channels: 2 (see --rate and --channels)"),
        (wav(np.zeros(64_000)), (), "no words were found\n"),
    ],
)
def test_a_pipe_without_a_word_says_what_it_was_taken_for(capsys, artifact, checkpoint, pipe_in, given, flags, said):
    here, device = ("-", "--model", str(checkpoint), "--vad", "on"), (str(artifact), "-", "--runtime", "null")
    for command, asked in ((run, here), (device_main, device)):
        pipe_in(given)
        assert command(["transcribe", *asked, *flags]) == 0
        printed = capsys.readouterr()
        assert printed.out == ""
        assert said in printed.err


def listening(artifact):
    command = (sys.executable, "-m", "leanear.benchmarks", "transcribe", str(artifact), "-", "--runtime", "null")
    flags = ("--output-format", "txt", "--no-timestamps", "--vad", "off")
    return subprocess.Popen((*command, *flags), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_words_come_while_the_pipe_is_open(artifact):
    with listening(artifact) as process:
        content = wav(WORDS, "FLOAT")
        process.stdin.write(content[: len(content) // 2])
        process.stdin.flush()
        first = process.stdout.readline()  # for ever, where nothing is said before the end
        process.stdin.write(content[len(content) // 2 :])
        process.stdin.close()
        rest = process.stdout.read()
    assert (process.returncode, first) == (0, b"the cat sat\n")
    assert rest == b"a dog ran\nlights off seven\n"


@pytest.mark.parametrize("times", [1, 2])
def test_the_first_ctrl_c_is_the_recorders(artifact, times):
    with listening(artifact) as process:
        content = wav(WORDS, "FLOAT")
        process.stdin.write(content[: len(content) // 2])
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        said = process.stderr.readline()
        if times == 2:
            process.send_signal(signal.SIGINT)
            assert process.wait() == 130
        else:
            process.stdin.write(content[len(content) // 2 :])  # what the recorder still wrote
            process.stdin.close()
            assert process.stdout.read() == b"a dog ran\nlights off seven\n"
    assert said == b"hearing what was recorded; ctrl-C again leaves it\n"
    assert process.returncode == (130 if times == 2 else 0)


def test_bad_pipes_are_one_line(capsys, checkpoint, pipe_in):
    for content, flags, complaint in (
        (b"", (), "standard input held no audio"),
        (b"OggS and more of it", (), "standard input: OGG; WAV is read from a pipe"),
        (b"", ("--rate", "8000"), "--rate and --channels are of --raw"),
    ):
        pipe_in(content)
        assert run(["transcribe", "-", "--model", str(checkpoint), *flags]) == 2
        printed = capsys.readouterr()
        assert (printed.out, printed.err.count("\n")) == ("", 1)
        assert complaint in printed.err
