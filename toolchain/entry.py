"""The `leanear` command's front door: a device install, which lacks the workstation's libraries, gets a clear line."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its status."""
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
