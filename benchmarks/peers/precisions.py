"""Dense and slim in every precision of both runtimes: latency, answers and bytes in one table.

    python -m leanear.benchmarks.peers.precisions demo-ast --state precisions/demo-ast
    python -m leanear.benchmarks.peers.precisions demo-whisper --state precisions/demo-whisper --runtime onnxruntime
    python -m leanear.benchmarks.peers.precisions ast-base --rounds 9

Every row is a process of its own, and all of them take turns, so that what slows the machine down slows all: a ratio is
the median of the rounds' ratios. Answers are those of the evaluation clips, each row's compared clip by clip with the
same model in fp32 on the same runtime. What was exported, pruned and answered is kept in the folder that --state names.
"ast-base" is a model of that size with random weights, and a slim one of half its attention: it is timed alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from leanear.benchmarks.formatting import runtime_text
from leanear.benchmarks.peers.lasting_worker import LastingWorker, WorkerFailed
from leanear.benchmarks.report.precision_section import Compared
from leanear.benchmarks.sensors.device import device_facts, device_name
from leanear.benchmarks.summary import is_within
from leanear.benchmarks.verdict import loss_of, loss_text
from leanear.data.dataset import column_for
from leanear.data.splits import read_splits
from leanear.deploy.deployment_stages import clips_stage, export_stage, prune_stage
from leanear.deploy.exporting import made_up_sounds, write_unproved_artifact
from leanear.deploy.precision_gate import PLAIN, clip_answers, compare_answers, metric_of
from leanear.export.options import ExportOptions
from leanear.families.checkpoint import checkpoint_folder, data_folder, load_checkpoint
from leanear.families.registry import read_spellings, task_of
from leanear.progress import Narrator
from leanear.prune.job import PruneJob
from leanear.prune.recipe import choose_goal
from leanear.prune.widths import RotatedRecipe
from leanear.runtimes.artifact import Artifact, read_artifact, read_golden
from leanear.runtimes.choose import PRECISIONS, choose_runtime, graph_precision
from leanear.runtimes.clips import Clips, read_clips, write_clips
from leanear.runtimes.errors import BadInput, LeanearError, MeasurementFailed, ParityFailed
from leanear.runtimes.files import sha256_file, sha256_json
from leanear.runtimes.records import write
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.encoder_windows import window_tokens
from leanear.targets.target import read_target

SCHEMA = "leanear-precisions-1"
WORKER = "leanear.benchmarks.peers.precisions_worker"
TARGETS = {"onnxruntime": "cpu", "openvino": "openvino"}
ROLES = ("dense", "slim")
MADE_UP = "ast-base"
MADE_UP_PLAN = "ragged4"  # half of the channels, every head's widths its own multiples of 4
REST_S = 0.1  # until the threads of the process before have stopped waiting for more work


@dataclass
class Row:
    """One model on one runtime in one precision, and what became of it.

    reason: why it has no figures; milliseconds: of each round; others: share of all cores that other programs used in
    each; compared: as `compare_answers` gives it, against the same model in fp32 on the same runtime.
    """

    role: str
    runtime: str
    precision: str
    artifact: Path
    reason: str = ""
    bytes: int = 0
    milliseconds: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    compared: Compared | None = None
    within: bool | None = None

    @property
    def name(self) -> str:
        return f"{self.role} {runtime_text(self.runtime)} {self.precision}"


def choose_rows(state: Path, runtimes: list[str]) -> list[Row]:
    """A row for every precision that each runtime computes in here; the first is what all ratios are of."""
    return [
        Row(role, runtime, precision, state / f"{runtime}-{role}-{graph_precision(precision)}")
        for runtime in runtimes
        for role in ROLES
        for precision in PRECISIONS
        if precision in choose_runtime(runtime).precisions()
    ]


def write_made_up(state: Path) -> dict[str, Path]:
    """Checkpoints of AST-base's size with random weights, dense and slim, and clips of made-up sounds."""
    import torch
    from transformers import ASTFeatureExtractor

    from leanear.benchmarks.peers.graph_forms import build

    folders = {role: state / f"{role}-checkpoint" for role in ROLES}
    for role, plan in zip(ROLES, ("dense", MADE_UP_PLAN)):
        if not (folders[role] / "preprocessor_config.json").is_file():
            torch.manual_seed(0)
            build(plan).save_pretrained(folders[role])
            ASTFeatureExtractor().save_pretrained(folders[role])
    sounds = [np.tile(sound, 10)[: 16_000 * 10] for sound in made_up_sounds(16_000, 0)]
    names = tuple(f"made up {number}" for number in range(len(sounds)))
    write_clips(
        state / "clips" / "calibration.npz",
        Clips(tuple(sounds), np.zeros(len(sounds), int), names, ("LABEL_0",), 16_000),
    )
    return folders


