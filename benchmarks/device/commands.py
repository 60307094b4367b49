"""`python -m leanear.benchmarks`: what a device can do with numpy and one runtime alone."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from leanear.benchmarks.compare.compare import Bounds, compare, document_of
from leanear.benchmarks.compare.compare_page import comparison_page
from leanear.benchmarks.device.doctor import lines, report
from leanear.benchmarks.device.transcribe import transcribe_recordings
from leanear.benchmarks.formatting import between, rate_between, signed_points
from leanear.benchmarks.measure.measure import BUDGET_S, benchmark, evaluate, evaluate_tags, evaluate_transcripts
from leanear.benchmarks.measure.processes import PROGRESS_MARK, PROGRESS_VARIABLE, Progress
from leanear.benchmarks.report.report import render_markdown
from leanear.benchmarks.results import ROLES, Results
from leanear.benchmarks.sensors.device import device_facts, device_name
from leanear.benchmarks.summary import Interval, accuracy_change, speed_up, summarise_latency, wilson_interval
from leanear.benchmarks.tag_analysis import logits_of, truth_of
from leanear.benchmarks.tagging import MEAN_AP, TagQuality, tag_change, tag_quality
from leanear.benchmarks.under_way import SILENCE_S, Work
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.audio.pipe_reader import STANDARD_INPUT
from leanear.runtimes.audio.piped_audio import raw_audio
from leanear.runtimes.choose import choose_runtime, offered_runtimes
from leanear.runtimes.clips import read_clips
from leanear.runtimes.errors import BadInput, LeanearError
from leanear.runtimes.precisions import PRECISIONS
from leanear.runtimes.process.interrupts import INTERRUPTED
from leanear.runtimes.process.kept_work import forget_kept, what_is_kept
from leanear.runtimes.process.pipes import leave_closed_pipe
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.cues import chosen_lines
from leanear.runtimes.speech.decoding import TASKS, DecodeOptions
from leanear.runtimes.speech.prompts import hotwords_of
from leanear.runtimes.tasks import SPEECH_TASK, TAGGING_TASK
from leanear.runtimes.voice.speech_only import AUTO, CHOICES


def main(arguments: list[str] | None = None) -> int:
    """The exit status of one command: 0, or the error's own after its one line on stderr."""
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(given)
    forget_kept()
    try:
        options.command(options)
        sys.stdout.flush()
    except LeanearError as error:
        _end_line()
        print(f"leanear: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        return leave_closed_pipe()
    except OSError as error:
        _end_line()
        print(f"leanear: {error.filename or 'file'}: {error.strerror or error}", file=sys.stderr)
        return BadInput.exit_status
    except KeyboardInterrupt:
        _end_line()
        print(f"leanear: interrupted{what_is_kept()}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m leanear.benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="say what this machine is and which runtimes work on it")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(command=_doctor)

    bench = commands.add_parser(
        "bench",
        help="measure an artifact, beside the dense one if given",
        epilog="example: python -m leanear.benchmarks bench slim --dense dense --clips clips.npz --out results.json",
    )
    bench.add_argument("artifact", type=Path, help="artifact folder")
    bench.add_argument("--dense", type=Path, help="artifact folder of the dense model to compare with")
    bench.add_argument(
        "--dense-precision", choices=PRECISIONS, help="what the dense one computes in (default: --precision)"
    )
    bench.add_argument("--clips", type=Path, help="evaluation clips (.npz)")
    bench.add_argument("--out", type=Path, help="results file (default: results/DEVICE/RUNTIME-PRECISION.json)")
    bench.add_argument("--budget", type=float, default=BUDGET_S, metavar="SECONDS", help="time for the latency pass")
    bench.add_argument(
        "--sustained", type=float, default=0.0, metavar="SECONDS", help="then work that long without a pause"
    )
    _add_window_flag(bench, "ARTIFACT's own; --dense is always heard in its own")
    bench.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    _add_session_flags(bench)
    bench.set_defaults(command=_bench)

    evaluation = commands.add_parser(
        "eval",
        help="the accuracy, or the mAP, of an artifact on labelled clips, or its transcripts of transcribed ones",
        epilog="example: python -m leanear.benchmarks eval slim --clips clips.npz --json",
    )
    evaluation.add_argument("artifact", type=Path, help="artifact folder")
    evaluation.add_argument("--clips", type=Path, required=True, help="evaluation clips (.npz)")
    evaluation.add_argument("--json", action="store_true", help="print JSON")
    _add_session_flags(evaluation)
    evaluation.set_defaults(command=_eval)

    transcribing = commands.add_parser(
        "transcribe",
        help="the words of WAV files, as they are found",
        epilog="example: python -m leanear.benchmarks transcribe slim talk.wav --srt",
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
    transcribing.add_argument("--language", help='a code such as "en", or "auto" (default: the model\'s, or auto)')
    transcribing.add_argument("--task", choices=TASKS, help="(default: the model's own)")
    transcribing.add_argument("--no-timestamps", action="store_true", help="windows, not sentences, have times")
    transcribing.add_argument("--beams", type=int, default=1, help="hypotheses that are followed (default: 1, greedy)")
    transcribing.add_argument("--condition", action="store_true", help="show the decoder what it said before")
    transcribing.add_argument("--prompt", default="", help="text that is shown to the decoder before the first words")
    transcribing.add_argument("--hotwords", metavar="A,B", help="words that are shown to it before every window")
    transcribing.add_argument(
        "--vad", choices=CHOICES, default=AUTO, help="hear speech alone; auto: of audio over 30 s (default: auto)"
    )
    _add_window_flag(transcribing, "the artifact's own")
    transcribing.add_argument("--word-timestamps", action="store_true", help="each word has times of its own")
    transcribing.add_argument("--max-line-width", type=int, help="letters of a line of subtitles, cut between words")
    transcribing.add_argument("--max-line-count", type=int, help="lines of a subtitle of such lines (default: 2)")
    for writer in ("json", "srt", "vtt", "words"):
        transcribing.add_argument(f"--{writer}", dest="forms", action="append_const", const=writer)
    transcribing.add_argument(
        "--output-dir", type=Path, help="write a file per recording there, in every form asked for (default: print)"
    )
    _add_session_flags(transcribing)
    transcribing.set_defaults(command=_transcribe)

    comparing = commands.add_parser(
        "compare",
        help="what changed from one results file to another, and whether it is worse (status 8)",
        epilog="example: python -m leanear.benchmarks compare before.json after.json --strict",
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
        comparing.add_argument(flag, type=_at_least_0, default=default, help=f"{text} (default: {default:g})")
    comparing.add_argument("--over-dense", action="store_true", help="judge latency in units of the dense model's")
    comparing.add_argument("--strict", action="store_true", help="fail where something is missing or not to be trusted")
    comparing.add_argument("--json", action="store_true", help="print JSON")
    comparing.set_defaults(command=_compare)
    return parser


def _at_least_0(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def _add_window_flag(parser: argparse.ArgumentParser, default: str) -> None:
    text = f"Whisper: full, auto, or seconds that audio is heard in (default: {default})"
    parser.add_argument("--window", metavar="full|auto|SECONDS", help=text)


def _add_session_flags(parser: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    known = ", ".join(offered_runtimes())
    parser.add_argument("--runtime", default="onnxruntime", help=f"one of {known} (default: onnxruntime)")
    parser.add_argument("--threads", type=int, default=cores, help=f"compute threads (default: all {cores})")
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS, help="type computed in (default: fp32)")


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
    session = SessionOptions(threads=options.threads, precision=options.precision)
    name = device_name(device_facts())
    out = options.out or Path("results") / name / f"{options.runtime}-{options.precision}.json"
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
        command=["python", "-m", "benchmarks", *sys.argv[1:]],
        progress=_teller("measuring"),
        fresh=options.fresh,
    )
    _end_line()
    _print_summary(results)


def _print_summary(results: Results) -> None:
    accuracy = results.document["accuracy"]
    for role in results.roles:
        latency = summarise_latency([sample for samples in results.samples_ms(role) for sample in samples])
        median = latency.percentiles_ms[50]
        line = f"{role:6} median {'n/a' if median is None else f'{median:.2f} ms'} (n={latency.n})"
        if role in results.document["memory"]["roles"]:
            line += f", peak memory {results.document['memory']['roles'][role]['peak_rss_bytes'] / 1e6:.0f} MB"
        if role in accuracy["roles"] and results.is_speech:
            line += f", {len(accuracy['roles'][role]['texts'])} transcripts"
        elif role in accuracy["roles"] and results.is_tagging:
            line += f", {_tags_text(tag_quality(logits_of(results, role), truth_of(results)))}"
        elif role in accuracy["roles"]:
            predicted = accuracy["roles"][role]["predicted_ids"]
            correct = sum(a == b for a, b in zip(predicted, accuracy["label_ids"]))
            share = wilson_interval(correct, len(predicted))
            line += f", accuracy {share.estimate:.2%} (95% {share.low:.2%} to {share.high:.2%})"
        print(line)
    if len(results.roles) == 2:
        faster = speed_up(results.samples_ms("dense"), results.samples_ms("slim"))
        ratio = faster.ratio
        print(f"speed-up {ratio.estimate:.3f} (95% {ratio.low:.3f} to {ratio.high:.3f}): {faster.verdict}")
        if accuracy["status"] == "ok" and not results.is_speech:
            change = _change(results)
            metric = MEAN_AP if results.is_tagging else "accuracy"
            print(f"{metric} change {signed_points(change.estimate)} ({between(change)})")
    print(results.path)


def _change(results: Results) -> Interval:
    """From dense to slim, a share."""
    if results.is_tagging:
        return tag_change(logits_of(results, "dense"), logits_of(results, "slim"), truth_of(results)).interval
    accuracy = results.document["accuracy"]
    ids = [accuracy["roles"][role]["predicted_ids"] for role in ("dense", "slim")]
    return accuracy_change(ids[0], ids[1], accuracy["label_ids"]).change


def _tags_text(quality: TagQuality) -> str:
    share = quality.mean_ap
    return f"{MEAN_AP} {share.estimate:.2%} ({rate_between(share, 2)}) over {quality.labels} labels"


def _eval(options: argparse.Namespace) -> None:
    session = SessionOptions(threads=options.threads, precision=options.precision)
    task = read_artifact(options.artifact).task
    if task == SPEECH_TASK:
        _eval_speech(options, session)
        return
    if task == TAGGING_TASK:
        _eval_tags(options, session)
        return
    evaluation = evaluate(options.artifact, options.clips, options.runtime, session, progress=_teller("evaluating"))
    _end_line()
    if options.json:
        answer = {
            "clips": evaluation.clips,
            "correct": evaluation.correct,
            "accuracy": evaluation.accuracy.estimate,
            "accuracy_low": evaluation.accuracy.low,
            "accuracy_high": evaluation.accuracy.high,
            "cross_entropy_nats": evaluation.cross_entropy_nats,
            "runtime": options.runtime,
            "precision": options.precision,
        }
        print(json.dumps(answer, indent=1))
        return
    share = evaluation.accuracy
    print(
        f"accuracy {share.estimate:.2%} (95% {share.low:.2%} to {share.high:.2%}), "
        f"{evaluation.correct} of {evaluation.clips} clips, cross-entropy {evaluation.cross_entropy_nats:.4f} nats"
    )


def _eval_tags(options: argparse.Namespace, session: SessionOptions) -> None:
    evaluation = evaluate_tags(
        options.artifact, options.clips, options.runtime, session, progress=_teller("evaluating")
    )
    quality = evaluation.quality
    _end_line()
    if options.json:
        answer = {"clips": quality.clips, **quality.as_json(), "cross_entropy_nats": evaluation.cross_entropy_nats}
        print(json.dumps({**answer, "runtime": options.runtime, "precision": options.precision}, indent=1))
        return
    print(
        f"{_tags_text(quality)}, {quality.skipped} without a clip; mean area {quality.mean_auc.estimate:.4f}, "
        f"d' {quality.d_prime.estimate:.3f}; {quality.clips} clips, "
        f"cross-entropy {evaluation.cross_entropy_nats:.4f} nats"
    )


def _eval_speech(options: argparse.Namespace, session: SessionOptions) -> None:
    """Transcripts beside references; the word error rate is the workstation's, for it needs Whisper's normaliser."""
    transcripts = evaluate_transcripts(
        options.artifact, options.clips, options.runtime, session, progress=_teller("evaluating")
    )
    clips = read_clips(options.clips)
    _end_line()
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
        beams=options.beams,
        condition_on_previous=options.condition,
        prompt=options.prompt,
        hotwords=hotwords_of(options.hotwords),
    )
    forms = options.forms or ["plain"]
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
    bounds = Bounds(options.max_slowdown, options.max_drop, options.max_memory, options.over_dense)
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


def _end_line() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
