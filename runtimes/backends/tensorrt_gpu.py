"""NVIDIA GPUs by TensorRT 10 or 11: engines are built on the device itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leanear.runtimes.artifact import Artifact
from leanear.runtimes.backends import gpu_runtime
from leanear.runtimes.sessions import SessionOptions

NAME = "tensorrt"


def available() -> str | None:
    """None, or why TensorRT cannot be used here and what would help."""
    return gpu_runtime.available(NAME)


def precisions() -> tuple[str, ...]:
    """The precisions that graphs may have: an engine computes in its graph's."""
    return gpu_runtime.PRECISIONS


def compile(artifact: Artifact, options: SessionOptions, out: Path) -> Path | None:
    """The folder `out` with the engines of all graphs, built for this GPU; those that are there already are kept."""
    return gpu_runtime.compile_engines(NAME, artifact, options, out)


def load(artifact: Artifact, options: SessionOptions) -> Any:
    """A session on this GPU; engines that are not there yet are built first.

    Raises:
        BadInput, RuntimeUnavailable, MeasurementFailed: as `leanear.runtimes.backends.gpu_runtime.load_session`.
    """
    return gpu_runtime.load_session(NAME, artifact, options)
