"""A stretch of a file as a file of its own, for libraries that read files and believe their headers."""

import io
import struct
from typing import BinaryIO

from leanear.runtimes.audio.wav_layout import WavLayout

LARGEST_SIZE = 2**32 - 1
NOT_HERE = b"\xff\xff\xff\xff"  # in place of a size that an RF64 file has in its chunk "ds64"
OGG_HEADER_BYTES, OGG_SEGMENTS_AT = 27, 26
OGG_BEGINS, OGG_ENDS = 2, 4  # flags of a stream's first page and of its last


class FilePart:
    """A head of one's own, and behind it the bytes [start, stop) of a stream that can seek.

    failed: why a `read` could not read, of which libsndfile, that calls it, learns nothing.
    """

    def __init__(self, stream: BinaryIO, start: int, stop: int, head: bytes = b"") -> None:
        self._stream, self._start, self._head = stream, start, head
        self._length = len(head) + stop - start
        self._place, self.failed = 0, ""

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
        wanted = left if count < 0 else min(count, left)
        data = self._head[self._place : self._place + wanted]
        if len(data) < wanted:
            try:
                self._stream.seek(self._start + self._place + len(data) - len(self._head))
                data += self._stream.read(wanted - len(data))
            except OSError as error:
                self.failed = error.strerror or str(error)
        self._place += len(data)
        return data


def wav_part(stream: BinaryIO, layout: WavLayout) -> FilePart:
    """A WAV file of format and audio alone, with sizes that are true of them; above 4 GB it is an RF64 file."""
    size = len(layout.format)
    format_chunk = b"fmt " + struct.pack("<I", size) + layout.format + bytes(size % 2)
    riff_bytes = 4 + len(format_chunk) + 8 + layout.data_bytes
    if riff_bytes <= LARGEST_SIZE:
        head = b"RIFF" + struct.pack("<I", riff_bytes) + b"WAVE" + format_chunk
        head += b"data" + struct.pack("<I", layout.data_bytes)
    else:
        sizes = struct.pack("<4sIQQQI", b"ds64", 28, riff_bytes + 36, layout.data_bytes, 0, 0)
        head = b"RF64" + NOT_HERE + b"WAVE" + sizes + format_chunk + b"data" + NOT_HERE
    return FilePart(stream, layout.data_from, layout.data_from + layout.data_bytes, head)


def ogg_links(stream: BinaryIO) -> tuple[list[tuple[int, int]], bool]:
    """Where the files lie, [start, stop) each, that were put one behind the other into an OGG file; and if it is whole.

    A link of such a chain begins with pages that each begin a stream; after others have followed, the next is new. The
    last page of a whole file ends a stream.
    """
    end = stream.seek(0, io.SEEK_END)
    starts, place, in_beginning, ends = [0], 0, True, False
    while place < end:
        stream.seek(place)
        head = stream.read(OGG_HEADER_BYTES)
        if len(head) < OGG_HEADER_BYTES or not head.startswith(b"OggS"):
            break
        begins = bool(head[5] & OGG_BEGINS)
        if begins and not in_beginning:
            starts.append(place)
        in_beginning, ends = begins, bool(head[5] & OGG_ENDS)
        segments = head[OGG_SEGMENTS_AT]
        place += OGG_HEADER_BYTES + segments + sum(stream.read(segments))
    return list(zip(starts, [*starts[1:], end], strict=True)), ends and place <= end
