"""The `leanear` command's front door: a device install, which lacks the workstation's libraries, gets a clear line."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # built in: no signal.py in the current folder stands for it
import sys


def main() -> None:
    """Run the command line and exit with its status; nothing is imported from the current folder."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # ctrl-C just ends it until there is who says so
    from leanear.runtimes.process.isolation import leave_current_folder

    leave_current_folder()
    from leanear.runtimes.process.interrupts import run_interruptibly
    from leanear.runtimes.process.notes import take_any_text, widen_standard_input

    widen_standard_input()
    take_any_text()
    sys.exit(run_interruptibly(_run))


def _run() -> int:
    from leanear.runtimes.process.interrupts import was_interrupted

    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        if was_interrupted():
            raise
        print(
            f"leanear: {error.name} is not installed; on a workstation: pip install 'leanear[host]'; "
            "on a device: python -m leanear.benchmarks --help",
            file=sys.stderr,
        )
        return 2
    from leanear.cli.commands import run

    return run()


if __name__ == "__main__":
    main()
