"""A stretch of a file as a file of its own, for libraries that read files and believe their headers."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import BinaryIO

OGG_HEADER_BYTES, OGG_SEGMENTS_AT = 27, 26
OGG_BEGINS = 2  # the flag of a stream's first page


class FilePart:
    """Bytes [start, stop) of a stream that can seek, from 0 on; patches: bytes that read as others, by their place."""

    def __init__(self, stream: BinaryIO, start: int, stop: int, patches: Mapping[int, bytes] | None = None) -> None:
        self._stream, self._start, self._length = stream, start, stop - start
        self._patches = dict(patches or {})
        self._place = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go there; the new place."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        self._place = max(origin + offset, 0)
        return self._place

    def tell(self) -> int:
        """The place of the byte that is read next."""
        return self._place

    def read(self, count: int = -1) -> bytes:
        """So many bytes, fewer where the part ends; all that are left of it for -1."""
        left = max(self._length - self._place, 0)
        self._stream.seek(self._start + self._place)
        data = bytearray(self._stream.read(left if count < 0 else min(count, left)))
        for place, patch in self._patches.items():
            for offset, value in enumerate(patch, place - self._place):
                if 0 <= offset < len(data):
                    data[offset] = value
        self._place += len(data)
        return bytes(data)


def ogg_links(stream: BinaryIO) -> list[tuple[int, int]]:
    """Where the files lie, [start, stop) each, that were put one behind the other into an OGG file.

    A link of such a chain begins with pages that each begin a stream; after others have followed, the next is new.
    """
    end = stream.seek(0, io.SEEK_END)
    starts, place, in_beginning = [0], 0, True
    while place < end:
        stream.seek(place)
        head = stream.read(OGG_HEADER_BYTES)
        if len(head) < OGG_HEADER_BYTES or not head.startswith(b"OggS"):
            break
        begins = bool(head[5] & OGG_BEGINS)
        if begins and not in_beginning:
            starts.append(place)
        in_beginning = begins
        segments = head[OGG_SEGMENTS_AT]
        place += OGG_HEADER_BYTES + segments + sum(stream.read(segments))
    return list(zip(starts, [*starts[1:], end], strict=True))
