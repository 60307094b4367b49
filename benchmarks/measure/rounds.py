"""Latency of many graphs that take turns in one process, so that what slows the machine down slows all of them."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence, TypeVar

import numpy as np

from leanear.benchmarks.measure.processes import Progress, answer_request
from leanear.runtimes.artifact import Artifact
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.manifest import MANIFEST_SCHEMA, NO_GOLDEN, ClassifierManifest, Output, waveform_input
from leanear.runtimes.sessions import Session, SessionOptions
from leanear.runtimes.tasks import CLASSIFICATION_TASK

REST_S = 0.04  # until the threads of the graph before have stopped waiting for more work, which keeps a core busy
SHORT_MS = 60.0  # a graph that is faster runs several times in a turn, the first time to wake its threads
TURN_MS = 25.0
MOST_RUNS = 5
TRIES = 2
TICK_S = 0.01  # in which Linux counts
QUIET_SHARE = 0.04
RATE_HZ = 16_000  # of what is timed, which no graph asks
FEWEST_QUIET = 3

Timed = TypeVar("Timed")


def measure_rounds(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Timings in ms of every graph, one for every round: its turn's median call after the first, or its only one.

    request: graphs (a list of file, labels and samples, the lengths of output and input), runtime, threads, precision,
    rounds (wanted), share_s (no round starts later than that after the first one did; two are made whatever it is).
    The answer's samples_ms and others_share have a list for every graph: the second is the share of all cores that
    other processes used meanwhile. A turn that others disturbed is repeated, a few times at most, and the quietest
    counts. facts are what the runtime says of the first.
    """
    options = SessionOptions(threads=request["threads"], precision=request["precision"])
    runtime = require_runtime(request["runtime"], options)
    generator = np.random.default_rng(0)
    sessions: list[Session] = []
    inputs: list[np.ndarray] = []
    for number, graph in enumerate(request["graphs"]):
        progress("load", 0.2 * number / len(request["graphs"]))
        sessions.append(runtime.load(_artifact(graph), options))
        inputs.append((0.1 * generator.standard_normal(graph["samples"])).astype(np.float32))
    calls = [_timed_call(session, source) for session, source in zip(sessions, inputs)]
    typical_ms = [_typical_ms(turn(call, 2)[0]) for call in calls]
    turns: list[list[tuple[float, float]]] = [[] for _ in sessions]
    runs = [1 if each > SHORT_MS else min(MOST_RUNS, 2 + int(TURN_MS / each)) for each in typical_ms]
    for number, samples_ms, share in taken_in_turn(calls, runs, request, progress):
        turns[number].append((_typical_ms(samples_ms), share))
    facts = sessions[0].facts()
    for session in sessions:
        session.close()
    return {
        "samples_ms": [[milliseconds for milliseconds, _ in of_graph] for of_graph in turns],
        "others_share": [[share for _, share in of_graph] for of_graph in turns],
        "facts": facts,
    }


def quiet_samples(samples_ms: list[float], others_share: list[float]) -> list[float]:
    """The samples during which other processes did next to nothing; where they are few, the fastest third.

    What others do can only make a sample slower, so on a busy machine the fastest are the least disturbed.
    """
    quiet = [milliseconds for milliseconds, share in zip(samples_ms, others_share) if share <= QUIET_SHARE]
    if len(quiet) >= FEWEST_QUIET:
        return quiet
    return sorted(samples_ms)[: max(FEWEST_QUIET, len(samples_ms) // 3)]


def _artifact(graph: dict[str, Any]) -> Artifact:
    """A graph without a manifest, as the runtimes take it."""
    path = Path(graph["file"])
    labels = tuple(str(number) for number in range(graph["labels"]))
    manifest = ClassifierManifest(
        schema=MANIFEST_SCHEMA,
        family="",
        task=CLASSIFICATION_TASK,
        model={},
        graphs={},
        input=waveform_input(RATE_HZ, graph["samples"]),
        output=Output("logits", "float32", (1, len(labels))),
        labels=labels,
        golden=NO_GOLDEN,
        parity=None,
        made_from={},
        left_in_float32=(),
    )
    return Artifact(path.parent, manifest, {"classifier": path}, labels, RATE_HZ)


def _timed_call(session: Session, source: np.ndarray) -> Callable[[], float]:
    def timed() -> float:
        start = time.perf_counter_ns()
        session.run(source)
        return (time.perf_counter_ns() - start) / 1e6

    return timed


def _typical_ms(samples_ms: list[float]) -> float:
    """The median of a turn's calls after the first, or its only one."""
    return round(statistics.median(samples_ms[1:] or samples_ms), 4)


def taken_in_turn(
    calls: Sequence[Callable[[], Timed]], runs: Sequence[int], request: dict[str, Any], progress: Progress
) -> Iterator[tuple[int, list[Timed], float]]:
    """Turn by turn, whose it was, what its calls gave, and the share of all cores that others used meanwhile.

    runs: calls in a turn of each. Every second round goes backwards; request: rounds and share_s of `measure_rounds`.
    """
    deadline = time.perf_counter() + request["share_s"]
    for made in range(request["rounds"]):
        if made >= 2 and time.perf_counter() > deadline:
            return
        progress(f"round {made + 1}", 0.2 + 0.8 * made / request["rounds"])
        order = range(len(calls)) if made % 2 == 0 else range(len(calls) - 1, -1, -1)
        for number in order:
            yield (number, *quiet_turn(calls[number], runs[number], deadline))


def quiet_turn(call: Callable[[], Timed], runs: int, deadline: float) -> tuple[list[Timed], float]:
    """What the calls of the least disturbed of a few turns gave, and the share of all cores that others used then."""
    best: tuple[list[Timed], float] = ([], float("inf"))
    for _ in range(TRIES):
        time.sleep(REST_S)
        best = min(best, turn(call, runs), key=lambda each: each[1])
        if best[1] <= QUIET_SHARE or time.perf_counter() > deadline:
            break
    return best


def turn(call: Callable[[], Timed], runs: int) -> tuple[list[Timed], float]:
    """What `call` gave `runs` times, and the share of all cores that other processes used meanwhile."""
    begin, busy_s, own_s = time.perf_counter(), _all_busy_s(), time.process_time()
    answers = [call() for _ in range(runs)]
    wall_s = time.perf_counter() - begin
    others_s = _all_busy_s() - busy_s - (time.process_time() - own_s)
    share = max(0.0, others_s - TICK_S) / (wall_s * (os.cpu_count() or 1))
    return answers, round(share, 4)


def _all_busy_s() -> float:
    """Seconds that all cores together were busy since the system started, or 0 where the system does not tell."""
    try:
        with open("/proc/stat", encoding="ascii") as stream:
            ticks = [int(field) for field in stream.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0.0
    return (sum(ticks) - ticks[3] - ticks[4]) * TICK_S  # all but idle and waiting for a disk


if __name__ == "__main__":
    answer_request(measure_rounds)
