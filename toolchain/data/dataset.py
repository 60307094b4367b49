"""Audio folders in the Hub's audiofolder convention, split into calibration and evaluation clips.

folder/<label>/clip.wav                    labels by folder, for a classifier
folder/metadata.csv, or metadata.jsonl     columns file_name,label, or file_name,text (transcripts) for a speech model,
                                           or file_name,labels for a classifier whose clips may have several
folder/{train,test}/...                    any of these inside split folders, or one table that names files in them
"""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from leanear.benchmarks.tagging import multi_hot
from leanear.data.audio import SUFFIXES, UNREAD_SUFFIXES, read_waveform
from leanear.data.label_map import LabelNames, label_names
from leanear.data.metadata import SEPARATOR, Column, ListedFiles, Row, metadata_file, read_rows
from leanear.data.split_names import SPLIT_KEYWORDS, VALIDATION, is_split, split_of, uses
from leanear.runtimes.clips import Clips
from leanear.runtimes.errors import BadInput
from leanear.runtimes.process.notes import Note, note, note_first
from leanear.runtimes.tasks import SPEECH_TASK, TAGGING_TASK

MOST_NAMED = 3


@dataclass(frozen=True)
class DataFolder:
    """DATA: a folder, and how to read it where not as usual.

    text_column, label_column: of transcripts and of labels in its tables; label_map: a file with the model's names of
    labels; ignore_unknown_labels: clips of labels that the model does not have are left out.
    """

    path: Path
    text_column: str | None = None
    label_column: str | None = None
    label_map: Path | None = None
    ignore_unknown_labels: bool = False

    def __str__(self) -> str:
        return str(self.path)

    @property
    def flags(self) -> str:
        """As a command line has it."""
        columns = (("text", self.text_column), ("label", self.label_column))
        named = [word for kind, name in columns if name for word in (f"--{kind}-column", name)]
        mapped = ["--label-map", str(self.label_map)] if self.label_map is not None else []
        ignoring = ["--ignore-unknown-labels"] if self.ignore_unknown_labels else []
        return shlex.join(["--data", str(self.path), *named, *mapped, *ignoring])

    def column_name(self, column: Column) -> str | None:
        """The name that the user gave the column, None where it has its usual one.

        Raises:
            BadInput: another was named, which a model of this kind has no use for.
        """
        if column == "text" and self.label_column is not None:
            raise BadInput("--label-column is for classifiers; a speech model has --text-column")
        if column != "text" and self.text_column is not None:
            raise BadInput("--text-column is for speech models; a classifier has --label-column")
        return self.text_column if column == "text" else self.label_column

    def label_names(self, column: Column, labels: Sequence[str]) -> LabelNames:
        """How labels of the data become labels of a model that has these.

        Raises:
            BadInput: flags for labels were given for a speech model, or the map is not usable.
        """
        if column == "text" and (self.label_map is not None or self.ignore_unknown_labels):
            raise BadInput("--label-map and --ignore-unknown-labels are for classifiers; a speech model has no labels")
        return label_names(self.label_map, self.ignore_unknown_labels, labels)


Data: TypeAlias = DataFolder | str
"""DATA as commands take it: with the columns that were named, or the folder alone."""


def as_folder(data: Data) -> DataFolder:
    """DATA with its columns."""
    return data if isinstance(data, DataFolder) else DataFolder(Path(data))


@dataclass(frozen=True)
class Example:
    """One file with its label, its labels or its transcript; name is its path within the data folder."""

    path: Path
    name: str
    label: str | None = None
    text: str | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Splits:
    """Examples to calibrate on and, apart from them, to evaluate on; `origin` says how they were told apart."""

    calibration: tuple[Example, ...]
    evaluation: tuple[Example, ...]
    origin: str


def column_for(task: str) -> Column:
    """What a model of this task is told of every clip: a transcript, one label, or any number of labels."""
    return "text" if task == SPEECH_TASK else "labels" if task == TAGGING_TASK else "label"


