"""Whisper-tiny's size with half of its attention, for what is held against the dense checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from leanear.families import whisper

LEAST_KEPT, MOST_KEPT, STEP = 8, 56, 4  # of a head's 64 channels


def half_pruned(checkpoint: Any, seed: int = 0) -> Any:
    """The checkpoint with half of all heads' channels, every head's widths drawn at random as pruning makes them."""
    generator = np.random.default_rng(seed)
    plan = whisper.dense_plan(checkpoint.model)
    sites = []
    for site in plan.sites:
        widths = [ragged_widths(generator, len(site.heads)) for _ in range(2)]
        heads = tuple(
            replace(head, query_key=tuple(range(query_key)), value_output=tuple(range(value_output)))
            for head, query_key, value_output in zip(site.heads, *widths, strict=True)
        )
        sites.append(replace(site, heads=heads))
    return replace(checkpoint, model=whisper.slim_model(checkpoint.model, tuple(sites)))


def ragged_widths(generator: np.random.Generator, heads: int) -> list[int]:
    """Widths from LEAST_KEPT to MOST_KEPT that are multiples of STEP and whose mean is in the middle."""
    low, high, middle = LEAST_KEPT // STEP, MOST_KEPT // STEP, (LEAST_KEPT + MOST_KEPT) // (2 * STEP)
    steps = generator.integers(low, high + 1, heads)
    while steps.sum() != middle * heads:
        head, change = generator.integers(heads), 1 if steps.sum() < middle * heads else -1
        steps[head] = min(max(steps[head] + change, low), high)
    return [int(step) * STEP for step in steps]
