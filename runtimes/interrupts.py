"""Ctrl-C at any moment ends a command with one line, also in the midst of an import.

Python raises KeyboardInterrupt wherever it happens to be. In a library's start-up code that may come back as another
error, such as an ImportError, or be printed as "ignored" and lost; so it is remembered that it was ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any, Callable

INTERRUPTED = 130
AGAIN_S = 0.05

_asked = threading.Event()


def run_interruptibly(work: Callable[[], int]) -> int:
    """The exit status of `work`, which imports what it needs; after ctrl-C, whatever error came of it, one line."""
    _watch()
    try:
        status = work()
    except BaseException:
        if not was_interrupted():
            raise
        print("leanear: interrupted", file=sys.stderr)
        status = INTERRUPTED
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it is ending: another ctrl-C does not have to be told
    return status


def was_interrupted() -> bool:
    """Whether ctrl-C was pressed, whatever error came of it."""
    return _asked.is_set()


def _watch() -> None:
    _asked.clear()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as shells start what runs in the background
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _say_unraisable


def _interrupt(_number: int, _frame: object) -> None:
    _asked.set()
    raise KeyboardInterrupt


def _say_unraisable(unraisable: Any) -> None:
    """An interrupt that Python would print and forget comes again, a moment later, where it is heard."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(AGAIN_S, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)
