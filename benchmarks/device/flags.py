"""Flags that several of a device's commands have."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Sequence

from leanear.benchmarks.device.transcript_files import FORMATS
from leanear.benchmarks.sensors.device import usable_cores
from leanear.runtimes.choose import PRECISIONS, offered_runtimes
from leanear.runtimes.tasks import SPOKEN_TASKS
from leanear.runtimes.voice.speech_only import AUTO, CHOICES


def at_least_0(text: str) -> float:
    """A finite number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def add_artifact(parser: argparse.ArgumentParser, bundled: Sequence[str]) -> None:
    """The artifact, which a bundle has itself."""
    text = "artifact folder" + _bundles("artifact", bundled)
    parser.add_argument("artifact", type=Path, nargs="?" if "artifact" in bundled else None, help=text)


def add_clips(parser: argparse.ArgumentParser, bundled: Sequence[str], required: bool = False) -> None:
    """--clips, which a bundle has itself."""
    required = required and "clips" not in bundled
    text = "evaluation clips (.npz)" + _bundles("clips", bundled)
    parser.add_argument("--clips", type=Path, required=required, help=text)


def _bundles(name: str, bundled: Sequence[str]) -> str:
    """What a flag's help says of a bundle's own."""
    return " (default: the bundle's)" if name in bundled else ""


def add_speech_flags(parser: argparse.ArgumentParser) -> None:
    """--language and --task."""
    code = 'a code such as "en", or "auto" (default: the model\'s own, or auto)'
    parser.add_argument("--language", metavar="CODE", help=f"Whisper: {code}")
    parser.add_argument("--task", choices=SPOKEN_TASKS, help="Whisper: (default: the model's own)")


def add_decoding_flags(parser: argparse.ArgumentParser) -> None:
    """How words are looked for."""
    parser.add_argument("--no-timestamps", action="store_true", help="windows, not sentences, have times")
    parser.add_argument("--beam-size", type=int, default=1, help="hypotheses of beam search (default: 1, greedy)")
    parser.add_argument("--condition", action="store_true", help="show the decoder what it said before")
    parser.add_argument("--prompt", default="", help="text that is shown to the decoder before the first words")
    parser.add_argument("--hotwords", metavar="A,B", help="words that are shown to it before every window")
    text = "pieces, or short recordings, decoded together (default: %(default)s; 1 takes less memory)"
    parser.add_argument("--batch", type=int, choices=range(1, 65), default=4, metavar="N", help=text)
    parser.add_argument(
        "--vad", choices=CHOICES, default=AUTO, help="hear speech alone; auto: of audio over 30 s (default: auto)"
    )


def add_transcript_flags(parser: argparse.ArgumentParser) -> None:
    """What is written of the words, and where."""
    parser.add_argument("--word-timestamps", action="store_true", help="each word has times of its own")
    parser.add_argument("--max-line-width", type=int, help="letters of a line of subtitles, cut between words")
    parser.add_argument("--max-line-count", type=int, help="lines of a subtitle of such lines (default: 2)")
    text = "may be repeated with --output-dir (default: printed with times, written as txt)"
    parser.add_argument(
        "--output-format", dest="output_formats", action="append", default=[], choices=FORMATS, help=text
    )
    parser.add_argument("--output-dir", type=Path, help="write a file per recording and format there (default: print)")


def asked(options: argparse.Namespace) -> dict[str, str]:
    """The task and the language that flags name."""
    named = {"task": options.task, "language": options.language}
    return {name: value for name, value in named.items() if value is not None}


def add_window_flag(parser: argparse.ArgumentParser, default: str) -> None:
    """--window, whose help says what it is by default."""
    text = f"Whisper: full, auto, or seconds that audio is heard in (default: {default})"
    parser.add_argument("--window", metavar="full|auto|SECONDS", help=text)


def precisions(text: str) -> tuple[str, ...]:
    """Precisions with commas between."""
    named = tuple(text.split(","))
    for name in named:
        if name not in PRECISIONS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(PRECISIONS)}")
    return named


def add_session_flags(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """--runtime, --threads and --precision, of which there may be several."""
    cores, known = usable_cores(), offered_runtimes()
    parser.add_argument("--runtime", default="onnxruntime", help=f"one of {', '.join(known)} (default: onnxruntime)")
    parser.add_argument("--threads", type=int, default=cores, help=f"compute threads (default: all {cores})")
    if several:
        text = "type computed in, or several with commas: the first that passes its check (default: fp32)"
        parser.add_argument("--precision", type=precisions, default=("fp32",), metavar="TYPE[,TYPE]", help=text)
        return
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS, help="type computed in (default: fp32)")
