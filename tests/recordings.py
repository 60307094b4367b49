"""A whole WAV file as a device reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from leanear.runtimes.audio.recordings import Recording
from leanear.runtimes.process.notes import Note, note


def read_recording(path: Path, sample_rate_hz: int, say: Note = note) -> np.ndarray:
    """All of it, float32 (samples,)."""
    with Recording(path, sample_rate_hz, say) as recording:
        return recording[0 : recording.samples]
