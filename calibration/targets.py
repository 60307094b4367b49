"""What a model is asked to answer: one label per clip, any number of labels, or one token at every position.

Targets tell their kind by themselves. "label": int64 (N,). "tags": float32 (N, C), 1 where a clip has a label and 0
where it lacks it, for a model with a sigmoid per label. "sequence": int64 (N, L) with NO_TARGET where a position is not
asked for anything: at the start, where the prompt stands, and at the end, where a shorter sequence is filled up.
Dimension letters: N clips, L positions, P positions that have a target (each clip is one, but in a sequence), C labels.

How likely a model finds answers is told by logits (N, C), or (N, L, C) of sequences: one softmax at every position, or
of tags one sigmoid per label. A clip's labels are independent given their sigmoids, so that its log-likelihood, and the
divergence of two models, is the sum over all labels.
"""

from typing import Literal

import torch
from torch.nn import functional

Kind = Literal["label", "tags", "sequence"]

NO_TARGET = -100  # torch's own default for a label that counts for nothing


def kind_of(targets: torch.Tensor) -> Kind:
    """Which kind these targets are of."""
    if targets.is_floating_point():
        return "tags"
    return "label" if targets.ndim == 1 else "sequence"


def answered(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (P, C) and targets (P,), or (P, C) of tags, of the positions that have one, clip by clip.

    logits: (N, C), or (N, L, C) of sequences.
    """
    if kind_of(targets) != "sequence":
        return logits, targets
    asked = targets != NO_TARGET
    return logits[asked.to(logits.device)], targets[asked]


def clip_numbers(targets: torch.Tensor) -> torch.Tensor:
    """Of which clip each of the P positions is, int64 (P,)."""
    if kind_of(targets) != "sequence":
        return torch.arange(len(targets), device=targets.device)
    return torch.nonzero(targets != NO_TARGET)[:, 0]


def positions(targets: torch.Tensor) -> int:
    """P, how many positions have a target."""
    return len(targets) if kind_of(targets) != "sequence" else int((targets != NO_TARGET).sum())


def of_clips(values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Every clip's share (N,) of values at the targets (P,), so scaled that their mean is the mean of the values."""
    if kind_of(targets) != "sequence":
        return values
    sums = torch.zeros(len(targets), dtype=values.dtype).index_add_(0, clip_numbers(targets), values)
    return sums * (len(targets) / positions(targets))


def before_the_end(targets: torch.Tensor) -> torch.Tensor | None:
    """(N, L), whether a position is not after its clip's last target, or None where clips are no sequences.

    What follows is there to fill up: a causal decoder computes it and nothing that is asked for depends on it.
    """
    if kind_of(targets) != "sequence":
        return None
    return (targets != NO_TARGET).flip(1).cumsum(1).flip(1) > 0


def strata(targets: torch.Tensor) -> torch.Tensor:
    """What clips are balanced over, int64 (N,): their label, the rarest of their labels, or their number of targets.

    Clips without any label are a stratum of their own.
    """
    kind = kind_of(targets)
    if kind == "label":
        return targets
    if kind == "sequence":
        return (targets != NO_TARGET).sum(dim=1)
    has, labels = targets > 0, targets.shape[1]
    counts = has.sum(dim=0).expand(len(targets), labels)
    rarest = torch.where(has, counts, len(targets) + 1).argmin(dim=1)
    return torch.where(has.any(dim=1), rarest, labels)


def negative_log_likelihoods(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of every target, in nats, (P,)."""
    found, wanted = answered(logits, targets)
    wanted = wanted.to(found.device)
    if kind_of(targets) == "tags":
        wanted = wanted.to(found.dtype)
        return functional.binary_cross_entropy_with_logits(found, wanted, reduction="none").sum(dim=1)
    return functional.cross_entropy(found, wanted, reduction="none")


def kl_divergences(dense_logits: torch.Tensor, slim_logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """KL(dense || slim) at every target, in nats, (P,)."""
    dense, slim = (answered(each, targets)[0] for each in (dense_logits, slim_logits))
    if kind_of(targets) == "tags":  # a yes or no of every label
        yes, no = (
            functional.logsigmoid(sign * dense).exp()
            * (functional.logsigmoid(sign * dense) - functional.logsigmoid(sign * slim))
            for sign in (1, -1)
        )
        return (yes + no).sum(dim=1)
    dense, slim = (functional.log_softmax(each, dim=1) for each in (dense, slim))
    return functional.kl_div(slim, dense, log_target=True, reduction="none").sum(dim=1)
