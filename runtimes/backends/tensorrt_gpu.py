"""NVIDIA GPUs by TensorRT 10 or 11: engines are built on the device itself. TensorRT-RTX has the same verbs."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanear.runtimes.errors import RuntimeUnavailable

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
    """None, or why the library called `name` cannot be used here: it is missing, cuda-python is, or there is no GPU."""
    from leanear.runtimes.backends.cuda_memory import Cuda
    from leanear.runtimes.backends.engines import import_library

    try:
        import_library(name)
        Cuda().close()
    except RuntimeUnavailable as error:
        return str(error)
    return None


def precisions() -> tuple[str, ...]:
    """Those that the GPU which is here computes in, where one is: no bf16 before Ampere."""
    from leanear.runtimes.backends.bf16_networks import has_bf16
    from leanear.runtimes.backends.cuda_memory import Cuda

    try:
        with contextlib.closing(Cuda()) as cuda:
            capability = cuda.capability
    except RuntimeUnavailable:
        return PRECISIONS
    return tuple(name for name in PRECISIONS if name != "bf16" or has_bf16(capability))


def compile(artifact: Artifact, options: SessionOptions, out: Path, name: str = NAME) -> Path | None:
    """The folder `out` with the engines of all graphs, built for this GPU; those that are there already are kept.

    Raises:
        BadInput, RuntimeUnavailable, MeasurementFailed: as `leanear.runtimes.backends.engines.build_engines`.
    """
    from leanear.runtimes.backends.cuda_memory import Cuda
    from leanear.runtimes.backends.engines import build_engines, check_graph_precision, import_library, this_gpu

    check_graph_precision(artifact, options)
    import_library(name)
    with contextlib.closing(Cuda()) as cuda:
        build_engines(name, artifact, options, this_gpu(cuda), out)
    return out


def load(artifact: Artifact, options: SessionOptions, name: str = NAME) -> Any:
    """A session whose engines were built ahead of time, or are those of `compiled_folder`, built first if need be.

    Raises:
        BadInput: the library refuses a graph, or another precision is asked for than the graphs'.
        RuntimeUnavailable: the library, cuda-python or a GPU is missing, or an engine is not for this GPU.
        MeasurementFailed: an engine could not be built, or memory could not be had.
    """
    from leanear.runtimes.backends import engines
    from leanear.runtimes.backends.cuda_memory import Cuda
    from leanear.runtimes.backends.engine_runs import Gpu
    from leanear.runtimes.backends.engine_sessions import GpuSession, GpuSpeechSession

    engines.check_graph_precision(artifact, options)
    library = engines.import_library(name)
    cuda = Cuda()
    with contextlib.ExitStack() as undo:
        undo.callback(cuda.close)
        built = engines.engines_ahead(name, artifact, options, cuda.capability)
        if built is None:
            place, folder = engines.this_gpu(cuda), engines.compiled_folder(artifact)
            built = engines.build_engines(name, artifact, options, place, folder)
        undo.pop_all()
    gpu = Gpu(library, name, cuda, options)
    return GpuSpeechSession(gpu, artifact, built) if artifact.is_speech else GpuSession(gpu, artifact, built)
