"""Folders that leanear writes: never over something that it did not make, and in stages that are done once.

A stage leaves a record of what it was made from, and runs again only when that changes.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import LOCK_FILE, file_place, only_here, read_json, sha256_file, write_json
from leanear.runtimes.process.interrupts import remember_kept

SCORES = ".scores"  # of `leanear explore`, in its folder
STAGE_SCHEMA = "leanear-stage-1"


def check_replaceable(out: Path, marker: str) -> None:
    """Nothing, when `out` can be made, is empty, or is a folder of leanear's own, which has the file `marker` in it.

    Raises:
        BadInput: it is anything else, which is left as it is, or nothing can be written there, or moved there.
    """
    if out.is_dir():
        if any(out.iterdir()) and not (out / marker).is_file():
            raise BadInput(f"{out}: --out is a folder with something else in it (no {marker}); it is left alone")
        if marker in ("manifest.json", "plan.json") and (out.resolve() == Path.cwd() or out.is_mount()):
            raise BadInput(f"{out}: --out is the folder that you are in, or a disk's own; name one inside it")
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


@contextlib.contextmanager
def held(state: Path, half_written: Sequence[str] = ("*", "*/*", "*/*/*")) -> Iterator[None]:
    """Hold the folder of what is under way, for two would mix theirs; where nothing is left in it, it goes again.

    half_written: as of `only_here`. Raises BadInput where another process holds it.
    """
    state.mkdir(parents=True, exist_ok=True)
    with only_here(state, half_written):
        try:
            yield
        finally:
            if state.is_dir() and [each.name for each in state.iterdir()] == [LOCK_FILE]:
                shutil.rmtree(state, ignore_errors=True)  # nothing to go on from


def stage_is_done(folder: Path, name: str, made_from: dict[str, Any]) -> bool:
    """Whether stage `name` in `folder` was completed from just these inputs and its outputs are still what it wrote."""
    record = _read(folder, name)
    files = [(folder / output, sha256) for output, sha256 in record["outputs"].items()]
    return record["made_from"] == made_from and all(path.is_file() and sha256_file(path) == of for path, of in files)


def recorded_inputs(folder: Path, name: str) -> dict[str, Any]:
    """What stage `name` was last made from, {} where it was never completed."""
    return dict(_read(folder, name)["made_from"])


def _read(folder: Path, name: str) -> dict[str, Any]:
    with contextlib.suppress(BadInput):
        record = read_json(_record(folder, name), STAGE_SCHEMA, ("made_from", "outputs"))
        if all(isinstance(record[key], dict) for key in ("made_from", "outputs")):
            return record
    return {"made_from": {}, "outputs": {}}


def run_stage(
    folder: Path, name: str, made_from: dict[str, Any], outputs: Callable[[], Sequence[Path]], work: Callable[[], None]
) -> bool:
    """Run `work` unless the stage is done already; whether it had to run.

    made_from: JSON values that identify everything the stage reads; outputs: called after the work, the files that it
    wrote and that later stages read.
    """
    if stage_is_done(folder, name, made_from):
        remember_kept(_record(folder, name))
        return False
    _record(folder, name).unlink(missing_ok=True)
    work()
    record_stage(folder, name, made_from, outputs())
    return True


def record_stage(folder: Path, name: str, made_from: dict[str, Any], outputs: Sequence[Path]) -> None:
    """Write down that the stage was completed from just these inputs, and what it wrote."""
    written = {path.relative_to(folder).as_posix(): sha256_file(path) for path in outputs}
    write_json(_record(folder, name), {"schema": STAGE_SCHEMA, "made_from": made_from, "outputs": written})
    remember_kept(_record(folder, name))


def _record(folder: Path, name: str) -> Path:
    return folder / ".stages" / f"{name}.json"
