"""The smallest model that keeps the accuracy within a given drop, by bisection on held-out calibration clips.

Every calibration clip is held out once: the clips are divided into folds, and a clip is judged by a model whose basis
and widths were chosen on the other folds. So no clip that a choice was made on vouches for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from leanear.benchmarks.formatting import PRUNED_PARTS
from leanear.benchmarks.summary import Interval
from leanear.calibration.targets import answered, kind_of, kl_divergences, of_clips, positions
from leanear.data.examples import LabelledInputs, Mistakes
from leanear.families.family import Checkpoint, Family
from leanear.progress import Report, in_parts, quiet
from leanear.prune.costs import Costs
from leanear.prune.rotated import prune_rotated
from leanear.prune.scoring import Scores, score_widths
from leanear.prune.widths import RotatedRecipe, choose_widths, cut
from leanear.runtimes.errors import BadInput

FOLDS = 3
STEPS = 50  # sparsities tried are multiples of 1/50
LARGEST_STEP = 48


@dataclass(frozen=True)
class Trial:
    """One sparsity that was tried, on the held-out clips.

    lost, won: mistakes that the slim model alone makes, clip by clip, and the dense one alone: wrong labels or words;
    drop_points: what that makes, in per cent of what is counted; expected_drop_points, standard_error_points: by how
    much the probabilities of the right answers fall, the drop that is expected where the model's probabilities are
    right, and its standard error; low_points, high_points: of the drop as counted, its paired 95 % interval, None where
    there is none. Of a transcript the answers are its tokens, and the error is the larger of the two drops'. Of clips
    with several labels, lost and won are clips that add less and more to the mean average precision, whose fall is both
    drops. kl_divergence: mean KL(dense || slim) in nats; within: the larger drop plus its error is not above the goal.
    """

    sparsity: float
    clips: int
    lost: int
    won: int
    drop_points: float
    low_points: float | None
    high_points: float | None
    expected_drop_points: float
    standard_error_points: float
    kl_divergence: float
    within: bool


@dataclass(frozen=True)
class Search:
    """The sparsity that was found and all that were tried, in order."""

    sparsity: float
    trials: tuple[Trial, ...]


def search_sparsity(
    family: Family,
    checkpoint: Checkpoint,
    clips: LabelledInputs,
    costs: Costs,
    recipe: RotatedRecipe,
    max_drop: float,
    *,
    made_from: Mapping[str, str],
    state: Path | None = None,
    clips_at_once: int | None = None,
    report: Report = quiet,
) -> Search:
    """The largest sparsity whose accuracy drop on held-out clips is at most `max_drop` points; see `Trial`.

    Lost clips alone are a coarse measure, one clip in 256 being 0.4 points: the fall of the right label's probability
    says more of each clip, and with its standard error few clips make the search more careful.
    costs: of the parameters of what is pruned; state: a folder for the folds' bases, from which an interrupted search
    goes on. The drop is taken to grow with sparsity.

    Raises:
        BadInput: too few clips to hold any out, or no sparsity is within the drop.
    """
    if len(clips) < 2 * FOLDS:
        raise BadInput(f"the search needs at least {2 * FOLDS} calibration clips; there are {len(clips)}")
    part = in_parts(report, {"folds": 3, "trials": 2})
    part("folds")("answers of the dense model", None)
    dense_logits = _logits(family, checkpoint.model, clips)
    dense = _Answers(dense_logits, family.mistakes(checkpoint, checkpoint.model, clips, dense_logits))
    search = _HeldOutFolds(family, checkpoint, clips, costs, recipe, max_drop, made_from, clips_at_once, dense)
    folds = tuple(search.scored(number, state, part("folds")) for number in range(FOLDS))
    found = _bisect(lambda step: search.trial(step / STEPS, folds), part("trials"))
    if not any(trial.within for trial in found):
        raise BadInput(
            f"not even {100 / STEPS:g} % of the {PRUNED_PARTS[recipe.prune]} can go within that drop, as far as"
            f" {len(clips)} held-out clips tell"
        )
    return Search(max(trial.sparsity for trial in found if trial.within), found)


def _bisect(attempt: Callable[[int], Trial], report: Report) -> tuple[Trial, ...]:
    """The trials, in order: each step lies above all that were within the drop and below all that were not."""
    trials: list[Trial] = []
    good, bad = 0, LARGEST_STEP + 1
    most, tried = math.ceil(math.log2(LARGEST_STEP + 1)), 0
    while bad - good > 1:
        step = (good + bad) // 2
        report(f"trial {tried + 1} of at most {most}: {100 * step / STEPS:g} %", tried / most)
        tried += 1
        try:
            trials.append(attempt(step))
        except BadInput:  # narrower than the narrowest model
            bad = step
            continue
        report(f"{100 * step / STEPS:g} %: {_drop_text(trials[-1])} on held-out clips", tried / most)
        good, bad = (step, bad) if trials[-1].within else (good, step)
    return tuple(trials)


@dataclass(frozen=True)
class _HeldOutFolds:
    """The clips in folds, each of which is judged by a model that was made of the others; dense: what is lost from."""

    family: Family
    checkpoint: Checkpoint
    clips: LabelledInputs
    costs: Costs
    recipe: RotatedRecipe
    max_drop: float
    made_from: Mapping[str, str]
    clips_at_once: int | None
    dense: _Answers

    def scored(self, number: int, state: Path | None, report: Report) -> Scores | LabelledInputs:
        """The scores of all clips but a fold's, or, where several shots score anew, these clips."""
        others = self.clips[torch.tensor([clip for clip in range(len(self.clips)) if clip % FOLDS != number])]
        if (self.recipe.shots or 1) > 1:
            return others

        def told(text: str, fraction: float | None = None) -> None:
            report(f"fold {number + 1} of {FOLDS}, {text}", (number + (fraction or 0.0)) / FOLDS)

        return score_widths(
            self.family, self.checkpoint.model, others, self.recipe.scoring,
            made_from={**self.made_from, "fold": f"{number + 1} of {FOLDS}"},
            state=None if state is None else state / f"fold-{number + 1}",
            clips_at_once=self.clips_at_once, report=told,
        )  # fmt: skip

    def trial(self, sparsity: float, folds: Sequence[Scores | LabelledInputs]) -> Trial:
        """What is lost at this sparsity, each clip judged by the model that did not see it.

        Raises:
            BadInput: the budget is below the narrowest model.
        """
        ranked = kind_of(self.clips.targets) == "tags"
        rows = [torch.arange(fold, len(self.clips), FOLDS) for fold in range(FOLDS)]
        parts: list[torch.Tensor] = []
        errors: list[np.ndarray] = []
        for fold, scores in zip(rows, folds, strict=True):
            model, clips = self._pruned((1 - sparsity) * self.costs.dense, scores), self.clips[fold]
            parts.append(_logits(self.family, model, clips))
            if not ranked:
                errors.append(self.family.mistakes(self.checkpoint, model, clips, parts[-1]).errors)
        back = torch.cat(rows).argsort()
        logits, targets = torch.cat(parts)[back], self.clips.targets
        if ranked:  # each clip among all, not among those of its fold
            found = self.family.mistakes(self.checkpoint, self.checkpoint.model, self.clips, logits)
            return _ranking_trial(sparsity, self.dense, _Answers(logits, found), targets, self.max_drop)
        return _trial(sparsity, self.dense, logits, np.concatenate(errors)[back.numpy()], targets, self.max_drop)

    def _pruned(self, budget: float, scores: Scores | LabelledInputs) -> nn.Module:
        family, model, recipe = self.family, self.checkpoint.model, self.recipe
        if isinstance(scores, LabelledInputs):
            return prune_rotated(
                family, model, scores, self.costs, budget, recipe,
                made_from=self.made_from, clips_at_once=self.clips_at_once,
            ).model  # fmt: skip
        allocation = choose_widths(family.attention_sites(model), scores.losses, self.costs, budget, recipe.estimated)
        return cut(family, model, scores.bases, allocation)[0]


