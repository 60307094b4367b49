"""The families that leanear takes, by the `model_type` of config.json, and what a model is for, by its settings."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_object
from leanear.runtimes.tasks import SPEECH_TASK, classifier_task

if TYPE_CHECKING:  # torch: seconds to import
    from leanear.families import ast, whisper
    from leanear.families.family import Family

    CHECKED: tuple[Family, ...] = (ast, whisper)  # against the contract, by mypy

SLIM_PREFIX = "slim-"  # of the model_type of a slim checkpoint
SPELLINGS_FILE = "normalizer.json"


@dataclass(frozen=True)
class Registered:
    """A family: its module, what users call it, and whether it writes down speech, where others classify."""

    module: str
    title: str
    writes_speech: bool = False


FAMILIES = {
    "audio-spectrogram-transformer": Registered("leanear.families.ast", "Audio Spectrogram Transformers"),
    "whisper": Registered("leanear.families.whisper", "Whisper", writes_speech=True),
}


def registered(model_type: object) -> Registered | None:
    """The family of a `model_type`, dense or slim; None where leanear has none."""
    return FAMILIES.get(str(model_type).removeprefix(SLIM_PREFIX))


def family_in(folder: Path) -> Family:
    """The module of the family that the folder's config.json names.

    Raises:
        BadInput: config.json is unreadable or names a family that leanear does not have.
    """
    path = folder / "config.json"
    model_type = read_object(path).get("model_type")
    found = registered(model_type)
    if found is None:
        known = " and ".join(f"{each.title} ({name})" for name, each in FAMILIES.items())
        raise BadInput(f"{path}: model_type is {model_type!r}; leanear takes {known}")
    return _family(found)


def family_of(checkpoint: Any) -> Family:
    """The module of the family that loaded this checkpoint."""
    found = registered(checkpoint.model.config.model_type)
    assert found is not None  # or it would not have been loaded
    return _family(found)


def writes_speech(checkpoint: Any) -> bool:
    """Whether the checkpoint's family writes down speech."""
    found = registered(checkpoint.model.config.model_type)
    return found is not None and found.writes_speech


def _family(found: Registered) -> Family:
    return cast("Family", importlib.import_module(found.module))


def is_artifact(folder: Path) -> bool:
    """Whether the folder is an artifact, not a checkpoint."""
    return (folder / "manifest.json").is_file()


def task_of(folder: Path) -> str:
    """The task of the artifact or the checkpoint in `folder`; that of a model that leanear does not know is a guess.

    A classifier's is that of its `problem_type` and number of labels, as in `leanear.runtimes.tasks`.

    Raises:
        BadInput: the artifact is damaged, or config.json is not readable.
    """
    if is_artifact(folder):
        return read_artifact(folder).task
    config = read_object(folder / "config.json")
    family = registered(config.get("model_type"))
    if family is not None and family.writes_speech:
        return SPEECH_TASK
    names = config.get("id2label")
    return classifier_task(config.get("problem_type"), len(names) if isinstance(names, dict) else 2)


def labels_of(folder: Path) -> tuple[str, ...]:
    """The labels of the artifact or the checkpoint in `folder`; none of a speech model, or where it names none.

    Raises:
        BadInput: as `task_of`.
    """
    if is_artifact(folder):
        return read_artifact(folder).labels
    names = read_object(folder / "config.json").get("id2label")
    if task_of(folder) == SPEECH_TASK or not isinstance(names, dict):
        return ()
    return tuple(str(name) for name in names.values())


def require_speech(task: str, model: str, **given: object) -> None:
    """See that options of Whisper, by their names, are given to none but a model that writes down speech.

    Raises:
        BadInput: the model classifies.
    """
    for name, value in given.items() if task != SPEECH_TASK else ():
        if value:
            said = name.replace("_", "-") if value is True else f"{name.replace('_', '-')} {value}"
            raise BadInput(f"--{said}: it is for Whisper; {model} is a classifier")


def read_spellings(folder: Path) -> dict[str, str] | None:
    """The British spellings that Whisper's normaliser is to see as American ones, or None where there are none.

    folder: a checkpoint, a deployment, or an artifact of a deployment, whose checkpoint is then beside it.

    Raises:
        BadInput: the file is there, but holds no spellings.
    """
    for path in (folder / SPELLINGS_FILE, folder / "checkpoint" / SPELLINGS_FILE):
        if path.is_file():
            return _spellings(path)
    beside = folder.parent / "checkpoint" / SPELLINGS_FILE
    return _spellings(beside) if is_artifact(folder) and beside.is_file() else None


def _spellings(path: Path) -> dict[str, str]:
    spellings = read_object(path)
    if not all(isinstance(word, str) for word in spellings.values()):
        raise BadInput(f"{path}: not a map of spellings")
    return spellings
