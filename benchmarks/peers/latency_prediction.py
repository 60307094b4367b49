"""Predicts the latency of slim models of AST-base size by the latency table, then times them, and prints the errors.

    python -m leanear.benchmarks.peers.latency_prediction --target cpu

Weights are random. Dense and slim graphs, front end included, take turns in fresh processes; a plan's measured ratio is
the median of slim over the median of dense of the same processes. The plans "speedup 1.2" and "speedup 1.3" are ragged
ones that are scaled until the table predicts that speed-up. This runs on the workstation alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

from leanear.benchmarks.measure.processes import absolute
from leanear.export.ast.graph import export_ast
from leanear.families.ast import AstCheckpoint
from leanear.families.modeling_slim_ast import SlimASTConfig, SlimASTForAudioClassification
from leanear.progress import Narrator
from leanear.targets.target import Target, read_target
from leanear.timing.block_timing import latency_table, time_in_turn
from leanear.timing.latency_table import LatencyTable, model_sites, site_kind, tie_widths

LABELS, PLANS_AT_A_TIME, SHARE_S = 527, 5, 60.0

Sites = list[list[tuple[int, int]]]


@dataclass(frozen=True)
class Row:
    """A plan's predicted and measured latency, with the quartiles, and the dense model's in the same processes."""

    plan: str
    kept: float
    predicted_ms: float
    predicted_dense_ms: float
    quartiles_ms: tuple[float, float, float]
    dense_ms: float

    @property
    def error(self) -> float:
        return self.predicted_ms / self.quartiles_ms[1] - 1

    @property
    def ratio_error(self) -> float:
        return (self.predicted_ms / self.predicted_dense_ms) / (self.quartiles_ms[1] / self.dense_ms) - 1


def dense_checkpoint() -> AstCheckpoint:
    """A model of AST-base size with random weights, and the front end that AST-base has."""
    torch.manual_seed(0)
    model = ASTForAudioClassification(ASTConfig(num_labels=LABELS)).eval()
    return AstCheckpoint(Path(), model, ASTFeatureExtractor(), tuple(str(label) for label in range(LABELS)))


def slim_model(sites: Sites) -> torch.nn.Module:
    """A slim model of AST-base size with random weights and heads of these widths."""
    torch.manual_seed(0)
    config = SlimASTConfig(
        num_labels=LABELS,
        query_key_widths=[[key for key, _ in widths] for widths in sites],
        value_output_widths=[[value for _, value in widths] for widths in sites],
    )
    return SlimASTForAudioClassification(config).eval()


def equal_sites(table: LatencyTable, heads: int, query_key: int, value_output: int) -> Sites:
    """The same widths in every head of every layer."""
    return [[(query_key, value_output)] * heads for _ in range(table.geometry.layers)]


def ragged_sites(table: LatencyTable, target: Target, share: float, seed: int, tied: bool) -> Sites:
    """Widths that are spread around `share` of the dense ones, in the target's multiples; `tied` as the table says."""
    generator = np.random.default_rng(seed)
    geometry = table.geometry
    spread = generator.uniform(0.4, 1.6, (geometry.layers, geometry.heads, 2))
    steps = np.array([target.query_key_multiple, target.value_output_multiple])
    widths = np.round(spread * share * geometry.head_width / steps) * steps
    widths = np.clip(widths, steps, geometry.head_width).astype(int)
    sites: Sites = [[(int(key), int(value)) for key, value in layer] for layer in widths]
    if tied:
        last = geometry.layers
        sites = [tie_widths(table, site_kind(number, last), layer) for number, layer in enumerate(sites)]
    return sites


def sites_for_speedup(table: LatencyTable, target: Target, speedup: float, seed: int) -> Sites:
    """Ragged, tied widths of the largest share that the table predicts to be this much faster than the dense model."""
    full = table.geometry.head_width
    dense = table.model_ms(equal_sites(table, table.geometry.heads, full, full))
    for share in np.arange(1.0, 0.0, -0.005):
        sites = ragged_sites(table, target, float(share), seed, tied=True)
        if table.model_ms(sites) * speedup <= dense:
            return sites
    raise SystemExit(f"no widths are {speedup} times as fast as the dense model")