@dataclass(frozen=True)
class _Answers:
    logits: torch.Tensor
    mistakes: Mistakes


@torch.no_grad()
def _logits(family: Family, model: nn.Module, clips: LabelledInputs) -> torch.Tensor:
    parts = [family.logits(model, clips.inputs[part]) for part in torch.arange(len(clips)).split(16)]
    return torch.cat(parts).double()


def _ranking_trial(sparsity: float, dense: _Answers, slim: _Answers, targets: torch.Tensor, max_drop: float) -> Trial:
    more = slim.mistakes.errors - dense.mistakes.errors
    rise, error = slim.mistakes.rise_over(dense.mistakes)
    drop, error_points = 100 * float(more.sum()), 100 * error
    low, high = _ends(rise)
    kl = float(kl_divergences(dense.logits, slim.logits, targets).mean())
    lost, won = int((more > 0).sum()), int((more < 0).sum())
    return Trial(
        sparsity, len(targets), lost, won, drop, low, high, drop, error_points, kl, drop + error_points <= max_drop
    )


def _trial(
    sparsity: float,
    dense: _Answers,
    slim_logits: torch.Tensor,
    slim_errors: np.ndarray,
    targets: torch.Tensor,
    max_drop: float,
) -> Trial:
    more = slim_errors - dense.mistakes.errors
    lost, won = int(more.clip(min=0).sum()), int((-more).clip(min=0).sum())
    clips, counted = len(targets), float(dense.mistakes.counted.sum())
    drop = 100 * (lost - won) / counted
    rise, _ = Mistakes(slim_errors, dense.mistakes.counted).rise_over(dense.mistakes)
    low, high = _ends(rise)
    (old, wanted), (new, _) = answered(dense.logits, targets), answered(slim_logits, targets)
    falls = 100 * (old.softmax(dim=1) - new.softmax(dim=1)).gather(1, wanted[:, None])[:, 0]
    falls = of_clips(falls, targets) * (positions(targets) / counted)
    expected, error = float(falls.mean()), float(falls.std()) / math.sqrt(clips)
    if kind_of(targets) == "sequence":
        error = max(error, 100 * float(np.std(more, ddof=1)) * math.sqrt(clips) / counted)
    kl = float(kl_divergences(dense.logits, slim_logits, targets).mean())
    within = max(drop, expected) + error <= max_drop
    return Trial(sparsity, clips, lost, won, drop, low, high, expected, error, kl, within)


def _ends(rise: Interval) -> tuple[float | None, float | None]:
    """Of its interval in points, None where there is none."""
    return (100 * rise.low, 100 * rise.high) if rise.has_spread else (None, None)


def _drop_text(trial: Trial) -> str:
    if trial.low_points is None or trial.high_points is None:
        return f"{trial.drop_points:.2f} points lost (no clip differs)"
    return f"{trial.drop_points:.2f} points lost (95 % between {trial.low_points:.2f} and {trial.high_points:.2f})"
