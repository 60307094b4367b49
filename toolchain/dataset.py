"""Audio folders in the Hub's audiofolder convention, split into calibration and evaluation clips.

folder/<label>/clip.wav                    labels by folder, for a classifier
folder/metadata.csv                        columns file_name,label, or file_name,text (transcripts) for a speech model
folder/{train,test}/...                    any of these inside split folders
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from runtimes.clips import Clips
from runtimes.errors import BadInput
from toolchain.audio import SUFFIXES, read_waveform

CALIBRATION_SPLITS = ("calibration", "train", "validation", "valid", "dev")
EVALUATION_SPLITS = ("evaluation", "eval", "test")
SPEECH_TASK = "automatic-speech-recognition"

Column = Literal["label", "text"]


@dataclass(frozen=True)
class Example:
    """One file with its label or its transcript; name is its path within the data folder."""

    path: Path
    name: str
    label: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Splits:
    """Examples to calibrate on and, apart from them, to evaluate on; `origin` says how they were told apart."""

    calibration: tuple[Example, ...]
    evaluation: tuple[Example, ...]
    origin: str


def column_for(task: str) -> Column:
    """What a model of this task is told of every clip: "text" for speech recognition, "label" for classification."""
    return "text" if task == SPEECH_TASK else "label"


def read_splits(folder: Path, calibration_clips: int, seed: int, column: Column = "label") -> Splits:
    """The folder's calibration and evaluation examples, at most `calibration_clips` of the former.

    Split folders are obeyed where there are any; otherwise the examples are divided at random, label by label, and at
    least half of each label's are kept for evaluation. Calibration examples are shuffled and balanced over the labels.
    Transcribed clips have no label, so all of them are drawn from alike. column: what every clip must have.

    Raises:
        BadInput: no such folder, no audio in it, a listed file that is missing, too few clips to divide, labels where
            transcripts are wanted or the other way round, an empty transcript, or audio without one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such data folder")
    split_folders = _split_folders(folder)
    if split_folders:
        calibration = [
            example
            for name in CALIBRATION_SPLITS
            if name in split_folders
            for example in _read_examples(folder, folder / name, column)
        ]
        evaluation = [
            example
            for name in EVALUATION_SPLITS
            if name in split_folders
            for example in _read_examples(folder, folder / name, column)
        ]
        if not calibration or not evaluation:
            lacking, wanted = ("evaluation", EVALUATION_SPLITS) if calibration else ("calibration", CALIBRATION_SPLITS)
            raise BadInput(
                f"{folder}: no {lacking} clips: it has split folders {sorted(split_folders)} but none of "
                f"{list(wanted)} with clips in it"
            )
        origin = f"split folders {', '.join(sorted(split_folders))}"
        return Splits(_balanced(calibration, calibration_clips, seed), tuple(evaluation), origin)
    examples = _read_examples(folder, folder, column)
    if not examples:
        where = "in class sub-folders and no metadata.csv" if column == "label" else "and no metadata.csv"
        raise BadInput(f"{folder}: no {', '.join(SUFFIXES)} files {where}")
    return _divide(folder, examples, calibration_clips, seed)


