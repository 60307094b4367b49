"""`python -m benchmarks`: the door to `benchmarks.commands`, past what lies in the current folder."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """The exit status of one command, which imports nothing from the current folder."""
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from runtimes.isolation import leave_current_folder

    sys.path.pop(0)
    leave_current_folder()
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ctrl-C just ends it until there is who says so
    from runtimes.interrupts import run_interruptibly
    from runtimes.streams import take_any_text

    take_any_text()
    return run_interruptibly(_run)


def _run() -> int:
    from benchmarks.commands import main as run_command

    return run_command()


if __name__ == "__main__":
    sys.exit(main())
