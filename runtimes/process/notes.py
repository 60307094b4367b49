"""Notes: what a user should know of an input that is used all the same, one line each on standard error."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Callable, Iterator, Sequence

Note = Callable[[str], None]
"""Takes one line that names the file or the folder."""

LOGGER = logging.getLogger("leanear")  # with no handler set, Python writes its warnings to standard error as they are
MOST_OF_ONE_KIND = 3
UNHEARD_S = 0.1  # behind a model's window, that is not worth a word


def note(text: str) -> None:
    """Say one line; standard output holds results alone, so it does not go there."""
    LOGGER.warning("note: %s", " ".join(text.split()))


def files_below(folder: Path, say: Note = note) -> list[Path]:
    """The files of a folder and of its sub-folders, sorted; say: told of a sub-folder that cannot be read."""

    def unread(error: OSError) -> None:
        say(f"{error.filename}: passed over, for it cannot be read ({error.strerror})")

    return sorted(Path(place, name) for place, _, names in os.walk(folder, onerror=unread) for name in names)


def plural(count: int, noun: str) -> str:
    """So many of something: "1 clip", "2,000 clips"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def named(names: Sequence[str], most: int = MOST_OF_ONE_KIND) -> str:
    """The first few of many names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


@contextlib.contextmanager
def no_notes() -> Iterator[None]:
    """Say none within the block; also for all but one of several processes that read the same."""
    before = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOGGER.setLevel(before)


def note_first(texts: Sequence[str], of: str) -> None:
    """Say the first few of many lines, and how many more there are; of: what each line is about, in the singular."""
    for text in texts[:MOST_OF_ONE_KIND]:
        note(text)
    if len(texts) > MOST_OF_ONE_KIND:
        note(f"and so of {plural(len(texts) - MOST_OF_ONE_KIND, f'more {of}')}")


def is_cut(samples: int, window_samples: int, sample_rate_hz: int) -> bool:
    """Whether a clip goes on for a while behind the model's window, where it is not heard."""
    return samples - window_samples >= UNHEARD_S * sample_rate_hz


def note_cut(path: object, samples: int, window_samples: int, sample_rate_hz: int) -> None:
    """Say of a clip that is longer than the model's window how much of it is heard."""
    if is_cut(samples, window_samples, sample_rate_hz):
        note(f"{path}: the model hears only the first {window_samples / sample_rate_hz:.2f} s")
