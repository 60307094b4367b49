"""Words with times: tokens put together to words, their times from `alignment`, pauses kept out of them.

A word's time is that of its letters and digits: punctuation has no sound, and tends to be given the pause around it.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Sequence

import numpy as np

from leanear.runtimes.speech.tokens.vocabulary import TextDecoder, Vocabulary

SPACELESS = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})  # languages that put no space between words
SENTENCE_ENDS = frozenset(".。!！?？…")
OPENING_CATEGORIES = frozenset({"Ps", "Pi"})
OPENING_BEHIND_SPACE = frozenset("\"'-–—")  # which close where no space is before them
LONGEST_USUAL_S = 0.7  # of the words of a window, half of which are usually shorter than their usual length
LONG_WORD = 2  # times the usual length: more than that holds a pause
PAUSE = 4  # times the usual length, from the end of one word to that of the first word after a pause
TRUSTED_TIME_S = 0.5  # by how far a word may lie outside the timestamps around it


@dataclass(frozen=True)
class Word:
    """A word with the space before it and the punctuation around it, its times in the audio, and how sure it is.

    probability: the mean of its tokens', punctuation included.
    """

    text: str
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True)
class Piece:
    """A word's place among tokens: all of them [first, behind), without punctuation around it [begin, end)."""

    text: str
    first: int
    behind: int
    begin: int
    end: int

    @property
    def is_punctuation(self) -> bool:
        """Whether there is nothing else."""
        return self.begin == self.end

    @property
    def opens(self) -> bool:
        """Of punctuation: whether it belongs to the word after it."""
        mark = self.text.strip()[:1]
        if mark in ("¿", "¡") or (mark and unicodedata.category(mark) in OPENING_CATEGORIES):
            return True
        return self.text[:1].isspace() and (not mark or mark in OPENING_BEHIND_SPACE)


@dataclass
class Span:
    """When a word is said, in samples of its window."""

    start: int
    end: int

    @property
    def samples(self) -> int:
        """How long it lasts."""
        return self.end - self.start


def split_words(vocabulary: Vocabulary, tokens: Sequence[int], language: str | None) -> list[Piece]:
    """The words that tokens of text are, in order; their texts together are the text of the tokens.

    A word begins at white space or, in a language without, at each character that is not one more ASCII letter or
    digit. Punctuation alone joins the word that it stands at.
    """
    pieces: list[Piece] = []
    for text, first, behind in _whole_characters(vocabulary, tokens):
        sounds = not all(letter.isspace() or unicodedata.category(letter).startswith("P") for letter in text)
        if pieces and not _begins_word(pieces[-1].text, text, language in SPACELESS):
            last = pieces[-1]
            begin = first if last.is_punctuation else last.begin
            pieces[-1] = Piece(
                last.text + text, last.first, behind, begin if sounds else last.begin, behind if sounds else last.end
            )
        else:
            pieces.append(Piece(text, first, behind, first, behind if sounds else first))
    return _with_punctuation(pieces)


def _whole_characters(vocabulary: Vocabulary, tokens: Sequence[int]) -> list[tuple[str, int, int]]:
    """The fewest tokens [first, behind) that are whole characters together, with their text."""
    decoder, whole = TextDecoder(vocabulary), []
    text, first = "", 0
    for place, token in enumerate(tokens):
        text += decoder.push(token)
        if not decoder.is_within_character:
            whole.append((text, first, place + 1))
            text, first = "", place + 1
    if first < len(tokens):
        whole.append((text + decoder.finish(), first, len(tokens)))
    return whole


def _begins_word(before: str, text: str, spaceless: bool) -> bool:
    if text[:1].isspace():
        return True
    return spaceless and not all(letter.isascii() and letter.isalnum() for letter in (before[-1:], text[:1]) if letter)


def _with_punctuation(pieces: Sequence[Piece]) -> list[Piece]:
    """Each piece of punctuation alone as a part of the word after it, where it opens one, else of the one before."""
    joined: list[Piece] = []
    opening: Piece | None = None
    for piece in pieces:
        if piece.is_punctuation and opening is None and joined and not piece.opens:
            joined[-1] = _side_by_side(joined[-1], piece, joined[-1])
            continue
        whole = piece if opening is None else _side_by_side(opening, piece, piece)
        opening = whole if piece.is_punctuation else None
        if opening is None:
            joined.append(whole)
    if opening is not None:  # nothing comes after it
        joined[-1:] = [_side_by_side(joined[-1], opening, joined[-1])] if joined else [opening]
    return joined


def _side_by_side(left: Piece, right: Piece, timed: Piece) -> Piece:
    return Piece(left.text + right.text, left.first, right.behind, timed.begin, timed.end)


def spans_of(pieces: Sequence[Piece], starts: np.ndarray) -> list[Span]:
    """When each word is said. starts: the sample at which each token begins, and one more: where the last one ends."""
    return [Span(int(starts[piece.begin]), int(starts[max(piece.end, piece.begin + 1)])) for piece in pieces]


def usual_length(spans: Sequence[Span], sample_rate_hz: int) -> int:
    """The median of the words' lengths in samples, or so much as words hardly ever last."""
    lengths = [span.samples for span in spans if span.samples > 0]
    longest = round(LONGEST_USUAL_S * sample_rate_hz)
    return min(longest, int(np.median(lengths))) if lengths else longest


def keep_out_pauses(
    pieces: Sequence[Piece], spans: Sequence[Span], said_until: int, between: tuple[int, int], usual: int, near: int
) -> None:
    """Shorten, in place, words of one segment that were given a pause as well.

    The path that words' times come from has no silence in it: a pause is part of some word beside it, of the first one
    after it as a rule. said_until: where the last word before the segment ends; between: the times that the model
    itself gave the segment, which are trusted where a word is more than `near` outside them; all in samples of the
    window.
    """
    longest = LONG_WORD * usual
    for before, span in zip(pieces, spans[1:]):
        if before.text.rstrip("\"'”’)]")[-1:] in SENTENCE_ENDS and span.samples > longest:
            span.start = span.end - longest
    first, last = spans[0], spans[-1]
    second = spans[1] if len(spans) > 1 else Span(first.start, first.end)
    if first.end - said_until > PAUSE * usual and (first.samples > longest or second.end - first.start > 2 * longest):
        if second.samples > longest and len(spans) > 1:
            first.end = second.start = second.end - longest
        first.start = max(first.start, first.end - longest)
    if between[0] - near > first.start and between[0] < first.end:
        first.start = max(first.start, min(between[0], first.end - usual))
    if between[1] + near < last.end and between[1] > last.start:
        last.end = min(last.end, max(between[1], last.start + usual))


def make_words(
    pieces: Sequence[Piece],
    spans: Sequence[Span],
    probabilities: Sequence[float],
    start: int,
    samples: int,
    sample_rate_hz: int,
) -> tuple[Word, ...]:
    """The words of a segment; start: of the window in the audio; samples: of the window, behind which no word lies."""
    return tuple(
        Word(
            text=piece.text,
            start_s=(start + min(span.start, samples)) / sample_rate_hz,
            end_s=(start + min(max(span.start, span.end), samples)) / sample_rate_hz,
            probability=float(np.mean(probabilities[piece.first : piece.behind])),
        )
        for piece, span in zip(pieces, spans)
    )
