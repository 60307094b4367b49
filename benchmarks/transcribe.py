"""The words of a WAV file, by an artifact on its runtime, as they are found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Iterator

from runtimes.artifact import read_artifact
from runtimes.choose import require_runtime
from runtimes.decoding import DecodeOptions
from runtimes.long_audio import Segment, read_speech_model, transcribe
from runtimes.recordings import Recording
from runtimes.sessions import SessionOptions
from runtimes.subtitles import WRITERS


def transcribe_recording(
    folder: Path, audio: Path, runtime: str, session_options: SessionOptions, options: DecodeOptions
) -> Iterator[Segment]:
    """The segments of a WAV file of any length, each as soon as its window is decoded.

    Raises:
        BadInput: the file or the artifact is not usable, or the model cannot do what the options say.
        RuntimeUnavailable: the runtime is missing.
    """
    artifact = read_artifact(folder)
    model = read_speech_model(artifact)
    with Recording(audio, artifact.sample_rate_hz) as recording:
        session = require_runtime(runtime, session_options).load(artifact, session_options)
        try:
            yield from transcribe(session, model, recording, options)
        finally:
            session.close()


def print_segments(segments: Iterator[Segment], writer: str) -> None:
    """Print segments as one of `runtimes.subtitles.WRITERS` does, piece by piece."""
    for piece in WRITERS[writer](segments):
        sys.stdout.write(piece)
        sys.stdout.flush()
