"""OpenVINO on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanear.runtimes.errors import BadInput, RuntimeUnavailable

if TYPE_CHECKING:  # numpy, which a device may lack
    from leanear.runtimes.artifact import Artifact
    from leanear.runtimes.sessions import SessionOptions

NAME = "openvino"
TITLE = "OpenVINO"
PACKAGE = "openvino>=2024.6"
INSTALL = "pip install openvino"
FORM = "openvino"
NEEDED = {"fp32": (), "bf16": ("BF16",), "int8": ("INT8",), "int8-bf16": ("INT8", "BF16")}  # of a CPU's capabilities
PRECISIONS = tuple(NEEDED)
ON_GPU = False
AHEAD_OF_TIME = False
DEVICE = "CPU"


def available() -> str | None:
    """None, or why OpenVINO cannot be used here and the command that would install it."""
    try:
        import openvino
    except ImportError as error:
        return f"the package openvino does not import ({error}); try: {INSTALL}"
    if DEVICE not in openvino.Core().available_devices:
        return f"OpenVINO {openvino.__version__} finds no {DEVICE} device; try: {INSTALL} --force-reinstall"
    return None


def precisions() -> tuple[str, ...]:
    """The precisions that OpenVINO says this CPU has: bf16 and 8 bits where its instructions allow them."""
    import openvino

    capabilities = openvino.Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    return tuple(precision for precision, all_of in NEEDED.items() if set(all_of) <= set(capabilities))


def compile(artifact: Artifact, options: SessionOptions, out: Path) -> Path | None:  # noqa: ARG001
    """None: a compiled blob is tied to this CPU and version, and saved a third of half a second when measured."""
    return None


def load(artifact: Artifact, options: SessionOptions) -> Any:
    """A session of the artifact's graphs, compiled for this CPU.

    Raises:
        BadInput: a graph is not one that OpenVINO accepts, or this CPU does not compute in that precision.
        RuntimeUnavailable: the library is missing, or it chose another precision than the one asked for.
    """
    from leanear.runtimes.backends.openvino_sessions import IntelCpuSession, IntelSpeechSession
    from leanear.runtimes.sessions import check_precision

    reason = available()
    if reason is not None:
        raise RuntimeUnavailable(f"{NAME}: {reason}")
    if options.precision not in precisions():
        raise BadInput(f"precision: {NAME} does not compute in {options.precision} on this CPU")
    check_precision(artifact, options)
    if "onnxruntime" in artifact.forms:  # some of their operators it refuses, on others it crashes
        raise RuntimeUnavailable(
            f"{artifact.folder}: its graphs are of the form onnxruntime, and OpenVINO does not take all of their "
            "operators; export it with --form openvino, or portable"
        )
    return IntelSpeechSession(artifact, options) if artifact.is_speech else IntelCpuSession(artifact, options)
