"""Pruning in a new basis, from clips to a slim model: to the goal, compensated where it helps, recovered if asked."""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from leanear.accelerator import on_accelerator
from leanear.benchmarks.analysis import disturbed
from leanear.calibration import shards
from leanear.data.examples import LabelledInputs
from leanear.evaluate.measured_loss import Judge
from leanear.families.checkpoint import load_checkpoint
from leanear.families.family import Checkpoint, Family
from leanear.families.registry import family_of
from leanear.outputs import record_stage, stage_is_done
from leanear.plan import Plan, Prune, plan_sha256, read_plan
from leanear.progress import Report, in_parts
from leanear.prune.closed_loop import Corrections
from leanear.prune.costs import Costs, latency_costs, parameter_costs
from leanear.prune.curve import estimated_curve, loss_begins_at
from leanear.prune.document import Cost, CurvePoint, Loss, PruningDocument, Widths
from leanear.prune.job import PruneJob, as_held, costs_and_budget, dense_plan
from leanear.prune.latency_goal import prune_to_latency
from leanear.prune.rotated import FITS_ALL_NATS, ClosedLoop, Rotated, in_one_or_two, prune_rotated
from leanear.prune.search import search_sparsity
from leanear.prune.widths import RotatedRecipe
from leanear.recover.compensation import Compensated, compensate_
from leanear.recover.distillation import distill_
from leanear.recover.kept_training import Distilled
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_object, sha256_json, write_json
from leanear.runtimes.records import as_json, read_fields
from leanear.timing.model_timing import ModelTiming, Tables, tables_of, timing_of

STAGE, BEFORE_RECOVERY = "pruned", "recovery/pruned"  # and where it is kept until then


@dataclass(frozen=True)
class Pruning:
    """What the stages of one pruning share.

    clips: those that are scored and fitted to; every: these and, at the end, those of the judge, which only the search
    sees, as it holds clips out by itself; made_from: sha256 by kind; state: a folder from which an interrupted run, or
    one with another goal, goes on; clips_at_once: how many clips are in memory together.
    """

    checkpoint: Checkpoint
    judge: Judge
    clips: LabelledInputs
    every: LabelledInputs
    job: PruneJob
    made_from: dict[str, str]
    state: Path
    clips_at_once: int | None
    report: Report

    @property
    def family(self) -> Family:
        """The checkpoint's."""
        return family_of(self.checkpoint)

    def part(self, name: str) -> Report:
        """The report of a part of the work, by its share of the time, roughly; goal: a latency table, or a search."""
        job = self.job
        goal = 4 if job.goal.kind == "max_drop" else 2 if job.goal.needs_latency else 0
        rest = {"compensation": 2 * int(job.compensation), "recovery": 6 if job.recovery is not None else 0}
        return in_parts(self.report, {"goal": goal, "pruning": 4, **rest})(name)

    @property
    def recipe(self) -> RotatedRecipe:
        """How widths are scored and chosen."""
        return cast(RotatedRecipe, self.job.recipe)


@dataclass(frozen=True)
class _Reached:
    """The model that meets the goal, in what costs and within what budget, and the fields of pruning.json on it."""

    pruned: Rotated
    costs: Costs
    budget: float
    facts: dict[str, Any]


class _Pruner:
    """Prunes to one budget after another: what a call learns of the same scores serves the next."""

    def __init__(self, work: Pruning) -> None:
        self._work = work
        self._learned: Corrections | None = None

    def in_one_or_two(self, costs: Costs, budget: float) -> Rotated:
        """The same, in as many shots as the recipe says or as are needed."""
        report = self._work.part("pruning")
        if self._work.recipe.shots is not None or not self._work.job.compensation:
            return self.to(costs, budget, report)
        tries = in_parts(report, {"1": 4, "2": 1})  # the second is seldom needed
        return in_one_or_two(lambda shots: self.to(costs, budget, tries(str(shots)), shots))

    def to(self, costs: Costs, budget: float, report: Report, shots: int | None = None) -> Rotated:
        """The model within `budget`, in memory of the CPU."""
        work, recipe = self._work, dataclasses.replace(self._work.recipe, shots=shots or self._work.recipe.shots)
        compensate = functools.partial(_compensate, work, False) if work.job.compensation else None
        # what was learned of so small a model says little of one half way
        loop = ClosedLoop(work.judge.held_out, self._learned if (shots or 1) == 1 else None, compensate)
        with on_accelerator(work.checkpoint.model):
            pruned = prune_rotated(
                work.family, work.checkpoint.model, work.clips, costs, budget, recipe,
                loop=loop, made_from=work.made_from, state=work.state, clips_at_once=work.clips_at_once,
                report=report,
            )  # fmt: skip
        pruned.model.to("cpu")
        if pruned.corrections is not None:
            self._learned = pruned.corrections
        return pruned


def prune_in_stages(work: Pruning) -> tuple[nn.Module, Plan, dict[str, Any]]:
    """The slim model, its plan, and the fields of pruning.json that tell how they came about.

    Raises:
        BadInput: the goal cannot be reached.
    """
    if work.job.recovery is None:
        return _pruned(work)
    model, plan, facts = _kept_or_pruned(work)
    return model, plan, {**facts, "recovery": _recover(work, model, plan)}


