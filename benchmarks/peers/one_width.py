"""One width per head against two, at the size that the graph for TensorRT really has, on one of the demo models.

    python -m leanear.benchmarks.peers.one_width --model demo-whisper --engines

That graph fills both widths of a head up to one, and heads that are computed together to the widest. An allocation that
does not know of it is smaller in the plan than in the graph. Each way gets the same share of the attention, then the
size of the other's graph. KL(dense || slim) is the mean over clips that took no part, in float32 in torch, and the
ratio of one width to two has a 95 % interval by a paired bootstrap over clips. This runs on the workstation alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanear.data.clips import read_examples_for
from leanear.data.dataset import column_for
from leanear.data.splits import read_splits
from leanear.deploy.exporting import made_up_sounds, write_unproved_artifact
from leanear.export.options import ExportOptions
from leanear.families.checkpoint import checkpoint_folder, data_folder, load_checkpoint
from leanear.families.registry import family_of, task_of
from leanear.progress import Narrator
from leanear.prune.allocation.allocate import Allocation
from leanear.prune.costs import Costs, held_blocks, mac_costs, parameter_costs, unfilled_blocks, without_filled
from leanear.prune.scoring import score_widths
from leanear.prune.widths import RotatedRecipe, choose_widths, cut
from leanear.runtimes.artifact import Artifact, read_artifact
from leanear.runtimes.backends.engines import ahead_of_time, build_engines
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.tasks import SPEECH_TASK
from leanear.studies.quality import Answers, judge_answers, predict
from leanear.targets.target import Target, read_target

RESAMPLES = 10_000
SHARES = np.linspace(0.2, 0.8, 241)  # of the attention parameters that an allocation may keep, to be tried


@dataclass(frozen=True)
class Row:
    """One allocation: shares of the dense model's attention parameters in plan and graph, of its MACs in the graph."""

    name: str
    planned: float
    built: float
    macs: float
    answers: Answers
    graph_bytes: int
    engine_bytes: int | None


class Judge:
    """A dense model, its scores, and clips to judge by."""

    def __init__(self, model: str, target: Target, clips: int, judges: int, narrator: Narrator) -> None:
        source = checkpoint_folder(model)
        self.target, task = target, task_of(source)
        splits = read_splits(data_folder(model, None), clips, 0, column_for(task))
        checkpoint: Any = load_checkpoint(source)
        self.checkpoint = checkpoint
        self.family, self.model = family_of(self.checkpoint), self.checkpoint.model
        labels = () if task == SPEECH_TASK else checkpoint.labels
        rate_hz = self.checkpoint.feature_extractor.sampling_rate
        read = [
            self.family.labelled_inputs(self.checkpoint, read_examples_for(task, part, labels, rate_hz))
            for part in (splits.calibration, splits.evaluation[:judges])
        ]
        step = target.query_key_multiple
        self.recipe = RotatedRecipe(multiples=(step, step), calibration_clips=clips)
        calibration, self.judged = read[0][read[0].balanced_order(0, clips)], read[1]
        with narrator.step(f"scoring {len(calibration)} clips") as report:
            scoring = self.recipe.scoring
            self.scores = score_widths(self.family, self.model, calibration, scoring, made_from={}, report=report)
        self.sites = self.family.attention_sites(self.model)
        form, plan = target.graph_form, self.family.dense_plan(self.model)
        self.held = held_blocks(self.family, self.model, form)
        self.parameters = parameter_costs(plan)
        self.unfilled = without_filled(self.parameters, unfilled_blocks(self.family, self.model, form))
        self.macs = mac_costs(plan, self.family.macs(self.checkpoint, self.model, form))
        self.dense = predict(self.model, self.judged.inputs, self.family.logits)

    def two_widths(self, share: float) -> Allocation:
        """Both widths of every head, as if the graph held them so."""
        return self._choose(self.parameters, share, self.recipe)

    def one_width(self, share: float) -> Allocation:
        """One width per head, of blocks that the graph holds as they are."""
        return self._choose(self.unfilled, share, dataclasses.replace(self.recipe, one_width_per_head=True))

    def _choose(self, costs: Costs, share: float, recipe: RotatedRecipe) -> Allocation:
        return choose_widths(self.sites, self.scores.losses, costs, share * costs.dense, recipe)

    def as_small(self, way: Callable[[float], Allocation], built: float) -> Allocation:
        """The allocation of least estimated damage whose graph has no more parameters than `built`."""
        tried = [way(share) for share in SHARES]
        return min((one for one in tried if self.built(one) <= built), key=lambda one: one.damage)

    def built(self, allocation: Allocation, costs: Costs | None = None) -> float:
        """Attention parameters, or what `costs` count, of the graph with its zeros."""
        blocks = [tuple(pair for pair in widths if pair != (0, 0)) for widths in allocation.widths]
        return (costs or self.parameters).of([held(block) for held, block in zip(self.held, blocks, strict=True)])

    def row(self, name: str, allocation: Allocation, with_engines: bool) -> Row:
        """All of an allocation's figures."""
        slim, _ = cut(self.family, self.model, self.scores.bases, allocation)
        logits = predict(slim, self.judged.inputs, self.family.logits)
        mistakes = self.family.mistakes(self.checkpoint, slim, self.judged, logits)
        kept = [tuple(pair for pair in widths if pair != (0, 0)) for widths in allocation.widths]
        with tempfile.TemporaryDirectory() as folder:
            artifact = self._artifact(slim, Path(folder, "artifact"))
            engine_bytes = self._engine_bytes(artifact, Path(folder, "engines")) if with_engines else None
        return Row(
            name=name,
            planned=self.parameters.of(kept) / self.parameters.dense,
            built=self.built(allocation) / self.parameters.dense,
            macs=self.built(allocation, self.macs) / self.macs.dense,
            answers=judge_answers(logits, self.dense, self.judged.targets, mistakes),
            graph_bytes=artifact.graph_bytes,
            engine_bytes=engine_bytes,
        )

    def _artifact(self, slim: Any, out: Path) -> Artifact:
        checkpoint = dataclasses.replace(self.checkpoint, model=slim)
        sounds = made_up_sounds(self.checkpoint.feature_extractor.sampling_rate, 0)
        options = ExportOptions(self.target.graph_form, {"source": "slim"}, {}, self.target.precision)
        write_unproved_artifact(checkpoint, sounds, out, options)
        return read_artifact(out)

    def _engine_bytes(self, artifact: Artifact, out: Path) -> int:
        options = SessionOptions(threads=1, precision=self.target.precision)
        place = ahead_of_time(self.target.compute_capabilities)
        built = build_engines(self.target.runtime, artifact, options, place, out)
        return sum(int(engine.facts["bytes"]) for engine in built.values())


