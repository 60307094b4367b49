"""Small models with random weights that every test of the export uses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

from leanear.families.modeling_slim_ast import SlimASTConfig, SlimASTForAudioClassification

FRAMES, MEL_BINS = 60, 32
SETTINGS: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 80,
    "num_labels": 5,
    "max_length": FRAMES,
    "num_mel_bins": MEL_BINS,
}


def _randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights, biases and tokens all far from zero, so that none of them can be lost unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture
def extractor() -> ASTFeatureExtractor:
    return ASTFeatureExtractor(max_length=FRAMES, num_mel_bins=MEL_BINS)


@pytest.fixture
def dense() -> torch.nn.Module:
    return _randomise(ASTForAudioClassification(ASTConfig(**SETTINGS)), 1)


@pytest.fixture
def slim() -> torch.nn.Module:
    """Widths that are equal in one layer, ragged in the second and that drop a head in the third."""
    config = SlimASTConfig(
        **SETTINGS,
        query_key_widths=[[8, 8, 8], [3, 7, 16], [5, 12]],
        value_output_widths=[[8, 8, 8], [10, 1, 6], [9, 4]],
        attention_scaling=0.25,
    )
    return _randomise(SlimASTForAudioClassification(config), 2)


@pytest.fixture
def narrow() -> torch.nn.Module:
    """As `slim`, with feed-forward blocks of fewer channels, of all, and of none."""
    config = SlimASTConfig(
        **SETTINGS,
        query_key_widths=[[8, 8, 8], [3, 7, 16], [5, 12]],
        value_output_widths=[[8, 8, 8], [10, 1, 6], [9, 4]],
        attention_scaling=0.25,
        feed_forward_widths=[24, 0, 80],
    )
    return _randomise(SlimASTForAudioClassification(config), 4)


@pytest.fixture
def clips() -> list[np.ndarray]:
    """A short, an exact and a long clip."""
    generator = np.random.default_rng(3)
    return [(0.1 * generator.standard_normal(samples)).astype(np.float32) for samples in (2000, 9840, 20000)]
