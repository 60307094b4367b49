"""Audio read piece by piece, against the reader that reads it whole."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from leanear.data.audio import AudioStream, read_waveform
from leanear.runtimes.errors import BadInput

RATE_HZ = 16_000


def noise(samples: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (samples, channels)).astype(np.float32)


@pytest.mark.parametrize("rate_hz", [8_000, RATE_HZ, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("suffix", "subtype"), [("wav", "FLOAT"), ("flac", "PCM_16"), ("ogg", "VORBIS")])
def test_slices_are_those_of_the_whole(tmp_path, rate_hz, channels, suffix, subtype):
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, noise(int(3.3 * rate_hz), channels), rate_hz, subtype=subtype)
    whole = read_waveform(path, RATE_HZ)
    with AudioStream(path, RATE_HZ) as stream:
        for start, stop in ((0, 100), (50, 9_000), (50, 9_000), (9_000, 40_000), (39_000, 10**6), (10**6, 10**6 + 5)):
            np.testing.assert_array_equal(stream[start:stop], whole[start:stop])


def test_what_is_behind_is_gone(tmp_path):
    soundfile.write(tmp_path / "clip.wav", noise(RATE_HZ * 5), RATE_HZ)
    with AudioStream(tmp_path / "clip.wav", RATE_HZ) as stream:
        assert len(stream[40_000:50_000]) == 10_000
        assert len(stream._kept) < 3 * RATE_HZ
        with pytest.raises(ValueError, match="are gone"):
            stream[39_999:40_100]


def test_a_file_without_audio_is_refused(tmp_path):
    path = tmp_path / "none.wav"  # libsndfile does not read the empty FLAC that it writes
    soundfile.write(path, np.zeros(0, np.float32), 8_000)
    with AudioStream(path, RATE_HZ) as stream, pytest.raises(BadInput, match=r"no audio in it \(zero samples\)"):
        stream[0:100]


def test_unusable_files_are_named(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        AudioStream(tmp_path / "no.wav", RATE_HZ)
    (tmp_path / "text.wav").write_text("not audio")
    with pytest.raises(BadInput, match=r"text\.wav: not readable as audio"):
        AudioStream(tmp_path / "text.wav", RATE_HZ)
    soundfile.write(tmp_path / "nan.wav", np.full(RATE_HZ, np.nan), RATE_HZ, subtype="FLOAT")
    with AudioStream(tmp_path / "nan.wav", RATE_HZ) as stream, pytest.raises(BadInput, match="NaN"):
        stream[0:10]
    soundfile.write(tmp_path / "cut.wav", noise(RATE_HZ), RATE_HZ)
    whole = (tmp_path / "cut.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:-1000])
    with pytest.raises(BadInput, match="truncated"):
        AudioStream(tmp_path / "cut.wav", RATE_HZ)


def test_a_flac_that_was_cut_is_found_where_it_ends(tmp_path):
    path = tmp_path / "cut.flac"
    soundfile.write(path, noise(RATE_HZ * 10), RATE_HZ)
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    with AudioStream(path, RATE_HZ) as stream:
        assert len(stream[0:RATE_HZ]) == RATE_HZ
        with pytest.raises(BadInput, match="truncated|damaged"):
            stream[RATE_HZ : 11 * RATE_HZ]
