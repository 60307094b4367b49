"""The audio front end's share of an encoder's time, in a pass of its own: a profiler would disturb the timing."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterable, List, Tuple

import numpy as np

from leanear.benchmarks.measure.processes import Progress, answer_request
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.backends.onnx_sessions import load_graph
from leanear.runtimes.backends.openvino_sessions import compile_graph
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.sessions import SessionOptions, filled_up
from leanear.runtimes.speech.encoder_windows import artifact_windows

RUNS = 8
FRONT_END_NODES = "front_end."


def share_of_nodes(
    runtime: str, graph: Path, options: SessionOptions, waveform: np.ndarray, prefix: str
) -> float | None:
    """The share of time of the nodes whose names begin with `prefix`, in a graph that takes a waveform (1, samples).

    A profiler slows what it watches, so its times are no latencies; how they are shared out is asked of it. Each node
    counts with its median over a few runs. None where the runtime has no profiler, or knows no such node.
    """
    times = {"onnxruntime": _onnxruntime_times, "openvino": _openvino_times}.get(runtime)
    if times is None:
        return None
    by_node: Dict[str, List[float]] = {}
    for name, time in times(graph, options, waveform[np.newaxis]):
        by_node.setdefault(name, []).append(time)
    medians = {name: statistics.median(each) for name, each in by_node.items()}
    total, part = sum(medians.values()), sum(time for name, time in medians.items() if name.startswith(prefix))
    return part / total if total > 0 and part > 0 else None


def _onnxruntime_times(graph: Path, options: SessionOptions, waveform: np.ndarray) -> Iterable[Tuple[str, float]]:
    with tempfile.TemporaryDirectory(prefix="leanear-") as folder:
        session = load_graph(graph, options, profile=os.path.join(folder, "profile"))
        name = session.get_inputs()[0].name
        for _ in range(RUNS):
            session.run(None, {name: waveform})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            yield event["name"], float(event["dur"])


def _openvino_times(graph: Path, options: SessionOptions, waveform: np.ndarray) -> Iterable[Tuple[str, float]]:
    request = compile_graph(graph, options, profiling=True).create_infer_request()
    for _ in range(RUNS):
        request.infer([waveform])
        for node in request.get_profiling_info():
            yield node.node_name, node.real_time.total_seconds()


def measure_front_end(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The share, between 0 and 1, or null where the runtime does not tell.

    request: artifact (folder), runtime, threads, precision, window (a choice, null: the artifact's own), waveform
    (.npy).
    """
    artifact = read_artifact(Path(request["artifact"]))
    waveform = np.load(request["waveform"], allow_pickle=False)
    options = SessionOptions(threads=request["threads"], precision=request["precision"])
    require_runtime(request["runtime"], options)
    progress("front end", 0.1)
    window = artifact_windows(artifact, request["window"]).holding(len(waveform))
    filled = filled_up(waveform[np.newaxis], window)[0]
    share = share_of_nodes(request["runtime"], artifact.graphs["encoder"], options, filled, FRONT_END_NODES)
    return {"share": None if share is None else round(share, 6)}


if __name__ == "__main__":
    answer_request(measure_front_end)
