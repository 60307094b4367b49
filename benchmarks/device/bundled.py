"""The bundle: one folder with all that a device needs, each file named with its sha256, verified before it is used."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Dict, Literal, Optional, Union

from leanear.benchmarks.results_document import Role
from leanear.benchmarks.sensors.device import usable_cores
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_json, sha256_file
from leanear.runtimes.records import Amount, Count, Positive, read

BUNDLE_SCHEMA = "leanear-bundle-2"
BUNDLE_FILE = "bundle.json"
RUNNER_FILE = "leanear.pyz"
ALL_THREADS: Literal["all"] = "all"


@dataclass(frozen=True)
class BundleRun:
    """What the device is to do.

    precision, dense_precision: of the slim and of the dense artifact; threads: a number, or "all" of the device's;
    budget_s: seconds for latency samples; sustained_s: of work without a pause.
    """

    runtime: str
    precision: str
    dense_precision: str
    threads: Union[Positive, Literal["all"]]
    budget_s: Amount
    sustained_s: Amount


@dataclass(frozen=True)
class FileFacts:
    """What a file of the bundle has to be."""

    sha256: str
    bytes: Count


@dataclass(frozen=True)
class BundleDocument:
    """`bundle.json`. artifacts: folder by role; clips: None where there are none; files: by path in the bundle."""

    schema: str
    leanear: str
    name: str
    target: str
    run: BundleRun
    artifacts: Dict[Role, str]
    clips: Optional[str]
    files: Dict[str, FileFacts]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are all there and are what `bundle.json` says.

    document: the whole of `bundle.json`; artifacts: folder by role ("slim", and "dense" where there is one);
    clips: the evaluation clips, or None.
    """

    folder: Path
    document: BundleDocument
    artifacts: dict[Role, Path]
    clips: Path | None

    @property
    def runtime(self) -> str:
        """The runtime that the bundle was made for."""
        return self.document.run.runtime

    @property
    def precision(self) -> str:
        """What the slim artifact is run in, and whatever else the device is given to run."""
        return self.document.run.precision

    def precision_of(self, role: str) -> str:
        """What the artifact of `role` is run in."""
        return self.document.run.dense_precision if role == "dense" else self.precision

    @property
    def threads(self) -> int:
        """Compute threads on this machine: "all" means every core that this process may use."""
        threads = self.document.run.threads
        return usable_cores() if threads == ALL_THREADS else int(threads)


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
    for name, facts in document.files.items():
        path = folder / name
        if not path.is_file():
            raise BadInput(f"{path}: named by {BUNDLE_FILE} but missing; the bundle is incomplete, copy it again")
        size = path.stat().st_size
        if size != facts.bytes:
            raise BadInput(f"{path}: {size} bytes instead of {facts.bytes}; the bundle is incomplete, copy it again")
        if sha256_file(path) != facts.sha256:
            raise BadInput(f"{path}: sha256 differs from {BUNDLE_FILE}; the file was changed or damaged, copy it again")
    return Bundle(
        folder=folder,
        document=document,
        artifacts={role: folder / name for role, name in document.artifacts.items()},
        clips=None if document.clips is None else folder / document.clips,
    )


def read_bundle_document(folder: Path) -> BundleDocument:
    """`bundle.json` of `folder`, checked as strictly as it is written; the other files are not looked at.

    Raises:
        BadInput: it is missing or is not what it should be; the text names the key.
    """
    path = Path(folder) / BUNDLE_FILE
    document = read(BundleDocument, read_json(path, BUNDLE_SCHEMA), path)
    if RUNNER_FILE not in document.files:
        raise BadInput(f"{path}: files does not name {RUNNER_FILE}")
    for name, facts in document.files.items():
        if not is_bundle_path(name):
            raise BadInput(f"{path}: files: {name!r} is not the path of a file inside the bundle")
        if not re.fullmatch(r"[0-9a-f]{64}", facts.sha256):
            raise BadInput(f"{path}: files: {name!r} has no sha256")
    if "slim" not in document.artifacts:
        raise BadInput(f"{path}: missing key 'artifacts.slim'")
    for role, name in document.artifacts.items():
        if f"{name}/manifest.json" not in document.files:
            raise BadInput(f"{path}: artifacts.{role}: {name!r} has no manifest.json among the files")
    if document.clips is not None and document.clips not in document.files:
        raise BadInput(f"{path}: clips: {document.clips!r} is not among the files")
    return document
