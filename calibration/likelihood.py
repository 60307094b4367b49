"""How likely a model finds answers: its logits are one softmax at every position, or of tags one sigmoid per label.

Logits (N, C), or (N, L, C) of sequences, and targets as in `leanear.calibration.targets`, which say which of the two it
is. A clip's labels are independent given their sigmoids, so that its log-likelihood, and the divergence of two models,
is the sum over all labels.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from leanear.calibration.targets import answered, kind_of


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
