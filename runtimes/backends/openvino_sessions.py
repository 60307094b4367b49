"""Graphs compiled by OpenVINO for the CPU."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from pathlib import Path
from typing import Any, Iterator

import numpy as np

from leanear.runtimes.artifact import Artifact
from leanear.runtimes.audio.waveforms import WaveformInput
from leanear.runtimes.backends.cpu_speech import CpuSpeechSession, one_line
from leanear.runtimes.backends.openvino_cpu import DEVICE, NAME
from leanear.runtimes.backends.unneeded_memory import give_back_heap, give_back_memory, give_back_pages
from leanear.runtimes.errors import BadInput, RuntimeUnavailable
from leanear.runtimes.sessions import SessionOptions, checked_logits
from leanear.runtimes.speech.speech_cache import aligned_zeros

# What OpenVINO keeps compiled for shapes that it met, the latest so many of a graph's products. A window of another
# length takes 3 to 6 MB of them, and a second store of oneDNN's own, within OpenVINO, would keep as many again. With 16
# an encoder whose heads are of unlike widths, in 8 bits, compiles again and again, and takes twice as long.
COMPILED_KEPT = 128
ROUNDED_TOGETHER = 32  # activations with one scale
SECOND_STORE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
ELEMENT_TYPES = {"fp32": "f32", "bf16": "bf16", "int8": "f32", "int8-bf16": "bf16"}


def compile_graph(path: Path, options: SessionOptions, profiling: bool = False) -> Any:
    """A graph compiled for latency: one stream, precision said and verified.

    Left to itself OpenVINO computes in bf16 on a CPU that has it, so the precision is always given, and what the
    compiled model reports is compared with it. It pins its threads to cores, where a step waits for whoever else is on
    one of them: that is not let be. What 8-bit weights are multiplied with is rounded, in small groups, in models of 8
    bits: others' first of two stages is exact. It arranges weights in memory of its own and keeps the file mapped.
    """
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
        hint.enable_cpu_pinning(): False,
        hint.dynamic_quantization_group_size(): ROUNDED_TOGETHER if options.precision.startswith("int8") else 0,
        properties.enable_profiling(): profiling,
        "CPU_RUNTIME_CACHE_CAPACITY": COMPILED_KEPT,
    }
    try:
        compiled = openvino.Core().compile_model(os.fspath(path), DEVICE, settings)
    except RuntimeError as error:
        raise BadInput(f"{path}: OpenVINO refuses the graph ({one_line(error)})") from None
    give_back_memory(*_mapped_folders(path.parent))
    reported = compiled.get_property(hint.inference_precision())
    if reported != wanted:
        raise RuntimeUnavailable(
            f"{NAME}: asked for {options.precision}, but the compiled model reports {reported.get_type_name()}"
        )
    return compiled


@contextlib.contextmanager
def _without_second_store() -> Iterator[None]:
    """While OpenVINO's first graph is compiled and run, which is when its oneDNN asks how much it is to keep."""
    asked = os.environ.get(SECOND_STORE)
    os.environ.setdefault(SECOND_STORE, "0")
    try:
        yield
    finally:
        if asked is None:
            del os.environ[SECOND_STORE]


def _mapped_folders(graphs: Path) -> tuple[Path, Path]:
    """Where what OpenVINO has mapped lies: the graphs' weights, and its own code."""
    import openvino

    return graphs, Path(openvino.__file__).parent


def _facts(compiled: Any) -> dict[str, Any]:
    """Version, threads, streams and precision as the compiled model reports them, and the types of its nodes."""
    import openvino
    from openvino.properties import execution_devices, inference_num_threads, num_streams
    from openvino.properties.hint import inference_precision, performance_mode

    node_precisions = Counter(
        str(node.get_rt_info()["runtimePrecision"].astype(str)) for node in compiled.get_runtime_model().get_ops()
    )
    return {
        "runtime": NAME,
        "version": str(openvino.__version__),
        "execution_devices": list(compiled.get_property(execution_devices())),
        "threads": int(compiled.get_property(inference_num_threads())),
        "streams": int(compiled.get_property(num_streams())),
        "performance_hint": str(compiled.get_property(performance_mode())),
        "INFERENCE_PRECISION_HINT": compiled.get_property(inference_precision()).get_type_name(),
        "node_precisions": dict(sorted(node_precisions.items())),
    }


class IntelCpuSession:
    """A classifier compiled by OpenVINO, with one reused request."""

    def __init__(self, artifact: Artifact, options: SessionOptions) -> None:
        self._compiled = compile_graph(artifact.graphs["classifier"], options)
        self._request = self._compiled.create_infer_request()
        self._labels = len(artifact.labels)
        self._checked = WaveformInput(artifact)

    def run(self, waveform: np.ndarray) -> np.ndarray:
        """Logits, float32 (labels,), of one waveform (samples,), floats within -1 to 1 or int16 PCM."""
        outputs = self._request.infer([self._checked(waveform)], share_inputs=True, share_outputs=True)
        return checked_logits(outputs[0], self._labels)

    def facts(self) -> dict[str, Any]:
        """Version, threads, streams and precision as the compiled model reports them, and the types of its nodes."""
        return _facts(self._compiled)

    def close(self) -> None:
        """Release the graph and its memory."""
        del self._request, self._compiled


