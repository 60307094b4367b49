"""WAV files as mono waveforms, read and resampled with numpy alone: a device has no audio library."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from runtimes.errors import BadInput

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
UNKNOWN_LENGTH = (0, 0xFFFFFFFF)  # what programs write that stream and do not know yet
ZERO_CROSSINGS = 32
KAISER_BETA = 12.0
BAND = 0.945  # of the lower rate's half that is kept


def read_recording(path: Path, sample_rate_hz: int) -> np.ndarray:
    """The WAV file in `path`, float32 (samples,): channels averaged, resampled if its rate differs.

    PCM of 8, 16, 24 or 32 bits and floats of 32 or 64.

    Raises:
        BadInput: the file is missing, is not such a file, is truncated or empty, or holds NaN or infinite samples.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise BadInput(f"{path}: not a WAV file; convert it with: ffmpeg -i FILE -ac 1 -ar {sample_rate_hz} clip.wav")
    header, samples = _chunks(data, path)
    kind, channels, rate_hz, bits = _format(header, path)
    mono = _decoded(samples, kind, channels, bits, path)
    if not mono.size:
        raise BadInput(f"{path}: no audio in it (zero samples)")
    if not np.isfinite(mono).all():
        raise BadInput(f"{path}: holds NaN or infinite samples")
    return resampled(mono, rate_hz, sample_rate_hz)


def _chunks(data: bytes, path: Path) -> tuple[bytes, bytes]:
    """The contents of the chunks "fmt " and "data"."""
    found: dict[bytes, bytes] = {}
    place = 12
    while place + 8 <= len(data) and b"data" not in found:
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8
        if name == b"data" and size in UNKNOWN_LENGTH:
            size = len(data) - place
        if place + size > len(data):
            raise BadInput(f"{path}: truncated: the file ends before the audio that its header promises")
        found.setdefault(name, data[place : place + size])
        place += size + size % 2
    if b"fmt " not in found or b"data" not in found:
        raise BadInput(f"{path}: a WAV file without a format or without audio")
    return found[b"fmt "], found[b"data"]


def _format(header: bytes, path: Path) -> tuple[int, int, int, int]:
    """Kind of samples, channels, sample rate, and bits of one sample."""
    if len(header) < 16:
        raise BadInput(f"{path}: its WAV format is cut short")
    kind, channels = int.from_bytes(header[:2], "little"), int.from_bytes(header[2:4], "little")
    rate_hz, bits = int.from_bytes(header[4:8], "little"), int.from_bytes(header[14:16], "little")
    if kind == EXTENSIBLE and len(header) >= 26:
        kind = int.from_bytes(header[24:26], "little")
    if (kind, bits) not in ((PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)):
        raise BadInput(f"{path}: WAV of format {kind} with {bits} bits is not read; PCM and floats are")
    if channels < 1 or rate_hz < 1:
        raise BadInput(f"{path}: {channels} channels at {rate_hz} Hz cannot be")
    return kind, channels, rate_hz, bits


def _decoded(data: bytes, kind: int, channels: int, bits: int, path: Path) -> np.ndarray:
    """float32 (samples,), the mean over channels, full scale at 1."""
    frame_bytes = channels * bits // 8
    if len(data) % frame_bytes:
        raise BadInput(f"{path}: truncated: its audio ends within a sample")
    if kind == FLOAT:
        samples = np.frombuffer(data, f"<f{bits // 8}").astype(np.float64)
    elif bits == 8:
        samples = (np.frombuffer(data, np.uint8).astype(np.float64) - 128) / 128
    elif bits == 24:
        parts = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.int32)
        samples = ((parts[:, 0] << 8 | parts[:, 1] << 16 | parts[:, 2] << 24) >> 8) / float(1 << 23)
    else:
        samples = np.frombuffer(data, f"<i{bits // 8}") / float(1 << (bits - 1))
    return samples.reshape(-1, channels).mean(axis=1).astype(np.float32)


def resampled(waveform: np.ndarray, rate_hz: int, wanted_hz: int) -> np.ndarray:
    """`waveform` at another sample rate, float32: a Kaiser-windowed sinc, evaluated phase by phase."""
    if rate_hz == wanted_hz:
        return waveform
    divisor = math.gcd(rate_hz, wanted_hz)
    up, down = wanted_hz // divisor, rate_hz // divisor
    cutoff = BAND * min(1.0, up / down)
    half = math.ceil(ZERO_CROSSINGS / cutoff)
    padded = np.pad(waveform.astype(np.float64), (half, half + 1))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    out = np.zeros(-(-len(waveform) * up // down))
    for phase in range(min(up, len(out))):
        moments = np.arange(phase, len(out), up) * down  # in 1 / up of an input sample
        first, fraction = moments // up, (moments[0] % up) / up
        distance = np.arange(-half, half + 1) - fraction
        taper = np.i0(KAISER_BETA * np.sqrt(np.maximum(0.0, 1 - (distance / (half + 1)) ** 2))) / np.i0(KAISER_BETA)
        out[phase::up] = windows[first] @ (cutoff * np.sinc(cutoff * distance) * taper)
    return out.astype(np.float32)
