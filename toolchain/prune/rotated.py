"""Prune in a new basis: score the calibration clips, choose widths within a budget, measure what they lose, and cut.

Several shots repeat this, each towards a part of the way, with scores of the model as the one before has left it,
compensated and not trained. What little is left of a model is chosen better so: see docs/real-models.md.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from leanear.data.examples import HeldOut, LabelledInputs
from leanear.evaluate.measured_loss import MATTERS_NATS
from leanear.families.family import Family
from leanear.plan import CHANNELS_AS_TRAINED, ROTATED, Plan, SitePlan, compose, compose_feed_forward
from leanear.progress import Report, in_parts, quiet
from leanear.prune.allocation.allocate import Allocation
from leanear.prune.closed_loop import Corrections, Round, choose_measured
from leanear.prune.costs import Costs
from leanear.prune.scoring import Scores, score_widths
from leanear.prune.widths import RotatedRecipe, choose_widths, cut, kept_channels
from leanear.recover.compensation import Compensated
from leanear.runtimes.errors import BadInput

Compensate = Callable[[nn.Module, Report], Compensated]  # in place
FITS_ALL_NATS = 0.005  # per target, lost before compensation: from there on feed-forward blocks are worth being fitted
SHOT_FOLDER = "shot-"  # and its number: where a later shot's scores are kept


@dataclass(frozen=True)
class Rotated:
    """A pruned model in eval mode, its plan, the estimated loss in nats per target, and its cost in the budget's unit.

    rounds: what was chosen and measured on held-out clips, in the last shot, of which `best` is the model; none without
    such clips. scores, corrections: of the dense model, from which other budgets are served; None likewise. shots: how
    many it took, if several.
    """

    model: nn.Module
    plan: Plan
    damage: float
    cost: float
    rounds: tuple[Round, ...] = ()
    best: int = 0
    scores: Scores | None = None
    corrections: Corrections | None = None
    shots: int | None = None

    def loses(self, nats: float) -> bool:
        """Whether so much was measured to be lost."""
        return bool(self.rounds) and not self.rounds[self.best].measured < nats


@dataclass(frozen=True)
class ClosedLoop:
    """How plans are measured on held-out clips and chosen again, see `choose_measured`.

    corrections: what an earlier call learned there, and scores, where they are there already, of the first shot;
    compensate: what is done between shots.
    """

    held_out: HeldOut
    corrections: Corrections | None = None
    compensate: Compensate | None = None
    scores: Scores | None = None


def prune_rotated(
    family: Family,
    model: nn.Module,
    clips: LabelledInputs,
    costs: Costs,
    budget: float,
    recipe: RotatedRecipe,
    *,
    loop: ClosedLoop | None = None,
    made_from: Mapping[str, str] | None = None,
    state: Path | None = None,
    clips_at_once: int | None = None,
    report: Report = quiet,
) -> Rotated:
    """A smaller model whose cost is within the budget; `model` itself, which is dense, is not changed.

    family: a module of `leanear.families`; clips: to score; budget: in the unit of `costs`, of the whole model.
    loop: measures plans and chooses again; without it estimates are all there is, and nothing is done between shots.
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
    found = first = Rotated(model, plan, 0.0, costs.dense)
    shots = recipe.shots or 1
    for shot in range(1, shots + 1):
        compensate = None if loop is None or shot == shots else loop.compensate
        # of the time, as two real models took it
        shares = {"scoring": 1, "rounds": 2 * (loop is not None), "compensation": 2 * (compensate is not None)}
        kept_in = state if state is None or shot == 1 else state / f"{SHOT_FOLDER}{shot}"
        stage = in_parts(_one_of(report, "shot", shot, shots), shares)
        scores = (loop and shot == 1 and loop.scores) or score_widths(
            family, found.model, clips, recipe.scoring, state=kept_in, clips_at_once=clips_at_once,
            made_from=dict(made_from or {}) if shot == 1 else {**(made_from or {}), "weights": _sha256(found.model)},
            report=stage("scoring"),
        )  # fmt: skip
        part = costs.dense * (budget / costs.dense) ** (shot / shots)
        if loop is None:
            found = _estimated(family, found, scores, costs, part, recipe)
            continue
        # a block that is gone could not be scored again
        of_shot = recipe if shot == shots else recipe.estimated
        found = prune_measured(
            family, found.model, found.plan, scores, costs, part, of_shot, loop.held_out,
            corrections=loop.corrections if shot == 1 else None, report=stage("rounds"),
        )  # fmt: skip
        first = found if shot == 1 else first
        if compensate is not None:
            compensate(found.model, stage("compensation"))
    return dataclasses.replace(
        found, scores=first.scores, corrections=first.corrections, shots=shots if shots > 1 else None
    )


def in_one_or_two(prune: Callable[[int], Rotated]) -> Rotated:
    """What is pruned in one shot or, where that loses what matters and two lose less, in two; prune: in so many."""
    one = prune(1)
    if not one.loses(MATTERS_NATS):
        return one
    try:
        two = prune(2)
    except BadInput:  # half of the way is out of reach with a head in every block
        return one
    if not two.rounds[two.best].measured < one.rounds[one.best].measured:
        return one
    return dataclasses.replace(two, scores=one.scores, corrections=one.corrections)


def _sha256(model: nn.Module) -> str:
    """Of all weights."""
    digest = hashlib.sha256()
    for weight in model.state_dict().values():
        digest.update(weight.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _estimated(
    family: Family, found: Rotated, scores: Scores, costs: Costs, budget: float, recipe: RotatedRecipe
) -> Rotated:
    """The plan within the budget, as estimates alone choose it, cut out of what was found before."""
    allocation = choose_widths(family.attention_sites(found.model), scores.losses, costs, budget, recipe.estimated)
    model, kept = cut(family, found.model, scores.bases, allocation)
    plan = _composed(family, found.model, scores, found.plan, kept, allocation)
    return Rotated(model, plan, found.damage + allocation.damage, allocation.cost)


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
    return Rotated(
        chosen.model, _composed(family, model, scores, plan, chosen.kept, chosen.allocation), chosen.round.estimated,
        chosen.allocation.cost, chosen.rounds, chosen.best, scores, chosen.corrections,
    )  # fmt: skip


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
