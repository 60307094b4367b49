"""What a Whisper's encoder gives in torch for a window of any length."""

from __future__ import annotations

import copy
from typing import Any


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
