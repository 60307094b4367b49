"""Graphs loaded by ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from leanear.runtimes.artifact import Artifact
from leanear.runtimes.audio.waveforms import WaveformInput
from leanear.runtimes.backends.cpu_speech import CpuSpeechSession, one_line
from leanear.runtimes.backends.onnx_cpu import NAME
from leanear.runtimes.errors import BadInput, RuntimeUnavailable
from leanear.runtimes.sessions import SessionOptions, checked_logits, checked_tokens
from leanear.runtimes.speech.speech_cache import SpeechCache, aligned_zeros

PROVIDER = "CPUExecutionProvider"
LOG_SEVERITY_ERROR = 3
TYPES: dict[str, type] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int8)": np.int8,
}


def load_graph(
    path: Path, options: SessionOptions, keep_memory: bool = True, profile: str | None = None, **entries: str
) -> Any:
    """ONNX Runtime's session of one graph: sequential execution and spinning threads.

    keep_memory: let intermediate results share memory as ONNX Runtime does by default, which then holds the most that
    any of them needs, for the whole of a run and once more for the next one; profile: what its
    profiler's file begins with; entries: further settings.
    """
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
    settings.enable_mem_pattern = settings.enable_mem_reuse = keep_memory
    settings.log_severity_level = LOG_SEVERITY_ERROR
    settings.enable_profiling, settings.profile_file_prefix = profile is not None, profile or ""
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1")
    for key, value in entries.items():
        settings.add_session_config_entry(f"session.{key}", value)
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), settings, providers=[PROVIDER])
    except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NotImplemented) as error:
        raise BadInput(f"{path}: ONNX Runtime refuses the graph ({one_line(error)})") from None
    if session.get_providers() != [PROVIDER]:
        raise RuntimeUnavailable(f"{NAME}: asked for {PROVIDER}, got {session.get_providers()}")
    return session


def _facts(session: Any, precision: str) -> dict[str, Any]:
    """Version, providers, threads and memory settings as the session reports them."""
    import onnxruntime

    settings = session.get_session_options()
    return {
        "runtime": NAME,
        "version": str(onnxruntime.__version__),
        "execution_providers": list(session.get_providers()),
        "threads": settings.intra_op_num_threads,
        "inter_op_threads": settings.inter_op_num_threads,
        "execution_mode": settings.execution_mode.name,
        "graph_optimization_level": settings.graph_optimization_level.name,
        "spinning": settings.get_session_config_entry("session.intra_op.allow_spinning") == "1",
        "memory_arena": settings.enable_cpu_mem_arena,
        "memory_pattern": settings.enable_mem_pattern,
        "precision": precision,
    }


class OnnxCpuSession:
    """A classifier loaded by ONNX Runtime, one inference at a time."""

    def __init__(self, artifact: Artifact, options: SessionOptions) -> None:
        self._session = load_graph(artifact.graphs["classifier"], options)
        self._labels = len(artifact.labels)
        self._checked = WaveformInput(artifact)
        self._input = self._session.get_inputs()[0].name
        self._outputs = [self._session.get_outputs()[0].name]
        self._precision = options.precision

    def run(self, waveform: np.ndarray) -> np.ndarray:
        """Logits, float32 (labels,), of one waveform (samples,), floats within -1 to 1 or int16 PCM."""
        (logits,) = self._session.run(self._outputs, {self._input: self._checked(waveform)})
        return checked_logits(logits, self._labels)

    def facts(self) -> dict[str, Any]:
        """Version, providers, threads and memory settings as the session reports them."""
        return _facts(self._session, self._precision)

    def close(self) -> None:
        """Release the graph and its memory."""
        del self._session


class OnnxSpeechSession(CpuSpeechSession):
    """An encoder and a decoder loaded by ONNX Runtime.

    A step's outputs are memory that the session keeps. Steps of one token, which are nearly all of them, use one
    binding again and again.
    """

    def __init__(self, artifact: Artifact, options: SessionOptions) -> None:
        # Threads of one graph that spin when it has ended would take the cores from the other's: an encoder that comes
        # after a step then takes as long as on half of them. The larger graph first: while it is loaded, its weights
        # are in memory twice.
        self._decoder, self._encoder = (
            load_graph(artifact.graphs[name], options, keep_memory=False, force_spinning_stop="1")
            for name in ("decoder", "encoder")
        )
        alignment = artifact.speech.alignment
        self._alignment_heads = 0 if alignment is None else len(alignment.heads)
        self._precision = options.precision
        given, taken = self._encoder.get_outputs(), self._decoder.get_inputs()
        outputs = {output.name: _sizes(output.shape) for output in given}
        kept = {each.name: TYPES[each.type] for each in (*given, *taken)}
        super().__init__(artifact, outputs, {each.name: each.shape for each in taken}, kept)

    def _encode(self, samples: np.ndarray, number: int) -> None:
        binding = self._encoder.io_binding()
        _bind(binding.bind_input, "waveform", samples)
        for name, buffer in self._crossed.of(number).items():
            _bind(binding.bind_output, name, buffer)
        self._encoder.run_with_iobinding(binding)

    def _feed(self, tokens: np.ndarray) -> np.ndarray:
        new = tokens.shape[1]
        if new > 1:
            return self._run(self._bound_step(new), tokens)
        self._bound = self._bound or self._bound_step(1)
        return self._run(self._bound, tokens)

    def alignment_scores(self, tokens: np.ndarray) -> np.ndarray:
        """Scores of the alignment heads before softmax, float32 (A, n, T), of tokens fed from the start on."""
        self.start()
        tokens, _ = checked_tokens(tokens[None], None, 1, 0, self._vocabulary, self._positions)
        new = tokens.shape[1]
        if self._cache.reserve(new):
            self._bound = None
        bound = self._bound_step(new)
        scores = aligned_zeros((self._alignment_heads, new, self._crossed.positions))
        _bind(bound.binding.bind_output, "alignment", scores)
        self._run(bound, tokens)
        return scores

    def _run(self, bound: _BoundStep, tokens: np.ndarray) -> np.ndarray:
        """Feed `tokens` (rows, n) to the decoder and keep their keys and values; the logits."""
        cache, new = self._cache, tokens.shape[1]
        self._embedding.read(tokens, bound.embedded)
        bound.positions[...] = np.arange(cache.filled, cache.filled + new)
        self._decoder.run_with_iobinding(bound.binding)
        cache.append(bound.added)
        cache.check(bound.logits)
        return bound.logits

    def _bound_step(self, new: int) -> _BoundStep:
        crossed = self._crossed.arrays if self.takes_several else self._crossed.of(0)
        return _BoundStep(self._decoder, self._cache, crossed, new, self._embedding.width, self._vocabulary)

    def facts(self) -> dict[str, Any]:
        """Version, providers, threads and memory settings as the decoder's session reports them."""
        return _facts(self._decoder, self._precision)

    def close(self) -> None:
        """Release the graphs and their memory."""
        self._bound = None
        self._embedding.close()
        del self._encoder, self._decoder


