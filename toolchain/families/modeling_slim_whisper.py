"""A Whisper whose attention heads and feed-forward blocks have their own widths.

This file travels inside every slim checkpoint folder and needs torch and transformers, nothing else:

    from transformers import AutoModelForSpeechSeq2Seq
    model = AutoModelForSpeechSeq2Seq.from_pretrained(folder, trust_remote_code=True)

Everything but those is transformers' own Whisper, `generate` included. In the key-value cache, every attention
block has a shape of its own: keys (B, H, T, widest K of the block) and values (B, H, T, widest V of the block).

Dimension letters: B batch, T tokens, D model width, H heads, K per-head query/key width, V per-head value/output width.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.models.whisper.modeling_whisper import WhisperAttention


class SlimWhisperConfig(WhisperConfig):
    """The settings of WhisperConfig and, per attention block, the widths of every kept head.

    query_key_widths, value_output_widths: one list per block, one width per kept head. The blocks are those of the
    encoder from the first layer to the last, then per decoder layer its self-attention and its cross-attention. A block
    of the encoder may have none: only its output bias is left.
    feed_forward_widths: one width per layer, of the encoder and then of the decoder: hidden channels of its
    feed-forward block, 0 where only its bias is left; none: encoder_ffn_dim and decoder_ffn_dim.
    attention_scaling: what query-key products are multiplied by. It belongs to the trained model (1/sqrt of the dense
    head width) and is never derived from a width of this model.
    """

    model_type = "slim-whisper"

    def __init__(
        self,
        query_key_widths: Sequence[Sequence[int]] = (),
        value_output_widths: Sequence[Sequence[int]] = (),
        attention_scaling: float = 0.125,
        feed_forward_widths: Sequence[int] = (),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.query_key_widths = [list(widths) for widths in query_key_widths]
        self.value_output_widths = [list(widths) for widths in value_output_widths]
        self.attention_scaling = attention_scaling
        self.feed_forward_widths = list(feed_forward_widths)
        # The class says what config.json says, the object what transformers looks for: its `generate` prepends no start
        # token to a prompt, and its speech pipeline knows timestamps, only for a "whisper".
        self.model_type = WhisperConfig.model_type


class SlimWhisperAttention(WhisperAttention):
    """Multi-head attention in which head h has query/key width K_h and value/output width V_h.

    The projections hold the heads one after the other: q_proj and k_proj (sum K, D), v_proj (sum V, D),
    out_proj (D, sum V). It derives from transformers' class only to be found as an attention block, for example when
    attention weights are asked for; it shares no code with it.
    """

    def __init__(self, config: SlimWhisperConfig, block: int, layer: int | None, *, causal: bool = False):
        nn.Module.__init__(self)
        self.config = config
        self.layer_idx = layer
        self.is_causal = causal
        self.query_key_widths = tuple(config.query_key_widths[block])
        self.value_output_widths = tuple(config.value_output_widths[block])
        self.scaling = config.attention_scaling
        self.dropout = config.attention_dropout
        self.q_proj = _linear(config.d_model, sum(self.query_key_widths))
        self.k_proj = _linear(config.d_model, sum(self.query_key_widths), bias=False)
        self.v_proj = _linear(config.d_model, sum(self.value_output_widths))
        self.out_proj = _linear(sum(self.value_output_widths), config.d_model)

    def forward(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs,  # of other kinds of attention, and the cache positions of transformers 4
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not self.query_key_widths:
            return self.out_proj.bias.expand_as(hidden_states), None
        # the product with the scale comes first, as in Whisper's own code: rounding depends on the order
        query = _split_heads(self.q_proj(hidden_states) * self.scaling, self.query_key_widths)  # (B, H, T, K)
        key, value = self._keys_and_values(hidden_states, key_value_states, past_key_values, kwargs)
        dropout = self.dropout if self.training else 0.0
        if self.config._attn_implementation == "eager":
            scores = query @ key.transpose(2, 3)
            if attention_mask is not None:
                scores = scores + attention_mask[..., : key.shape[2]]
            weights = scores.softmax(dim=-1)
            context = functional.dropout(weights, p=dropout) @ value
        else:
            weights, width = None, max(query.shape[-1], value.shape[-1])
            context = functional.scaled_dot_product_attention(
                _widened(query, width),
                _widened(key, width),
                _widened(value, width),
                attn_mask=attention_mask,
                dropout_p=dropout,
                is_causal=self.is_causal and attention_mask is None and query.shape[2] > 1,
                scale=1.0,
            )
        return self.out_proj(_join_heads(context, self.value_output_widths)), weights

    def _keys_and_values(
        self, hidden_states: torch.Tensor, encoder_states: torch.Tensor | None, cache: Cache | None, settings: dict
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys (B, H, T, widest K) and values (B, H, T, widest V), from the cache as far as they are in it."""
        crossing = encoder_states is not None
        if isinstance(cache, EncoderDecoderCache):
            known = crossing and cache.is_updated.get(self.layer_idx)
            if crossing:
                cache.is_updated[self.layer_idx] = True
            cache = cache.cross_attention_cache if crossing else cache.self_attention_cache
            if known:
                return cache.layers[self.layer_idx].keys, cache.layers[self.layer_idx].values
        states = encoder_states if encoder_states is not None else hidden_states
        key = _split_heads(self.k_proj(states), self.query_key_widths)
        value = _split_heads(self.v_proj(states), self.value_output_widths)
        if cache is None:
            return key, value
        if not crossing and settings.get("cache_position") is not None:
            return cache.update(key, value, self.layer_idx, {"cache_position": settings["cache_position"]})
        return cache.update(key, value, self.layer_idx)