def write_real(options: argparse.Namespace, state: Path, narrator: Narrator) -> dict[str, Path]:
    """The checkpoint, its slim one, pruned here unless it was given, and the clips of DATA."""
    source = checkpoint_folder(options.model)
    task = task_of(source)
    splits = read_splits(data_folder(options.model, options.data), options.calibration_clips, 0, column_for(task))
    clips_stage(state, source, splits, task, narrator)
    if options.slim is not None:
        return {"dense": source, "slim": options.slim}
    target = read_target("cpu")
    recipe = RotatedRecipe(multiples=(target.query_key_multiple, target.value_output_multiple))
    goal = choose_goal({"sparsity": options.sparsity})
    prune_stage(state, source, PruneJob(goal, recipe, target), narrator)
    return {"dense": source, "slim": state / "checkpoint"}


def export_rows(rows: list[Row], sources: dict[str, Path], state: Path, model: str, narrator: Narrator) -> None:
    """An artifact for every row; several rows may share one."""
    refused: dict[Path, str] = {}
    for row in rows:
        graphs, form = graph_precision(row.precision), row.runtime
        if row.artifact not in refused:
            name = f"{row.role} for {row.runtime} in {graphs}"
            try:
                if model == MADE_UP:
                    _export_unproved(sources[row.role], row.artifact, state, form, graphs, name, narrator)
                else:
                    export_stage(state, row.artifact, name, sources[row.role], model, form, graphs, narrator)
                refused[row.artifact] = ""
            except (BadInput, ParityFailed) as error:
                refused[row.artifact] = str(error)
        row.reason = refused[row.artifact]
        if not row.reason:
            row.bytes = read_artifact(row.artifact).graph_bytes


def _export_unproved(
    source: Path, out: Path, state: Path, form: str, precision: str, name: str, narrator: Narrator
) -> None:
    """Random weights say nothing that 8 bits could be held to, so there is no proof of them."""
    if (out / "manifest.json").is_file():
        return
    clips = read_clips(state / "clips" / "calibration.npz").waveforms
    with narrator.step(f"exporting {name}, unproved"):
        how = ExportOptions(form, {"source": "random weights"}, {}, precision)
        write_unproved_artifact(load_checkpoint(source), clips, out, how)


def time_rows(rows: list[Row], options: argparse.Namespace, state: Path, narrator: Narrator) -> None:
    """Milliseconds of every row that lasts to the end; who begins alternates from round to round."""
    alive = [row for row in rows if not row.reason]
    if not alive or not options.rounds:
        return
    waveform = state / "waveform.npy"
    tokens = _write_waveform(read_artifact(alive[0].artifact), waveform)
    workers: dict[int, LastingWorker] = {}
    try:
        with narrator.step(f"loading {len(alive)} models"):
            for number, row in enumerate(rows):
                if not row.reason:
                    workers[number] = _load(row, options.threads, waveform, tokens)
        with narrator.step(f"timing {len(workers)} models in turn") as report:
            for made in range(options.rounds):
                report(f"round {made + 1} of {options.rounds}", made / options.rounds)
                for number in list(workers) if made % 2 == 0 else list(workers)[::-1]:
                    _take_turn(rows[number], workers[number])
    finally:
        for worker in workers.values():
            worker.close()
    for row in rows:
        if len(row.milliseconds) < options.rounds and not row.reason:
            row.reason = "it did not last to the end"


