"""What audio is and is not: formats by their first bytes and codes, rates, and readings that are plainly no signal.

Those are silence, channels that cancel each other, and samples far beyond full scale.
"""

from __future__ import annotations

import math

import numpy as np

from leanear.runtimes.errors import BadInput

LOUDEST = 2.0**31  # of 32-bit integers that were never scaled: what is beyond is no audio
SLOWEST_HZ, FASTEST_HZ = 1_000, 1_000_000  # below is no sound, and above no recorder
OPENINGS = (
    (b"RF64", "RF64, the WAV of more than 4 GB"),
    (b"BW64", "BW64, the WAV of more than 4 GB"),
    (b"RIFX", "RIFX, the big-endian WAV"),
    (b"riff", "Wave64"),
    (b"fLaC", "FLAC"),
    (b"OggS", "OGG"),
    (b"ID3", "MP3"),
    (b"FORM", "AIFF"),
    (b"caff", "CAF"),
    (b".snd", "AU"),
    (b"\x1a\x45\xdf\xa3", "WebM or Matroska"),
    (b"\x30\x26\xb2\x75", "WMA"),
    (b"#!AMR", "AMR"),
    (b"MAC ", "Monkey's Audio"),
    (b"wvpk", "WavPack"),
)
WAV_CODECS = {
    0x0002: "Microsoft ADPCM",
    0x0006: "A-law",
    0x0007: "mu-law",
    0x0011: "IMA ADPCM",
    0x0031: "GSM 6.10",
    0x0038: "NMS ADPCM",
    0x0040: "G.721 ADPCM",
    0x0050: "MPEG audio",
    0x0055: "MP3",
    0x00FF: "AAC",
}
CANCELLED = 1e-4  # of the channels' energy, which is -40 dB
AUDIBLE_ENERGY = 2.0**-32  # per sample, of half a 16-bit step
FAR_BEYOND = 16.0  # times full scale; limiters and codecs overshoot by less than two


def format_name(opening: bytes) -> str | None:
    """The format of a file that begins with these bytes, 12 or more; None where they are not known."""
    if opening[4:8] == b"ftyp":
        return "M4A or MP4"
    if name := magic_name(opening):
        return name
    if len(opening) >= 2 and opening[0] == 0xFF and opening[1] & 0xE0 == 0xE0:
        return "AAC" if opening[1] & 0xF6 == 0xF0 else "MP3"
    return None


def magic_name(opening: bytes) -> str | None:
    """The format whose own letters these bytes are; None of other bytes, which PCM has, too."""
    return next((name for start, name in OPENINGS if opening.startswith(start)), None)


def check_sample_rate(path: object, rate_hz: int) -> None:
    """Nothing, where audio may be of that rate: from a damaged header, resampling could take hours.

    Raises:
        BadInput: no audio is.
    """
    if not SLOWEST_HZ <= rate_hz <= FASTEST_HZ:
        raise BadInput(f"{path}: {rate_hz:,} Hz is no sample rate of audio; {SLOWEST_HZ:,} to {FASTEST_HZ:,} Hz are")


def check_samples(samples: np.ndarray, name: str) -> None:
    """Nothing, where the float samples can be audio; name: of what they are from.

    Raises:
        BadInput: one is NaN, infinite, or so large that no model could compute with it.
    """
    peak = float(np.abs(samples).max(initial=0.0))
    if not math.isfinite(peak):
        raise BadInput(f"{name}: holds NaN or infinite samples")
    if peak > LOUDEST:
        raise BadInput(f"{name}: holds samples up to {peak:.2g} where 1 is full scale, which is no audio")


class SignalWatch:
    """What is found of a file's samples while they are read, block after block."""

    def __init__(self) -> None:
        self.frames = 0
        self._channels_energy, self._mix_energy, self._peak = 0.0, 0.0, 0.0

    def hear(self, samples: np.ndarray, mix: np.ndarray) -> None:
        """The next samples (frames, channels), and their mean over channels (frames,)."""
        self.frames += len(samples)
        self._channels_energy += float(np.square(samples, dtype=np.float64).sum()) / samples.shape[1]
        self._mix_energy += float(np.square(mix, dtype=np.float64).sum())
        self._peak = max(self._peak, float(np.abs(samples).max(initial=0.0)))

    def findings(self) -> list[str]:
        """One clause for each thing that is wrong with what was heard so far."""
        found = []
        if self.frames and not self._peak:
            found.append("it is silent: every sample is 0")
        audible = self._channels_energy > AUDIBLE_ENERGY * self.frames
        if audible and self._mix_energy < CANCELLED * self._channels_energy:
            found.append("its channels cancel: one is the other upside down, so that their mix is silent")
        return [*found, *beyond_full_scale(self._peak)]


def beyond_full_scale(peak: float) -> list[str]:
    """What is said of samples whose largest magnitude is so far beyond full scale that they were never scaled."""
    if peak <= FAR_BEYOND:
        return []
    return [f"it holds samples up to {peak:,.0f} where 1 is full scale; scale them before use"]
