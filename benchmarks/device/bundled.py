"""The bundle: one folder with all that a device needs, each file named with its sha256, verified before it is used.

Some files travel packed: what an earlier file has is taken from there, the rest is deflated. A packed file is a line of
JSON, which lists the parts of the file in order, and the deflated bytes of its own parts. Of floats nothing but the
exponents can be deflated, so a part of numbers of `width` bytes holds the first byte of each, then the second of each,
and so on.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Dict, Iterable, Iterator, Literal, Optional, Union

from leanear.benchmarks.results_document import Role
from leanear.benchmarks.sensors.device import usable_cores
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_json, replaced_file, sha256_file
from leanear.runtimes.records import Amount, Count, Positive, read

BUNDLE_SCHEMA = "leanear-bundle-2"
BUNDLE_FILE = "bundle.json"
RUNNER_FILE = "leanear.pyz"
ALL_THREADS: Literal["all"] = "all"
PACKED_SCHEMA = "leanear-packed-1"
PACKED_SUFFIX = ".packed"
OWN_PART, OTHERS_PART = {"width", "bytes", "deflated"}, {"of", "offset", "bytes"}
Part = dict[str, Any]


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


def unpacked_bytes(folder: Path, names: Iterable[str]) -> int:
    """The room that unpacking takes on a disk, of those of a bundle's files `names` that are packed."""
    return sum(_read_header(path)[0]["bytes"] for path in _packed(folder, names).values())


def unpack_bundle(bundle: Bundle) -> None:
    """Write what the bundle's packed files hold beside them; what is there already, and whole, is left.

    Raises:
        BadInput: a packed file is not one, or this Python cannot inflate it; nothing is half-written.
    """
    for name, path in _packed(bundle.folder, bundle.document.files).items():
        header, start = _read_header(path)
        target = bundle.folder / name
        if not (target.is_file() and sha256_file(target) == header["sha256"]):
            _unpack(path, header, start, target, bundle.folder)


def _packed(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """The packed ones of a bundle's files, in the order in which they are unpacked, by the name of what is in each."""
    packed = sorted(name for name in names if name.endswith(PACKED_SUFFIX))
    return {name[: -len(PACKED_SUFFIX)]: folder / name for name in packed}


def _unpack(path: Path, header: dict[str, Any], start: int, target: Path, folder: Path) -> None:
    with replaced_file(target) as fresh:
        with open(path, "rb") as packed, open(fresh, "wb") as out:
            packed.seek(start)
            for part in header["parts"]:
                out.writelines(_copied(part, folder, path) if "of" in part else [_inflated(packed, part, path)])
        if sha256_file(fresh) != header["sha256"]:
            raise BadInput(f"{path}: what it unpacks to has another sha256 than it says; copy the bundle again")


def _copied(part: Part, folder: Path, path: Path, block: int = 1 << 20) -> Iterator[bytes]:
    """A part that another file of the bundle has."""
    left = part["bytes"]
    try:
        with open(folder / part["of"], "rb") as other:
            other.seek(part["offset"])
            while left and (data := other.read(min(left, block))):
                left -= len(data)
                yield data
    except FileNotFoundError:
        raise BadInput(f"{path}: it needs {part['of']}, which is not there; copy the bundle again") from None


def _inflated(packed: Any, part: Part, path: Path) -> bytes:
    """A part that the file has itself, in its own order of bytes."""
    try:
        import zlib
    except ImportError:
        raise BadInput(f"{path}: this Python has no zlib, which unpacks it; use one that has") from None
    try:
        planes = zlib.decompress(packed.read(part["deflated"]))
    except zlib.error as error:
        raise BadInput(f"{path}: it does not unpack ({error}); copy the bundle again") from None
    size, width = part["bytes"], part["width"]
    if len(planes) != size or size % width:
        raise BadInput(f"{path}: a part of it has {len(planes)} bytes instead of {size}; copy the bundle again")
    count = size // width
    data = bytearray(len(planes))
    for plane in range(width):
        data[plane::width] = planes[plane * count : (plane + 1) * count]
    return bytes(data)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The checked first line of a packed file, and where its own parts begin."""
    try:
        with open(path, "rb") as stream:
            header, start = json.loads(stream.readline()), stream.tell()
    except ValueError as error:
        raise BadInput(f"{path}: not a packed file ({error})") from None
    known = isinstance(header, dict) and header.get("schema") == PACKED_SCHEMA and isinstance(header.get("parts"), list)
    if not known or not _is_count(header.get("bytes")) or not all(_is_part(part) for part in header["parts"]):
        raise BadInput(f"{path}: not a packed file of this version of leanear")
    return header, start


def _is_part(part: Any) -> bool:
    if not isinstance(part, dict) or set(part) not in (OWN_PART, OTHERS_PART):
        return False
    if "of" in part and not is_bundle_path(part["of"]):
        return False
    return all(_is_count(value) for key, value in part.items() if key != "of") and part.get("width", 1) > 0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
