"""The verbs of a runtime, for both of NVIDIA's libraries."""

from __future__ import annotations

import contextlib
from pathlib import Path

from leanear.runtimes.artifact import Artifact
from leanear.runtimes.backends.bf16_networks import has_bf16
from leanear.runtimes.backends.cuda_memory import Cuda
from leanear.runtimes.backends.engine_runs import Gpu
from leanear.runtimes.backends.engine_sessions import GpuSession, GpuSpeechSession
from leanear.runtimes.backends.engines import (
    BF16,
    Place,
    build_engines,
    check_graph_precision,
    compiled_folder,
    engines_ahead,
    import_library,
)
from leanear.runtimes.errors import RuntimeUnavailable
from leanear.runtimes.sessions import SessionOptions


def available(name: str) -> str | None:
    """None, or why the library cannot be used here: it is missing, cuda-python is, or there is no GPU."""
    try:
        import_library(name)
        Cuda().close()
    except RuntimeUnavailable as error:
        return str(error)
    return None


def precisions(of_all: tuple[str, ...]) -> tuple[str, ...]:
    """Those of a library's precisions that the GPU which is here computes in; all, where none is here."""
    try:
        cuda = Cuda()
    except RuntimeUnavailable:
        return of_all
    capability = cuda.capability
    cuda.close()
    return tuple(name for name in of_all if name != BF16 or has_bf16(capability))


def compile_engines(name: str, artifact: Artifact, options: SessionOptions, out: Path) -> Path:
    """The folder `out` with an engine of every graph, for the GPU that is here.

    Raises:
        BadInput, RuntimeUnavailable, MeasurementFailed: as `leanear.runtimes.backends.engines.build_engines`.
    """
    check_graph_precision(artifact, options)
    import_library(name)
    cuda = Cuda()
    try:
        build_engines(name, artifact, options, here(cuda), out)
    finally:
        cuda.close()
    return out


def load_session(name: str, artifact: Artifact, options: SessionOptions) -> GpuSession | GpuSpeechSession:
    """A session whose engines were built ahead of time, or are those of `compiled_folder`, built first if need be.

    Raises:
        BadInput: the library refuses a graph, or another precision is asked for than the graphs'.
        RuntimeUnavailable: the library, cuda-python or a GPU is missing, or an engine is not for this GPU.
        MeasurementFailed: an engine could not be built, or memory could not be had.
    """
    check_graph_precision(artifact, options)
    library = import_library(name)
    cuda = Cuda()
    with contextlib.ExitStack() as undo:
        undo.callback(cuda.close)
        built = engines_ahead(name, artifact, options, cuda.capability)
        if built is None:
            built = build_engines(name, artifact, options, here(cuda), compiled_folder(artifact))
        undo.pop_all()
    gpu = Gpu(library, name, cuda, options)
    return GpuSpeechSession(gpu, artifact, built) if artifact.is_speech else GpuSession(gpu, artifact, built)


def here(cuda: Cuda) -> Place:
    """The GPU of this machine, and how much of its memory is free now."""
    return Place(cuda.device, (cuda.capability,), True, cuda.free_bytes())
