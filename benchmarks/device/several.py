"""Several recordings: the files that are meant, and what becomes of the others when one is not usable."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Callable, Iterator, Sequence, TypeVar

from leanear.runtimes.errors import BadInput, MeasurementFailed
from leanear.runtimes.process.notes import files_below, note, plural

Given = TypeVar("Given")
Made = TypeVar("Made")


def clips_in(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """The file itself, or a folder's files of these suffixes, those in sub-folders too, in the order of their names.

    Raises:
        BadInput: a folder has none; of other files it is noted how many there are.
    """
    if not path.is_dir():
        return [path]
    files = [file for file in files_below(path) if file.is_file() and not file.name.startswith(".")]
    clips = [file for file in files if file.suffix.lower() in suffixes]
    if not clips:
        raise BadInput(f"{path}: no {', '.join(suffixes)} files in it")
    if len(clips) < len(files):
        note(f"{path}: files of other kinds are passed over: {len(files) - len(clips)}")
    return clips


def each_usable(
    given: Sequence[Given], work: Callable[[Given], Made], noun: str, done: str, *, several: bool
) -> Iterator[tuple[Given, Made]]:
    """Each that `work` can be done to, with what that gave; of several, one that cannot is a line on standard error.

    noun, done: what they are and what is done to them, as in "clip", "classified".

    Raises:
        LeanearError: the one is not usable; or, after all of several, how many of them were not.
    """
    refused = 0
    for each in given:
        try:
            made = work(each)
        except (BadInput, MeasurementFailed) as error:
            if not several:
                raise
            print(f"leanear: {error}", file=sys.stderr, flush=True)
            refused += 1
        else:
            yield each, made
    if refused:
        were = "was" if refused == 1 else "were"
        raise BadInput(f"{refused} of {plural(len(given), noun)} {were} not {done}")
