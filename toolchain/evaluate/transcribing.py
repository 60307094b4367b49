"""The words of audio files, as they are found, by a checkpoint in torch or by an artifact on its runtime."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from leanear.benchmarks.device.transcribe import Piped, hearing
from leanear.benchmarks.device.transcript_files import Recorded, is_several, recordings_of, write_transcripts
from leanear.benchmarks.formatting import duration
from leanear.data.audio import SUFFIXES, AudioStream, check_audio
from leanear.evaluate.speech_evaluation import Transcriber, open_transcriber
from leanear.export.whisper.voice import packaged_voice_graph
from leanear.families.checkpoint import checkpoint_folder
from leanear.families.registry import is_artifact, task_of
from leanear.progress import Narrator
from leanear.runtimes.errors import BadInput
from leanear.runtimes.manifest import MANIFEST_FILE, read_manifest
from leanear.runtimes.process.notes import note
from leanear.runtimes.speech.decode_options import DecodeOptions, check_options, read_prompts
from leanear.runtimes.speech.encoder_windows import DEFAULT_WINDOW
from leanear.runtimes.speech.speech_model import demo_hint, require_word_times
from leanear.runtimes.speech.subtitles import Lines
from leanear.runtimes.speech.transcript import Segment, Tally
from leanear.runtimes.tasks import SPEECH_TASK
from leanear.runtimes.voice.graph import detectors
from leanear.runtimes.voice.speech_only import AUTO, Voice


@contextlib.contextmanager
def speech_listener(
    model: str,
    runtime: str,
    precision: str | None,
    threads: int,
    window: str | None,
    options: DecodeOptions,
    word_timestamps: bool = False,
) -> Iterator[Transcriber]:
    """The model, loaded, until the block ends.

    model: a checkpoint folder, a Hub id or a demo model, which run in torch; or an artifact folder, which runs on
    `runtime`. window: "full", "auto" or seconds, None: an artifact's own, or DEFAULT_WINDOW.

    Raises:
        LeanearError: the model or the runtime is not usable, or the model cannot do what the options say.
    """
    own = is_artifact(Path(model))
    folder = Path(model) if own else checkpoint_folder(model)
    window = window or (None if own else DEFAULT_WINDOW)
    if task_of(folder) != SPEECH_TASK:
        raise BadInput(f"{model}: a model that classifies; `leanear classify` is for those")
    transcriber = open_transcriber(model, runtime, precision, threads, window)
    try:
        check_options(transcriber.model.tokens, options)
        read_prompts(transcriber.model.vocabulary, transcriber.model.tokens, options)
        alignment = transcriber.model.alignment
        if word_timestamps and own:
            require_word_times(transcriber.model, model)
        if word_timestamps and alignment is not None and alignment.chosen_by == "upper half":
            note(f"{model}: {alignment.sentence}")
        if hint := demo_hint(read_manifest(folder / MANIFEST_FILE).model.get("source") if own else model):
            note(hint)
        yield transcriber
    finally:
        transcriber.session.close()


def transcribe_files(
    given: Sequence[Path],
    forms: Sequence[str],
    opened: Callable[[], contextlib.AbstractContextManager[Transcriber]],
    options: DecodeOptions,
    narrator: Narrator,
    *,
    out: Path | None = None,
    output_dir: Path | None = None,
    piped: Piped | None = None,
    vad: str = AUTO,
    word_timestamps: bool = False,
    lines: Lines | None = None,
) -> None:
    """Print or write the transcripts of files, and of the audio files in folders, or of a pipe.

    forms: names of `subtitles.WRITERS`. opened: loads the model, see `speech_listener`, when it is known that
    there is something to hear. out: the file of the one transcript; output_dir: the folder of all; None: they are
    printed, each segment as soon as its window is decoded. piped: what STANDARD_INPUT stands for.
    vad: one of `speech_only.CHOICES`; word_timestamps, lines: words have times, and subtitles such lines of them.

    Raises:
        LeanearError: the audio, the model or the runtime is not usable, the model cannot do what the options say, or
            the transcripts have no place that is theirs alone.
    """
    several = is_several(given)
    if out is not None and (several or output_dir is not None):
        raise BadInput("--out: the file of one transcript; --output-dir alone is for those of several recordings")
    recordings = recordings_of(given, SUFFIXES, forms, output_dir)
    if out is not None:
        recordings = [Recorded(recordings[0].audio, {forms[0]: out})]
    if piped is None and not several:
        check_audio(recordings[0].audio)
    with narrator.whole("loading the model"), opened() as transcriber:
        session, model = transcriber.session, transcriber.model
        graphs = detectors(lambda: model.voice_graph or packaged_voice_graph(), transcriber.runtime)
        voice = Voice(vad, graphs, is_live=piped is not None)
        files = [recorded.audio for recorded in recordings]
        hear = hearing(session, model, options, voice, word_timestamps, files, piped, AudioStream, note)

        def heard(audio: Path, tally: Tally) -> Iterator[Segment]:
            named = audio.name if piped is None else "standard input"
            with narrator.whole(f"transcribing {named}") as report:
                done_s, audio_s = 0.0, math.inf

                def told(seconds: float = 0.0, share: float | None = None) -> None:
                    nonlocal audio_s  # what is read goes ahead of what is heard
                    audio_s = seconds / share if share else audio_s
                    report(f"{duration(done_s)} of audio", None if audio_s == math.inf else done_s / audio_s)

                for segment in hear(audio, tally, progress=told):
                    done_s = segment.end_s
                    told()
                    yield segment

        write_transcripts(recordings, heard, forms, narrator.say, lines, several=several)
