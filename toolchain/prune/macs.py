"""Multiply-accumulates (MACs) of one inference of a model, and what one head has of them, by family.

Of an AST one inference is one clip, as the graph that is exported in some form computes it. Of a Whisper it is one
whole window, with the keys and values of cross-attention computed once, and TOKENS_PER_SECOND tokens of speech in it,
decoded one by one with a cache after the prompt: 100 tokens in a window of 30 s. The audio front end is not counted.

Dimension letters: T encoder tokens, L tokens that the decoder is fed, D model width, K, V a head's widths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from leanear.calibration.sites import AttentionKind
from leanear.export.ast.graph import READ_TOKENS, WHOLE_LAST_ATTENTION, token_count
from leanear.export.macs import count_macs

HeadCost = Callable[[int, int], float]
TOKENS_PER_SECOND = 100 / 30
POSITIONS_PER_SECOND = 50  # of a Whisper encoder, in every Whisper
PROMPT_TOKENS, ENGLISH_PROMPT_TOKENS = 4, 2


def model_macs(family: ModuleType, model: nn.Module, form: str = "portable") -> int:
    """The MACs of one inference of the model, dense or slim, exported in `form`."""
    return speech_macs(family, model) if family.FAMILY == "whisper" else count_macs(model, form=form).total


def head_macs(family: ModuleType, model: nn.Module, form: str = "portable") -> tuple[HeadCost, ...]:
    """Block by block, the MACs of one head of widths (K, V); none of one that is gone."""
    return _speech_head_macs(family, model) if family.FAMILY == "whisper" else _ast_head_macs(model, form)


def feed_forward_macs(family: ModuleType, model: Any) -> tuple[float, ...]:
    """Block by block, the MACs of one hidden channel of the feed-forward blocks."""
    if family.FAMILY != "whisper":
        config, layers = model.config, model.config.num_hidden_layers
        tokens = (*[token_count(config)] * (layers - 1), READ_TOKENS)
        return tuple(2.0 * config.hidden_size * count for count in tokens)
    length = speech_length(model)
    tokens_of = {"encoder": length.encoder_tokens, "decoder": length.decoder_tokens}
    return tuple(2.0 * model.config.d_model * tokens_of[site.kind] for site in family.feed_forward_sites(model))


def _ast_head_macs(model: Any, form: str) -> tuple[HeadCost, ...]:
    tokens, width = token_count(model.config), model.config.hidden_size

    def ordinary(query_key: int, value_output: int) -> float:
        return float((2 * tokens * width + tokens * tokens) * (query_key + value_output))

    def last(query_key: int, value_output: int) -> float:
        if query_key == 0:
            return 0.0
        return float(READ_TOKENS * 2 * width * (query_key + value_output) + READ_TOKENS * tokens * 2 * width)

    layers = model.config.num_hidden_layers
    return (ordinary,) * layers if form in WHOLE_LAST_ATTENTION else (*[ordinary] * (layers - 1), last)


@dataclass(frozen=True)
class SpeechLength:
    """How long one inference of a Whisper is: T, L, and for how many of the L the vocabulary's logits are computed."""

    encoder_tokens: int
    decoder_tokens: int
    answers: int


def speech_length(model: Any) -> SpeechLength:
    """A whole window of the model, with as many tokens as speech has that is not slow."""
    positions, most = model.config.max_source_positions, model.config.max_target_positions
    prompt = PROMPT_TOKENS if model.generation_config.is_multilingual else ENGLISH_PROMPT_TOKENS
    answers = min(round(TOKENS_PER_SECOND * positions / POSITIONS_PER_SECOND), most - prompt)
    return SpeechLength(positions, prompt + answers - 1, answers)


def speech_macs(family: ModuleType, model: Any) -> int:
    """The MACs of one window and its tokens; see above."""
    config, length = model.config, speech_length(model)
    encoder, width = length.encoder_tokens, config.d_model
    convolutions = 3 * width * encoder * (2 * config.num_mel_bins + width)
    attention = sum(
        cost(query_key, value_output)
        for site, cost in zip(family.attention_sites(model), head_macs(family, model), strict=True)
        for query_key, value_output in zip(site.query_key_widths, site.value_output_widths, strict=True)
    )
    blocks = zip(family.feed_forward_sites(model), feed_forward_macs(family, model), strict=True)
    mlps = int(sum(site.width * channel for site, channel in blocks))
    return convolutions + int(attention) + mlps + length.answers * width * config.vocab_size


def _speech_head_macs(family: ModuleType, model: Any) -> tuple[HeadCost, ...]:
    length, width = speech_length(model), model.config.d_model
    encoder, decoder = length.encoder_tokens, length.decoder_tokens
    # by kind: tokens of queries (and outputs), of keys and values, and pairs of both, a decoder's with the ones before
    counts: dict[AttentionKind, tuple[int, int, int]] = {
        "encoder": (encoder, encoder, encoder * encoder),
        "decoder": (decoder, decoder, decoder * (decoder + 1) // 2),
        "cross": (decoder, encoder, decoder * encoder),
    }

    def cost(kind: AttentionKind) -> HeadCost:
        asking, answering, pairs = counts[kind]
        return lambda query_key, value_output: float(
            ((asking + answering) * width + pairs) * (query_key + value_output)
        )

    return tuple(cost(site.kind) for site in family.attention_sites(model))
