"""Small Whispers with random weights: as transformers has them, with ragged heads, and with heads or blocks removed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leanear.export.artifact import export_artifact
from leanear.export.options import ExportOptions
from leanear.export.whisper_artifact import Speech
from leanear.families import whisper
from leanear.families.checkpoint_files import slim_settings
from leanear.families.modeling_slim_whisper import SlimWhisperConfig, SlimWhisperForConditionalGeneration
from leanear.runtimes.artifact import Artifact, read_artifact
from tests.whisper_models import make_extractor, make_tokenizer, make_whisper

KINDS = ("stock", "ragged", "fewer heads", "narrow feed-forward")
WINDOW_SAMPLES = 32_000
WIDTHS = {
    "ragged": (
        [[3, 16], [8, 8], [5, 9], [16, 2], [8, 8], [1, 7]],
        [[7, 10], [8, 8], [6, 3], [4, 12], [1, 8], [16, 16]],
    ),
    "fewer heads": ([[16], [16, 16], [12], [9], [16, 5], [8]], [[16], [12, 16], [8], [10], [16, 7], [8]]),
    "narrow feed-forward": (
        [[], [16, 16], [16, 16], [9, 16], [16, 5], [16, 16]],
        [[], [12, 16], [16, 16], [10, 16], [16, 7], [16, 16]],
    ),
}
FEED_FORWARD_WIDTHS = {"narrow feed-forward": [24, 0, 17, 0]}


def small_whisper(kind: str) -> torch.nn.Module:
    """A Whisper of one of KINDS, every one of its parameters far from zero."""
    stock = make_whisper()
    if kind == "stock":
        return stock
    query_key_widths, value_output_widths = WIDTHS[kind]
    config = SlimWhisperConfig(
        query_key_widths=query_key_widths,
        value_output_widths=value_output_widths,
        attention_scaling=0.3,
        feed_forward_widths=FEED_FORWARD_WIDTHS.get(kind, ()),
        **slim_settings(stock.config),
    )
    slim = SlimWhisperForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in slim.named_parameters():
            kept = stock.get_parameter(name)
            if kept.shape == parameter.shape:
                parameter.copy_(kept)
            else:
                parameter.copy_(0.25 * torch.randn(parameter.shape, generator=generator))
    slim.generation_config = stock.generation_config
    return slim


def small_speech(model: torch.nn.Module) -> Speech:
    """What decoding has to know of a small Whisper."""
    checkpoint = whisper.WhisperCheckpoint(Path(), model, make_extractor(), make_tokenizer())  # type: ignore[arg-type]
    decoding = whisper.decoding_settings(checkpoint)
    return Speech(whisper.vocabulary_tokens(checkpoint), decoding.end, decoding)


def small_artifact(
    folder: Path,
    kind: str = "stock",
    form: str = "portable",
    clips: Sequence[np.ndarray] | None = None,
    model: torch.nn.Module | None = None,
    **settings: Any,
) -> Artifact:
    """The artifact of a small Whisper, not proved; settings: of `ExportOptions`."""
    model = small_whisper(kind) if model is None else model
    export_artifact(
        model,
        make_extractor(),
        [noise(20_000), noise(40_000)] if clips is None else clips,
        folder,
        ExportOptions(form=form, source={"source": "small"}, made_from={}, **settings),
        small_speech(model),
    )
    return read_artifact(folder)


def noise(samples: int) -> np.ndarray:
    """Float32 noise, another one for every length."""
    return (0.1 * np.random.default_rng(samples).standard_normal(samples)).astype(np.float32)


def torch_logits(model: torch.nn.Module, waveform: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Logits (rows, tokens, vocabulary) of the model in torch, without a cache."""
    features = make_extractor()(waveform, sampling_rate=16000, return_tensors="pt")["input_features"]
    with torch.inference_mode():
        return model(
            input_features=features.expand(len(tokens), -1, -1), decoder_input_ids=torch.tensor(tokens), use_cache=False
        ).logits.numpy()
