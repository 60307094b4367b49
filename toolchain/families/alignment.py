"""Which cross-attention heads of a Whisper tell when a word was said: its own list, or what is known without one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from leanear.families.whisper import WhisperCheckpoint, cross_attention_heads
from leanear.runtimes.files import read_object
from leanear.runtimes.speech.alignment import Alignment

LEAST_CORRELATION = 0.8
MOST_HEADS = 6


def alignment_of(checkpoint: WhisperCheckpoint) -> Alignment:
    """The alignment heads of generation_config.json or, where it has none, all of the decoder's upper half."""
    config, settings = checkpoint.model.config, checkpoint.model.generation_config
    heads = {(int(layer), int(head)) for layer, head in getattr(settings, "alignment_heads", None) or ()}
    lost, width = _pruned_heads(checkpoint), int(config.median_filter_width)
    if heads:
        return Alignment(tuple(sorted(heads)), "generation_config", lost, width)
    every = every_head(checkpoint)
    upper = tuple(head for head in every if head[0] >= config.decoder_layers // 2)
    return Alignment(upper, "upper half", lost, width)


def every_head(checkpoint: WhisperCheckpoint) -> list[tuple[int, int]]:
    """(decoder layer, head) of all heads of cross-attention that the model has."""
    counts = cross_attention_heads(checkpoint.model.config)
    return [(layer, head) for layer, count in enumerate(counts) for head in range(count)]


def following_heads(scores: np.ndarray, heads: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Of `heads` with their correlations those of at least LEAST_CORRELATION: one at least and MOST_HEADS at most."""
    order = np.argsort(-scores, kind="stable")
    chosen = [heads[place] for place in order if scores[place] >= LEAST_CORRELATION][:MOST_HEADS]
    return tuple(sorted(chosen or [heads[order[0]]]))


def correlations(attended: np.ndarray) -> np.ndarray:
    """The correlation with 0, 1, 2, ... along the last axis; 0 where nothing changes."""
    attended = attended.astype(np.float64)
    places = np.arange(attended.shape[-1]) - (attended.shape[-1] - 1) / 2
    centred = attended - attended.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).sum(-1) * (places**2).sum())
    return np.divide((centred * places).sum(-1), spread, out=np.zeros_like(spread), where=spread > 0)


def _pruned_heads(checkpoint: WhisperCheckpoint) -> int:
    """How many heads of the dense model's list pruning took, as pruning.json says; 0 where there is none."""
    path = checkpoint.folder / "pruning.json"
    if not path.is_file():
        return 0
    found = read_object(path).get("alignment_heads")
    dropped = found.get("dropped", []) if isinstance(found, dict) else []
    return len(dropped) if isinstance(dropped, list) else 0
