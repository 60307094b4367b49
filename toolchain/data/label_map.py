"""Labels of a data set by the names that the model has for them, and clips of labels that it does not have."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leanear.runtimes.errors import BadInput
from leanear.runtimes.process.notes import Note, named, plural

if TYPE_CHECKING:
    from leanear.data.dataset import Example

COLUMNS = ["data", "model"]  # the first line of a map that is a CSV file
MOST_NAMED = 5


@dataclass(frozen=True)
class LabelNames:
    """How labels of the data become labels of the model.

    path: of the map, None where there is none; by_name: the model's name by the data's; labels: all of the model's,
    empty where they are not known; ignore_unknown: clips of other labels are left out, not refused.
    """

    path: Path | None
    by_name: Mapping[str, str]
    labels: tuple[str, ...]
    ignore_unknown: bool

    def applied(self, groups: Mapping[str, Sequence[Example]], say: Note) -> dict[str, list[Example]]:
        """Groups of examples under the model's names, without those that are left out, which are counted in one line.

        A clip that may have several labels is left out where it has labels and the model none of them; where the model
        has some, the clip keeps these.

        Raises:
            BadInput: none is left.
        """
        found = {name for examples in groups.values() for example in examples for name in _labels(example)}
        unused = [name for name in self.by_name if name not in found]
        if unused:
            say(f"{self.path}: names that no clip has: {named([*map(repr, unused)], MOST_NAMED)}")
        renamed = {group: [self._renamed(example) for example in examples] for group, examples in groups.items()}
        if not self.ignore_unknown:
            return renamed
        kept = {
            group: [self._known(each) for each in examples if self._stays(each)] for group, examples in renamed.items()
        }
        every = [each for examples in renamed.values() for each in examples]
        left_out = [each for each in every if not self._stays(each)]
        if left_out:
            said = f"{plural(len(left_out), 'clip')} of labels that the model does not have: {self._unknown(left_out)}"
            if not any(kept.values()):
                raise BadInput(f"--ignore-unknown-labels: no clip is left, all are {said}")
            say(f"--ignore-unknown-labels leaves out {said}")
        partly = [each for each in every if self._stays(each) and self._known(each) != each]
        if partly:
            said = f"labels that the model does not have, of {plural(len(partly), 'clip')} of others too"
            say(f"--ignore-unknown-labels leaves out {said}: {self._unknown(partly)}")
        return kept

    def _renamed(self, example: Example) -> Example:
        if example.labels is None:
            return dataclasses.replace(example, label=self.by_name.get(example.label or "", example.label))
        names = dict.fromkeys(self.by_name.get(name, name) for name in example.labels)
        return dataclasses.replace(example, labels=tuple(names))

    def _stays(self, example: Example) -> bool:
        return example.labels == () or any(name in self.labels for name in _labels(example))

    def _known(self, example: Example) -> Example:
        """The same clip, which stays, with those of its labels that the model has."""
        if example.labels is None:
            return example
        return dataclasses.replace(example, labels=tuple(name for name in example.labels if name in self.labels))

    def _unknown(self, examples: Sequence[Example]) -> str:
        names = {name for example in examples for name in _labels(example) if name not in self.labels}
        return named([*map(repr, sorted(names))], MOST_NAMED)

    @property
    def told(self) -> str:
        """What the origin of clips says of this, "" where labels are taken as they are."""
        said = f"; labels by {self.path.name}" if self.path is not None else ""
        return said + ("; labels unknown to the model left out" if self.ignore_unknown else "")


def _labels(example: Example) -> tuple[str, ...]:
    return (example.label or "",) if example.labels is None else example.labels


def label_names(path: Path | None, ignore_unknown: bool, labels: Sequence[str]) -> LabelNames:
    """The names that the map in `path`, if any, gives labels. labels: the model's, empty where they are not known.

    Raises:
        BadInput: it is no such map, or it leads to a label that the model does not have.
    """
    if ignore_unknown and not labels:
        raise BadInput("--ignore-unknown-labels: the model names no labels (id2label in its config.json)")
    by_name = {} if path is None else _read(path)
    for name, label in by_name.items():
        if labels and label not in labels:
            raise BadInput(f"{path}: {name!r} is to be {label!r}, a label that the model does not have")
    return LabelNames(path, by_name, tuple(labels), ignore_unknown)


def _read(path: Path) -> dict[str, str]:
    """The map's pairs: of a CSV file with the columns data,model, or of one JSON object."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not text in UTF-8 ({error})") from None
    pairs = _json_pairs(path, text) if text.lstrip().startswith("{") else _csv_pairs(path, text)
    by_name: dict[str, str] = {}
    for name, label in pairs:
        if by_name.setdefault(name, label) != label:
            raise BadInput(f"{path}: {name!r} is to be both {by_name[name]!r} and {label!r}")
    if not by_name:
        raise BadInput(f"{path}: it names no labels")
    return by_name


def _json_pairs(path: Path, text: str) -> Iterable[tuple[str, str]]:
    try:
        pairs: list[tuple[str, str]] = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:  # an endless number is a ValueError of its own
        raise BadInput(f"{path}: not JSON ({error})") from None
    for name, label in pairs:
        if not isinstance(label, str) or not label:
            raise BadInput(f"{path}: {name!r} is to be {label!r}; a label of the model is wanted")
    return pairs


def _csv_pairs(path: Path, text: str) -> Iterable[tuple[str, str]]:
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if any(row)]
    except csv.Error as error:
        raise BadInput(f"{path}: not a CSV file ({error})") from None
    if not rows or rows[0] != COLUMNS:
        raise BadInput(f"{path}: neither a JSON object nor a CSV file whose first line is {','.join(COLUMNS)}")
    for row in rows[1:]:
        if len(row) != len(COLUMNS) or not all(row):
            raise BadInput(f"{path}: {','.join(row)!r}: a name in the data and one of the model are wanted")
    return [(name, label) for name, label in rows[1:]]
