"""The likeliest labels of recordings, by an artifact on its runtime."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Iterable, Iterator, List, Sequence, Tuple

import numpy as np

from leanear.benchmarks.device.transcript_files import clips_in, each_usable, is_several
from leanear.benchmarks.measure.accuracy import log_probabilities
from leanear.benchmarks.tagging import probabilities
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.audio.recordings import Recording
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.errors import BadInput
from leanear.runtimes.process.notes import note_cut, printable
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.tasks import TAGGING_TASK

WAV_SUFFIXES = (".wav",)

Ranked = List[Tuple[str, float]]
"""Labels with their probabilities, the likeliest first."""


def likeliest(logits: np.ndarray, labels: Sequence[str], task: str, top: int) -> Ranked:
    """The `top` likeliest labels of logits (labels,), by sigmoids where a clip may have several, else by a softmax."""
    shares = probabilities(logits) if task == TAGGING_TASK else np.exp(log_probabilities(logits))
    return [(labels[index], float(shares[index])) for index in np.argsort(-shares, kind="stable")[:top]]


def classify_files(
    folder: Path, audio: Sequence[Path], runtime: str, options: SessionOptions, top: int
) -> Iterator[tuple[Path, Ranked]]:
    """Each WAV file and its `top` labels, as they are found.

    audio: files, and folders, see `clips_in`. Of several, a file that is not usable is a line on standard error.
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
    paths = [clip for path in audio for clip in clips_in(path, WAV_SUFFIXES)]
    window = artifact.manifest.input.window_samples
    with contextlib.closing(require_runtime(runtime, options).load(artifact, options)) as session:

        def heard(path: Path) -> Ranked:
            with Recording(path, artifact.sample_rate_hz) as recording:
                note_cut(path, recording.samples, window, artifact.sample_rate_hz)
                return likeliest(session.run(recording[0:window]), artifact.labels, artifact.task, top)

        yield from each_usable(paths, heard, "clip", "classified", several=is_several(audio))


def print_labels(answers: Iterable[tuple[Path, Ranked]], *, as_json: bool, one: bool = False) -> None:
    """Print each answer as it comes, or as JSON what there is once there is no more; one: a single clip is not named.

    Raises:
        LeanearError: what `answers` raises, after what was answered before it.
    """
    told: list[object] = []
    try:
        for path, ranked in answers:
            labels = [{"label": label, "probability": probability} for label, probability in ranked]
            told.append(labels if one else {"file": str(path), "labels": labels})
            if not as_json:
                lines = [f"{100 * probability:6.2f} %  {printable(label)}" for label, probability in ranked]
                print("\n".join(lines if one else [str(path), *lines]))
    finally:
        if as_json and told:
            print(json.dumps(told[0] if one else told))
