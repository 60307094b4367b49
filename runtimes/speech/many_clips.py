"""Many files: short ones of one window's length are decoded together."""

from __future__ import annotations

from itertools import repeat
from pathlib import Path
from typing import Callable, ContextManager, Iterator, Sequence

import numpy as np

from leanear.runtimes.errors import LeanearError
from leanear.runtimes.sessions import SpeechSession
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.decoding import Decoded
from leanear.runtimes.speech.first_tries import first_tries
from leanear.runtimes.speech.long_audio import Waveform, single_window
from leanear.runtimes.speech.speech_model import SpeechModel


def tried_files(
    session: SpeechSession,
    model: SpeechModel,
    options: DecodeOptions,
    files: Sequence[Path],
    opened: Callable[[Path, int, Callable[[str], None]], ContextManager[Waveform]],
) -> Iterator[Decoded | None]:
    """What was heard first in each file, for `transcribe`; None in one that is to be heard by itself.

    Some that come next are read, too, as far as a window. opened: a file at a rate, and what takes the notes about it.
    """
    if options.batch == 1 or len(files) == 1:
        return repeat(None, len(files))

    def clip(path: Path) -> np.ndarray | None:
        try:
            with opened(path, model.sample_rate_hz, lambda _: None) as waveform:
                samples = waveform[0 : model.window_samples + 1]
        except LeanearError:  # which is said when its turn comes
            return None
        return single_window(model, samples) if len(samples) <= model.window_samples else None

    return (decoded for _, decoded in first_tries(session, model, options, map(clip, files)))
