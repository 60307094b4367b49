"""Stages that are done once: each leaves a record of what it was made from, and runs again only when that changes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_json, sha256_file, write_json
from leanear.runtimes.process.kept_work import remember_kept

STAGE_SCHEMA = "leanear-stage-1"


def stage_is_done(folder: Path, name: str, made_from: dict[str, Any]) -> bool:
    """Whether stage `name` in `folder` was completed from just these inputs and its outputs are still what it wrote."""
    record = _read(folder, name)
    outputs = {folder / output: sha256 for output, sha256 in record["outputs"].items()}
    return record["made_from"] == made_from and all(
        path.is_file() and sha256_file(path) == sha256 for path, sha256 in outputs.items()
    )


def recorded_inputs(folder: Path, name: str) -> dict[str, Any]:
    """What stage `name` was last made from, {} where it was never completed."""
    return dict(_read(folder, name)["made_from"])


def _read(folder: Path, name: str) -> dict[str, Any]:
    try:
        return read_json(_record(folder, name), STAGE_SCHEMA, ("made_from", "outputs"))
    except BadInput:
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
