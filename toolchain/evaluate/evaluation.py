"""Accuracy, mAP, labels and word error rates, by a checkpoint in torch or by an artifact on its runtime."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanear.benchmarks.device.classify import Ranked, likeliest
from leanear.benchmarks.device.transcript_files import each_usable
from leanear.benchmarks.measure.accuracy import cross_entropy_nats
from leanear.benchmarks.summary import wilson_interval
from leanear.benchmarks.tagging import tag_entropies, tag_quality
from leanear.data.audio import AudioStream
from leanear.data.clips import read_examples_for
from leanear.data.dataset import Data, DataFolder, column_for
from leanear.data.splits import read_splits
from leanear.demo import demo_clips_folder
from leanear.evaluate.speech_evaluation import evaluate_clips, open_transcriber, require_torch
from leanear.families.asked import Asked
from leanear.families.checkpoint import (
    DEMO_MODEL,
    DEMO_MODELS,
    NOTHING_ASKED,
    checkpoint_folder,
    data_folder,
    load_checkpoint,
)
from leanear.families.registry import family_of, is_artifact, labels_of, task_of
from leanear.progress import Narrator, Report, counted, in_parts
from leanear.runtimes.artifact import Artifact, read_artifact
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.clips import Clips
from leanear.runtimes.errors import BadInput, MeasurementFailed
from leanear.runtimes.process.notes import is_cut, note, note_cut, plural
from leanear.runtimes.sessions import SessionOptions, own_precision
from leanear.runtimes.tasks import SPEECH_TASK

EVALUATION_SCHEMA = "leanear-evaluation-1"
READ_AND_HEARD = {"reading": 1, "hearing": 9}  # shares of the time, about
BATCH_CLIPS = 16


@dataclass(frozen=True)
class Listener:
    """Something that turns waveforms, float32 (samples,) each, into logits, float32 (B, labels).

    task: whether a clip has one of the labels or several, as in `leanear.runtimes.tasks`; window_samples: how much of a
    waveform, at most, it looks at.
    """

    task: str
    labels: tuple[str, ...]
    sample_rate_hz: int
    window_samples: int
    logits: Callable[[Sequence[np.ndarray]], np.ndarray]
    close: Callable[[], None]


def open_listener(model_or_artifact: str, runtime: str, precision: str | None, threads: int) -> Listener:
    """A listener for an artifact folder (has manifest.json), on `runtime`, or for a checkpoint, in torch.

    precision: None: what the artifact's graphs are of.

    Raises:
        BadInput: it is neither.
        RuntimeUnavailable: the runtime is not installed here.
    """
    own = is_artifact(Path(model_or_artifact))
    folder = Path(model_or_artifact) if own else checkpoint_folder(model_or_artifact)
    if task_of(folder) == SPEECH_TASK:
        raise BadInput(f"{folder}: it writes down speech and has no labels; `leanear transcribe` is for those")
    if own:
        artifact = read_artifact(folder)
        options = SessionOptions(threads=threads, precision=precision or own_precision(artifact, runtime))
        session = require_runtime(runtime, options).load(artifact, options)

        window = artifact.manifest.input.window_samples

        def logits(waveforms: Sequence[np.ndarray]) -> np.ndarray:
            return np.stack([session.run(waveform[:window]) for waveform in waveforms])

        known = (artifact.labels, artifact.sample_rate_hz, window)
        return Listener(artifact.task, *known, logits, session.close)
    require_torch(runtime, precision)
    return _torch_listener(folder, threads)


def _torch_listener(folder: Path, threads: int) -> Listener:
    import torch

    from leanear.accelerator import accelerator

    checkpoint = load_checkpoint(folder)
    family, extractor = family_of(checkpoint), checkpoint.feature_extractor
    checkpoint.model.to(accelerator())
    torch.set_num_threads(threads)

    def logits_of(waveforms: Sequence[np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            logits = np.asarray(family.logits(checkpoint.model, family.features(extractor, waveforms)).cpu().numpy())
        if not np.isfinite(logits).all():
            raise MeasurementFailed(
                f"{folder}: the model gave NaN or infinite logits; are the clip's samples within -1 to 1?"
            )
        return logits

    known = (checkpoint.labels, extractor.sampling_rate, family.window_samples(extractor))
    return Listener(task_of(folder), *known, logits_of, lambda: None)


def evaluate(
    model_or_artifact: str,
    *,
    data: Data | None,
    split: str,
    runtime: str,
    precision: str | None,
    threads: int,
    calibration_clips: int,
    seed: int,
    narrator: Narrator,
    asked: Asked = NOTHING_ASKED,
    batch: int = 1,
) -> dict[str, Any]:
    """How well a model does on the clips of DATA's `split`; keys are stable.

    precision: None: what the artifact's graphs are of; asked, batch: of a Whisper. A classifier's accuracy has Wilson's
    95 % interval; its mAP, of clips with several labels, and a speech model's word error rate a bootstrap's over clips.

    Raises:
        LeanearError: the model, the runtime or the data is not usable.
    """
    artifact, task, labels = _known(model_or_artifact)
    if task != SPEECH_TASK:
        asked.refuse_for(model_or_artifact)
        if batch > 1:
            raise BadInput(f"--batch: for Whisper; {model_or_artifact} is a classifier")
    if precision is None:
        precision = "fp32" if artifact is None else own_precision(artifact, runtime)
    audio = _evaluation_folder(model_or_artifact, artifact, labels, data)
    splits = read_splits(audio, calibration_clips, seed, column_for(task), labels=labels)
    examples = splits.evaluation if split == "evaluation" else splits.calibration
    opening, title = (model_or_artifact, runtime, precision, threads), plural(len(examples), "clip")
    if task == SPEECH_TASK:
        transcriber = open_transcriber(*opening)
        with narrator.step(f"transcribing {title}") as report, contextlib.closing(transcriber.session):
            part = in_parts(report, READ_AND_HEARD)
            told = counted(part("reading"), "reading ")
            clips = read_examples_for(task, examples, (), transcriber.model.sample_rate_hz, told)
            measured = evaluate_clips(transcriber, clips, part("hearing"), asked, batch)
    else:
        listener = open_listener(*opening)
        with narrator.step(f"evaluating {title}") as report, contextlib.closing(listener):
            part = in_parts(report, READ_AND_HEARD)
            told = counted(part("reading"), "reading ")
            clips = read_examples_for(task, examples, listener.labels, listener.sample_rate_hz, told)
            measured = _classified(listener, clips, audio, part("hearing"))
    return {
        "schema": EVALUATION_SCHEMA,
        "model": model_or_artifact,
        "precision": precision,
        "split": split,
        "task": task,
        "kind": "checkpoint" if artifact is None else "artifact",
        "runtime": "torch" if artifact is None else runtime,
        "data": str(audio),
        "clips": len(clips),
        "silent_clips": sum(not waveform.any() for waveform in clips.waveforms),
        **measured,
    }


def _known(model_or_artifact: str) -> tuple[Artifact | None, str, tuple[str, ...]]:
    """The artifact, None of a checkpoint, its task and its labels; nothing is loaded."""
    if is_artifact(Path(model_or_artifact)):
        artifact = read_artifact(Path(model_or_artifact))
        return artifact, artifact.task, artifact.labels
    folder = checkpoint_folder(model_or_artifact)
    return None, task_of(folder), labels_of(folder)


def _classified(listener: Listener, clips: Clips, audio: DataFolder, report: Report) -> dict[str, Any]:
    _note_cut_clips(audio, listener, clips.waveforms)
    logits = _all_logits(listener, clips.waveforms, report)
    if clips.tags is None:
        return _accuracy(logits, clips)
    entropy = float(tag_entropies(logits, clips.tags).mean())
    return {**tag_quality(logits, clips.tags).as_json(), "cross_entropy": entropy}


def _accuracy(logits: np.ndarray, clips: Clips) -> dict[str, Any]:
    right = int((logits.argmax(axis=1) == clips.label_ids).sum())
    accuracy = wilson_interval(right, len(clips))
    return {
        "correct": right,
        "accuracy": accuracy.estimate,
        "accuracy_interval_95": [accuracy.low, accuracy.high],
        "cross_entropy": float(cross_entropy_nats(logits, clips.label_ids).mean()),
    }


def _evaluation_folder(
    model_or_artifact: str, artifact: Artifact | None, labels: tuple[str, ...], data: Data | None
) -> DataFolder:
    """DATA; without it a demo's clips, for an artifact that was made of it and for all that has demo-ast's labels."""
    made_of = None if artifact is None else artifact.manifest.model.get("source")
    if data is None and made_of in DEMO_MODELS:
        return DataFolder(demo_clips_folder(str(made_of)))
    if data is None and labels and labels == labels_of(checkpoint_folder(DEMO_MODEL)):
        return DataFolder(demo_clips_folder())
    return data_folder(model_or_artifact, data)


def _all_logits(listener: Listener, waveforms: Sequence[np.ndarray], report: Report) -> np.ndarray:
    rows = []
    for start in range(0, len(waveforms), BATCH_CLIPS):
        rows.append(listener.logits(waveforms[start : start + BATCH_CLIPS]))
        done = min(start + BATCH_CLIPS, len(waveforms))
        report(f"{done} of {len(waveforms)}", done / len(waveforms))
    return np.concatenate(rows)


def _note_cut_clips(folder: object, listener: Listener, waveforms: Sequence[np.ndarray]) -> None:
    rate_hz, window = listener.sample_rate_hz, listener.window_samples
    cut = sum(is_cut(len(waveform), window, rate_hz) for waveform in waveforms)
    if cut:
        of_them = f"{cut} of {plural(len(waveforms), 'clip')}, which {'is' if cut == 1 else 'are'} longer"
        note(f"{folder}: the model hears only the first {window / rate_hz:.2f} s of {of_them}")


def classify(
    clips: Sequence[Path], model: str, top: int, runtime: str, several: bool, threads: int = 1
) -> Iterator[tuple[Path, Ranked]]:
    """Every audio file and its `top` likeliest labels, as they are found.

    Probabilities are a softmax, or sigmoids where a clip may have several labels. several: a file that is not usable is
    a line on standard error, and the others are done.

    Raises:
        LeanearError: the model is not usable, or a clip is not; of several, after all of them.
    """
    with contextlib.closing(open_listener(model, runtime, None, threads)) as listener:

        def heard(clip: Path) -> Ranked:
            rate_hz, window = listener.sample_rate_hz, listener.window_samples
            with AudioStream(clip, rate_hz) as stream:
                waveform = stream[0 : window + rate_hz]  # and what tells whether it goes on
                samples = stream.samples if len(waveform) == window + rate_hz else len(waveform)
            note_cut(clip, samples, window, rate_hz)
            return likeliest(listener.logits([waveform])[0], listener.labels, listener.task, top)

        yield from each_usable(clips, heard, "clip", "classified", several=several)
