"""What a model is asked to answer: one label per clip, or one token at every position of a clip's sequence.

Targets are int64: (N,), or (N, L) with NO_TARGET where a position is not asked for anything: at the start, where the
prompt stands, and at the end, where a shorter sequence is filled up. Dimension letters: N clips, L positions, P
positions that have a target, C classes.
"""

from __future__ import annotations

import torch

NO_TARGET = -100  # torch's own default for a label that counts for nothing


def answered(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (P, C) and targets (P,) of the positions that have one, clip by clip, from logits (N, C) or (N, L, C)."""
    if targets.ndim == 1:
        return logits, targets
    asked = targets != NO_TARGET
    return logits[asked.to(logits.device)], targets[asked]


def clip_numbers(targets: torch.Tensor) -> torch.Tensor:
    """Of which clip each of the P positions is, int64 (P,)."""
    if targets.ndim == 1:
        return torch.arange(len(targets), device=targets.device)
    return torch.nonzero(targets != NO_TARGET)[:, 0]


def positions(targets: torch.Tensor) -> int:
    """P, how many positions have a target."""
    return len(targets) if targets.ndim == 1 else int((targets != NO_TARGET).sum())


def before_the_end(targets: torch.Tensor) -> torch.Tensor | None:
    """(N, L), whether a position is not after its clip's last target, or None where every clip has one label.

    What follows is there to fill up: a causal decoder computes it and nothing that is asked for depends on it.
    """
    if targets.ndim == 1:
        return None
    return (targets != NO_TARGET).flip(1).cumsum(1).flip(1) > 0


def strata(targets: torch.Tensor) -> torch.Tensor:
    """What clips are balanced over, int64 (N,): their label, or how many positions have a target."""
    return targets if targets.ndim == 1 else (targets != NO_TARGET).sum(dim=1)
