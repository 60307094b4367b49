"""What a demo Whisper says of clips, and how many of its words are wrong."""

from __future__ import annotations

from dataclasses import dataclass

import jiwer
import numpy as np
import torch
from transformers import WhisperForConditionalGeneration, WhisperTokenizer
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from leanear.studies.demo.tokens import SPELLINGS


@dataclass(frozen=True)
class ErrorCounts:
    """Wrong words and words, clip by clip."""

    errors: np.ndarray  # int64 (N,), substituted, left out or put in
    words: np.ndarray  # int64 (N,), of the reference

    @property
    def rate(self) -> float:
        """The word error rate over all clips."""
        return float(self.errors.sum() / self.words.sum())

    def interval(self, draws: int = 2_000) -> tuple[float, float]:
        """The rate's 95 % interval: clips drawn with replacement (percentile bootstrap, fixed seed)."""
        rng = np.random.default_rng(0)
        rows = rng.integers(len(self.words), size=(draws, len(self.words)))
        rates = self.errors[rows].sum(1) / self.words[rows].sum(1)
        low, high = np.quantile(rates, [0.025, 0.975])
        return float(low), float(high)


def transcribe(
    model: WhisperForConditionalGeneration, tokenizer: WhisperTokenizer, features: torch.Tensor
) -> list[str]:
    """Greedy transcripts by transformers' own `generate`, no timestamps; features float32 (N, mel bins, frames)."""
    texts: list[str] = []
    for part in features.split(64):
        ids = model.generate(part, language="en", task="transcribe", return_timestamps=False)
        texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in texts]


def error_counts(references: list[str], transcripts: list[str]) -> ErrorCounts:
    """The errors against the references, both normalised as Whisper's authors do."""
    normalise = EnglishTextNormalizer(SPELLINGS)
    errors, words = [], []
    for reference, transcript in zip(references, transcripts, strict=True):
        found = jiwer.process_words(normalise(reference), normalise(transcript))
        errors.append(found.substitutions + found.deletions + found.insertions)
        words.append(found.substitutions + found.deletions + found.hits)
    return ErrorCounts(np.array(errors), np.array(words))
