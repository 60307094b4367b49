"""The words of WAV files, by an artifact on its runtime, as they are found."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Iterator, Sequence

from leanear.benchmarks.device.classify import WAV_SUFFIXES
from leanear.benchmarks.device.transcript_files import is_several, recordings_of, write_transcripts
from leanear.runtimes.artifact import Artifact, read_artifact
from leanear.runtimes.audio.piped_audio import STANDARD_INPUT, PipedAudio, RawAudio, read_standard_input
from leanear.runtimes.audio.recordings import Recording
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.errors import BadInput
from leanear.runtimes.process.interrupts import recorder_ends_first
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.decode_options import DecodeOptions, check_options, read_prompts
from leanear.runtimes.speech.many_clips import tried_files
from leanear.runtimes.speech.speech_model import demo_hint, read_speech_model, require_word_times
from leanear.runtimes.speech.subtitles import Lines
from leanear.runtimes.speech.transcript import Segment, Tally
from leanear.runtimes.voice.graph import detectors
from leanear.runtimes.voice.speech_only import AUTO, ON, Voice, transcribe_spoken


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
    piped = read_standard_input() if STANDARD_INPUT in given else None
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
    tried = replace(options, batch=1) if word_timestamps or vad == ON else options
    tries = tried_files(session, model, tried, [recorded.audio for recorded in recordings], Recording)

    def heard(audio: Path, tally: Tally) -> Iterator[Segment]:
        tried = next(tries)
        if piped is not None:
            stream = PipedAudio(piped, artifact.sample_rate_hz, raw)
            tally.taken_for = raw.sentence if raw is not None else ""
            with recorder_ends_first(_say):
                yield from transcribe_spoken(session, model, stream, options, voice, tally, word_timestamps)
            return
        with tried.opened() or Recording(audio, artifact.sample_rate_hz) as recording:
            given = session, model, recording, options, voice, tally, word_timestamps
            yield from transcribe_spoken(*given, first_try=tried.decoded)

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
