"""Audio files as mono waveforms of the sample rate that a model wants: whole, or read as far as they are asked for."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from leanear.runtimes.audio.formats import SignalWatch, check_sample_rate, check_samples, format_name
from leanear.runtimes.audio.recordings import WavLayout, wav_layout
from leanear.runtimes.audio.waveforms import ForwardWaveform
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import reading
from leanear.runtimes.process.notes import Note, note

SUFFIXES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf",
    ".w64", ".rf64", ".mp2", ".sph", ".nist", ".voc",
)  # fmt: skip
UNREAD_SUFFIXES = (
    ".m4a", ".mp4", ".aac", ".wma", ".webm", ".mka", ".amr", ".3gp", ".ape", ".wv",
)  # fmt: skip
BLOCK_FRAMES = 2**16
UNKNOWN_FRAMES = 2**62  # libsndfile's count where a FLAC does not say, and more
COUNTED_ELSEWHERE = ("WAV", "WAVEX", "MP3")  # formats whose frame count is no promise, or is kept by wav_layout
LARGEST_SIZE = 2**32 - 1
NOT_HERE = b"\xff\xff\xff\xff"  # in place of a size that an RF64 file has in its chunk "ds64"
OGG_HEADER_BYTES, OGG_SEGMENTS_AT = 27, 26
OGG_BEGINS, OGG_ENDS = 2, 4  # flags of a stream's first page and of its last
BLOCK_S = 1.0


class FilePart:
    """A stretch of a file as one of its own: a head, and behind it the bytes [start, stop) of a stream that can seek.

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


class _Sequential(soundfile.SoundFile):
    """A sound file that is only read on: the position is never asked for, which not every codec knows."""

    def seekable(self) -> bool:
        return False


