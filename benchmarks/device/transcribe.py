"""The words of WAV files, by an artifact on its runtime, as they are found."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

from leanear.benchmarks.device.classify import WAV_SUFFIXES
from leanear.benchmarks.device.transcript_files import is_several, recordings_of, write_transcripts
from leanear.runtimes.artifact import Artifact, read_artifact
from leanear.runtimes.audio.piped_audio import STANDARD_INPUT, PipedAudio, PipeReader, RawAudio, read_standard_input
from leanear.runtimes.audio.recordings import Recording
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.errors import BadInput
from leanear.runtimes.process.interrupts import recorder_ends_first
from leanear.runtimes.sessions import SessionOptions, SpeechSession
from leanear.runtimes.speech.decode_options import DecodeOptions, check_options, read_prompts
from leanear.runtimes.speech.many_clips import NOT_TRIED, tried_files
from leanear.runtimes.speech.speech_model import SpeechModel, demo_hint, read_speech_model, require_word_times
from leanear.runtimes.speech.subtitles import Lines
from leanear.runtimes.speech.transcript import Segment, Tally
from leanear.runtimes.voice.graph import detectors
from leanear.runtimes.voice.speech_only import AUTO, ON, Voice, transcribe_spoken


@dataclass(frozen=True)
class Piped:
    """Audio that comes through a pipe. raw: what it is, None: WAV."""

    reader: PipeReader
    raw: RawAudio | None = None


def hearing(
    session: SpeechSession,
    model: SpeechModel,
    options: DecodeOptions,
    voice: Voice,
    words: bool,
    files: Sequence[Path],
    piped: Piped | None,
    opened: Callable[..., Any],
    say: Callable[[str], None],
) -> Callable[..., Iterator[Segment]]:
    """What gives the segments of one of `files` after the other, or of a pipe: hear(file, tally, progress=...).

    words: segments have them; opened(file, rate, ...): as `tried_files` asks for, or with `progress`.
    """
    tried = replace(options, batch=1) if words or voice.choice == ON else options
    tries = tried_files(session, model, tried, files, opened)

    def hear(audio: Path, tally: Tally, **progress: Any) -> Iterator[Segment]:
        first, rate_hz = next(tries, NOT_TRIED), model.sample_rate_hz
        if piped is None:
            with first.opened() or opened(audio, rate_hz, **progress) as waveform:
                yield from transcribe_spoken(session, model, waveform, options, voice, tally, words, first.decoded)
            return
        stream = PipedAudio(piped.reader, rate_hz, piped.raw, **progress)
        tally.taken_for = piped.raw.sentence if piped.raw is not None else ""
        with recorder_ends_first(say):
            yield from transcribe_spoken(session, model, stream, options, voice, tally, words)

    return hear


def transcribe_recordings(
    folder: Path,
    given: Sequence[Path],
    runtime: str,
    session_options: SessionOptions,
    options: DecodeOptions,
    *,
    forms: Sequence[str],
    output_dir: Path | None = None,
    window: str | None = None,
    raw: RawAudio | None = None,
    vad: str = AUTO,
    word_timestamps: bool = False,
    lines: Lines | None = None,
) -> None:
    """Print or write the transcripts of WAV files of any length, of folders of them, or of standard input.

    forms: names of `subtitles.WRITERS`; output_dir: where transcripts are written, None: they are printed,
    each segment as soon as its window is decoded. window: "full", "auto" or seconds, None: the artifact's own.
    raw: what standard input is, None: WAV. vad: one of `speech_only.CHOICES`.
    word_timestamps: each segment has its words with times; lines: of subtitles that are cut between them.

    Raises:
        BadInput: a file or the artifact is not usable, or the model cannot do what the options say.
        RuntimeUnavailable: the runtime is missing.
    """
    recordings = recordings_of(given, WAV_SUFFIXES, forms, output_dir)
    piped = Piped(read_standard_input(), raw) if STANDARD_INPUT in given else None
    artifact = read_artifact(folder)
    model = read_speech_model(artifact, window)
    check_options(model.tokens, options)
    read_prompts(model.vocabulary, model.tokens, options)
    if word_timestamps:
        require_word_times(model, folder)
    session = require_runtime(runtime, session_options).load(artifact, session_options)

    if hint := demo_hint(artifact.manifest.model.get("source")):
        _say(f"note: {hint}")
    voice = Voice(vad, detectors(lambda: _voice_graph(artifact), runtime), is_live=piped is not None)
    files = [recorded.audio for recorded in recordings]
    heard = hearing(session, model, options, voice, word_timestamps, files, piped, Recording, _say)
    try:
        write_transcripts(recordings, heard, forms, _say, lines, several=is_several(given))
    finally:
        session.close()


def _voice_graph(artifact: Artifact) -> Path:
    if artifact.voice_graph is None:
        raise BadInput(f"--vad: {artifact.folder} has no voice activity model; export it again")
    return artifact.voice_graph


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
