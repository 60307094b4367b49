"""Silero's voice activity model: how likely it is that somebody speaks, for every 32 ms of audio."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Protocol, Tuple

import numpy as np

from leanear.runtimes.choose import choose_runtime
from leanear.runtimes.errors import RuntimeUnavailable
from leanear.runtimes.sessions import SessionOptions

RATE_HZ = 16_000
FRAME_SAMPLES, CONTEXT_SAMPLES = 512, 64  # a frame, and what the graph sees of the one before
STATE_SHAPE = (1, 1, 128)
ONE_THREAD = SessionOptions(threads=1)  # 16 s of audio take about 60 ms

Outputs = Tuple[np.ndarray, np.ndarray, np.ndarray]
Run = Callable[[np.ndarray, np.ndarray, np.ndarray], Outputs]
"""The graph: of frames (n, CONTEXT_SAMPLES + FRAME_SAMPLES) and two states, probabilities (n,) and the next states."""


class Detector(Protocol):
    """Anything that tells speech from other sounds."""

    def probabilities(self, frames: np.ndarray) -> np.ndarray:
        """float32 (n,) of the next frames (n, FRAME_SAMPLES) of one recording, in order."""


class VoiceGraph:
    """The model over one recording; what it heard before counts, so every recording needs its own."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._states = np.zeros(STATE_SHAPE, np.float32), np.zeros(STATE_SHAPE, np.float32)
        self._context = np.zeros((1, CONTEXT_SAMPLES), np.float32)

    def probabilities(self, frames: np.ndarray) -> np.ndarray:
        """float32 (n,) of the next frames (n, FRAME_SAMPLES), in order."""
        ends = frames[:, -CONTEXT_SAMPLES:]
        fed = np.concatenate([np.concatenate([self._context, ends[:-1]]), frames], axis=1)
        shares, *states = self._run(np.ascontiguousarray(fed, np.float32), *self._states)
        self._states, self._context = (states[0], states[1]), ends[-1:]
        return np.asarray(shares, np.float32).reshape(-1)


def load_voice_graph(path: Path, runtime: str) -> Run:
    """The graph in `path` on one thread: on OpenVINO where that is the runtime, else on ONNX Runtime.

    Raises:
        RuntimeUnavailable: neither is there.
        BadInput: the file is not such a graph.
    """
    module = choose_runtime(runtime if runtime == "openvino" else "onnxruntime")
    reason = module.available()
    if reason is not None:
        raise RuntimeUnavailable(f"--vad: speech is told from other sounds by ONNX Runtime or OpenVINO: {reason}")
    return _on_openvino(path) if runtime == "openvino" else _on_onnxruntime(path)


def _on_onnxruntime(path: Path) -> Run:
    from leanear.runtimes.backends.onnx_sessions import load_graph

    session = load_graph(path, ONE_THREAD)

    def run(frames: np.ndarray, hidden: np.ndarray, cell: np.ndarray) -> Outputs:
        outputs: Any = session.run(["speech_probs", "hn", "cn"], {"input": frames, "h": hidden, "c": cell})
        return outputs[0], outputs[1], outputs[2]

    return run


def _on_openvino(path: Path) -> Run:
    from leanear.runtimes.backends.openvino_sessions import compile_graph

    compiled = compile_graph(path, ONE_THREAD)

    def run(frames: np.ndarray, hidden: np.ndarray, cell: np.ndarray) -> Outputs:
        outputs: Any = compiled({"input": frames, "h": hidden, "c": cell})
        return outputs["speech_probs"], np.array(outputs["hn"]), np.array(outputs["cn"])

    return run


def detectors(find: Callable[[], Path], runtime: str) -> Callable[[], Detector]:
    """Opens a detector for each recording; the graph is found, and loaded, for the first one.

    find: gives the graph's path, or raises why there is none; runtime: as of `load_voice_graph`.
    """
    loaded: list[Run] = []

    def opened() -> Detector:
        if not loaded:
            loaded.append(load_voice_graph(find(), runtime))
        return VoiceGraph(loaded[0])

    return opened
