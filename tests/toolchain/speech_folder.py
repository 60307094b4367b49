"""A folder of transcribed sounds for tiny Whispers, whose words are what some model says of them, or nearly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16_000


def sound(number: int, seconds: float = 1.2) -> np.ndarray:
    """A sweep with noise on it, another for every number, float32 in steps of 16-bit samples, as FLAC keeps them."""
    generator = np.random.default_rng(number)
    time_s = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    sweep = np.sin(2 * np.pi * (200 + 90 * number + 400 * time_s) * time_s)
    noisy = 0.4 * sweep + 0.05 * generator.normal(size=len(time_s))
    return (np.round(noisy * 2**15) / 2**15).astype(np.float32)


def write_speech_folder(folder: Path, texts: Sequence[str], seconds: float = 1.2) -> Path:
    """`folder`, with a FLAC file for every text and metadata.csv."""
    folder.mkdir(parents=True)
    rows = ["file_name,text"]
    for number, text in enumerate(texts):
        soundfile.write(folder / f"{number}.flac", sound(number, seconds), RATE_HZ)
        rows.append(f'{number}.flac,"{text}"')
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder
