"""Many files: short ones of one window's length are decoded together."""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Callable, ContextManager, Iterator, Sequence

import numpy as np

from leanear.runtimes.errors import LeanearError
from leanear.runtimes.process.notes import note
from leanear.runtimes.sessions import SpeechSession
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.decoding import Decoded
from leanear.runtimes.speech.first_tries import first_tries
from leanear.runtimes.speech.long_audio import Waveform, single_window
from leanear.runtimes.speech.speech_model import SpeechModel


@dataclass(frozen=True)
class Tried:
    """What is known of a file before its turn.

    decoded: what was heard in it first; samples: float32 (samples,), all of it, where it was read and is no longer than
    a window; notes: about it, which nobody was told.
    """

    decoded: Decoded | None = None
    samples: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def opened(self) -> ContextManager[np.ndarray] | None:
        """The samples, once what there is to note of them is said; None where the file has to be opened."""
        for each in self.notes:
            note(each)
        return None if self.samples is None else nullcontext(self.samples)


NOT_TRIED = Tried()


def tried_files(
    session: SpeechSession,
    model: SpeechModel,
    options: DecodeOptions,
    files: Sequence[Path],
    opened: Callable[[Path, int, Callable[[str], None]], ContextManager[Waveform]],
) -> Iterator[Tried]:
    """What is known of each file when its turn comes, for `transcribe`.

    Some that come next are read, too, as far as a window. opened: a file at a rate, and what takes the notes about it.
    """
    if options.batch == 1 or len(files) == 1:
        return repeat(NOT_TRIED, len(files))
    ahead: deque[Tried] = deque()

    def clip(path: Path) -> np.ndarray | None:
        notes: list[str] = []
        ahead.append(NOT_TRIED)
        try:
            with opened(path, model.sample_rate_hz, notes.append) as waveform:
                samples = waveform[0 : model.window_samples + 1]
        except LeanearError:  # which is said when its turn comes
            return None
        if len(samples) > model.window_samples:
            return None
        ahead[-1] = Tried(None, samples, tuple(notes))
        return single_window(model, samples)

    tries = first_tries(session, model, options, map(clip, files))
    return (replace(ahead.popleft(), decoded=decoded) for _, decoded in tries)
