"""Size against loss before anything is written: a curve from one scoring, a few of its points measured."""

import dataclasses
import functools
import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leanear.accelerator import on_accelerator
from leanear.benchmarks.formatting import PRUNED_PARTS, WORD_ERROR_RATE
from leanear.benchmarks.report.drawing.pictures import Curve
from leanear.benchmarks.report.page import Block, Paragraph, Report, Section, Table
from leanear.benchmarks.report.report import write_page
from leanear.data.dataset import Data, DataFolder, column_for
from leanear.data.examples import HeldOut, LabelledInputs, divided
from leanear.data.splits import read_splits
from leanear.evaluate.measured_loss import MATTERS_NATS, Judge, MeasuredLoss
from leanear.families.asked import Asked
from leanear.families.checkpoint import NOTHING_ASKED, checkpoint_folder, data_folder, load_checkpoint
from leanear.families.family import Checkpoint, Family
from leanear.families.registry import family_of, labels_of, task_of
from leanear.outputs import SCORES, check_explorable, held
from leanear.plan import Prune
from leanear.progress import Narrator, in_parts
from leanear.prune.closed_loop import choose_measured
from leanear.prune.costs import Costs, latency_costs, mac_costs, parameter_costs
from leanear.prune.curve import TENTHS, Estimate, estimated_curve, knee, loss_begins_at, measured_ratio
from leanear.prune.job import as_held, filled_by
from leanear.prune.notes import curve_picture, held_out_text, nats
from leanear.prune.pruning import RECOMPUTE_ABOVE_BYTES, read_calibration
from leanear.prune.scoring import Scores, score_widths
from leanear.prune.widths import RotatedRecipe, cut
from leanear.runtimes.clips import Clips as Audio
from leanear.runtimes.records import write
from leanear.targets.target import Target
from leanear.timing.model_timing import tables_of, timing_of

EXPLORE_SCHEMA = "leanear-explore-1"
MEASURED = (0.3, 0.5, 0.7, 0.9)


@dataclasses.dataclass(frozen=True)
class Point:
    """One size: what is removed of what is pruned, and what the whole model then has and loses.

    loss: estimated, nats per target, as the measured points have it; latency_ms: predicted by the target's table, None
    without one; measured: on held-out clips, of some points alone.
    """

    sparsity: float
    loss: float
    parameters: int
    macs: float
    latency_ms: float | None
    measured: MeasuredLoss | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exploration:
    """explore.json. matters_nats: the loss that matters; begins_at: where such losses begin; command: a next step."""

    schema: str = EXPLORE_SCHEMA
    model: str
    metric: str
    matters_nats: float = MATTERS_NATS
    prune: Prune
    begins_at: float
    knee: float | None
    held_out_clips: int
    parameters_dense: int
    macs_dense: float
    latency_ms_dense: float | None
    points: tuple[Point, ...]
    command: str


def explore(
    model: str,
    *,
    data: Data | None,
    recipe: RotatedRecipe,
    target: Target,
    named: str = "cpu",
    milliseconds: bool,
    out: Path,
    narrator: Narrator,
    asked: Asked = NOTHING_ASKED,
) -> Exploration:
    """The curve of MODEL, written to `out` as explore.json, explore.md and explore.html.

    named: the target, as a command names it; milliseconds: whether the target's latency table is wanted, for which its
    blocks are timed here; asked: of a Whisper. The scores stay in the folder: another call with the same inputs takes
    them from there.

    Raises:
        LeanearError: the model or the data is not usable, or `out` holds something else.
    """
    check_explorable(out)
    source, folder = checkpoint_folder(model), data_folder(model, data)
    task = task_of(source)
    splits = read_splits(folder, recipe.calibration_clips, recipe.seed, column_for(task), labels=labels_of(source))
    with narrator.step("reading the checkpoint and the calibration clips") as report:
        checkpoint = load_checkpoint(source, asked)
        audio, made_from = read_calibration(checkpoint, source, asked, splits.calibration, report)
    with held(out / SCORES):
        points, facts = _points(checkpoint, made_from, audio, recipe, target, milliseconds, out, narrator)
    least = min((point.sparsity for point in points), default=0.0)
    chosen = max(min(share for share in (facts["knee"], facts["begins_at"]) if share is not None), least)
    command = _command(model, data, asked, chosen, recipe, named)
    found = Exploration(model=model, metric=checkpoint.metric, points=points, command=command, **facts)
    write(out / "explore.json", found)
    write_page(_page(found), out, "explore")
    return found


