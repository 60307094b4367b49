"""Flags that several of a device's commands have."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Sequence

from leanear.benchmarks.sensors.device import usable_cores
from leanear.runtimes.choose import offered_runtimes
from leanear.runtimes.precisions import PRECISIONS
from leanear.runtimes.tasks import SPOKEN_TASKS


def at_least_0(text: str) -> float:
    """A finite number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def add_artifact(parser: argparse.ArgumentParser, bundled: Sequence[str]) -> None:
    """The artifact, which a bundle has itself."""
    text = "artifact folder" + bundles("artifact", bundled)
    parser.add_argument("artifact", type=Path, nargs="?" if "artifact" in bundled else None, help=text)


def bundles(name: str, bundled: Sequence[str]) -> str:
    """What a flag's help says of a bundle's own."""
    return " (default: the bundle's)" if name in bundled else ""


def add_speech_flags(parser: argparse.ArgumentParser) -> None:
    """--language and --task."""
    code = 'a code such as "en", or "auto" (default: the model\'s own, or auto)'
    parser.add_argument("--language", metavar="CODE", help=f"Whisper: {code}")
    parser.add_argument("--task", choices=SPOKEN_TASKS, help="Whisper: (default: the model's own)")


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
