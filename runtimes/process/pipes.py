"""Pipes: room for what comes in while a program starts, and its end where the reader of its output is gone.

That `head` goes after the lines that it wants is no error, and there is nothing to say.
"""

from __future__ import annotations

import contextlib
import os
import sys

SET_PIPE_SIZE, PIPE_BYTES = 1031, 2**20  # Linux's F_SETPIPE_SZ, and the most that it gives everybody
CLOSED_PIPE = 141  # what shells give a program that SIGPIPE ends


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
