"""`python -m leanear.benchmarks`: the door to `benchmarks.device.commands`, past what lies in the current folder."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # built in: no signal.py in the current folder stands for it
import sys


def main() -> int:
    """The exit status of one command, which imports nothing from the current folder."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # ctrl-C just ends it until there is who says so
    from leanear.runtimes.process.isolation import leave_current_folder

    leave_current_folder()
    from leanear.runtimes.process.interrupts import run_interruptibly
    from leanear.runtimes.process.notes import take_any_text

    take_any_text()
    return run_interruptibly(_run)


def _run() -> int:
    from leanear.benchmarks.device.commands import main as run_command

    return run_command()


if __name__ == "__main__":
    sys.exit(main())
