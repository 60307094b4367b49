"""Logits of every evaluation clip, by the very artifact that ships, on its runtime; interrupted work is continued."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path
from typing import Any, Callable, List, TypeVar

import numpy as np

from leanear.benchmarks.measure.processes import Progress, answer_request
from leanear.runtimes.artifact import Artifact, read_artifact
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.clips import Clips, read_clips
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import replaced_file
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.tasks import TAGGING_TASK

SAVE_EVERY_S = 10.0
SAY_EVERY_S = 0.2

Answer = TypeVar("Answer")


def check_clips(artifact: Artifact, clips: Clips, path: Path) -> None:
    """Nothing, when the clips in `path` are of the labels and sample rate that the artifact expects, or transcribed.

    Raises:
        BadInput: they are not, or there are none, or a label id names no label, or a speech model has no transcripts.
    """
    if not len(clips):
        raise BadInput(f"{path}: it holds no clips")
    if clips.sample_rate_hz != artifact.sample_rate_hz:
        raise BadInput(
            f"{path}: sampled at {clips.sample_rate_hz} Hz, {artifact.folder} expects {artifact.sample_rate_hz}"
        )
    if artifact.is_speech:
        if clips.texts is None:
            raise BadInput(
                f"{path}: its clips have labels and no transcripts, but {artifact.folder} writes down speech"
            )
        return
    if clips.texts is not None:
        raise BadInput(f"{path}: its clips have transcripts and no labels, but {artifact.folder} classifies")
    if clips.labels != artifact.labels:
        raise BadInput(
            f"{path}: its {len(clips.labels)} labels are not the {len(artifact.labels)} labels of {artifact.folder}, "
            "in the same order"
        )
    if (clips.tags is not None) != (artifact.task == TAGGING_TASK):
        counts = {True: "any number of labels", False: "one label each"}
        raise BadInput(
            f"{path}: its clips have {counts[clips.tags is not None]}, but those of {artifact.folder} have"
            f" {counts[clips.tags is None]}"
        )
    if clips.tags is not None:
        if clips.tags.shape != (len(clips), len(clips.labels)) or not clips.tags.any():
            raise BadInput(f"{path}: its clips have no labels")
        return
    if clips.label_ids.min() < 0 or clips.label_ids.max() >= len(clips.labels):
        raise BadInput(f"{path}: a label id lies outside 0..{len(clips.labels) - 1}")


def measure_logits(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """How many clips have their logits in the file `request["logits"]`, float32 (clips, labels): all of them.

    request: artifact (folder), runtime, threads, precision, clips (.npz), logits (.npz; what it holds is kept).
    """
    artifact = read_artifact(Path(request["artifact"]))
    clips = read_clips(Path(request["clips"]))
    check_clips(artifact, clips, Path(request["clips"]))
    options = SessionOptions(threads=request["threads"], precision=request["precision"])
    store = Path(request["logits"])
    rows = list(read_logits(store, len(artifact.labels)))
    if len(rows) < len(clips):
        session = require_runtime(request["runtime"], options).load(artifact, options)
        answer_the_rest(clips, rows, session.run, lambda: _write_logits(store, rows), progress)
        session.close()
    return {"clips": len(rows)}


def answer_the_rest(
    clips: Clips,
    done: List[Answer],
    answer: Callable[[np.ndarray], Answer],
    save: Callable[[], None],
    progress: Progress,
) -> None:
    """Add the answers to the clips that have none yet to `done`; they are saved now and then, and at the end."""
    said = saved = time.perf_counter()
    for waveform in clips.waveforms[len(done) :]:
        done.append(answer(waveform))
        now = time.perf_counter()
        if now - said > SAY_EVERY_S:
            progress(f"{len(done)} of {len(clips)} clips", len(done) / len(clips))
            said = now
        if now - saved > SAVE_EVERY_S:
            save()
            saved = now
    save()


def read_logits(path: Path, labels: int) -> np.ndarray:
    """The logits in `path` so far, float32 (clips done, labels); none if there is no whole file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            logits = arrays["logits"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return np.zeros((0, labels), np.float32)
    return logits if logits.ndim == 2 and logits.shape[1] == labels else np.zeros((0, labels), np.float32)


def _write_logits(path: Path, rows: list[np.ndarray]) -> None:
    with replaced_file(path) as part, open(part, "wb") as stream:
        np.savez(stream, logits=np.stack(rows).astype(np.float32))


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Log of softmax over the last axis, float64."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy_nats(logits: np.ndarray, label_ids: np.ndarray) -> np.ndarray:
    """Minus the log-probability of each clip's own label, (clips,)."""
    return -log_probabilities(logits)[np.arange(len(label_ids)), label_ids]


def kl_divergence_nats(dense_logits: np.ndarray, slim_logits: np.ndarray) -> np.ndarray:
    """KL(dense || slim) of each clip's predicted distribution, (clips,); what rounding leaves below 0 is 0."""
    dense, slim = log_probabilities(dense_logits), log_probabilities(slim_logits)
    return np.maximum((np.exp(dense) * (dense - slim)).sum(axis=-1), 0.0)


if __name__ == "__main__":
    answer_request(measure_logits)
