"""A bundle for a device: artifacts, evaluation clips, and one runner file that needs Python, numpy and a runtime.

Tensors that dense and slim share are packed once, and floats are deflated by byte planes.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import leanear
import leanear.benchmarks
import leanear.runtimes
from leanear.benchmarks.device.bundled import (
    BUNDLE_FILE,
    BUNDLE_SCHEMA,
    PACKED_SCHEMA,
    PACKED_SUFFIX,
    RUNNER_FILE,
    Bundle,
    BundleDocument,
    BundleRun,
    FileFacts,
    read_bundle,
    unpacked_bytes,
)
from leanear.benchmarks.results_document import Role
from leanear.devices.bundle_readme import README_FILE, readme_text
from leanear.runtimes.artifact import Artifact, read_artifact
from leanear.runtimes.clips import read_clips
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import link_or_copy, replaced_file, replaced_folder, sha256_file, sha256_json
from leanear.runtimes.records import write

LEAST_BYTES = 1 << 16  # smaller files travel as they are
BLOCK_BYTES = 1 << 16  # what is not a tensor is compared in such blocks
LEAST_TENSOR_BYTES = 4096
WIDTH_OF_GOLDEN = 4  # golden clips are float32, as their logits
# Matches that zlib finds in random bytes cost more than they save.
STRATEGIES = ((9, zlib.Z_HUFFMAN_ONLY), (1, zlib.Z_DEFAULT_STRATEGY))
DEVICE_SOURCES = {p.__name__: Path(next(iter(p.__path__))) for p in (leanear.runtimes, leanear.benchmarks)}
STAYS_HERE = "peers"  # the folder of programs that measure leanear itself
CLIPS_FILE = "clips.npz"
FIRST_LINE = b"#!/usr/bin/env python3\n"
EARLIEST = (1980, 1, 1, 0, 0, 0)
PLAIN_FILE = 0o100644 << 16

# Read by whatever Python the device has, so by old ones too: no f-string, no annotation, nothing of Python 3 alone.
MAIN = """\
import sys

if sys.version_info < (3, 9):
    sys.stderr.write(
        "leanear: this is Python %d.%d; leanear.pyz needs Python 3.9 or later\\n" % tuple(sys.version_info[:2])
    )
    sys.exit(4)

from leanear.runtimes.process.isolation import leave_current_folder

leave_current_folder()

from leanear.runtimes.process.interrupts import run_interruptibly
from leanear.runtimes.process.notes import take_any_text, widen_standard_input

widen_standard_input()
take_any_text()


def run():
    from leanear.benchmarks.device.runner import main

    return main()


if sys.argv[1:2] == ["--worker"]:
    import runpy

    module = sys.argv[2]
    del sys.argv[1:3]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
else:
    sys.exit(run_interruptibly(run))
"""


@dataclass(frozen=True)
class Stretch:
    """A stretch of a file, of numbers of `width` bytes each."""

    offset: int
    length: int
    width: int


@dataclass(frozen=True)
class Packer:
    """Packs the files of a bundle one after another, each into what no file before it has.

    known: a file's name and the offset in it, by the sha256 of what is there.
    """

    known: dict[bytes, tuple[str, int]] = field(default_factory=dict)

    def pack(self, source: Path, name: str, target: Path, tensors: list[Stretch]) -> None:
        """Write the packed form of `source`, which the bundle calls `name`, to `target`."""
        data, found = source.read_bytes(), {}
        parts: list[dict[str, Any]] = []
        streams: list[bytes] = []
        for stretch in _cut(len(data), tensors, WIDTH_OF_GOLDEN if source.suffix == ".npz" else 1):
            piece = data[stretch.offset : stretch.offset + stretch.length]
            digest = hashlib.sha256(piece).digest()
            if digest in self.known:
                other, offset = self.known[digest]
                _append_copy(parts, {"of": other, "offset": offset, "bytes": len(piece)})
            else:
                found[digest] = (name, stretch.offset)
                width = stretch.width if len(piece) % stretch.width == 0 else 1
                streams.append(_deflated(piece, width))
                parts.append({"width": width, "bytes": len(piece), "deflated": len(streams[-1])})
        header = {
            "schema": PACKED_SCHEMA,
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "parts": parts,
        }
        self.known.update(found)
        with replaced_file(target) as fresh:
            fresh.write_bytes(json.dumps(header).encode() + b"\n" + b"".join(streams))


def is_packed(path: Path) -> bool:
    """Whether a file of an artifact travels packed."""
    return path.name != "manifest.json" and path.stat().st_size >= LEAST_BYTES


def packed_name(name: str) -> str:
    """What a bundle calls the packed form of its file `name`."""
    return name + PACKED_SUFFIX


def tensors_of(artifact: Artifact) -> dict[str, list[Stretch]]:
    """Where the weights of an artifact's graphs lie, by the name of the file that they lie in."""
    found: dict[str, list[Stretch]] = {}
    for path in artifact.graphs.values():
        model, data, place = onnx.load(path, load_external_data=False), path.read_bytes(), 0
        for tensor in model.graph.initializer:
            width = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                told = {entry.key: entry.value for entry in tensor.external_data}
                where, offset, length = told["location"], int(told["offset"]), int(told["length"])
            else:
                where, length = path.name, len(tensor.raw_data)
                offset = data.find(tensor.raw_data, place)  # they lie in the order of the list
                place = max(place, offset)
            if length >= LEAST_TENSOR_BYTES and offset >= 0:
                found.setdefault(where, []).append(Stretch(offset, length, width))
    return found


