"""From a dense checkpoint and calibration clips to a slim checkpoint folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from leanear.accelerator import on_accelerator
from leanear.benchmarks.formatting import PRUNED_PARTS
from leanear.calibration import shards
from leanear.data.clips import read_examples_for
from leanear.data.dataset import Data, column_for
from leanear.data.examples import LabelledInputs
from leanear.data.held_out import HeldOut, divided
from leanear.data.splits import read_splits
from leanear.evaluate.evaluation import data_folder
from leanear.evaluate.measured_loss import Judge
from leanear.families.asked import Asked
from leanear.families.checkpoint import NOTHING_ASKED, checkpoint_folder, checkpoint_sha256, load_checkpoint
from leanear.families.checkpoint_files import PRUNING_FILE
from leanear.families.family import Checkpoint, Family
from leanear.families.registry import family_of
from leanear.families.tasks import labels_of, task_of
from leanear.outputs import check_replaceable
from leanear.plan import Plan, Prune, plan_sha256
from leanear.progress import Narrator, Report, counted, in_parts
from leanear.prune.closed_loop import Corrections
from leanear.prune.costs import Costs, latency_costs, mac_costs, parameter_costs
from leanear.prune.curve import estimated_curve, loss_begins_at
from leanear.prune.goal import Goal
from leanear.prune.latency_goal import prune_to_latency, refuse_out_of_reach
from leanear.prune.notes import PRUNING_SCHEMA
from leanear.prune.padding import unfilled_blocks, without_filled
from leanear.prune.rotated import Rotated, best_compensated, prune_rotated
from leanear.prune.scoring import BASIS_FOLDER, LOSSES_FOLDER, SCORES_FILE
from leanear.prune.search import search_sparsity
from leanear.prune.widths import RotatedRecipe, check_budget
from leanear.recover.compensation import Compensated, compensate_, fitted_sites
from leanear.recover.distillation import Distillation, distill_
from leanear.reference.schedule import PruneRecipe, check_sparsity, prune
from leanear.runtimes.clips import Clips as Audio
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_json, sha256_json
from leanear.targets.target import FORM_COLUMNS, Target, check_one_width
from leanear.timing.block_timing import BUSY_SHARE
from leanear.timing.latency_table import Table
from leanear.timing.model_timing import ModelTiming, timing_of
from leanear.timing.speech_work import SpeechWork

RECOMPUTE_ABOVE_BYTES = 64 * 1024**2


@dataclass(frozen=True)
class PruneJob:
    """All that says how a checkpoint is pruned: the goal, the recipe of either method, and what follows.

    compensation: fit the output projections to the dense model's, where held-out clips say that it helps; recovery:
    train by distillation at the end; target: for whose device milliseconds are meant; asked: of a Whisper, what it is
    calibrated for and does by itself from then on; work: of a Whisper, what takes the milliseconds of such a goal;
    recipe_file: what a recipe file sets, as a report quotes it. The reference's recipe holds its own recovery, and its
    only goal is a sparsity.
    """

    goal: Goal
    recipe: RotatedRecipe | PruneRecipe
    target: Target
    compensation: bool = False
    recovery: Distillation | None = None
    asked: Asked = NOTHING_ASKED
    work: SpeechWork | None = None
    recipe_file: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.recipe, PruneRecipe) and (
            self.goal.kind != "sparsity" or self.compensation or self.recovery
        ):
            raise BadInput("method reference knows a sparsity alone as its goal, and recovery lora")
        if self.one_width_per_head:
            check_one_width(self.target, f"target {self.target.name}")

    @property
    def prune(self) -> Prune:
        """What becomes smaller."""
        return self.recipe.prune if isinstance(self.recipe, RotatedRecipe) else "attention"

    @property
    def text(self) -> str:
        """The goal in a few words, with what becomes smaller where that is not attention alone."""
        if self.prune == "attention":
            return self.goal.text
        parts = PRUNED_PARTS[self.prune]
        if self.goal.kind == "sparsity":
            return f"{100 * self.goal.value:g} % of the {parts} parameters removed"
        return f"{self.goal.text}, {parts} pruned"

    @property
    def calibration_clips(self) -> int:
        """Clips that are read to calibrate on, at most."""
        return self.recipe.calibration_clips

    @property
    def one_width_per_head(self) -> bool:
        """Whether query/key and value/output width of every head are one."""
        return isinstance(self.recipe, RotatedRecipe) and self.recipe.one_width_per_head

    @property
    def filled_by(self) -> str | None:
        """The form of the graph in which no head may be filled up to the width of others, None where any may."""
        return self.target.graph_form if self.one_width_per_head and self.target.graph_form in FORM_COLUMNS else None

    def as_json(self) -> dict[str, Any]:
        """The job as plan.json holds it, on one level; of the target only what the plan depends on."""
        facts = {
            "method": "reference" if isinstance(self.recipe, PruneRecipe) else "rotated",
            "goal": self.text,
            **dataclasses.asdict(self.recipe),
            "compensation": self.compensation,
            "distillation": self.recovery is not None,
            **self.asked.as_json(),
        }
        if self.filled_by is not None:
            facts["not_filled_up_by"] = self.filled_by
        if self.goal.kind == "macs":
            facts["macs_of_form"] = self.target.graph_form
        if self.recovery is not None:
            facts |= {f"distillation_{key}": value for key, value in dataclasses.asdict(self.recovery).items()}
        if self.goal.needs_latency:
            facts |= {f"target_{key}": value for key, value in dataclasses.asdict(self.target).items()}
            if self.work is not None:
                facts |= {f"work_{key}": value for key, value in dataclasses.asdict(self.work).items()}
        return json.loads(json.dumps(facts))


def prune_checkpoint(
    model: str, *, data: Data | None, job: PruneJob, out: Path, narrator: Narrator, scores: Path | None = None
) -> dict[str, Any]:
    """Prune MODEL on the calibration clips of DATA and write the slim checkpoint to `out`; the numbers, by stable keys.

    scores: a folder in which the clips' scores stay, so that another goal takes them from there; by default they go.
    Under `torchrun` the processes share the scoring and the training; the first one writes.

    Raises:
        LeanearError: the model or the data is not usable, or `out` holds something that is no slim checkpoint.
    """
    check_replaceable(out, "plan.json")
    if scores is not None:
        check_scores_folder(scores, out)
    source, audio = checkpoint_folder(model), data_folder(model, data)
    task = task_of(source)
    splits = read_splits(audio, job.calibration_clips, job.recipe.seed, column_for(task), labels=labels_of(source))
    checkpoint = open_reachable(source, job, narrator)
    with narrator.step(f"reading {len(splits.calibration)} calibration clips") as report:
        extractor = checkpoint.feature_extractor
        window = family_of(checkpoint).window_samples(extractor)
        clips = read_examples_for(
            task, splits.calibration, checkpoint.labels, extractor.sampling_rate, counted(report), window_samples=window
        )
    made_from = {
        "checkpoint": checkpoint_sha256(source),
        "calibration": clips_sha256(clips),
        **job.asked.as_json(),
    }
    with narrator.step(f"pruning: {job.text}") as report:
        state = scores or out.parent / f".{out.name}.state"
        plan = write_slim_checkpoint(checkpoint, clips, job, made_from, out, state, report)
        if shards.rank() == 0 and scores is None:
            shutil.rmtree(state, ignore_errors=True)
    dense = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    return {
        "schema": "leanear-prune-1",
        "model": model,
        "out": str(out),
        "sparsity": plan.sparsity,
        "sparsity_by_kind": {kind: share.sparsity for kind, share in plan.shares.items()},
        "attention_parameters_dense": plan.attention_parameters_dense,
        "attention_parameters": plan.attention_parameters_kept,
        "parameters_dense": dense,
        "feed_forward_parameters_dense": plan.feed_forward_parameters_dense,
        "feed_forward_parameters": plan.feed_forward_parameters_kept,
        "prune": plan.prune,
        "parameters": dense - plan.parameters_removed,
        "calibration_clips": len(clips),
        "checkpoint_sha256": checkpoint_sha256(out),
        "pruning": read_pruning(out),
    }


def check_scores_folder(scores: Path, out: Path) -> None:
    """See that scores can be kept in `scores`: a folder of such, an empty one, or none yet.

    Raises:
        BadInput: it holds something else, or is where the checkpoint goes.
    """
    if scores.resolve() == out.resolve():
        raise BadInput(f"--keep-scores {scores}: the checkpoint goes there; name another folder")
    if scores.exists() and not scores.is_dir():
        raise BadInput(f"--keep-scores {scores}: not a folder")
    known = {SCORES_FILE, BASIS_FOLDER, LOSSES_FOLDER, "search", "recovery"}
    strange = sorted(each.name for each in scores.iterdir() if each.name not in known) if scores.is_dir() else []
    if strange:
        raise BadInput(
            f"--keep-scores {scores}: holds {strange[0]}, which is no part of kept scores; name another folder"
        )


def open_reachable(source: Path, job: PruneJob, narrator: Narrator) -> Any:
    """The checkpoint in `source`, of which some model meets the job's goal as far as arithmetic or one timing tell.

    Raises:
        LeanearError: the checkpoint is not usable, or no model meets the goal.
    """
    with narrator.step("reading the checkpoint"):
        checkpoint = load_checkpoint(source, job.asked)
    check_feed_forward(job)
    check_reachable(checkpoint, job)
    if job.goal.needs_latency:
        with narrator.step(f"whether {job.goal.text} can be reached", if_reported=True) as report:
            timing = timing_of(checkpoint, job.target, job.work)
            refuse_out_of_reach(checkpoint, job.goal, job.target, cast(RotatedRecipe, job.recipe), timing, report)
    return checkpoint


def read_pruning(folder: Path) -> dict[str, Any] | None:
    """What pruning.json in a slim checkpoint folder tells of goal, cost, search and recovery; None if there is none."""
    path = folder / PRUNING_FILE
    return read_json(path, PRUNING_SCHEMA, ("goal", "method")) if path.is_file() else None


def clips_sha256(clips: Audio) -> str:
    """Hex sha256 over the clips' samples and labels or transcripts."""
    samples = hashlib.sha256()
    for waveform in clips.waveforms:
        samples.update(np.ascontiguousarray(waveform).tobytes())
    lengths = [len(waveform) for waveform in clips.waveforms]
    answers: list[Any] = [clips.label_ids.tolist(), list(clips.labels)]
    if clips.texts is not None:
        answers.append(list(clips.texts))
    if clips.tags is not None:
        answers.append(hashlib.sha256(np.packbits(clips.tags).tobytes()).hexdigest())
    return sha256_json([samples.hexdigest(), lengths, *answers])


