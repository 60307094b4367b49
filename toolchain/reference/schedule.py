"""Prune by a recipe: score, choose, cut and recover, in one shot or step by step."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from leanear.calibration.scores import (
    SiteScores,
    collect_curvature,
    curvature_from_tensors,
    curvature_tensors,
    score_fisher,
    score_magnitude,
)
from leanear.calibration.shards import keep_tensors, kept_tensors
from leanear.calibration.sites import AttentionSite
from leanear.data.examples import LabelledInputs
from leanear.families.family import Checkpoint, Family
from leanear.plan import Plan, SitePlan, SitesChoice, compose, read_plan, untouched
from leanear.progress import Report, quiet
from leanear.recover.lora import LoraRecovery, recover_
from leanear.reference.choose import ROUNDING, Scheme, Threshold, choose_share, choose_sparsity
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import sha256_json
from leanear.runtimes.process.interrupts import remember_kept
from leanear.runtimes.records import Positive, as_json, check

Score = Literal["fisher", "magnitude"]
Schedule = Literal["one-shot", "iterative"]
Recovery = Literal["none", "lora"]
SCORES: tuple[Score, ...] = ("fisher", "magnitude")

CURVATURE_FILE = "curvature.safetensors"


@dataclass(frozen=True)
class PruneRecipe:
    """How a model is pruned.

    sparsity: share of the attention blocks' parameters to remove, at least; scheme, score, threshold: the variant of
    arXiv 2509.26207; schedule: all at once, or `step` of what remains at a time, at most `max_steps` times, the last
    step of whatever size ends at `sparsity`; recovery: what follows every step; sites: which blocks are pruned, see
    `untouched`; calibration_clips: clips to score and recover on, at most; batch_size: clips whose mean loss is
    differentiated at once for the Fisher information; seed: of the clips' order and of recovery.
    """

    sparsity: float
    scheme: Scheme = "channels"
    score: Score = "fisher"
    threshold: Threshold = "local"
    schedule: Schedule = "one-shot"
    step: float = 0.1
    max_steps: Positive = 10
    recovery: Recovery = "none"
    recovery_options: LoraRecovery = field(default_factory=LoraRecovery)
    sites: SitesChoice = "all"
    calibration_clips: Positive = 256
    batch_size: Positive = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("sparsity", "step"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise BadInput(f"{name} is {getattr(self, name):g}; it must lie between 0 and 1")
        check(self, "recipe")


@dataclass(frozen=True)
class Pruned:
    """A pruned model, in eval mode, and the plan that it has carried out on the dense model."""

    model: nn.Module
    plan: Plan


def prune(
    family: Family,
    checkpoint: Checkpoint,
    calibration: LabelledInputs,
    recipe: PruneRecipe,
    *,
    made_from: Mapping[str, str] | None = None,
    state: Path | None = None,
    clips_at_once: int | None = None,
    recompute: bool = False,
    report: Report = quiet,
) -> Pruned:
    """A smaller model by the recipe; the checkpoint's own model is not changed.

    family: a module of `leanear.families`; checkpoint: what its `load_checkpoint` returned, dense; made_from: sha256
    by kind, written into the plan; state: a folder from which an interrupted run goes on, for the dense model's
    curvature and the last finished step of an iterative schedule; what is there of other inputs is not used, so
    made_from must name them; clips_at_once, recompute: save memory when scoring, see `collect_curvature`.

    Raises:
        BadInput: the model is slim already, or the sparsity cannot be reached by this scheme.
    """
    if state is not None and not made_from:
        raise ValueError("a state folder is of no use without made_from: it could be another model's")
    order = calibration_order(calibration, recipe)
    model = checkpoint.model
    plan = dataclasses.replace(family.dense_plan(model), recipe=as_json(recipe), made_from=dict(made_from or {}))
    check_sparsity(family, model, recipe)
    step, resumed = _last_finished_step(family, state, plan)
    if resumed is not None:
        model, plan = resumed.model, resumed.plan
        report(f"step {step} was finished before", None)
    while plan.sparsity < recipe.sparsity - ROUNDING:
        step += 1
        told = _about_step(report, step, recipe)
        scores = score(
            family, model, calibration, recipe.score, order=order, batch_size=recipe.batch_size,
            clips_at_once=clips_at_once, recompute=recompute, report=told, made_from=made_from,
            curvature_path=state / CURVATURE_FILE if state is not None and step == 1 else None,
        )  # fmt: skip
        kept = choose_step(plan, scores, recipe, step)
        model = family.slim_model(model, kept)
        plan = dataclasses.replace(plan, sites=compose(plan.sites, kept))
        if recipe.recovery == "lora":
            recover_(
                model, calibration.inputs, calibration.targets, family.batch_loss, recipe.recovery_options,
                order=order, seed=recipe.seed + step, report=told,
            )  # fmt: skip
        if state is not None and recipe.schedule == "iterative":
            _write_step(family, state, step, model, checkpoint, plan)
    return Pruned(model, plan)


def check_sparsity(family: Family, model: nn.Module, recipe: PruneRecipe) -> None:
    """See that the sparsity can be reached by this scheme, whatever the scores: before the long work of scoring.

    Raises:
        BadInput: the model is slim already, or one channel per head, or one head per block, is more than it leaves.
    """
    plan = family.dense_plan(model)
    scores = score_magnitude(family.attention_sites(model))
    choose_sparsity(plan, scores, recipe.scheme, recipe.threshold, recipe.sparsity, untouched(plan.sites, recipe.sites))


def calibration_order(calibration: LabelledInputs, recipe: PruneRecipe) -> torch.Tensor:
    """Which clips the recipe scores and recovers on, int64: shuffled and balanced, at most its number."""
    return calibration.balanced_order(recipe.seed, recipe.calibration_clips)


def score(
    family: Family,
    model: nn.Module,
    clips: LabelledInputs,
    kind: Score,
    *,
    order: torch.Tensor | None = None,
    batch_size: int = 16,
    clips_at_once: int | None = None,
    recompute: bool = False,
    report: Report = quiet,
    made_from: Mapping[str, str] | None = None,
    curvature_path: Path | None = None,
) -> tuple[SiteScores, ...]:
    """Scores of every attention block of the model, by magnitude or by Fisher information on the clips.

    order, batch_size, clips_at_once: as in `collect_curvature`; recompute: keep no activations of the encoder layers;
    curvature_path: where the Fisher information's sums are written, and read if they are there and of these inputs.
    """
    sites: tuple[AttentionSite, ...] = family.attention_sites(model)
    if kind == "magnitude":
        return score_magnitude(sites)
    order = torch.arange(len(clips)) if order is None else order
    made_from = {**(made_from or {}), "order": sha256_json([batch_size, order.tolist()])}
    kept = None if curvature_path is None else kept_tensors(curvature_path, made_from)
    if kept is not None:
        return score_fisher(sites, curvature_from_tensors(kept))
    curvature = collect_curvature(
        model,
        sites,
        clips.inputs,
        clips.targets,
        family.batch_loss,
        order=order,
        batch_size=batch_size,
        clips_at_once=clips_at_once,
        recomputed_layers=family.encoder_layers(model) if recompute else (),
        progress=lambda done, total: report(f"scored {done}/{total} clips", done / total),
    )
    if curvature_path is not None:
        keep_tensors(curvature_path, curvature_tensors(curvature), made_from)
    return score_fisher(sites, curvature)


def choose_step(plan: Plan, scores: Sequence[SiteScores], recipe: PruneRecipe, step: int) -> tuple[SitePlan, ...]:
    """What step number `step` keeps of the model that `plan` describes.

    A full step of the iterative schedule, unless it would pass the recipe's sparsity or is the last that is allowed:
    then, and in one shot, what just reaches that sparsity.
    """
    whole = untouched(plan.sites, recipe.sites)
    if recipe.schedule == "iterative" and step < recipe.max_steps:
        names = [site.name for site in plan.sites]
        kept = choose_share(names, scores, recipe.scheme, recipe.threshold, recipe.step, whole)
        after = dataclasses.replace(plan, sites=compose(plan.sites, kept))
        if plan.sparsity < after.sparsity < recipe.sparsity:
            return kept
    return choose_sparsity(plan, scores, recipe.scheme, recipe.threshold, recipe.sparsity, whole)


def _about_step(report: Report, step: int, recipe: PruneRecipe) -> Report:
    if recipe.schedule == "one-shot":
        return report

    def about_step(text: str, fraction: float | None = None) -> None:
        report(f"step {step}, {text}", (step - 1 + (fraction or 0.0)) / recipe.max_steps)

    return about_step


def _step_folder(state: Path, step: int) -> Path:
    return state / f"step-{step:02d}"


def _write_step(family: Family, state: Path, step: int, model: nn.Module, checkpoint: Checkpoint, plan: Plan) -> None:
    """Keep the step as a slim checkpoint; the step before it is not needed any more."""
    family.save_slim_checkpoint(model, checkpoint, plan, _step_folder(state, step))
    remember_kept(_step_folder(state, step))
    if _step_folder(state, step - 1).is_dir():
        shutil.rmtree(_step_folder(state, step - 1))


def _last_finished_step(family: Family, state: Path | None, plan: Plan) -> tuple[int, Pruned | None]:
    """The newest step in `state` that was made by the same recipe from the same inputs, or step 0."""
    folders = sorted(state.glob("step-*"), reverse=True) if state is not None and state.is_dir() else []
    for folder in folders:
        try:
            finished = read_plan(folder / "plan.json")
            if (finished.recipe, finished.made_from) == (plan.recipe, plan.made_from):
                remember_kept(folder)
                return int(folder.name.removeprefix("step-")), Pruned(family.load_checkpoint(folder).model, finished)
        except BadInput:
            continue  # not a step of ours, or damaged: the step is done again
    return 0, None