def _cut(size: int, tensors: list[Stretch], width: int) -> Iterator[Stretch]:
    """A whole file in order: its tensors, and blocks of what lies between them; of two that overlap the first."""
    place = 0
    for tensor in (*sorted(tensors, key=lambda each: each.offset), Stretch(size, 0, 1)):
        if tensor.offset < place:
            continue
        for start in range(place, tensor.offset, BLOCK_BYTES):
            yield Stretch(start, min(BLOCK_BYTES, tensor.offset - start), width)
        if tensor.length:
            yield tensor
        place = tensor.offset + tensor.length


def _append_copy(parts: list[dict[str, Any]], part: dict[str, Any]) -> None:
    """Add a part of another file, to the one before it where both lie in a row there."""
    last = parts[-1] if parts else {}
    if last.get("of") == part["of"] and last["offset"] + last["bytes"] == part["offset"]:
        last["bytes"] += part["bytes"]
    else:
        parts.append(part)


def _deflated(piece: bytes, width: int) -> bytes:
    """The byte planes of a piece by that of zlib's strategies that makes them smallest."""
    planes = b"".join(piece[plane::width] for plane in range(width))
    return min((_deflate(planes, *strategy) for strategy in STRATEGIES), key=len)


def _deflate(data: bytes, level: int, strategy: int) -> bytes:
    deflating = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
    return deflating.compress(data) + deflating.flush()


def write_bundle(
    out: Path, *, name: str, target: str, slim: Path, dense: Path | None, clips: Path | None, run: BundleRun
) -> Bundle:
    """The bundle written to `out`, whole or not at all; the same inputs give the same bytes.

    name, target: said to whoever reads the bundle; slim, dense: artifact folders; clips: a file of `write_clips`.

    Raises:
        BadInput: an artifact is not what its manifest says, or `out` holds something that is not a bundle.
    """
    if out.exists() and not (out / BUNDLE_FILE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out}: there is something there that is not a bundle (no {BUNDLE_FILE}); it is left alone")
    artifacts: dict[Role, Path] = {"slim": slim} if dense is None else {"dense": dense, "slim": slim}
    with replaced_folder(out) as fresh:
        packer = Packer()
        for role, folder in artifacts.items():
            _place_artifact(read_artifact(folder), role, fresh, packer)
        if clips is not None:
            link_or_copy(clips, fresh / CLIPS_FILE)
        write_runner(fresh / RUNNER_FILE)
        document = BundleDocument(
            schema=BUNDLE_SCHEMA,
            leanear=importlib.metadata.version("leanear"),
            name=name,
            target=target,
            run=run,
            artifacts={role: role for role in artifacts},
            clips=None if clips is None else CLIPS_FILE,
            files=_files(fresh),
        )
        unpacked = unpacked_bytes(fresh, document.files)
        text = readme_text(document, None if clips is None else read_clips(clips), unpacked)
        (fresh / README_FILE).write_text(text, encoding="utf-8")
        write(fresh / BUNDLE_FILE, replace(document, files=_files(fresh)))
    return read_bundle(out)


def write_runner(path: Path) -> None:
    """Write `leanear.pyz`: the device's packages in one file that Python runs; the same sources give the same bytes.

    Nothing in it is compressed: a device without zlib runs it too, and no version of zlib changes the bytes.
    """
    version = importlib.metadata.version("leanear")
    entries = {"__main__.py": MAIN.encode()}
    entries[f"leanear-{version}.dist-info/METADATA"] = (
        f"Metadata-Version: 2.1\nName: leanear\nVersion: {version}\n".encode()
    )
    entries["leanear/__init__.py"] = Path(leanear.__file__).read_bytes()
    for package, folder in DEVICE_SOURCES.items():
        for source in folder.rglob("*.py"):
            below = source.relative_to(folder)
            if STAYS_HERE not in below.parts:
                entries[f"{package.replace('.', '/')}/{below.as_posix()}"] = source.read_bytes()
    with replaced_file(path) as part:
        with open(part, "wb") as stream:
            stream.write(FIRST_LINE)
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
                for name in sorted(entries):
                    entry = zipfile.ZipInfo(name, EARLIEST)
                    entry.create_system = 3
                    entry.external_attr = PLAIN_FILE
                    archive.writestr(entry, entries[name])
        os.chmod(part, 0o755)  # noqa: S103, a program


def device_folder_name(name: str) -> str:
    """A folder name for the device: plain, whatever MODEL and TARGET are called, and another for every other name."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:48] or "model"
    return f"{plain}-{sha256_json(name)[:8]}"


def _files(folder: Path) -> dict[str, FileFacts]:
    """The size and the sha256 of every file of a bundle so far, by its path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): FileFacts(sha256_file(path), path.stat().st_size) for path in files}


def _place_artifact(artifact: Artifact, role: str, bundle: Path, packer: Packer) -> None:
    """The files of an artifact, the large ones packed, in the order in which they are unpacked."""
    tensors = tensors_of(artifact)
    (bundle / role).mkdir()
    for path in sorted(
        (path for path in artifact.folder.iterdir() if path.is_file()), key=lambda p: packed_name(p.name)
    ):
        name = f"{role}/{path.name}"
        if is_packed(path):
            packer.pack(path, name, bundle / packed_name(name), tensors.get(path.name, []))
        else:
            link_or_copy(path, bundle / name)
