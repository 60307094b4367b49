"""The likeliest labels of recordings, by an artifact on its runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

import numpy as np

from leanear.benchmarks.measure.accuracy import log_probabilities
from leanear.benchmarks.tagging import probabilities
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.audio.recordings import read_recording
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.errors import BadInput
from leanear.runtimes.process.notes import note, note_cut
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.tasks import TAGGING_TASK

WAV_SUFFIXES = (".wav",)


def label_probabilities(logits: np.ndarray, task: str) -> np.ndarray:
    """Of logits (..., labels), in their shape: sigmoids where a clip may have several labels, else a softmax."""
    return probabilities(logits) if task == TAGGING_TASK else np.exp(log_probabilities(logits))


def clips_in(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """The file itself, or a folder's files of these suffixes, those in sub-folders too, in the order of their names.

    Raises:
        BadInput: a folder has none; of other files it is noted how many there are.
    """
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    clips = [file for file in files if file.suffix.lower() in suffixes]
    if not clips:
        raise BadInput(f"{path}: no {', '.join(suffixes)} files in it")
    if len(clips) < len(files):
        note(f"{path}: files of other kinds are passed over: {len(files) - len(clips)}")
    return clips


def classify_files(
    folder: Path, audio: Sequence[Path], runtime: str, options: SessionOptions, top: int
) -> list[dict[str, Any]]:
    """For each WAV file its name and its `top` labels with their probabilities, the likeliest first.

    audio: files, and folders, see `clips_in`. Probabilities are a softmax, or sigmoids where a clip may have several
    labels.

    Raises:
        BadInput: a file or the artifact is not usable, or the artifact does not classify.
        RuntimeUnavailable: the runtime is missing.
    """
    artifact = read_artifact(folder)
    if not artifact.labels:
        raise BadInput(f"{folder}: its model has no labels, so it cannot classify; try transcribe")
    if top < 1:
        raise BadInput(f"top: {top} is less than 1")
    paths = [clip for path in audio for clip in clips_in(path, WAV_SUFFIXES)]
    waveforms = [read_recording(path, artifact.sample_rate_hz) for path in paths]
    window = artifact.manifest.input.window_samples
    for path, waveform in zip(paths, waveforms):
        note_cut(path, len(waveform), window, artifact.sample_rate_hz)
    session = require_runtime(runtime, options).load(artifact, options)
    answers = []
    for path, waveform in zip(paths, waveforms):
        shares = label_probabilities(session.run(waveform[:window]), artifact.task)
        order = np.argsort(-shares, kind="stable")[:top]
        labels = [{"label": artifact.labels[index], "probability": round(float(shares[index]), 6)} for index in order]
        answers.append({"file": str(path), "labels": labels})
    session.close()
    return answers