def read_splits(
    data: Path | DataFolder,
    calibration_clips: int,
    seed: int,
    column: Column = "label",
    say: Note = note,
    labels: Sequence[str] = (),
) -> Splits:
    """The folder's calibration and evaluation examples, at most `calibration_clips` of the former.

    Splits are obeyed where there are any, as folders or in the names of a table's files; otherwise the examples are
    divided at random, label by label, and at least half of each label's are kept for evaluation. Calibration examples
    are shuffled and balanced over the labels; a clip of several counts as one of its rarest. Transcribed clips have no
    label, so all of them are drawn from alike; those whose transcript is empty are evaluated alone. column: what every
    clip must have; say: takes what a user should know of the folder, such as audio that is not used; labels: the
    model's, which a map of labels leads to.

    Raises:
        BadInput: no such folder, no audio in it, a listed file that is missing, too few clips to divide, folders that
            may be splits or classes, labels where transcripts are wanted or the other way round, or audio without one.
    """
    reader = _Reader(data if isinstance(data, DataFolder) else DataFolder(data), column, say)
    root = reader.root
    if not root.is_dir():
        raise BadInput(f"{root}: no such data folder")
    naming = reader.data.label_names(column, labels)
    table = metadata_file(root)
    names = [] if table is not None else _split_folders(root)
    if names:
        by_split = naming.applied({name: reader.examples(root / name) for name in names}, say)
        reader.note_loose(root, "split folders")
    else:
        examples = naming.applied({"": reader.examples(root)}, say)[""]
        by_split = {} if table is None else _listed_splits(table, examples)
    if by_split:
        splits = _of_splits(root, by_split, calibration_clips, seed, say)
    elif examples:
        splits = _divide(root, examples, calibration_clips, seed, say)
    else:
        where = "and no metadata.csv" if column == "text" else "in class sub-folders and no metadata.csv"
        raise BadInput(f"{root}: no {', '.join(SUFFIXES)} files {where}{reader.unread(root)}")
    return dataclasses.replace(splits, origin=splits.origin + naming.told)


def _split_folders(root: Path) -> list[str]:
    """Names of the folders that are splits, none where the folders with clips are classes.

    Raises:
        BadInput: splits to calibrate and to evaluate on are there, and other folders with clips beside them.
    """
    names = sorted(child.name for child in _folders(root) if _audio_files(child) or metadata_file(child))
    splits = [name for name in names if is_split(name)]
    strays = [name for name in names if not is_split(name)]
    if not strays:
        return splits
    if all(uses(splits)):
        raise BadInput(
            f"{root}: split folders {', '.join(splits)} and, beside them, folders with audio that are none: "
            f"{_named(strays)}; move these away, or into a split"
        )
    return []


def _listed_splits(table: Path, examples: Sequence[Example]) -> dict[str, list[Example]]:
    """A table's examples by the split folder that their files are in; none where these do not make splits.

    Raises:
        BadInput: some of the files are in splits and some in none.
    """
    by_split: dict[str, list[Example]] = {}
    for example in examples:
        split = None if Path(example.name).is_absolute() else split_of(example.name)
        by_split.setdefault(split or "", []).append(example)
    outside = by_split.pop("", [])
    if not all(uses(by_split)):
        return {}
    if outside:
        raise BadInput(
            f"{table}: it names files in split folders ({', '.join(sorted(by_split))}) and files in none: "
            f"{_named([example.name for example in outside])}"
        )
    return by_split


def _of_splits(root: Path, by_split: dict[str, list[Example]], calibration_clips: int, seed: int, say: Note) -> Splits:
    names = sorted(by_split)
    for_calibration, for_evaluation = uses(names)
    calibration = [example for name in for_calibration for example in by_split[name]]
    evaluation = [example for name in for_evaluation for example in by_split[name]]
    if not calibration or not evaluation:
        lacking = "evaluation" if calibration else "calibration"
        raise BadInput(
            f"{root}: no {lacking} clips: it has split folders {names} but none with clips for that; known are "
            f"{', '.join(SPLIT_KEYWORDS)}"
        )
    origin = f"split folders {', '.join(names)}"
    if all(name.lower() in VALIDATION for name in for_evaluation):
        origin += f" ({', '.join(for_evaluation)} to evaluate on)"
    spoken = _with_words(root, calibration, evaluation, say)
    _note_unlabelled(root, [*calibration, *evaluation], say)
    return Splits(_balanced(spoken, calibration_clips, seed), tuple(evaluation), origin)


