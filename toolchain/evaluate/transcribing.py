"""The words of an audio file, as they are found, by a checkpoint in torch or by an artifact on its runtime."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from leanear.benchmarks.formatting import duration
from leanear.data.audio import check_audio_file
from leanear.data.audio_stream import AudioStream
from leanear.evaluate.speech_evaluation import open_transcriber
from leanear.families.checkpoint import checkpoint_folder
from leanear.families.tasks import is_artifact, task_of
from leanear.progress import Report, quiet
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import replaced_file
from leanear.runtimes.speech.decoding import DecodeOptions
from leanear.runtimes.speech.encoder_windows import DEFAULT_WINDOW
from leanear.runtimes.speech.long_audio import Segment, Tally, transcribe
from leanear.runtimes.speech.subtitles import WRITERS
from leanear.runtimes.tasks import SPEECH_TASK


def transcribe_file(
    audio: Path,
    model: str,
    options: DecodeOptions,
    *,
    runtime: str,
    precision: str | None,
    threads: int,
    window: str | None = None,
    tally: Tally | None = None,
    report: Report = quiet,
) -> Iterator[Segment]:
    """The segments of an audio file (WAV, FLAC, OGG, MP3, AIFF; any sample rate, length and number of channels).

    model: a checkpoint folder, a Hub id or a demo model, which run in torch; or an artifact folder, which runs on
    `runtime`. Each segment comes as soon as its window is decoded; the file is read no further than that.
    window: "full", "auto" or seconds, None: an artifact's own, or DEFAULT_WINDOW; tally: is added to.

    Raises:
        LeanearError: the audio, the model or the runtime is not usable, or the model cannot do what the options say.
    """
    own = is_artifact(Path(model))
    folder = Path(model) if own else checkpoint_folder(model)
    window = window or (None if own else DEFAULT_WINDOW)
    if task_of(folder) != SPEECH_TASK:
        raise BadInput(f"{model}: a model that classifies; `leanear classify` is for those")
    check_audio_file(audio)
    transcriber = open_transcriber(model, runtime, precision, threads, window)

    def heard(seconds: float, share: float) -> None:
        report(f"{duration(seconds)} of audio", share)

    try:
        with AudioStream(audio, transcriber.model.sample_rate_hz, progress=heard) as stream:
            yield from transcribe(transcriber.session, transcriber.model, stream, options, tally)
    finally:
        transcriber.session.close()


def write_segments(segments: Iterable[Segment], writer: str, out: Path | None, tally: Tally) -> None:
    """Write segments as one of `subtitles.WRITERS` does: to standard output as they come, or to `out`."""
    pieces = WRITERS[writer](segments, tally)
    if out is None:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        return
    with replaced_file(out) as part, open(part, "w", encoding="utf-8") as stream:
        stream.writelines(pieces)
