"""Text from byte-level tokens, against transformers' own tokenizer and against Python's own UTF-8."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from transformers.convert_slow_tokenizer import bytes_to_unicode

from leanear.runtimes.errors import BadInput
from leanear.runtimes.speech.tokens.vocabulary import (
    TextDecoder,
    Vocabulary,
    byte_alphabet,
    make_vocabulary,
    read_vocabulary,
)
from tests.whisper_models import make_tokenizer

REAL = Path(__file__).parents[4] / "shared" / "data" / "whisper-multilingual.tiktoken"
SENTENCES = (
    "Grüße aus Köln",
    "今日はいい天気ですね",
    "naïve café",
    "🎵 la la 🎶",
    "один два три",
    "x = {a: [1, 2]}",
    " two  spaces",
)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def vocabulary(tokenizer) -> Vocabulary:
    known = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return make_vocabulary([text for text, _ in known], tokenizer.get_vocab()["<|endoftext|>"], "tiny")


def test_the_byte_alphabet_is_gpt2s():
    assert byte_alphabet() == {letter: byte for byte, letter in bytes_to_unicode().items()}


def test_text_is_the_tokenizers(tokenizer, vocabulary):
    for sentence in SENTENCES:
        tokens = tokenizer(sentence, add_special_tokens=False)["input_ids"]
        assert vocabulary.text(tokens) == sentence


def test_any_tokens_read_as_the_tokenizer_reads_them(tokenizer, vocabulary):
    # Without timestamps: transformers cuts a character in two where one stands within it, openai and we do not.
    generator, timestamps_from = np.random.default_rng(0), tokenizer.get_vocab()["<|0.00|>"]
    for _ in range(300):
        tokens = generator.integers(timestamps_from, size=generator.integers(1, 20)).tolist()
        assert vocabulary.text(tokens) == tokenizer.decode(tokens, skip_special_tokens=True)


def test_specials_are_written_only_where_asked(vocabulary, tokenizer):
    known = tokenizer.get_vocab()
    tokens = [known["<|startoftranscript|>"], known["<|0.00|>"], known["h"], known["i"], known["<|endoftext|>"]]
    assert vocabulary.text(tokens) == "hi"
    assert vocabulary.written(tokens) == "<|startoftranscript|><|0.00|>hi<|endoftext|>"


def test_a_character_comes_with_the_token_that_completes_it():
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    vocabulary = make_vocabulary([letters[byte] for byte in range(256)] + ["<|endoftext|>"], 256, "bytes")
    decoder = TextDecoder(vocabulary)
    pieces = [decoder.push(byte) for byte in "aé今🎵".encode()]
    assert pieces == ["a", "", "é", "", "", "今", "", "", "", "🎵"]
    assert decoder.finish() == ""


def test_a_cut_character_is_a_replacement_character_and_the_decoder_starts_anew():
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    vocabulary = make_vocabulary([letters[byte] for byte in range(256)] + ["<|endoftext|>"], 256, "bytes")
    decoder = TextDecoder(vocabulary)
    assert decoder.push("今".encode()[0]) == ""
    assert decoder.push(256) == ""  # a special token is no text and does not end the character
    assert decoder.finish() == "\N{REPLACEMENT CHARACTER}"
    assert decoder.push(ord("b")) == "b"


def test_pushed_pieces_make_the_whole_text(vocabulary):
    generator = np.random.default_rng(1)
    for _ in range(200):
        tokens = generator.integers(len(vocabulary), size=15).tolist()
        decoder = TextDecoder(vocabulary)
        assert "".join([*map(decoder.push, tokens), decoder.finish()]) == vocabulary.text(tokens)


def test_the_real_vocabulary_spells_what_it_should():
    if not REAL.is_file():
        pytest.skip(f"{REAL} is not here")
    ranks = dict(line.split() for line in REAL.read_bytes().splitlines())
    pieces = sorted((int(rank), base64.b64decode(token)) for token, rank in ranks.items())
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    tokens = ["".join(letters[byte] for byte in piece) for _, piece in pieces] + ["<|endoftext|>"]
    vocabulary = make_vocabulary(tokens, len(pieces), "real")
    assert len(vocabulary) == 50_258
    assert [vocabulary.pieces[rank] for rank, _ in pieces] == [piece for _, piece in pieces]
    assert vocabulary.text([220, 50_257]) == " "  # 220 is the lone space that Whisper does not begin with
    by_bytes = {piece: token for token, piece in enumerate(vocabulary.pieces)}
    dog = "\N{DOG FACE}".encode()
    assert dog not in by_bytes
    tokens = [by_bytes[b" " + dog[:3]], by_bytes[dog[3:]]]
    decoder = TextDecoder(vocabulary)
    assert [decoder.push(token) for token in tokens] == [" ", "\N{DOG FACE}"]


def write(path: Path, **changes) -> Path:
    document = {"schema": "leanear-vocabulary-1", "tokens": ["a", "Ġb", "<|endoftext|>"], "special_from": 2, **changes}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}), encoding="utf-8")
    return path


def test_a_vocabulary_file_is_read(tmp_path):
    vocabulary = read_vocabulary(write(tmp_path / "vocabulary.json"))
    assert (vocabulary.pieces, vocabulary.special) == ((b"a", b" b"), ("<|endoftext|>",))
    assert (len(vocabulary), vocabulary.special_from) == (3, 2)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"words": [0]}, "words is not a list of tokens from 2 to 2"),
        ({"words": 2}, "words is not a list of tokens from 2 to 2"),
        ({"schema": "other"}, "expected schema 'leanear-vocabulary-1', found 'other'"),
        ({"tokens": None}, "missing key 'tokens'"),
        ({"tokens": "abc"}, "tokens is not a list of texts"),
        ({"tokens": ["a", 7, "<|endoftext|>"]}, "tokens[1] is 7, not a text"),
        ({"tokens": ["a", "b c", "<|endoftext|>"]}, "tokens[1] is 'b c'; ' ' is not of GPT-2's byte alphabet"),
        ({"special_from": 4}, "special_from is 4, not a number from 1 to 3"),
        ({"special_from": True}, "special_from is True"),
    ],
)
def test_a_bad_vocabulary_is_one_line(tmp_path, changes, complaint):
    path = write(tmp_path / "vocabulary.json", **changes)
    with pytest.raises(BadInput) as error:
        read_vocabulary(path)
    assert str(error.value).startswith(f"{path}: ")
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
