"""Word error rates by a checkpoint in torch or an artifact on its runtime, through the device's own decoding."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from leanear.benchmarks.measure.transcripts import Transcript, evaluation_options, transcribe_clip
from leanear.benchmarks.results import Results, read_results, write_results
from leanear.benchmarks.results_document import DecodingFacts, ErrorCounts, Transcripts, WordErrors
from leanear.benchmarks.speech_analysis import LOOP_COMPRESSION_RATIO
from leanear.benchmarks.summary import word_error_rate
from leanear.data.word_errors import choose_normaliser, count_word_errors
from leanear.families.asked import Asked
from leanear.families.checkpoint import NOTHING_ASKED, checkpoint_folder, load_checkpoint
from leanear.families.registry import is_artifact, read_spellings
from leanear.progress import Report
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.clips import Clips
from leanear.runtimes.errors import BadInput
from leanear.runtimes.manifest import Decoding
from leanear.runtimes.records import as_json
from leanear.runtimes.sessions import SessionOptions, SpeechSession, check_several, own_precision
from leanear.runtimes.speech.decode_options import DETECT, DecodeOptions
from leanear.runtimes.speech.encoder_windows import FULL
from leanear.runtimes.speech.first_tries import first_tries
from leanear.runtimes.speech.long_audio import single_window
from leanear.runtimes.speech.speech_model import SpeechModel, read_speech_model

if TYPE_CHECKING:
    from leanear.families.whisper import WhisperCheckpoint


@dataclass(frozen=True)
class Transcriber:
    """Something that writes down speech. spellings: for Whisper's normaliser, or None where the model brings none."""

    runtime: str
    session: SpeechSession
    model: SpeechModel
    spellings: dict[str, str] | None


def open_transcriber(
    model_or_artifact: str, runtime: str, precision: str | None, threads: int, window: str | None = None
) -> Transcriber:
    """A transcriber for a speech artifact, on `runtime`, or for a checkpoint, in torch, on a GPU if there is one.

    precision: None: what the artifact's graphs are of. window: "full", "auto" or seconds; None: the artifact's own, or
    of a checkpoint the full one.

    Raises:
        BadInput: it is neither.
        RuntimeUnavailable: the runtime is not installed here.
    """
    folder = Path(model_or_artifact)
    if is_artifact(folder):
        artifact = read_artifact(folder)
        options = SessionOptions(threads=threads, precision=precision or own_precision(artifact, runtime))
        session = require_runtime(runtime, options).load(artifact, options)
        return Transcriber(runtime, session, read_speech_model(artifact, window), read_spellings(folder))
    require_torch(runtime, precision)
    import torch

    from leanear.accelerator import accelerator
    from leanear.evaluate.torch_speech import TorchSpeechSession, speech_model

    folder = checkpoint_folder(model_or_artifact)
    checkpoint = cast("WhisperCheckpoint", load_checkpoint(folder))  # the one family that writes down speech
    torch.set_num_threads(threads)
    checkpoint.model.to(accelerator())
    model = speech_model(checkpoint, window or FULL)
    return Transcriber("torch", TorchSpeechSession(checkpoint), model, read_spellings(folder))


def require_torch(runtime: str, precision: str | None) -> None:
    """Raises BadInput where a checkpoint was asked to run elsewhere than in torch, or otherwise than in fp32."""
    for flag, given, same in (("runtime", runtime, ("torch", "onnxruntime")), ("precision", precision, (None, "fp32"))):
        if given not in same:
            raise BadInput(f"--{flag} {given} is for artifacts; a checkpoint runs in torch, in fp32")


