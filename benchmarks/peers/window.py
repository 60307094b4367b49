"""Full window against shorter ones on the same clips, in turn: time, word errors, second tries, and the encoder alone.

    python -m leanear.benchmarks.peers.window MODEL --data DATA --state DIR [--runtime openvino] [--windows
    full,auto,10]

DATA has test/ to judge on, and train/ for the ranges of --precision int8. Artifacts, and what was heard in every clip,
are kept in DIR, and a later run goes on from there (--fresh: not). The first of --windows is what the others are held
against; "full" is a graph of fixed shapes, the others share one graph that takes any window, so the encoder's own table
says what a length that is not fixed costs. All test clips joined are heard as one long recording. Where other programs
use the machine, read the ratios, not the times: both sides of a ratio were taken one after the other.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanear.benchmarks.compare.two_runs import ratio_of_sums
from leanear.benchmarks.measure.transcripts import evaluation_options
from leanear.benchmarks.summary import word_error_change
from leanear.data.clips import read_examples_for
from leanear.data.dataset import column_for
from leanear.data.splits import read_splits
from leanear.data.word_errors import WordErrors, choose_normaliser, count_word_errors
from leanear.deploy.exporting import QUANTISER_CLIPS, write_proved_artifact, write_unproved_artifact
from leanear.families.checkpoint import checkpoint_folder, checkpoint_sha256, load_checkpoint
from leanear.families.tasks import read_spellings
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.clips import Clips
from leanear.runtimes.errors import BadInput, LeanearError
from leanear.runtimes.files import sha256_json
from leanear.runtimes.precisions import graph_precision
from leanear.runtimes.sessions import SessionOptions, SpeechSession
from leanear.runtimes.speech.encoder_windows import FULL, windows_text
from leanear.runtimes.speech.long_audio import SpeechModel, Tally, read_speech_model, transcribe
from leanear.runtimes.tasks import SPEECH_TASK

JOINED = "all clips joined"
REST_S = 0.05  # until the threads of the run before have stopped waiting for more work
FAST_TOKENS_PER_S = 10.0  # a text of more than that ran away
BOUND_POINTS = 0.3
RATE_HZ = 16_000


@dataclass(frozen=True)
class Ear:
    """One choice of windows: its session and its model's facts."""

    choice: str
    session: SpeechSession
    model: SpeechModel


@dataclass(frozen=True)
class Heard:
    """What one clip was heard to say. seconds: of compute; second_tries: how many, by the reason."""

    text: str
    tokens: int
    seconds: float
    audio_s: float
    windows: int
    short: int
    second_tries: dict[str, int]


def main() -> int:
    options = parse()
    try:
        clips, artifacts = prepare(options)
        ears = [open_ear(choice, artifacts, options) for choice in options.windows.split(",")]
        heard = hear_all(ears, clips, options)
        return report(heard, ears, clips, options)
    except LeanearError as error:
        print(f"leanear: {error}", file=sys.stderr)
        return error.exit_status


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a Whisper checkpoint, dense or slim")
    parser.add_argument("--data", required=True, help="a folder with test/ (and train/)")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--windows", default="full,auto", help="with commas between (default: full,auto)")
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), default="onnxruntime")
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    parser.add_argument("--unproved", action="store_true", help="do not ask the 8-bit proof, whose bound may refuse")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clips", type=int, default=10_000, help="of test/, at most (default: all)")
    parser.add_argument("--encoder-rounds", type=int, default=12, help="runs of each window of the encoder alone")
    parser.add_argument("--fresh", action="store_true", help="hear again what was heard before")
    return parser.parse_args()


