"""NVIDIA GPUs by TensorRT 10 or 11: engines are built on the device itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # numpy, which a device may lack
    from leanear.runtimes.artifact import Artifact
    from leanear.runtimes.sessions import SessionOptions

NAME = "tensorrt"
TITLE = "TensorRT"
PACKAGE = "tensorrt>=10"
INSTALL = "it comes with JetPack (sudo apt-get install python3-libnvinfer); elsewhere: pip install tensorrt"
EARLIEST = 10  # major version
FORM = "tensorrt"
PRECISIONS = ("fp32", "bf16", "fp16", "int8")  # an engine computes in its graph's; bf16 is made of fp32
ON_GPU = True
AHEAD_OF_TIME = False


def available(name: str = NAME) -> str | None:
    """None, or why the library called `name` cannot be used here and what would help."""
    from leanear.runtimes.backends import gpu_runtime

    return gpu_runtime.available(name)


def precisions() -> tuple[str, ...]:
    """bf16 where the GPU has it, which those before Ampere have not, and the others on every machine."""
    from leanear.runtimes.backends import gpu_runtime

    return gpu_runtime.precisions(PRECISIONS)


def compile(artifact: Artifact, options: SessionOptions, out: Path, name: str = NAME) -> Path | None:
    """The folder `out` with the engines of all graphs, built for this GPU; those that are there already are kept."""
    from leanear.runtimes.backends import gpu_runtime

    return gpu_runtime.compile_engines(name, artifact, options, out)


def load(artifact: Artifact, options: SessionOptions, name: str = NAME) -> Any:
    """A session on this GPU; engines that are not there yet are built first.

    Raises:
        BadInput, RuntimeUnavailable, MeasurementFailed: as `leanear.runtimes.backends.gpu_runtime.load_session`.
    """
    from leanear.runtimes.backends import gpu_runtime

    return gpu_runtime.load_session(name, artifact, options)
