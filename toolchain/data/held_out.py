"""Calibration clips that nothing was chosen on, and how far a model's answers to them are from the dense model's."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from leanear.calibration.passes import Logits
from leanear.calibration.targets import answered, before_the_end, kl_divergences, positions
from leanear.data.examples import LabelledInputs
from leanear.runtimes.process.notes import note

HELD_OUT_SHARE = 0.2
MOST_HELD_OUT = 64
NO_NUMBER = 1e9  # nats
MOST_KEPT_BYTES = 1024**3  # of the dense model's answers; what is above, it answers anew for every model


def divided(clips: LabelledInputs) -> tuple[LabelledInputs, LabelledInputs]:
    """Clips to score, and clips that are held out: the last fifth, 64 at most, 1 at least; both the same if only one.

    clips: in an order whose every run is balanced, see `LabelledInputs.balanced_order`.
    """
    if len(clips) < 2:
        note("one calibration clip: it is scored, and judged on as well, so that no measured loss says anything")
        return clips, clips
    scored = clips_to_score(len(clips))
    return clips[:scored], clips[scored:]


def clips_to_score(clips: int) -> int:
    """How many of so many clips `divided` does not hold out."""
    return clips if clips < 2 else clips - min(MOST_HELD_OUT, max(1, round(HELD_OUT_SHARE * clips)))


def losing(divergence: float) -> float:
    """The divergence; in place of what is no number one that is more than any, which sorts last and which JSON has."""
    return divergence if math.isfinite(divergence) else NO_NUMBER


@dataclass(frozen=True)
class HeldOut:
    """Held-out clips, and the dense model's answers at their targets, kept as far as they fit."""

    dense: nn.Module
    clips: LabelledInputs
    logits: Logits
    batch_size: int = 8
    answers: dict[int, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.clips)

    def of(self, inputs: Any) -> HeldOut:
        """The same clips as other inputs that `logits` takes, to which the dense model's answers are the same."""
        return dataclasses.replace(self, clips=dataclasses.replace(self.clips, inputs=inputs))

    def first(self, clips: int) -> HeldOut:
        """The first of the clips alone."""
        return HeldOut(self.dense, self.clips[:clips], self.logits, self.batch_size)

    @property
    def knows_all_answers(self) -> bool:
        """Whether all of the dense model's answers are kept, so that no inputs are asked of it again."""
        return len(self.answers) * self.batch_size >= len(self)

    @torch.no_grad()
    def kl(self, model: nn.Module) -> float:
        """The mean KL(dense || model) of a model on the dense one's device, nats per target, 0 or more."""
        total = 0.0
        for number, rows in enumerate(self._order().split(self.batch_size)):
            batch = self.clips[rows].trimmed()
            found, targets = self._answers(model, batch)
            dense = self._dense_answers(number, batch).to(found.device)
            total += float(kl_divergences(dense, found, targets).double().sum())
        return max(total / positions(self.clips.targets), 0.0)  # below 0 is rounding; what is no number stays so

    def _order(self) -> torch.Tensor:
        """The clips' numbers, sequences the shortest first, so that few positions of a batch are filled up."""
        used = before_the_end(self.clips.targets)
        return torch.arange(len(self.clips)) if used is None else used.sum(dim=1).argsort(stable=True)

    def _dense_answers(self, number: int, batch: LabelledInputs) -> torch.Tensor:
        if number in self.answers:
            return self.answers[number]
        found, _ = self._answers(self.dense, batch)
        if sum(each.nbytes for each in self.answers.values()) + found.nbytes <= MOST_KEPT_BYTES:
            self.answers[number] = found
        return found

    def _answers(self, model: nn.Module, batch: LabelledInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (P, classes) in eval mode at the targets, and those, (P,)."""
        with evaluated(model):
            return answered(self.logits(model, batch.inputs), batch.targets)


@contextlib.contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """The model in eval mode within the block, and in its own after it."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