def _points(
    checkpoint: Checkpoint,
    made_from: dict[str, str],
    audio: Audio,
    recipe: RotatedRecipe,
    target: Target,
    milliseconds: bool,
    out: Path,
    narrator: Narrator,
) -> tuple[tuple[Point, ...], dict[str, Any]]:
    family, dense = family_of(checkpoint), checkpoint.model
    plan, form = dataclasses.replace(family.dense_plan(dense), prune=recipe.prune), target.graph_form
    filled = filled_by(target) if recipe.one_width_per_head else None
    costs = as_held(parameter_costs(plan), family, dense, filled)
    macs = mac_costs(plan, family.macs(checkpoint, dense, form))
    scores, held_out = _scored(checkpoint, family, made_from, audio, recipe, out / SCORES, narrator)
    judge = Judge(family, checkpoint, HeldOut(dense, held_out, family.logits))
    with narrator.step("measuring half, to correct the estimates") as report, on_accelerator(dense):
        budget = costs.dense / 2
        corrections = choose_measured(
            family, dense, scores, costs, budget, recipe, judge.held_out, report=report
        ).corrections
    curve = functools.partial(estimated_curve, family, dense, scores, corrections, costs, recipe)
    table: Costs | None = None
    if milliseconds:
        with narrator.step("timing the target") as report:
            tables = tables_of(timing_of(checkpoint, target, None), recipe.prune, False, report)
            table = latency_costs(tables, family.attention_sites(dense), family.feed_forward_sites(dense))
    estimates = curve(TENTHS)
    measured = _measured(family, dense, scores, estimates, judge, narrator)
    divergences = {sparsity: loss.divergence for sparsity, loss in measured.items()}
    found = [(each.sparsity, each.loss, divergences.get(each.sparsity)) for each in estimates]
    ratio = measured_ratio([(sparsity, loss, nats) for sparsity, loss, nats in found if nats is not None])
    losses = itertools.accumulate((each.loss * ratio(each.sparsity) for each in estimates), max)
    estimates = tuple(dataclasses.replace(each, loss=loss) for each, loss in zip(estimates, losses, strict=True))
    points = tuple(_point(each, dense, costs, macs, table, measured.get(each.sparsity)) for each in estimates)
    facts = {
        "prune": recipe.prune,
        "begins_at": _begins_at(loss_begins_at(curve, ratio), points),
        "knee": knee(estimates),
        "held_out_clips": len(held_out),
        "parameters_dense": sum(parameter.numel() for parameter in dense.parameters()),
        "macs_dense": macs.dense,
        "latency_ms_dense": table.dense if table is not None else None,
    }
    return points, facts


def _scored(
    checkpoint: Checkpoint,
    family: Family,
    made_from: dict[str, str],
    audio: Audio,
    recipe: RotatedRecipe,
    state: Path,
    narrator: Narrator,
) -> tuple[Scores, LabelledInputs]:
    """The dense model's scores, kept in `state`, and the clips that are held out of them."""
    dense = checkpoint.model
    with narrator.step("scoring") as report, on_accelerator(dense):
        part = in_parts(report, {"inputs": 1, "scores": 9})
        labelled = family.calibration_inputs(checkpoint, audio, part("inputs"))
        at_once = 1 if family.activation_bytes(dense, labelled.inputs) > RECOMPUTE_ABOVE_BYTES else None
        scored, held_out = divided(labelled[labelled.balanced_order(recipe.seed, recipe.calibration_clips)])
        scores = score_widths(
            family, dense, scored, recipe.scoring,
            made_from=made_from, state=state, clips_at_once=at_once, report=part("scores"),
        )  # fmt: skip
    return scores, held_out


def _measured(
    family: Family, dense: Any, scores: Scores, estimates: Sequence[Estimate], judge: Judge, narrator: Narrator
) -> dict[float, MeasuredLoss]:
    """By sparsity, what some of the curve's models lose on held-out clips."""
    measured: dict[float, MeasuredLoss] = {}
    with narrator.step("measuring points of the curve") as report, on_accelerator(dense):
        for number, each in enumerate(estimates):
            if each.sparsity in MEASURED:
                slim, _ = cut(family, dense, scores.bases, each.allocation)
                found = measured[each.sparsity] = judge.loss(slim)
                said = "no number of" if found.divergence is None else f"{found.divergence:.3g}"
                report(f"{100 * each.sparsity:.0f} %: {said} nats", number / len(estimates))
    return measured


def _begins_at(estimated: float, points: Sequence[Point]) -> float:
    """Where losses begin to matter: as estimated, but never at or beyond a size that was measured to lose too much."""
    bad = [point.sparsity for point in points if point.measured is not None and point.measured.matters]
    if not bad or estimated < min(bad):
        return estimated
    below = [point for point in points if point.sparsity < min(bad)]
    measured = [point.sparsity for point in below if point.measured is not None]
    return max(measured or [point.sparsity for point in below], default=0.0)


