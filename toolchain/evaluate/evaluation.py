"""Accuracy, mAP, labels and word error rates, by a checkpoint in torch or by an artifact on its runtime."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanear.benchmarks.device.classify import clips_in, label_probabilities
from leanear.benchmarks.measure.accuracy import cross_entropy_nats
from leanear.benchmarks.summary import wilson_interval
from leanear.benchmarks.tagging import tag_entropies, tag_quality
from leanear.data.audio import SUFFIXES, check_audio_file, read_waveform
from leanear.data.clips import read_examples_as_clips, read_examples_as_transcribed_clips
from leanear.data.dataset import Data, DataFolder, Example, as_folder, column_for
from leanear.data.splits import read_splits
from leanear.demo import demo_clips_folder
from leanear.evaluate.speech_evaluation import evaluate_clips, open_transcriber
from leanear.families.asked import Asked
from leanear.families.checkpoint import DEMO_MODEL, DEMO_MODELS, NOTHING_ASKED, checkpoint_folder, load_checkpoint
from leanear.families.registry import family_of
from leanear.families.tasks import is_artifact, task_of
from leanear.progress import Narrator, counted
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.clips import Clips
from leanear.runtimes.errors import BadInput, MeasurementFailed
from leanear.runtimes.process.notes import is_cut, note, note_cut
from leanear.runtimes.sessions import SessionOptions, own_precision
from leanear.runtimes.tasks import SPEECH_TASK

EVALUATION_SCHEMA = "leanear-evaluation-1"
BATCH_CLIPS = 16


@dataclass(frozen=True)
class Listener:
    """Something that turns waveforms, float32 (samples,) each, into logits, float32 (B, labels).

    task: whether a clip has one of the labels or several, as in `leanear.runtimes.tasks`; window_samples: how much of a
    waveform, at most, it looks at.
    """

    task: str
    kind: str
    runtime: str
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
    folder = Path(model_or_artifact)
    if is_artifact(folder):
        artifact = read_artifact(folder)
        if artifact.is_speech:
            raise BadInput(f"{folder}: it writes down speech and has no labels")
        options = SessionOptions(threads=threads, precision=precision or own_precision(artifact, runtime))
        session = require_runtime(runtime, options).load(artifact, options)

        window = artifact.manifest.input.window_samples

        def logits(waveforms: Sequence[np.ndarray]) -> np.ndarray:
            return np.stack([session.run(waveform[:window]) for waveform in waveforms])

        known = (artifact.labels, artifact.sample_rate_hz, window)
        return Listener(artifact.task, "artifact", runtime, *known, logits, session.close)
    if precision not in (None, "fp32"):
        raise BadInput(f"--precision {precision} is for artifacts; a checkpoint is evaluated in fp32")
    return _torch_listener(checkpoint_folder(model_or_artifact), threads)


def _torch_listener(folder: Path, threads: int) -> Listener:
    import torch

    task = task_of(folder)
    if task == SPEECH_TASK:
        raise BadInput(f"{folder}: it writes down speech and has no labels")
    checkpoint = load_checkpoint(folder)
    family, extractor = family_of(checkpoint), checkpoint.feature_extractor
    torch.set_num_threads(threads)

    def logits_of(waveforms: Sequence[np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            logits = np.asarray(family.logits(checkpoint.model, family.features(extractor, waveforms)).numpy())
        if not np.isfinite(logits).all():
            raise MeasurementFailed(
                f"{folder}: the model gave NaN or infinite logits; are the clip's samples within -1 to 1?"
            )
        return logits

    known = (checkpoint.labels, extractor.sampling_rate, family.window_samples(extractor))
    return Listener(task, "checkpoint", "torch", *known, logits_of, lambda: None)


def data_folder(model: str, data: Data | None) -> DataFolder:
    """DATA, or a demo's own clips where there is no DATA and nothing but that demo is asked for.

    Raises:
        BadInput: no DATA was given for a model that brings none.
    """
    if data is not None:
        return as_folder(data)
    if model in DEMO_MODELS:
        return DataFolder(demo_clips_folder(model))
    raise BadInput(f"--data is missing: {model} brings no audio of its own ({' and '.join(DEMO_MODELS)} do)")


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

    precision: None: what the artifact's graphs are of; asked, batch: of a Whisper. A classifier's accuracy has
    Wilson's 95 % interval, its mAP, where clips may have several labels, and a speech model's word error rate that of a
    bootstrap over clips.

    Raises:
        LeanearError: the model, the runtime or the data is not usable.
    """
    folder = Path(model_or_artifact)
    if precision is None:
        precision = own_precision(read_artifact(folder), runtime) if is_artifact(folder) else "fp32"
    request = {"model": model_or_artifact, "precision": precision, "split": split}
    if task_of(folder if is_artifact(folder) else checkpoint_folder(model_or_artifact)) == SPEECH_TASK:
        transcriber = open_transcriber(model_or_artifact, runtime, precision, threads)
        audio = _speech_folder(model_or_artifact, data)
        examples = _examples(audio, split, calibration_clips, seed, SPEECH_TASK)
        with narrator.step(f"transcribing {len(examples)} clips") as report:
            told = counted(report, "reading ")
            clips = read_examples_as_transcribed_clips(examples, transcriber.model.sample_rate_hz, told)
            measured = evaluate_clips(transcriber, clips, report, asked, batch)
        transcriber.session.close()
        return _answer(request, SPEECH_TASK, transcriber.kind, transcriber.runtime, audio, len(clips), measured)
    asked.refuse_for(model_or_artifact)
    if batch > 1:
        raise BadInput(f"--batch: for Whisper; {model_or_artifact} is a classifier")
    listener = open_listener(model_or_artifact, runtime, precision, threads)
    audio = _evaluation_folder(model_or_artifact, listener, data)
    examples = _examples(audio, split, calibration_clips, seed, listener.task, listener.labels)
    with narrator.step(f"evaluating {len(examples)} clips") as report:
        told = counted(report, "reading ")
        clips = read_examples_as_clips(examples, listener.labels, listener.sample_rate_hz, told)
        _note_cut_clips(audio, listener, clips.waveforms)
        logits = _all_logits(listener, clips.waveforms, report)
    listener.close()
    measured = _accuracy(logits, clips) if clips.tags is None else _ranking(logits, clips.tags)
    return _answer(request, listener.task, listener.kind, listener.runtime, audio, len(clips), measured)


