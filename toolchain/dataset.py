"""Labelled audio folders in the Hub's audiofolder convention, split into calibration and evaluation clips.

folder/<label>/clip.wav                    labels by folder
folder/metadata.csv                        columns file_name,label
folder/{train,test}/...                    either of the two inside split folders
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtimes.clips import Clips
from runtimes.errors import BadInput
from toolchain.audio import SUFFIXES, read_waveform

CALIBRATION_SPLITS = ("calibration", "train", "validation", "valid", "dev")
EVALUATION_SPLITS = ("evaluation", "eval", "test")


@dataclass(frozen=True)
class Example:
    """One labelled file; name is its path within the data folder."""

    path: Path
    name: str
    label: str


@dataclass(frozen=True)
class Splits:
    """Examples to calibrate on and, apart from them, to evaluate on; `origin` says how they were told apart."""

    calibration: tuple[Example, ...]
    evaluation: tuple[Example, ...]
    origin: str


def read_splits(folder: Path, calibration_clips: int, seed: int) -> Splits:
    """The folder's calibration and evaluation examples, at most `calibration_clips` of the former.

    Split folders are obeyed where there are any; otherwise the examples are divided at random, label by label, and at
    least half of each label's are kept for evaluation. Calibration examples are shuffled and balanced over the labels.

    Raises:
        BadInput: no such folder, no audio in it, a listed file that is missing, or too few clips to divide.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such data folder")
    split_folders = _split_folders(folder)
    if split_folders:
        calibration = [
            e for name in CALIBRATION_SPLITS if name in split_folders for e in _read_examples(folder, folder / name)
        ]
        evaluation = [
            e for name in EVALUATION_SPLITS if name in split_folders for e in _read_examples(folder, folder / name)
        ]
        if not calibration or not evaluation:
            wanted = EVALUATION_SPLITS if calibration else CALIBRATION_SPLITS
            raise BadInput(
                f"{folder}: it has split folders {sorted(split_folders)} but none of {list(wanted)} with clips in it"
            )
        origin = f"split folders {', '.join(sorted(split_folders))}"
        return Splits(_balanced(calibration, calibration_clips, seed), tuple(evaluation), origin)
    examples = _read_examples(folder, folder)
    if not examples:
        raise BadInput(f"{folder}: no {', '.join(SUFFIXES)} files in class sub-folders and no metadata.csv")
    return _divide(folder, examples, calibration_clips, seed)


def _split_folders(folder: Path) -> set[str]:
    if (folder / "metadata.csv").is_file():
        return set()
    names = {child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")}
    known = set(CALIBRATION_SPLITS + EVALUATION_SPLITS)
    return names if names and names <= known else set()


def _read_examples(root: Path, folder: Path) -> list[Example]:
    metadata = folder / "metadata.csv"
    return _read_metadata(root, metadata) if metadata.is_file() else _read_class_folders(root, folder)


def _read_metadata(root: Path, metadata: Path) -> list[Example]:
    examples: dict[Path, Example] = {}
    try:
        with open(metadata, newline="", encoding="utf-8-sig") as stream:
            lines = csv.reader(stream)
            columns = [column.strip() for column in next(lines, [])]
            for column in ("file_name", "label"):
                if column not in columns:
                    raise BadInput(f"{metadata}: no column {column!r} in its first line")
            for cells in lines:
                if cells:
                    example = _example(root, metadata, lines.line_num, dict(zip(columns, cells, strict=False)))
                    if examples.setdefault(example.path, example) != example:
                        raise BadInput(f"{metadata}: line {lines.line_num} gives {example.name!r} a second label")
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{metadata}: not a CSV file in UTF-8 ({error})") from None
    if not examples:
        raise BadInput(f"{metadata}: it lists no clips")
    return list(examples.values())


def _example(root: Path, metadata: Path, line: int, row: dict[str, str]) -> Example:
    if not row.get("file_name") or not row.get("label"):
        raise BadInput(f"{metadata}: line {line} lacks a file_name or a label")
    path = metadata.parent / row["file_name"]
    if not path.is_file():
        raise BadInput(f"{metadata}: line {line} names {row['file_name']!r}, which does not exist")
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    return Example(path, name, row["label"])


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
            raise BadInput(
                f"{folder}: label {label!r} has one clip; two are needed, to calibrate on and to evaluate on"
            )
        cut = min(share, len(members) // 2)
        calibration += members[:cut]
        evaluation += members[cut:]
    evaluation.sort(key=lambda example: example.name)
    origin = f"divided at random by label, seed {seed}: no split folders were given"
    return Splits(_balanced(calibration, calibration_clips, seed), tuple(evaluation), origin)


def _balanced(examples: Sequence[Example], count: int, seed: int) -> tuple[Example, ...]:
    """At most `count` examples, the labels in turn, so that any prefix is balanced."""
    queues = list(_shuffled_by_label(examples, seed).values())
    turns = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    return tuple(turns[:count])


def _shuffled_by_label(examples: Sequence[Example], seed: int) -> dict[str, list[Example]]:
    generator = np.random.default_rng(seed)
    by_label: dict[str, list[Example]] = {}
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
    index = {label: number for number, label in enumerate(labels)}
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
