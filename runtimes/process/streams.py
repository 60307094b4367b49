"""Standard input, output and error: any text in any encoding, room in a pipe, and its end where its reader is gone."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import sys
from typing import Tuple, Union

# How our own signs are written where there is nothing but ASCII, or an old code page.
PLAIN = {"×": "x", "−": "-", "–": "-", "→": "->", "±": "+-", "‖": "||", "…": "..."}
ERRORS = "leanear-plain"
LOW_SURROGATES = range(0xDC80, 0xDD00)  # how Python holds bytes of a file's name that are no text
SET_PIPE_SIZE, PIPE_BYTES = 1031, 2**20  # Linux's F_SETPIPE_SZ, and the most that it gives everybody
CLOSED_PIPE = 141  # what shells give a program that SIGPIPE ends, as `head` does; that is no error, and nothing is said


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
