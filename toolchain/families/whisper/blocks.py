"""Where a Whisper has its attention and feed-forward blocks, and what they cost."""

from typing import Any

import torch
from transformers import WhisperConfig

from leanear.calibration.sites import AttentionKind, AttentionSite, FeedForwardKind, FeedForwardSite
from leanear.data.examples import SpeechInputs
from leanear.families import modeling_slim_whisper
from leanear.families.family import AttentionBlocks
from leanear.families.modeling_slim_whisper import SlimWhisperConfig, SlimWhisperForConditionalGeneration
from leanear.families.whisper.checkpoint import WhisperModel
from leanear.plan import Plan, full_plan
from leanear.runtimes.errors import BadInput

FAMILY = "whisper"


def cross_attention_heads(config: WhisperConfig) -> list[int]:
    """How many heads of cross-attention each layer of a dense or slim model's decoder has."""
    if isinstance(config, SlimWhisperConfig):
        return [len(widths) for widths in config.query_key_widths[config.encoder_layers + 1 :: 2]]
    return [config.decoder_attention_heads] * config.decoder_layers


def attention_sites(model: WhisperModel) -> tuple[AttentionSite, ...]:
    """The model's attention blocks, dense or slim: the encoder's, then per decoder layer self- and cross-attention."""
    named: list[tuple[str, torch.nn.Module, AttentionKind]] = [
        (f"encoder.layers.{index}.self_attn", layer.self_attn, "encoder")
        for index, layer in enumerate(model.model.encoder.layers)
    ]
    for index, layer in enumerate(model.model.decoder.layers):
        named.append((f"decoder.layers.{index}.self_attn", layer.self_attn, "decoder"))
        named.append((f"decoder.layers.{index}.encoder_attn", layer.encoder_attn, "cross"))
    return tuple(_attention_site(name, block, kind) for name, block, kind in named)


def _attention_site(name: str, block: Any, kind: AttentionKind) -> AttentionSite:
    if isinstance(block, modeling_slim_whisper.SlimWhisperAttention):
        query_key_widths, value_output_widths = block.query_key_widths, block.value_output_widths
    else:
        query_key_widths = value_output_widths = (block.head_dim,) * block.num_heads
    return AttentionSite(
        name=name,
        module=block,
        query=block.q_proj,
        key=block.k_proj,
        value=block.v_proj,
        output=block.out_proj,
        query_key_widths=query_key_widths,
        value_output_widths=value_output_widths,
        scaling=block.scaling,
        causal=kind == "decoder",
        kind=kind,
        # A decoder's blocks keep a head: transformers counts the tokens so far by the first layer's keys, and sessions
        # hold keys and values of every layer.
        may_go=kind == "encoder",
    )


def feed_forward_sites(model: WhisperModel) -> tuple[FeedForwardSite, ...]:
    """The model's feed-forward blocks, dense or slim: the encoder's, then the decoder's."""
    kinds: tuple[tuple[FeedForwardKind, Any], ...] = (
        ("encoder", model.model.encoder),
        ("decoder", model.model.decoder),
    )
    return tuple(
        FeedForwardSite(f"{kind}.layers.{index}.feed_forward", layer.fc1, layer.fc2, kind)
        for kind, half in kinds
        for index, layer in enumerate(half.layers)
    )


def dense_plan(model: WhisperModel) -> Plan:
    """The plan that keeps all of a dense model.

    Raises:
        BadInput: the model is slim already: what its channels were in the dense one is not known from it.
    """
    if isinstance(model, SlimWhisperForConditionalGeneration):
        raise BadInput("the model is already slim; prune its dense checkpoint, with a higher sparsity")
    return full_plan(FAMILY, attention_sites(model), feed_forward_sites(model))


def encoder_layers(model: WhisperModel) -> tuple[torch.nn.Module, ...]:
    """All transformer layers, of encoder and decoder, for activation checkpointing and to compare their outputs."""
    return (*model.model.encoder.layers, *model.model.decoder.layers)


def decoder_layers(model: WhisperModel) -> tuple[torch.nn.Module, ...]:
    """Those of the transformer layers whose outputs stand at the positions of a sequence's targets."""
    return tuple(model.model.decoder.layers)


def activation_bytes(model: WhisperModel, inputs: SpeechInputs) -> int:
    """Roughly what one clip's activations take when all layers keep theirs for the backward pass, in bytes."""
    config, width = model.config, model.config.d_model
    encoder = config.encoder_layers * (10 * width + 2 * config.encoder_ffn_dim) + 2 * config.decoder_layers * width
    decoder = config.decoder_layers * (18 * width + 2 * config.decoder_ffn_dim) + 8 * config.vocab_size
    tokens = inputs.tokens.shape[1]
    return int((config.max_source_positions * encoder + tokens * decoder) * inputs.features.element_size())


def attention_blocks(model: WhisperModel) -> AttentionBlocks:
    """The encoder's blocks are ordinary ones; the decoder keeps keys and values."""
    kinds = tuple("ordinary" if site.kind == "encoder" else "cached" for site in attention_sites(model))
    return AttentionBlocks(kinds, model.config.max_source_positions, model.config.d_model)
