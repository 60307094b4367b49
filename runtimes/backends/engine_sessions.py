"""Sessions of engines on an NVIDIA GPU: everything that a run reads and writes stays in the GPU's memory.

Where the shapes of a run are those of the run before, it is captured once as a CUDA graph and launched as one piece.
The GPU's own time of each run is taken by events, beside whatever clock is held by whoever calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import numpy as np

from leanear.runtimes.artifact import Artifact
from leanear.runtimes.audio.waveforms import WaveformInput
from leanear.runtimes.backends.cuda_memory import ALIGNMENT_BYTES, Buffer, Cuda, Pinned, Stopwatch
from leanear.runtimes.backends.embedding import Embedding
from leanear.runtimes.backends.engines import MOST_ROWS, BuiltEngine
from leanear.runtimes.errors import BadInput, MeasurementFailed, RuntimeUnavailable
from leanear.runtimes.sessions import SessionOptions, check_several, checked_logits, checked_tokens
from leanear.runtimes.speech.speech_cache import ROOMS

MASKED = np.float32(-3e4)  # nothing is left of it after softmax, and a fused kernel may hold it in float16
STEP_INPUTS = ("embedded", "positions", "bias")
ELEMENT_BYTES = {"FLOAT": 4, "HALF": 2, "INT64": 8, "INT32": 4}


@dataclass(frozen=True)
class Gpu:
    """What all engines of a session share."""

    library: Any
    name: str
    cuda: Cuda
    options: SessionOptions


class LoadedEngine:
    """An engine on the GPU.

    Raises:
        RuntimeUnavailable: the library does not take the file, which is then of another GPU or version.
    """

    def __init__(self, gpu: Gpu, built: BuiltEngine) -> None:
        library = gpu.library
        self.gpu, self.path, self._built, self.errors = gpu, built.path, built, _error_log(library)
        self._runtime = library.Runtime(self.errors)
        self.engine = self._runtime.deserialize_cuda_engine(built.path.read_bytes())
        if self.engine is None:
            raise RuntimeUnavailable(f"{gpu.name}: {built.path} is not an engine for this GPU ({self.errors.last})")
        names = [self.engine.get_tensor_name(number) for number in range(self.engine.num_io_tensors)]
        modes = {name: self.engine.get_tensor_mode(name) for name in names}
        self.inputs = [name for name in names if modes[name] == library.TensorIOMode.INPUT]
        self.outputs = [name for name in names if modes[name] == library.TensorIOMode.OUTPUT]

    @property
    def facts(self) -> dict[str, Any]:
        """How the engine was built and what it is made of."""
        kept = ("sha256", "bytes", "build_s", "built_for", "layers", "fused_attention", "attention")
        return {key: self._built.facts[key] for key in kept}

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape as the engine has it; -1 where it is not fixed."""
        return tuple(int(size) for size in self.engine.get_tensor_shape(name))

    def element_bytes(self, name: str) -> int:
        """Bytes of one value of a tensor."""
        kind = str(getattr(self.engine.get_tensor_dtype(name), "name", ""))
        if kind not in ELEMENT_BYTES:
            raise BadInput(f"{self.path}: {name} is of the type {kind}, which no graph of ours has")
        return ELEMENT_BYTES[kind]

    def close(self) -> None:
        """Release the engine; its contexts are closed before."""
        del self.engine, self._runtime


