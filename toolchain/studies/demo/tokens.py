"""The demo Whisper's tokens: a byte-level BPE trained on its sentences, in Whisper's own format and order."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import WhisperFeatureExtractor, WhisperTokenizer

from leanear.studies.demo.speech import SAMPLE_RATE_HZ

WINDOW_SECONDS = 6
MEL_BINS = 80
TIMESTAMP_SECONDS = 0.02  # of an encoder position, and so of a timestamp
MAX_TARGET_POSITIONS = 96
MERGES = 500
# Whisper's numbering needs its first languages in its own order; only English is ever heard in training.
LANGUAGES = ("en", "zh", "de")
# English spellings that Whisper's normaliser should see as one; its own list is far longer than these sentences need.
SPELLINGS = {"harbour": "harbor", "theatre": "theater"}


def timestamp(index: int) -> str:
    """The text of a timestamp token, for example `<|1.24|>` for index 62."""
    return f"<|{index * TIMESTAMP_SECONDS:.2f}|>"


def special_tokens() -> tuple[str, ...]:
    """Whisper's special tokens in Whisper's order, from `<|endoftext|>` to the one before the timestamps."""
    languages = tuple(f"<|{language}|>" for language in LANGUAGES)
    tasks = ("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
    return ("<|endoftext|>", "<|startoftranscript|>", *languages, *tasks)


def train_bpe(sentences: Iterable[str], merges: int = MERGES) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level BPE's vocabulary (all 256 bytes first) and its merges, from the sentences with a space in front."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + merges, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((f" {sentence}" for sentence in sentences), trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    return trained["vocab"], [(left, right) for left, right in trained["merges"]]


def make_tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> WhisperTokenizer:
    """A WhisperTokenizer of this BPE with Whisper's special tokens and a timestamp for every encoder position."""
    longest = MAX_TARGET_POSITIONS
    tokenizer = WhisperTokenizer(
        vocab=vocabulary, merges=merges, additional_special_tokens=list(special_tokens()[1:]), model_max_length=longest
    )
    # As in Whisper's own files, timestamps are added tokens, but not special ones.
    positions = round(WINDOW_SECONDS / TIMESTAMP_SECONDS)
    tokenizer.add_tokens([AddedToken(timestamp(index), normalized=False) for index in range(positions + 1)])
    tokenizer.english_spelling_normalizer = SPELLINGS
    return tokenizer


def new_extractor() -> WhisperFeatureExtractor:
    """Whisper's log-mel features over the demo's window."""
    return WhisperFeatureExtractor(feature_size=MEL_BINS, chunk_length=WINDOW_SECONDS, sampling_rate=SAMPLE_RATE_HZ)


def write_processor(folder: Path, tokenizer: WhisperTokenizer) -> None:
    """Writes everything that `WhisperProcessor.from_pretrained(folder)` and a reader of Whisper's own files need."""
    new_extractor().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tokenizer.save_vocabulary(str(folder))
