"""Text from byte-level tokens: `vocabulary.json`, and characters whose bytes are spread over several tokens.

The ids of such a vocabulary are in the order in which its merges were learnt, so that they say which pair of pieces is
merged first, as tiktoken does it; no list of merges has to travel to a device. The division into words is GPT-2's.
"""

from __future__ import annotations

import codecs
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Iterator, Mapping

from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_json

VOCABULARY_SCHEMA = "leanear-vocabulary-1"
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


@dataclass(frozen=True)
class Vocabulary:
    """What each token stands for.

    pieces: the bytes of every token below `special_from`, by its id; special: how each of the others is written; words:
    which of those are words all the same, added behind the timestamps.
    """

    pieces: tuple[bytes, ...]
    special: tuple[str, ...]
    words: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.pieces) + len(self.special)

    @property
    def special_from(self) -> int:
        """The first id of the special tokens, timestamps among them."""
        return len(self.pieces)

    def is_text(self, token: int) -> bool:
        """Whether `token` stands for bytes of text."""
        return 0 <= token < len(self.pieces) or token in self.words

    def piece(self, token: int) -> bytes:
        """The bytes of a token of text."""
        return self.pieces[token] if token < len(self.pieces) else self.special[token - len(self.pieces)].encode()

    def text(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`, special ones left out; bytes that are not UTF-8 become U+FFFD."""
        joined = b"".join(self.piece(token) for token in tokens if self.is_text(token))
        return joined.decode("utf-8", errors="replace")

    def written(self, tokens: Iterable[int]) -> str:
        """The text of `tokens` with the special ones as they are written, for example `<|0.00|> Yes.<|endoftext|>`."""
        decoder, parts = TextDecoder(self), []
        for token in tokens:
            if self.is_text(token):
                parts.append(decoder.push(token))
            else:
                parts += [decoder.finish(), self.special[token - len(self.pieces)]]
        return "".join([*parts, decoder.finish()])


class TextDecoder:
    """Text as its tokens come, one at a time: a character appears with the token that completes it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """What `token` completes; nothing for a special token or for the middle of a character."""
        return self._decoder.decode(self._vocabulary.piece(token)) if self._vocabulary.is_text(token) else ""

    @property
    def is_within_character(self) -> bool:
        """Whether the last token ended in the middle of a character."""
        return bool(self._decoder.getstate()[0])

    def finish(self) -> str:
        """U+FFFD where the tokens ended within a character, else nothing; the decoder starts anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def byte_alphabet() -> dict[str, int]:
    """The byte that each of GPT-2's 256 letters stands for: printable Latin-1 is itself, others are from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    letters.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return letters


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary in `path`, a `vocabulary.json`.

    Raises:
        BadInput: the file is missing, or a token in it is not what it should be.
    """
    path = Path(path)
    document = read_json(path, VOCABULARY_SCHEMA, ("tokens", "special_from"))
    tokens, special_from = document["tokens"], document["special_from"]
    if not isinstance(tokens, list) or not tokens:
        raise BadInput(f"{path}: tokens is not a list of texts")
    if isinstance(special_from, bool) or not isinstance(special_from, int) or not 0 < special_from <= len(tokens):
        raise BadInput(f"{path}: special_from is {special_from!r}, not a number from 1 to {len(tokens)}")
    for token, written in enumerate(tokens):
        if not isinstance(written, str):
            raise BadInput(f"{path}: tokens[{token}] is {written!r}, not a text")
    words = document.get("words", [])
    allowed = range(special_from, len(tokens))
    if not isinstance(words, list) or not all(type(token) is int and token in allowed for token in words):
        raise BadInput(f"{path}: words is not a list of tokens from {special_from} to {len(tokens) - 1}")
    return make_vocabulary(tokens, special_from, str(path), words)


def make_vocabulary(tokens: list[str], special_from: int, where: str, words: Iterable[int] = ()) -> Vocabulary:
    """A vocabulary of written tokens: in GPT-2's byte alphabet below `special_from`, as they are from there on.

    words: which of the latter are text.

    Raises:
        BadInput: a token has a letter that is not of the alphabet; the text begins with `where`.
    """
    letters = byte_alphabet()
    pieces = []
    for token, written in enumerate(tokens[:special_from]):
        try:
            pieces.append(bytes([letters[letter] for letter in written]))
        except KeyError as error:
            raise BadInput(
                f"{where}: tokens[{token}] is {written!r}; {error.args[0]!r} is not of GPT-2's byte alphabet"
            ) from None
    return Vocabulary(tuple(pieces), tuple(tokens[special_from:]), frozenset(words))


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
