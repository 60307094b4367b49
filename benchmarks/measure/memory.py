"""Memory of one artifact in one process, in a pass of its own: looking at memory would disturb the timing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from leanear.benchmarks.inference import Inference, one_inference
from leanear.benchmarks.measure.processes import Progress, answer_request
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.errors import MeasurementFailed
from leanear.runtimes.sessions import SessionOptions

STATUS = Path("/proc/self/status")
MANY_RUNS = 50
LEAST_RUNS = 3
LEAST_WINDOWS = 20  # of speech, for memory that grows grows with every window


def memory_readable() -> str | None:
    """None, or why this system does not tell a process its own memory."""
    return None if STATUS.is_file() else f"{STATUS} does not exist on this system"


def measure_memory(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Resident bytes at each stage of a process that does nothing but infer, after every run, and the peak (VmHWM).

    request: artifact (folder), runtime, threads, precision, waveform (.npy), share_s (time for the repeated runs),
    tokens (of a window of speech; null for a classifier).
    """
    waveform = np.load(request["waveform"], allow_pickle=False)
    artifact = read_artifact(Path(request["artifact"]))
    options = SessionOptions(threads=request["threads"], precision=request["precision"])
    interpreter = resident_bytes()
    runtime = require_runtime(request["runtime"], options)
    imported = resident_bytes()
    progress("load", 0.2)
    session = runtime.load(artifact, options)
    loaded = resident_bytes()
    inference = one_inference(session, artifact, waveform, request["tokens"], request["window"])
    progress("runs", 0.5)
    least = LEAST_RUNS if request["tokens"] is None else LEAST_WINDOWS
    runs = _run_many(inference, request["share_s"], least)
    peak = _status_field("VmHWM")  # the most that was ever in memory
    session.close()
    return {
        "rss_interpreter_bytes": interpreter,
        "rss_runtime_imported_bytes": imported,
        "rss_loaded_bytes": loaded,
        "rss_run_bytes": runs,
        "peak_rss_bytes": peak,
    }


def resident_bytes() -> int:
    """Bytes of this process that are in memory now (VmRSS)."""
    return _status_field("VmRSS")


def _status_field(field: str) -> int:
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise MeasurementFailed(f"{STATUS}: it has no line {field}")


def _run_many(inference: Inference, limit_s: float, least: int) -> list[int]:
    """Resident bytes after each run."""
    deadline = time.perf_counter() + limit_s
    runs: list[int] = []
    while len(runs) < MANY_RUNS and (len(runs) < least or time.perf_counter() < deadline):
        inference()
        runs.append(resident_bytes())
    return runs


if __name__ == "__main__":
    answer_request(measure_memory)