def _load(row: Row, threads: int, waveform: Path, tokens: int | None) -> LastingWorker:
    worker = LastingWorker(Path(sys.executable), WORKER, {"OMP_NUM_THREADS": str(threads)})
    request = {
        "do": "load", "artifact": str(row.artifact.resolve()), "runtime": row.runtime, "threads": threads,
        "precision": row.precision, "waveform": str(waveform.resolve()), "tokens": tokens,
    }  # fmt: skip
    try:
        worker.ask(request)
    except WorkerFailed as error:
        row.reason = str(error)
    return worker


def _take_turn(row: Row, worker: LastingWorker) -> None:
    if row.reason:
        return
    time.sleep(REST_S)
    try:
        turn = worker.ask({"do": "turn"})
    except WorkerFailed as error:
        row.reason = str(error)
        return
    row.milliseconds.append(turn["ms"])
    row.others.append(turn["others_share"])


def _write_waveform(artifact: Artifact, path: Path) -> int | None:
    """One window of the first golden clip; of speech, how many tokens are generated of it."""
    golden = read_golden(artifact).waveforms[0]
    window = np.zeros(artifact.manifest.input.window_samples, np.float32)
    window[: min(len(window), len(golden))] = golden[: len(window)]
    np.save(path, window)
    return window_tokens(artifact.speech.decoding) if artifact.is_speech else None


def answer_rows(rows: list[Row], options: argparse.Namespace, state: Path, source: Path, narrator: Narrator) -> str:
    """Compare every row's answers to the evaluation clips with the same model's in fp32; the metric's name."""
    clips, path = read_clips(state / "clips" / "evaluation.npz"), state / "clips" / "judged.npz"
    clips = clips[: options.clips or len(clips)]
    write_clips(path, clips)
    answers: dict[tuple[str, str], Any] = {}
    for row in rows:
        if row.reason:
            continue
        options_of = SessionOptions(threads=options.threads, precision=row.precision)
        try:
            found = _answers(row, clips, path, options_of, state, narrator)
        except MeasurementFailed as error:
            row.reason = str(error)
            continue
        answers.setdefault((row.role, row.runtime), found)
        reference = answers[row.role, row.runtime]
        row.compared = compare_answers(clips, reference, found, read_artifact(row.artifact), read_spellings(source))
        row.within = is_within(loss_of(row.compared.change.interval, metric_of(clips)), options.precision_drop)
    return metric_of(clips)


def _answers(row: Row, clips: Clips, path: Path, options: SessionOptions, state: Path, narrator: Narrator) -> Any:
    key = [read_artifact(row.artifact).identity, sha256_file(state / "clips" / "evaluation.npz"), len(clips)]
    name = (
        f"answers-{sha256_json([*key, row.runtime, row.precision, options.threads, device_facts()['libraries']])[:16]}"
    )
    with narrator.step(f"answers of {row.name}") as report:
        store = state / f"{name}{'.npz' if clips.texts is None else '.json'}"
        return clip_answers(clips, row.artifact, path, row.runtime, options, store, report)


