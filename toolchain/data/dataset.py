"""Audio folders in the Hub's audiofolder convention, split into calibration and evaluation clips.

folder/<label>/clip.wav                    labels by folder, for a classifier
folder/metadata.csv, or metadata.jsonl     columns file_name,label, or file_name,text (transcripts) for a speech model,
                                           or file_name,labels for a classifier whose clips may have several
folder/{train,test}/...                    any of these inside split folders, or one table that names files in them
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from leanear.data.audio import SUFFIXES, UNREAD_SUFFIXES
from leanear.data.label_map import LabelNames, label_names
from leanear.data.metadata import Column, ListedFiles, Row, metadata_file, read_rows
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import sha256_json
from leanear.runtimes.process.notes import Note, named, plural
from leanear.runtimes.tasks import SPEECH_TASK, TAGGING_TASK


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


def examples_identity(examples: Sequence[Example]) -> str:
    """Hash of what files these are, by name, labels or text, size and time of change: they may be gigabytes."""
    facts = [(example.path.stat(), example) for example in examples]
    return sha256_json(
        [[str(e.path.resolve()), e.label, e.labels, e.text, stat.st_size, stat.st_mtime_ns] for stat, e in facts]
    )


def column_for(task: str) -> Column:
    """What a model of this task is told of every clip: a transcript, one label, or any number of labels."""
    return "text" if task == SPEECH_TASK else "labels" if task == TAGGING_TASK else "label"


@dataclass(frozen=True)
class Reader:
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
            if name := self.data.column_name(self.column):
                raise BadInput(f"--label-column {name}: {folder} has no table; labels are the names of its folders")
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
            first = examples.setdefault(example.path.resolve(), example)
            if (example.label, example.text, example.labels) != (first.label, first.text, first.labels):
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
            for class_folder in folders(folder)
            for path in audio_files(class_folder, SUFFIXES)
        ]

    def note_loose(self, folder: Path, beside: str) -> None:
        """Say which audio lies in a folder itself, beside the folders that are read."""
        loose = [path.name for path in audio_files(folder) if path.parent == folder]
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
        paths = [path for path in audio_files(folder, UNREAD_SUFFIXES) if path.parent != folder]
        if not paths:
            return ""
        formats = " and ".join(sorted({path.suffix[1:].upper() for path in paths}))
        return f"; {formats} is not read, convert it with ffmpeg: {_counted(_relative(paths, folder))}"


def _check_all_transcribed(folder: Path, table: Path | None, examples: Sequence[Example]) -> None:
    strangers = _unlisted(folder, examples)
    if strangers:
        why = "there is no metadata.csv with file_name,text" if table is None else f"{table.name} does not list them"
        raise BadInput(f"{folder}: audio without transcripts: {named(_relative(strangers, folder), 1)}; {why}")


def _unlisted(folder: Path, examples: Sequence[Example]) -> list[Path]:
    listed = {example.path.resolve() for example in examples}
    return [path for path in audio_files(folder) if path.resolve() not in listed]


def folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def audio_files(folder: Path, suffixes: tuple[str, ...] = SUFFIXES + UNREAD_SUFFIXES) -> list[Path]:
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.exists())
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _relative(paths: Sequence[Path], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


def _counted(names: Sequence[str]) -> str:
    return f"{plural(len(names), 'file')} ({named(names)})"


def _stays_inside(root: Path, path: Path) -> bool:
    """Whether a listed file is in the data folder, past `..`, absolute paths and symbolic links."""
    home = root.resolve()
    if home.parent.name == "snapshots":  # of the Hub's cache, whose files are links to blobs beside it
        home = home.parent.parent
    return path.resolve().is_relative_to(home)
