"""Audio files of any length as mono waveforms that are read, and resampled, only as far as they are asked for."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
import soundfile
import soxr

from runtimes.errors import BadInput
from toolchain.audio import check_audio_file, is_cut_short

BLOCK_S = 1.0


class AudioStream:
    """The clip in `path`, as `runtimes.long_audio.Waveform`: a slice is float32 (samples,) at `sample_rate_hz`.

    Channels are averaged; the rate is changed by soxr, high quality, as `toolchain.audio.read_waveform` does. No slice
    may start before an earlier one did: what is behind is let go.

    Raises:
        BadInput: the file is missing, is not audio, is truncated, or holds NaN or infinite samples; the latter two,
            and damage within the file, are found where the reading comes to it.
    """

    def __init__(self, path: Path, sample_rate_hz: int) -> None:
        self._path = Path(path)
        check_audio_file(self._path)
        try:
            self._file = soundfile.SoundFile(self._path)
        except soundfile.LibsndfileError as error:
            raise BadInput(f"{self._path}: not readable as audio ({error.error_string.strip()})") from None
        if is_cut_short(self._path):
            self._file.close()
            raise self._truncated()
        rate_hz = self._file.samplerate
        self._block = max(round(BLOCK_S * rate_hz), 1)
        self._resampler = None
        if rate_hz != sample_rate_hz:
            self._resampler = soxr.ResampleStream(rate_hz, sample_rate_hz, 1, dtype="float32")
        self._kept = np.zeros(0, np.float32)
        self._kept_from = 0
        self._frames_read = 0
        self._ended = False

    def __enter__(self) -> AudioStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def __getitem__(self, span: slice) -> np.ndarray:
        """Samples [start, stop), fewer where the audio ends."""
        if span.start < self._kept_from:
            raise ValueError(f"samples from {span.start} were asked for, but those before {self._kept_from} are gone")
        parts, held = [self._kept], self._kept_from + len(self._kept)
        while held < span.stop and not self._ended:
            parts.append(self._read_block())
            held += len(parts[-1])
        self._kept = np.concatenate(parts)[span.start - self._kept_from :]
        self._kept_from = span.start
        return self._kept[: span.stop - span.start]

    def _read_block(self) -> np.ndarray:
        try:
            samples = self._file.read(self._block, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise BadInput(f"{self._path}: damaged ({error.error_string.strip()})") from None
        self._frames_read += len(samples)
        self._ended = len(samples) < self._block
        if self._ended and self._frames_read < self._file.frames:
            raise self._truncated()
        if not np.isfinite(samples).all():
            raise BadInput(f"{self._path}: holds NaN or infinite samples")
        mono = samples.mean(axis=1, dtype=np.float32)
        return mono if self._resampler is None else self._resampler.resample_chunk(mono, last=self._ended)

    def _truncated(self) -> BadInput:
        return BadInput(f"{self._path}: truncated: the file ends before the audio that its header promises")
