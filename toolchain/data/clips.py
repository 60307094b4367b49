"""Examples as waveforms with what is known of them."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from leanear.benchmarks.tagging import multi_hot
from leanear.data.audio import read_waveform
from leanear.data.dataset import Example, column_for
from leanear.data.metadata import SEPARATOR
from leanear.data.splits import is_split
from leanear.runtimes.clips import Clips
from leanear.runtimes.errors import BadInput
from leanear.runtimes.process.notes import note, note_first, plural


def read_examples_for(
    task: str,
    examples: Sequence[Example],
    labels: Sequence[str],
    sample_rate_hz: int,
    progress: Callable[[int, int], None] | None = None,
    window_samples: int | None = None,
) -> Clips:
    """The examples as clips of this task, mono and resampled: transcribed for speech recognition, else with ids or tags
    of `labels`. What is odd of a file is noted.

    window_samples: of the model. A speech model can be calibrated on nothing longer: such clips are left out, and
    counted in one line. A classifier hears the first part of them.

    Raises:
        BadInput: files are not usable audio, a label is none of `labels`, a transcript is missing; or no clip is left.
    """
    is_speech = column_for(task) == "text"
    for example in examples if is_speech else ():
        if example.text is None:
            raise BadInput(f"{example.path}: audio without a transcript")
    if not is_speech:
        check_labels(examples, labels)
    index: dict[str | None, int] = {label: number for number, label in enumerate(labels)}
    several = not is_speech and any(example.labels is not None for example in examples)
    ids = [] if is_speech else [[index[label] for label in _own_labels(example)] for example in examples]
    clips = Clips(
        waveforms=read_waveforms(examples, sample_rate_hz, progress),
        label_ids=np.array([] if several else [number for (number,) in ids], dtype=np.int64),
        names=tuple(example.name for example in examples),
        labels=() if is_speech else tuple(labels),
        sample_rate_hz=sample_rate_hz,
        texts=tuple(example.text or "" for example in examples) if is_speech else None,
        tags=multi_hot(ids, len(labels)) if several else None,
    )
    return clips if window_samples is None or not is_speech else _within(clips, window_samples)


def check_labels(examples: Sequence[Example], labels: Sequence[str]) -> None:
    """Nothing, where every label of the examples is one of the model's `labels`.

    Raises:
        BadInput: one is not.
    """
    known = set(labels)
    for example in examples:
        own = _own_labels(example)
        unknown = next((label for label in own if label not in known), None)
        if unknown is not None or own == (None,):
            some = ", ".join(list(labels)[:8]) + (", ..." if len(labels) > 8 else "")
            raise BadInput(
                f"{example.path}: label {unknown!r} is unknown to the model, which knows {some}"
                f"{_meant(unknown, labels)}"
            )


def _own_labels(example: Example) -> tuple[str | None, ...]:
    return (example.label,) if example.labels is None else example.labels


def read_waveforms(
    examples: Sequence[Example], sample_rate_hz: int, progress: Callable[[int, int], None] | None = None
) -> tuple[np.ndarray, ...]:
    """The examples' audio, float32 (samples,) each, mono and resampled; what is odd of a file is noted.

    Raises:
        BadInput: files are not usable audio, of which the first is named, after all were read.
    """
    waveforms, odd, bad = list[np.ndarray](), list[str](), list[str]()
    for number, example in enumerate(examples):
        try:
            waveforms.append(read_waveform(example.path, sample_rate_hz, odd.append))
        except BadInput as error:
            bad.append(str(error))
        if progress is not None:
            progress(number + 1, len(examples))
    if bad:
        more = f"; {len(bad) - 1} more of {plural(len(examples), 'clip')} cannot be used" if len(bad) > 1 else ""
        raise BadInput(f"{bad[0]}{more}")
    note_first(odd, "clip")
    return tuple(waveforms)


def _meant(label: str | None, labels: Sequence[str]) -> str:
    """What more is said of an unknown label: which it may stand for, that it was meant as a split, or what to do."""
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
    return "; --label-map renames labels, --ignore-unknown-labels leaves clips of unknown ones out"


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
    are = "is" if left_out == 1 else "are"
    note(f"{left_out} of {plural(len(clips), 'clip')}, {first} the first, {are} not calibrated on: {longer}")
    texts = clips.texts or ()
    return dataclasses.replace(
        clips,
        waveforms=tuple(clips.waveforms[number] for number in kept),
        names=tuple(clips.names[number] for number in kept),
        texts=tuple(texts[number] for number in kept),
    )
