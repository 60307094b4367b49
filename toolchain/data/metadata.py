"""Tables of clips in the Hub's audiofolder convention, metadata.csv or metadata.jsonl: what is said of each file."""

import csv
import difflib
import functools
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from leanear.runtimes.errors import BadInput
from leanear.runtimes.process.notes import Note

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
TEXT_COLUMNS = ("transcription", "sentence", "transcript")  # other names of "text" in data sets on the Hub
SEPARATOR = "|"  # of a clip's labels in one cell; names of AudioSet's labels have commas in them
ALIKE = 0.8  # of 1, for a file name to be offered in place of one that is not there

Column = Literal["label", "labels", "text"]


@dataclass(frozen=True)
class Row:
    """One line of a table: the file it names, and its label, its transcript, or all of its labels."""

    line: int
    file_name: str
    said: str = ""
    labels: tuple[str, ...] = ()


def metadata_file(folder: Path) -> Path | None:
    """The folder's table, None where it has none.

    Raises:
        BadInput: it has two.
    """
    found = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    if len(found) > 1:
        raise BadInput(f"{folder}: both {' and '.join(METADATA_FILES)} are in it; keep one")
    return found[0] if found else None


def read_rows(metadata: Path, column: Column, named: str | None, say: Note) -> list[Row]:
    """The table's rows. named: the column that is told to hold what `column` means; None: it is known by its name.

    Raises:
        BadInput: it is not such a table, a column is missing or there twice, or a row lacks what it should say.
    """
    columns, lines = _read_jsonl(metadata) if metadata.suffix == ".jsonl" else _read_csv(metadata)
    if "file_name" not in columns:
        raise BadInput(f"{metadata}: no column 'file_name' {_in_first_line(metadata)}{_found(columns)}")
    chosen = _chosen_column(metadata, columns, column, named, say)
    for name in ("file_name", chosen):
        if columns.count(name) > 1:
            raise BadInput(f"{metadata}: column {name!r} is there {columns.count(name)} times")
    if "split" in columns:
        say(f"{metadata}: its column 'split' is not used; splits are told by folders")
    rows = [_row(metadata, number, cells, column, chosen) for number, cells in lines]
    if not rows:
        raise BadInput(f"{metadata}: it lists no clips")
    return rows