def _pruned(work: Pruning) -> tuple[nn.Module, Plan, dict[str, Any]]:
    """The same before recovery."""
    parameters = parameter_costs(dense_plan(work.family, work.checkpoint, work.job))
    parameters = as_held(parameters, work.family, work.checkpoint.model, work.job.filled_by)
    reached = _prune_to_goal(work, parameters)
    widths = Widths(work.recipe.multiples, work.recipe.one_width_per_head, work.job.filled_by)
    pruned, facts = reached.pruned, {"method": "rotated", "widths": widths, **reached.facts}
    if work.job.compensation:
        facts["compensation"] = _compensate(work, pruned.loses(FITS_ALL_NATS), pruned.model, work.part("compensation"))
    facts["cost"] = Cost(reached.costs.unit, reached.costs.dense, reached.budget, pruned.cost)
    facts["loss"] = _loss_told(work, pruned, parameters)
    return pruned.model, pruned.plan, facts


def _kept_or_pruned(work: Pruning) -> tuple[nn.Module, Plan, dict[str, Any]]:
    """The same, of one process by way of a folder, from which an interrupted recovery begins to the same bytes."""
    folder, made_from = work.state / BEFORE_RECOVERY, {**work.made_from, "job": work.job.as_json()}
    facts_file = folder / "facts.json"
    if shards.world_size() > 1:
        return _pruned(work)
    if not stage_is_done(folder, STAGE, made_from):
        model, plan, facts = _pruned(work)
        work.family.save_slim_checkpoint(model, work.checkpoint, plan, folder)
        write_json(facts_file, as_json(facts))
        record_stage(folder, STAGE, made_from, [path for path in folder.iterdir() if path.is_file()])
    facts = read_object(facts_file)
    loss = read_fields(Loss, facts.pop("loss"), facts_file)
    facts = {**read_fields(PruningDocument, facts, facts_file), "loss": loss}
    return load_checkpoint(folder).model, read_plan(folder / "plan.json"), facts


def _prune_to_goal(work: Pruning, parameters: Costs) -> _Reached:
    if work.job.goal.needs_latency:
        return _prune_to_latency(work)
    if work.job.goal.kind == "max_drop":
        return _prune_to_drop(work, parameters)
    costs, budget = costs_and_budget(work.family, work.checkpoint, work.job)
    costs = as_held(costs, work.family, work.checkpoint.model, work.job.filled_by)
    return _Reached(_Pruner(work).in_one_or_two(costs, budget), costs, budget, {})


def _prune_to_latency(work: Pruning) -> _Reached:
    timing = timing_of(work.checkpoint, work.job.target, work.job.work)
    tables, model = _shared_tables(timing, work.recipe.prune, work.part("goal")), work.checkpoint.model
    costs = latency_costs(tables, work.family.attention_sites(model), work.family.feed_forward_sites(model))
    pruner = _Pruner(work)
    try:
        pruned, checks = prune_to_latency(
            work.job.goal, costs, lambda ms: pruner.to(costs, ms, work.part("pruning")), timing, work.part("pruning")
        )
    except BadInput as error:
        doubt = disturbed(0.0, tables.others_share, "while it was timed")
        raise BadInput(f"{error}; but {doubt}: try on an idle machine" if doubt else str(error)) from None
    facts = {"latency_checks": checks, "timed": timing.told()}
    return _Reached(pruned, costs, checks[-1].budget_ms, facts)


def _prune_to_drop(work: Pruning, costs: Costs) -> _Reached:
    search = search_sparsity(
        work.family, work.checkpoint, work.every, costs, work.recipe, work.job.goal.value,
        made_from=work.made_from, state=work.state / "search", clips_at_once=work.clips_at_once,
        report=work.part("goal"),
    )  # fmt: skip
    budget = (1 - search.sparsity) * costs.dense
    return _Reached(_Pruner(work).in_one_or_two(costs, budget), costs, budget, {"search": search.trials})


def _compensate(work: Pruning, every_block: bool, slim: nn.Module, report: Report) -> Compensated:
    dense = work.checkpoint.model
    with on_accelerator(slim, dense):
        return compensate_(
            work.family, slim, dense, work.clips, work.judge.held_out.clips, every_block=every_block,
            encoder_alone=work.recipe.sites == "encoder", batch_size=work.clips_at_once or 16, report=report,
        )  # fmt: skip


def _recover(work: Pruning, model: nn.Module, plan: Plan) -> Distilled:
    """Train the pruned model in place; what the training did."""
    assert work.job.recovery is not None
    made = {**work.made_from, "job": sha256_json(work.job.as_json()), "plan": plan_sha256(plan)}
    return distill_(
        model, work.checkpoint.model, work.clips, work.judge.held_out.clips, work.family.logits,
        work.job.recovery, layers=work.family.encoder_layers, decoder_layers=work.family.decoder_layers,
        seed=work.recipe.seed, state=work.state / "recovery", made_from=made, report=work.part("recovery"),
    )  # fmt: skip


def _loss_told(work: Pruning, pruned: Rotated, parameters: Costs) -> dict[str, Any]:
    """What was estimated, and measured round by round before anything was fitted; the curve of other budgets."""
    loss: dict[str, Any] = {"estimated": pruned.damage, "rounds": pruned.rounds, "best": pruned.best}
    loss["shots"] = pruned.shots
    if pruned.scores is not None and pruned.corrections is not None:
        model = work.checkpoint.model
        curve = (work.family, model, pruned.scores, pruned.corrections, parameters, work.recipe)
        loss["curve"] = tuple(CurvePoint(each.sparsity, each.loss) for each in estimated_curve(*curve))
        loss["begins_at"] = loss_begins_at(functools.partial(estimated_curve, *curve))
    return loss


def _shared_tables(timing: ModelTiming, prune: Prune, report: Report) -> Tables:
    """The target's latency tables; the first process times the device, and the others read what it has kept."""
    if shards.rank() != 0:
        shards.wait()
    tables = tables_of(timing, prune, shards.world_size() > 1, report)
    if shards.rank() == 0:
        shards.wait()
    return tables