def _split_heads(states: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
    """(B, T, sum of widths) as (B, H, T, widest); narrower heads are filled with zeros, which changes no product."""
    widest = max(widths)
    if all(width == widest for width in widths):
        return states.view(*states.shape[:2], len(widths), widest).transpose(1, 2).contiguous()
    return torch.stack([_widened(head, widest) for head in states.split(widths, dim=-1)], dim=1)


def _widened(states: torch.Tensor, width: int) -> torch.Tensor:
    """The same with zeros behind the last dimension up to `width`: one kernel then serves all of an attention block."""
    return states if states.shape[-1] == width else functional.pad(states, (0, width - states.shape[-1]))


def _join_heads(states: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
    """(B, H, T, padded) as (B, T, sum of widths), without what was filled in."""
    if all(width == states.shape[-1] for width in widths):
        return states.transpose(1, 2).reshape(states.shape[0], states.shape[2], -1)
    return torch.cat([states[:, head, :, :width] for head, width in enumerate(widths)], dim=-1)


class SlimWhisperForConditionalGeneration(WhisperForConditionalGeneration):
    """Whisper with a language modelling head, every attention block of which is a SlimWhisperAttention."""

    config_class = SlimWhisperConfig
    _supports_flash_attn = False
    _supports_flash_attn_2 = False
    _supports_flex_attn = False

    def __init__(self, config: SlimWhisperConfig):
        super().__init__(config)
        encoder_layers, decoder_layers = self.model.encoder.layers, self.model.decoder.layers
        blocks = len(encoder_layers) + 2 * len(decoder_layers)
        if not len(config.query_key_widths) == len(config.value_output_widths) == blocks:
            raise ValueError(f"query_key_widths and value_output_widths must have one list for each of {blocks} blocks")
        for block, layer in enumerate(encoder_layers):
            layer.self_attn = SlimWhisperAttention(config, block, None)
        for number, layer in enumerate(decoder_layers):
            block = len(encoder_layers) + 2 * number
            layer.self_attn = SlimWhisperAttention(config, block, number, causal=True)
            layer.encoder_attn = SlimWhisperAttention(config, block + 1, number)
        if config.feed_forward_widths:
            for layer, width in zip((*encoder_layers, *decoder_layers), config.feed_forward_widths, strict=True):
                layer.fc1, layer.fc2 = _linear(config.d_model, width), _linear(width, config.d_model)


def _linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer; of one that has no inputs or outputs torch says that there is nothing to initialise."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        return nn.Linear(inputs, outputs, bias=bias)