def write_slim_checkpoint(
    checkpoint: Checkpoint,
    audio: Audio,
    job: PruneJob,
    made_from: dict[str, str],
    out: Path,
    state: Path,
    report: Report,
) -> Plan:
    """Prune the checkpoint on `audio`, write the slim folder `out`, and give back its plan.

    state: a folder for the dense model's bases or curvature and the last finished step, from which an interrupted run,
    or a later one with another goal, goes on.

    Raises:
        BadInput: the clips do not suit the model, or the goal cannot be reached.
    """
    family = family_of(checkpoint)
    check_reachable(checkpoint, job)
    part = in_parts(report, {"inputs": 1, "pruning": 18, "finished": 1})
    labelled = family.labelled_inputs(checkpoint, audio, part("inputs"))
    spare_memory = family.activation_bytes(checkpoint.model, labelled.inputs) > RECOMPUTE_ABOVE_BYTES
    clips_at_once = 1 if spare_memory else None
    every = labelled[labelled.balanced_order(job.recipe.seed, job.calibration_clips)]
    scored, held_out = divided(every)
    judge = Judge(family, checkpoint, HeldOut(checkpoint.model, held_out, family.logits))
    facts: dict[str, Any] = {"method": "reference", "loss": {}}
    if isinstance(job.recipe, PruneRecipe):
        pruned = prune(
            family, checkpoint, scored, job.recipe, made_from=made_from, state=state,
            clips_at_once=clips_at_once, recompute=spare_memory, report=part("pruning"),
        )  # fmt: skip
        model, plan = pruned.model, pruned.plan
    else:
        try:
            model, plan, facts = _prune_rotated(
                checkpoint, judge, every, job, made_from, state, clips_at_once, part("pruning")
            )
        except BadInput as error:
            raise BadInput(f"{job.goal.flag} {job.goal.value:g}: {error}") from None
    part("finished")("measuring the finished model on held-out clips", None)
    with on_accelerator(model, checkpoint.model):
        facts["loss"]["finished"] = judge.loss(model).as_json()
    loss = facts["loss"]
    measured = loss["rounds"][loss["best"]]["measured"] if loss.get("rounds") else None  # before anything was fitted
    told = {"estimated": loss.get("estimated"), "measured": measured, "finished": loss["finished"]["divergence"]}
    plan = dataclasses.replace(plan, recipe={**job.as_json(), "loss_nats_per_target": told})
    if shards.rank() == 0:
        facts = {
            "schema": PRUNING_SCHEMA,
            "metric": checkpoint.metric,
            "goal": dataclasses.asdict(job.goal),
            "prune": plan.prune,
            "sparsity": plan.sparsity,
            "by_kind": {kind: share.sparsity for kind, share in plan.shares.items()},
            **({"feed_forward_by_kind": _removed_of(plan)} if plan.prune != "attention" else {}),
            **facts,
        }
        family.save_slim_checkpoint(model, checkpoint, plan, out, facts)
    shards.wait()
    return plan


