"""Notes: what a user should know of an input that is used all the same, one line each on standard error.

Standard input, output and error take any text in any encoding, have room in a pipe, and end where their reader is gone.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import logging
import math
import os
import sys
from pathlib import Path
from typing import Callable, Iterator, Sequence, Tuple, Union

Note = Callable[[str], None]
"""Takes one line that names the file or the folder."""

LOGGER = logging.getLogger("leanear")  # with no handler set, Python writes its warnings to standard error as they are
MOST_OF_ONE_KIND = 3
UNHEARD_S = 0.1  # behind a model's window, that is not worth a word
# How our own signs are written where there is nothing but ASCII, or an old code page.
PLAIN = {"×": "x", "−": "-", "–": "-", "→": "->", "±": "+-", "‖": "||", "…": "..."}
ERRORS = "leanear-plain"
LOW_SURROGATES = range(0xDC80, 0xDD00)  # how Python holds bytes of a file's name that are no text
SET_PIPE_SIZE, PIPE_BYTES = 1031, 2**20  # Linux's F_SETPIPE_SZ, and the most that it gives everybody
CLOSED_PIPE = 141  # what shells give a program that SIGPIPE ends, as `head` does; that is no error, and nothing is said


def note(text: str) -> None:
    """Say one line; standard output holds results alone, so it does not go there."""
    LOGGER.warning("note: %s", " ".join(text.split()))


def files_below(folder: Path, say: Note = note) -> list[Path]:
    """The files of a folder and of its sub-folders, sorted; say: told of sub-folders that cannot be read, and links."""

    def unread(error: OSError) -> None:
        say(f"{error.filename}: passed over, for it cannot be read ({error.strerror})")

    found = sorted(Path(place, name) for place, _, names in os.walk(folder, onerror=unread) for name in names)
    dead = [path.name for path in found if path.is_symlink() and not path.exists()]
    if dead:
        say(f"{folder}: links that lead nowhere are passed over: {named(dead)}")
    return found


def printable(text: str) -> str:
    """Text of which nothing moves a terminal's cursor: a space for each letter that is no letter to see."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def plural(count: int, noun: str) -> str:
    """So many of something: "1 clip", "2,000 clips"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def named(names: Sequence[str], most: int = MOST_OF_ONE_KIND) -> str:
    """The first few of many names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


@contextlib.contextmanager
def no_notes() -> Iterator[None]:
    """Say none within the block; also for all but one of several processes that read the same."""
    before = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOGGER.setLevel(before)


def note_first(texts: Sequence[str], of: str) -> None:
    """Say the first few of many lines, and how many more there are; of: what each line is about, in the singular."""
    for text in texts[:MOST_OF_ONE_KIND]:
        note(text)
    if len(texts) > MOST_OF_ONE_KIND:
        note(f"and so of {plural(len(texts) - MOST_OF_ONE_KIND, f'more {of}')}")


def is_cut(samples: float, window_samples: int, sample_rate_hz: int) -> bool:
    """Whether a clip goes on for a while behind the model's window, where it is not heard."""
    return samples - window_samples >= UNHEARD_S * sample_rate_hz


def note_cut(path: object, samples: float, window_samples: int, sample_rate_hz: int) -> None:
    """Say of a clip that is longer than the model's window how much of it is heard; samples: infinite if not known."""
    if is_cut(samples, window_samples, sample_rate_hz):
        of_all = f" of {samples / sample_rate_hz:.2f} s" if math.isfinite(samples) else ""
        note(f"{path}: the model hears only the first {window_samples / sample_rate_hz:.2f} s{of_all}")


def take_any_text() -> None:
    """From now on nothing that is written to standard output or error is an error because of its letters."""
    codecs.register_error(ERRORS, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def _plain(error: UnicodeError) -> Tuple[Union[str, bytes], int]:
    """One letter that the encoding lacks: as in PLAIN, as the byte that it stands for, or by its number as in JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if ord(letter) in LOW_SURROGATES:
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    return PLAIN.get(letter) or json.dumps(letter)[1:-1], error.start + 1


def leave_closed_pipe() -> int:
    """The exit status; what is still to be written goes nowhere, so that Python does not complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ is not None else 1)
    return CLOSED_PIPE


def leave_closed_error() -> None:
    """Standard error has no reader any more: what is still to be said goes nowhere, and the work goes on."""
    if sys.__stderr__ is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stderr__.fileno())


def widen_standard_input() -> None:
    """Let a pipe hold what comes while a program is still starting: Linux gives it 2 s of audio, if nobody asks.

    Nothing where standard input is no pipe, or the system has no such wish.
    """
    with contextlib.suppress(ImportError, OSError, ValueError):
        import fcntl

        fcntl.fcntl(0, SET_PIPE_SIZE, PIPE_BYTES)
