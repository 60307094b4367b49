"""What pruning cost, measured on held-out calibration clips: in nats, in mistakes, and whether it matters."""

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from leanear.calibration import shards
from leanear.calibration.targets import kind_of
from leanear.data.examples import HeldOut, Mistakes, evaluated
from leanear.families.family import Checkpoint, Family

# A divergence of this size changed the word error rate of Whisper tiny.en by about a point (real speech, 60 clips).
MATTERS_NATS = 0.05
MATTERS_POINTS = 1.0
FEWEST_CLIPS = 5  # of which a standard error says anything


@dataclass(frozen=True)
class MeasuredLoss:
    """A slim model beside its dense self on held-out clips.

    clips: how many; divergence: mean KL(dense || slim), nats per target, None where it is not finite; dense_mistakes,
    slim_mistakes, counted: wrong labels or words, and out of how many, or what is lacking in the mean average
    precision, and 1; low_points, high_points: the paired 95 % interval of `points`, None where there is none;
    standard_error_points: of the same, over clips, None where they are too few to tell.
    """

    clips: int
    divergence: float | None
    dense_mistakes: float
    slim_mistakes: float
    counted: float
    low_points: float | None
    high_points: float | None
    standard_error_points: float | None
    DERIVED: ClassVar[tuple[str, ...]] = ("points", "matters")

    @property
    def points(self) -> float:
        """By how many points the rate of mistakes rose, in per cent of what was counted."""
        return 100 * (self.slim_mistakes - self.dense_mistakes) / self.counted

    @property
    def matters(self) -> bool:
        """Whether a user would notice: by the divergence, or by mistakes beyond twice their standard error."""
        error = self.standard_error_points
        more = error is not None and self.points >= MATTERS_POINTS and self.points > 2 * error
        return more or self.divergence is None or self.divergence >= MATTERS_NATS


@dataclass(frozen=True)
class Judge:
    """Measures models of one family on held-out clips against the dense model of a checkpoint."""

    family: Family
    checkpoint: Checkpoint
    held_out: HeldOut

    def loss(self, model: nn.Module) -> MeasuredLoss:
        """The loss of a slim model; on all processes the first one's."""
        dense, slim = self._dense, self._mistakes(model)
        counted = float(dense.counted.sum())
        rise, error = slim.rise_over(dense)
        ends = (100 * rise.low, 100 * rise.high) if rise.has_spread else (math.nan, math.nan)
        numbers = (
            self.held_out.kl(model), float(dense.errors.sum()), float(slim.errors.sum()), counted, *ends, 100 * error
        )  # fmt: skip
        divergence, before, after, out_of, low, high, error = (shards.same(number) for number in numbers)
        clips = len(self.held_out)
        return MeasuredLoss(
            clips=clips,
            divergence=divergence if math.isfinite(divergence) else None,
            dense_mistakes=before,
            slim_mistakes=after,
            counted=out_of,
            low_points=None if math.isnan(low) else low,
            high_points=None if math.isnan(high) else high,
            standard_error_points=error if clips >= FEWEST_CLIPS else None,
        )

    @functools.cached_property
    def _dense(self) -> Mistakes:
        return self._mistakes(self.checkpoint.model)

    @torch.no_grad()
    def _mistakes(self, model: nn.Module) -> Mistakes:
        clips = self.held_out.clips
        answers = torch.empty(0)
        with evaluated(model):
            if kind_of(clips.targets) != "sequence":  # transcripts are made anew, word by word
                parts = torch.arange(len(clips)).split(self.held_out.batch_size)
                answers = torch.cat([self.family.logits(model, clips.inputs[part]) for part in parts])
            return self.family.mistakes(self.checkpoint, model, clips, answers)
