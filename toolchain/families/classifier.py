"""What families of classifiers have in common: logits of one batch of features, losses, labels and mistakes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leanear.benchmarks.tagging import MEAN_AP, clip_shares
from leanear.calibration.targets import kind_of, negative_log_likelihoods
from leanear.data.examples import LabelledInputs, Mistakes
from leanear.progress import Report
from leanear.runtimes.clips import Clips
from leanear.runtimes.errors import BadInput
from leanear.runtimes.tasks import MULTI_LABEL, TAGGING_TASK, classifier_task


def check_head(folder: Path, config: Any, labels: Sequence[str]) -> None:
    """Nothing, where the logits are those of classes that can be told apart.

    Raises:
        BadInput: they are not, or two classes have one name.
    """
    path = f"{folder}/config.json"
    if config.problem_type not in (None, "single_label_classification", MULTI_LABEL):
        raise BadInput(
            f"{path}: problem_type is {config.problem_type!r}; leanear takes classifiers: single_label_classification"
            f" or {MULTI_LABEL}"
        )
    twice = next((label for place, label in enumerate(labels) if label in labels[:place]), None)
    if twice is not None:
        first, second = [index for index, label in enumerate(labels) if label == twice][:2]
        raise BadInput(f"{path}: id2label names both {first} and {second} {twice!r}; each class needs its own name")


def metric_of(config: Any) -> str:
    """What the share of a classifier's mistakes is told of."""
    return MEAN_AP if classifier_task(config.problem_type, config.num_labels) == TAGGING_TASK else "accuracy"


def decoder_layers(model: Any) -> tuple[torch.nn.Module, ...]:
    """Those of the transformer layers whose outputs stand at the positions of a sequence's targets: none."""
    del model
    return ()


def encoded(model: Any, inputs: torch.Tensor, batch_size: int) -> torch.Tensor:
    """The inputs as an encoder leaves them for a decoder, which there is none of: as they are."""
    del model, batch_size
    return inputs


def logits(model: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Logits (B, labels) of a batch of features (B, ...), on the model's device."""
    return model(inputs.to(model.device)).logits


def batch_loss(model: Any, inputs: torch.Tensor, label_ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over a batch of features (B, ...) and label ids (B,), or tags (B, labels)."""
    return negative_log_likelihoods(logits(model, inputs), label_ids).mean()


def labelled(features: Callable[[Sequence[np.ndarray]], torch.Tensor], clips: Clips, report: Report) -> LabelledInputs:
    """Features (N, ...) and labels, or tags, of the clips. features: of some waveforms, by the family's front end."""
    arrays = []
    for number, waveform in enumerate(clips.waveforms):
        arrays.append(features([waveform]))
        report(f"front end of clip {number + 1} of {len(clips)}", (number + 1) / len(clips))
    truth = clips.label_ids if clips.tags is None else clips.tags.astype(np.float32)
    return LabelledInputs(torch.cat(arrays), torch.from_numpy(truth))


def mistakes(checkpoint: Any, model: Any, clips: LabelledInputs, answers: torch.Tensor) -> Mistakes:
    """Which clips' labels are not the first in the model's logits, answers (N, labels); what clips cost of the mAP.

    Raises:
        BadInput: clips may have several labels, and none has any.
    """
    del checkpoint, model
    if kind_of(clips.targets) == "tags":
        return _ranking_mistakes(answers, clips.targets)
    wrong = (answers.argmax(dim=1).cpu() != clips.targets).numpy().astype(np.float64)
    return Mistakes(wrong, np.ones_like(wrong))


def _ranking_mistakes(answers: torch.Tensor, tags: torch.Tensor) -> Mistakes:
    truth, scores = tags.numpy() > 0, answers.float().cpu().numpy()
    if not truth.any():
        raise BadInput(
            f"none of {len(truth)} held-out clips has a label to be ranked by; give more clips that have some"
        )
    return Mistakes(*clip_shares(scores, truth), scores, truth)
