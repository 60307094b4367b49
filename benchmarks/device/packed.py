"""Files of a bundle that travel packed: what an earlier file has is taken from there, the rest is deflated.

A packed file is a line of JSON, which lists the parts of the file in order, and the deflated bytes of its own parts.
Of floats nothing but the exponents can be deflated, so a part of numbers of `width` bytes holds the first byte of each,
then the second of each, and so on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Iterable, Iterator

from leanear.benchmarks.device.bundled import Bundle, is_bundle_path
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import replaced_file, sha256_file

PACKED_SCHEMA = "leanear-packed-1"
PACKED_SUFFIX = ".packed"
OWN_PART, OTHERS_PART = {"width", "bytes", "deflated"}, {"of", "offset", "bytes"}
Part = dict[str, Any]


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
