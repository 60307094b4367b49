"""Prune in a new basis: score the calibration clips, choose widths within a budget, measure what they lose, and cut.

Several shots repeat this, each towards a part of the way, with scores of the model as it then is and no training in
between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from leanear.data.examples import LabelledInputs
from leanear.data.held_out import HeldOut
from leanear.evaluate.measured_loss import MATTERS_NATS
from leanear.families.family import Family
from leanear.plan import CHANNELS_AS_TRAINED, ROTATED, Plan, SitePlan, compose, compose_feed_forward
from leanear.progress import Report, in_parts, quiet
from leanear.prune.allocation.allocate import Allocation
from leanear.prune.closed_loop import Corrections, Round, choose_measured, least
from leanear.prune.costs import Costs
from leanear.prune.scoring import Scores, score_widths
from leanear.prune.widths import RotatedRecipe, choose_widths, cut, kept_channels
from leanear.recover.compensation import Compensated

SHARES = {"scoring": 1, "rounds": 2}  # of the time, as two real models took it


@dataclass(frozen=True)
class Rotated:
    """A pruned model in eval mode, its plan, the estimated loss in nats per target, and its cost in the budget's unit.

    rounds: what was chosen and measured on held-out clips, of which `best` is the model; none without such clips, or
    with several shots. scores, corrections: of the dense model, from which other budgets are served; None likewise.
    others: the same of the other rounds.
    """

    model: nn.Module
    plan: Plan
    damage: float
    cost: float
    rounds: tuple[Round, ...] = ()
    best: int = 0
    scores: Scores | None = None
    corrections: Corrections | None = None
    others: tuple[Rotated, ...] = ()

    @property
    def loss_matters(self) -> bool:
        """Whether so much was measured to be lost that it shows."""
        return bool(self.rounds) and not self.rounds[self.best].measured < MATTERS_NATS

    @property
    def candidates(self) -> tuple[Rotated, ...]:
        """What is worth being compensated: where the loss matters, the first round, too; later ones are much alike."""
        if not self.loss_matters:
            return (self,)
        return (self, *([each for each in self.others if each.best == 0] or self.others[:1]))


def best_compensated(
    pruned: Rotated, compensate: Callable[[nn.Module, Report], Compensated], report: Report = quiet
) -> tuple[Rotated, Compensated]:
    """Of the candidates, each compensated in place, the one that loses the least then, and what was done to it."""
    candidates = pruned.candidates
    told = [_one_of(report, "plan", number, len(candidates)) for number in range(1, len(candidates) + 1)]
    done = [compensate(each.model, tell) for each, tell in zip(candidates, told, strict=True)]
    if len(candidates) == 1:
        return pruned, done[0]
    best = least([each.rounds[each.best] for each in candidates], [each.held_out_kl_after for each in done])
    return candidates[best], done[best]


def prune_rotated(
    family: Family,
    model: nn.Module,
    clips: LabelledInputs,
    costs: Costs,
    budget: float,
    recipe: RotatedRecipe,
    *,
    held_out: HeldOut | None = None,
    corrections: Corrections | None = None,
    made_from: Mapping[str, str] | None = None,
    state: Path | None = None,
    clips_at_once: int | None = None,
    report: Report = quiet,
) -> Rotated:
    """A smaller model whose cost is within the budget; `model` itself, which is dense, is not changed.

    family: a module of `leanear.families`; clips: to score; budget: in the unit of `costs`, of the whole model.
    held_out: clips on which plans are measured and chosen again, see `choose_measured`; corrections: what an earlier
        call learned there.
    made_from: sha256 by kind, written into the plan; state: a folder for the dense model's scores, from which an
        interrupted run, or one with another budget, goes on; clips_at_once: how many clips are in memory together.
    Under `torchrun` every process calls this alike, and all end with the same model.

    Raises:
        BadInput: the model is slim already, or the budget cannot be met.
    """
    if state is not None and not made_from:
        raise ValueError("a state folder is of no use without made_from: it could be another model's")
    plan = dataclasses.replace(
        family.dense_plan(model), made_from=dict(made_from or {}), prune=recipe.prune,
        basis=CHANNELS_AS_TRAINED if recipe.prune == "feed-forward" else ROTATED + recipe.basis,
    )  # fmt: skip
    damage, cost, stage = 0.0, costs.dense, in_parts(report, SHARES)
    for shot in range(1, recipe.shots + 1):
        told = stage("scoring") if recipe.shots == 1 else _one_of(report, "shot", shot, recipe.shots)
        scores = score_widths(
            family, model, clips, recipe.scoring, state=state if shot == 1 else None, made_from=made_from or {},
            clips_at_once=clips_at_once, report=told,
        )  # fmt: skip
        if held_out is not None and recipe.shots == 1:
            return prune_measured(
                family, model, plan, scores, costs, budget, recipe, held_out, corrections=corrections,
                report=stage("rounds"),
            )  # fmt: skip
        part = costs.dense * (budget / costs.dense) ** (shot / recipe.shots)
        allocation = choose_widths(family.attention_sites(model), scores.losses, costs, part, recipe.estimated)
        dense = model
        model, kept = cut(family, dense, scores.bases, allocation)
        plan = _composed(family, dense, scores, plan, kept, allocation)
        damage, cost = damage + allocation.damage, allocation.cost
    return Rotated(model, plan, damage, cost)


def prune_measured(
    family: Family,
    model: nn.Module,
    plan: Plan,
    scores: Scores,
    costs: Costs,
    budget: float,
    recipe: RotatedRecipe,
    held_out: HeldOut,
    *,
    corrections: Corrections | None = None,
    report: Report = quiet,
) -> Rotated:
    """The model by `choose_measured`, from scores that are there; plan: of `model`, before anything is cut."""
    chosen = choose_measured(
        family, model, scores, costs, budget, recipe, held_out, corrections=corrections, report=report
    )
    every = [
        Rotated(
            each.model, _composed(family, model, scores, plan, each.kept, each.allocation), each.allocation.damage,
            each.allocation.cost, each.rounds, each.best, scores, each.corrections,
        )
        for each in (chosen, *chosen.others)
    ]  # fmt: skip
    return dataclasses.replace(every[0], others=tuple(every[1:]))


def _composed(
    family: Family, model: nn.Module, scores: Scores, plan: Plan, kept: tuple[SitePlan, ...], allocation: Allocation
) -> Plan:
    """The plan once `allocation` is cut out of `model`, which is what the plan has kept so far."""
    sites = compose(plan.sites, kept)
    channels = kept_channels(family, model, scores.bases, allocation)
    return dataclasses.replace(plan, sites=sites, feed_forward=compose_feed_forward(plan.feed_forward, channels))


def _one_of(report: Report, what: str, number: int, of: int) -> Report:
    """The report of one of several that follow each other, from 1 on."""

    def about_it(text: str, fraction: float | None = None) -> None:
        report(f"{what} {number} of {of}, {text}" if of > 1 else text, (number - 1 + (fraction or 0.0)) / of)

    return about_it
