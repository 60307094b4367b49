"""Clips in their file: 16-bit samples small and exact, others as they are, and one identity whatever the file."""

from __future__ import annotations

import io
import lzma

import numpy as np
import pytest
import soundfile

from leanear.runtimes.clips import (
    Clips,
    as_floats,
    clips_in_16_bits,
    clips_sha256,
    in_16_bits,
    pack,
    read_clips,
    unpack,
    write_clips,
)
from leanear.runtimes.errors import BadInput


def clips_of(*waveforms, texts=None):
    names = tuple(f"{number}.wav" for number in range(len(waveforms)))
    return Clips(tuple(waveforms), np.zeros(len(waveforms), np.int64), names, ("a", "b"), 16_000, texts)


def murmur(samples=16_000, seed=0):
    """int16 of slow noise, as audio is."""
    steps = np.random.default_rng(seed).normal(size=samples).cumsum()
    return (30 * (steps - steps.mean())).clip(-32768, 32767).astype(np.int16)


@pytest.mark.parametrize(
    "pcm",
    [
        np.zeros(0, np.int16),
        np.array([-32768, 32767, -32768, 32767, 0, 1, -1], np.int16),
        np.random.default_rng(0).integers(-32768, 32768, 70_000).astype(np.int16),
        murmur(),
        murmur(600_000),
    ],
)
def test_every_16_bit_value_comes_back(pcm):
    assert np.array_equal(unpack(*pack(pcm).values()), pcm)


def test_floats_of_a_16_bit_file_are_what_a_decoder_gives():
    stream = io.BytesIO()
    soundfile.write(stream, murmur(), 16_000, format="FLAC", subtype="PCM_16")
    stream.seek(0)
    decoded, _ = soundfile.read(stream, dtype="float32")
    assert np.array_equal(decoded, as_floats(murmur()))
    assert np.array_equal(in_16_bits(decoded), murmur())


def test_a_file_of_16_bit_clips_is_exact_and_small(tmp_path):
    clips = clips_of(*(as_floats(murmur(seed=seed)) for seed in range(8)), texts=tuple("abcdefgh"))
    write_clips(tmp_path / "clips.npz", clips)
    again = read_clips(tmp_path / "clips.npz")
    assert all(np.array_equal(one, two) for one, two in zip(clips.waveforms, again.waveforms))
    assert again.texts == clips.texts
    pcm = np.concatenate([in_16_bits(waveform) for waveform in clips.waveforms])
    assert (tmp_path / "clips.npz").stat().st_size < len(lzma.compress(pcm.tobytes()))


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_they_take_what_flac_takes(slow):
    """libFLAC's at its best compression, which fits its predictors to the sound as well."""
    noise = 40 * np.random.default_rng(slow).normal(size=160_000)
    for _ in range(slow):
        noise = np.convolve(noise, np.ones(12) / 4, "same")
    pcm, stream = noise.clip(-32768, 32767).astype(np.int16), io.BytesIO()
    soundfile.write(stream, pcm, 16_000, format="FLAC", subtype="PCM_16", compression_level=1.0)
    packed = sum(array.nbytes for array in pack(pcm).values())
    assert packed < 1.05 * len(stream.getvalue())


def test_finer_clips_stay_as_they_are_until_they_are_rounded(tmp_path):
    fine = np.random.default_rng(1).uniform(-1.2, 1.2, 4000).astype(np.float32)
    write_clips(tmp_path / "clips.npz", clips_of(fine, as_floats(murmur())))
    assert np.array_equal(read_clips(tmp_path / "clips.npz").waveforms[0], fine)
    rounded, finer = clips_in_16_bits(clips_of(fine, as_floats(murmur())))
    assert finer == 1
    assert np.abs(rounded.waveforms[0] - fine.clip(-1, 32767 / 32768)).max() <= 0.5 / 32768
    assert clips_in_16_bits(rounded)[1] == 0


def test_clips_are_the_same_in_whatever_file(tmp_path):
    clips = clips_of(as_floats(murmur()))
    write_clips(tmp_path / "packed.npz", clips)
    assert clips_sha256(read_clips(tmp_path / "packed.npz")) == clips_sha256(clips)
    assert clips_sha256(clips) != clips_sha256(clips_of(as_floats(murmur(seed=1))))
    assert clips_sha256(clips) != clips_sha256(clips_of(as_floats(murmur()), texts=("a",)))


@pytest.mark.parametrize("place", [200, 2000])
def test_a_damaged_file_is_refused(tmp_path, place):
    write_clips(tmp_path / "clips.npz", clips_of(as_floats(murmur())))
    data = bytearray((tmp_path / "clips.npz").read_bytes())
    data[place : place + 200] = bytes(200)
    (tmp_path / "clips.npz").write_bytes(data)
    with pytest.raises(BadInput, match="not a clips file"):
        read_clips(tmp_path / "clips.npz")
