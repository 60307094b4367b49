"""WAV files as mono waveforms, read and resampled with numpy alone: a device has no audio library.

What a file holds decides where its audio lies, for the sizes in headers are often wrong: programs that write into a
pipe, or die, leave sizes that were never filled in; those that run past 4 GB leave what is left of them modulo 2**32.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from leanear.runtimes.audio.formats import WAV_CODECS, SignalWatch, check_sample_rate, check_samples, format_name
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import reading
from leanear.runtimes.process.notes import Note, note, plural

PLACEHOLDER_REACH = 2**16  # bytes from the largest sizes that a header can hold, which no writer means
LEAST_STALE_BYTES = 4096  # behind the promised audio, to be taken for audio: tags and padding are shorter
CHUNK_HEADER_BYTES = 8
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
EXTENDS = bytes.fromhex("000000001000800000aa00389b71")  # behind the kind, in the extended form of a format
ZERO_CROSSINGS = 32
OUTPUTS_AT_ONCE = 4096  # each of them takes a copy of as many input samples as the filter is long
KAISER_BETA = 12.0
BAND = 0.945  # of the lower rate's half that is kept
PIECE_S = 4  # read at a time


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
        more = plural(lacking, "byte")
        return there, f"{path}: its header promises {more} more than the file holds; all that is there is read"
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


@dataclass(frozen=True)
class SampleFormat:
    """How samples lie in bytes: kind PCM or FLOAT, channels side by side, bits of one sample."""

    kind: int
    channels: int
    rate_hz: int
    bits: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return self.channels * self.bits // 8


class Recording:
    """A WAV file that is read, and resampled, piece by piece: `recording[start:stop]` is float32 (samples,).

    samples: how many there are at the sample rate asked for. Channels are averaged. How long the audio is, and what is
    noted of it, `leanear.runtimes.audio.recordings` and `leanear.runtimes.audio.formats` say.

    Raises:
        BadInput: the file is missing, is not such a file, is truncated or empty; or, when a slice is read, that part of
            it cannot be read, or holds NaN or infinite samples.
    """

    def __init__(self, path: Path, sample_rate_hz: int, say: Note = note) -> None:
        self._path = Path(path)
        self._say, self._watch, self._watched = say, SignalWatch(), False
        with reading(path):
            self._stream = open(self._path, "rb")  # noqa: SIM115
            try:
                self._read_header(sample_rate_hz)
            except (BadInput, OSError):
                self._stream.close()
                raise
        self._change = RateChange(self._format.rate_hz, sample_rate_hz, PIECE_S)
        self.samples = self._change.new_samples(self._frames)

    def _read_header(self, sample_rate_hz: int) -> None:
        opening = self._stream.read(12)
        if opening[:4] != b"RIFF" or opening[8:12] != b"WAVE":
            name = format_name(opening)
            said = f"{name}, which needs an audio library; a device reads WAV" if name else "not a WAV file"
            raise BadInput(f"{self._path}: {said}; {_advice(sample_rate_hz)}")
        layout = wav_layout(self._stream, self._path)
        self._format = sample_format(layout.format, self._path, sample_rate_hz)
        if layout.note is not None:
            self._say(layout.note)
        self._data_from = layout.data_from
        # the part of a sample that a pipe may end with is left
        self._frames = layout.data_bytes // self._format.frame_bytes
        if self._frames == 0:
            raise BadInput(f"{self._path}: no audio in it (zero samples)")

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stream.close()

    def __getitem__(self, span: slice) -> np.ndarray:
        """Samples [start, stop), fewer where the recording ends."""
        start, stop = span.start, min(span.stop, self.samples)
        if stop <= start:
            return np.zeros(0, np.float32)
        per_piece = self._change.new_samples(self._change.piece)
        pieces = range(start // per_piece, -(-stop // per_piece))
        heard = np.concatenate([self._resampled_piece(piece) for piece in pieces])
        first = pieces[0] * per_piece
        return heard[start - first : stop - first]

    def _resampled_piece(self, piece: int) -> np.ndarray:
        change = self._change
        first, last = piece * change.piece, (piece + 1) * change.piece
        return change.changed(self._frames_between(first - change.context, last + change.context))

    def _frames_between(self, first: int, last: int) -> np.ndarray:
        """float32 (last - first,) at the file's own rate, silence where there is nothing; less after the end."""
        start, stop = max(first, 0), min(last, self._frames)
        frame_bytes = self._format.frame_bytes
        with reading(self._path):
            self._stream.seek(self._data_from + start * frame_bytes)
            data = self._stream.read((stop - start) * frame_bytes)
        if len(data) < (stop - start) * frame_bytes:
            raise BadInput(f"{self._path}: truncated: the file became shorter while it was read")
        samples = decoded_samples(data, self._format)
        check_samples(samples, str(self._path))
        mono = samples.mean(axis=1).astype(np.float32)
        self._watch_until_the_end(samples, mono, stop)
        after = last - stop if self._change.context else 0
        return np.pad(mono, (start - first, after)) if start > first or after else mono

    def _watch_until_the_end(self, samples: np.ndarray, mono: np.ndarray, stop: int) -> None:
        """Note, once the last sample was read, what is plainly wrong with them."""
        if self._watched:
            return
        self._watch.hear(samples, mono)
        self._watched = stop == self._frames
        if self._watched:
            for finding in self._watch.findings():
                self._say(f"{self._path}: {finding}")


