"""Ctrl-C in a command that runs in the process of the tests, which has imported all, where a test says.

The handler that is installed is called as Python calls it: a signal that met none would end the tests without a word.
"""

from __future__ import annotations

import signal
import sys
import threading

import pytest

from leanear.cli.commands import run
from leanear.runtimes.process import interrupts


def interrupted_at(place: str, arguments: list[str]) -> int:
    """The command's status; ctrl-C comes where it calls the function of that name. What it sets is as before."""

    def press(*_given: object, **_named: object) -> None:
        handler = signal.getsignal(signal.SIGINT)
        assert callable(handler), handler
        handler(signal.SIGINT, sys._getframe())

    before = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, press)
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)
        patch.setattr(interrupts, "_asked", threading.Event())
        try:
            return interrupts.run_interruptibly(lambda: run(arguments))
        finally:
            signal.signal(signal.SIGINT, before)
