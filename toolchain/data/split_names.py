"""Split folders by the keywords that the Hub knows, and what each is used for."""

from collections.abc import Iterable
from pathlib import PurePath

TRAIN = ("calibration", "train", "training")
VALIDATION = ("validation", "valid", "val", "dev")
TEST = ("evaluation", "eval", "test", "testing")
SPLIT_KEYWORDS = TRAIN + VALIDATION + TEST


def is_split(name: str) -> bool:
    """Whether a folder's name is a split's, in any case."""
    return name.lower() in SPLIT_KEYWORDS


def split_of(name: str) -> str | None:
    """The outermost folder in a file's path that is a split; None where it is in none."""
    return next((part for part in PurePath(name).parts[:-1] if is_split(part)), None)


def uses(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Of split folders, those to calibrate on and those to evaluate on.

    A validation split is calibrated on, but where there is one to train on and none to test on, it stands for the test.
    """
    ordered = sorted(names, key=lambda name: (SPLIT_KEYWORDS.index(name.lower()), name))
    train, validation, test = ([name for name in ordered if name.lower() in kind] for kind in (TRAIN, VALIDATION, TEST))
    if train and validation and not test:
        return train, validation
    return train + validation, test
