"""Whisper's real vocabulary from its ranks, and a random model of Whisper-tiny's size that says something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperProcessor

from leanear.benchmarks.peers.whisper_tiny_size import (
    END,
    LANGUAGE_CODES,
    START,
    TRANSCRIBE,
    byte_alphabet,
    derive_merges,
    tiny_size_tokenizer,
    write_tiny_size_checkpoint,
)
from leanear.families import whisper
from leanear.families.whisper.settings import languages
from tests.benchmarks.peers.half_pruned import ragged_widths

RANKS = Path(__file__).parents[4] / "shared" / "data" / "whisper-multilingual.tiktoken"
needs_ranks = pytest.mark.skipif(not RANKS.is_file(), reason=f"{RANKS} is absent")


def test_merges_of_a_vocabulary_by_hand():
    """ "abcd" is made of "ab" and "cd"; "abc" of "ab" and "c"; "bcd" of "b" and "cd", since no lower rank is "bc"."""
    ranks = {token: rank for rank, token in enumerate((b"a", b"b", b"c", b"d", b"ab", b"cd", b"abcd", b"abc", b"bcd"))}
    assert derive_merges(ranks) == [
        (b"a", b"b"), (b"c", b"d"), (b"ab", b"cd"), (b"ab", b"c"), (b"b", b"cd"),
    ]  # fmt: skip


def test_the_alphabet_is_that_of_byte_level_tokenizers():
    from tokenizers import pre_tokenizers

    letters = byte_alphabet()
    assert sorted(letters) == list(range(256))
    assert sorted(letters.values()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert (letters[ord(" ")], letters[ord("a")], letters[ord("\n")]) == ("Ġ", "a", "Ċ")


@pytest.mark.slow
@needs_ranks
def test_the_real_vocabulary():
    """Ids of Whisper's own output on its test clip; text comes back, whatever its script."""
    tokenizer = tiny_size_tokenizer(RANKS)
    assert len(tokenizer) == 51865
    known = tokenizer.get_vocab()
    assert (known["<|endoftext|>"], known["<|startoftranscript|>"], known["<|en|>"]) == (END, START, START + 1)
    assert (known["<|su|>"], known["<|translate|>"], known["<|transcribe|>"]) == (50357, 50358, TRANSCRIBE)
    assert (known["<|notimestamps|>"], known["<|0.00|>"], known["<|30.00|>"]) == (50363, 50364, 51864)
    assert len(LANGUAGE_CODES) == len(languages(tokenizer)) == 99
    spoken = " And so my fellow Americans ask not what your country can do for you"
    assert whisper.text_tokens(tokenizer, spoken) == [
        400, 370, 452, 7177, 6280, 1029, 406, 437, 428, 1941, 393, 360, 337, 291,
    ]  # fmt: skip
    for text in (" naïve café", " 日本語です", " здравствуйте", " a\n\tb  c", " 😀"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.slow
@needs_ranks
def test_a_checkpoint_of_that_size(tmp_path):
    write_tiny_size_checkpoint(tmp_path, RANKS, seed=0)
    checkpoint = whisper.load_checkpoint(tmp_path)
    assert WhisperProcessor.from_pretrained(tmp_path).tokenizer.get_vocab() == checkpoint.tokenizer.get_vocab()
    assert sum(parameter.numel() for parameter in checkpoint.model.parameters()) == 37_760_640
    noise = (0.1 * np.random.default_rng(0).normal(size=(2, 32000))).astype(np.float32)
    heard = whisper.features(checkpoint.feature_extractor, list(noise))
    with torch.no_grad():
        rows = checkpoint.model.generate(heard, language="en", max_new_tokens=30).tolist()
    assert rows[0] != rows[1]
    assert max(len(set(row)) for row in rows) > 15
    assert min(len(set(row)) for row in rows) > 3


@pytest.mark.parametrize("seed", range(20))
def test_pruned_widths_keep_half(seed):
    widths = ragged_widths(np.random.default_rng(seed), 6)
    assert sum(widths) == 6 * 32
    assert all(8 <= width <= 56 and width % 4 == 0 for width in widths)
