"""Latency of one artifact in one process: import, load, first inference, warm-up and steady state, kept apart."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from leanear.benchmarks.inference import Inference, milliseconds, one_inference, take_gpu_ms
from leanear.benchmarks.measure.processes import Progress, answer_request
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.sessions import SessionOptions

WARM_UP_RUNS = 10
WARM_UP_S = 0.5
WARM_UP_WINDOW = 5
WARM_UP_SETTLED = 0.02
WARM_UP_SHARE = 0.25
LEAST_SAMPLES = 3


def measure_latency(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Timings in ms of one synchronous stream, each sample one whole inference as `benchmarks.inference` defines it.

    request: artifact (folder), runtime, threads, precision, waveform (.npy), samples (wanted), share_s (time for
    warm-up and steady state together; at least 3 samples are taken whatever it is), tokens (of a window of speech; null
    for a classifier). stages_ms holds the stages of each sample, and
    gpu_ms the time that a GPU worked in each, where the session tells.
    """
    artifact = read_artifact(Path(request["artifact"]))
    waveform = np.load(request["waveform"], allow_pickle=False)
    options = SessionOptions(threads=request["threads"], precision=request["precision"])
    progress("load", 0.0)
    start = time.perf_counter_ns()
    runtime = require_runtime(request["runtime"], options)
    imported = time.perf_counter_ns()
    session = runtime.load(artifact, options)
    loaded = time.perf_counter_ns()
    inference = one_inference(session, artifact, waveform, request["tokens"], request["window"])
    inference()
    answered = time.perf_counter_ns()
    deadline = time.perf_counter() + request["share_s"]
    progress("warm-up", 0.2)
    warm_up = _warm_up(inference, WARM_UP_SHARE * request["share_s"])
    progress("steady state", 0.4)
    take_gpu_ms(session)
    samples, stages, gpu = _steady_state(inference, session, request["samples"], deadline)
    facts = session.facts()
    session.close()
    return {
        "import_ms": milliseconds(imported - start),
        "load_ms": milliseconds(loaded - imported),
        "first_inference_ms": milliseconds(answered - loaded),
        "warm_up": warm_up,
        "samples_ms": samples,
        "stages_ms": stages,
        "gpu_ms": gpu,
        "facts": facts,
    }


def _warm_up(inference: Inference, limit_s: float) -> dict[str, Any]:
    """Runs until enough of them, enough time, and two neighbouring medians agree; cut at `limit_s`."""
    start = time.perf_counter()
    timings: list[float] = []
    while True:
        timings.append(_timed(inference)[0])
        elapsed_s = time.perf_counter() - start
        settled = _settled(timings)
        enough = len(timings) >= WARM_UP_RUNS and elapsed_s >= WARM_UP_S and settled
        if enough or elapsed_s >= limit_s:
            return {"runs": len(timings), "seconds": round(elapsed_s, 3), "settled": settled, "timings_ms": timings}


def _settled(timings: list[float]) -> bool:
    if len(timings) < 2 * WARM_UP_WINDOW:
        return False
    earlier = statistics.median(timings[-2 * WARM_UP_WINDOW : -WARM_UP_WINDOW])
    later = statistics.median(timings[-WARM_UP_WINDOW:])
    return abs(later - earlier) <= WARM_UP_SETTLED * earlier


def _steady_state(
    inference: Inference, session: Any, wanted: int, deadline: float
) -> tuple[list[float], dict[str, list[float]], dict[str, list[float]]]:
    samples: list[float] = []
    stages: dict[str, list[float]] = {}
    gpu: dict[str, list[float]] = {}
    while len(samples) < wanted and (len(samples) < LEAST_SAMPLES or time.perf_counter() < deadline):
        sample, parts = _timed(inference)
        samples.append(sample)
        for name, part in parts.items():
            stages.setdefault(name, []).append(part)
        for name, part in take_gpu_ms(session).items():
            gpu.setdefault(name, []).append(part)
    return samples, stages, gpu


def _timed(inference: Inference) -> tuple[float, dict[str, float]]:
    start = time.perf_counter_ns()
    stages = inference()
    return milliseconds(time.perf_counter_ns() - start), stages


if __name__ == "__main__":
    answer_request(measure_latency)
