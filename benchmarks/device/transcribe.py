"""The words of a WAV file, by an artifact on its runtime, as they are found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Iterator

from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.audio.recordings import Recording
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.cues import Lines
from leanear.runtimes.speech.decoding import DecodeOptions
from leanear.runtimes.speech.long_audio import Segment, Tally, read_speech_model, require_word_times, transcribe
from leanear.runtimes.speech.subtitles import WRITERS


def transcribe_recording(
    folder: Path,
    audio: Path,
    runtime: str,
    session_options: SessionOptions,
    options: DecodeOptions,
    window: str | None = None,
    tally: Tally | None = None,
    word_timestamps: bool = False,
) -> Iterator[Segment]:
    """The segments of a WAV file of any length, each as soon as its window is decoded.

    window: "full", "auto" or seconds, None: the artifact's own; tally: is added to; word_timestamps: each
    segment has its words with times.

    Raises:
        BadInput: the file or the artifact is not usable, or the model cannot do what the options say.
        RuntimeUnavailable: the runtime is missing.
    """
    artifact = read_artifact(folder)
    model = read_speech_model(artifact, window)
    if word_timestamps:
        require_word_times(model, folder)
    with Recording(audio, artifact.sample_rate_hz) as recording:
        session = require_runtime(runtime, session_options).load(artifact, session_options)
        try:
            yield from transcribe(session, model, recording, options, tally, word_timestamps)
        finally:
            session.close()


def print_segments(segments: Iterator[Segment], writer: str, tally: Tally, lines: Lines | None = None) -> None:
    """Print segments as one of `leanear.runtimes.speech.subtitles.WRITERS` does, piece by piece."""
    for piece in WRITERS[writer](segments, tally, lines):
        sys.stdout.write(piece)
        sys.stdout.flush()
