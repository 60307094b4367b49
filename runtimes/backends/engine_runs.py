"""An engine on the GPU and its runs: tensors bound to memory, a CUDA graph captured, the GPU's own time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from leanear.runtimes.backends.cuda_memory import Cuda, Stopwatch
from leanear.runtimes.backends.engines import BuiltEngine
from leanear.runtimes.errors import BadInput, MeasurementFailed, RuntimeUnavailable
from leanear.runtimes.sessions import SessionOptions

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
