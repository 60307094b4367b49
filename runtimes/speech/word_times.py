"""The words of a decoded window with their times, by one more pass of the decoder over what it has said.

The pass feeds the transcript without timestamps, as openai's Whisper does. It is there once for each window that has
text, and takes about as long as the prompt of so many tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Sequence

import numpy as np

from leanear.runtimes.sessions import SpeechSession
from leanear.runtimes.speech.alignment import token_positions
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.decoding import Decoded, prompt_tokens
from leanear.runtimes.speech.speech_model import SpeechModel
from leanear.runtimes.speech.transcript import Window
from leanear.runtimes.speech.words import (
    TRUSTED_TIME_S,
    keep_out_pauses,
    make_words,
    spans_of,
    split_words,
    usual_length,
)


def with_word_times(
    session: SpeechSession, model: SpeechModel, window: Window, last: Window | None, options: DecodeOptions
) -> Window:
    """`window`, which `session` still holds encoded, its segments with their words.

    last: the window before. No word ends behind where the next window starts.
    """
    decoded, rate_hz = window.decoded, model.sample_rate_hz
    texts = [[token for token in segment.tokens if model.vocabulary.is_text(token)] for segment in window.segments]
    if decoded is None or not any(texts):
        return replace(window, segments=tuple(replace(segment, words=()) for segment in window.segments))
    starts = _token_starts(session, model, window, decoded, [token for text in texts for token in text], options)
    probabilities = _text_probabilities(model, decoded)
    said = [split_words(model.vocabulary, text, decoded.language) for text in texts]
    firsts = np.cumsum([0, *(len(text) for text in texts)])
    spans = [spans_of(pieces, starts[first:]) for pieces, first in zip(said, firsts)]
    usual = usual_length([span for of_segment in spans for span in of_segment], rate_hz)
    said_until, segments = _said_until(last, window, rate_hz), []
    for segment, pieces, of_segment, first in zip(window.segments, said, spans, firsts):
        if pieces:
            between = _sample(segment.start_s, window, rate_hz), _sample(segment.end_s, window, rate_hz)
            keep_out_pauses(pieces, of_segment, said_until, between, usual, round(TRUSTED_TIME_S * rate_hz))
            said_until = of_segment[-1].end
        most = min(window.samples, window.advance)
        words = make_words(pieces, of_segment, probabilities[first:], window.start, most, rate_hz)
        segments.append(replace(segment, words=words))
    return replace(window, segments=tuple(segments))


def _token_starts(
    session: SpeechSession,
    model: SpeechModel,
    window: Window,
    decoded: Decoded,
    text: Sequence[int],
    options: DecodeOptions,
) -> np.ndarray:
    """The sample of the window at which each token of `text` begins, and the one at which the last ends."""
    tokens, step = model.tokens, model.step_samples
    asked = replace(options, timestamps=False)
    prompt = [tokens.start, *prompt_tokens(tokens, asked, decoded.language)]
    fed = np.array([*prompt, *text, tokens.end], dtype=np.int64)[: tokens.positions]
    positions = max(window.samples // step, 1)
    scores = session.alignment_scores(fed)[..., :positions]
    first = len(prompt) - 1
    rows = min(len(text) + 1, len(fed) - first)  # fewer where the model has no position for the last ones
    filter_positions = 1 if model.alignment is None else model.alignment.filter_positions
    found = token_positions(scores, first, rows, filter_positions)
    return np.concatenate([found, np.full(len(text) + 1 - rows, positions)]) * step


def _text_probabilities(model: SpeechModel, decoded: Decoded) -> list[float]:
    """The probability of each token of text of a window, in order."""
    pairs = zip(decoded.tokens, decoded.log_probabilities)
    return [float(np.exp(of_token)) for token, of_token in pairs if model.vocabulary.is_text(token)]


def _said_until(last: Window | None, window: Window, rate_hz: int) -> int:
    """The sample, counted from the window's first one, at which the last word before it ended, as far as is known."""
    if last is None:
        return -window.start
    words = [word for segment in last.segments for word in segment.words or ()]
    return _sample(words[-1].end_s, window, rate_hz) if words else last.start - window.start


def _sample(seconds: float, window: Window, rate_hz: int) -> int:
    return round(seconds * rate_hz) - window.start
