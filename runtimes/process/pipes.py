"""The end of a command whose reader is gone, as `head` goes after the lines that it wants: no error, nothing to say."""

from __future__ import annotations

import os
import sys

CLOSED_PIPE = 141  # what shells give a program that SIGPIPE ends


def leave_closed_pipe() -> int:
    """The exit status; what is still to be written goes nowhere, so that Python does not complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ is not None else 1)
    return CLOSED_PIPE


def leave_closed_error() -> None:
    """Standard error has no reader any more: what is still to be said goes nowhere, and the work goes on."""
    if sys.__stderr__ is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stderr__.fileno())
