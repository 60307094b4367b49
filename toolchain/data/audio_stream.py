"""Audio files of any length as mono waveforms that are read, and resampled, only as far as they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np
import soxr

from leanear.data.audio import AudioFile
from leanear.runtimes.audio.waveforms import ForwardWaveform
from leanear.runtimes.process.notes import Note, note

BLOCK_S = 1.0


class AudioStream(ForwardWaveform):
    """The clip in `path`, as `runtimes.speech.long_audio.Waveform`: a slice is float32 (samples,) at `sample_rate_hz`.

    Channels are averaged; the rate is changed by soxr, high quality, as `leanear.data.audio.read_waveform` does. No
    slice may start before an earlier one did: what is behind is let go. progress: called with the seconds of audio
    before a slice, and with what share of all of it that is, by the bytes that were read.

    Raises:
        BadInput: as `leanear.data.audio.AudioFile`, whose notes are these, too.
    """

    def __init__(
        self, path: Path, sample_rate_hz: int, say: Note = note, progress: Callable[[float, float], None] | None = None
    ) -> None:
        super().__init__()
        self._file, self._progress, self._out_rate_hz = AudioFile(path, say), progress, sample_rate_hz
        rate_hz = self._file.sample_rate_hz
        self._block = max(round(BLOCK_S * rate_hz), 1)
        self._resampler = None
        if rate_hz != sample_rate_hz:
            self._resampler = soxr.ResampleStream(rate_hz, sample_rate_hz, 1, dtype="float32")

    def __enter__(self) -> AudioStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def __getitem__(self, span: slice) -> np.ndarray:
        """Samples [start, stop), fewer where the audio ends."""
        heard = super().__getitem__(span)
        held = span.start + len(self._kept)
        if self._progress is not None and held:
            self._progress(span.start / self._out_rate_hz, self._file.share_read * span.start / held)
        return heard

    def _read_on(self) -> np.ndarray:
        mono = self._file.read(self._block)
        self._ended = len(mono) < self._block
        return mono if self._resampler is None else self._resampler.resample_chunk(mono, last=self._ended)
