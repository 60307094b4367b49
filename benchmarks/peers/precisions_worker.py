"""One artifact on one runtime in one precision, in a process that lives on and is timed when it is its turn."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any, Dict

import numpy as np

from leanear.benchmarks.inference import Inference, one_inference
from leanear.benchmarks.peers.lasting_worker import answer_requests
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.sessions import SessionOptions

SHORT_MS, TURN_MS, MOST_RUNS = 60.0, 25.0, 5  # a fast model runs several times in a turn, the first to wake its threads
TICK_S = 0.01  # in which Linux counts


class Worker:
    """Holds a session; its first request is "load"."""

    _inference: Inference
    _typical_ms: float

    def load(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """What the runtime says of the loaded artifact; request: artifact, runtime, threads, precision, waveform,
        tokens."""
        artifact = read_artifact(Path(request["artifact"]))
        options = SessionOptions(threads=request["threads"], precision=request["precision"])
        session = require_runtime(request["runtime"], options).load(artifact, options)
        waveform = np.load(request["waveform"], allow_pickle=False)
        self._inference = one_inference(session, artifact, waveform, request["tokens"])
        self._inference()
        self._typical_ms = self._timed()
        return {"facts": session.facts()}

    def turn(self, request: Dict[str, Any]) -> Dict[str, Any]:  # noqa: ARG002
        """Milliseconds of an inference, and the share of all cores that other processes used meanwhile."""
        runs = 1 if self._typical_ms > SHORT_MS else min(MOST_RUNS, 2 + int(TURN_MS / self._typical_ms))
        begin, busy_s, own_s = time.perf_counter(), _all_busy_s(), time.process_time()
        timings = [self._timed() for _ in range(runs)]
        wall_s = time.perf_counter() - begin
        others_s = _all_busy_s() - busy_s - (time.process_time() - own_s)
        share = max(0.0, others_s - TICK_S) / (wall_s * (os.cpu_count() or 1))
        return {"ms": round(statistics.median(timings[1:] or timings), 4), "others_share": round(share, 4)}

    def _timed(self) -> float:
        start = time.perf_counter_ns()
        self._inference()
        return (time.perf_counter_ns() - start) / 1e6


def _all_busy_s() -> float:
    """Seconds that all cores together were busy since the system started."""
    with open("/proc/stat", encoding="ascii") as stream:
        ticks = [int(field) for field in stream.readline().split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) * TICK_S  # all but idle and waiting for a disk


if __name__ == "__main__":
    worker = Worker()
    answer_requests({"load": worker.load, "turn": worker.turn})
