"""`python -m leanear.benchmarks`: what a device can do with numpy and one runtime alone."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

from leanear.benchmarks.compare.compare import Bounds, compare, document_of
from leanear.benchmarks.compare.compare_page import comparison_page
from leanear.benchmarks.device import flags
from leanear.benchmarks.device.doctor import lines, report
from leanear.benchmarks.device.runner import end_line, exit_status
from leanear.benchmarks.device.transcribe import transcribe_recordings
from leanear.benchmarks.device.transcript_files import forms_of
from leanear.benchmarks.formatting import rate_between
from leanear.benchmarks.measure.accuracy import cross_entropy_nats
from leanear.benchmarks.measure.evaluation import evaluate_logits, evaluate_transcripts
from leanear.benchmarks.measure.measure import BUDGET_S, benchmark
from leanear.benchmarks.measure.processes import PROGRESS_MARK, PROGRESS_VARIABLE, Progress
from leanear.benchmarks.report.headline import headline_text
from leanear.benchmarks.report.report import render_markdown
from leanear.benchmarks.results import ROLES
from leanear.benchmarks.sensors.device import device_facts, device_name
from leanear.benchmarks.summary import wilson_interval
from leanear.benchmarks.tagging import MEAN_AP, tag_entropies, tag_quality
from leanear.benchmarks.under_way import SILENCE_S, Work
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.audio.piped_audio import STANDARD_INPUT, raw_audio
from leanear.runtimes.choose import PRECISIONS, choose_runtime, offered_runtimes
from leanear.runtimes.clips import Clips, read_clips
from leanear.runtimes.errors import BadInput, ParityFailed
from leanear.runtimes.process.interrupts import forget_kept
from leanear.runtimes.process.notes import plural
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.decode_options import DecodeOptions, hotwords_of
from leanear.runtimes.speech.subtitles import chosen_lines

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

PROGRAM = "python -m leanear.benchmarks"


def main(arguments: list[str] | None = None, program: str = PROGRAM, bundled: Sequence[str] = ()) -> int:
    """The exit status of one command: 0, or the error's own after its one line on stderr.

    program: what it is called by; bundled: what a bundle gives "bench" and "eval" by itself, of "artifact" and "clips".
    """
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser(program, bundled).parse_args(given)
    options.program = program
    forget_kept()
    return exit_status(lambda: options.command(options) or 0)


def _parser(program: str, bundled: Sequence[str]) -> argparse.ArgumentParser:
    what = __doc__.partition(": ")[2]
    parser = argparse.ArgumentParser(prog=program, description=what[:1].upper() + what[1:])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_doctor(commands)
    _add_bench(commands, program, bundled)
    _add_eval(commands, program, bundled)
    _add_transcribe(commands, program)
    _add_compare(commands, program)
    return parser


def _add_doctor(commands: Commands) -> None:
    doctor = commands.add_parser("doctor", help="say what this machine is and which runtimes work on it")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(command=_doctor)


def _add_bench(commands: Commands, program: str, bundled: Sequence[str]) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure an artifact, beside the dense one if given",
        epilog=f"example: {program} bench slim --dense dense --clips clips.npz --out results.json",
    )
    flags.add_artifact(bench, bundled)
    bench.add_argument("--dense", type=Path, help="artifact folder of the dense model to compare with")
    bench.add_argument(
        "--dense-precision", choices=PRECISIONS, help="what the dense one computes in (default: --precision)"
    )
    flags.add_clips(bench, bundled)
    bench.add_argument("--out", type=Path, help="results file (default: results/DEVICE/RUNTIME-PRECISION.json)")
    bench.add_argument("--budget", type=float, default=BUDGET_S, metavar="SECONDS", help="time for the latency pass")
    bench.add_argument(
        "--sustained", type=float, default=0.0, metavar="SECONDS", help="then work that long without a pause"
    )
    flags.add_window_flag(bench, "ARTIFACT's own; --dense is always heard in its own")
    bench.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    flags.add_speech_flags(bench)
    flags.add_session_flags(bench, several=True)
    bench.set_defaults(command=_bench)


def _add_eval(commands: Commands, program: str, bundled: Sequence[str]) -> None:
    evaluation = commands.add_parser(
        "eval",
        help="the accuracy, or the mAP, of an artifact on labelled clips, or its transcripts of transcribed ones",
        epilog=f"example: {program} eval slim --clips clips.npz --json",
    )
    flags.add_artifact(evaluation, bundled)
    flags.add_clips(evaluation, bundled, required=True)
    evaluation.add_argument("--json", action="store_true", help="print JSON")
    flags.add_speech_flags(evaluation)
    flags.add_session_flags(evaluation)
    evaluation.set_defaults(command=_eval)


def _add_transcribe(commands: Commands, program: str) -> None:
    transcribing = commands.add_parser(
        "transcribe",
        help="the words of WAV files, as they are found",
        epilog=f"example: {program} transcribe slim talk.wav --output-format srt",
    )
    transcribing.add_argument("artifact", type=Path, help="artifact folder")
    transcribing.add_argument(
        "audio",
        type=Path,
        nargs="+",
        help="WAV file of any length and sample rate, a folder of them, or - for standard input",
    )
    transcribing.add_argument("--raw", action="store_true", help="standard input is PCM of 16 bits without a header")
    transcribing.add_argument("--rate", type=int, metavar="HZ", help="of --raw (default: 16000)")
    transcribing.add_argument("--channels", type=int, help="of --raw (default: 1)")
    flags.add_speech_flags(transcribing)
    flags.add_decoding_flags(transcribing)
    flags.add_window_flag(transcribing, "the artifact's own")
    flags.add_transcript_flags(transcribing)
    flags.add_session_flags(transcribing)
    transcribing.set_defaults(command=_transcribe)


def _add_compare(commands: Commands, program: str) -> None:
    comparing = commands.add_parser(
        "compare",
        help="what changed from one results file to another, and whether it is worse (status 8)",
        epilog=f"example: {program} compare before.json after.json --strict",
    )
    comparing.add_argument("a", type=Path, help="before: a results file, or a folder with one in results/")
    comparing.add_argument("b", type=Path, help="after")
    comparing.add_argument("--side", choices=ROLES, default="slim", help="which model of each (default: slim)")
    bounds = Bounds()
    for flag, default, text in (
        ("--max-slowdown", bounds.max_slowdown_percent, "per cent of latency"),
        ("--max-drop", bounds.max_drop, "points of accuracy, of mAP or of word error rate"),
        ("--max-memory", bounds.max_memory_percent, "per cent of peak memory"),
    ):
        comparing.add_argument(flag, type=flags.at_least_0, default=default, help=f"{text} (default: {default:g})")
    comparing.add_argument(
        "--max-size", type=flags.at_least_0, help="per cent by which the graph files may grow (default: no limit)"
    )
    comparing.add_argument("--over-dense", action="store_true", help="judge latency in units of the dense model's")
    comparing.add_argument("--strict", action="store_true", help="fail where something is missing or not to be trusted")
    comparing.add_argument("--json", action="store_true", help="print JSON")
    comparing.set_defaults(command=_compare)


def _doctor(options: argparse.Namespace) -> None:
    document = report(None, Path.cwd())
    runtimes = {name: choose_runtime(name) for name in offered_runtimes()}
    document["runtimes"] = {
        name: runtime.available() or "works; computes in " + ", ".join(runtime.precisions())
        for name, runtime in runtimes.items()
    }
    if options.json:
        print(json.dumps(document, indent=1))
        return
    print("\n".join(lines(document)))
    for name, text in document["runtimes"].items():
        print(f"{'':8} {name:12} {text}")


def _bench(options: argparse.Namespace) -> None:
    """Measure in the first of the precisions whose engines answer as the checkpoint does."""
    *earlier, last = options.precision
    for precision in earlier:
        try:
            _bench_in(precision, options)
            return
        except ParityFailed as error:
            end_line()
            print(f"leanear: {precision}: {error}; the next precision is tried", file=sys.stderr)
    _bench_in(last, options)


def _bench_in(precision: str, options: argparse.Namespace) -> None:
    session = SessionOptions(threads=options.threads, precision=precision)
    name = device_name(device_facts())
    out = options.out or Path("results") / name / f"{options.runtime}-{precision}.json"
    results = benchmark(
        options.dense,
        options.artifact,
        options.clips,
        options.runtime,
        session,
        out,
        dense_precision=options.dense_precision,
        window=options.window,
        budget_s=options.budget,
        sustained_s=options.sustained,
        command=[*options.program.split(), *sys.argv[1:]],
        progress=_teller("measuring"),
        fresh=options.fresh,
        asked=flags.asked(options),
    )
    end_line()
    print(headline_text(results))
    if results.is_speech and results.content.accuracy.status == "ok":
        print("The transcripts are in the results; `leanear report` counts their word errors on a workstation.")
    print(results.path)


def _eval(options: argparse.Namespace) -> None:
    session = SessionOptions(threads=options.threads, precision=options.precision)
    if read_artifact(options.artifact).is_speech:
        _eval_speech(options, session)
        return
    if flags.asked(options):
        given = " and ".join(f"--{name}" for name in flags.asked(options))
        raise BadInput(f"{given}: for Whisper; {options.artifact} is a classifier")
    evaluated = options.artifact, options.clips, options.runtime, session
    clips, logits = evaluate_logits(*evaluated, progress=_teller("evaluating"))
    end_line()
    answer, text = (_accuracy if clips.tags is None else _ranking)(clips, logits)
    if options.json:
        text = json.dumps({**answer, "runtime": options.runtime, "precision": options.precision}, indent=1)
    print(text)


def _accuracy(clips: Clips, logits: np.ndarray) -> tuple[dict[str, Any], str]:
    """How many clips have the right label, by stable keys and in words."""
    correct = int((logits.argmax(axis=1) == clips.label_ids).sum())
    share, entropy = wilson_interval(correct, len(clips)), float(cross_entropy_nats(logits, clips.label_ids).mean())
    answer = {
        "clips": len(clips),
        "correct": correct,
        "accuracy": share.estimate,
        "accuracy_low": share.low,
        "accuracy_high": share.high,
        "cross_entropy_nats": entropy,
    }
    return answer, (
        f"accuracy {share.estimate:.2%} (95% {share.low:.2%} to {share.high:.2%}), {correct} of"
        f" {plural(len(clips), 'clip')}, cross-entropy {entropy:.4f} nats"
    )


def _ranking(clips: Clips, logits: np.ndarray) -> tuple[dict[str, Any], str]:
    """The same of clips that may have several labels."""
    assert clips.tags is not None
    quality, entropy = tag_quality(logits, clips.tags), float(tag_entropies(logits, clips.tags).mean())
    return {"clips": quality.clips, **quality.as_json(), "cross_entropy_nats": entropy}, (
        f"{MEAN_AP} {quality.mean_ap.estimate:.2%} ({rate_between(quality.mean_ap, 2)}) over"
        f" {plural(quality.labels, 'label')}, {quality.skipped} without a clip; mean area"
        f" {quality.mean_auc.estimate:.4f}, d' {quality.d_prime.estimate:.3f}; {plural(quality.clips, 'clip')}, "
        f"cross-entropy {entropy:.4f} nats"
    )


def _eval_speech(options: argparse.Namespace, session: SessionOptions) -> None:
    """Transcripts beside references; the word error rate is the workstation's, for it needs Whisper's normaliser."""
    asked, progress = flags.asked(options), _teller("evaluating")
    transcripts = evaluate_transcripts(
        options.artifact, options.clips, options.runtime, session, progress=progress, asked=asked
    )
    clips = read_clips(options.clips)
    end_line()
    if not options.json:
        for name, transcript in zip(clips.names, transcripts):
            print(f"{name}  {transcript.text}")
        return
    rows = [
        {"name": name, "text": transcript.text, "reference": reference}
        for name, transcript, reference in zip(clips.names, transcripts, clips.texts or ())
    ]
    answer = {
        "clips": len(rows),
        "audio_s": sum(len(waveform) for waveform in clips.waveforms) / clips.sample_rate_hz,
        "seconds": sum(transcript.seconds for transcript in transcripts),
        "runtime": options.runtime,
        "precision": options.precision,
        "transcripts": rows,
    }
    print(json.dumps(answer, indent=1))


def _transcribe(options: argparse.Namespace) -> None:
    decoding = DecodeOptions(
        language=options.language,
        task=options.task,
        timestamps=not options.no_timestamps,
        beam_size=options.beam_size,
        condition=options.condition,
        prompt=options.prompt,
        hotwords=hotwords_of(options.hotwords),
        batch=options.batch,
    )
    forms = forms_of(options.output_formats, options.output_dir)
    lines = chosen_lines(forms, options.word_timestamps, options.max_line_width, options.max_line_count)
    session = SessionOptions(threads=options.threads, precision=options.precision)
    transcribe_recordings(
        options.artifact,
        options.audio,
        options.runtime,
        session,
        decoding,
        forms=forms,
        output_dir=options.output_dir,
        window=options.window,
        vad=options.vad,
        word_timestamps=options.word_timestamps,
        lines=lines,
        raw=raw_audio(options.raw, STANDARD_INPUT in options.audio, options.rate, options.channels),
    )


def _compare(options: argparse.Namespace) -> None:
    bounds = Bounds(options.max_slowdown, options.max_drop, options.max_memory, options.over_dense, options.max_size)
    comparison = compare(options.a, options.b, options.side, bounds)
    if options.json:
        print(json.dumps(document_of(comparison, options.strict), indent=1))
    else:
        print(render_markdown(comparison_page(comparison, options.strict)), end="")
    failure = comparison.failure(options.strict)
    if failure is not None:
        raise failure


def _teller(title: str) -> Progress:
    """A progress for who reads our standard output, for a terminal, or, line by line, for a log."""
    work, last_said = Work(title), time.monotonic()

    def tell(text: str, fraction: float) -> None:
        nonlocal last_said
        work.report(text, fraction)
        now = time.monotonic()
        if os.environ.get(PROGRESS_VARIABLE):
            print(f"{PROGRESS_MARK} {fraction:.4f} {text}", flush=True)
        elif sys.stderr.isatty():
            print(f"\r\033[K{fraction:4.0%} {text}", end="", file=sys.stderr, flush=True)
        elif now - last_said >= SILENCE_S:
            print(work.line(now), file=sys.stderr, flush=True)
            last_said = now

    return tell
