"""Words out of tokens, with the punctuation around them, and without the pauses beside them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from leanear.runtimes.speech.tokens.vocabulary import Vocabulary
from leanear.runtimes.speech.words import Span, keep_out_pauses, make_words, spans_of, split_words, usual_length

RATE_HZ = 1000


def words_of(pieces: list[bytes], language: str | None = None) -> list[str]:
    """The words of tokens that are these bytes; all text has to be there."""
    vocabulary = Vocabulary(tuple(pieces), ())
    found = split_words(vocabulary, range(len(pieces)), language)
    assert "".join(piece.text for piece in found) == vocabulary.text(range(len(pieces)))
    assert [piece.first for piece in found] == [0, *(piece.behind for piece in found[:-1])]
    assert found[-1].behind == len(pieces)
    return [piece.text for piece in found]


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([b" And", b" so", b"," , b" my"], [" And", " so,", " my"]),
        ([b" don", b"'t", b" st", b"op", b"."], [" don't", " stop."]),
        ([b" \"", b"Yes", b",\"", b" he", b" said"], [" \"Yes,\"", " he", " said"]),
        ([b" (", b" one", b")", b" two"], [" ( one)", " two"]),
        ([b" well", b"-", b"known"], [" well-known"]),
        ([b" 3", b".", b"5", b" %"], [" 3.5 %"]),
        ([b" one", b" -", b" two"], [" one", " - two"]),
        ([b" ..."], [" ..."]),
        ([b"...", b" yes"], ["... yes"]),
        ([b" yes", b" ("], [" yes ("]),
        ([b" \xc2\xbf", b"Qu", b"\xc3\xa9", b"?"], [" ¿Qué?"]),
        ([b" na", b"\xc3", b"\xaf", b"ve"], [" naïve"]),
        ([b" bad\xff", b" end\xc3"], [" bad\ufffd", " end\ufffd"]),
    ],
)  # fmt: skip
def test_words_begin_at_spaces(pieces, words):
    assert words_of(pieces) == words


def test_without_spaces_every_character_is_a_word_and_punctuation_joins_it():
    pieces = ["你", "好", "，", "「", "世", "」", "i", "Phone", "15", "。"]
    assert words_of([piece.encode() for piece in pieces], "zh") == ["你", "好，", "「世」", "iPhone15。"]
    assert words_of([piece.encode() for piece in pieces], "en") == ["你好，「世」iPhone15。"]


def test_a_character_of_several_tokens_is_not_cut():
    pieces = [bytes([byte]) for byte in "你好".encode()]
    assert words_of(pieces, "zh") == ["你", "好"]


def test_a_words_time_is_that_of_its_letters():
    pieces = [b" \"", b"Yes", b",\"", b" he", b"."]  # fmt: skip
    found = split_words(Vocabulary(tuple(pieces), ()), range(5), None)
    spans = spans_of(found, np.array([0, 100, 200, 500, 600, 900]))
    assert spans == [Span(100, 200), Span(500, 600)]
    alone = split_words(Vocabulary((b"...",), ()), range(1), None)
    assert spans_of(alone, np.array([0, 70])) == [Span(0, 70)]


def plain(texts: list[str]):
    return split_words(Vocabulary(tuple(text.encode() for text in texts), ()), range(len(texts)), None)


def trimmed(texts: list[str], spans: list[tuple[int, int]], said_until: int = 0, between=(0, 10_000), usual: int = 200):
    made = [Span(*span) for span in spans]
    keep_out_pauses(plain(texts), made, said_until, between, usual, 500)
    return [(span.start, span.end) for span in made]


def test_a_long_first_word_after_a_pause_begins_late():
    assert trimmed([" And", " so"], [(0, 2000), (2000, 2200)]) == [(1600, 2000), (2000, 2200)]
    assert trimmed([" And", " so"], [(0, 380), (380, 580)]) == [(0, 380), (380, 580)]


def test_a_pause_within_the_second_word_is_taken_out_of_both():
    assert trimmed([" A", " dog"], [(0, 20), (20, 2000)], said_until=-5000) == [(1200, 1600), (1600, 2000)]


def test_a_word_after_a_sentence_does_not_hold_the_pause():
    found = trimmed([" Yes.", " No"], [(0, 200), (200, 1500)], between=(0, 1500))
    assert found == [(0, 200), (1100, 1500)]
    assert trimmed([" Yes", " no"], [(0, 200), (200, 1500)]) == [(0, 200), (200, 1500)]


def test_the_models_own_times_hold_a_segments_ends():
    spans = [(0, 1700), (1700, 1900), (1900, 3900)]
    found = trimmed([" A", " b", " c"], spans, between=(1400, 2200), usual=600)
    assert found == [(1100, 1700), (1700, 1900), (1900, 2500)]


def test_words_never_turn_around():
    generator = np.random.default_rng(0)
    for _ in range(300):
        edges = np.sort(generator.integers(0, 5000, generator.integers(2, 8)))
        spans = [Span(a, b) for a, b in pairwise(edges.tolist())]
        texts = [" a." if generator.random() < 0.3 else " b" for _ in spans]
        between = tuple(sorted(generator.integers(0, 5000, 2).tolist()))
        usual = usual_length(spans, RATE_HZ)
        keep_out_pauses(plain(texts), spans, -int(generator.integers(0, 3000)), between, usual, 500)
        flat = [edge for span in spans for edge in (span.start, span.end)]
        assert flat == sorted(flat)
        assert flat[0] >= edges[0]
        assert flat[-1] <= edges[-1]


def test_the_usual_length_is_the_median_or_what_words_hardly_last():
    assert usual_length([Span(0, 100), Span(100, 100), Span(100, 400)], RATE_HZ) == 200
    assert usual_length([Span(0, 5000)], RATE_HZ) == usual_length([], RATE_HZ) == 700


def test_words_lie_in_their_window_and_have_the_mean_of_their_probabilities():
    pieces = plain([" a", " b"])
    made = make_words(pieces, [Span(0, 500), Span(500, 1500)], [0.5, 0.25], 2000, 1000, RATE_HZ)
    assert [(word.start_s, word.end_s, word.probability) for word in made] == [(2.0, 2.5, 0.5), (2.5, 3.0, 0.25)]
