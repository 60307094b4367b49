"""A real Whisper in 8 bits beside itself in float32, on both runtimes: proofs, words, seconds, and what costs what.

    python -m leanear.benchmarks.peers.whisper_int8 CHECKPOINT --data DATA --state DIR
    python -m leanear.benchmarks.peers.whisper_int8 CHECKPOINT --data DATA --state DIR --rounds 0 --tensors

Evaluation clips are transcribed one file after another, greedily; every row has its turn at a round's clips before the
next round begins, and a ratio is the median of the rounds' ratios. Words are compared clip by clip with the same
runtime's in float32. With --tensors, what each of the encoder's tensors holds on calibration clips, and what it costs
in 8 bits alone. What was exported and heard is kept in the folder that --state names.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from leanear.benchmarks.formatting import runtime_text, signed
from leanear.benchmarks.measure.measure import evaluate_transcripts
from leanear.benchmarks.summary import word_error_change
from leanear.data.dataset import column_for
from leanear.data.splits import read_splits
from leanear.data.word_errors import WordErrors, choose_normaliser, count_word_errors
from leanear.deploy.deployment_stages import clips_stage, export_stage
from leanear.deploy.precision_gate import PLAIN
from leanear.evaluate.evaluation import data_folder
from leanear.export.eight_bit_costs import tensor_costs
from leanear.export.onnx.observed import Observed
from leanear.export.whisper.graph import observe_encoder
from leanear.families.checkpoint import checkpoint_folder, load_checkpoint
from leanear.families.tasks import read_spellings, task_of
from leanear.progress import Narrator
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.choose import choose_runtime
from leanear.runtimes.clips import Clips, read_clips
from leanear.runtimes.errors import LeanearError
from leanear.runtimes.precisions import graph_precision
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.decoding import DecodeOptions
from leanear.runtimes.speech.long_audio import read_speech_model, transcribe

RUNTIMES = ("onnxruntime", "openvino")
PRECISIONS = (PLAIN, "int8", "int8-bf16")
REST_S = 0.1  # until the threads of the row before have stopped waiting for more work
GREEDY = DecodeOptions(timestamps=False, temperatures=(0.0,))


@dataclass
class Row:
    """One precision on one runtime: its artifact, its words, and the wall and CPU seconds of each round."""

    runtime: str
    precision: str
    artifact: Path
    errors: WordErrors | None = None
    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{runtime_text(self.runtime)} {self.precision}"


def count_words(rows: list[Row], state: Path, source: Path, threads: int, narrator: Narrator) -> None:
    """The word errors of every row on all evaluation clips."""
    path, spellings = state / "clips" / "evaluation.npz", read_spellings(source)
    clips = read_clips(path)
    assert clips.texts is not None  # of speech they always are there
    for row in rows:
        options = SessionOptions(threads=threads, precision=row.precision)
        store = state / f"heard-{row.runtime}-{row.precision}-{read_artifact(row.artifact).identity[:12]}.json"
        with narrator.step(f"words of {row.name}") as report:
            heard = evaluate_transcripts(row.artifact, path, row.runtime, options, store=store, progress=report)
        decoding = read_artifact(row.artifact).manifest["decoding"]
        language = decoding["default_language"] if decoding["multilingual"] else "en"
        texts = [transcript.text for transcript in heard]
        row.errors = count_word_errors(clips.texts, texts, choose_normaliser(language, spellings))


def time_rows(rows: list[Row], clips: Clips, rounds: int, threads: int, narrator: Narrator) -> None:
    """Seconds of every row for all of `clips`, each round; who begins alternates."""
    loaded = []
    for row in rows:
        artifact = read_artifact(row.artifact)
        options = SessionOptions(threads=threads, precision=row.precision)
        loaded.append((row, choose_runtime(row.runtime).load(artifact, options), read_speech_model(artifact)))
    with narrator.step(f"timing {len(rows)} rows on {len(clips)} clips in turn") as report:
        for number in range(rounds + 1):  # the first one warms up
            report(f"round {number} of {rounds}", number / (rounds + 1))
            for row, session, model in loaded if number % 2 == 0 else loaded[::-1]:
                time.sleep(REST_S)
                begin, cpu = time.perf_counter(), time.process_time()
                for clip in clips.waveforms:
                    list(transcribe(session, model, clip, GREEDY))
                if number:
                    row.seconds.append(time.perf_counter() - begin)
                    row.cpu_s.append(time.process_time() - cpu)
    for _, session, _ in loaded:
        session.close()


def render(rows: list[Row], audio_s: float) -> Table:
    """The rows as a table, each beside float32 on its own runtime."""
    table = Table(title="ratios are medians of the rounds' ratios to fp32 on the same runtime (quartiles)")
    for heading in ("", "MB", "RTF", "of fp32", "CPU time, of fp32", "WER, %", "S/D/I", "change, points (95 %)"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        plain = next(each for each in rows if (each.runtime, each.precision) == (row.runtime, PLAIN))
        cells = [row.name, f"{read_artifact(row.artifact).graph_bytes / 1e6:.1f}"]
        cells += [f"{np.median(row.seconds) / audio_s:.4f}" if row.seconds else "-"]
        cells += [_ratio(row.seconds, plain.seconds), _ratio(row.cpu_s, plain.cpu_s)]
        table.add_row(*cells, *_word_cells(row, plain))
    return table


def _ratio(seconds: list[float], of: list[float]) -> str:
    if not seconds:
        return "-"
    low, middle, high = np.quantile(np.divide(seconds, of), [0.25, 0.5, 0.75])
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def _word_cells(row: Row, plain: Row) -> list[str]:
    if row.errors is None or plain.errors is None:
        return ["-"] * 3
    counts = [list(errors) for errors in (plain.errors.errors, row.errors.errors, row.errors.reference_words)]
    change = word_error_change(*counts).change
    kinds = (row.errors.substitutions, row.errors.deletions, row.errors.insertions)
    moved = f"{signed(change.estimate)} ({signed(change.low)} to {signed(change.high)})"
    return [f"{100 * sum(counts[1]) / sum(counts[2]):.2f}", "/".join(str(sum(kind)) for kind in kinds), moved]


def show_tensors(console: Console, row: Row, checkpoint: Any, waveforms: list[np.ndarray]) -> None:
    """What every tensor in 8 bits holds, and what it costs alone, the dearest first."""
    model, extractor = checkpoint.model, checkpoint.feature_extractor
    artifact = read_artifact(row.artifact)
    observed = observe_encoder(model, extractor, row.runtime, waveforms)
    costs = tensor_costs(artifact, model, extractor, waveforms)
    table = Table(title=f"{runtime_text(row.runtime)}: tensors of the encoder in 8 bits, by what each costs alone")
    for heading in ("tensor", "nats a token", "lowest", "highest", "largest column / median column"):
        table.add_column(heading, justify="left" if heading == "tensor" else "right")
    for names, cost in costs.items():
        seen = [observed[name] for name in names if name in observed]
        table.add_row(", ".join(names), f"{cost:.2e}", *_held(seen))
    console.print(table)


def _held(seen: list[Observed]) -> tuple[str, str, str]:
    if not seen:
        return "", "", ""
    unequal = max(float(each.columns.max() / max(np.median(each.columns), 1e-12)) for each in seen)
    return f"{min(e.low for e in seen):.2f}", f"{max(e.high for e in seen):.2f}", f"{unequal:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="checkpoint folder of a Whisper")
    parser.add_argument("--data", type=Path, required=True, help="audio folder with texts: train/ and test/")
    parser.add_argument("--state", type=Path, required=True, help="folder for what is to be used again")
    parser.add_argument("--runtime", choices=RUNTIMES, action="append", help="(default: both)")
    parser.add_argument("--clips", type=int, default=20, help="evaluation clips that are timed; words are of all")
    parser.add_argument("--rounds", type=int, default=7, help="0: no timing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tensors", action="store_true", help="what each tensor holds and costs, too")
    options = parser.parse_args()
    if options.rounds < 0 or options.threads < 1 or options.clips < 1:
        parser.error("rounds, threads and clips: whole numbers that make sense")
    narrator, console, state = Narrator(), Console(width=170), options.state
    try:
        source = checkpoint_folder(options.model)
        splits = read_splits(data_folder(options.model, options.data), 100, 0, column_for(task_of(source)))
        clips_stage(state, source, splits, task_of(source), narrator)
        rows = []
        for runtime in options.runtime or RUNTIMES:
            for precision in (each for each in PRECISIONS if each in choose_runtime(runtime).precisions()):
                out = state / f"{runtime}-{graph_precision(precision)}"
                name = f"{options.model} for {runtime} in {graph_precision(precision)}"
                export_stage(state, out, name, source, options.model, runtime, graph_precision(precision), narrator)
                rows.append(Row(runtime, precision, out))
        count_words(rows, state, source, options.threads, narrator)
        evaluation = read_clips(state / "clips" / "evaluation.npz")
        timed = Clips(
            evaluation.waveforms[: options.clips], evaluation.label_ids[: options.clips],
            evaluation.names[: options.clips], evaluation.labels, evaluation.sample_rate_hz,
        )  # fmt: skip
        if options.rounds:
            time_rows(rows, timed, options.rounds, options.threads, narrator)
        audio_s = sum(len(clip) for clip in timed.waveforms) / timed.sample_rate_hz
        console.print(f"{options.threads} threads of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        console.print(render(rows, audio_s))
        if options.tensors:
            calibration = list(read_clips(state / "clips" / "calibration.npz").waveforms[:33])
            for row in rows:
                if row.precision == "int8":
                    show_tensors(console, row, load_checkpoint(source), calibration)
    except LeanearError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
