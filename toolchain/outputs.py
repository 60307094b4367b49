"""Where results may be written: never over something that leanear did not make."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import LOCK_FILE, file_place

SCORES = ".scores"  # of `leanear explore`, in its folder


def check_replaceable(out: Path, marker: str) -> None:
    """Nothing, when `out` can be made, is empty, or is a folder of leanear's own, which has the file `marker` in it.

    Raises:
        BadInput: it is anything else, which is left as it is, or nothing can be written there.
    """
    if out.is_dir():
        if any(out.iterdir()) and not (out / marker).is_file():
            raise BadInput(f"{out}: --out is a folder with something else in it (no {marker}); it is left alone")
    elif out.exists() or out.is_symlink():
        raise BadInput(f"{out}: --out is a file, not a folder; it is left alone")
    _check_writable(out, out)


def check_file(out: Path) -> None:
    """Nothing, when a file can be written at `out`; raises BadInput where it cannot."""
    _check_writable(out, file_place(out).parent)


def _check_writable(out: Path, folder: Path) -> None:
    there = folder
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with tempfile.TemporaryDirectory(prefix=".leanear-", dir=there):
            pass
    except OSError as error:
        raise BadInput(f"{out}: --out cannot be written: nothing can be made in {there} ({error.strerror})") from None


def check_explorable(out: Path) -> None:
    """Nothing, when `leanear explore` may write to `out`; raises BadInput as `check_replaceable`."""
    if not (out / SCORES).is_dir():  # of a run that was interrupted, it is all there is
        check_replaceable(out, "explore.json")


def check_deployment_folder(folder: Path, sources: Sequence[Path]) -> None:
    """Nothing, when a deployment may be written to `folder`: it is absent, empty, or a deployment already.

    Raises:
        BadInput: it holds something else, or one of `sources` (model, audio) lies in it and would be replaced.
    """
    check_replaceable(folder, LOCK_FILE)
    for source in sources:
        if folder.resolve() in (source.resolve(), *source.resolve().parents):
            raise BadInput(f"{source}: it lies inside --out ({folder}), which would replace it; choose another --out")
