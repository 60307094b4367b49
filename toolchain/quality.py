"""How well a model answers evaluation clips, clip by clip, beside its dense self."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from toolchain.distillation import Logits
from toolchain.narration import Report, quiet


@dataclass(frozen=True)
class Answers:
    """Every evaluation clip's figures, (N,) each.

    kl_divergence: KL(dense || this model), nats; cross_entropy: nats; correct: whether the first label is right.
    """

    kl_divergence: np.ndarray
    cross_entropy: np.ndarray
    correct: np.ndarray


def predict(
    model: nn.Module, inputs: torch.Tensor, logits: Logits, report: Report = quiet, batch_size: int = 32
) -> torch.Tensor:
    """Logits (N, labels) of the model in eval mode for inputs (N, ...)."""
    model.eval()
    batches = []
    with torch.inference_mode():
        for start in range(0, len(inputs), batch_size):
            batches.append(logits(model, inputs[start : start + batch_size]))
            report("evaluating", min(1.0, (start + batch_size) / len(inputs)))
    return torch.cat(batches)


def judge_answers(logits: torch.Tensor, dense_logits: torch.Tensor, label_ids: torch.Tensor) -> Answers:
    """The figures of logits (N, labels) on clips of label_ids (N,), computed in float64."""
    log_shares, dense_log_shares = logits.double().log_softmax(dim=1), dense_logits.double().log_softmax(dim=1)
    divergence = (dense_log_shares.exp() * (dense_log_shares - log_shares)).sum(dim=1)
    return Answers(
        kl_divergence=divergence.numpy(),
        cross_entropy=-log_shares.gather(1, label_ids[:, None])[:, 0].numpy(),
        correct=(logits.argmax(dim=1) == label_ids).numpy(),
    )
