"""Waveforms as sessions take them, from what devices have: one channel of samples, as floats or as 16-bit PCM."""

from __future__ import annotations

import numpy as np

from leanear.runtimes.artifact import Artifact
from leanear.runtimes.audio.formats import check_samples
from leanear.runtimes.errors import BadInput
from leanear.runtimes.process.notes import is_cut, note_cut

PCM_FULL_SCALE = 32768.0


def checked_waveform(waveform: np.ndarray) -> np.ndarray:
    """`waveform` as a float32 (1, samples) view or copy, the shape that exported graphs take.

    Floats of any width are converted; int16 is PCM as microphones and WAV files give it, and is scaled to [-1, 1).

    Raises:
        BadInput: it is not one-dimensional, is empty, is of another type, or has a sample that is none.
    """
    waveform = np.asarray(waveform)
    is_pcm = waveform.dtype.kind == "i" and waveform.dtype.itemsize == 2
    if not is_pcm and waveform.dtype.kind != "f":
        raise BadInput(f"waveform: expected floats within -1 to 1 or int16 samples, got {waveform.dtype}")
    if waveform.ndim != 1 or waveform.size == 0:
        raise BadInput(f"waveform: expected a non-empty array of shape (samples,), got shape {waveform.shape}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as that
        floats = np.ascontiguousarray(waveform, dtype=np.float32)
    if is_pcm:
        floats /= np.float32(PCM_FULL_SCALE)
    else:
        check_samples(floats, "waveform")
    return floats[np.newaxis]


class ForwardWaveform:
    """A waveform that is only read on, as `long_audio.Waveform`: a slice is float32 (samples,).

    No slice may start before an earlier one did: what is behind is let go.
    """

    def __init__(self) -> None:
        self._kept, self._kept_from, self._ended = np.zeros(0, np.float32), 0, False

    def __getitem__(self, span: slice) -> np.ndarray:
        """Samples [start, stop), fewer where the audio ends."""
        if span.start < self._kept_from:
            raise ValueError(f"samples from {span.start} were asked for, but those before {self._kept_from} are gone")
        parts, held = [self._kept], self._kept_from + len(self._kept)
        while held < span.stop and not self._ended:
            parts.append(self._read_on())
            held += len(parts[-1])
        self._kept = np.concatenate(parts)[span.start - self._kept_from :]
        self._kept_from = span.start
        return self._kept[: span.stop - span.start]

    def _read_on(self) -> np.ndarray:
        """The next samples; sets `_ended` where there are no more behind them."""
        raise NotImplementedError


class WaveformInput:
    """What every waveform of a session goes through.

    One that is longer than the model's window is taken, and what lies behind the window is not heard: of the first
    such waveform of a session a note says so (`leanear.runtimes.process.notes`), of later ones nothing does.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._window_samples = artifact.manifest.input.window_samples
        self._sample_rate_hz = artifact.sample_rate_hz
        self._said = False

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """The waveform as a float32 (1, samples) array, whole; raises BadInput as `checked_waveform`."""
        checked = checked_waveform(waveform)
        if not self._said:
            samples = checked.shape[1]
            self._said = is_cut(samples, self._window_samples, self._sample_rate_hz)
            note_cut("waveform", samples, self._window_samples, self._sample_rate_hz)
        return checked
