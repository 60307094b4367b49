"""One artifact's answers to labelled clips on its runtime, in a fresh process: logits, or transcripts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Callable, TypeVar

import numpy as np

from leanear.benchmarks.measure.accuracy import check_clips, read_logits
from leanear.benchmarks.measure.processes import Progress, absolute, free_of_noise, run_fresh
from leanear.benchmarks.measure.transcripts import Transcript, options_for, read_transcripts
from leanear.runtimes.artifact import Artifact, read_artifact
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.clips import Clips, read_clips
from leanear.runtimes.errors import BadInput, MeasurementFailed
from leanear.runtimes.sessions import SessionOptions

WORKERS = {"logits": "leanear.benchmarks.measure.accuracy", "transcripts": "leanear.benchmarks.measure.transcripts"}

Answers = TypeVar("Answers")


def evaluate_logits(
    artifact: Path,
    clips: Path,
    runtime: str,
    options: SessionOptions,
    *,
    store: Path | None = None,
    progress: Progress = free_of_noise,
) -> tuple[Clips, np.ndarray]:
    """The labelled clips, and one classifier's logits of them on its runtime, float32 (clips, labels), in a fresh
    process.

    store: a file that keeps the answers, so that interrupted work goes on; it has to be of just these arguments.

    Raises:
        BadInput, RuntimeUnavailable, MeasurementFailed: as `benchmark`.
    """
    checked, labelled = _check_evaluation(artifact, clips, runtime, options)
    if checked.is_speech:
        raise BadInput(f"{artifact}: it is for {checked.task}; its answers have no accuracy")
    answering = checked, clips, runtime, options, store, progress
    return labelled, _answers("logits", *answering, lambda kept: read_logits(kept, len(labelled.labels)))


def evaluate_transcripts(
    artifact: Path,
    clips: Path,
    runtime: str,
    options: SessionOptions,
    *,
    store: Path | None = None,
    progress: Progress = free_of_noise,
    asked: dict[str, str] | None = None,
) -> tuple[Transcript, ...]:
    """What one speech artifact hears in every clip on its runtime, in a fresh process.

    store: as for `evaluate_logits`; asked: as for `benchmark`.

    Raises:
        BadInput, RuntimeUnavailable, MeasurementFailed: as `benchmark`.
    """
    checked, read = _check_evaluation(artifact, clips, runtime, options)
    if not checked.is_speech:
        raise BadInput(f"{artifact}: it classifies; it writes no transcripts")
    options_for(checked, read, asked or {})
    answering = checked, clips, runtime, options, store, progress
    return _answers("transcripts", *answering, read_transcripts, asked=asked or {})


def _check_evaluation(artifact: Path, clips: Path, runtime: str, options: SessionOptions) -> tuple[Artifact, Clips]:
    require_runtime(runtime, options)
    checked, read = read_artifact(Path(artifact)), read_clips(Path(clips))
    check_clips(checked, read, Path(clips))
    return checked, read


def _answers(
    kind: str,
    artifact: Artifact,
    clips: Path,
    runtime: str,
    options: SessionOptions,
    store: Path | None,
    progress: Progress,
    read: Callable[[Path], Answers],
    **told: Any,
) -> Answers:
    """The answers to all clips, read from the file that the worker of this kind kept them in; told: what else it is."""
    with tempfile.TemporaryDirectory(prefix="leanear-") as folder:
        store = store or Path(folder) / kind
        request = {
            "artifact": absolute(artifact.folder),
            "runtime": runtime,
            "threads": options.threads,
            "precision": options.precision,
            "window": None,
            "clips": absolute(clips),
            kind: absolute(store),
            **told,
        }
        outcome = run_fresh(WORKERS[kind], request, progress)
        if outcome.answer is None:
            raise MeasurementFailed(f"the clips through {artifact.folder} on {runtime} failed: {outcome.reason}")
        return read(store)
