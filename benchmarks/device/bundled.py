"""The bundle: one folder with all that a device needs, each file named with its sha256, verified before it is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from leanear.benchmarks.sensors.device import usable_cores
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_json, sha256_file

BUNDLE_SCHEMA = "leanear-bundle-2"
BUNDLE_FILE = "bundle.json"
RUNNER_FILE = "leanear.pyz"
ALL_THREADS = "all"
REQUIRED_KEYS = ("leanear", "name", "target", "run", "artifacts", "clips", "files")
RUN_KEYS = ("runtime", "precision", "dense_precision", "threads", "budget_s", "sustained_s")


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are all there and are what `bundle.json` says.

    document: the whole of `bundle.json`; artifacts: folder by role ("slim", and "dense" where there is one);
    clips: the evaluation clips, or None.
    """

    folder: Path
    document: dict[str, Any]
    artifacts: dict[str, Path]
    clips: Path | None

    @property
    def runtime(self) -> str:
        """The runtime that the bundle was made for."""
        return str(self.document["run"]["runtime"])

    @property
    def precision(self) -> str:
        """What the slim artifact is run in, and whatever else the device is given to run."""
        return str(self.document["run"]["precision"])

    def precision_of(self, role: str) -> str:
        """What the artifact of `role` is run in."""
        return str(self.document["run"]["dense_precision"]) if role == "dense" else self.precision

    @property
    def threads(self) -> int:
        """Compute threads on this machine: "all" means every core that this process may use."""
        threads = self.document["run"]["threads"]
        return usable_cores() if threads == ALL_THREADS else int(threads)

    @property
    def budget_s(self) -> float:
        """Seconds for the latency samples."""
        return float(self.document["run"]["budget_s"])

    @property
    def sustained_s(self) -> float:
        """Seconds of work without a pause."""
        return float(self.document["run"]["sustained_s"])


def is_bundle_path(name: object) -> bool:
    """Whether `name` can be the path of a file in a bundle: relative, without "..", in its plain form."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.as_posix() == name and name != BUNDLE_FILE


def read_bundle(folder: Path) -> Bundle:
    """The bundle in `folder`, every file of it compared with its sha256.

    Raises:
        BadInput: a file is missing, shorter, longer or changed, or `bundle.json` is not what it should be.
    """
    document = read_bundle_document(folder)
    for name, facts in document["files"].items():
        path = folder / name
        if not path.is_file():
            raise BadInput(f"{path}: named by {BUNDLE_FILE} but missing; the bundle is incomplete, copy it again")
        size = path.stat().st_size
        if size != facts["bytes"]:
            raise BadInput(f"{path}: {size} bytes instead of {facts['bytes']}; the bundle is incomplete, copy it again")
        if sha256_file(path) != facts["sha256"]:
            raise BadInput(f"{path}: sha256 differs from {BUNDLE_FILE}; the file was changed or damaged, copy it again")
    return Bundle(
        folder=folder,
        document=document,
        artifacts={role: folder / name for role, name in document["artifacts"].items()},
        clips=None if document["clips"] is None else folder / document["clips"],
    )


def read_bundle_document(folder: Path) -> dict[str, Any]:  # noqa: C901, PLR0912, a key each
    """`bundle.json` of `folder`, checked as strictly as it is written; the other files are not looked at.

    Raises:
        BadInput: it is missing or is not what it should be; the text names the key.
    """
    path = Path(folder) / BUNDLE_FILE
    document = read_json(path, BUNDLE_SCHEMA, REQUIRED_KEYS)
    for key in document:
        if key not in ("schema", *REQUIRED_KEYS):
            raise BadInput(f"{path}: unknown key {key!r}")
    run, files, artifacts = document["run"], document["files"], document["artifacts"]
    if not isinstance(run, dict) or sorted(run) != sorted(RUN_KEYS):
        raise BadInput(f"{path}: run does not have the keys {', '.join(RUN_KEYS)}")
    threads = run["threads"]
    if threads != ALL_THREADS and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise BadInput(f'{path}: run.threads is {threads!r}, neither "all" nor a number of at least 1')
    for key in ("budget_s", "sustained_s"):
        if isinstance(run[key], bool) or not isinstance(run[key], (int, float)) or not 0 <= run[key] < float("inf"):
            raise BadInput(f"{path}: run.{key} is {run[key]!r}, not a number of seconds")
    if not isinstance(files, dict) or RUNNER_FILE not in files:
        raise BadInput(f"{path}: files does not name {RUNNER_FILE}")
    for name, facts in files.items():
        if not is_bundle_path(name):
            raise BadInput(f"{path}: files: {name!r} is not the path of a file inside the bundle")
        if not _is_file_facts(facts):
            raise BadInput(f"{path}: files: {name!r} has no sha256 and size")
    if not isinstance(artifacts, dict) or "slim" not in artifacts or not set(artifacts) <= {"dense", "slim"}:
        raise BadInput(f"{path}: artifacts does not name the folder of slim, and of dense beside it or of nothing else")
    for role, name in artifacts.items():
        if f"{name}/manifest.json" not in files:
            raise BadInput(f"{path}: artifacts.{role}: {name!r} has no manifest.json among the files")
    if document["clips"] is not None and document["clips"] not in files:
        raise BadInput(f"{path}: clips: {document['clips']!r} is not among the files")
    return document


def _is_file_facts(facts: object) -> bool:
    if not isinstance(facts, dict) or set(facts) != {"sha256", "bytes"}:
        return False
    sha256, size = facts["sha256"], facts["bytes"]
    is_size = isinstance(size, int) and not isinstance(size, bool) and size >= 0
    return is_size and isinstance(sha256, str) and len(sha256) == 64 and set(sha256) <= set("0123456789abcdef")