def evaluate_clips(
    transcriber: Transcriber, clips: Clips, report: Report, asked: Asked = NOTHING_ASKED, batch: int = 1
) -> dict[str, Any]:
    """The word error rate on transcribed clips with its bootstrap interval, and what it was counted from; stable keys.

    batch: how many clips are decoded together; seconds: that all of them took, of which reading files is no part.
    The interval is None where every resample of the clips has the same rate, as where there is no error at all.

    Raises:
        BadInput: the clips have no transcripts, or no word in them, or the model has no such task or language.
    """
    if clips.texts is None:
        raise BadInput("the clips have labels and no transcripts")
    longest_s = max(len(waveform) for waveform in clips.waveforms) / clips.sample_rate_hz
    options = evaluation_options(longest_s, transcriber.model.tokens.window_s)
    options = replace(options, task=asked.task, language=asked.language, batch=batch)
    transcripts = _transcripts(transcriber, clips, options, report)
    written = written_language(transcriber.model.tokens, asked, [each.language for each in transcripts])
    normaliser = choose_normaliser(written, transcriber.spellings)
    counted = count_word_errors(clips.texts, [each.text for each in transcripts], normaliser)
    rate = word_error_rate(counted.errors, counted.reference_words)
    return {
        "word_error_rate": rate.estimate,
        "word_error_rate_interval_95": [rate.low, rate.high] if rate.has_spread else None,
        "metric": counted.metric,
        "reference_words": sum(counted.reference_words),
        "substitutions": sum(counted.substitutions),
        "deletions": sum(counted.deletions),
        "insertions": sum(counted.insertions),
        "windows": sum(each.windows for each in transcripts),
        "second_tries": sum(each.second_tries for each in transcripts),
        "loops": sum(each.compression_ratio > LOOP_COMPRESSION_RATIO for each in transcripts),
        "batch": batch,
        "seconds": sum(each.seconds for each in transcripts),
        "audio_s": sum(len(waveform) for waveform in clips.waveforms) / clips.sample_rate_hz,
        "asked": asked.as_json(),
    }


def _transcripts(transcriber: Transcriber, clips: Clips, options: DecodeOptions, report: Report) -> list[Transcript]:
    """What is heard in every clip, in the order of the clips."""
    session, model = transcriber.session, transcriber.model
    check_several(options.batch, session.takes_several)
    order = sorted(range(len(clips)), key=lambda number: len(clips.waveforms[number]))
    windows = (single_window(model, clips.waveforms[number]) for number in order)
    found: dict[int, Transcript] = {}
    start = time.perf_counter()
    for number, (_, first_try) in zip(order, first_tries(session, model, options, windows), strict=True):
        transcript = transcribe_clip(session, model, clips.waveforms[number], options, first_try)
        found[number] = replace(transcript, seconds=time.perf_counter() - start)
        start = time.perf_counter()
        report(f"{len(found)} of {len(clips)}", len(found) / len(clips))
    return [found[number] for number in range(len(clips))]


def written_language(decoding: Decoding | DecodingFacts, asked: Asked, heard: Sequence[str | None]) -> str | None:
    """The language of transcripts, whose normaliser is meant; None where no clip was heard to be in any.

    Translations are in English; otherwise it is the language that is asked for, or the model's own, or the one that it
    heard in most clips. decoding: as in a manifest; heard: by clip.
    """
    if not decoding.multilingual or (asked.task or decoding.default_task) == "translate":
        return "en"
    told = asked.language or decoding.default_language
    if told not in (None, DETECT):
        return str(told)
    counted = Counter(code for code in heard if code is not None)
    return counted.most_common(1)[0][0] if counted else None


def count_results_word_errors(path: Path, spellings: dict[str, str] | None) -> Results:
    """The results in `path`, with word errors added to the file where it has transcripts and no word errors yet.

    Raises:
        BadInput: it is no results file, or no reference has a word in it.
    """
    results = read_results(path)
    content = results.content
    decoding = content.artifacts["slim"].decoding
    parts = {"accuracy": content.accuracy, "recordings": content.recordings}
    counted: dict[str, Any] = {
        name: _counted(part, decoding, spellings)
        for name, part in parts.items()
        if isinstance(part, Transcripts) and part.status == "ok" and part.word_errors is None
    }
    return write_results(path, as_json(replace(content, **counted))) if counted else results


def _counted(part: Transcripts, decoding: DecodingFacts | None, spellings: dict[str, str] | None) -> Transcripts:
    """The transcripts with their word errors."""
    asked = Asked(part.decoding.get("task"), part.decoding.get("language"))
    heard = [language for answers in part.roles.values() for language in answers.languages]
    normaliser = choose_normaliser(None if decoding is None else written_language(decoding, asked, heard), spellings)
    counted = {role: count_word_errors(part.references, each.texts, normaliser) for role, each in part.roles.items()}
    first = next(iter(counted.values()))
    kinds = {
        role: ErrorCounts(list(errors.substitutions), list(errors.deletions), list(errors.insertions))
        for role, errors in counted.items()
    }
    return replace(part, word_errors=WordErrors(first.metric, list(first.reference_words), kinds))
