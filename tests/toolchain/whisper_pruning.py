"""What the tests of pruning a Whisper share: a tiny model, clips for it, and audio folders."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import WhisperTokenizer

from leanear.data.examples import LabelledInputs, SpeechInputs
from leanear.families import whisper
from leanear.families.whisper import WhisperCheckpoint, calibration_examples
from leanear.families.whisper.settings import END
from tests.whisper_models import make_extractor, make_tokenizer, make_whisper

WORDS = ["the", "sun", "and", "the", "wind", "saw", "an", "owl", "on", "the", "other", "hand", "in", "water"]


def sentences(count: int, seed: int = 0) -> tuple[str, ...]:
    """Of one to six words."""
    generator = np.random.default_rng(seed)
    return tuple(" ".join(generator.choice(WORDS, generator.integers(1, 7))) for _ in range(count))


def checkpoint(**settings) -> WhisperCheckpoint:
    """A tiny random Whisper that is nowhere on disk."""
    return WhisperCheckpoint(Path("tiny"), make_whisper(**settings), make_extractor(), make_tokenizer())


def clips(count: int, seed: int = 0) -> LabelledInputs:
    """Noise for features, with sentences of unlike lengths."""
    texts = sentences(count, seed)
    features = torch.randn(count, 80, 200, generator=torch.Generator().manual_seed(seed))
    tokens, targets = fed_and_said(make_tokenizer(), texts, "en")
    return LabelledInputs(SpeechInputs(features, tokens), targets, texts)


def fed_and_said(
    tokenizer: WhisperTokenizer, texts: Sequence[str], language: str | None = None
) -> tuple[torch.Tensor, ...]:
    """Texts as the decoder is fed them, and as it is to say them."""
    prompt = whisper.prompt_tokens(tokenizer, language)
    tokens = [whisper.text_tokens(tokenizer, text) for text in texts]
    return calibration_examples.fed_and_said([prompt] * len(texts), tokens, tokenizer.get_vocab()[END])


def write_audio(folder: Path, count: int, seed: int = 0) -> Path:
    """Clips of noise with sentences in metadata.csv; the folder."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream)
        lines.writerow(("file_name", "text"))
        for number, text in enumerate(sentences(count, seed)):
            samples = 0.3 * generator.standard_normal(int(16000 * generator.uniform(0.3, 1.9)))
            soundfile.write(folder / f"{number}.wav", samples.astype(np.float32), 16000)
            lines.writerow((f"{number}.wav", text))
    return folder


def answers(model, given: LabelledInputs) -> torch.Tensor:
    """Logits at the positions that have a target."""
    with torch.no_grad():
        return whisper.logits(model, given.inputs)[given.targets >= 0]


def divergence(dense, slim, given: LabelledInputs) -> float:
    """Mean KL(dense || slim) per target token, nats, by its definition."""
    p, q = (answers(model, given).double().softmax(-1) for model in (dense, slim))
    return float((p * (p.log() - q.log())).sum(dim=-1).mean())