def ratio_interval(of: np.ndarray, to: np.ndarray) -> tuple[float, float, float]:
    """Quotient of two means over the same clips, with its 95 % interval."""
    chosen = np.random.default_rng(0).integers(0, len(of), (RESAMPLES, len(of)))
    low, high = np.quantile(of[chosen].mean(axis=1) / to[chosen].mean(axis=1), [0.025, 0.975])
    return float(of.mean() / to.mean()), float(low), float(high)


def as_markdown(rows: list[Row]) -> str:
    """The table of docs/targets.md; rows come in pairs, two widths before one."""
    lines = [
        "| | plan, % | graph, % | MACs, % | graph, MB | engines, MB | KL, nats | ratio (95 %) | errors, % |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for number, row in enumerate(rows):
        ratio = ""
        if number % 2:
            values = ratio_interval(row.answers.kl_divergence, rows[number - 1].answers.kl_divergence)
            ratio = "{:.2f} ({:.2f} to {:.2f})".format(*values)
        shares = " | ".join(f"{100 * share:.1f}" for share in (row.planned, row.built, row.macs))
        engines = "" if row.engine_bytes is None else f"{row.engine_bytes / 1e6:.2f}"
        kl, errors = row.answers.kl_divergence.mean(), 100 * row.answers.error_rate
        lines.append(
            f"| {row.name} | {shares} | {row.graph_bytes / 1e6:.2f} | {engines} | {kl:.2g} | {ratio} | {errors:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo-ast")
    parser.add_argument("--target", default="rtx")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--clips", type=int, default=256, help="to calibrate on, at most")
    parser.add_argument("--judges", type=int, default=840, help="clips that damage is measured on, at most")
    parser.add_argument("--engines", action="store_true", help="build the engines too")
    options = parser.parse_args()
    narrator = Narrator()
    judge = Judge(options.model, read_target(options.target), options.clips, options.judges, narrator)
    two, one = judge.two_widths(1 - options.sparsity), judge.one_width(1 - options.sparsity)
    ways = [
        ("two widths", two),
        ("one width, that graph's size", judge.as_small(judge.one_width, judge.built(two))),
        ("two widths, the size of the next graph", judge.as_small(judge.two_widths, judge.built(one))),
        ("one width", one),
    ]
    rows = []
    with narrator.step("pruning, exporting, judging") as report:
        for number, (name, allocation) in enumerate(ways):
            report(name, number / len(ways))
            rows.append(judge.row(name, allocation, options.engines))
    print(f"{options.model}, {len(judge.judged)} clips\n\n{as_markdown(rows)}")


if __name__ == "__main__":
    main()
