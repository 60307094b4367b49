"""Sessions of engines on an NVIDIA GPU: everything that a run reads and writes stays in the GPU's memory.

Where the shapes of a run are those of the run before, it is captured once as a CUDA graph and launched as one piece.
The GPU's own time of each run is taken by events, beside whatever clock is held by whoever calls.
"""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np

from leanear.runtimes.artifact import Artifact
from leanear.runtimes.audio.waveforms import WaveformInput
from leanear.runtimes.backends.cuda_memory import Buffer, Cuda, Pinned
from leanear.runtimes.backends.embedding import Embedding
from leanear.runtimes.backends.engine_runs import Context, Gpu, LoadedEngine, gpu_facts
from leanear.runtimes.backends.engines import MOST_ROWS, BuiltEngine
from leanear.runtimes.backends.gpu_cache import GpuCache
from leanear.runtimes.errors import BadInput, MeasurementFailed
from leanear.runtimes.sessions import check_several, checked_logits, checked_tokens

STEP_INPUTS = ("embedded", "positions", "bias")


class GpuSession:
    """A classifier on the GPU, one inference at a time."""

    def __init__(self, gpu: Gpu, artifact: Artifact, built: dict[str, BuiltEngine]) -> None:
        self._gpu = gpu
        self._engine = LoadedEngine(gpu, built["classifier"])
        self._context = Context(self._engine)
        self._labels = len(artifact.labels)
        self._window = artifact.manifest.input.window_samples
        self._checked = WaveformInput(artifact)
        self._waveform = Pinned(gpu.cuda, (1, self._window))
        self._logits = Pinned(gpu.cuda, (1, self._labels))
        self._input, self._output = Buffer(gpu.cuda, 4 * self._window), Buffer(gpu.cuda, 4 * self._labels)
        self._samples = 0
        self._context.bind("logits", self._output.pointer)

    def run(self, waveform: np.ndarray) -> np.ndarray:
        """Logits, float32 (labels,), of one waveform (samples,), floats within -1 to 1 or int16 PCM."""
        waveform, cuda = self._checked(waveform)[:, : self._window], self._gpu.cuda
        samples = waveform.shape[1]
        if samples != self._samples:
            self._context.forget_graphs()
            self._context.bind("waveform", self._input.pointer, (1, samples))
            self._samples = samples
        self._waveform.array[:, :samples] = waveform
        cuda.to_device(self._input.pointer, self._waveform.array[:, :samples])
        self._context.run(samples)
        cuda.to_host(self._logits.array, self._output.pointer)
        cuda.wait()
        self._context.done()
        return checked_logits(self._logits.array, self._labels)

    def take_gpu_ms(self) -> dict[str, float]:
        """Milliseconds of the engine's runs since this was last asked, by the GPU's own events, without copies."""
        return {"inference": self._context.take_gpu_ms()}

    def facts(self) -> dict[str, Any]:
        """Versions, the GPU, and the engine as it was built and ran."""
        return gpu_facts(self._gpu, {"classifier": self._engine}, {"classifier": self._context})

    def close(self) -> None:
        """Release the engine and its memory."""
        self._context.close()
        self._engine.close()
        for memory in (self._waveform, self._logits, self._input, self._output):
            memory.close()
        self._gpu.cuda.close()


