"""WAV files put together by hand, with sizes in their headers that may be wrong."""

from __future__ import annotations

import struct

import numpy as np

RATE_HZ = 16_000


def pcm(samples: int = 8_000) -> np.ndarray:
    """A reproducible 16-bit recording, int16 (samples,)."""
    return np.random.default_rng(0).integers(-20_000, 20_000, samples).astype("<i2")


def wav_bytes(
    data: bytes, *, data_size: int | None = None, riff_size: int | None = None, behind: bytes = b"", channels: int = 1
) -> bytes:
    """A 16-bit WAV file of `data`, its sizes right where none are given."""
    frame = 2 * channels
    head = b"WAVE" + b"fmt " + struct.pack("<IHHIIHH", 16, 1, channels, RATE_HZ, RATE_HZ * frame, frame, 16)
    body = head + b"data" + struct.pack("<I", len(data) if data_size is None else data_size) + data + behind
    return b"RIFF" + struct.pack("<I", len(body) if riff_size is None else riff_size) + body