class IntelSpeechSession(CpuSpeechSession):
    """An encoder and a decoder compiled by OpenVINO; all that a step reads and writes is memory of the session."""

    @_without_second_store()
    def __init__(self, artifact: Artifact, options: SessionOptions) -> None:
        # The larger one first: while it is compiled, its weights are in memory twice.
        self._decoder = compile_graph(artifact.graphs["decoder"], options)
        self._encoder = compile_graph(artifact.graphs["encoder"], options)
        self._encoding, self._decoding = self._encoder.create_infer_request(), self._decoder.create_infer_request()
        given, taken = self._encoder.outputs, self._decoder.inputs
        kept = {port.any_name: port.get_element_type().to_dtype().type for port in (*given, *taken)}
        super().__init__(artifact, _shapes(given), _shapes(taken), kept)
        self._folders = _mapped_folders(artifact.folder)
        self._met: set[tuple[int, ...]] = set()  # positions of a window; rows of a step, and whether of several tokens
        # A request holds no reference to the arrays that it was given.
        self._embedded = self._places = self._bias = self._logits = np.zeros(0)
        self._added: dict[str, np.ndarray] = {}
        self._arrange_decoder()

    def _arrange_decoder(self) -> None:
        """Let the decoder arrange its weights, for several tokens and for one, while no encoder holds memory."""
        self._cache.start(1)
        for new in (2, 1):
            self._bind(1, new)
            self._run(self._decoding, 1, new)
        self._cache.rows, self._bound = 0, None  # nothing was started yet

    def _encode(self, samples: np.ndarray, number: int) -> None:
        give_back_pages(self._folders[0])  # rows of the vocabulary's table, which decoding has mapped
        if 2 * samples.shape[1] >= self._window:  # in shorter windows it would take too much of the time
            give_back_heap()
        for name, buffer in {"waveform": samples, **self._crossed.of(number)}.items():
            self._encoding.set_tensor(name, _shared(buffer))
        self._run(self._encoding, self._crossed.positions)

    def _run(self, request: Any, *shape: int) -> None:
        """Infer. When OpenVINO first runs with a shape it reads and arranges weights, and keeps what that took."""
        request.infer()
        if shape not in self._met:
            self._met.add(shape)
            give_back_memory(*self._folders)

    def _feed(self, tokens: np.ndarray) -> np.ndarray:
        cache, (rows, new) = self._cache, tokens.shape
        if self._bound != (rows, new):
            self._bind(rows, new)
        elif new > 1:
            self._bias = cache.bias(new)
            self._decoding.set_tensor("bias", _shared(self._bias))
        self._embedding.read(tokens, self._embedded)
        self._places[...] = np.arange(cache.filled, cache.filled + new)
        self._run(self._decoding, rows, min(new, 2))
        cache.append(self._added)
        cache.check(self._logits)
        return self._logits

    def alignment_scores(self, tokens: np.ndarray) -> np.ndarray:
        """Scores of the alignment heads before softmax, float32 (A, n, T), of tokens fed from the start on."""
        self.start()
        self.step(tokens[None])
        return np.array(self._decoding.get_tensor("alignment").data)

    def _bind(self, rows: int, new: int) -> None:
        """Give the decoder's request the session's memory, of the shapes that steps of `new` tokens have."""
        cache, self._bound = self._cache, (rows, new)
        crossed = self._crossed.arrays if self.takes_several else self._crossed.of(0)
        self._embedded = aligned_zeros((rows, new, self._embedding.width))
        self._places = aligned_zeros((new,), np.int64)
        self._logits = aligned_zeros((rows, self._vocabulary))
        self._added, self._bias = cache.new_rows(new), cache.bias(new)
        memory = {
            "embedded": self._embedded,
            "positions": self._places,
            "bias": self._bias,
            "logits": self._logits,
            **crossed,
            **cache.buffers,
            **{name.replace("self_", "new_"): added for name, added in self._added.items()},
        }
        for name, buffer in memory.items():
            self._decoding.set_tensor(name, _shared(buffer))

    def facts(self) -> dict[str, Any]:
        """What the decoder's compiled model reports, and the types of its nodes."""
        return _facts(self._decoder)

    def close(self) -> None:
        """Release the graphs and their memory."""
        self._embedding.close()
        del self._encoding, self._decoding, self._encoder, self._decoder


def _shared(buffer: np.ndarray) -> Any:
    import openvino

    return openvino.Tensor(buffer, shared_memory=True)


def _shapes(ports: Any) -> dict[str, list[int | None]]:
    """Tensors' shapes by their names, None for a size that is not fixed."""
    return {
        port.get_any_name(): [int(size.get_length()) if size.is_static else None for size in port.get_partial_shape()]
        for port in ports
    }
