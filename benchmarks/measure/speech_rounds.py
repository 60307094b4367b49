"""Latency of many Whispers that take turns in one process, stage by stage; of classifiers see `rounds`.

Every window is given the same noise and generates the same number of tokens, whatever a model would hear.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np

from leanear.benchmarks.inference import STAGES, timed_window
from leanear.benchmarks.measure.processes import Progress, answer_request
from leanear.benchmarks.measure.rounds import taken_in_turn, turn
from leanear.runtimes.artifact import Artifact
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.manifest import SpeechManifest
from leanear.runtimes.records import read
from leanear.runtimes.sessions import SessionOptions, SpeechSession

Stages = Dict[str, float]


def measure_speech_rounds(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Timings in ms of every stage of every model, one for every round.

    request: models (a list of folder, with encoder.onnx and decoder.onnx, and manifest, as much of one as a session
    needs), runtime, threads, precision, samples (of the clip), window (samples), prompt, tokens, text_tokens (ids below
    are text), rounds (wanted), share_s (no round starts later than that after the first one did; two are made
    whatever it is). The answer's stages_ms and others_share have a list for every model: the second is the share of all
    cores that other processes used meanwhile.
    """
    options = SessionOptions(threads=request["threads"], precision=request["precision"])
    runtime = require_runtime(request["runtime"], options)
    sessions: List[SpeechSession] = []
    for number, model in enumerate(request["models"]):
        progress("load", 0.2 * number / len(request["models"]))
        sessions.append(runtime.load(_artifact(model), options))
    calls = [_window(session, request) for session in sessions]
    for call in calls:
        turn(call, 1)
    stages: list[list[Stages]] = [[] for _ in sessions]
    shares: list[list[float]] = [[] for _ in sessions]
    for number, windows, share in taken_in_turn(calls, [2] * len(calls), request, progress):
        stages[number].append({stage: _settled(windows, stage) for stage in STAGES})
        shares[number].append(share)
    for session in sessions:
        session.close()
    return {"stages_ms": stages, "others_share": shares}


def _settled(windows: list[Stages], stage: str) -> float:
    """A stage's median over a turn's windows after the first, which wakes the threads."""
    return statistics.median(window[stage] for window in (windows[1:] or windows))


def _window(session: SpeechSession, request: dict[str, Any]) -> Callable[[], Stages]:
    noise = np.random.default_rng(0).standard_normal(request["samples"])
    waveform = (0.1 * noise).astype(np.float32)
    prompt = np.array([request["prompt"]], dtype=np.int64)
    return lambda: timed_window(session, waveform, prompt, request["tokens"], request["text_tokens"], request["window"])


def _artifact(model: dict[str, Any]) -> Artifact:
    """Two graphs with as much of an artifact as a session reads."""
    folder = Path(model["folder"])
    graphs = {"encoder": folder / "encoder.onnx", "decoder": folder / "decoder.onnx"}
    manifest = read(SpeechManifest, model["manifest"], "request")
    return Artifact(folder, manifest, graphs, (), manifest.input.sample_rate_hz)


if __name__ == "__main__":
    answer_request(measure_speech_rounds)