def _read_csv(metadata: Path) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    try:
        with open(metadata, newline="", encoding="utf-8-sig") as stream:
            csv.field_size_limit(2**31 - 1)
            lines = csv.reader(stream)
            columns = [name.strip() for name in next(lines, [])]
            rows = [(lines.line_num, cells) for cells in lines if cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{metadata}: not a CSV file in UTF-8 ({error})") from None
    for number, cells in rows:
        if any(cells[len(columns) :]):
            raise BadInput(
                f"{metadata}: line {number} has {len(cells)} cells, the first line {len(columns)}: what has commas in"
                " it needs quotation marks"
            )
    return columns, [(number, dict(zip(columns, cells, strict=False))) for number, cells in rows]


def _read_jsonl(metadata: Path) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    try:
        lines = list(_json_lines(metadata))
    except UnicodeDecodeError as error:
        raise BadInput(f"{metadata}: not a JSON Lines file in UTF-8 ({error})") from None
    return list(dict.fromkeys(key for _, cells in lines for key in cells)), lines


def _json_lines(metadata: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(metadata, encoding="utf-8-sig") as stream:
        for number, text in enumerate(stream, 1):
            if not text.strip():
                continue
            try:
                cells = json.loads(text)
            except (ValueError, RecursionError) as error:  # an endless number is a ValueError of its own
                raise BadInput(f"{metadata}: line {number} is not JSON ({error})") from None
            if not isinstance(cells, dict):
                raise BadInput(f"{metadata}: line {number} is no JSON object")
            yield number, cells


def _chosen_column(metadata: Path, columns: Sequence[str], column: Column, named: str | None, say: Note) -> str:
    wanted = named or column
    if wanted in columns:
        return wanted
    if named is not None:
        where = _in_first_line(metadata)
        raise BadInput(f"{metadata}: no column {named!r}, as {_flag(column)} says, {where}{_found(columns)}")
    others = [name for name in TEXT_COLUMNS if name in columns] if column == "text" else []
    if len(others) > 1:
        raise BadInput(f"{metadata}: the transcripts may be {' or '.join(map(repr, others))}; say with --text-column")
    if others:
        say(f"{metadata}: column {others[0]!r} is taken for the transcripts, there is no 'text'")
        return others[0]
    if column == "labels" and "label" in columns:
        say(f"{metadata}: column 'label' is taken for the clips' labels, there is no 'labels'")
        return "label"
    raise BadInput(
        f"{metadata}: no column {column!r} {_in_first_line(metadata)}{_hint(columns, column)};"
        f" {_flag(column)} names another"
    )


def _flag(column: Column) -> str:
    return "--text-column" if column == "text" else "--label-column"


def _hint(columns: Sequence[str], column: Column) -> str:
    """What the table has in place of a column."""
    its_kind = {"text": "a speech model", "label": "a classifier", "labels": "a classifier"}[column]
    if column == "label" and "labels" in columns:
        its_kind = "a classifier of one label for every clip (its config.json has another problem_type)"
    meant = {"text": ("label", "labels"), "label": ("labels", "text"), "labels": ("text",)}[column]
    other = next((name for name in meant if name in columns), None)
    return f"; it has {other!r}, but MODEL is {its_kind}" if other is not None else _found(columns)


def _in_first_line(metadata: Path) -> str:
    return "in its lines" if metadata.suffix == ".jsonl" else "in its first line"


def _found(columns: Sequence[str]) -> str:
    named = [repr(name) for name in columns if name]
    return f"; it has {', '.join(named)}" if named else ""


def _row(metadata: Path, number: int, cells: Mapping[str, Any], column: Column, chosen: str) -> Row:
    file_name = _text(metadata, number, "file_name", cells.get("file_name"))
    if "\0" in (file_name or ""):
        raise BadInput(f"{metadata}: line {number} names {file_name!r}, which is no file name")
    if column == "labels":
        labels = _labels(metadata, number, chosen, cells.get(chosen))
        if not file_name or labels is None:
            raise BadInput(f"{metadata}: line {number} lacks a file_name or {chosen}")
        return Row(number, file_name, labels=labels)
    said = _text(metadata, number, chosen, cells.get(chosen))
    if column == "text" and said is not None:
        said = said.strip()
    if not file_name or said is None or (column == "label" and not said):
        raise BadInput(f"{metadata}: line {number} lacks a file_name or a {chosen}")
    return Row(number, file_name, said)


def _labels(metadata: Path, number: int, name: str, value: Any) -> tuple[str, ...] | None:
    """All labels in a cell, each once: of a list as they are, of a text what SEPARATOR divides; an empty one has none.

    None where there is no cell.
    """
    if isinstance(value, list) and all(isinstance(label, str) for label in value):
        return tuple(dict.fromkeys(value))
    said = _text(metadata, number, name, value)
    if said is None:
        return None
    return tuple(dict.fromkeys(label for part in said.split(SEPARATOR) if (label := part.strip())))


def _text(metadata: Path, number: int, name: str, value: Any) -> str | None:
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise BadInput(f"{metadata}: line {number}: {name!r} is {value!r}, with half of a character in it")
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise BadInput(f"{metadata}: line {number}: {name!r} is {value!r}; text is wanted")


@dataclass(frozen=True)
class ListedFiles:
    """The files below a table's folder, found by the names that a table gives them.

    Names may differ from those on disk as other systems write them: composed or decomposed accents, backslashes,
    blanks at either end.
    """

    folder: Path

    def find(self, name: str) -> Path | None:
        """The file of that name, None where there is none, or where several might be meant."""
        exact = self.folder / name
        if _is_file(exact):
            return exact
        found = self._by_key.get(_key(name), [])
        return found[0] if len(found) == 1 else None

    def nearest(self, name: str) -> str:
        """What is said of a file that is not there: the one most like it, so that the difference is seen."""
        found = difflib.get_close_matches(_key(name), list(self._by_key), 1, ALIKE)
        if not found:
            return ""
        return f"; there is {self._by_key[found[0]][0].relative_to(self.folder).as_posix()!a}"

    @functools.cached_property
    def _by_key(self) -> dict[str, list[Path]]:
        files: dict[str, list[Path]] = {}
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                files.setdefault(_key(path.relative_to(self.folder).as_posix()), []).append(path)
        return files


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a longer name than a file can have
        return False


def _key(name: str) -> str:
    parts = (part.strip() for part in unicodedata.normalize("NFC", name).replace("\\", "/").split("/"))
    return "/".join(part for part in parts if part not in ("", "."))
