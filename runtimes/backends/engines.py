"""Engines: an artifact's graphs compiled by NVIDIA's TensorRT 10 or 11, or TensorRT-RTX, kept in files and found again.

An engine belongs to the graph, the library's version, the GPU and the options that it was built for, so its file is
named by all of them, and one that is not of just these is never loaded. Networks are strongly typed: their precision is
that of the graph's own tensors, but for bfloat16, which a network of float32 is changed to before it is built.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

from leanear.runtimes.artifact import Artifact
from leanear.runtimes.backends.bf16_networks import compute_in_bf16, has_bf16
from leanear.runtimes.backends.cuda_memory import Cuda
from leanear.runtimes.choose import choose_runtime
from leanear.runtimes.errors import BadInput, MeasurementFailed, RuntimeUnavailable
from leanear.runtimes.files import read_json, replaced_file, sha256_file, sha256_json, write_json
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.speech_cache import ROOMS

ENGINE_SCHEMA = "leanear-engine-1"
ENGINE_KEYS = ("key", "file", "sha256", "bytes", "build_s", "built_for", "layers", "fused_attention", "attention")
BF16 = "bf16"
BUILDER = 1  # raised when the same graph becomes another engine by a change here
MOST_ROWS = 8  # hypotheses that a decoder's engine takes at once
WORKSPACE_SHARE = 0.5  # of the GPU's free memory, which on a Jetson is the board's
FUSED = re.compile(r"mha|attention_v|fmha", re.IGNORECASE)
LAYER = re.compile(r"^\s*(?:Layer\(\w+\): )?Name: (?P<name>[^,]+), LayerType: (?P<kind>[^,]+)")
Report = Callable[[str, float], None]
Span = tuple  # least, usual and most sizes of one input


@dataclass(frozen=True)
class Place:
    """What an engine is built for: a GPU that is here, by name and compute capability, or capabilities alone."""

    device: str
    capabilities: tuple[str, ...]
    is_here: bool
    free_bytes: int | None = None

    def as_json(self) -> dict[str, Any]:
        """What names the place in a key and in facts; how much memory is free does not."""
        return {
            "device": self.device,
            "compute_capabilities": list(self.capabilities),
            "ahead_of_time": not self.is_here,
        }


def ahead_of_time(capabilities: Sequence[str]) -> Place:
    """A place that is not here: GPUs of these compute capabilities, such as "8.6"."""
    return Place("none: built ahead of time", tuple(capabilities), False)


def this_gpu(cuda: Cuda) -> Place:
    """The GPU of this machine, and how much of its memory is free now."""
    return Place(cuda.device, (cuda.capability,), True, cuda.free_bytes())


@dataclass(frozen=True)
class BuiltEngine:
    """An engine's file and what is known of how it was built, as its .json beside it says."""

    path: Path
    facts: dict[str, Any]


def import_library(name: str) -> Any:
    """The Python package of `name`, "tensorrt" or "tensorrt_rtx".

    Raises:
        RuntimeUnavailable: it is not installed, does not import, or is too old; the text has what would help.
    """
    runtime: Any = choose_runtime(name)
    try:
        library = importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a library that it needs is missing or of another CPU
        said = " ".join(str(error).split())[:200]
        raise RuntimeUnavailable(f"{name}: the package {name} does not import ({said}); {runtime.INSTALL}") from None
    earliest = runtime.EARLIEST
    major = int(str(library.__version__).split(".")[0])
    if major < earliest:
        raise RuntimeUnavailable(
            f"{name}: version {library.__version__} is too old, {earliest} or later is needed; JetPack 6 has 10"
        )
    return library


def compiled_folder(artifact: Artifact) -> Path:
    """Where an artifact's ahead-of-time work is kept on this machine, so that a new bundle of it finds it."""
    cache = os.environ.get("LEANEAR_CACHE")
    root = Path(cache) if cache else Path.home() / ".cache" / "leanear"
    return root / "compiled" / artifact.identity[:16]


