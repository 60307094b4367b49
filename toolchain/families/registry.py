"""The families that leanear takes, by the `model_type` of config.json; a module is imported where it is needed."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_object

if TYPE_CHECKING:  # torch: seconds to import
    from leanear.families import ast, whisper
    from leanear.families.family import Family

    CHECKED: tuple[Family, ...] = (ast, whisper)  # against the contract, by mypy

SLIM_PREFIX = "slim-"  # of the model_type of a slim checkpoint


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
