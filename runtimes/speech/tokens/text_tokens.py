"""Tokens of a text, by a byte-level vocabulary alone: what a user writes for the decoder to be shown.

The ids of such a vocabulary are in the order in which its merges were learnt, so that they say which pair of pieces is
merged first, as tiktoken does it; no list of merges has to travel to a device. The division into words is GPT-2's.
"""

from __future__ import annotations

import unicodedata
from typing import Iterator, Mapping

from leanear.runtimes.errors import BadInput
from leanear.runtimes.speech.tokens.vocabulary import Vocabulary

CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def text_tokens(vocabulary: Vocabulary, text: str, what: str) -> tuple[int, ...]:
    """The tokens of `text` as it is written.

    what: the flag or key that it is from, for the error.

    Raises:
        BadInput: a special token is written in it, or the vocabulary lacks one of its bytes.
    """
    for token, written in enumerate(vocabulary.special, start=vocabulary.special_from):
        if written and written in text and not vocabulary.is_text(token):
            raise BadInput(f"{what}: {written} is a special token, not a text")
    ranks = {piece: token for token, piece in reversed(list(enumerate(vocabulary.pieces)))}
    tokens: list[int] = []
    for word in words_of(text):
        try:
            tokens += _merged(word.encode(), ranks)
        except KeyError:
            raise BadInput(f"{what}: the model's vocabulary has no token for a byte of {word.strip()!r}") from None
    return tuple(tokens)


def words_of(text: str) -> Iterator[str]:
    """The pieces that GPT-2's expression finds: runs of letters, of digits and of signs, each with a space before it.

    Of other white space the last sign goes with nothing, unless the text ends in it.
    """
    start = 0
    while start < len(text):
        stop = _word_end(text, start)
        yield text[start:stop]
        start = stop


def _word_end(text: str, start: int) -> int:
    contraction = next((each for each in CONTRACTIONS if text.startswith(each, start)), None)
    if contraction is not None:
        return start + len(contraction)
    begin = start + (text[start] == " ")
    if begin < len(text) and _kind(text[begin]) != "space":
        return _run_end(text, begin)
    stop = _run_end(text, start)
    return stop if stop == len(text) or stop == start + 1 else stop - 1


def _run_end(text: str, start: int) -> int:
    kind, stop = _kind(text[start]), start + 1
    while stop < len(text) and _kind(text[stop]) == kind:
        stop += 1
    return stop


def _kind(letter: str) -> str:
    if letter.isspace() and not "\x1c" <= letter <= "\x1f":  # Unicode's white space, which has no separators of files
        return "space"
    category = unicodedata.category(letter)[0]
    return {"L": "letter", "N": "digit"}.get(category, "sign")


def _merged(word: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """The word's bytes, the pair whose joined piece has the lowest id merged first, the leftmost of equals."""
    pieces = [word[place : place + 1] for place in range(len(word))]
    while len(pieces) > 1:
        pairs = [ranks.get(left + right, len(ranks)) for left, right in zip(pieces, pieces[1:])]
        lowest = min(pairs)
        if lowest == len(ranks):
            break
        place = pairs.index(lowest)
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    return [ranks[piece] for piece in pieces]
