"""Many clips at a time: windows of one length are decoded together, a row each, so that weights are read once for all.

A step of a decoder takes as long as reading its weights does, whatever the number of rows. So clips that are heard in
windows of the same length are encoded one after another, and their tokens are decoded together: the first try alone,
greedily. What fails a test, does not fit one window, is not greedy or follows a prompt is heard as a clip by itself is.
So every transcript is the one that `transcribe` of `long_audio` gives, but for what sums in another order change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Sequence

import numpy as np

from leanear.runtimes.sessions import SpeechSession
from leanear.runtimes.speech.decode_options import DecodeOptions, chosen_language
from leanear.runtimes.speech.decoding import Decoded, decode_windows
from leanear.runtimes.speech.long_audio import single_window, transcribe
from leanear.runtimes.speech.short_windows import most_tokens
from leanear.runtimes.speech.speech_model import SpeechModel
from leanear.runtimes.speech.transcript import Segment, Tally


@dataclass(frozen=True)
class Heard:
    """What one of many clips says: its number among them, its segments, and what that took."""

    number: int
    segments: tuple[Segment, ...]
    tally: Tally


def transcribe_many(
    session: SpeechSession, model: SpeechModel, waveforms: Sequence[np.ndarray], options: DecodeOptions, batch: int
) -> Iterator[Heard]:
    """What every clip says, as soon as it is known: clips of one window's length together, `batch` at a time.

    waveforms: float32 (samples,) each, at the model's rate.

    Raises:
        BadInput: the decoder's graph takes one window at a time, the model does not have the language or the task, or
            audio has NaN or infinite samples.
    """
    alone, by_length = _by_window(model, waveforms, options)
    for length, numbers in sorted(by_length.items()):
        for first in range(0, len(numbers), batch):
            together = numbers[first : first + batch]
            heard = _first_tries(session, model, [waveforms[number] for number in together], length, options)
            for number, decoded in zip(together, heard):
                yield _heard(session, model, number, waveforms[number], options, decoded)
    for number in alone:
        yield _heard(session, model, number, waveforms[number], options, None)


def _by_window(
    model: SpeechModel, waveforms: Sequence[np.ndarray], options: DecodeOptions
) -> tuple[list[int], dict[int, list[int]]]:
    """Clips that are heard alone, and the others by the window that holds them, the shortest first."""
    language_is_heard = model.tokens.multilingual and chosen_language(model.tokens, options) is None
    is_shown_text = bool(options.prompt.strip() or options.hotwords)
    if options.beam_size > 1 or options.temperatures[0] > 0.0 or language_is_heard or is_shown_text:
        return list(range(len(waveforms))), {}
    alone: list[int] = []
    by_length: dict[int, list[int]] = {}
    for number in sorted(range(len(waveforms)), key=lambda number: len(waveforms[number])):
        samples = single_window(model, waveforms[number])
        if samples is None:
            alone.append(number)
        else:
            by_length.setdefault(model.encoder_windows.holding(len(samples)), []).append(number)
    return alone, by_length


def _first_tries(
    session: SpeechSession, model: SpeechModel, waveforms: Sequence[np.ndarray], length: int, options: DecodeOptions
) -> list[Decoded]:
    """What is heard first in clips that a window of `length` samples holds."""
    whole = [samples for samples in (single_window(model, waveform) for waveform in waveforms) if samples is not None]
    session.encode_several(whole, length)
    positions = model.tokens.positions
    is_short = length < model.encoder_windows.full
    most = [most_tokens(len(samples), model.sample_rate_hz) if is_short else positions for samples in whole]
    return decode_windows(session, model.tokens, options, most, no_speech=options.no_speech_limit is not None)


def _heard(
    session: SpeechSession,
    model: SpeechModel,
    number: int,
    waveform: np.ndarray,
    options: DecodeOptions,
    first_try: Decoded | None,
) -> Heard:
    tally = Tally()
    segments = tuple(transcribe(session, model, waveform, options, tally, first_try=first_try))
    return Heard(number, segments, tally)