def _accuracy(logits: np.ndarray, clips: Clips) -> dict[str, Any]:
    right = int((logits.argmax(axis=1) == clips.label_ids).sum())
    accuracy = wilson_interval(right, len(clips))
    return {
        "correct": right,
        "accuracy": accuracy.estimate,
        "accuracy_interval_95": [accuracy.low, accuracy.high],
        "cross_entropy": float(cross_entropy_nats(logits, clips.label_ids).mean()),
    }


def _ranking(logits: np.ndarray, tags: np.ndarray) -> dict[str, Any]:
    return {**tag_quality(logits, tags).as_json(), "cross_entropy": float(tag_entropies(logits, tags).mean())}


def _answer(
    request: dict[str, str], task: str, kind: str, runtime: str, audio: DataFolder, clips: int, measured: dict[str, Any]
) -> dict[str, Any]:
    return {
        "schema": EVALUATION_SCHEMA,
        **request,
        "task": task,
        "kind": kind,
        "runtime": runtime,
        "data": str(audio),
        "clips": clips,
        **measured,
    }


def _examples(
    folder: DataFolder, split: str, calibration_clips: int, seed: int, task: str, labels: Sequence[str] = ()
) -> tuple[Example, ...]:
    splits = read_splits(folder, calibration_clips, seed, column_for(task), labels=labels)
    return splits.evaluation if split == "evaluation" else splits.calibration


def _speech_folder(model_or_artifact: str, data: Data | None) -> DataFolder:
    """DATA; without it the demo's clips, for an artifact that was made of the demo."""
    folder = Path(model_or_artifact)
    if data is None and is_artifact(folder):
        source = str(read_artifact(folder).manifest.model.get("source"))
        if source in DEMO_MODELS:
            return DataFolder(demo_clips_folder(source))
    return data_folder(model_or_artifact, data)


def _evaluation_folder(model_or_artifact: str, listener: Listener, data: Data | None) -> DataFolder:
    """DATA; without it the demo's clips, for anything that has the demo's labels."""
    if data is None and listener.labels == _demo_labels():
        return DataFolder(demo_clips_folder())
    return data_folder(model_or_artifact, data)


def _demo_labels() -> tuple[str, ...]:
    config = json.loads((checkpoint_folder(DEMO_MODEL) / "config.json").read_text(encoding="utf-8"))
    return tuple(config["id2label"][str(index)] for index in range(len(config["id2label"])))


def _all_logits(listener: Listener, waveforms: Sequence[np.ndarray], report: Callable[..., None]) -> np.ndarray:
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
        of_them = f"{cut} of {len(waveforms)} clips"
        note(f"{folder}: the model hears only the first {window / rate_hz:.2f} s of {of_them}, which are longer")


def classify(
    paths: Sequence[Path], model: str, *, top: int, runtime: str, threads: int = 1
) -> list[tuple[Path, list[tuple[str, float]]]]:
    """The `top` likeliest labels of every audio file with their probabilities, the likeliest first.

    Probabilities are a softmax, or sigmoids where a clip may have several labels. paths: files, and folders, whose
    audio files are taken in the order of their names.

    Raises:
        LeanearError: a clip or the model is not usable, or a folder holds no audio.
    """
    clips = [clip for path in paths for clip in clips_in(path, SUFFIXES)]
    for clip in clips:
        check_audio_file(clip)
    listener = open_listener(model, runtime, None, threads)
    answers = []
    for clip in clips:
        waveform = read_waveform(clip, listener.sample_rate_hz)
        note_cut(clip, len(waveform), listener.window_samples, listener.sample_rate_hz)
        shares = label_probabilities(listener.logits([waveform])[0], listener.task)
        order = np.argsort(-shares, kind="stable")[:top]
        answers.append((clip, [(listener.labels[index], float(shares[index])) for index in order]))
    listener.close()
    return answers
