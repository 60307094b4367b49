"""A bundle's files packed: tensors that dense and slim share are kept once, floats are deflated by byte planes."""

import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from leanear.benchmarks.device.packed import PACKED_SCHEMA, PACKED_SUFFIX
from leanear.runtimes.artifact import Artifact
from leanear.runtimes.files import replaced_file

LEAST_BYTES = 1 << 16  # smaller files travel as they are
BLOCK_BYTES = 1 << 16  # what is not a tensor is compared in such blocks
LEAST_TENSOR_BYTES = 4096
WIDTH_OF_GOLDEN = 4  # golden clips are float32, as their logits
# Matches that zlib finds in random bytes cost more than they save.
STRATEGIES = ((9, zlib.Z_HUFFMAN_ONLY), (1, zlib.Z_DEFAULT_STRATEGY))


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
