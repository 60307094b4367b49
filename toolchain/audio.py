"""Audio files as mono waveforms of the sample rate that a model wants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import soxr

from runtimes.errors import BadInput

SUFFIXES = (".wav", ".flac", ".ogg")


def check_audio_file(path: Path) -> None:
    """Nothing, where `path` is a file.

    Raises:
        BadInput: it is a folder, or not there.
    """
    if path.is_dir():
        raise BadInput(f"{path}: a folder; one audio file is wanted")
    if not path.is_file():
        raise BadInput(f"{path}: no such file")


def read_waveform(path: Path, sample_rate_hz: int) -> np.ndarray:
    """The clip in `path`, float32 (samples,): channels averaged, resampled (soxr, high quality) if its rate differs.

    Raises:
        BadInput: the file is missing, is not audio, is truncated or empty, or holds NaN or infinite samples.
    """
    path = Path(path)
    check_audio_file(path)
    try:
        with open(path, "rb") as stream, soundfile.SoundFile(stream) as audio:
            promised, rate_hz = audio.frames, audio.samplerate
            samples = audio.read(dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise BadInput(f"{path}: not readable as audio ({error.error_string.strip()})") from None
    if rate_hz <= 0 or len(samples) == 0:
        raise BadInput(f"{path}: no audio in it (zero samples)")
    if len(samples) < promised or is_cut_short(path):
        raise BadInput(f"{path}: truncated: the file ends before the audio that its header promises")
    if not np.isfinite(samples).all():
        raise BadInput(f"{path}: holds NaN or infinite samples")
    mono = samples.mean(axis=1, dtype=np.float32)
    if rate_hz != sample_rate_hz:
        mono = soxr.resample(mono, rate_hz, sample_rate_hz)
    if len(mono) == 0:
        raise BadInput(f"{path}: no audio left at {sample_rate_hz} Hz: it is shorter than one sample")
    return np.ascontiguousarray(mono, dtype=np.float32)


def is_cut_short(path: Path) -> bool:
    """Whether a WAV file is shorter than its header says; libsndfile reads such a file without a word.

    A size of 0 or 0xFFFFFFFF is what programs write that stream and do not know the length; it promises nothing.
    """
    with open(path, "rb") as stream:
        header = stream.read(8)
    if header[:4] != b"RIFF":
        return False
    promised = int.from_bytes(header[4:8], "little")
    return promised not in (0, 0xFFFFFFFF) and path.stat().st_size < promised + 8