def check_feed_forward(job: PruneJob) -> None:
    """See that the goal is one for what is pruned.

    Raises:
        BadInput: milliseconds are asked for of feed-forward blocks, whose widths no device is timed at.
    """
    if job.goal.needs_latency and job.prune != "attention":
        raise BadInput(
            f"{job.goal.flag} {job.goal.value:g}: latency goals are for attention in this version; with --prune"
            f" {job.prune} the goals are --sparsity, --macs and --max-drop"
        )


def check_reachable(checkpoint: Checkpoint, job: PruneJob) -> None:
    """See that some model meets a goal of parameters or MACs, before any clip is read.

    Raises:
        BadInput: none does.
    """
    family = family_of(checkpoint)
    if isinstance(job.recipe, PruneRecipe):
        check_sparsity(family, checkpoint.model, job.recipe)
        return
    if job.goal.kind not in ("sparsity", "macs"):
        return
    costs, budget = _costs_and_budget(family, checkpoint, job)
    try:
        check_budget(family.attention_sites(checkpoint.model), costs, budget, job.recipe)
    except BadInput as error:
        raise BadInput(f"{job.goal.flag} {job.goal.value:g}: {error}") from None


def _prune_rotated(
    checkpoint: Checkpoint,
    judge: Judge,
    every: LabelledInputs,
    job: PruneJob,
    made_from: dict[str, str],
    state: Path,
    clips_at_once: int | None,
    report: Report,
) -> tuple[torch.nn.Module, Plan, dict[str, Any]]:
    """The slim model, its plan, and what pruning.json tells of how they came about.

    every: all clips, of which those of the judge are the last; they are kept out of scoring and of what is fitted. The
    search alone, which holds clips out by itself, sees all.
    """
    family, recipe = family_of(checkpoint), cast(RotatedRecipe, job.recipe)
    clips, _ = divided(every)
    facts: dict[str, Any] = {
        "method": "rotated",
        "widths": {
            "multiples": list(recipe.multiples),
            "one_per_head": recipe.one_width_per_head,
            "not_filled_up_by": job.filled_by,
        },
    }
    part = in_parts(report, _shares(job))
    learned: list[Corrections] = []  # by earlier calls: of the same scores for another budget

    def prune_to(costs: Costs, budget: float) -> Rotated:
        with on_accelerator(checkpoint.model):
            pruned = prune_rotated(
                family, checkpoint.model, clips, costs, budget, recipe, held_out=judge.held_out,
                corrections=learned[-1] if learned else None,
                made_from=made_from, state=state, clips_at_once=clips_at_once, report=part("pruning"),
            )  # fmt: skip
        for each in (pruned, *pruned.others):
            each.model.to("cpu")
        if pruned.corrections is not None:
            learned.append(pruned.corrections)
        return pruned

    parameters = _as_held(parameter_costs(_dense_plan(family, checkpoint, job)), family, checkpoint.model, job)
    if job.goal.needs_latency:
        timing = timing_of(checkpoint, job.target, job.work)
        table = _shared_table(timing, part("goal"))
        costs = latency_costs(table)
        try:
            pruned, checks = prune_to_latency(job.goal, costs, lambda ms: prune_to(costs, ms), timing, part("pruning"))
        except BadInput as error:
            raise BadInput(f"{error}{_doubts(table)}") from None
        pruned = dataclasses.replace(pruned, others=())  # what was timed is the model
        budget = checks[-1].budget_ms
        facts["latency_checks"] = [dataclasses.asdict(check) for check in checks]
        facts["timed"] = timing.told()
    elif job.goal.kind == "max_drop":
        costs = parameters
        search = search_sparsity(
            family, checkpoint, every, costs, recipe, job.goal.value,
            made_from=made_from, state=state / "search", clips_at_once=clips_at_once, report=part("goal"),
        )  # fmt: skip
        budget = (1 - search.sparsity) * costs.dense
        facts["search"] = [dataclasses.asdict(trial) for trial in search.trials]
        pruned = prune_to(costs, budget)
    else:
        costs, budget = _costs_and_budget(family, checkpoint, job)
        costs = _as_held(costs, family, checkpoint.model, job)
        pruned = prune_to(costs, budget)

    def compensate(slim: torch.nn.Module) -> Compensated:
        with on_accelerator(slim, checkpoint.model):
            return compensate_(
                slim, checkpoint.model, *fitted_sites(family, slim, checkpoint.model),
                clips, judge.held_out.clips, family.logits, batch_size=clips_at_once or 16, report=part("compensation"),
            )  # fmt: skip

    if job.compensation:
        pruned, compensated = best_compensated(pruned, compensate)
        facts["compensation"] = dataclasses.asdict(compensated)
    facts["cost"] = {"unit": costs.unit, "dense": costs.dense, "budget": budget, "slim": pruned.cost}
    facts["loss"] = {"estimated": pruned.damage, **_rounds_told(pruned)}
    if pruned.scores is not None and pruned.corrections is not None:
        curve = (family, checkpoint.model, pruned.scores, pruned.corrections, parameters, recipe)
        facts["loss"]["curve"] = [estimate.as_json() for estimate in estimated_curve(*curve)]
        facts["loss"]["begins_at"] = loss_begins_at(*curve)
    slim = pruned.model
    if job.recovery is not None:
        made = {**made_from, "job": sha256_json(job.as_json()), "plan": plan_sha256(pruned.plan)}
        distilled = distill_(
            slim, checkpoint.model, clips, judge.held_out.clips, family.logits, job.recovery,
            layers=family.encoder_layers, decoder_layers=family.decoder_layers, seed=recipe.seed,
            state=state / "recovery", made_from=made, report=part("recovery"),
        )  # fmt: skip
        facts["recovery"] = dataclasses.asdict(distilled)
    return slim, pruned.plan, facts