def _with_words(root: Path, calibration: Sequence[Example], evaluation: Sequence[Example], say: Note) -> list[Example]:
    """The calibration examples that are not silence, after a word on those that are."""
    spoken = [example for example in calibration if example.text != ""]
    if not spoken:
        raise BadInput(f"{root}: the transcripts of all clips to calibrate on are empty")
    if len(spoken) < len(calibration):
        say(f"{root}: clips with an empty transcript, not calibrated on: {len(calibration) - len(spoken)}")
    silent = sum(example.text == "" for example in evaluation)
    if silent:
        say(f"{root}: clips with an empty transcript, in which each word heard counts as put in: {silent}")
    return spoken


def _note_unlabelled(root: Path, examples: Sequence[Example], say: Note) -> None:
    """Say how many of clips that may have several labels have none; they count against every label.

    Raises:
        BadInput: all of them.
    """
    without = sum(example.labels == () for example in examples)
    if without and without == len(examples):
        raise BadInput(f"{root}: none of the {without} clips has a label")
    if without:
        say(f"{root}: clips without any label, which lack all of them: {without} of {len(examples)}")


@dataclass(frozen=True)
class _Reader:
    """Reads the examples of one folder of DATA; whatever audio it does not use, it says."""

    data: DataFolder
    column: Column
    say: Note

    @property
    def root(self) -> Path:
        return self.data.path

    def examples(self, folder: Path) -> list[Example]:
        table = metadata_file(folder)
        examples = self._listed(table) if table is not None else []
        if self.column == "text":
            _check_all_transcribed(folder, table, examples)
        elif table is None:
            examples = self._of_class_folders(folder)
            self._note_unread(folder, examples)
            self.note_loose(folder, "class folders")
        else:
            self._note_unlisted(folder, table, examples)
        return examples

    def _listed(self, table: Path) -> list[Example]:
        files, examples = ListedFiles(table.parent), dict[Path, Example]()
        for row in read_rows(table, self.column, self.data.column_name(self.column), self.say):
            example = self._example(table, files, row)
            if examples.setdefault(example.path, example) != example:
                other = "other labels than before" if self.column == "labels" else f"a second {self.column}"
                raise BadInput(f"{table}: line {row.line} gives {example.name!r} {other}")
        return list(examples.values())

    def _example(self, table: Path, files: ListedFiles, row: Row) -> Example:
        path = files.find(row.file_name)
        if not _stays_inside(self.root, path or table.parent / row.file_name):
            raise BadInput(
                f"{table}: line {row.line} names {row.file_name!r}, which is outside the data folder {self.root}"
            )
        if path is None:
            without = "transcript without audio: " if self.column == "text" else ""
            nearest = files.nearest(row.file_name)
            shown = ascii(row.file_name) if nearest else repr(row.file_name)
            raise BadInput(f"{table}: {without}line {row.line} names {shown}, which does not exist{nearest}")
        name = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)
        if self.column == "labels":
            return Example(path, name, labels=row.labels)
        return Example(path, name, text=row.said) if self.column == "text" else Example(path, name, row.said)

    def _of_class_folders(self, folder: Path) -> list[Example]:
        several = self.column == "labels"
        return [
            Example(
                path,
                path.relative_to(self.root).as_posix(),
                label=None if several else class_folder.name,
                labels=(class_folder.name,) if several else None,
            )
            for class_folder in _folders(folder)
            for path in _audio_files(class_folder, SUFFIXES)
        ]

    def note_loose(self, folder: Path, beside: str) -> None:
        """Say which audio lies in a folder itself, beside the folders that are read."""
        loose = [path.name for path in _audio_files(folder) if path.parent == folder]
        if loose:
            self.say(f"{folder}: audio beside the {beside} is not used: {_counted(loose)}")

    def _note_unlisted(self, folder: Path, table: Path, examples: Sequence[Example]) -> None:
        left = _unlisted(folder, examples)
        if left:
            names = _counted(_relative(left, folder))
            self.say(f"{folder}: audio that {table.name} does not list is not used: {names}")

    def _note_unread(self, folder: Path, examples: Sequence[Example]) -> None:
        unread = self.unread(folder)
        if unread and examples:
            self.say(f"{folder}: not all audio is used{unread}")

    def unread(self, folder: Path) -> str:
        """What is said of files whose format is not read; nothing where there are none."""
        paths = [path for path in _audio_files(folder, UNREAD_SUFFIXES) if path.parent != folder]
        if not paths:
            return ""
        formats = " and ".join(sorted({path.suffix[1:].upper() for path in paths}))
        return f"; {formats} is not read, convert it with ffmpeg: {_counted(_relative(paths, folder))}"