def _advice(sample_rate_hz: int) -> str:
    return f"convert it with: ffmpeg -i FILE -ac 1 -ar {sample_rate_hz} clip.wav"


def sample_format(header: bytes, path: object, sample_rate_hz: int) -> SampleFormat:
    """What the chunk "fmt " of a WAV says; the rate is what an error advises to convert to.

    Raises:
        BadInput: the format is not read, or cannot be.
    """
    if len(header) < 16:
        raise BadInput(f"{path}: its WAV format is cut short")
    kind, channels = int.from_bytes(header[:2], "little"), int.from_bytes(header[2:4], "little")
    rate_hz, bits = int.from_bytes(header[4:8], "little"), int.from_bytes(header[14:16], "little")
    if kind == EXTENSIBLE and header[26:40] == EXTENDS:
        kind = int.from_bytes(header[24:26], "little")
    if (kind, bits) not in ((PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)):
        codec = (
            f"{bits}-bit {'PCM' if kind == PCM else 'floats'}"
            if kind in (PCM, FLOAT)
            else WAV_CODECS.get(kind, f"codec {kind:#06x}")
        )
        known = "PCM of 8 to 32 bits and floats of 32 or 64 are"
        raise BadInput(f"{path}: WAV of {codec} is not read, {known}; {_advice(sample_rate_hz)}")
    if channels < 1:
        raise BadInput(f"{path}: {channels} channels cannot be")
    check_sample_rate(path, rate_hz)
    return SampleFormat(kind, channels, rate_hz, bits)


def decoded_samples(data: bytes, form: SampleFormat) -> np.ndarray:
    """float64 (frames, channels), full scale at 1, of whole frames."""
    bits = form.bits
    if form.kind == FLOAT:
        samples = np.frombuffer(data, f"<f{bits // 8}").astype(np.float64)
    elif bits == 8:
        samples = (np.frombuffer(data, np.uint8).astype(np.float64) - 128) / 128
    elif bits == 24:
        parts = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.int32)
        samples = ((parts[:, 0] << 8 | parts[:, 1] << 16 | parts[:, 2] << 24) >> 8) / float(1 << 23)
    else:
        samples = np.frombuffer(data, f"<i{bits // 8}") / float(1 << (bits - 1))
    return samples.reshape(-1, form.channels)


class RateChange:
    """How audio is brought to another rate piece by piece.

    piece: input samples of one, about `piece_s` of audio; context: how many more are seen on either side of it, as many
    as the filter is long. Both are multiples of how many lie between the places where an old and a new sample meet.
    """

    def __init__(self, rate_hz: int, wanted_hz: int, piece_s: float) -> None:
        divisor = math.gcd(rate_hz, wanted_hz)
        self._rates, self._up, self._down = (rate_hz, wanted_hz), wanted_hz // divisor, rate_hz // divisor
        self.piece = max(round(piece_s * rate_hz / self._down), 1) * self._down
        reach = 0 if self._up == self._down else _half_width(self._up, self._down) + 1
        self.context = -(-reach // self._down) * self._down

    def new_samples(self, samples: int) -> int:
        """How many new samples so many old ones become."""
        return -(-samples * self._up // self._down)

    def changed(self, around: np.ndarray) -> np.ndarray:
        """The new samples, float32, of what lies between the context at either end of `around`."""
        begin = self.new_samples(self.context)
        return resampled(around, *self._rates)[begin : begin + self.new_samples(len(around) - 2 * self.context)]


def _half_width(up: int, down: int) -> int:
    """Input samples on either side that one output sample is made of."""
    return math.ceil(ZERO_CROSSINGS / (BAND * min(1.0, up / down)))


def resampled(waveform: np.ndarray, rate_hz: int, wanted_hz: int) -> np.ndarray:
    """`waveform` at another sample rate, float32: a Kaiser-windowed sinc, evaluated phase by phase."""
    if rate_hz == wanted_hz:
        return waveform
    divisor = math.gcd(rate_hz, wanted_hz)
    up, down = wanted_hz // divisor, rate_hz // divisor
    half = _half_width(up, down)
    padded = np.pad(waveform.astype(np.float64), (half, half + 1))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    out = np.zeros(-(-len(waveform) * up // down))
    for phase in range(min(up, len(out))):
        for first in range(phase, len(out), up * OUTPUTS_AT_ONCE):
            several = slice(first, first + up * OUTPUTS_AT_ONCE, up)
            moments = np.arange(*several.indices(len(out))) * down  # in 1 / up of an input sample
            out[several] = windows[moments // up] @ _filter(up, down, phase)
    return out.astype(np.float32)


@functools.lru_cache(maxsize=1024)
def _filter(up: int, down: int, phase: int) -> np.ndarray:
    """float64 (2 * half width + 1,): what input samples count for in every `up`-th output sample from `phase` on."""
    cutoff, half = BAND * min(1.0, up / down), _half_width(up, down)
    distance = np.arange(-half, half + 1) - (phase * down % up) / up
    taper = np.i0(KAISER_BETA * np.sqrt(np.maximum(0.0, 1 - (distance / (half + 1)) ** 2))) / np.i0(KAISER_BETA)
    return cutoff * np.sinc(cutoff * distance) * taper
