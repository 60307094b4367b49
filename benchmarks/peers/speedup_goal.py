"""Prunes a model to speed-up goals in three ways, times all of them in turn, and prints prediction, latency and damage.

    python -m leanear.benchmarks.peers.speedup_goal --model path --data clips --target cpu --speedup 1.2 --speedup 1.3

The three ways have the same bases, the same estimated losses and the same budget in milliseconds of the latency table:
any widths (the default), the same width in all heads, and entire heads. Damage is the mean KL(dense || slim) on clips
that took no part in the pruning. This runs on the workstation alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from leanear.benchmarks.measure.processes import absolute
from leanear.data.clips import read_examples_for
from leanear.data.splits import read_splits
from leanear.export.ast.graph import export_ast
from leanear.families import ast
from leanear.families.checkpoint import checkpoint_folder, checkpoint_sha256, data_folder, load_checkpoint
from leanear.progress import Narrator
from leanear.prune.costs import latency_costs
from leanear.prune.scoring import score_widths
from leanear.prune.widths import RotatedRecipe, Sharing, choose_widths, cut
from leanear.runtimes.tasks import CLASSIFICATION_TASK
from leanear.targets.target import read_target
from leanear.timing.block_timing import latency_table, time_in_turn
from leanear.timing.model_timing import Tables

LONG_FRAMES = 500  # of inputs that are run one by one, for memory's sake


@dataclass(frozen=True)
class Row:
    """A plan: share of channels kept, predicted and measured latency with quartiles, and damage in nats."""

    name: str
    kept: float
    predicted_ms: float
    quartiles_ms: tuple[float, float, float]
    kl: float


@torch.no_grad()
def log_probabilities(model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """(N, labels), float64."""
    parts = inputs.split(1 if inputs.shape[1] > LONG_FRAMES else 16)
    return torch.cat([ast.logits(model, part) for part in parts]).double().log_softmax(1)


def render(rows: list[Row], title: str, predicted_dense_ms: float, dense_ms: float) -> Table:
    """The rows as a table."""
    shown = Table(title=title)
    for column in ("plan", "kept", "predicted ms", "measured ms (quartiles)", "error"):
        shown.add_column(column)
    for column in ("predicted ×", "measured ×", "error", "KL, nats"):
        shown.add_column(column)
    for row in rows:
        low, middle, high = row.quartiles_ms
        predicted, measured = predicted_dense_ms / row.predicted_ms, dense_ms / middle
        shown.add_row(
            row.name,
            f"{row.kept:.3f}",
            f"{row.predicted_ms:.4g}",
            f"{middle:.4g} ({low:.4g} to {high:.4g})",
            f"{100 * (row.predicted_ms / middle - 1):+.1f} %",
            f"{predicted:.3f}",
            f"{measured:.3f}",
            f"{100 * (measured / predicted - 1):+.1f} %",
            f"{row.kl:.3g}",
        )
    return shown


def main() -> int:  # noqa: PLR0915
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--speedup", type=float, action="append")
    parser.add_argument("--clips", type=int, default=8, help="to calibrate on")
    parser.add_argument("--judges", type=int, default=8, help="clips that damage is measured on")
    parser.add_argument("--state", type=Path, help="folder for the scores, to be used again")
    parser.add_argument("--share", type=float, default=60.0, help="seconds of timing per process")
    options = parser.parse_args()
    target, narrator = read_target(options.target), Narrator()
    source = checkpoint_folder(options.model)
    checkpoint = load_checkpoint(source)
    splits = read_splits(data_folder(options.model, options.data), options.clips, 0)
    rate_hz = checkpoint.feature_extractor.sampling_rate
    read = read_examples_for(CLASSIFICATION_TASK, splits.calibration, checkpoint.labels, rate_hz)
    judges = read_examples_for(CLASSIFICATION_TASK, splits.evaluation[: options.judges], checkpoint.labels, rate_hz)
    clips = ast.labelled_inputs(checkpoint, read)
    judge_inputs = ast.labelled_inputs(checkpoint, judges).inputs
    recipe = RotatedRecipe(multiples=(target.query_key_multiple, target.value_output_multiple))
    with narrator.step("scoring") as report:
        made_from = {"checkpoint": checkpoint_sha256(source), "clips": str(len(read))}
        scores = score_widths(
            ast, checkpoint.model, clips, recipe.scoring, made_from=made_from, state=options.state,
            clips_at_once=1 if judge_inputs.shape[1] > LONG_FRAMES else None, report=report,
        )  # fmt: skip
    with narrator.step("latency table") as report:
        table = latency_table(checkpoint, target).get(report=report)
    sites = ast.attention_sites(checkpoint.model)
    costs = latency_costs(Tables(table, None), sites, ())
    dense = log_probabilities(checkpoint.model, judge_inputs)
    full = sum(sum(site.query_key_widths) + sum(site.value_output_widths) for site in sites)
    planned, graphs = [], []
    with tempfile.TemporaryDirectory() as folder, narrator.step("pruning and exporting") as report:

        def add_graph(model: torch.nn.Module) -> None:
            path = Path(folder, f"{len(graphs)}.onnx")
            export_ast(model, checkpoint.feature_extractor, path, target.graph_form)
            samples = table.geometry.clip_samples
            graphs.append({"file": absolute(path), "labels": len(checkpoint.labels), "samples": samples})

        add_graph(checkpoint.model)
        for speedup in options.speedup or [1.2, 1.3]:
            for sharing in get_args(Sharing):
                report(f"{speedup} {sharing}", None)
                chosen = RotatedRecipe(multiples=recipe.multiples, sharing=sharing)
                allocation = choose_widths(sites, scores.losses, costs, costs.dense / speedup, chosen)
                slim, _ = cut(ast, checkpoint.model, scores.bases, allocation)
                kept = sum(sum(pair) for widths in allocation.widths for pair in widths) / full
                widths = [[pair for pair in site if pair != (0, 0)] for site in allocation.widths]
                answers = log_probabilities(slim, judge_inputs)
                kl = float((dense.exp() * (dense - answers)).sum(1).mean())
                planned.append((f"{speedup}× {sharing}", kept, table.model_ms(widths), kl))
                add_graph(slim)
        report("timing", None)
        samples_ms, others_share = time_in_turn(graphs, target, share_s=options.share)
    dense_ms = float(np.median(samples_ms[0]))
    rows = []
    for (name, kept, predicted_ms, kl), samples in zip(planned, samples_ms[1:], strict=True):
        low, middle, high = (float(value) for value in np.quantile(samples, [0.25, 0.5, 0.75]))
        rows.append(Row(name, kept, predicted_ms, (low, middle, high), kl))
    title = (
        f"{target.runtime}, {target.threads} threads; dense: predicted {costs.dense:.4g} ms, measured {dense_ms:.4g}"
    )
    Console(width=150).print(render(rows, title, costs.dense, dense_ms))
    print(f"other programs used {others_share:.0%} of the CPU meanwhile")
    return 0


if __name__ == "__main__":
    sys.exit(main())
