"""Speech of any length, window by window: where the next one starts, when to try again, what to leave out.

Windows, segments and the seek rule are those of transformers' long-form `generate`, which are openai's. What differs,
and why:

- Each window's features are computed from that window alone, so audio may come as a stream; transformers computes
  them once from the whole file (whose loudest moment sets the floor of all of it) and pads the last window with zeros
  of the features, not of the audio.
- A time is an exact multiple of the timestamp step, and never later than the audio's end.
- With `quiet_cuts`, a full window that more audio follows ends at the quietest moment of its last two thirds, or of its
  last 8 s, so that fewer words are cut in two. Audio of one window is never cut.
- Without timestamps, which transformers allows for one window only, windows follow each other with nothing between.
- A window of digital silence is not decoded. Segments without text are not given.
- The language is that of the first window with speech, not of the first window.
- The compression ratio is openai's, of the text. After a temperature over 0.5 what was said before is forgotten for
  good, as openai does; transformers would show it again one window later.
- With `stop_repeats`, a window whose text ends in a loop (`leanear.runtimes.speech.repeats.loop_start`) counts as one
  that failed the compression test, and is not decoded to its end; where no temperature helps, the loop's first round is
  kept, and the whole window is taken. So it is with a shorter loop where no temperature passes the compression test.
  Where a window moved on by less than a tenth and the next one says just the same, that is left out and the whole
  window is taken. Earlier text is forgotten, too, after a window that says just what the one before said.
- Audio that is short enough is heard in a window shorter than the trained one
  (`leanear.runtimes.speech.encoder_windows`), at the first temperature. What fails a test there, or is not to be
  trusted (`leanear.runtimes.speech.short_windows`), is heard again in the full window, from the first temperature on;
  how often that was, the tally says.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, Protocol, Sequence

import numpy as np

from leanear.runtimes.artifact import Artifact
from leanear.runtimes.errors import BadInput
from leanear.runtimes.manifest import Alignment, Decoding, EncoderWindows
from leanear.runtimes.speech.decoding import Decoded, DecodeOptions, check_options, chosen_language, decode_window
from leanear.runtimes.speech.encoder_windows import artifact_windows, full_window
from leanear.runtimes.speech.prompts import read_prompts
from leanear.runtimes.speech.repeats import SUSPECT_LOOP_TOKENS, compression_ratio, without_loop
from leanear.runtimes.speech.short_windows import most_tokens, why_heard_again
from leanear.runtimes.speech.vocabulary import Vocabulary, read_vocabulary
from leanear.runtimes.speech.word_times import with_word_times
from leanear.runtimes.speech.words import Word

if TYPE_CHECKING:
    from leanear.runtimes.sessions import SpeechSession

FRAMES_PER_STEP = 2  # Whisper's encoder halves its frames, and a timestamp is one of the positions that are left
SILENT_PEAK = 2.0**-16  # half of a 16-bit sample's step
FORGET_ABOVE_TEMPERATURE = 0.5
STUCK_SHARE = 0.1  # of a window
QUIET_SHARE, QUIET_REACH_S = 2 / 3, 8.0  # of a window's end, and at most: where it may be cut
QUIET_S = 0.4


class Waveform(Protocol):
    """Mono audio, float32 in [-1, 1], at the model's sample rate: an array, or something that reads a file.

    Slices are asked for in order: none starts before an earlier one did. The last ones are shorter, and so may be one
    before a pause; an empty one is the end.
    """

    def __getitem__(self, span: slice, /) -> np.ndarray:
        """Samples [start, stop), fewer where the audio ends."""


@dataclass(frozen=True)
class SpeechModel:
    """What decoding needs to know of a model beside its session.

    windows: which it hears audio in, None: the full one; alignment: the heads that word times are taken from, None:
    its graphs do not give what they look at; voice_graph: the voice activity model that came along.
    """

    vocabulary: Vocabulary
    tokens: Decoding
    sample_rate_hz: int
    window_samples: int
    windows: EncoderWindows | None = None
    alignment: Alignment | None = None
    voice_graph: Path | None = None

    @property
    def step_samples(self) -> int:
        """Samples of one timestamp step."""
        return round(self.tokens.timestamp_step_s * self.sample_rate_hz)

    @property
    def encoder_windows(self) -> EncoderWindows:
        """The windows that audio is heard in."""
        return self.windows or full_window(self.window_samples)


@dataclass(frozen=True)
class VoiceKept:
    """How much audio there was, and how much of it was kept because somebody speaks."""

    audio_s: float
    speech_s: float


@dataclass
class Tally:
    """What transcribing took, counted as it goes on.

    windows: that were decoded; short: of them, in a window shorter than the full one; second_tries: how many of those
    were heard again in full, by the reason ("cap", "loop", "short": see `short_windows`; "unlikely": the tokens were).
    voice: what was left out because nobody speaks, None: nothing was.
    """

    windows: int = 0
    short: int = 0
    second_tries: dict[str, int] = field(default_factory=dict)
    voice: VoiceKept | None = None

    @property
    def heard_again(self) -> int:
        """Second tries for any reason."""
        return sum(self.second_tries.values())

    @property
    def sentence(self) -> str:
        """How much was kept as speech, how many second tries there were, and why; "" of neither."""
        parts = []
        if self.voice is not None:
            audio_s, speech_s = self.voice.audio_s, self.voice.speech_s
            share = f" ({100 * speech_s / audio_s:.0f} %)" if audio_s else ""
            parts.append(f"speech in {speech_s:.1f} of {audio_s:.1f} s{share}, the rest was not transcribed (--vad)")
        if self.second_tries:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.second_tries.items())
            parts.append(f"{self.heard_again} of {self.short} short windows were heard again in full ({reasons})")
        return "; ".join(parts)


@dataclass(frozen=True)
class Segment:
    """A stretch of speech: its times in the audio, its text, and how the window that it is from was decoded.

    words: with times of their own, which together are the text; None where they were not asked for.
    """

    start_s: float
    end_s: float
    text: str
    tokens: tuple[int, ...]
    temperature: float
    average_log_probability: float
    no_speech_probability: float | None
    compression_ratio: float
    language: str | None = None
    words: tuple[Word, ...] | None = None


@dataclass(frozen=True)
class Window:
    """One window as it was taken: samples [start, start + advance) are done with; decoded is None where it was silent.

    segments: with the timestamps in their tokens, those without text too; none where the window was judged to hold no
    speech.
    """

    start: int
    samples: int
    advance: int
    decoded: Decoded | None
    segments: tuple[Segment, ...]


def read_speech_model(artifact: Artifact, window: str | None = None) -> SpeechModel:
    """The vocabulary, the tokens and the windows of a Whisper artifact.

    window: "full", "auto" or seconds; None: as the artifact says.

    Raises:
        BadInput: the artifact is of another family, its vocabulary is not usable or of another size, or its encoder
            does not take such a window.
    """
    manifest = artifact.speech
    path = artifact.folder / manifest.vocabulary.file
    vocabulary = read_vocabulary(path)
    size = manifest.output.shape[1]
    if len(vocabulary) != size:
        raise BadInput(f"{path}: {len(vocabulary)} tokens, but the decoder knows {size}")
    windows = artifact_windows(artifact, window)
    return SpeechModel(
        vocabulary,
        manifest.decoding,
        artifact.sample_rate_hz,
        windows.full,
        windows,
        manifest.alignment,
        artifact.voice_graph,
    )


def require_word_times(model: SpeechModel, folder: object) -> None:
    """Raises BadInput, with the remedy, where the artifact in `folder` has no word times to give."""
    if model.alignment is None:
        raise BadInput(
            f"--word-timestamps: the graphs of {folder} do not give their attention; export its checkpoint again with"
            " leanear export CHECKPOINT --word-timestamps --out FOLDER"
        )


def transcribe(
    session: SpeechSession,
    model: SpeechModel | Artifact,
    waveform: Waveform,
    options: DecodeOptions,
    tally: Tally | None = None,
    words: bool = False,
    first_try: Decoded | None = None,
) -> Iterator[Segment]:
    """The segments of `waveform` that have text, each as soon as its window is decoded.

    tally: is added to; words: give each segment its words with times, for which the model has to have an alignment;
    first_try: what was heard already in a clip of one window (see `single_window`), at the first temperature.

    Raises:
        BadInput: the model does not have the language or the task, or the audio has NaN or infinite samples.
    """
    model = read_speech_model(model) if isinstance(model, Artifact) else model
    check_options(model.tokens, options)
    for window in transcribe_windows(session, model, waveform, options, tally, words, first_try):
        yield from (segment for segment in window.segments if segment.text.strip())


def transcribe_windows(
    session: SpeechSession,
    model: SpeechModel,
    waveform: Waveform,
    options: DecodeOptions,
    tally: Tally | None = None,
    words: bool = False,
    first_try: Decoded | None = None,
) -> Iterator[Window]:
    """The windows of `waveform`, in order; the next always starts later. tally, words, first_try: see `transcribe`.

    Raises:
        BadInput: the model does not have the language or the task, or the audio has NaN or infinite samples.
    """
    tokens, most = model.tokens, model.encoder_windows.longest_piece
    tally = Tally() if tally is None else tally
    language = chosen_language(tokens, options)
    generator = np.random.default_rng(options.seed)
    frame_samples = max(model.step_samples // FRAMES_PER_STEP, 1)
    prompts = read_prompts(model.vocabulary, tokens, options)
    before = list(prompts.first)
    last: Window | None = None
    start = 0
    while True:
        ahead = np.asarray(waveform[start : start + most + frame_samples], dtype=np.float32)
        if len(ahead) < frame_samples:
            return
        samples = ahead[:most]
        more_follows = len(ahead) == most + frame_samples
        if options.quiet_cuts and more_follows:
            samples = samples[: _quietest_moment(samples, model.sample_rate_hz)]
        if not more_follows:  # a rest of less than a frame is nobody's
            samples = samples[: len(samples) // frame_samples * frame_samples]
        if np.abs(samples).max() < SILENT_PEAK:
            window = Window(start, len(samples), len(samples), None, ())
        else:
            known = first_try if start == 0 else None
            decoded = _decode_samples(
                session, model, samples, options, language, prompts.shown(before), generator, tally, known
            )
            window = _taken(model, options, decoded, start, len(samples))
            if options.stop_repeats and last is not None and _is_stuck(last, window, model):
                window = Window(start, len(samples), len(samples), decoded, ())
            if window.segments and language is None:
                language = decoded.language
            before = _said_before(before, window, last, options, tokens)
            if words:
                window = with_word_times(session, model, window, last, options)
        yield window
        start, last = start + window.advance, window


def single_window(model: SpeechModel, waveform: np.ndarray) -> np.ndarray | None:
    """What `transcribe` hears of a clip, where that is one window and not silent; else None."""
    frame_samples, most = max(model.step_samples // FRAMES_PER_STEP, 1), model.encoder_windows.longest_piece
    samples = np.asarray(waveform, dtype=np.float32)
    samples = samples[:most][: len(samples) // frame_samples * frame_samples]
    if not len(samples) or len(waveform) >= most + frame_samples:
        return None
    return samples if np.abs(samples).max() >= SILENT_PEAK else None


def _decode_samples(
    session: SpeechSession,
    model: SpeechModel,
    samples: np.ndarray,
    options: DecodeOptions,
    language: str | None,
    previous: Sequence[int],
    generator: np.random.Generator,
    tally: Tally,
    first_try: Decoded | None,
) -> Decoded:
    """What is heard in `samples`: in the shortest window that holds them and, where that is not trusted, in full."""
    windows = model.encoder_windows
    length = windows.holding(len(samples))
    tally.windows += 1
    if length < windows.full:
        tally.short += 1
        decoded = first_try
        if decoded is None:
            session.encode(samples, length)
            decoded = _decode_short(session, model, samples, options, language, previous, generator)
        reason = _why_again(decoded, model, samples, options)
        if not reason:
            return decoded
        tally.second_tries[reason] = tally.second_tries.get(reason, 0) + 1
    elif first_try is not None and (
        _holds_no_speech(first_try, options) or not _fails(first_try, model.vocabulary, options)
    ):
        return first_try
    session.encode(samples)
    return _decode_with_fallback(session, model, options, language, previous, generator)


def _decode_short(
    session: SpeechSession,
    model: SpeechModel,
    samples: np.ndarray,
    options: DecodeOptions,
    language: str | None,
    previous: Sequence[int],
    generator: np.random.Generator,
) -> Decoded:
    """The short window that `session` holds at the first temperature, with no more tokens than so much audio has."""
    cap = most_tokens(len(samples), model.sample_rate_hz)
    return decode_window(
        session,
        model.tokens,
        replace(options, max_tokens=cap if options.max_tokens is None else min(cap, options.max_tokens)),
        language=language,
        previous=previous,
        temperature=options.temperatures[0],
        generator=generator,
        no_speech=options.no_speech_limit is not None,
    )


def _why_again(decoded: Decoded, model: SpeechModel, samples: np.ndarray, options: DecodeOptions) -> str:
    """Why a short window is heard again, "" where it is not: what was asked to pass has to pass too."""
    if _holds_no_speech(decoded, options):
        return ""
    reason = why_heard_again(decoded, model.tokens, model.vocabulary, samples, model.sample_rate_hz)
    if reason:
        return reason
    if _repeats(decoded, model.vocabulary, options):
        return "loop"
    return "unlikely" if _is_unlikely(decoded, options) else ""


def _decode_with_fallback(
    session: SpeechSession,
    model: SpeechModel,
    options: DecodeOptions,
    language: str | None,
    previous: Sequence[int],
    generator: np.random.Generator,
) -> Decoded:
    """The window that `session` holds at the first temperature that passes the tests, else at the last."""
    no_speech = None
    for attempt, temperature in enumerate(options.temperatures):
        decoded = decode_window(
            session,
            model.tokens,
            options,
            language=language,
            previous=previous,
            temperature=temperature,
            generator=generator,
            no_speech=attempt == 0 and options.no_speech_limit is not None,
        )
        if attempt == 0:
            no_speech, language = decoded.no_speech_probability, decoded.language
        else:  # it does not depend on what is said
            decoded = replace(decoded, no_speech_probability=no_speech)
        if _holds_no_speech(decoded, options) or not _fails(decoded, model.vocabulary, options):
            return decoded
    if options.stop_repeats and not decoded.looped and _repeats(decoded, model.vocabulary, options):
        cut = without_loop(decoded.tokens, model.tokens.times, SUSPECT_LOOP_TOKENS)
        decoded = decoded if cut is None else replace(decoded, tokens=cut, looped=True)
    return decoded


def _fails(decoded: Decoded, vocabulary: Vocabulary, options: DecodeOptions) -> bool:
    return decoded.looped or _repeats(decoded, vocabulary, options) or _is_unlikely(decoded, options)


def _repeats(decoded: Decoded, vocabulary: Vocabulary, options: DecodeOptions) -> bool:
    limit = options.compression_ratio_limit
    return limit is not None and compression_ratio(vocabulary.text(decoded.tokens)) > limit


def _is_unlikely(decoded: Decoded, options: DecodeOptions) -> bool:
    limit = options.log_probability_limit
    return limit is not None and decoded.average_log_probability < limit


def _holds_no_speech(decoded: Decoded, options: DecodeOptions) -> bool:
    probability, limit = decoded.no_speech_probability, options.no_speech_limit
    if probability is None or limit is None or probability <= limit:
        return False
    return options.log_probability_limit is None or _is_unlikely(decoded, options)


def _taken(model: SpeechModel, options: DecodeOptions, decoded: Decoded, start: int, samples: int) -> Window:
    """What of a window is kept, and where the next one starts."""
    if _holds_no_speech(decoded, options):
        return Window(start, samples, samples, decoded, ())
    spans, advance = split_by_timestamps(model, decoded.tokens, samples)
    if not options.timestamps or decoded.looped or advance <= 0:
        advance = samples
    if not options.timestamps:
        spans = [(0, samples, decoded.tokens)]
    text = model.vocabulary.text(decoded.tokens)
    segments = tuple(
        Segment(
            start_s=(start + min(begin, samples)) / model.sample_rate_hz,
            end_s=(start + min(end, samples)) / model.sample_rate_hz,
            text=model.vocabulary.text(tokens),
            tokens=tokens,
            temperature=decoded.temperature,
            average_log_probability=decoded.average_log_probability,
            no_speech_probability=decoded.no_speech_probability,
            compression_ratio=compression_ratio(text),
            language=decoded.language,
        )
        for begin, end, tokens in spans
    )
    return Window(start, samples, advance, decoded, segments)


def split_by_timestamps(
    model: SpeechModel, tokens: Sequence[int], samples: int
) -> tuple[list[tuple[int, int, tuple[int, ...]]], int]:
    """Segments (first sample, last sample, tokens) of a window of `samples`, and where the next window starts in it.

    Two timestamps in a row end a segment and begin another. After the last such pair the next window starts: what
    follows it was cut off by the window. Where the transcript ends in a single timestamp, or has no pair, nothing was.
    """
    begin = model.tokens.timestamp_begin
    is_time = [token in model.tokens.times for token in tokens]
    ends = [place for place in range(1, len(tokens)) if is_time[place - 1] and is_time[place]]
    single_ending = is_time[-2:] == [False, True]
    if begin is None or not ends:
        times = [token for token, time in zip(tokens, is_time) if time]
        end = (
            (times[-1] - begin) * model.step_samples if begin is not None and times and times[-1] != begin else samples
        )
        return [(0, end, tuple(tokens))], samples
    if single_ending:
        ends.append(len(tokens))
    spans, first = [], 0
    for place in ends:
        part = tuple(tokens[first:place])
        spans.append(((part[0] - begin) * model.step_samples, (part[-1] - begin) * model.step_samples, part))
        first = place
    if single_ending:
        return spans, samples
    # The pair's second timestamp goes with the segment that it ends, so that it is seen to have been a pair.
    from_sample, to_sample, part = spans[-1]
    spans[-1] = (from_sample, to_sample, (*part, tokens[first]))
    return spans, (tokens[first - 1] - begin) * model.step_samples


def _is_stuck(last: Window, window: Window, model: SpeechModel) -> bool:
    """Whether two windows that share nearly all of their audio say just the same."""
    little = last.advance < STUCK_SHARE * model.window_samples
    return little and bool(_text_tokens(window, model)) and _text_tokens(last, model) == _text_tokens(window, model)


def _text_tokens(window: Window, model: SpeechModel) -> list[int]:
    tokens = [] if window.decoded is None else window.decoded.tokens
    return [token for token in tokens if model.vocabulary.is_text(token)]


def _said_before(
    before: list[int], window: Window, last: Window | None, options: DecodeOptions, tokens: Decoding
) -> list[int]:
    """What was said before, for the next window's decoder: the latest tokens, at most half of its positions."""
    if not window.segments or window.decoded is None:
        return before
    if not options.condition_on_previous or tokens.previous is None:
        return []
    if window.decoded.temperature > FORGET_ABOVE_TEMPERATURE:
        return []
    if options.stop_repeats and last is not None and last.decoded and last.decoded.tokens == window.decoded.tokens:
        return []
    for segment in window.segments:
        said = list(segment.tokens)
        if len(said) > 2 and said[-2] in tokens.times:
            said.pop()  # the second of a pair of timestamps is where the next window starts, not what was said
        before = [*before, *said]
    return before[-(tokens.positions // 2 - 1) :]


def _quietest_moment(samples: np.ndarray, sample_rate_hz: int) -> int:
    """The middle of the quietest QUIET_S near the end of `samples`, the latest of equals."""
    width = max(round(QUIET_S * sample_rate_hz), 1)
    first = len(samples) - int(min(len(samples) * QUIET_SHARE, QUIET_REACH_S * sample_rate_hz))
    if len(samples) - first <= width:
        return len(samples)
    energy = np.concatenate([[0.0], np.square(samples[first:], dtype=np.float64).cumsum()])
    sums = energy[width:] - energy[:-width]
    return first + len(sums) - 1 - int(np.argmin(sums[::-1])) + width // 2