class Context:
    """Runs of an engine on the session's stream, with memory of their own for what is in between.

    Runs of several shapes that come in turn have a context each: what a captured graph finds in its context's memory
    has to be of its own shapes.
    """

    def __init__(self, loaded: LoadedEngine) -> None:
        self._loaded, self._cuda = loaded, loaded.gpu.cuda
        self._context = loaded.engine.create_execution_context()
        if self._context is None:
            raise MeasurementFailed(f"{loaded.path}: no context could be made ({loaded.errors.last})")
        self._watch = Stopwatch(self._cuda)
        self._graphs: dict[Any, Any] = {}
        self._seen: set[Any] = set()
        self._launched = 0
        self._uncapturable = ""
        self._gpu_ms = 0.0

    @property
    def facts(self) -> dict[str, Any]:
        """How many runs were launched as a CUDA graph, and why none could be."""
        return {"launched_as_graph": self._launched, "not_captured": self._uncapturable}

    def bind(self, name: str, pointer: int, shape: tuple[int, ...] | None = None) -> None:
        """Let the engine read or write a tensor at a place of the GPU's memory; inputs are given their shape too."""
        path, errors = self._loaded.path, self._loaded.errors
        if shape is not None and not self._context.set_input_shape(name, shape):
            raise BadInput(f"{path}: the engine was not built for {name} of {shape} ({errors.last})")
        if not self._context.set_tensor_address(name, pointer):
            raise MeasurementFailed(f"{path}: {name} cannot be bound ({errors.last})")

    def forget_graphs(self) -> None:
        """Drop captured graphs: memory or shapes that they are bound to change."""
        for graph in self._graphs.values():
            self._cuda.call("cudaGraphExecDestroy", graph)
        self._graphs.clear()
        self._seen.clear()

    def run(self, what: Any) -> None:
        """Begin a run. what: names its shapes and memory, of which the second run is captured; None: it is not."""
        self._watch.start()
        if what in self._graphs:
            self._cuda.launch(self._graphs[what])
            self._launched += 1
        elif what is not None and what in self._seen and not self._uncapturable:
            self._capture(what)
        else:
            self._execute()
            self._seen.add(what)
        self._watch.stop()

    def done(self) -> None:
        """Add the GPU's time of the run that has ended."""
        self._gpu_ms += self._watch.ms()

    def take_gpu_ms(self) -> float:
        """Milliseconds that the GPU worked in runs that ended since this was last asked."""
        taken, self._gpu_ms = round(self._gpu_ms, 4), 0.0
        return taken

    def _execute(self) -> None:
        if not self._context.execute_async_v3(int(self._cuda.stream)):
            raise MeasurementFailed(f"{self._loaded.path}: the engine did not run ({self._loaded.errors.last})")

    def _capture(self, what: Any) -> None:
        """Capture the run and launch it; what cannot be captured runs piece by piece, and the facts say why."""
        self._cuda.begin_capture()
        try:
            self._execute()
            graph = self._cuda.end_capture()
        except MeasurementFailed as error:
            self._uncapturable = str(error)
            self._cuda.abandon_capture()
            self._execute()
            return
        self._graphs[what] = graph
        self._cuda.launch(graph)
        self._launched += 1

    def close(self) -> None:
        """Release the context and what was captured of it."""
        self.forget_graphs()
        self._watch.close()
        del self._context


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
        check_several(len(waveforms), takes_several=False)
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


