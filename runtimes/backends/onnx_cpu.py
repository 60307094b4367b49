"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanear.runtimes.errors import BadInput, RuntimeUnavailable

if TYPE_CHECKING:  # numpy, which a device may lack
    from leanear.runtimes.artifact import Artifact
    from leanear.runtimes.sessions import SessionOptions

NAME = "onnxruntime"
TITLE = "ONNX Runtime"
PACKAGE = "onnxruntime>=1.17"
INSTALL = "pip install onnxruntime"
FORM = "onnxruntime"
PRECISIONS = ("fp32", "int8")  # those of graphs: no switch of the CPU provider changes the type of a float32 graph
ON_GPU = False
AHEAD_OF_TIME = False


def available() -> str | None:
    """None, or why ONNX Runtime cannot be used here and the command that would install it."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        return f"the package onnxruntime does not import ({error}); try: {INSTALL}"
    return None


def precisions() -> tuple[str, ...]:
    """The same on every machine."""
    return PRECISIONS


def compile(artifact: Artifact, options: SessionOptions, out: Path) -> Path | None:  # noqa: ARG001
    """None: a saved optimised graph is tied to this CPU and version and did not load faster where it was measured."""
    return None


def load(artifact: Artifact, options: SessionOptions) -> Any:
    """A session of the artifact's graphs on the CPU provider alone.

    Raises:
        BadInput: the precision is not that of the graphs, or a graph is not one that ONNX Runtime accepts.
        RuntimeUnavailable: the library is missing, or the session came up on another provider.
    """
    from leanear.runtimes.backends.onnx_sessions import OnnxCpuSession, OnnxSpeechSession
    from leanear.runtimes.sessions import check_precision

    reason = available()
    if reason is not None:
        raise RuntimeUnavailable(f"{NAME}: {reason}")
    if options.precision not in precisions():
        raise BadInput(f"precision: {NAME} computes in fp32 only on a CPU, or in int8, not in {options.precision}")
    check_precision(artifact, options)
    return OnnxSpeechSession(artifact, options) if artifact.is_speech else OnnxCpuSession(artifact, options)
