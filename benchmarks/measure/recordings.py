"""Evaluation clips joined to recordings longer than an encoder's window: short clips alone never show what a model does
with a full window, its later positions, and the seam to the next one."""

from __future__ import annotations

from dataclasses import replace
from typing import List

import numpy as np

from leanear.runtimes.clips import Clips

WINDOWS = 3  # of each recording, at least
MOST_S = 600.0  # of all recordings
PAUSE_S = 0.5


def recordings_of(clips: Clips, window_s: float) -> Clips:
    """Recordings of at least three windows, of clips in their order with pauses between; none where clips are too few.

    There are none either where a clip is longer than a window itself: then the clips show it.
    """
    rate = clips.sample_rate_hz
    pause = np.zeros(round(PAUSE_S * rate), np.float32)
    joined: List[slice] = []
    start, length, total = 0, 0, 0
    for number, waveform in enumerate(clips.waveforms):
        if len(waveform) > window_s * rate:
            return clips[:0]
        length += len(waveform) + len(pause)
        if length >= WINDOWS * window_s * rate:
            total += length
            if total > MOST_S * rate and joined:
                break
            joined.append(slice(start, number + 1))
            start, length = number + 1, 0
    texts = clips.texts or ()
    return replace(
        clips,
        waveforms=tuple(
            np.concatenate([part for each in clips.waveforms[run] for part in (each, pause)]) for run in joined
        ),
        label_ids=clips.label_ids[: len(joined)],
        names=tuple(f"{clips.names[run.start]} to {clips.names[run.stop - 1]}" for run in joined),
        texts=tuple(" ".join(texts[run]) for run in joined),
    )
