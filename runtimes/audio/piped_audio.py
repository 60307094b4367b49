"""Audio that comes through a pipe, WAV or raw PCM, as a waveform that is heard while it is still being recorded.

Bytes are read on while others are worked on: a recorder does not wait, it drops what nobody takes.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np

from leanear.runtimes.audio.formats import SignalWatch, check_sample_rate, check_samples, format_name, magic_name
from leanear.runtimes.audio.recordings import (
    CHUNK_HEADER_BYTES,
    PCM,
    RateChange,
    SampleFormat,
    decoded_samples,
    is_placeholder,
    sample_format,
)
from leanear.runtimes.audio.waveforms import ForwardWaveform
from leanear.runtimes.errors import BadInput
from leanear.runtimes.process.notes import Note, note, plural

NAME, STANDARD_INPUT = "standard input", Path("-")
BLOCK_BYTES = 2**14
MOST_BLOCKS = 256  # 4 MB: two minutes of 16-bit audio at 16 kHz
PIECE_S = 0.1  # of audio, which is what a window may be told of too late
DEFAULT_RATE_HZ = 16_000
BIGGEST_CHUNK = 2**20  # of a WAV's header


class PipeReader:
    """What comes through a file descriptor, in order.

    A thread takes it as it comes, and waits while MOST_BLOCKS are not yet asked for; so does whoever writes, then.

    Raises:
        BadInput: it is a terminal.
    """

    def __init__(self, descriptor: int) -> None:
        if os.isatty(descriptor):
            raise BadInput(
                f"{NAME}: a terminal; pipe audio into it, as in: arecord -f S16_LE -r 16000 -c 1 | leanear transcribe -"
            )
        self._blocks: queue.Queue[bytes | OSError] = queue.Queue(MOST_BLOCKS)
        self._rest, self._ended = b"", False
        threading.Thread(target=self._take, args=(descriptor,), daemon=True).start()

    def read(self, size: int) -> bytes:
        """The next bytes, fewer where the pipe was closed; waits for them.

        Raises:
            OSError: the system could not read.
        """
        parts, held = [self._rest], len(self._rest)
        while held < size and not self._ended:
            block = self._blocks.get()
            if isinstance(block, OSError):
                raise block
            self._ended = not block
            parts.append(block)
            held += len(block)
        joined = b"".join(parts)
        self._rest = joined[size:]
        return joined[:size]

    def peek(self, size: int) -> bytes:
        """The next bytes, as `read` gives them, which stay to be read."""
        self._rest = self.read(size) + self._rest
        return self._rest[:size]

    def _take(self, descriptor: int) -> None:
        try:
            while True:
                block = os.read(descriptor, BLOCK_BYTES)
                self._blocks.put(block)
                if not block:
                    return
        except OSError as error:
            self._blocks.put(error)


def read_standard_input() -> PipeReader:
    """Standard input, read from now on: a recorder does not wait until a model is loaded.

    Raises:
        BadInput: there is none, or it is a terminal.
    """
    try:
        return PipeReader(sys.stdin.fileno())
    except (AttributeError, OSError, ValueError):
        raise BadInput(f"{NAME}: there is none") from None


@dataclass(frozen=True)
class RawAudio:
    """What headerless PCM is: signed 16-bit little-endian samples, channel after channel.

    Raises:
        BadInput: no audio is of that rate, or of so many channels.
    """

    rate_hz: int
    channels: int = 1

    def __post_init__(self) -> None:
        check_sample_rate("--rate", self.rate_hz)
        if self.channels < 1:
            raise BadInput(f"--channels: {self.channels} channels cannot be")

    @property
    def sentence(self) -> str:
        """What to see to where nothing was heard."""
        return f" in what was taken for {self.rate_hz} Hz, channels: {self.channels} (see --rate and --channels)"


class PipedAudio(ForwardWaveform):
    """Audio from a pipe, as `long_audio.Waveform`: a slice is float32 (samples,) at the rate asked.

    Channels are averaged, another rate is changed piece by piece as `recordings.Recording` does. A slice is
    waited for until it has come or the pipe is closed; none may start before an earlier one did. A WAV header's length
    that is no number yet, as recorders write it, is not believed. progress: called with the seconds before a slice.

    Raises:
        BadInput: what comes is neither WAV nor promised to be raw, or is of no known format; or, where the reading
            comes to it, there is no sample, or a NaN or infinite one.
    """

    def __init__(
        self,
        reader: PipeReader,
        sample_rate_hz: int,
        raw: RawAudio | None = None,
        say: Note = note,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        super().__init__()
        self._say, self._progress, self._watch = say, progress, SignalWatch()
        self._reader, self._wanted_hz = reader, sample_rate_hz
        self._left: int | None = None  # bytes of audio that are still to come, None: as many as come
        self._format = self._header(sample_rate_hz) if raw is None else self._headerless(raw)
        self._change = RateChange(self._format.rate_hz, sample_rate_hz, PIECE_S)
        context = self._change.context
        self._frames, self._frames_from = np.zeros(context, np.float32), -context  # silence before
        self._closed = False
        self._next_piece = 0

    def __getitem__(self, span: slice) -> np.ndarray:
        """Samples [start, stop), fewer where the audio ends."""
        if self._progress is not None:
            self._progress(span.start / self._wanted_hz)
        return super().__getitem__(span)

    def _read_on(self) -> np.ndarray:
        """The next piece at the rate asked for; the last one is shorter."""
        context, first = self._change.context, self._next_piece * self._change.piece
        last = first + self._change.piece
        self._read_frames_to(last + context)
        self._next_piece += 1
        around = self._frames[first - context - self._frames_from :][: last - first + 2 * context]
        there = self._frames_from + len(self._frames)  # frames in all, once the pipe is closed
        self._ended = self._closed and there <= last
        frames = min(last, there) - first
        if frames <= 0:
            return np.zeros(0, np.float32)
        around = np.pad(around, (0, last - first + 2 * context - len(around)))
        piece = self._change.changed(around)[: self._change.new_samples(frames)]
        kept_from = max(last - context, self._frames_from)
        self._frames = self._frames[kept_from - self._frames_from :]
        self._frames_from = kept_from
        return piece

    def _read_frames_to(self, stop: int) -> None:
        lacking = stop - self._frames_from - len(self._frames)
        if self._closed or lacking <= 0:
            return
        wanted = lacking * self._format.frame_bytes
        wanted = wanted if self._left is None else min(wanted, self._left)
        data = self._reader.read(wanted)
        if self._left is not None:
            self._left -= len(data)
        self._closed = len(data) < lacking * self._format.frame_bytes
        partial = len(data) % self._format.frame_bytes
        if partial:
            data = data[:-partial]
            self._say(f"{NAME}: it ends within a sample, of which {plural(partial, 'byte')} came; they are not heard")
        samples = decoded_samples(data, self._format)
        check_samples(samples, NAME)
        mono = samples.mean(axis=1).astype(np.float32)
        self._watch.hear(samples, mono)
        self._frames = np.concatenate([self._frames, mono])
        if self._closed:
            if self._frames_from + len(self._frames) == 0:
                raise BadInput(f"{NAME} held no audio")
            self._say_what_was_found()

    def _say_what_was_found(self) -> None:
        for finding in self._watch.findings():
            self._say(f"{NAME}: {finding}")
        if self._left:
            self._say(f"{NAME}: its header promises {self._left:,} bytes more than came; all that came is read")
        elif self._left == 0:
            behind = self._reader.read(CHUNK_HEADER_BYTES)
            if len(behind) > 1 and not all(0x20 <= letter < 0x7F for letter in behind[:4]):
                self._say(f"{NAME}: what follows the audio that its header promises is not read")

    def _headerless(self, raw: RawAudio) -> SampleFormat:
        """The format of raw PCM, after a word on what begins as a file with a header does."""
        opening = self._reader.peek(12)
        name = "WAV" if opening.startswith(b"RIFF") else magic_name(opening)
        if name is not None:
            self._say(f"{NAME}: it begins as {name} does; --raw hears all bytes as PCM, which is noise if it is that")
        return SampleFormat(PCM, raw.channels, raw.rate_hz, 16)

    def _header(self, sample_rate_hz: int) -> SampleFormat:
        """The format of a WAV whose audio comes next."""
        opening = self._reader.read(12)
        if not opening:
            raise BadInput(f"{NAME} held no audio")
        if opening[:4] != b"RIFF" or opening[8:] != b"WAVE":
            name = format_name(opening.ljust(12))
            raise BadInput(
                f"{NAME}: {name or 'not WAV'}; WAV is read from a pipe, as ffmpeg -i FILE -f wav - writes it, or PCM of"
                " 16 bits with --raw"
            )
        found = None
        while len(head := self._reader.read(CHUNK_HEADER_BYTES)) == CHUNK_HEADER_BYTES:
            chunk, size = head[:4], int.from_bytes(head[4:], "little")
            if chunk == b"data" and found is not None:
                self._left = None if size == 0 or is_placeholder(size) else size
                return found
            if chunk == b"data" or size > BIGGEST_CHUNK:
                break
            content = self._reader.read(size + size % 2)
            if chunk == b"fmt ":
                found = sample_format(content[:size], NAME, sample_rate_hz)
        raise BadInput(f"{NAME}: a WAV file without a format or without audio")


def raw_audio(is_raw: bool, is_piped: bool, rate_hz: int | None, channels: int | None) -> RawAudio | None:
    """What --raw, --rate and --channels say; None: there is a WAV header. is_piped: standard input is what is heard.

    Raises:
        BadInput: the flags do not go together, or are out of range.
    """
    if is_raw and not is_piped:
        raise BadInput("--raw: of standard input alone, whose name is -; files have headers")
    if not is_raw and (rate_hz is not None or channels is not None):
        raise BadInput("--rate and --channels are of --raw; a header says both")
    if not is_raw:
        return None
    return RawAudio(DEFAULT_RATE_HZ if rate_hz is None else rate_hz, 1 if channels is None else channels)
