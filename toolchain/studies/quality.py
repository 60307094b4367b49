"""How well a model answers evaluation clips, clip by clip, beside its dense self."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from leanear.calibration.targets import kl_divergences, negative_log_likelihoods, of_clips
from leanear.data.examples import Inputs, Mistakes
from leanear.progress import Report, quiet
from leanear.recover.training import Logits


@dataclass(frozen=True)
class Answers:
    """Every evaluation clip's figures, (N,) each.

    kl_divergence: KL(dense || this model), and cross_entropy, in nats, so scaled where a clip has several targets that
    the mean over clips is the mean over all targets; errors, counted: mistakes, and of how many answers: one label, or
    the words of a transcript; or what it costs of the mean average precision, and what it could add, as in `Mistakes`.
    """

    kl_divergence: np.ndarray
    cross_entropy: np.ndarray
    errors: np.ndarray
    counted: np.ndarray

    @property
    def error_rate(self) -> float:
        """Errors of all clips over what was counted: 1 - accuracy, 1 - mAP, or the word error rate."""
        return float(self.errors.sum() / self.counted.sum())


def predict(
    model: nn.Module, inputs: Inputs, logits: Logits, report: Report = quiet, batch_size: int = 32
) -> torch.Tensor:
    """Logits (N, C) or (N, L, C) of the model in eval mode for inputs (N, ...)."""
    model.eval()
    batches = []
    with torch.inference_mode():
        for start in range(0, len(inputs), batch_size):
            batches.append(logits(model, inputs[start : start + batch_size]))
            report("evaluating", min(1.0, (start + batch_size) / len(inputs)))
    return torch.cat(batches)


def judge_answers(
    logits: torch.Tensor, dense_logits: torch.Tensor, targets: torch.Tensor, mistakes: Mistakes
) -> Answers:
    """The figures of logits on clips of these targets, as in `leanear.calibration.targets`, computed in float64."""
    own, dense = logits.double(), dense_logits.double()
    return Answers(
        kl_divergence=of_clips(kl_divergences(dense, own, targets).cpu(), targets).numpy(),
        cross_entropy=of_clips(negative_log_likelihoods(own, targets).cpu(), targets).numpy(),
        errors=mistakes.errors,
        counted=mistakes.counted,
    )