def check_graph_precision(artifact: Artifact, options: SessionOptions) -> None:
    """Raises BadInput where the options ask for another precision than the graphs' own, which an engine keeps.

    Graphs in float32 may be asked for in bfloat16.
    """
    found = engine_precision(artifact)
    if options.precision not in ((found, BF16) if found == "fp32" else (found,)):
        raise BadInput(
            f"precision: {options.precision} was asked for, but the graphs of {artifact.folder} are {found}, and an"
            " engine computes in what its graph says"
        )


def engine_precision(artifact: Artifact) -> str:
    """What engines of the artifact's graphs are asked for by.

    A Whisper in "int8" has products in 8 bits in its encoder alone; the decoder is of float16.
    """
    found = sorted(artifact.precisions)
    return "int8" if found == ["fp16", "int8"] else " and ".join(found)


def input_spans(artifact: Artifact, role: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Span]:
    """Least, usual and most sizes of the inputs whose shape is not all known (-1), by name.

    An AST takes clips up to its window; an encoder's clips are filled up to the window before; a decoder takes 1 to 8
    rows, 1 to all positions of new tokens, and room for 64 to all positions.
    """
    window = artifact.manifest.input.window_samples
    if role != "decoder":
        least = window if role == "encoder" else 1
        return {name: ((1, least), (1, window), (1, window)) for name, shape in shapes.items() if -1 in shape}
    positions = artifact.speech.decoding.positions
    rows, new, room = (1, 1, MOST_ROWS), (1, 1, positions), (min(ROOMS[0], positions), positions, positions)
    spans: dict[str, Span] = {}
    for name, shape in shapes.items():
        if name == "positions":
            spans[name] = tuple((new[end],) for end in range(3))
        elif name == "bias":
            spans[name] = tuple((new[end], room[end] + new[end]) for end in range(3))
        elif name == "embedded":
            spans[name] = tuple((rows[end], new[end], shape[2]) for end in range(3))
        elif name.startswith("self_key."):
            spans[name] = tuple((rows[end], shape[1], shape[2], room[end]) for end in range(3))
        elif name.startswith("self_value."):
            spans[name] = tuple((rows[end], shape[1], room[end], shape[3]) for end in range(3))
    return spans


def build_engines(
    library_name: str,
    artifact: Artifact,
    options: SessionOptions,
    place: Place,
    out: Path,
    report: Report = lambda _text, _share: None,
) -> dict[str, BuiltEngine]:
    """The engines of all graphs of `artifact` by role, in the folder `out`; those that are there already are kept.

    They are built one at a time, the largest first, and each is complete in its file before the next one is begun.

    Raises:
        BadInput: the library refuses a graph, or the precision is not the graphs'.
        RuntimeUnavailable: the library is missing, or cannot build for this place.
        MeasurementFailed: building failed; the text has the library's own last word.
    """
    check_graph_precision(artifact, options)
    if options.precision == BF16:
        _require_bf16(place)
    library = import_library(library_name)
    roles = sorted(artifact.graphs, key=lambda role: -artifact.manifest.graphs[role].bytes)
    built = {}
    for number, role in enumerate(roles):
        key = _key(library_name, library, artifact, options, role, place)
        path = _path(out, role, key)
        found = _kept(path, key)
        if found is None:
            report(f"building the engine of the {role}", number / len(roles))
            found = _build(library, artifact, role, place, path, key)
        built[role] = found
    return {role: built[role] for role in artifact.graphs}


def kept_engines(
    library_name: str, artifact: Artifact, options: SessionOptions, place: Place, out: Path
) -> dict[str, BuiltEngine] | None:
    """What `build_engines` would return if it is all there already, None if something would have to be built."""
    library, kept = import_library(library_name), {}
    for role in artifact.graphs:
        key = _key(library_name, library, artifact, options, role, place)
        found = _kept(_path(out, role, key), key)
        if found is None:
            return None
        kept[role] = found
    return kept