def all_plans(table: LatencyTable, target: Target) -> dict[str, Sites]:
    """Plans by name: about 30, 50 and 70 % removed, in equal and in ragged widths, and two speed-ups."""
    return {
        "12 heads of 44/44": equal_sites(table, 12, 44, 44),
        "12 heads of 32/32": equal_sites(table, 12, 32, 32),
        "6 heads of 64/64": equal_sites(table, 6, 64, 64),
        "12 heads of 20/20": equal_sites(table, 12, 20, 20),
        "ragged, 30 % off": ragged_sites(table, target, 0.7, 1, tied=False),
        "ragged, 50 % off": ragged_sites(table, target, 0.5, 2, tied=False),
        "ragged, 70 % off": ragged_sites(table, target, 0.3, 3, tied=False),
        "ragged, 50 % off, tied": ragged_sites(table, target, 0.5, 2, tied=True),
        "speedup 1.2": sites_for_speedup(table, target, 1.2, 4),
        "speedup 1.3": sites_for_speedup(table, target, 1.3, 5),
    }


def measure(checkpoint: AstCheckpoint, table: LatencyTable, target: Target, plans: dict[str, Sites]) -> list[Row]:
    """A row for every plan; all of `plans` and the dense model are in memory at once."""
    predicted_dense_ms = table.model_ms(model_sites(checkpoint))
    with tempfile.TemporaryDirectory() as folder:
        graphs = []
        for number, model in enumerate([checkpoint.model, *(slim_model(sites) for sites in plans.values())]):
            path = Path(folder, f"{number}.onnx")
            export_ast(model, checkpoint.feature_extractor, path, target.graph_form)
            graphs.append({"file": absolute(path), "labels": LABELS, "samples": table.geometry.clip_samples})
        samples_ms, others_share = time_in_turn(graphs, target, share_s=SHARE_S)
    print(f"other programs used {others_share:.0%} of the CPU meanwhile", file=sys.stderr)
    dense_ms = float(np.median(samples_ms[0]))
    rows = []
    for (name, sites), samples in zip(plans.items(), samples_ms[1:], strict=True):
        kept = sum(key + value for widths in sites for key, value in widths)
        dense_widths = table.geometry.layers * table.geometry.heads * 2 * table.geometry.head_width
        low, middle, high = (float(value) for value in np.quantile(samples, [0.25, 0.5, 0.75]))
        rows.append(
            Row(name, kept / dense_widths, table.model_ms(sites), predicted_dense_ms, (low, middle, high), dense_ms)
        )
    return rows


def render(rows: list[Row], title: str) -> Table:
    """The rows as a table."""
    shown = Table(title=title)
    for column in ("plan", "widths kept", "predicted ms", "measured ms (quartiles)", "error"):
        shown.add_column(column)
    for column in ("dense ms", "predicted slim/dense", "measured", "error"):
        shown.add_column(column)
    for row in rows:
        low, middle, high = row.quartiles_ms
        shown.add_row(
            row.plan,
            f"{row.kept:.3f}",
            f"{row.predicted_ms:.0f}",
            f"{middle:.0f} ({low:.0f} to {high:.0f})",
            f"{100 * row.error:+.1f} %",
            f"{row.dense_ms:.0f}",
            f"{row.predicted_ms / row.predicted_dense_ms:.3f}",
            f"{middle / row.dense_ms:.3f}",
            f"{100 * row.ratio_error:+.1f} %",
        )
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--plan", action="append", help="part of a plan's name; may be repeated (default: all plans)")
    parser.add_argument("--cache", type=Path, help="folder of latency tables (default: the user's)")
    parser.add_argument("--fresh", action="store_true", help="time the table again")
    options = parser.parse_args()
    target, checkpoint, narrator = read_target(options.target), dense_checkpoint(), Narrator()
    with narrator.step(f"latency table for {target.name}") as report:
        table = latency_table(checkpoint, target).get(cache=options.cache, fresh=options.fresh, report=report)
    plans = all_plans(table, target)
    if options.plan:
        plans = {name: sites for name, sites in plans.items() if any(part in name for part in options.plan)}
    names, rows = list(plans), []
    for first in range(0, len(names), PLANS_AT_A_TIME):
        with narrator.step(f"timing plans {first + 1} to {min(first + PLANS_AT_A_TIME, len(names))}"):
            some = {name: plans[name] for name in names[first : first + PLANS_AT_A_TIME]}
            rows += measure(checkpoint, table, target, some)
    Console(width=150).print(render(rows, f"{target.runtime}, {target.threads} threads, AST-base size"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