class _BoundStep:
    """The memory of a step of some number of new tokens, bound to the decoder's inputs and outputs.

    added: the new keys and values by the names of the cache's buffers that they belong in.
    """

    def __init__(
        self, decoder: Any, cache: SpeechCache, crossed: dict[str, np.ndarray], new: int, width: int, vocabulary: int
    ) -> None:
        self.embedded = aligned_zeros((cache.rows, new, width))
        self.positions = aligned_zeros((new,), np.int64)
        self.bias = cache.bias(new)
        self.logits = aligned_zeros((cache.rows, vocabulary))
        self.added = cache.new_rows(new)
        self.binding = decoder.io_binding()
        inputs = {"embedded": self.embedded, "positions": self.positions, "bias": self.bias, **cache.buffers, **crossed}
        for name, buffer in inputs.items():
            _bind(self.binding.bind_input, name, buffer)
        _bind(self.binding.bind_output, "logits", self.logits)
        for name, buffer in self.added.items():
            _bind(self.binding.bind_output, name.replace("self_", "new_"), buffer)


def _sizes(shape: list[Any]) -> list[int | None]:
    """A tensor's shape, None for a size that is not fixed."""
    return [size if isinstance(size, int) else None for size in shape]


def _bind(bind: Any, name: str, buffer: np.ndarray) -> None:
    bind(name, "cpu", 0, buffer.dtype.type, buffer.shape, buffer.ctypes.data)
