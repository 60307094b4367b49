"""Examples as waveforms with what is known of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from leanear.benchmarks.tagging import multi_hot
from leanear.data.audio import read_waveform
from leanear.data.dataset import Example, column_for
from leanear.data.metadata import SEPARATOR
from leanear.data.split_names import is_split
from leanear.runtimes.clips import Clips
from leanear.runtimes.errors import BadInput
from leanear.runtimes.process.notes import note, note_first


def read_examples_as_clips(
    examples: Sequence[Example],
    labels: Sequence[str],
    sample_rate_hz: int,
    progress: Callable[[int, int], None] | None = None,
) -> Clips:
    """The examples' audio, mono and resampled, with label ids or tags of `labels`; what is odd of a file is noted.

    Raises:
        BadInput: a file is not usable audio, or a label is none of `labels`.
    """
    index: dict[str | None, int] = {label: number for number, label in enumerate(labels)}
    several = any(example.labels is not None for example in examples)
    waveforms, label_ids, odd = list[np.ndarray](), list[list[int]](), list[str]()
    for number, example in enumerate(examples):
        own = (example.label,) if example.labels is None else example.labels
        unknown = next((label for label in own if label not in index), None)
        if unknown is not None or own == (None,):
            known = ", ".join(list(labels)[:8]) + (", ..." if len(labels) > 8 else "")
            raise BadInput(
                f"{example.path}: label {unknown!r} is unknown to the model, which knows {known}"
                f"{_meant(unknown, labels)}"
            )
        waveforms.append(read_waveform(example.path, sample_rate_hz, odd.append))
        label_ids.append([index[label] for label in own])
        if progress is not None:
            progress(number + 1, len(examples))
    note_first(odd, "clips")
    return Clips(
        waveforms=tuple(waveforms),
        label_ids=np.array([] if several else [number for (number,) in label_ids], dtype=np.int64),
        names=tuple(example.name for example in examples),
        labels=tuple(labels),
        sample_rate_hz=sample_rate_hz,
        tags=multi_hot(label_ids, len(labels)) if several else None,
    )


def _meant(label: str | None, labels: Sequence[str]) -> str:
    """What more is said of an unknown label: which one it may stand for, or that it was meant as a split."""
    label = label or ""
    alike = [known for known in labels if known.casefold() == label.strip().casefold()]
    if alike:
        return f"; there is {alike[0]!r}"
    if label.isdecimal() and int(label) < len(labels):
        return f"; names are wanted, not numbers: {label} is {labels[int(label)]!r}"
    parts = label.split(",")
    if len(parts) > 1 and all(part.strip() in labels for part in parts):
        return f"; several labels are separated by {SEPARATOR!r}, not by ','"
    if is_split(label):
        return "; as a split it is known only where another split is beside it, one to calibrate and one to evaluate on"
    return ""


def read_examples_for(
    task: str,
    examples: Sequence[Example],
    labels: Sequence[str],
    sample_rate_hz: int,
    progress: Callable[[int, int], None] | None = None,
    window_samples: int | None = None,
) -> Clips:
    """The examples as clips of this task: transcribed for speech recognition, else with ids or tags of `labels`.

    window_samples: of the model. A speech model can be calibrated on nothing longer: such clips are left out, and
    counted in one line. A classifier hears the first part of them.

    Raises:
        BadInput: as the function for that kind of clips; or no clip is left.
    """
    if column_for(task) != "text":
        return read_examples_as_clips(examples, labels, sample_rate_hz, progress)
    clips = read_examples_as_transcribed_clips(examples, sample_rate_hz, progress)
    return clips if window_samples is None else _within(clips, window_samples)


def _within(clips: Clips, window_samples: int) -> Clips:
    """The transcribed clips that are no longer than a window."""
    kept = [number for number, waveform in enumerate(clips.waveforms) if len(waveform) <= window_samples]
    if len(kept) == len(clips):
        return clips
    window_s, left_out = window_samples / clips.sample_rate_hz, len(clips) - len(kept)
    longer = f"longer than the model's window of {window_s:g} s"
    if not kept:
        raise BadInput(f"{clips.names[0]}: no clip is left to calibrate on, all {left_out} are {longer}")
    first = next(name for number, name in enumerate(clips.names) if number not in kept)
    note(f"{left_out} of {len(clips)} clips, {first} the first, are not calibrated on: {longer}")
    texts = clips.texts or ()
    return dataclasses.replace(
        clips,
        waveforms=tuple(clips.waveforms[number] for number in kept),
        names=tuple(clips.names[number] for number in kept),
        texts=tuple(texts[number] for number in kept),
    )


def read_examples_as_transcribed_clips(
    examples: Sequence[Example], sample_rate_hz: int, progress: Callable[[int, int], None] | None = None
) -> Clips:
    """The examples' audio, mono and resampled, with their transcripts.

    Raises:
        BadInput: a file is not usable audio, or an example has no transcript.
    """
    waveforms, texts, odd = [], [], list[str]()
    for number, example in enumerate(examples):
        if example.text is None:
            raise BadInput(f"{example.path}: audio without a transcript")
        waveforms.append(read_waveform(example.path, sample_rate_hz, odd.append))
        texts.append(example.text)
        if progress is not None:
            progress(number + 1, len(examples))
    note_first(odd, "clips")
    return Clips(
        waveforms=tuple(waveforms),
        label_ids=np.zeros(0, dtype=np.int64),
        names=tuple(example.name for example in examples),
        labels=(),
        sample_rate_hz=sample_rate_hz,
        texts=tuple(texts),
    )