class GpuSpeechSession:
    """An encoder and a decoder on the GPU; keys and values never leave it.

    The encoder writes a window's keys and values where the decoder reads them. What a step adds is copied behind what
    is there, all layers' keys by one copy, for they lie in one block of rows that are as long as there is room.
    """

    takes_several = False
    most_rows = MOST_ROWS

    def __init__(self, gpu: Gpu, artifact: Artifact, built: dict[str, BuiltEngine]) -> None:
        self._gpu, cuda = gpu, gpu.cuda
        self._vocabulary = artifact.speech.output.shape[1]
        self._positions = artifact.speech.decoding.positions
        self._window = artifact.manifest.input.window_samples
        self._checked = WaveformInput(artifact)
        self._encoder, self._decoder = LoadedEngine(gpu, built["encoder"]), LoadedEngine(gpu, built["decoder"])
        self._encoding, self._single, self._several = (
            Context(engine) for engine in (self._encoder, self._decoder, self._decoder)
        )
        self._waveform, self._input = Pinned(cuda, (1, self._window)), Buffer(cuda, 4 * self._window)
        self._encoding.bind("waveform", self._input.pointer, (1, self._window))
        self._crossed: list[Buffer] = []
        for name in self._encoder.outputs:
            shape = self._encoder.shape(name)
            buffer = Buffer(cuda, int(np.prod(shape)) * self._encoder.element_bytes(name))
            self._crossed.append(buffer)
            self._encoding.bind(name, buffer.pointer)
            for context in (self._single, self._several):
                context.bind(name, buffer.pointer, shape)
        self._cache = GpuCache(cuda, self._decoder, self._positions)
        self._embedding = Embedding(artifact)
        self._encoded = False
        self._steps: dict[bool, _StepMemory] = {}  # by whether they are of one token
        self._logits = np.zeros((0, self._vocabulary), np.float32)

    def encode(self, waveform: np.ndarray, window: int | None = None) -> None:
        """Keys and values of one window, written to where the decoder reads them; the engine has the full one alone."""
        if window not in (None, self._window):
            raise BadInput(f"encode: a window of {window} samples; the engine was built for {self._window}")
        waveform, cuda = self._checked(waveform)[:, : self._window], self._gpu.cuda
        self._waveform.array[...] = 0.0
        self._waveform.array[:, : waveform.shape[1]] = waveform
        cuda.to_device(self._input.pointer, self._waveform.array)
        self._encoding.run("window")
        cuda.wait()
        self._encoding.done()
        self._encoded = True

    def encode_several(self, waveforms: Sequence[np.ndarray], window: int | None = None) -> None:
        """Keys and values of one window: engines are built for one."""
        check_several(len(waveforms), self.takes_several)
        self.encode(waveforms[0], window)

    def start(self, rows: int = 1) -> None:
        """Forget all tokens; `rows` hypotheses about the encoded window follow."""
        if not self._encoded or not 1 <= rows <= MOST_ROWS:
            what = "an" if self._encoded else "no"
            raise BadInput(f"start: {rows} rows of {what} encoded window; the engine takes 1 to {MOST_ROWS}")
        if rows != len(self._logits):
            self._logits = np.zeros((rows, self._vocabulary), np.float32)
        if self._cache.start(rows):
            self._forget_steps()

    def step(self, tokens: np.ndarray, parents: np.ndarray | None = None) -> np.ndarray:
        """Logits after the last of `tokens`, (rows, vocabulary), which the next step overwrites."""
        cache, cuda = self._cache, self._gpu.cuda
        tokens, parents = checked_tokens(tokens, parents, cache.rows, cache.filled, self._vocabulary, self._positions)
        if parents is not None:
            cache.reorder(parents)
        new = tokens.shape[1]
        if cache.reserve(new):
            self._forget_steps()
        context = self._single if new == 1 else self._several
        memory = self._memory_of(new, context)
        self._embedding.read(tokens, memory.embedded.array)
        memory.places.array[...] = np.arange(cache.filled, cache.filled + new)
        cache.write_bias(memory.bias.array, new)
        for host, device in memory.given:
            cuda.to_device(device.pointer, host.array)
        cache.bind(context)
        context.run((cache.rows, cache.room, cache.side) if new == 1 else None)
        cache.append(memory.added, new)
        cuda.to_host(memory.logits.array, memory.result.pointer)
        cuda.wait()
        context.done()
        self._logits[...] = memory.logits.array
        if not np.isfinite(self._logits.max()):
            cache.rows = 0  # its memory, which holds the NaN, is read no more: the next start takes other memory
            raise MeasurementFailed("logits: the graph gave NaN or infinite values")
        return self._logits

    def _memory_of(self, new: int, context: Context) -> _StepMemory:
        """What a step of `new` tokens reads and writes, bound to the context."""
        cache, single = self._cache, new == 1
        found = self._steps.get(single)
        if found is not None and found.new == new:
            return found
        if found is not None:
            found.close()
        memory = _StepMemory(self._gpu.cuda, cache, new, self._embedding.width, self._vocabulary)
        for name, (_, device), shape in zip(STEP_INPUTS, memory.given, memory.shapes):
            context.bind(name, device.pointer, shape)
        context.bind("logits", memory.result.pointer)
        cache.bind_added(context, memory.added, new)
        self._steps[single] = memory
        return memory

    def _forget_steps(self) -> None:
        self._single.forget_graphs()
        for memory in self._steps.values():
            memory.close()
        self._steps = {}

    def take_gpu_ms(self) -> dict[str, float]:
        """Milliseconds of the engines' runs since this was last asked, by the GPU's own events, without copies.

        Steps of several tokens are those of a prompt, which give the first token.
        """
        runs = {"encoder": self._encoding, "first_token": self._several, "later_tokens": self._single}
        return {stage: context.take_gpu_ms() for stage, context in runs.items()}

    def facts(self) -> dict[str, Any]:
        """Versions, the GPU, and both engines as they were built and ran."""
        engines = {"encoder": self._encoder, "decoder": self._decoder}
        runs = {"encoder": self._encoding, "one_token": self._single, "several_tokens": self._several}
        return gpu_facts(self._gpu, engines, runs)

    def close(self) -> None:
        """Release the engines and their memory."""
        self._forget_steps()
        self._embedding.close()
        for part in (self._encoding, self._single, self._several, self._encoder, self._decoder):
            part.close()
        memories: list[Any] = [self._waveform, self._input, *self._crossed, self._cache]
        for memory in memories:
            memory.close()
        self._gpu.cuda.close()


class _StepMemory:
    """Memory of steps of `new` tokens: arrays for the GPU, logits that come back, added keys and values."""

    def __init__(self, cuda: Cuda, cache: GpuCache, new: int, width: int, vocabulary: int) -> None:
        self.new = new
        self.shapes: tuple[tuple[int, ...], ...] = ((cache.rows, new, width), (new,), (new, cache.room + new))
        self.embedded = Pinned(cuda, self.shapes[0])
        self.places = Pinned(cuda, self.shapes[1], np.int64)
        self.bias = Pinned(cuda, self.shapes[2])
        self.logits = Pinned(cuda, (cache.rows, vocabulary))
        self.given = [(host, Buffer(cuda, host.array.nbytes)) for host in (self.embedded, self.places, self.bias)]
        self.result = Buffer(cuda, self.logits.array.nbytes)
        self.added = cache.side_of(new)

    def close(self) -> None:
        for host, device in self.given:
            host.close()
            device.close()
        for buffer in self.added.values():
            buffer.close()
        self.logits.close()
        self.result.close()
