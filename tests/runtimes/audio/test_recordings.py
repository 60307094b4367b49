"""WAV files read with numpy alone, held against libsndfile and soxr."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import soundfile
import soxr

from leanear.runtimes.audio.recordings import PIECE_S, Recording, resampled
from leanear.runtimes.errors import BadInput
from tests.recordings import read_recording

RATE_HZ = 16_000


def tone(rate_hz=RATE_HZ, seconds=0.5, hertz=440.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate_hz * seconds)) / rate_hz)


@pytest.mark.parametrize(
    ("subtype", "tolerance"),
    [("PCM_U8", 0), ("PCM_16", 0), ("PCM_24", 0), ("PCM_32", 0), ("FLOAT", 0), ("DOUBLE", 1e-7)],
)
@pytest.mark.parametrize("container", ["WAV", "WAVEX"])
def test_samples_are_those_that_libsndfile_reads(tmp_path, subtype, tolerance, container):
    path = tmp_path / "clip.wav"
    stereo = np.stack([tone(), tone(hertz=1000.0)], axis=1)
    soundfile.write(path, stereo, RATE_HZ, subtype=subtype, format=container)
    expected = soundfile.read(path, dtype="float64", always_2d=True)[0].mean(axis=1)
    np.testing.assert_allclose(read_recording(path, RATE_HZ), expected, atol=tolerance + 1e-7)


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000])
def test_resampling_agrees_with_soxr(rate_hz):
    noise = np.random.default_rng(0).standard_normal(rate_hz // 2)
    spectrum = np.fft.rfft(noise)
    frequencies = np.fft.rfftfreq(len(noise), 1 / rate_hz)
    spectrum[frequencies > 0.42 * min(rate_hz, RATE_HZ)] = 0
    band = np.fft.irfft(spectrum, len(noise)).astype(np.float32)
    ours, theirs = resampled(band, rate_hz, RATE_HZ), soxr.resample(band, rate_hz, RATE_HZ, quality="VHQ")
    assert abs(len(ours) - len(theirs)) <= 1
    inner = slice(400, min(len(ours), len(theirs)) - 400)
    assert np.abs(ours[inner] - theirs[inner]).max() < 2e-3 * np.abs(band).max()


def test_what_is_above_half_the_rate_is_gone():
    high = tone(48_000, 0.5, 12_000.0).astype(np.float32)
    assert np.abs(resampled(high, 48_000, RATE_HZ)[400:-400]).max() < 1e-3


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda data: data[:-100], "truncated"),
        (lambda data: b"FORM" + data[4:], "AIFF"),
        (lambda data: b"text" + data[4:], "not a WAV file"),
        (lambda data: data[:30], "truncated"),
        (lambda data: data[:20] + b"\x02\x00" + data[22:], "Microsoft ADPCM is not read"),
        (lambda data: data[:40] + b"\0\0\0\0" + data[44:44], "zero samples"),
        (lambda data: data[:12], "without a format"),
    ],
)
def test_a_file_that_is_not_usable_is_named(tmp_path, change, word):
    path = tmp_path / "clip.wav"
    soundfile.write(path, tone(), RATE_HZ, subtype="PCM_16")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BadInput, match=word):
        read_recording(path, RATE_HZ)


def test_a_missing_file_and_a_nan_are_named(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        read_recording(tmp_path / "no.wav", RATE_HZ)
    soundfile.write(tmp_path / "nan.wav", np.full(10, np.nan), RATE_HZ, subtype="FLOAT")
    with pytest.raises(BadInput, match="NaN"):
        read_recording(tmp_path / "nan.wav", RATE_HZ)


def test_a_streamed_file_of_unknown_length_is_read(tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, tone(), RATE_HZ, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert len(read_recording(path, RATE_HZ)) == len(tone())


@pytest.mark.parametrize("rate_hz", [RATE_HZ, 8_000, 11_025, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [0.01, PIECE_S, 2.3 * PIECE_S])
def test_pieces_are_those_of_the_whole(tmp_path, rate_hz, seconds):
    path = tmp_path / "clip.wav"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * rate_hz)).astype(np.float32)
    soundfile.write(path, noise, rate_hz, subtype="FLOAT")
    whole = resampled(noise, rate_hz, RATE_HZ)
    np.testing.assert_allclose(read_recording(path, RATE_HZ), whole, atol=1e-6)
    with Recording(path, RATE_HZ) as recording:
        assert recording.samples == len(whole)
        for start, stop in ((0, 7), (5, len(whole) + 99), (len(whole) // 2, len(whole) // 2 + 31_000), (10**7, 10**8)):
            np.testing.assert_allclose(recording[start:stop], whole[start:stop], atol=1e-6)


def test_a_recording_of_nothing_is_refused(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 8_000, subtype="PCM_16")
    with pytest.raises(BadInput, match=r"none.wav: no audio in it \(zero samples\)"):
        Recording(tmp_path / "none.wav", RATE_HZ)


def test_a_piece_takes_little_memory_at_any_rate():
    """numpy tells tracemalloc what it takes: a copy as long as the filter for every new sample would be 400 MB here."""
    noise = np.random.default_rng(0).uniform(-1, 1, 4 * 192_000).astype(np.float32)
    tracemalloc.start()
    resampled(noise, 192_000, RATE_HZ)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6