def ratios(row: Row, reference: Row) -> tuple[float, float, float] | None:
    """Lower quartile, median and upper quartile of the rounds' ratios of two rows that were both timed to the end."""
    if not row.milliseconds or len(row.milliseconds) != len(reference.milliseconds):
        return None
    low, middle, high = np.quantile(np.divide(row.milliseconds, reference.milliseconds), [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def render(rows: list[Row], metric: str, drop_points: float) -> Table:
    """The rows as a table."""
    table = Table(title="every precision; ratios are medians of the rounds' ratios (quartiles)")
    headings = ["", "MB", "ms", f"of {rows[0].name}", "of fp32 there"]
    if metric:
        headings += [f"{metric}, %", "change (95 %)", "other answers", f"within {drop_points:g}"]
    for heading in headings:
        table.add_column(heading, justify="left" if not heading else "right")
    for row in rows:
        own = next(each for each in rows if (each.role, each.runtime, each.precision) == (row.role, row.runtime, PLAIN))
        cells = [row.name, f"{row.bytes / 1e6:.1f}" if row.bytes else "-"]
        cells += [f"{np.median(row.milliseconds):.2f}" if row.milliseconds else "-"]
        cells += [_ratio_text(ratios(row, rows[0])), _ratio_text(ratios(row, own))]
        if metric:
            cells += _answer_cells(row, metric)
        table.add_row(*cells)
    return table


def _ratio_text(found: tuple[float, float, float] | None) -> str:
    return "-" if found is None else f"{found[1]:.3f} ({found[0]:.3f} to {found[2]:.3f})"


def _answer_cells(row: Row, metric: str) -> list[str]:
    if row.compared is None:
        return ["-"] * 4
    moved = loss_text(loss_of(row.compared.change.interval, metric))
    within = "" if row.precision == PLAIN else "yes" if row.within else "no"
    return [f"{100 * row.compared.measured:.2f}", moved, str(row.compared.differing), within]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo-ast", help=f"checkpoint folder, demo, Hub id, or {MADE_UP}")
    parser.add_argument("--data", help="audio folder; a demo brings its own")
    parser.add_argument("--slim", type=Path, help="a slim checkpoint of the same model (default: pruned here)")
    parser.add_argument("--sparsity", type=float, default=0.5, help="of the model that is pruned here")
    parser.add_argument("--state", type=Path, default=Path("precisions"), help="folder for what is to be used again")
    parser.add_argument("--runtime", choices=tuple(TARGETS), action="append", help="(default: both)")
    parser.add_argument("--rounds", type=int, default=11, help="0: no timing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clips", type=int, help="evaluation clips, at most (default: all)")
    parser.add_argument("--calibration-clips", type=int, default=256)
    parser.add_argument("--precision-drop", type=float, default=1.0, help="points that are within the gate")
    parser.add_argument("--no-answers", action="store_true", help="time alone")
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    options = parser.parse_args()
    narrator, state = Narrator(), options.state
    try:
        return tabulate(options, state, narrator)
    except LeanearError as error:
        print(f"precisions: {error}", file=sys.stderr)
        return error.exit_status


def tabulate(options: argparse.Namespace, state: Path, narrator: Narrator) -> int:
    """Export, time, answer, print; 1 where a row has no figures."""
    state.mkdir(parents=True, exist_ok=True)
    made_up = options.model == MADE_UP
    sources = write_made_up(state) if made_up else write_real(options, state, narrator)
    rows = choose_rows(state, options.runtime or list(TARGETS))
    export_rows(rows, sources, state, options.model, narrator)
    time_rows(rows, options, state, narrator)
    judged = not (options.no_answers or made_up)
    metric = answer_rows(rows, options, state, sources["dense"], narrator) if judged else ""
    console = Console(width=190)
    others = [share for row in rows for share in row.others]
    console.print(f"{options.model}, {device_name(device_facts())}, {options.threads} threads, {options.rounds} rounds")
    if others:
        console.print(f"other programs used {np.median(others):.0%} of all cores in the median turn")
    console.print(render(rows, metric, options.precision_drop))
    for row in rows:
        if row.reason:
            console.print(f"not measured: {row.name}: {row.reason}", markup=False)
    if options.json:
        shown = [{**vars(row), "artifact": row.artifact.name, "ratios": ratios(row, rows[0])} for row in rows]
        facts = {"schema": SCHEMA, "model": options.model, "device": device_name(device_facts()), "metric": metric}
        write(options.json, {**facts, "threads": options.threads, "rounds": options.rounds, "rows": shown})
    return 1 if any(row.reason for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
