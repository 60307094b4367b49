"""What the running command keeps that it, started again, would go on from; so that it is said only where it is true."""

from __future__ import annotations

from pathlib import Path
from typing import List

GOES_ON = "what was finished is kept, and the same command goes on from there"

_kept: List[Path] = []


def forget_kept() -> None:
    """A command begins, which has kept nothing yet."""
    _kept.clear()


def remember_kept(path: Path) -> None:
    """A file or folder was written, or was found whole, that spares its work the next time."""
    _kept.append(path)


def what_is_kept() -> str:
    """What the line of an interrupted command says of it: nothing where nothing is kept, or no more."""
    return f"; {GOES_ON}" if any(path.exists() for path in _kept) else ""