def engines_ahead(
    library_name: str, artifact: Artifact, options: SessionOptions, capability: str
) -> dict[str, BuiltEngine] | None:
    """Engines that were built ahead of time for GPUs of `capability` and lie in the artifact's own folder."""
    for path in sorted(artifact.folder.glob("*.json")):
        try:
            place = read_json(path, ENGINE_SCHEMA, ENGINE_KEYS)["built_for"]
        except BadInput:
            continue
        if place["ahead_of_time"] and capability in place["compute_capabilities"]:
            capabilities = ahead_of_time(place["compute_capabilities"])
            found = kept_engines(library_name, artifact, options, capabilities, artifact.folder)
            if found is not None:
                return found
    return None


def unsupported_nodes(library_name: str, graph: Path) -> list[str]:
    """Names of the graph's nodes that the library's ONNX parser does not take; none when it takes the graph."""
    library = import_library(library_name)
    log = _log(library)
    _, network = _network(library, log)
    parser = library.OnnxParser(network, log)
    if parser.supports_model_v2(graph.read_bytes(), str(graph)):
        return []
    named = [error.node_name() or error.desc() for error in map(parser.get_error, range(parser.num_errors))]
    return named or [f"subgraph {n}" for n in range(parser.num_subgraphs) if not parser.is_subgraph_supported(n)]


def _require_bf16(place: Place) -> None:
    lacking = [capability for capability in place.capabilities if not has_bf16(capability)]
    if lacking:
        raise BadInput(f"precision: GPUs of compute capability {lacking[0]} do not compute in bf16")


def _key(
    library_name: str, library: Any, artifact: Artifact, options: SessionOptions, role: str, place: Place
) -> dict[str, Any]:
    graph = artifact.manifest.graphs[role]
    return {
        "builder": BUILDER,
        "graph": graph.sha256,
        "data": None if graph.data is None else graph.data.sha256,
        "precision": BF16 if options.precision == BF16 else graph.precision,
        "library": library_name,
        "version": str(library.__version__),
        **place.as_json(),
        "rows": MOST_ROWS if role == "decoder" else 1,
    }


def _path(out: Path, role: str, key: dict[str, Any]) -> Path:
    return out / f"{role}-{sha256_json(key)[:16]}.engine"


def _kept(path: Path, key: dict[str, Any]) -> BuiltEngine | None:
    """The engine that is at `path`, if it is whole and of this key."""
    try:
        facts = read_json(path.with_suffix(".json"), ENGINE_SCHEMA, ENGINE_KEYS)
    except BadInput:
        return None
    whole = path.is_file() and facts["key"] == key and sha256_file(path) == facts["sha256"]
    return BuiltEngine(path, facts) if whole else None


def _build(library: Any, artifact: Artifact, role: str, place: Place, path: Path, key: dict[str, Any]) -> BuiltEngine:
    """The engine of one graph, written to `path` with its facts beside it."""
    graph, log = artifact.graphs[role], _log(library)
    builder, network = _network(library, log)
    parser = library.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        errors = [parser.get_error(number) for number in range(parser.num_errors)]
        said = "; ".join(f"{error.node_name() or 'graph'}: {error.desc()}" for error in errors) or log.last
        raise BadInput(f"{graph}: {library.__name__}'s parser refuses it ({said[:300]})")
    if key["precision"] == BF16:
        compute_in_bf16(library, network)
    config = builder.create_builder_config()
    _configure(library, config, place)
    _add_profile(builder, config, network, artifact, role)
    timings = _read_timing_cache(config, path.parent) if place.is_here else None
    start = time.perf_counter()
    engine = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - start
    if engine is None:
        raise MeasurementFailed(f"{graph}: {library.__name__} could not build it ({log.last or 'it did not say why'})")
    data = memoryview(engine)
    with replaced_file(path) as part:
        part.write_bytes(data)
    if timings is not None:
        _write_timing_cache(config, path.parent)
    softmaxes = sum(network.get_layer(number).type == library.LayerType.SOFTMAX for number in range(network.num_layers))
    facts = {
        "schema": ENGINE_SCHEMA,
        "key": key,
        "file": path.name,
        "sha256": sha256_file(path),
        "bytes": path.stat().st_size,
        "build_s": round(seconds, 3),
        "built_for": place.as_json(),
        "layers": log.kinds(),
        "fused_attention": [name for name, _ in log.layers if FUSED.search(name)],
        "attention": softmaxes,
    }
    write_json(path.with_suffix(".json"), facts)
    return BuiltEngine(path, facts)


