"""A runtime that computes nothing: right shapes, a fixed time, answers that a test can foresee."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanear.runtimes.choose import PRECISIONS

if TYPE_CHECKING:  # numpy, which a device may lack
    from leanear.runtimes.artifact import Artifact
    from leanear.runtimes.sessions import SessionOptions

NAME = "null"
TITLE = "null"
PACKAGE = None
INSTALL = ""
FORM = "portable"
ON_GPU = False
AHEAD_OF_TIME = False


def available() -> str | None:
    """None: it needs no library."""
    return None


def precisions() -> tuple[str, ...]:
    """Every precision: nothing is computed in any of them."""
    return PRECISIONS


def compile(artifact: Artifact, options: SessionOptions, out: Path) -> Path | None:  # noqa: ARG001
    """None: there is nothing to compile."""
    return None


def load(artifact: Artifact, options: SessionOptions) -> Any:
    """A session that answers without looking at the graph."""
    from leanear.runtimes.backends.null_sessions import NullSession, NullSpeechSession

    return NullSpeechSession(artifact, options) if artifact.is_speech else NullSession(artifact, options)