def prepare(options: argparse.Namespace) -> tuple[Clips, dict[bool, Path]]:
    """The clips to judge on, and the artifacts: True: that takes any window, False: of the full one alone."""
    folder = checkpoint_folder(options.model)
    splits = read_splits(Path(options.data), QUANTISER_CLIPS, 0, column_for(SPEECH_TASK))
    clips = read_examples_for(SPEECH_TASK, splits.evaluation[: options.clips], (), RATE_HZ)
    checkpoint: Any = None
    artifacts = {}
    for any_window in (False, True):
        name = f"{options.runtime}-{options.precision}-{'any' if any_window else 'full'}"
        artifacts[any_window] = options.state / f"{name}-{checkpoint_sha256(folder)[:12]}"
        if (artifacts[any_window] / "manifest.json").is_file():
            continue
        checkpoint = checkpoint or load_checkpoint(folder)
        examples = splits.calibration[:QUANTISER_CLIPS] if options.precision == "int8" else splits.calibration[:6]
        golden = read_examples_for(SPEECH_TASK, examples, (), RATE_HZ).waveforms
        graphs, window = graph_precision(options.precision), "auto" if any_window else FULL
        common = checkpoint, golden, artifacts[any_window], options.runtime, options.model, {}
        if options.unproved:
            write_unproved_artifact(*common, graphs, window)
        else:
            print(write_proved_artifact(*common, None, lambda *_: None, graphs, window).sentence, flush=True)
    return clips, artifacts


def open_ear(choice: str, artifacts: dict[bool, Path], options: argparse.Namespace) -> Ear:
    artifact = read_artifact(artifacts[choice != FULL])
    session_options = SessionOptions(threads=options.threads, precision=options.precision)
    session = require_runtime(options.runtime, session_options).load(artifact, session_options)
    return Ear(choice, session, read_speech_model(artifact, choice))


