"""What share of a graph's time some of its nodes take, by the runtime's own profiler.

A profiler slows what it watches, so its times are no latencies; how they are shared out is what is asked of it.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Dict, Iterable, List, Tuple

import numpy as np

from leanear.runtimes.backends.onnx_sessions import load_graph
from leanear.runtimes.backends.openvino_sessions import compile_graph
from leanear.runtimes.sessions import SessionOptions

RUNS = 8


def share_of_nodes(
    runtime: str, graph: Path, options: SessionOptions, waveform: np.ndarray, prefix: str
) -> float | None:
    """The share of time of the nodes whose names begin with `prefix`, in a graph that takes a waveform (1, samples).

    Each node counts with its median over a few runs. None where the runtime has no profiler, or knows no such node.
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
