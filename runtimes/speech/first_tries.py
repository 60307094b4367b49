"""First tries of windows that do not depend on each other: the next ones are decoded together, a row each.

A step of a decoder takes as long as reading its weights does, whatever the number of rows. So windows of one length
among those that come next are encoded one after another, and their tokens are decoded together: at the first
temperature alone, greedily. What is not greedy, follows a prompt or is in a language that has to be heard first is left
to whoever hears the windows one by one, as is what fails a test.
"""

from __future__ import annotations

from itertools import islice
from typing import Iterable, Iterator, Sequence

import numpy as np

from leanear.runtimes.errors import MeasurementFailed
from leanear.runtimes.sessions import SpeechSession
from leanear.runtimes.speech.attempts import first_end, most_tokens
from leanear.runtimes.speech.decode_options import DecodeOptions, chosen_language
from leanear.runtimes.speech.decoding import Decoded, decode_windows
from leanear.runtimes.speech.speech_model import SpeechModel

AHEAD = 4  # times as many windows wait, of which those of one length are decoded together
SILENT_PEAK = 2.0**-16  # half of a 16-bit sample's step


def first_tries(
    session: SpeechSession,
    model: SpeechModel,
    options: DecodeOptions,
    windows: Iterable[np.ndarray | None],
    *,
    are_pieces: bool = False,
) -> Iterator[tuple[np.ndarray | None, Decoded | None]]:
    """The windows in their order, each with what was heard in it first, None where it has to be heard by itself.

    windows: float32 (samples,), None for what is no single window; they do not depend on each other. With a batch of 1
        no window is read before the one before is done with. are_pieces: of long audio, heard to their ends.

    Raises:
        BadInput: audio has NaN or infinite samples.
    """
    batch = options.batch if session.takes_several and _may_be_together(model, options) else 1
    coming = ((number, samples, _length(model, samples)) for number, samples in enumerate(windows))
    waiting: list[tuple[int, np.ndarray | None, int]] = []
    found: dict[int, Decoded | None] = {}
    while True:
        waiting += islice(coming, (AHEAD * batch if batch > 1 else 1) - len(waiting))
        if not waiting:
            return
        number, samples, length = waiting[0]
        if length and number not in found:
            alike = [(n, each) for n, each, its in waiting if its == length and n not in found][:batch]
            if len(alike) > 1:
                together = [each for _, each in alike if each is not None]
                try:
                    heard: Sequence[Decoded | None] = _together(session, model, together, options, are_pieces)
                except MeasurementFailed:  # whose fault it is shows when each is heard by itself
                    heard = [None] * len(alike)
                found.update(zip((n for n, _ in alike), heard))
        waiting.pop(0)
        yield samples, found.pop(number, None)


def _length(model: SpeechModel, samples: np.ndarray | None) -> int:
    """Of the window that holds so much audio; 0 of what is not to be decoded."""
    return 0 if samples is None or is_silent(samples) else model.encoder_windows.holding(len(samples))


def is_silent(samples: np.ndarray) -> bool:
    """Whether there is digital silence, which is not decoded."""
    return bool(max(samples.max(), -samples.min()) < SILENT_PEAK)


def _may_be_together(model: SpeechModel, options: DecodeOptions) -> bool:
    language_is_heard = model.tokens.multilingual and chosen_language(model.tokens, options) is None
    is_shown_text = bool(options.prompt.strip() or options.hotwords)
    return not (options.beam_size > 1 or options.temperatures[0] > 0.0 or language_is_heard or is_shown_text)


def _together(
    session: SpeechSession, model: SpeechModel, windows: Sequence[np.ndarray], options: DecodeOptions, are_pieces: bool
) -> list[Decoded]:
    """What is heard first in windows of one length."""
    length = model.encoder_windows.holding(len(windows[0]))
    session.encode_several(windows, length)
    is_short = length < model.encoder_windows.full
    tokens, rate_hz = model.tokens, model.sample_rate_hz
    most = [most_tokens(len(samples), rate_hz) if is_short else tokens.positions for samples in windows]
    ends = [first_end(tokens, samples, rate_hz) if are_pieces else 0 for samples in windows]
    wants_no_speech = options.no_speech_limit is not None
    return decode_windows(session, tokens, options, most, first_ends=ends, no_speech=wants_no_speech)
