"""Audio files as mono waveforms of the sample rate that a model wants."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
import soundfile
import soxr

from leanear.data.file_part import FilePart, ogg_links, wav_part
from leanear.runtimes.audio.formats import check_sample_rate, check_samples, format_name
from leanear.runtimes.audio.wav_layout import wav_layout
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import reading
from leanear.runtimes.process.notes import Note, note
from leanear.runtimes.process.signal_watch import SignalWatch

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


class _Sequential(soundfile.SoundFile):
    """A sound file that is only read on: the position is never asked for, which not every codec knows."""

    def seekable(self) -> bool:
        return False


class AudioFile:
    """The clip in a file, mono float32 in order, block after block: `read(frames)` gives fewer once it has ended.

    How much audio a WAV file holds, `leanear.runtimes.audio.wav_layout` decides, as on a device; chained OGG is read to
    its end. The frame counts of libsndfile are not relied on. say: takes what a user should know of the file.

    Raises:
        BadInput: the file is missing, cannot be read or is not audio; or, where the reading comes to it, is empty,
            truncated or damaged, or holds NaN or infinite samples.
    """

    def __init__(self, path: Path, say: Note = note) -> None:
        self.path = Path(path)
        self._say, self._watch, self._ended = say, SignalWatch(), False
        with reading(self.path):
            check_audio_file(self.path)
            self._stream = open(self.path, "rb")  # noqa: SIM115
            try:
                self._parts = self._divided()
                self._sound = self._open_next()
                self.sample_rate_hz = int(self._sound.samplerate)
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
            links, is_whole = ogg_links(self._stream)
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


def check_audio_file(path: Path) -> None:
    """Nothing, where `path` is a file.

    Raises:
        BadInput: it is a folder, or not there.
    """
    if path.is_dir():
        raise BadInput(f"{path}: a folder; one audio file is wanted")
    if not path.is_file():
        raise BadInput(f"{path}: no such file")


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
