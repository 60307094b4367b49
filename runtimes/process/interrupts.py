"""Ctrl-C or SIGTERM at any moment ends a command with one line, also in the midst of an import.

Python raises KeyboardInterrupt, or what a handler raises, wherever it happens to be. In a library's start-up code that
may come back as another error, such as an ImportError, or be printed as "ignored" and lost; so it is remembered what
was asked for. In the C++ of a library that is being loaded it may end the process without a word; there it waits.

The line says that the command would go on from what it keeps only where it keeps something.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import FrameType
from typing import Any, Callable, Iterator, List

INTERRUPTED, TERMINATED = 130, 143
AGAIN_S = 0.05

_asked, _told = threading.Event(), threading.Event()
GOES_ON = "what was finished is kept, and the same command goes on from there"

_kept: List[Path] = []


class Terminated(SystemExit):
    """The end that SIGTERM asks for."""


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


@contextlib.contextmanager
def recorder_ends_first(say: Callable[[str], None]) -> Iterator[None]:
    """Within the block the first ctrl-C is the recorder's, at the other end of our pipe: what it wrote is still heard.

    The next one ends us, as `say` is told.
    """
    before = signal.getsignal(signal.SIGINT)
    if before in (signal.SIG_IGN, None) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def wait(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        say("hearing what was recorded; ctrl-C again leaves it")

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def was_interrupted() -> bool:
    """Whether ctrl-C was pressed, whatever error came of it."""
    return _asked.is_set()


def end_by_sigterm() -> None:
    """From now on SIGTERM unwinds the stack as ctrl-C does, so that temporary files and child processes go with us."""
    _told.clear()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)


def was_terminated() -> bool:
    """Whether SIGTERM came, whatever became of it."""
    return _told.is_set()


def _terminate(number: int, frame: FrameType | None) -> None:
    _told.set()
    _raise_where_it_is_heard(Terminated(TERMINATED), number, frame)


def _watch() -> None:
    _asked.clear()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as shells start what runs in the background
        signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = _say_unraisable


def _interrupt(number: int, frame: FrameType | None) -> None:
    _asked.set()
    _raise_where_it_is_heard(KeyboardInterrupt(), number, frame)


def _raise_where_it_is_heard(error: BaseException, number: int, frame: FrameType | None) -> None:
    """Raise it; where a module of machine code is starting up, let the signal come again."""
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
            _send_again(number)
            return
        frame = frame.f_back
    raise error


def _send_again(number: int) -> None:
    """A moment later."""
    threading.Timer(AGAIN_S, os.kill, (os.getpid(), number)).start()


def _say_unraisable(unraisable: Any) -> None:
    """A signal that Python would print and forget comes again, a moment later, where it is heard."""
    if issubclass(unraisable.exc_type, (KeyboardInterrupt, Terminated)):
        _send_again(signal.SIGTERM if issubclass(unraisable.exc_type, Terminated) else signal.SIGINT)
    else:
        sys.__unraisablehook__(unraisable)


def forget_kept() -> None:
    """A command begins, which has kept nothing yet."""
    _kept.clear()


def remember_kept(path: Path) -> None:
    """A file or folder was written, or was found whole, that spares its work the next time."""
    _kept.append(path)


def what_is_kept() -> str:
    """What the line of an interrupted command says of it: nothing where nothing is kept, or no more."""
    return f"; {GOES_ON}" if any(path.exists() for path in _kept) else ""
