"""Audio through a pipe is the audio of the file, whatever pieces it comes in; soundfile wrote the files."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from leanear.runtimes.audio.piped_audio import PipedAudio, PipeReader, RawAudio, raw_audio
from leanear.runtimes.errors import BadInput
from tests.recordings import read_recording

RATE_HZ = 16_000
ROOT = Path(__file__).resolve().parents[3]


def noise(seconds: float, rate_hz: int = RATE_HZ, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(3).uniform(-0.5, 0.5, (round(seconds * rate_hz), channels)).astype(np.float32)


def as_wav(samples: np.ndarray, rate_hz: int = RATE_HZ, subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, subtype=subtype, format="WAV")
    return buffer.getvalue()


def piped(content: bytes, block: int = 2**20, **options) -> tuple[PipedAudio, list[str]]:
    """What a writer that writes `block` bytes at a time and then closes the pipe gives, and a list of notes."""
    reads, writes = os.pipe()

    def write():
        for start in range(0, len(content), block):
            os.write(writes, content[start : start + block])
        os.close(writes)

    threading.Thread(target=write, daemon=True).start()
    notes: list[str] = []
    return PipedAudio(PipeReader(reads), RATE_HZ, say=notes.append, **options), notes


def heard(audio: PipedAudio, step: int = 7_777) -> np.ndarray:
    """All of it, slice after slice, and nothing behind its end."""
    parts, start = [], 0
    while len(part := audio[start : start + step]):
        parts.append(part)
        start += len(part)
    assert len(audio[start : start + step]) == 0
    return np.concatenate([np.zeros(0, np.float32), *parts])


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_U8", "PCM_24", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("block", [997, 2**20])
def test_a_wav_is_its_samples(subtype, block):
    content = as_wav(noise(1.3, channels=2), subtype=subtype)
    audio, notes = piped(content, block)
    expected = soundfile.read(io.BytesIO(content), dtype="float32")[0].mean(axis=1)
    np.testing.assert_allclose(heard(audio), expected, atol=1e-7)
    assert notes == []


@pytest.mark.parametrize(("kind", "name"), [("FLAC", "FLAC"), ("WAV", "WAV"), ("OGG", "OGG"), (None, None)])
def test_a_file_with_a_header_is_not_heard_as_raw_without_a_word(kind, name):
    """And of PCM, whose quiet samples below zero begin as MP3 frames do, nothing is said."""
    buffer = io.BytesIO(b"\xff\xff\xfb\xff" * 500)
    if kind is not None:
        soundfile.write(buffer, noise(0.1), RATE_HZ, format=kind)
    audio, notes = piped(buffer.getvalue(), 3, raw=RawAudio(RATE_HZ))
    assert len(heard(audio)) == len(buffer.getvalue()) // 2
    told = f"standard input: it begins as {name} does; --raw hears all bytes as PCM, which is noise if it is that"
    assert notes == ([] if name is None else [told])


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000, 16_000])
def test_another_rate_is_changed_as_in_the_file(rate_hz, tmp_path):
    content = as_wav(noise(2.35, rate_hz), rate_hz)
    (tmp_path / "clip.wav").write_bytes(content)
    audio, _ = piped(content, 4_001)
    expected = read_recording(tmp_path / "clip.wav", RATE_HZ)
    got = heard(audio)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_raw_samples_are_what_they_are_said_to_be():
    samples = (noise(0.7, channels=2) * 32_000).astype("<i2")
    audio, _ = piped(samples.tobytes() + b"\x01", raw=RawAudio(RATE_HZ, 2))  # half a sample at its end
    np.testing.assert_allclose(heard(audio), (samples / 32768).mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000, 0x80000000])
def test_a_length_that_is_no_number_yet_is_not_believed(size):
    content = bytearray(as_wav(noise(0.5)))
    content[40:44] = size.to_bytes(4, "little")
    audio, notes = piped(bytes(content))
    assert (len(heard(audio)), notes) == (8_000, [])


def test_chunks_around_the_audio_are_not_heard():
    content = as_wav(noise(0.5))
    extra = b"LIST" + (5).to_bytes(4, "little") + b"hello\0"
    audio, notes = piped(content[:36] + extra + content[36:] + extra)
    np.testing.assert_array_equal(heard(audio), soundfile.read(io.BytesIO(content), dtype="float32")[0])
    assert notes == []


def test_what_lacks_and_what_is_left_is_said():
    content = as_wav(noise(0.5))
    audio, notes = piped(content[:-1_000])
    assert len(heard(audio)) == 7_500
    assert notes == ["standard input: its header promises 1,000 bytes more than came; all that came is read"]
    audio, notes = piped(content + b"\x00\x80" * 3_000)
    assert len(heard(audio)) == 8_000
    assert notes == ["standard input: what follows the audio that its header promises is not read"]
    audio, notes = piped(b"\x00\x01" * 500 + b"\x02", raw=RawAudio(RATE_HZ))
    assert len(heard(audio)) == 500
    assert notes == ["standard input: it ends within a sample, of which 1 byte came; they are not heard"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "standard input held no audio"),
        (b"fLaC and so on, and so on", "standard input: FLAC; WAV is read from a pipe"),
        (b"abc", "not WAV"),
        (as_wav(noise(0.1))[:30], "its WAV format is cut short"),
        (as_wav(noise(0.1))[:36], "without a format or without audio"),
        (as_wav(noise(0.1), subtype="ULAW"), "WAV of mu-law is not read"),
    ],
)
def test_what_is_no_wav_is_one_line(content, complaint):
    with pytest.raises(BadInput, match=complaint):
        piped(content)


def test_not_a_number_is_refused():
    audio, _ = piped(as_wav(np.full(2_000, np.nan), subtype="FLOAT"))
    with pytest.raises(BadInput, match="NaN"):
        heard(audio)


def test_a_slice_is_there_before_the_pipe_is_closed():
    reads, writes = os.pipe()
    os.write(writes, as_wav(noise(1.0)))
    audio = PipedAudio(PipeReader(reads), RATE_HZ)
    assert len(audio[0:16_000]) == 16_000
    os.close(writes)
    assert len(audio[8_000:40_000]) == 8_000
    with pytest.raises(ValueError, match="are gone"):
        audio[0:10]


def test_what_is_behind_is_let_go_and_a_writer_ahead_is_made_to_wait():
    content = bytes(2**25)  # 17 minutes, written as fast as it is taken
    audio, _ = piped(content, raw=RawAudio(RATE_HZ))
    audio[0:1]
    time.sleep(0.05)
    assert audio._reader._blocks.qsize() <= 256
    for start in range(0, 2**24, 480_000):
        audio[start : start + 480_000]
        assert len(audio._kept) + len(audio._frames) < 500_000


def test_a_terminal_is_refused():
    reads, writes = os.openpty()
    with pytest.raises(BadInput, match="a terminal; pipe audio into it"):
        PipeReader(writes)
    os.close(reads)
    os.close(writes)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ((True, False, 16_000, None), "--raw: of standard input alone"),
        ((False, True, 16_000, None), "--rate and --channels are of --raw"),
        ((True, True, 10, None), "--rate: 10 Hz is no sample rate"),
        ((True, True, None, 0), "--channels: 0 channels"),
    ],
)
def test_what_raw_audio_cannot_be_is_refused(flags, complaint):
    with pytest.raises(BadInput, match=complaint):
        raw_audio(*flags)
    assert raw_audio(True, True, None, None) == RawAudio(16_000, 1)
    assert raw_audio(False, False, None, None) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lets a pipe be widened")
def test_a_pipe_holds_half_a_minute_before_anybody_reads():
    fcntl = pytest.importorskip("fcntl")
    program = "from leanear.runtimes.process.notes import widen_standard_input; widen_standard_input(); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, cwd=ROOT) as process:
        deadline = time.monotonic() + 60
        while fcntl.fcntl(process.stdin.fileno(), 1032) < 30 * 2 * RATE_HZ:  # F_GETPIPE_SZ
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.stdin.write(b"\n")
    assert subprocess.run([sys.executable, "-c", program], stdin=subprocess.DEVNULL, cwd=ROOT).returncode == 1
