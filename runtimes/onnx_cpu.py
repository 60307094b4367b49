"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.artifact import Artifact
from runtimes.errors import BadInput, RuntimeUnavailable
from runtimes.sessions import SessionOptions, checked_logits, checked_waveform

NAME = "onnxruntime"
INSTALL = "pip install onnxruntime"
PROVIDER = "CPUExecutionProvider"
LOG_SEVERITY_ERROR = 3


def available() -> str | None:
    """None, or why ONNX Runtime cannot be used here and the command that would install it."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        return f"the package onnxruntime does not import ({error}); try: {INSTALL}"
    return None


def precisions() -> tuple[str, ...]:
    """Only "fp32": the CPU provider has no switch that changes the type of a float32 graph."""
    return ("fp32",)


def compile(artifact: Artifact, options: SessionOptions, out: Path) -> Path | None:  # noqa: ARG001
    """None: a saved optimised graph is tied to this CPU and version and did not load faster where it was measured."""
    return None


def load(artifact: Artifact, options: SessionOptions) -> OnnxCpuSession:
    """A session of the artifact's graph on the CPU provider alone.

    Raises:
        BadInput: the precision is not fp32, or the graph is not one that ONNX Runtime accepts.
        RuntimeUnavailable: the library is missing, or the session came up on another provider.
    """
    reason = available()
    if reason is not None:
        raise RuntimeUnavailable(f"{NAME}: {reason}")
    if options.precision not in precisions():
        raise BadInput(f"precision: {NAME} computes in fp32 only on a CPU, not in {options.precision}")
    return OnnxCpuSession(artifact, options)


class OnnxCpuSession:
    """A graph loaded by ONNX Runtime: sequential execution, spinning threads, one inference at a time."""

    def __init__(self, artifact: Artifact, options: SessionOptions) -> None:
        import onnxruntime
        from onnxruntime.capi.onnxruntime_pybind11_state import (
            Fail,
            InvalidArgument,
            InvalidGraph,
            InvalidProtobuf,
            NotImplemented,
        )

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        settings.log_severity_level = LOG_SEVERITY_ERROR
        settings.add_session_config_entry("session.intra_op.allow_spinning", "1")
        graph = artifact.graphs["classifier"]
        try:
            self._session = onnxruntime.InferenceSession(os.fspath(graph), settings, providers=[PROVIDER])
        except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NotImplemented) as error:
            raise BadInput(f"{graph}: ONNX Runtime refuses the graph ({_one_line(error)})") from None
        if self._session.get_providers() != [PROVIDER]:
            raise RuntimeUnavailable(f"{NAME}: asked for {PROVIDER}, got {self._session.get_providers()}")
        self._labels = len(artifact.labels)
        self._input = self._session.get_inputs()[0].name
        self._outputs = [self._session.get_outputs()[0].name]
        self._version = str(onnxruntime.__version__)

    def run(self, waveform: np.ndarray) -> np.ndarray:
        """Logits, float32 (labels,), of one waveform, float32 (samples,)."""
        (logits,) = self._session.run(self._outputs, {self._input: checked_waveform(waveform)})
        return checked_logits(logits, self._labels)

    def facts(self) -> dict[str, Any]:
        """Version, providers, threads and memory settings as the session reports them."""
        settings = self._session.get_session_options()
        return {
            "runtime": NAME,
            "version": self._version,
            "execution_providers": list(self._session.get_providers()),
            "threads": settings.intra_op_num_threads,
            "inter_op_threads": settings.inter_op_num_threads,
            "execution_mode": settings.execution_mode.name,
            "graph_optimization_level": settings.graph_optimization_level.name,
            "spinning": settings.get_session_config_entry("session.intra_op.allow_spinning") == "1",
            "memory_arena": settings.enable_cpu_mem_arena,
            "memory_pattern": settings.enable_mem_pattern,
            "precision": "fp32",
        }

    def close(self) -> None:
        """Release the graph and its memory."""
        del self._session


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