def _shares(job: PruneJob) -> dict[str, float]:
    """What parts of pruning take of its time, roughly: a table of milliseconds or a search, then what it leads to."""
    goal = 4 if job.goal.kind == "max_drop" else 2 if job.goal.needs_latency else 0
    return {"goal": goal, "pruning": 4, "compensation": job.compensation, "recovery": 6 * (job.recovery is not None)}


def _removed_of(plan: Plan) -> dict[str, float]:
    """The share of the feed-forward channels that is gone, by kind of block."""
    shares: dict[str, float] = {}
    for kind in dict.fromkeys(block.kind for block in plan.feed_forward):
        blocks = [block for block in plan.feed_forward if block.kind == kind]
        shares[kind] = 1 - sum(len(b.channels) for b in blocks) / sum(b.dense_width for b in blocks)
    return shares


def _rounds_told(pruned: Rotated) -> dict[str, Any]:
    """What was estimated and measured, whole and by block, round by round, before anything was fitted."""
    if not pruned.rounds:
        return {}
    return {"rounds": [dataclasses.asdict(each) for each in pruned.rounds], "best": pruned.best}


def _dense_plan(family: Family, checkpoint: Checkpoint, job: PruneJob) -> Plan:
    """The plan that keeps everything, of what the job prunes."""
    return dataclasses.replace(family.dense_plan(checkpoint.model), prune=cast(RotatedRecipe, job.recipe).prune)


