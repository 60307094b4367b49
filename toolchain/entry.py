"""The `leanear` command's front door: a device install, which lacks the workstation's libraries, gets a clear line."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with its status; nothing is imported from the current folder."""
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from runtimes.isolation import leave_current_folder

    sys.path.pop(0)
    leave_current_folder()
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        print(
            f"leanear: {error.name} is not installed; on a workstation: pip install 'leanear[host]'; "
            "on a device: python -m benchmarks --help",
            file=sys.stderr,
        )
        sys.exit(2)
    from toolchain.cli import run

    sys.exit(run())


if __name__ == "__main__":
    main()