def _check_all_transcribed(folder: Path, table: Path | None, examples: Sequence[Example]) -> None:
    strangers = _unlisted(folder, examples)
    if strangers:
        why = "there is no metadata.csv with file_name,text" if table is None else f"{table.name} does not list them"
        raise BadInput(f"{folder}: audio without transcripts: {_named(_relative(strangers, folder), 1)}; {why}")


def _unlisted(folder: Path, examples: Sequence[Example]) -> list[Path]:
    listed = {example.path.resolve() for example in examples}
    return [path for path in _audio_files(folder) if path.resolve() not in listed]


def _folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _audio_files(folder: Path, suffixes: tuple[str, ...] = SUFFIXES + UNREAD_SUFFIXES) -> list[Path]:
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _relative(paths: Sequence[Path], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)} file{'s' if len(names) > 1 else ''} ({_named(names)})"


def _named(names: Sequence[str], most: int = MOST_NAMED) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _stays_inside(root: Path, path: Path) -> bool:
    """Whether a listed file is in the data folder, past `..`, absolute paths and symbolic links."""
    home = root.resolve()
    if home.parent.name == "snapshots":  # of the Hub's cache, whose files are links to blobs beside it
        home = home.parent.parent
    return path.resolve().is_relative_to(home)


def _divide(folder: Path, examples: list[Example], calibration_clips: int, seed: int, say: Note) -> Splits:
    silent = [example for example in examples if example.text == ""]
    spoken = _with_words(folder, [example for example in examples if example.text != ""], silent, say)
    _note_unlabelled(folder, spoken, say)
    by_label = _shuffled_by_label(spoken, seed)
    share = -(-calibration_clips // len(by_label))
    calibration, evaluation = [], []
    for label, members in by_label.items():
        if len(members) < 2 and members[0].labels is None:
            which = "there is one clip" if label is None else f"label {label!r} has one clip"
            raise BadInput(f"{folder}: {which}; two are needed, to calibrate on and to evaluate on")
        cut = min(share, len(members) // 2)
        calibration += members[:cut]
        evaluation += members[cut:]
    if not calibration:
        raise BadInput(f"{folder}: there are too few clips to calibrate on some and to evaluate on others; give more")
    drawn = _balanced(calibration, calibration_clips, seed)
    chosen = set(drawn)
    evaluation += [*silent, *(example for example in calibration if example not in chosen)]
    evaluation.sort(key=lambda example: example.name)
    how = "at random" if None in by_label else "at random by label"
    origin = f"divided {how}, seed {seed}: no split folders were given"
    return Splits(drawn, tuple(evaluation), origin)


def _balanced(examples: Sequence[Example], count: int, seed: int) -> tuple[Example, ...]:
    """At most `count` examples, the labels in turn, so that any prefix is balanced."""
    queues = list(_shuffled_by_label(examples, seed).values())
    turns = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    return tuple(turns[:count])


def _shuffled_by_label(examples: Sequence[Example], seed: int) -> dict[str | None, list[Example]]:
    generator = np.random.default_rng(seed)
    counts = Counter(label for example in examples for label in example.labels or ())
    by_label: dict[str | None, list[Example]] = {}
    for example in sorted(examples, key=lambda example: example.name):
        rarest = min(example.labels or (), key=lambda label: (counts[label], label), default=example.label)
        by_label.setdefault(rarest, []).append(example)
    alone = [label for label, members in by_label.items() if len(members) == 1 and members[0].labels is not None]
    if len(alone) > 1:  # of many labels most are rare: together they can be divided
        by_label[", ".join(map(str, alone))] = [member for label in alone for member in by_label.pop(label)]
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
