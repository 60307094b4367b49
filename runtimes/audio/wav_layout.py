"""Where the audio of a WAV file lies: what the file holds decides, for the sizes in headers are often wrong.

Programs that write into a pipe, or die, leave sizes that were never filled in; those that run past 4 GB leave what is
left of them modulo 2**32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from leanear.runtimes.errors import BadInput

PLACEHOLDER_REACH = 2**16  # bytes from the largest sizes that a header can hold, which no writer means
LEAST_STALE_BYTES = 4096  # behind the promised audio, to be taken for audio: tags and padding are shorter
CHUNK_HEADER_BYTES = 8


@dataclass(frozen=True)
class WavLayout:
    """A WAV file's format and its audio.

    format: contents of the chunk "fmt "; data_from, data_bytes: where the audio begins and how much of it is there;
    note: what a user should know of it, or None.
    """

    format: bytes
    data_from: int
    data_bytes: int
    note: str | None


def wav_layout(stream: BinaryIO, path: Path) -> WavLayout:
    """The layout of a file that begins with RIFF....WAVE; the stream may be left anywhere.

    Raises:
        BadInput: there is no format or no audio in it, or it was cut short.
    """
    header = None
    place, end = 12, stream.seek(0, 2)
    while place + CHUNK_HEADER_BYTES <= end:
        name, size = _chunk(stream, place)
        begin = place + CHUNK_HEADER_BYTES
        if name == b"data":
            if header is None:
                break
            held, note = _held(stream, path, begin, size, end)
            return WavLayout(header, begin, held, note)
        if begin + size > end:
            raise _truncated(path)
        if name == b"fmt " and header is None:
            header = stream.read(size)
        place = begin + size + size % 2
    raise BadInput(f"{path}: a WAV file without a format or without audio")


def is_placeholder(size: int) -> bool:
    """Whether a size is one that programs write before they know it: near 2 GB, or near 4 GB."""
    return abs(size - 2**31) <= PLACEHOLDER_REACH or size >= 2**32 - PLACEHOLDER_REACH


def _held(stream: BinaryIO, path: Path, begin: int, promised: int, end: int) -> tuple[int, str | None]:
    """Bytes of audio from `begin` on, and a note."""
    there = end - begin
    if promised > there:
        if is_placeholder(promised):
            return there, None
        lacking = promised - there
        if lacking > begin:  # more than a size that counts the header too
            raise _truncated(path)
        return there, f"{path}: its header promises {lacking} bytes more than the file holds; all that is there is read"
    behind = there - promised
    place = begin + promised
    if behind <= 1 or _chunks_end(stream, place + place % 2, end) or _chunks_end(stream, place, end):
        return promised, None
    if promised == 0 or is_placeholder(promised):
        return there, None
    if _chunk(stream, place)[0] == b"RIFF":
        return promised, f"{path}: another WAV file follows in it, which is not read ({behind:,} bytes)"
    if behind < LEAST_STALE_BYTES:
        return promised, f"{path}: {behind:,} bytes behind its audio are no chunk of a WAV file and are not read"
    return there, (
        f"{path}: its header promises {promised:,} bytes of audio, {behind:,} more follow; all are read as audio"
    )


def _chunks_end(stream: BinaryIO, place: int, end: int) -> bool:
    while place + CHUNK_HEADER_BYTES <= end:
        name, size = _chunk(stream, place)
        place += CHUNK_HEADER_BYTES + size + size % 2
        if name == b"RIFF" or not all(0x20 <= letter < 0x7F for letter in name) or place > end + 1:
            return False
    return place >= end - 1


def _chunk(stream: BinaryIO, place: int) -> tuple[bytes, int]:
    """Name and size of the chunk at `place`; behind its head the stream is left."""
    stream.seek(place)
    head = stream.read(CHUNK_HEADER_BYTES)
    return head[:4], int.from_bytes(head[4:], "little")


def _truncated(path: Path) -> BadInput:
    return BadInput(f"{path}: truncated: the file ends before the audio that its header promises")