def _network(library: Any, log: Any) -> tuple[Any, Any]:
    """A builder and an empty strongly typed network of it; TensorRT 11 has no other kind, and ignores the flag."""
    builder = library.Builder(log)
    strongly = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return builder, builder.create_network(strongly)


def _configure(library: Any, config: Any, place: Place) -> None:
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED  # the layers' names go to the log
    config.clear_flag(library.BuilderFlag.TF32)  # on by default, and no float32 at all
    if place.free_bytes is not None:
        limit = int(WORKSPACE_SHARE * place.free_bytes)
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, limit)
    if place.is_here:
        return
    if not hasattr(config, "num_compute_capabilities"):
        raise RuntimeUnavailable(
            f"{library.__name__}: it builds for the GPU that is here alone; only tensorrt_rtx builds ahead of time"
        )
    config.num_compute_capabilities = len(place.capabilities)
    for number, capability in enumerate(place.capabilities):
        named = getattr(library.ComputeCapability, f"SM{capability.replace('.', '')}", None)
        if named is None:
            raise BadInput(f"compute capability {capability}: {library.__name__} {library.__version__} has none such")
        config.set_compute_capability(named, number)


def _add_profile(builder: Any, config: Any, network: Any, artifact: Artifact, role: str) -> None:
    inputs = [network.get_input(number) for number in range(network.num_inputs)]
    spans = input_spans(artifact, role, {tensor.name: tuple(tensor.shape) for tensor in inputs})
    if spans:
        profile = builder.create_optimization_profile()
        for name, span in spans.items():
            profile.set_shape(name, *span)
        config.add_optimization_profile(profile)


def _read_timing_cache(config: Any, folder: Path) -> Any:
    """The cache that is set from the file of earlier builds, an empty one, or None where the library keeps none."""
    kept = folder / "timing.cache"
    cache = config.create_timing_cache(kept.read_bytes() if kept.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        # Of another GPU or version: a new one is begun.
        cache = config.create_timing_cache(b"")
        if cache is None or not config.set_timing_cache(cache, False):
            return None
    return cache


def _write_timing_cache(config: Any, folder: Path) -> None:
    cache = config.get_timing_cache()
    data = None if cache is None else cache.serialize()
    if data is not None:
        with replaced_file(folder / "timing.cache") as part:
            part.write_bytes(memoryview(data))


def _log(library: Any) -> Any:
    """A logger for the library that keeps its errors and the layers of what it built."""

    class Log(library.ILogger):
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.layers: list[tuple[str, str]] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(library.ILogger.Severity.ERROR):
                self.errors.append(" ".join(message.split()))
            for line in message.splitlines():
                found = LAYER.match(line)
                if found:
                    self.layers.append((found["name"].strip(), found["kind"].strip()))

        @property
        def last(self) -> str:
            return self.errors[-1][:300] if self.errors else ""

        def kinds(self) -> dict[str, int]:
            counted: dict[str, int] = {}
            for _, kind in self.layers:
                counted[kind] = counted.get(kind, 0) + 1
            return dict(sorted(counted.items()))

    return Log()
