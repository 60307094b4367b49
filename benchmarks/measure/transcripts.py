"""Transcripts of every evaluation clip, by the very artifact on its runtime; interrupted work is continued."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanear.benchmarks.measure.accuracy import answer_the_rest, check_clips
from leanear.benchmarks.measure.processes import Progress, answer_request
from leanear.runtimes.artifact import Artifact, read_artifact
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.clips import Clips, read_clips
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_json, write_json
from leanear.runtimes.sessions import SessionOptions, SpeechSession
from leanear.runtimes.speech.decode_options import DecodeOptions, check_options
from leanear.runtimes.speech.decoding import Decoded
from leanear.runtimes.speech.long_audio import transcribe
from leanear.runtimes.speech.speech_model import SpeechModel, read_speech_model
from leanear.runtimes.speech.tokens.repeats import compression_ratio
from leanear.runtimes.speech.transcript import Tally

TRANSCRIPTS_SCHEMA = "leanear-transcripts-1"


@dataclass(frozen=True)
class Transcript:
    """What one clip was heard to say.

    language: in which, as a code; None of silence, or where the model knows but one. tokens: how many were decoded;
    seconds: how long that took, encoder included. windows: how many were decoded; second_tries: of them, once more.
    """

    text: str
    language: str | None
    tokens: int
    compression_ratio: float
    seconds: float
    windows: int = 0
    second_tries: int = 0


def evaluation_options(longest_s: float, window_s: float) -> DecodeOptions:
    """Greedy decoding with no fallback, no test for silence and no protection from loops: what the model itself says.

    But what has too short a text is heard again. Timestamps are asked for only where clips are longer than a window.
    """
    return DecodeOptions(
        timestamps=longest_s > window_s,
        temperatures=(0.0,),
        compression_ratio_limit=None,
        log_probability_limit=None,
        no_speech_limit=None,
        stop_repeats=False,
    )


def options_for(artifact: Artifact, clips: Clips, asked: dict[str, str]) -> DecodeOptions:
    """`evaluation_options` of these clips; asked: "task" and "language", where not the artifact's own.

    Raises:
        BadInput: the artifact does not have them.
    """
    decoding = artifact.speech.decoding
    longest_s = max(len(waveform) for waveform in clips.waveforms) / clips.sample_rate_hz
    options = evaluation_options(longest_s, decoding.window_s)
    options = dataclasses.replace(options, task=asked.get("task"), language=asked.get("language"))
    check_options(decoding, options)
    return options


def transcribe_clip(
    session: SpeechSession,
    model: SpeechModel,
    waveform: np.ndarray,
    options: DecodeOptions,
    first_try: Decoded | None = None,
) -> Transcript:
    """The transcript of one clip of any length; first_try: what was heard in it already, see `first_tries`."""
    start, tally = time.perf_counter(), Tally()
    segments = list(transcribe(session, model, waveform, options, tally, first_try=first_try))
    text = "".join(segment.text for segment in segments).strip()
    return Transcript(
        text=text,
        language=segments[0].language if segments else None,
        tokens=sum(len(segment.tokens) for segment in segments),
        compression_ratio=round(compression_ratio(text), 4),
        seconds=round(time.perf_counter() - start, 6),
        windows=tally.windows,
        second_tries=tally.heard_again,
    )


def measure_transcripts(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """How many clips have their transcripts in the file `request["transcripts"]`: all of them.

    request: artifact (folder), runtime, threads, precision, window (a choice, null: the artifact's own), clips (.npz),
    transcripts (.json; what it holds is kept), asked (as for `options_for`; may be missing).
    """
    artifact = read_artifact(Path(request["artifact"]))
    clips = read_clips(Path(request["clips"]))
    check_clips(artifact, clips, Path(request["clips"]))
    options = options_for(artifact, clips, request.get("asked", {}))
    store = Path(request["transcripts"])
    done = list(read_transcripts(store))
    if len(done) < len(clips):
        session_options = SessionOptions(threads=request["threads"], precision=request["precision"])
        model = read_speech_model(artifact, request["window"])
        session = require_runtime(request["runtime"], session_options).load(artifact, session_options)
        answer_the_rest(
            clips,
            done,
            lambda waveform: transcribe_clip(session, model, waveform, options),
            lambda: write_json(store, {"schema": TRANSCRIPTS_SCHEMA, "rows": [*map(dataclasses.asdict, done)]}),
            progress,
        )
        session.close()
    return {"clips": len(done)}


def read_transcripts(path: Path) -> tuple[Transcript, ...]:
    """The transcripts in `path` so far; none if there is no whole file."""
    try:
        rows = read_json(path, TRANSCRIPTS_SCHEMA, ("rows",))["rows"]
        return tuple(Transcript(**row) for row in rows)
    except (BadInput, TypeError):
        return ()


if __name__ == "__main__":
    answer_request(measure_transcripts)