class GpuCache:
    """Keys and values of the tokens fed so far, in two sides, of which reordering fills the other one.

    Dimension letters: R rows, N new tokens, C positions that there is room for, H heads, K and V per-head widths.
    """

    def __init__(self, cuda: Cuda, decoder: LoadedEngine, positions: int) -> None:
        self._cuda, self._decoder = cuda, decoder
        self._rooms = [room for room in ROOMS if room < positions] + [positions]
        self._keys = [name for name in decoder.inputs if name.startswith("self_key.")]
        self._values = [name for name in decoder.inputs if name.startswith("self_value.")]
        self._key_rows = {name: int(np.prod(decoder.shape(name)[1:3])) for name in self._keys}  # H K
        shapes = {name: decoder.shape(name) for name in self._values}
        self._value_sizes = {name: (shape[1], shape[3]) for name, shape in shapes.items()}  # H, V
        self._item = decoder.element_bytes(self._keys[0])
        self.rows = self.room = self.filled = self.side = 0
        self._sides: list[dict[str, Buffer]] = []

    def start(self, rows: int) -> bool:
        """Forget all tokens; whether the memory is another one than before."""
        changed = rows != self.rows or self.room != self._rooms[0]
        self.rows, self.filled = rows, 0
        if changed:
            self._free_sides()
            self.room, self.side = self._rooms[0], 0
            self._sides = [self.side_of(self.room)]
        return changed

    def reserve(self, new: int) -> bool:
        """Make room for `new` more tokens; whether the memory is another one than before."""
        needed = self.filled + new
        if needed <= self.room:
            return False
        before, room = self._sides[self.side], self.room
        self.room = next(larger for larger in self._rooms if larger >= needed)
        after, item = self.side_of(self.room), self._item
        if self.filled:
            height = sum(self._rows_of_keys().values())
            pitches = self.room * item, before["keys"].pointer, room * item
            self._cuda.rows_inside(after["keys"].pointer, *pitches, self.filled * item, height)
            for name, (heads, width) in self._value_sizes.items():
                pitches = self.room * width * item, before[name].pointer, room * width * item
                self._cuda.rows_inside(after[name].pointer, *pitches, self.filled * width * item, self.rows * heads)
        self._cuda.wait()
        self._free_sides()
        self._sides, self.side = [after], 0
        return True

    def reorder(self, parents: np.ndarray) -> None:
        """Let each row go on from another one: all rows are copied to the other side."""
        if len(self._sides) == 1:
            self._sides.append(self.side_of(self.room))
        source, target = self._sides[self.side], self._sides[1 - self.side]
        begins = self._begins(self.room)
        for row, parent in enumerate(parents.tolist()):
            for name in self._keys:
                size = self._key_rows[name] * self.room * self._item
                begin = begins[name]
                target_row, source_row = begin + row * size, begin + parent * size
                self._cuda.inside(target["keys"].pointer + target_row, source["keys"].pointer + source_row, size)
            for name, (heads, width) in self._value_sizes.items():
                size = heads * self.room * width * self._item
                self._cuda.inside(target[name].pointer + row * size, source[name].pointer + parent * size, size)
        self.side = 1 - self.side

    def bind(self, context: Context) -> None:
        """Let the decoder read this side."""
        side, begins = self._sides[self.side], self._begins(self.room)
        for name in self._keys:
            shape = self._decoder.shape(name)
            pointer = side["keys"].pointer + begins[name]
            context.bind(name, pointer, (self.rows, shape[1], shape[2], self.room))
        for name, (heads, width) in self._value_sizes.items():
            context.bind(name, side[name].pointer, (self.rows, heads, self.room, width))

    def bind_added(self, context: Context, added: dict[str, Buffer], new: int) -> None:
        """Let the decoder write the keys and values of `new` tokens to memory that `append` copies from."""
        begins = self._begins(new)
        for name in self._keys:
            context.bind(name.replace("self_", "new_"), added["keys"].pointer + begins[name])
        for name in self._values:
            context.bind(name.replace("self_", "new_"), added[name].pointer)

    def write_bias(self, bias: np.ndarray, new: int) -> None:
        """What is added to the scores of `new` tokens, (N, C + N)."""
        bias[:, : self.filled] = 0.0
        bias[:, self.filled : self.room] = MASKED
        bias[:, self.room :] = np.triu(np.full((new, new), MASKED), 1)

    def append(self, added: dict[str, Buffer], new: int) -> None:
        """Copy what the decoder wrote behind what is there."""
        side, item = self._sides[self.side], self._item
        height = sum(self._rows_of_keys().values())
        place = side["keys"].pointer + self.filled * item
        self._cuda.rows_inside(place, self.room * item, added["keys"].pointer, new * item, new * item, height)
        for name, (heads, width) in self._value_sizes.items():
            place, length = side[name].pointer + self.filled * width * item, new * width * item
            pitch = self.room * width * item
            self._cuda.rows_inside(place, pitch, added[name].pointer, length, length, self.rows * heads)
        self.filled += new

    def side_of(self, room: int) -> dict[str, Buffer]:
        """Memory for `room` positions: one block of all layers' keys, and each layer's values."""
        height = sum(self._rows_of_keys().values())
        sizes = {"keys": height * room * self._item}
        for name, (heads, width) in self._value_sizes.items():
            sizes[name] = self.rows * heads * room * width * self._item
        return {name: Buffer(self._cuda, size) for name, size in sizes.items()}

    def _rows_of_keys(self) -> dict[str, int]:
        """Rows (R H K) of each layer's keys, filled up so that every layer begins where a tensor may."""
        multiple = ALIGNMENT_BYTES // self._item
        return {name: -(-self.rows * rows // multiple) * multiple for name, rows in self._key_rows.items()}

    def _begins(self, room: int) -> dict[str, int]:
        """Where in the block each layer's keys begin, in bytes."""
        begins, place = {}, 0
        for name, rows in self._rows_of_keys().items():
            begins[name] = place
            place += rows * room * self._item
        return begins

    def _free_sides(self) -> None:
        for side in self._sides:
            for buffer in side.values():
                buffer.close()
        self._sides = []

    def close(self) -> None:
        """Give all memory back."""
        self._free_sides()


def _error_log(library: Any) -> Any:
    """A logger of the library's own kind that keeps the last error."""

    class Errors(library.ILogger):
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.last = "it did not say why"

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(library.ILogger.Severity.ERROR):
                self.last = " ".join(message.split())[:300]

    return Errors()


def gpu_facts(gpu: Gpu, engines: dict[str, LoadedEngine], contexts: dict[str, Context]) -> dict[str, Any]:
    """What a session says that it uses."""
    return {
        "runtime": gpu.name,
        "version": str(gpu.library.__version__),
        "execution_devices": [f"{gpu.cuda.device} (compute capability {gpu.cuda.capability})"],
        "cuda": gpu.cuda.versions(),
        "precision": gpu.options.precision,
        "threads": gpu.options.threads,
        "engines": {role: engine.facts for role, engine in engines.items()},
        "runs": {name: context.facts for name, context in contexts.items()},
    }