def _split_folders(folder: Path) -> set[str]:
    if (folder / "metadata.csv").is_file():
        return set()
    names = {child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")}
    known = set(CALIBRATION_SPLITS + EVALUATION_SPLITS)
    return names if names and names <= known else set()


def _read_examples(root: Path, folder: Path, column: Column) -> list[Example]:
    metadata = folder / "metadata.csv"
    if column == "label":
        return _read_metadata(root, metadata, column) if metadata.is_file() else _read_class_folders(root, folder)
    examples = _read_metadata(root, metadata, column) if metadata.is_file() else []
    _check_all_transcribed(folder, examples)
    return examples


def _check_all_transcribed(folder: Path, examples: Sequence[Example]) -> None:
    listed = {example.path.resolve() for example in examples}
    strangers = [path for path in _audio_files(folder) if path.resolve() not in listed]
    if strangers:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        why = "metadata.csv does not list them" if examples else "there is no metadata.csv with file_name,text"
        raise BadInput(f"{folder}: audio without transcripts: {strangers[0].relative_to(folder)}{more}; {why}")


def _audio_files(folder: Path) -> list[Path]:
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _read_metadata(root: Path, metadata: Path, column: Column) -> list[Example]:
    examples: dict[Path, Example] = {}
    try:
        with open(metadata, newline="", encoding="utf-8-sig") as stream:
            lines = csv.reader(stream)
            columns = [name.strip() for name in next(lines, [])]
            _check_columns(metadata, columns, column)
            for cells in lines:
                if cells:
                    row = dict(zip(columns, cells, strict=False))
                    example = _example(root, metadata, lines.line_num, row, column)
                    if examples.setdefault(example.path, example) != example:
                        raise BadInput(f"{metadata}: line {lines.line_num} gives {example.name!r} a second {column}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{metadata}: not a CSV file in UTF-8 ({error})") from None
    if not examples:
        raise BadInput(f"{metadata}: it lists no clips")
    return list(examples.values())


def _check_columns(metadata: Path, columns: Sequence[str], column: Column) -> None:
    if "file_name" not in columns:
        raise BadInput(f"{metadata}: no column 'file_name' in its first line")
    if column in columns:
        return
    other, its_kind = ("label", "a speech model") if column == "text" else ("text", "a classifier")
    hint = f"; it has {other!r}, but MODEL is {its_kind}" if other in columns else ""
    raise BadInput(f"{metadata}: no column {column!r} in its first line{hint}")


def _example(root: Path, metadata: Path, line: int, row: dict[str, str], column: Column) -> Example:
    said = row.get(column, "").strip() if column == "text" else row.get(column, "")
    if row.get("file_name") and not said and column == "text":
        raise BadInput(f"{metadata}: line {line}: the transcript of {row['file_name']!r} is empty")
    if not row.get("file_name") or not said:
        raise BadInput(f"{metadata}: line {line} lacks a file_name or a {column}")
    path = metadata.parent / row["file_name"]
    if not _stays_inside(root, path):
        raise BadInput(f"{metadata}: line {line} names {row['file_name']!r}, which is outside the data folder {root}")
    if not path.is_file():
        without = "transcript without audio: " if column == "text" else ""
        raise BadInput(f"{metadata}: {without}line {line} names {row['file_name']!r}, which does not exist")
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    return Example(path, name, text=said) if column == "text" else Example(path, name, said)


def _stays_inside(root: Path, path: Path) -> bool:
    """Whether a listed file is in the data folder, past `..`, absolute paths and symbolic links."""
    home = root.resolve()
    if home.parent.name == "snapshots":  # of the Hub's cache, whose files are links to blobs beside it
        home = home.parent.parent
    return path.resolve().is_relative_to(home)


def _read_class_folders(root: Path, folder: Path) -> list[Example]:
    examples = []
    for class_folder in sorted(
        child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")
    ):
        for path in sorted(class_folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                examples.append(Example(path, path.relative_to(root).as_posix(), class_folder.name))
    return examples


def _divide(folder: Path, examples: list[Example], calibration_clips: int, seed: int) -> Splits:
    by_label = _shuffled_by_label(examples, seed)
    share = -(-calibration_clips // len(by_label))
    calibration, evaluation = [], []
    for label, members in by_label.items():
        if len(members) < 2:
            which = "there is one clip" if label is None else f"label {label!r} has one clip"
            raise BadInput(f"{folder}: {which}; two are needed, to calibrate on and to evaluate on")
        cut = min(share, len(members) // 2)
        calibration += members[:cut]
        evaluation += members[cut:]
    evaluation.sort(key=lambda example: example.name)
    how = "at random" if None in by_label else "at random by label"
    origin = f"divided {how}, seed {seed}: no split folders were given"
    return Splits(_balanced(calibration, calibration_clips, seed), tuple(evaluation), origin)


def _balanced(examples: Sequence[Example], count: int, seed: int) -> tuple[Example, ...]:
    """At most `count` examples, the labels in turn, so that any prefix is balanced."""
    queues = list(_shuffled_by_label(examples, seed).values())
    turns = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    return tuple(turns[:count])


def _shuffled_by_label(examples: Sequence[Example], seed: int) -> dict[str | None, list[Example]]:
    generator = np.random.default_rng(seed)
    by_label: dict[str | None, list[Example]] = {}
    for example in sorted(examples, key=lambda example: example.name):
        by_label.setdefault(example.label, []).append(example)
    labels = list(by_label)
    generator.shuffle(labels)
    return {
        label: [by_label[label][index] for index in generator.permutation(len(by_label[label]))] for label in labels
    }


def read_examples_as_clips(
    examples: Sequence[Example],
    labels: Sequence[str],
    sample_rate_hz: int,
    progress: Callable[[int, int], None] | None = None,
) -> Clips:
    """The examples' audio, mono and resampled, with label ids that index `labels`.

    Raises:
        BadInput: a file is not usable audio, or a label is none of `labels`.
    """
    index: dict[str | None, int] = {label: number for number, label in enumerate(labels)}
    waveforms, label_ids = [], []
    for number, example in enumerate(examples):
        if example.label not in index:
            known = ", ".join(list(labels)[:8]) + (", ..." if len(labels) > 8 else "")
            raise BadInput(f"{example.path}: label {example.label!r} is unknown to the model, which knows {known}")
        waveforms.append(read_waveform(example.path, sample_rate_hz))
        label_ids.append(index[example.label])
        if progress is not None:
            progress(number + 1, len(examples))
    return Clips(
        waveforms=tuple(waveforms),
        label_ids=np.array(label_ids, dtype=np.int64),
        names=tuple(example.name for example in examples),
        labels=tuple(labels),
        sample_rate_hz=sample_rate_hz,
    )


def read_examples_for(
    task: str,
    examples: Sequence[Example],
    labels: Sequence[str],
    sample_rate_hz: int,
    progress: Callable[[int, int], None] | None = None,
) -> Clips:
    """The examples as clips of this task: transcribed for speech recognition, else with ids that index `labels`.

    Raises:
        BadInput: as the function for that kind of clips.
    """
    if column_for(task) == "text":
        return read_examples_as_transcribed_clips(examples, sample_rate_hz, progress)
    return read_examples_as_clips(examples, labels, sample_rate_hz, progress)


def read_examples_as_transcribed_clips(
    examples: Sequence[Example], sample_rate_hz: int, progress: Callable[[int, int], None] | None = None
) -> Clips:
    """The examples' audio, mono and resampled, with their transcripts.

    Raises:
        BadInput: a file is not usable audio, or an example has no transcript.
    """
    waveforms, texts = [], []
    for number, example in enumerate(examples):
        if example.text is None:
            raise BadInput(f"{example.path}: audio without a transcript")
        waveforms.append(read_waveform(example.path, sample_rate_hz))
        texts.append(example.text)
        if progress is not None:
            progress(number + 1, len(examples))
    return Clips(
        waveforms=tuple(waveforms),
        label_ids=np.zeros(0, dtype=np.int64),
        names=tuple(example.name for example in examples),
        labels=(),
        sample_rate_hz=sample_rate_hz,
        texts=tuple(texts),
    )