def _point(
    estimate: Estimate, dense: Any, costs: Costs, macs: Costs, table: Costs | None, measured: MeasuredLoss | None
) -> Point:
    widths, channels = estimate.allocation.widths, estimate.allocation.feed_forward
    kept = [tuple(pair for pair in site if pair != (0, 0)) for site in widths]
    removed = costs.dense - costs.of(kept, channels)
    return Point(
        estimate.sparsity,
        estimate.loss,
        sum(parameter.numel() for parameter in dense.parameters()) - round(removed),
        macs.of(kept, channels),
        None if table is None else table.of(kept, channels),
        measured,
    )


def _command(model: str, data: Data | None, asked: Asked, sparsity: float, recipe: RotatedRecipe, target: str) -> str:
    folder = data if isinstance(data, DataFolder) else None
    given = folder.flags if folder is not None else shlex.join(["--data", str(data)]) if data is not None else ""
    parts = (f"leanear prune {shlex.quote(model)}", given, shlex.join(asked.flags), f"--sparsity {sparsity:g}")
    usual = RotatedRecipe()
    of_recipe = (("prune", "prune"), ("calibration-clips", "calibration_clips"), ("seed", "seed"))
    values = [(flag, getattr(recipe, name), getattr(usual, name)) for flag, name in of_recipe]
    values.append(("target", target, "cpu"))
    flags = [shlex.join([f"--{flag}", str(value)]) for flag, value, if_not_said in values if value != if_not_said]
    return " ".join(filter(None, (*parts, *flags, "--out slim/")))


def table_rows(found: Exploration) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of the curve, as terminal and page show it."""
    rate = "WER" if found.metric == WORD_ERROR_RATE else found.metric
    losses = ("corrected estimate", "measured, nats", f"{rate}, %")
    timed = found.latency_ms_dense is not None
    header = ("removed", "parameters", "MACs", *(("ms",) if timed else ()), *losses)
    return header, [
        (
            f"{100 * point.sparsity:.0f} %{' (knee)' if point.sparsity == found.knee else ''}",
            f"{point.parameters / found.parameters_dense:.3f}×",
            f"{point.macs / found.macs_dense:.3f}×",
            *((f"{point.latency_ms:.2f}",) if timed else ()),
            nats(point.loss),
            *(("", "") if point.measured is None else _measured_texts(point.measured, rate)),
        )
        for point in found.points
    ]


def _measured_texts(measured: MeasuredLoss, rate: str) -> tuple[str, str]:
    dense, slim = (100 * count / measured.counted for count in (measured.dense_mistakes, measured.slim_mistakes))
    moved = f"{dense:.1f} → {slim:.1f}" if rate == "WER" else f"{100 - dense:.1f} → {100 - slim:.1f}"
    return "not a number" if measured.divergence is None else nats(measured.divergence), moved


def summary(found: Exploration) -> str:
    """What the curve says, in words."""
    matters = f"a loss that matters ({found.matters_nats:g} nats and more, or mistakes beyond chance)"
    said = f"{matters.capitalize()} begins at about {100 * found.begins_at:.0f} %"
    if found.begins_at <= 0:
        said = f"Every size that was looked at has {matters}"
    said += f"; the knee is at {100 * found.knee:.0f} %." if found.knee is not None else "."
    said += f" Measured on {held_out_text(found.held_out_clips, found.metric)}, before compensation and further"
    return f"{said} rounds; estimates are corrected by what was measured."


def _page(found: Exploration) -> Report:
    header, rows = table_rows(found)
    curve = [(point.sparsity, point.loss) for point in found.points]
    losses = [(point.sparsity, point.measured.divergence) for point in found.points if point.measured is not None]
    measured = tuple((sparsity, loss) for sparsity, loss in losses if loss is not None)
    blocks: list[Block] = [Table("", header, tuple(rows))]
    if curve and measured:
        others = [Curve("measured", measured)]
        knee_at = tuple(point for point in curve if point[0] == found.knee)
        if knee_at:
            others.append(Curve("the knee", knee_at, joined=False, chosen=True))
        blocks.append(curve_picture(curve, others, PRUNED_PARTS[found.prune]))
    blocks.append(Paragraph(f"A size to begin with: {found.command}"))
    return Report(
        title=f"Sizes of {found.model}",
        subtitle=f"measured on {held_out_text(found.held_out_clips, found.metric)}",
        summary=summary(found),
        cards=(),
        gate=None,
        sections=(Section("Size against loss", tuple(blocks)),),
        kind="Exploration",
        origin="Written by leanear from explore.json beside it.",
    )
