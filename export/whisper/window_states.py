"""What a Whisper gives in torch for a window of any length: its encoder's states, and what its decoder looks at."""

import copy
from typing import Any

import numpy as np


def window_states(encoder: Any, features: Any) -> Any:
    """States (B, T, D) of features (B, mel bins, frames), by transformers' own encoder, stock or slim.

    Of fewer frames than the model's window has, the positions are the first rows of the trained ones. The weights are
    the encoder's own, not copies.
    """
    from torch import nn

    frames_per_position = encoder.conv1.stride[0] * encoder.conv2.stride[0]
    positions = features.shape[-1] // frames_per_position
    if positions == encoder.config.max_source_positions:
        return encoder(features).last_hidden_state
    shorter = copy.copy(encoder)
    shorter._modules = dict(encoder._modules)
    shorter.config = copy.copy(encoder.config)
    shorter.config.max_source_positions = positions
    shorter.embed_positions = nn.Embedding.from_pretrained(encoder.embed_positions.weight[:positions])
    return shorter(features).last_hidden_state


def cross_attention(model: Any, tokens: np.ndarray, states: Any) -> list[np.ndarray]:
    """How much every token looks at every position of a window, by decoder layer: float32 (H, N, T), after softmax.

    tokens: int64 (N,), from the start on; states: of one window (1, T, D).
    """
    import torch

    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the others do not store it
    try:
        decoded = model.model.decoder(
            input_ids=torch.tensor(tokens, device=states.device)[None],
            encoder_hidden_states=states,
            use_cache=False,
            output_attentions=True,
        )
    finally:
        model.set_attn_implementation(attention)
    return [weights[0].float().cpu().numpy() for weights in decoded.cross_attentions]
