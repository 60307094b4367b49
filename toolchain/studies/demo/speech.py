"""Clean words: espeak-ng says them, and they are trimmed and brought to 16 kHz."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import soundfile
from scipy.signal import resample_poly

from leanear.studies.demo.words import ACCENTS, VOICES, WORDS

SAMPLE_RATE_HZ = 16_000
CLIP_SAMPLES = 16_000
LONGEST_WORD_SAMPLES = 15_200


@dataclass(frozen=True)
class Take:
    """One way of saying one word."""

    label: int
    voice: str
    accent: str
    words_per_minute: int
    pitch: int


def espeak_missing() -> str | None:
    """None when espeak-ng can be started, else one line that says what to do."""
    if shutil.which("espeak-ng"):
        return None
    return "espeak-ng is not on PATH: it is needed to make the demo's audio (Debian: apt install espeak-ng)"


def plan_takes(split: str, takes_per_word: int, seed: int) -> list[Take]:
    """The takes of one split, `takes_per_word` for each (voice, accent, word); rate and pitch are drawn."""
    rng = np.random.default_rng([seed, *split.encode()])
    return [
        Take(label, voice, accent, int(rng.integers(115, 221)), int(rng.integers(15, 91)))
        for voice in VOICES[split]
        for accent in ACCENTS
        for label in range(len(WORDS))
        for _ in range(takes_per_word)
    ]


def say(take: Take) -> np.ndarray:
    """One take as int16 samples at 16 kHz, silence trimmed, peak at 0.7, at most 15,200 samples long."""
    command = ["espeak-ng", "-v", f"{take.accent}+{take.voice}", "-s", str(take.words_per_minute)]
    command += ["-p", str(take.pitch), "--stdout", WORDS[take.label]]
    wave = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    samples, rate_hz = soundfile.read(io.BytesIO(wave), dtype="float32")
    common = np.gcd(rate_hz, SAMPLE_RATE_HZ)
    samples = resample_poly(samples, SAMPLE_RATE_HZ // common, rate_hz // common)
    return as_int16(trimmed(samples)[:LONGEST_WORD_SAMPLES])


def trimmed(samples: np.ndarray) -> np.ndarray:
    """The samples from the first to the last one that is louder than a fiftieth of the loudest."""
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1]


def as_int16(samples: np.ndarray) -> np.ndarray:
    """The samples with their peak at 0.7 of full scale."""
    return np.round(samples * (0.7 * 32767 / np.abs(samples).max())).astype(np.int16)


def say_all(takes: list[Take], workers: int, advance: Callable[[], None]) -> tuple[np.ndarray, np.ndarray]:
    """All takes end to end as int16, and the int64 offsets (one more than takes) where each begins."""
    # Threads suffice: the time goes to the espeak-ng processes, which run outside the interpreter's lock.
    spoken = []
    with ThreadPoolExecutor(workers) as pool:
        for samples in pool.map(say, takes):
            spoken.append(samples)
            advance()
    offsets = np.concatenate([[0], np.cumsum([len(samples) for samples in spoken])]).astype(np.int64)
    return np.concatenate(spoken), offsets
