"""OpenVINO on the CPU."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.artifact import Artifact
from runtimes.errors import BadInput, RuntimeUnavailable
from runtimes.sessions import SessionOptions, checked_logits, checked_waveform

NAME = "openvino"
INSTALL = "pip install openvino"
DEVICE = "CPU"
ELEMENT_TYPES = {"fp32": "f32", "bf16": "bf16"}


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
    """The precisions that OpenVINO says this CPU has: "fp32", and "bf16" where its instructions allow it."""
    import openvino

    capabilities = openvino.Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    return ("fp32", "bf16") if "BF16" in capabilities else ("fp32",)


def compile(artifact: Artifact, options: SessionOptions, out: Path) -> Path | None:  # noqa: ARG001
    """None: a compiled blob is tied to this CPU and version, and saved a third of half a second when measured."""
    return None


def load(artifact: Artifact, options: SessionOptions) -> IntelCpuSession:
    """A session of the artifact's graph, compiled for this CPU.

    Raises:
        BadInput: the graph is not one that OpenVINO accepts, or this CPU does not compute in that precision.
        RuntimeUnavailable: the library is missing, or it chose another precision than the one asked for.
    """
    reason = available()
    if reason is not None:
        raise RuntimeUnavailable(f"{NAME}: {reason}")
    if options.precision not in precisions():
        raise BadInput(f"precision: {NAME} does not compute in {options.precision} on this CPU")
    return IntelCpuSession(artifact, options)


class IntelCpuSession:
    """A graph compiled by OpenVINO for latency: one stream, one reused request, precision said and verified.

    Left to itself OpenVINO computes in bf16 on a CPU that has it, so the precision is always given, and what the
    compiled model reports is compared with it.
    """

    def __init__(self, artifact: Artifact, options: SessionOptions) -> None:
        import openvino
        import openvino.properties as properties
        import openvino.properties.hint as hint

        wanted = getattr(openvino.Type, ELEMENT_TYPES[options.precision])
        settings = {
            hint.performance_mode(): hint.PerformanceMode.LATENCY,
            hint.inference_precision(): wanted,
            hint.execution_mode(): hint.ExecutionMode.PERFORMANCE,
            properties.inference_num_threads(): options.threads,
            properties.num_streams(): 1,
        }
        core = openvino.Core()
        graph = artifact.graphs["classifier"]
        try:
            self._compiled = core.compile_model(os.fspath(graph), DEVICE, settings)
        except RuntimeError as error:
            raise BadInput(f"{graph}: OpenVINO refuses the graph ({_one_line(error)})") from None
        reported = self._compiled.get_property(hint.inference_precision())
        if reported != wanted:
            raise RuntimeUnavailable(
                f"{NAME}: asked for {options.precision}, but the compiled model reports {reported.get_type_name()}"
            )
        self._request = self._compiled.create_infer_request()
        self._labels = len(artifact.labels)
        self._version = str(openvino.__version__)

    def run(self, waveform: np.ndarray) -> np.ndarray:
        """Logits, float32 (labels,), of one waveform, float32 (samples,)."""
        outputs = self._request.infer([checked_waveform(waveform)], share_inputs=True, share_outputs=True)
        return checked_logits(outputs[0], self._labels)

    def facts(self) -> dict[str, Any]:
        """Version, threads, streams and precision as the compiled model reports them, and the types of its nodes."""
        from openvino.properties import execution_devices, inference_num_threads, num_streams
        from openvino.properties.hint import inference_precision, performance_mode

        node_precisions = Counter(
            str(node.get_rt_info()["runtimePrecision"].astype(str))
            for node in self._compiled.get_runtime_model().get_ops()
        )
        return {
            "runtime": NAME,
            "version": self._version,
            "execution_devices": list(self._compiled.get_property(execution_devices())),
            "threads": int(self._compiled.get_property(inference_num_threads())),
            "streams": int(self._compiled.get_property(num_streams())),
            "performance_hint": str(self._compiled.get_property(performance_mode())),
            "INFERENCE_PRECISION_HINT": self._compiled.get_property(inference_precision()).get_type_name(),
            "node_precisions": dict(sorted(node_precisions.items())),
        }

    def close(self) -> None:
        """Release the graph and its memory."""
        del self._request
        del self._compiled


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
