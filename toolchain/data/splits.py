"""Which clips calibrate and which evaluate."""

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leanear.data.audio import SUFFIXES
from leanear.data.dataset import DataFolder, Example, Reader, audio_files, folders
from leanear.data.metadata import METADATA_FILES, Column, metadata_file
from leanear.runtimes.errors import BadInput
from leanear.runtimes.process.notes import Note, files_below, named, note

# Split folders by the keywords that the Hub knows
TRAIN = ("calibration", "train", "training")
VALIDATION = ("validation", "valid", "val", "dev")
TEST = ("evaluation", "eval", "test", "testing")
SPLIT_KEYWORDS = TRAIN + VALIDATION + TEST
LARGEST_SEED = 2**31 - 1
RARE = "\0"  # stands for the labels of one clip each; no label is called so


@dataclass(frozen=True)
class Splits:
    """Examples to calibrate on and, apart from them, to evaluate on; `origin` says how they were told apart."""

    calibration: tuple[Example, ...]
    evaluation: tuple[Example, ...]
    origin: str


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
    divided in halves, label by label, by the hashes of their names: whatever the seed and the number of clips, no clip
    of the one is ever in the other. Calibration examples are drawn from their half by the seed, balanced over the
    labels; a clip of several counts as one of its rarest. Transcribed clips have no label, so all of them are drawn
    from alike; those whose transcript is empty are evaluated alone. column: what every
    clip must have; say: takes what a user should know of the folder, such as audio that is not used; labels: the
    model's, which a map of labels leads to.

    Raises:
        BadInput: no such folder, no audio in it, a listed file that is missing, too few clips to divide, folders that
            may be splits or classes, labels where transcripts are wanted or the other way round, or audio without one.
    """
    check_seed(seed)
    reader = Reader(data if isinstance(data, DataFolder) else DataFolder(data), column, say)
    root = reader.root
    require_audio(reader)
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
        raise _no_audio(reader)
    return dataclasses.replace(splits, origin=splits.origin + naming.told)


def check_seed(seed: int) -> None:
    """Raises BadInput where it is no seed."""
    if not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
        raise BadInput(f"seed: expected a whole number from 0 to {LARGEST_SEED}, got {seed!r}")


def require_audio(reader: Reader) -> None:
    """Nothing, where the folder may hold clips; what they are is not looked into.

    Raises:
        BadInput: no such folder, or no audio and no table in it.
    """
    root = reader.root
    if not root.is_dir():
        raise BadInput(f"{root}: no such data folder")
    if not any(
        path.suffix.lower() in SUFFIXES or path.name in METADATA_FILES for path in files_below(root, reader.say)
    ):
        raise _no_audio(reader)


def _no_audio(reader: Reader) -> BadInput:
    where = "and no metadata.csv" if reader.column == "text" else "in class sub-folders and no metadata.csv"
    return BadInput(f"{reader.root}: no {', '.join(SUFFIXES)} files {where}{reader.unread(reader.root)}")


def is_split(name: str) -> bool:
    """Whether a folder's name is a split's, in any case."""
    return name.lower() in SPLIT_KEYWORDS


def _uses(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Of split folders, those to calibrate on and those to evaluate on.

    A validation split is calibrated on, but where there is one to train on and none to test on, it stands for the test.
    """
    ordered = sorted(names, key=lambda name: (SPLIT_KEYWORDS.index(name.lower()), name))
    train, validation, test = ([name for name in ordered if name.lower() in kind] for kind in (TRAIN, VALIDATION, TEST))
    if train and validation and not test:
        return train, validation
    return train + validation, test


def _split_folders(root: Path) -> list[str]:
    """Names of the folders that are splits, none where the folders with clips are classes."""
    names = sorted(child.name for child in folders(root) if audio_files(child) or metadata_file(child))
    splits = [name for name in names if is_split(name)]
    strays = [name for name in names if not is_split(name)]
    if not strays:
        return splits
    if all(_uses(splits)):
        raise BadInput(
            f"{root}: split folders {', '.join(splits)} and, beside them, folders with audio that are none: "
            f"{named(strays)}; move these away, or into a split"
        )
    return []