def _costs_and_budget(family: Family, checkpoint: Checkpoint, job: PruneJob) -> tuple[Costs, float]:
    """Parameters, or MACs of the target's form of graph, and what the whole model may have of them."""
    model, plan, goal, form = checkpoint.model, _dense_plan(family, checkpoint, job), job.goal, job.target.graph_form
    if goal.kind == "sparsity":
        costs = parameter_costs(plan)
        return costs, (1 - goal.value) * costs.dense
    channels = family.feed_forward_macs(model)
    costs = mac_costs(plan, family.head_macs(model, form), family.model_macs(model, form), channels)
    return costs, goal.value * costs.dense


def _as_held(costs: Costs, family: Family, model: Any, job: PruneJob) -> Costs:
    """The costs of blocks as the target's graph holds them: without those that it would fill up, if the job says so."""
    return costs if job.filled_by is None else without_filled(costs, unfilled_blocks(family, model, job.filled_by))


def _doubts(table: Table) -> str:
    if table.others_share <= BUSY_SHARE:
        return ""
    return f"; but other programs used {table.others_share:.0%} of the CPU while it was timed: try on an idle machine"


def _shared_table(timing: ModelTiming, report: Report) -> Table:
    """The target's latency table; the first process times the device, and the others read what it has kept."""
    if shards.rank() != 0:
        shards.wait()
    table = timing.table(shards.world_size() > 1, report)
    if shards.rank() == 0:
        shards.wait()
    return table
