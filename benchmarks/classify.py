"""The likeliest labels of recordings, by an artifact on its runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

import numpy as np

from benchmarks.accuracy import log_probabilities
from benchmarks.tagging import probabilities
from runtimes.artifact import read_artifact
from runtimes.choose import require_runtime
from runtimes.errors import BadInput
from runtimes.notes import note_cut
from runtimes.recordings import read_recording
from runtimes.sessions import SessionOptions
from runtimes.tasks import TAGGING_TASK


def label_probabilities(logits: np.ndarray, task: str) -> np.ndarray:
    """Of logits (..., labels), in their shape: sigmoids where a clip may have several labels, else a softmax."""
    return probabilities(logits) if task == TAGGING_TASK else np.exp(log_probabilities(logits))


def classify_files(
    folder: Path, audio: Sequence[Path], runtime: str, options: SessionOptions, top: int
) -> list[dict[str, Any]]:
    """For each WAV file its name and its `top` labels with their probabilities, the likeliest first.

    Probabilities are a softmax, or sigmoids where a clip may have several labels.

    Raises:
        BadInput: a file or the artifact is not usable, or the artifact does not classify.
        RuntimeUnavailable: the runtime is missing.
    """
    artifact = read_artifact(folder)
    if not artifact.labels:
        raise BadInput(f"{folder}: its model has no labels, so it cannot classify; try transcribe")
    if top < 1:
        raise BadInput(f"top: {top} is less than 1")
    waveforms = [read_recording(path, artifact.sample_rate_hz) for path in audio]
    for path, waveform in zip(audio, waveforms):
        note_cut(path, len(waveform), artifact.manifest["input"]["window_samples"], artifact.sample_rate_hz)
    session = require_runtime(runtime, options).load(artifact, options)
    answers = []
    for path, waveform in zip(audio, waveforms):
        shares = label_probabilities(session.run(waveform), artifact.task)
        order = np.argsort(-shares, kind="stable")[:top]
        labels = [{"label": artifact.labels[index], "probability": round(float(shares[index]), 6)} for index in order]
        answers.append({"file": str(path), "labels": labels})
    session.close()
    return answers