class AudioFile:
    """The clip in a file, mono float32 in order, block after block: `read(frames)` gives fewer once it has ended.

    How much audio a WAV file holds, `leanear.runtimes.audio.recordings` decides, as on a device; chained OGG is read to
    its end. frames: how many libsndfile says there are, infinite where it does not know; that is not relied on. say:
    takes what a user should know of the file.

    Raises:
        BadInput: the file is missing, cannot be read or is not audio; or, where the reading comes to it, is empty,
            truncated or damaged, or holds NaN or infinite samples.
    """

    def __init__(self, path: Path, say: Note = note) -> None:
        self.path = Path(path)
        self._say, self._watch, self._ended = say, SignalWatch(), False
        with reading(self.path):
            if self.path.is_dir():
                raise BadInput(f"{path}: a folder; one audio file is wanted")
            if not self.path.is_file():
                raise BadInput(f"{path}: {'no regular file' if self.path.exists() else 'no such file'}")
            self._stream = open(self.path, "rb")  # noqa: SIM115
            try:
                self._parts = self._divided()
                self._sound = self._open_next()
                self.sample_rate_hz = int(self._sound.samplerate)
                is_known = not self._parts and self._sound.format != "MP3" and self._sound.frames < UNKNOWN_FRAMES
                self.frames = self._sound.frames if is_known else math.inf
                check_sample_rate(self.path, self.sample_rate_hz)
            except (BadInput, OSError):
                self._stream.close()
                raise

    def __enter__(self) -> AudioFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._sound.close()
        self._stream.close()

    @property
    def share_read(self) -> float:
        """How much of the file's bytes was read so far, 0 to 1."""
        return self._stream.tell() / max(self.path.stat().st_size, 1)

    def read(self, frames: int) -> np.ndarray:
        """The next frames, channels averaged."""
        blocks, wanted = [np.zeros(0, np.float32)], frames
        while wanted > 0 and not self._ended:
            block = self._read_part(wanted)
            wanted -= len(block)
            blocks.append(block)
            if len(block) == 0:
                self._end_part()
        return np.concatenate(blocks)

    def _divided(self) -> list[FilePart]:
        """What libsndfile is to read, in turn, headers mended."""
        opening = self._stream.read(12)
        size = self.path.stat().st_size
        if opening[:4] == b"OggS":
            links, is_whole = _ogg_links(self._stream)
            if not is_whole:
                self._say(f"{self.path}: the OGG stream in it has no end, perhaps it was cut; what is there is read")
            return [FilePart(self._stream, start, stop) for start, stop in links]
        if opening[:4] != b"RIFF" or opening[8:12] != b"WAVE":
            return [FilePart(self._stream, 0, size)]
        layout = wav_layout(self._stream, self.path)
        if layout.note is not None:
            self._say(layout.note)
        return [wav_part(self._stream, layout)]

    def _open_next(self) -> _Sequential:
        self._frames_read, self._part = 0, self._parts.pop(0)
        try:
            return _Sequential(self._part)
        except soundfile.LibsndfileError as error:
            raise BadInput(f"{self.path}: {self._part.failed or self._why_not(error)}") from None

    def _why_not(self, error: soundfile.LibsndfileError) -> str:
        self._stream.seek(0)
        name = format_name(self._stream.read(12))
        if self.path.suffix.lower() in UNREAD_SUFFIXES or (name is not None and error.code == 1):
            said = name or self.path.suffix[1:].upper()
            return f"{said} is not read; convert it with: ffmpeg -i FILE clip.flac"
        return f"not readable as audio ({error.error_string.strip()})"

    def _read_part(self, frames: int) -> np.ndarray:
        try:
            samples = self._sound.read(frames, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise BadInput(f"{self.path}: damaged ({error.error_string.strip()})") from None
        finally:
            if self._part.failed:
                raise BadInput(f"{self.path}: {self._part.failed}")
        self._frames_read += len(samples)
        check_samples(samples, str(self.path))
        mono = samples.mean(axis=1, dtype=np.float32)
        self._watch.hear(samples, mono)
        return mono

    def _end_part(self) -> None:
        """Go on with the next part, or, at the end, note what was found."""
        promised = self._sound.frames
        if self._sound.format not in COUNTED_ELSEWHERE and self._frames_read < promised < UNKNOWN_FRAMES:
            raise BadInput(f"{self.path}: truncated: the file ends before the audio that its header promises")
        if not self._parts:
            self._ended = True
            if not self._watch.frames:
                raise BadInput(f"{self.path}: no audio in it (zero samples)")
            for finding in self._watch.findings():
                self._say(f"{self.path}: {finding}")
            return
        self._sound.close()
        self._sound = self._open_next()
        if self._sound.samplerate != self.sample_rate_hz:
            raise BadInput(
                f"{self.path}: OGG chained of {self.sample_rate_hz} and {self._sound.samplerate} Hz; convert it to one"
            )


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


def _ogg_links(stream: BinaryIO) -> tuple[list[tuple[int, int]], bool]:
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


def check_audio(path: Path) -> None:
    """Raises BadInput where the beginning of the file already says that it cannot be read as audio."""
    AudioFile(path, say=lambda _: None).close()


def read_waveform(path: Path, sample_rate_hz: int, say: Note = note) -> np.ndarray:
    """The clip in `path`, float32 (samples,): channels averaged, resampled (soxr, high quality) if its rate differs.

    say: takes what a user should know of the file.

    Raises:
        BadInput: the file is missing, is not audio, is truncated or empty, or holds NaN or infinite samples.
    """
    path = Path(path)
    with AudioFile(path, say) as audio:
        rate_hz, blocks = audio.sample_rate_hz, [audio.read(BLOCK_FRAMES)]
        while len(blocks[-1]) == BLOCK_FRAMES:
            blocks.append(audio.read(BLOCK_FRAMES))
    mono = np.concatenate(blocks)
    if rate_hz != sample_rate_hz:
        mono = soxr.resample(mono, rate_hz, sample_rate_hz)
    if len(mono) == 0:
        raise BadInput(f"{path}: no audio left at {sample_rate_hz} Hz: it is shorter than one sample")
    return np.ascontiguousarray(mono, dtype=np.float32)


class AudioStream(ForwardWaveform):
    """The clip in `path`, as `runtimes.speech.long_audio.Waveform`: a slice is float32 (samples,) at `sample_rate_hz`.

    Channels are averaged; the rate is changed by soxr, high quality, as `leanear.data.audio.read_waveform` does. No
    slice may start before an earlier one did: what is behind is let go. progress: called with the seconds of audio
    before a slice, and with what share of all of it that is, by the bytes that were read. samples: how many there are
    at that rate, by the file's header; infinite where it does not say.

    Raises:
        BadInput: as `leanear.data.audio.AudioFile`, whose notes are these, too.
    """

    def __init__(
        self, path: Path, sample_rate_hz: int, say: Note = note, progress: Callable[[float, float], None] | None = None
    ) -> None:
        super().__init__()
        self._file, self._progress, self._out_rate_hz = AudioFile(path, say), progress, sample_rate_hz
        rate_hz = self._file.sample_rate_hz
        self._block = max(round(BLOCK_S * rate_hz), 1)
        self.samples = self._file.frames * sample_rate_hz / rate_hz
        self._resampler = None
        if rate_hz != sample_rate_hz:
            self._resampler = soxr.ResampleStream(rate_hz, sample_rate_hz, 1, dtype="float32")

    def __enter__(self) -> AudioStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def __getitem__(self, span: slice) -> np.ndarray:
        """Samples [start, stop), fewer where the audio ends."""
        heard = super().__getitem__(span)
        if not len(heard) and not span.start:
            raise BadInput(f"{self._file.path}: no audio left at {self._out_rate_hz} Hz: it is shorter than one sample")
        held = span.start + len(self._kept)
        if self._progress is not None and held:
            self._progress(span.start / self._out_rate_hz, self._file.share_read * span.start / held)
        return heard

    def _read_on(self) -> np.ndarray:
        mono = self._file.read(self._block)
        self._ended = len(mono) < self._block
        return mono if self._resampler is None else self._resampler.resample_chunk(mono, last=self._ended)
