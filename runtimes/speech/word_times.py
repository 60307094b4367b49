"""The words of a decoded window with their times, by one more pass of the decoder over what it has said.

The pass feeds the transcript without timestamps, as openai's Whisper does. It is there once for each window that has
text, and takes about as long as the prompt of so many tokens.

When each token was said is found as by openai's Whisper: the attention of a few cross-attention heads that follow the
speech is sharpened over the tokens, smoothed over time and averaged, and the cheapest monotonic path through it
(dynamic time warping; Sakoe and Chiba 1978) says where each token begins.

Dimension letters: A alignment heads, N tokens, T encoder positions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Sequence

import numpy as np

from leanear.runtimes.sessions import SpeechSession
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


def token_positions(scores: np.ndarray, first: int, count: int, filter_positions: int) -> np.ndarray:
    """The position at which each of `count` tokens begins, int64 (count,), never falling.

    scores: float32 (A, N, T), of the alignment heads before the softmax, T being positions of audio alone; first: the
    row that the first token is said from, which is that of the token before it.
    """
    weights = softmax(scores)
    weights -= weights.mean(axis=1, keepdims=True)
    spread = weights.std(axis=1, keepdims=True)
    weights = np.divide(weights, spread, out=np.zeros_like(weights), where=spread > 0)
    matrix = np.zeros((count, weights.shape[2]))
    for head in weights[:, first : first + count]:
        matrix += median_filter(head, filter_positions)
    return first_columns(warp(-matrix / len(weights)))


def softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, float32."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True), dtype=np.float32)
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def median_filter(values: np.ndarray, width: int) -> np.ndarray:
    """The median of each number and its neighbours along the last axis, whose ends are mirrored.

    width: odd. Where the axis is too short to be mirrored, the numbers stay as they are. All places are sorted at once
    by odd-even transposition, a few whole-array operations that need no copy of every neighbourhood.
    """
    reach, length = width // 2, values.shape[-1]
    if length <= reach:
        return values
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(reach, reach)], mode="reflect")
    rows = [padded[..., place : place + length] for place in range(width)]
    for turn in range(width):
        for place in range(turn % 2, width - 1, 2):
            low, high = rows[place], rows[place + 1]
            rows[place], rows[place + 1] = np.minimum(low, high), np.maximum(low, high)
    return rows[reach]


def warp(costs: np.ndarray) -> list[tuple[int, int]]:
    """The cheapest path through `costs` (N, T) from the first corner to the last.

    It moves by a row, by a column, or by both at once, and costs what its cells cost. A row is filled without a loop:
    the cheapest way along it from where the path came in is a running minimum of sums.
    """
    rows, columns = costs.shape
    totals = np.empty((rows, columns))
    totals[0] = np.cumsum(costs[0], dtype=np.float64)
    for row in range(1, rows):
        above = totals[row - 1]
        entered = np.concatenate([above[:1], np.minimum(above[1:], above[:-1])])
        along = np.cumsum(costs[row], dtype=np.float64)
        before = np.concatenate([[0.0], along[:-1]])
        totals[row] = np.minimum.accumulate(entered - before) + along
    row, column = rows - 1, columns - 1
    path = [(row, column)]
    while row or column:
        moves = [(row - 1, column - 1), (row - 1, column), (row, column - 1)]
        row, column = min((move for move in moves if min(move) >= 0), key=lambda move: totals[move])
        path.append((row, column))
    return path[::-1]


def first_columns(path: list[tuple[int, int]]) -> np.ndarray:
    """The column at which a path enters each row."""
    entered: dict[int, int] = {}
    for row, column in path:
        entered.setdefault(row, column)
    return np.array(list(entered.values()), dtype=np.int64)


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
