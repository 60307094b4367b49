"""The method's eight variants on one model, side by side: what each removes and what that costs in accuracy."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.summary import wilson_interval
from calibration.scores import SiteScores
from runtimes.errors import BadInput
from runtimes.files import sha256_json, write_text
from toolchain.choose import SCHEMES, THRESHOLDS
from toolchain.narration import Report, quiet
from toolchain.plan import Plan, compose
from toolchain.recovery import LoraRecovery
from toolchain.schedule import SCORES, LabelledInputs, PruneRecipe, calibration_order, choose_step, prune, score


@dataclass(frozen=True)
class Quality:
    """How well a model does on the evaluation clips.

    accuracy, accuracy_low, accuracy_high: share right and its 95 % Wilson interval; cross_entropy: mean, nats;
    kl_divergence: mean over clips of KL(dense || this model), nats.
    """

    clips: int
    correct: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    cross_entropy: float
    kl_divergence: float


@dataclass(frozen=True)
class VariantRow:
    """One line of the table; of the dense model if `recipe` is None. sparsity is the realised one."""

    recipe: PruneRecipe | None
    sparsity: float
    attention_parameters: int
    parameters: int
    quality: Quality


def variant_recipes(
    defaults: PruneRecipe, one_shot_sparsities: Sequence[float], iterative_sparsities: Sequence[float]
) -> tuple[PruneRecipe, ...]:
    """Recipes of {channels, heads} x {fisher, magnitude} x {global, local}: one shot, then iterative with recovery."""
    schedules: list[tuple[float, dict[str, Any]]] = [
        *((sparsity, {"schedule": "one-shot", "recovery": "none"}) for sparsity in one_shot_sparsities),
        *((sparsity, {"schedule": "iterative", "recovery": "lora"}) for sparsity in iterative_sparsities),
    ]
    return tuple(
        dataclasses.replace(defaults, sparsity=sparsity, scheme=scheme, score=kind, threshold=threshold, **schedule)
        for sparsity, schedule in schedules
        for scheme, kind, threshold in itertools.product(SCHEMES, SCORES, THRESHOLDS)
    )


def variant_table(
    family: ModuleType,
    checkpoint: Any,
    calibration: LabelledInputs,
    evaluation: LabelledInputs,
    recipes: Sequence[PruneRecipe],
    *,
    made_from: Mapping[str, str] | None = None,
    rows_path: Path | None = None,
    report: Report = quiet,
) -> tuple[VariantRow, ...]:
    """The dense model's row and one row per recipe, in order. Evaluation clips are only ever evaluated on.

    Scores of the dense model are computed once and shared by all one-shot recipes. rows_path: a file with one JSON line
    per finished row; rows that are there, of the same recipe and made_from (sha256 by kind), are not computed again.
    """
    finished = _read_rows(rows_path, made_from)
    dense_logits = predict(checkpoint.model, evaluation.inputs, _about(report, "dense model"))
    dense = family.dense_plan(checkpoint.model)
    rows = [_row(None, checkpoint.model, dense, dense_logits, dense_logits, evaluation.label_ids)]
    shared: dict[str, tuple[SiteScores, ...]] = {}
    for number, recipe in enumerate(recipes):
        row = finished.get(_identity(recipe, made_from))
        if row is None:
            told = _about(report, f"{number + 1}/{len(recipes)} {recipe_name(recipe)}")
            model, plan = _pruned(family, checkpoint, calibration, recipe, dense, shared, told)
            logits = predict(model, evaluation.inputs, told)
            row = _row(recipe, model, plan, logits, dense_logits, evaluation.label_ids)
            finished[_identity(recipe, made_from)] = row
            _write_rows(rows_path, finished)
        rows.append(row)
    return tuple(rows)


def _pruned(
    family: ModuleType,
    checkpoint: Any,
    calibration: LabelledInputs,
    recipe: PruneRecipe,
    dense: Plan,
    shared: dict[str, tuple[SiteScores, ...]],
    report: Report,
) -> tuple[nn.Module, Plan]:
    if recipe.schedule == "iterative" or recipe.recovery != "none":
        pruned = prune(family, checkpoint, calibration, recipe, report=report)
        return pruned.model, pruned.plan
    key = f"{recipe.score} {recipe.calibration_clips} {recipe.batch_size} {recipe.seed}"
    if key not in shared:
        order = calibration_order(calibration, recipe)
        shared[key] = score(
            family,
            checkpoint.model,
            calibration,
            recipe.score,
            order=order,
            batch_size=recipe.batch_size,
            report=report,
        )
    kept = choose_step(dense, shared[key], recipe, step=1)
    return family.slim_model(checkpoint.model, kept), dataclasses.replace(dense, sites=compose(dense.sites, kept))


def predict(model: nn.Module, inputs: torch.Tensor, report: Report = quiet, batch_size: int = 32) -> torch.Tensor:
    """Logits (N, labels) of the model in eval mode for inputs (N, ...)."""
    model.eval()
    batches = []
    with torch.inference_mode():
        for start in range(0, len(inputs), batch_size):
            batches.append(model(inputs[start : start + batch_size]).logits)
            report("evaluating", min(1.0, (start + batch_size) / len(inputs)))
    return torch.cat(batches)


def quality_of(logits: torch.Tensor, dense_logits: torch.Tensor, label_ids: torch.Tensor) -> Quality:
    """Accuracy, cross-entropy and divergence from the dense model of logits (N, labels) on clips of label_ids (N,)."""
    correct = int((logits.argmax(dim=1) == label_ids).sum())
    interval = wilson_interval(correct, len(label_ids))
    log_shares, dense_log_shares = logits.double().log_softmax(dim=1), dense_logits.double().log_softmax(dim=1)
    return Quality(
        clips=len(label_ids),
        correct=correct,
        accuracy=interval.estimate,
        accuracy_low=interval.low,
        accuracy_high=interval.high,
        cross_entropy=float(functional.nll_loss(log_shares, label_ids)),
        kl_divergence=float(functional.kl_div(log_shares, dense_log_shares, reduction="batchmean", log_target=True)),
    )


def _row(
    recipe: PruneRecipe | None,
    model: nn.Module,
    plan: Plan,
    logits: torch.Tensor,
    dense_logits: torch.Tensor,
    label_ids: torch.Tensor,
) -> VariantRow:
    return VariantRow(
        recipe=recipe,
        sparsity=plan.sparsity,
        attention_parameters=plan.attention_parameters_kept,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        quality=quality_of(logits, dense_logits, label_ids),
    )


def recipe_name(recipe: PruneRecipe) -> str:
    """A recipe in a few words, e.g. "channels, fisher, global, one-shot, 50 %"."""
    recovery = "" if recipe.recovery == "none" else f" with {recipe.recovery}"
    return (
        f"{recipe.scheme}, {recipe.score}, {recipe.threshold}, {recipe.schedule}{recovery}, {100 * recipe.sparsity:g} %"
    )


def _about(report: Report, name: str) -> Report:
    def about(text: str, fraction: float | None = None) -> None:
        report(f"{name}: {text}", fraction)

    return about


def _identity(recipe: PruneRecipe, made_from: Mapping[str, str] | None) -> str:
    return sha256_json({"recipe": dataclasses.asdict(recipe), "made_from": dict(made_from or {})})


def _write_rows(path: Path | None, finished: Mapping[str, VariantRow]) -> None:
    if path is not None:
        lines = [json.dumps({"identity": identity, **row_to_json(row)}) for identity, row in finished.items()]
        write_text(path, "".join(line + "\n" for line in lines))


def row_to_json(row: VariantRow) -> dict[str, Any]:
    """The row as JSON values."""
    return dataclasses.asdict(row)


def _read_rows(path: Path | None, made_from: Mapping[str, str] | None) -> dict[str, VariantRow]:
    """Finished rows by identity; those of another model or other clips, or that cannot be read, are left out."""
    if path is None or not path.is_file():
        return {}
    finished = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            value = json.loads(line)
            options = value["recipe"]
            options["recovery_options"] = LoraRecovery(**options["recovery_options"])
            recipe = PruneRecipe(**options)
            row = VariantRow(
                recipe,
                value["sparsity"],
                value["attention_parameters"],
                value["parameters"],
                Quality(**value["quality"]),
            )
        except (json.JSONDecodeError, KeyError, TypeError, BadInput):
            continue
        if value.get("identity") == _identity(recipe, made_from):
            finished[value["identity"]] = row
    return finished


def render_variants(rows: Sequence[VariantRow]) -> str:
    """The rows as a Markdown table, with what the columns mean."""
    quality = rows[0].quality
    lines = [
        "| schedule | scheme | score | threshold | removed, % | accuracy, % (95 %) | cross-entropy | KL | parameters |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
        *(_markdown_row(row) for row in rows),
        "",
        f"Removed: share of the attention blocks' parameters. Accuracy on {quality.clips} evaluation clips, with "
        "Wilson's 95 % interval; cross-entropy and KL(dense || pruned) in nats, means over clips.",
    ]
    return "\n".join(lines) + "\n"


def _markdown_row(row: VariantRow) -> str:
    q, recipe = row.quality, row.recipe
    if recipe is None:
        words = ["dense", "", "", ""]
    else:
        recovery = "" if recipe.recovery == "none" else f", {recipe.recovery}"
        words = [recipe.schedule + recovery, recipe.scheme, recipe.score, recipe.threshold]
    numbers = [
        f"{100 * row.sparsity:.1f}",
        f"{100 * q.accuracy:.1f} ({100 * q.accuracy_low:.1f} to {100 * q.accuracy_high:.1f})",
        f"{q.cross_entropy:.3f}",
        f"{q.kl_divergence:.3f}",
        f"{row.parameters:,}",
    ]
    return f"| {' | '.join(words + numbers)} |"