def hear_all(ears: list[Ear], clips: Clips, options: argparse.Namespace) -> dict[str, dict[str, Heard]]:
    """What was heard by choice and clip; those that take turns start each clip in another order."""
    named = [*zip(clips.names, clips.waveforms), (JOINED, np.concatenate(clips.waveforms))]
    facts = [options.runtime, options.precision, options.threads, checkpoint_sha256(checkpoint_folder(options.model))]
    facts += [list(clips.names), [[ear.choice, list(ear.model.encoder_windows.lengths)] for ear in ears]]
    kept = options.state / f"heard-{sha256_json(facts)[:16]}.jsonl"
    if options.fresh:
        kept.unlink(missing_ok=True)
    found: dict[str, dict[str, Heard]] = {ear.choice: {} for ear in ears}
    for line in kept.read_text().splitlines() if kept.is_file() else []:
        row = json.loads(line)
        found[row.pop("choice")][row.pop("clip")] = Heard(**row)
    for place, (name, waveform) in enumerate(named):
        turns = ears if place % 2 == 0 else ears[::-1]
        if all(name in found[ear.choice] for ear in ears):
            continue
        for ear in turns:  # all of them again: a ratio is of neighbours
            time.sleep(REST_S)
            found[ear.choice][name] = hear(ear, waveform)
        with open(kept, "a", encoding="utf-8") as stream:
            for ear in turns:
                row = dataclasses.asdict(found[ear.choice][name])
                stream.write(json.dumps({"choice": ear.choice, "clip": name, **row}) + "\n")
        print(f"\r{place + 1} of {len(named)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def hear(ear: Ear, waveform: np.ndarray) -> Heard:
    audio_s, tally = len(waveform) / RATE_HZ, Tally()
    asked = evaluation_options(audio_s, ear.model.tokens.window_s)
    start = time.perf_counter()
    segments = list(transcribe(ear.session, ear.model, waveform, asked, tally))
    seconds = time.perf_counter() - start
    text = "".join(segment.text for segment in segments).strip()
    tokens = sum(len(segment.tokens) for segment in segments)
    return Heard(text, tokens, seconds, audio_s, tally.windows, tally.short, tally.second_tries)


def report(heard: dict[str, dict[str, Heard]], ears: list[Ear], clips: Clips, options: argparse.Namespace) -> int:
    """Print the tables; 1 where a choice has more word errors than the bound, or a text that ran away."""
    if clips.texts is None:
        raise BadInput(f"{options.data}: the clips have no transcripts")
    normaliser = choose_normaliser("en", read_spellings(checkpoint_folder(options.model)))
    texts = {**dict(zip(clips.names, clips.texts)), JOINED: " ".join(clips.texts)}
    print(f"{options.model}, {options.runtime} {options.precision}, {options.threads} threads, {len(clips)} clips,")
    print(
        f"{sum(len(each) for each in clips.waveforms) / RATE_HZ:.0f} s of audio; load average {os.getloadavg()[0]:.2f}"
    )
    failed = False
    for title, names in (("clips one by one", list(clips.names)), (JOINED, [JOINED])):
        print(f"\n### {title}\n")
        columns = ("window", "RTF", "time over the first", "WER, %", "S / D / I", "change, points (95 %)")
        print(f"| {' | '.join(columns)} | second tries | ran away |")
        print("|---|---:|---:|---:|---:|---:|---|---:|")
        base: tuple[list[Heard], WordErrors] | None = None
        for ear in ears:
            rows = [heard[ear.choice][name] for name in names]
            counted = count_word_errors([texts[name] for name in names], [row.text for row in rows], normaliser)
            base = base or (rows, counted)
            failed |= _print_row(ear, rows, counted, base)
    _print_encoders(ears, clips, options)
    verdict = "missed" if failed else "kept"
    print(
        f"\nbound of {BOUND_POINTS} points, and no text of more than {FAST_TOKENS_PER_S:g} tokens per second: {verdict}"
    )
    return int(failed)


def _print_row(ear: Ear, rows: list[Heard], counted: WordErrors, base: tuple[list[Heard], WordErrors]) -> bool:
    words = sum(counted.reference_words)
    kinds = [sum(kind) for kind in (counted.substitutions, counted.deletions, counted.insertions)]
    seconds, before = [row.seconds for row in rows], [row.seconds for row in base[0]]
    ratio = f"{sum(seconds) / sum(before):.3f}"
    if len(rows) > 1:
        interval = ratio_of_sums(before, seconds)
        ratio = f"{interval.estimate:.3f} ({interval.low:.3f} to {interval.high:.3f})"
    change = word_error_change(base[1].errors, counted.errors, counted.reference_words).change
    reasons: Counter[str] = Counter()
    for row in rows:
        reasons.update(row.second_tries)
    tries = f"{reasons.total()} of {sum(row.short for row in rows)} short"
    if reasons:
        tries += f" ({', '.join(f'{count} {why}' for why, count in reasons.items())})"
    ran = sum(row.tokens > FAST_TOKENS_PER_S * row.audio_s + 16 for row in rows)
    points = f"{100 * change.estimate:+.2f}"
    if len(rows) > 1:
        points += f" ({100 * change.low:+.2f} to {100 * change.high:+.2f})"
    print(
        f"| {windows_text(ear.model.encoder_windows, RATE_HZ)}"
        f" | {sum(seconds) / sum(row.audio_s for row in rows):.4f} | {ratio} | {100 * sum(kinds) / words:.2f}"
        f" | {' / '.join(map(str, kinds))} | {points} | {tries} | {ran} |",
        flush=True,
    )
    return bool(100 * change.estimate > BOUND_POINTS + 1e-9 or ran)


def _print_encoders(ears: list[Ear], clips: Clips, options: argparse.Namespace) -> None:
    """The encoder alone: the graph of fixed shapes against the one that takes any window, at every length."""
    fixed = next((ear for ear in ears if ear.choice == FULL), None)
    free = next((ear for ear in ears if ear.choice != FULL), None)
    if fixed is None or free is None or options.encoder_rounds < 1:
        return
    waveform = np.concatenate(clips.waveforms)
    lengths = [length for length in free.model.encoder_windows.lengths if length % (5 * RATE_HZ) == 0]
    full = fixed.model.window_samples
    times: dict[int, list[float]] = {length: [] for length in lengths}
    base: dict[int, list[float]] = {length: [] for length in lengths}
    for _ in range(options.encoder_rounds):
        for length in lengths:
            base[length].append(_encode_s(fixed, waveform, full))
            times[length].append(_encode_s(free, waveform, length))
    print("\n### The encoder alone: any window against fixed shapes of the full one, in turn\n")
    print("| window, s | ms, median | over fixed full, median of the pairs |")
    print("|---:|---:|---:|")
    for length in lengths:
        ratios = [one / other for one, other in zip(times[length][1:], base[length][1:])] or [float("nan")]
        median = 1000 * statistics.median(times[length])
        print(f"| {length / RATE_HZ:g} | {median:.1f} | {statistics.median(ratios):.3f} |", flush=True)


def _encode_s(ear: Ear, waveform: np.ndarray, length: int) -> float:
    time.sleep(REST_S)
    start = time.perf_counter()
    ear.session.encode(waveform[:length], length)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