def _listed_splits(table: Path, examples: Sequence[Example]) -> dict[str, list[Example]]:
    """A table's examples by the split folder that their files are in; none where these do not make splits."""
    by_split: dict[str, list[Example]] = {}
    for example in examples:
        folders = () if Path(example.name).is_absolute() else Path(example.name).parts[:-1]
        by_split.setdefault(next(filter(is_split, folders), ""), []).append(example)  # the outermost that is one
    outside = by_split.pop("", [])
    if not all(_uses(by_split)):
        return {}
    if outside:
        raise BadInput(
            f"{table}: it names files in split folders ({', '.join(sorted(by_split))}) and files in none: "
            f"{named([example.name for example in outside])}"
        )
    return by_split


def _of_splits(root: Path, by_split: dict[str, list[Example]], calibration_clips: int, seed: int, say: Note) -> Splits:
    names = sorted(by_split)
    for_calibration, for_evaluation = _uses(names)
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
    """Say how many of clips that may have several labels have none; they count against every label."""
    without = sum(example.labels == () for example in examples)
    if without and without == len(examples):
        raise BadInput(f"{root}: none of the {without} clips has a label")
    if without:
        say(f"{root}: clips without any label, which lack all of them: {without} of {len(examples)}")


def _divide(folder: Path, examples: list[Example], calibration_clips: int, seed: int, say: Note) -> Splits:
    silent = [example for example in examples if example.text == ""]
    spoken = _with_words(folder, [example for example in examples if example.text != ""], silent, say)
    _note_unlabelled(folder, spoken, say)
    by_label = _by_label(spoken)
    calibration, evaluation = [], [*silent]
    for label, members in by_label.items():
        if len(members) < 2 and members[0].labels is None:
            which = "there is one clip" if label is None else f"label {label!r} has one clip"
            raise BadInput(f"{folder}: {which}; two are needed, to calibrate on and to evaluate on")
        by_hash = sorted(members, key=lambda example: hashlib.sha256(os.fsencode(example.name)).digest())
        calibration += by_hash[: len(members) // 2]
        evaluation += by_hash[len(members) // 2 :]
    if not calibration:
        raise BadInput(f"{folder}: there are too few clips to calibrate on some and to evaluate on others; give more")
    evaluation.sort(key=lambda example: example.name)
    origin = f"divided in halves{'' if by_label.keys() == {None} else ' by label'}: no split folders were given"
    return Splits(_balanced(calibration, calibration_clips, seed), tuple(evaluation), origin)


def _balanced(examples: Sequence[Example], count: int, seed: int) -> tuple[Example, ...]:
    """At most `count` examples, the labels in turn, so that any prefix is balanced."""
    generator, by_label = np.random.default_rng(seed), _by_label(examples)
    labels = list(by_label)
    generator.shuffle(labels)
    queues = [[by_label[label][place] for place in generator.permutation(len(by_label[label]))] for label in labels]
    turns = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    return tuple(turns[:count])


def _by_label(examples: Sequence[Example]) -> dict[str | None, list[Example]]:
    counts = Counter(label for example in examples for label in example.labels or ())
    by_label: dict[str | None, list[Example]] = {}
    for example in sorted(examples, key=lambda example: example.name):
        rarest = min(example.labels or (), key=lambda label: (counts[label], label), default=example.label)
        by_label.setdefault(rarest, []).append(example)
    alone = [label for label, members in by_label.items() if len(members) == 1 and members[0].labels is not None]
    if len(alone) > 1:  # of many labels most are rare: together they can be divided
        by_label[RARE] = [member for label in alone for member in by_label.pop(label)]
    return by_label


def draw_evaluation(splits: Splits, most: int | None, seed: int) -> Splits:
    """The splits with at most `most` evaluation clips, drawn at random, in their order; None: all of them.

    Raises:
        BadInput: fewer than one is wanted.
    """
    if most is None or most >= len(splits.evaluation):
        return splits
    if most < 1:
        raise BadInput(f"--eval-clips {most}: at least one is needed")
    drawn = sorted(np.random.default_rng(seed).choice(len(splits.evaluation), most, replace=False))
    origin = f"{splits.origin}; {most} of {len(splits.evaluation)} evaluation clips, drawn at random"
    return dataclasses.replace(splits, evaluation=tuple(splits.evaluation[place] for place in drawn), origin=origin)
