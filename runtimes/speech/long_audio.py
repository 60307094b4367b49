"""Speech of any length, window by window: where the next one starts, when to try again, what to leave out.

Windows, segments and the seek rule are those of transformers' long-form `generate`, which are openai's. What differs,
and why:

- Each window's features are computed from that window alone, so audio may come as a stream; transformers computes
  them once from the whole file (whose loudest moment sets the floor of all of it) and pads the last window with zeros
  of the features, not of the audio.
- A time is an exact multiple of the timestamp step, and never later than the audio's end.
- With `quiet_cuts`, a full window that more audio follows ends at the quietest moment of its last two thirds, or of its
  last 8 s, so that fewer words are cut in two. Audio of one window is never cut.
- Longer audio is cut so into pieces of PIECE_S at most, where the encoder takes windows of several lengths and nobody
  asks for what was said before. The next piece begins where one was cut, not at its last timestamp: so none depends on
  another, and several are decoded together (`leanear.runtimes.speech.first_tries`). A piece was not cut where somebody
  speaks, so while half a second of it is to be heard its text does not end after a pair of timestamps (in a second try
  with `stop_repeats` alone): the pair says that a segment begins, where a single one is followed by noise at most. What
  follows its last pair is kept.
- Without timestamps, which transformers allows for one window only, windows follow each other with nothing between.
- A window of digital silence is not decoded. Segments without text are not given. A window in which nobody seems to
  speak after what was said before is heard again without it, with `stop_repeats`: it had silenced 23 s of speech.
- The language is that of the first window with speech, not of the first window.
- The compression ratio is openai's, of the text. After a temperature over 0.5 what was said before is forgotten for
  good, as openai does; transformers would show it again one window later.
- With `stop_repeats`, a window whose text ends in a loop (`tokens.repeats.loop_start`) counts as one that failed the
  compression test, and is not decoded to its end; where no temperature helps, the loop's first round is kept, and the
  whole window is taken. So it is with a shorter loop where no temperature passes the compression test. Where a window
  moved on by less than a tenth and the next one says just the same, that is left out and the whole window is taken.
  Earlier text is forgotten, too, after a window that says just what the one before said.
- With `quiet_cuts` and full windows alone, one with too short a text for what is audible is cut, and heard again.
- Audio that is short enough is heard in a window shorter than the trained one
  (`leanear.runtimes.speech.encoder_windows`), at the first temperature. What fails a test there, or is not to be
  trusted (`leanear.runtimes.speech.attempts`), is heard again in the full window, from the first temperature on;
  how often that was, the tally says.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Iterator, Protocol, Sequence

import numpy as np

from leanear.runtimes.artifact import Artifact
from leanear.runtimes.manifest import AUTO, Decoding
from leanear.runtimes.sessions import SpeechSession
from leanear.runtimes.speech.attempts import Hearing, holds_no_speech
from leanear.runtimes.speech.decode_options import (
    DecodeOptions,
    Prompts,
    check_options,
    check_rows_of,
    chosen_language,
    read_prompts,
)
from leanear.runtimes.speech.decoding import Decoded
from leanear.runtimes.speech.first_tries import first_tries, is_silent
from leanear.runtimes.speech.speech_model import SpeechModel, read_speech_model
from leanear.runtimes.speech.tokens.repeats import compression_ratio
from leanear.runtimes.speech.transcript import Segment, Tally, Window
from leanear.runtimes.speech.word_times import with_word_times

FRAMES_PER_STEP = 2  # Whisper's encoder halves its frames, and a timestamp is one of the positions that are left
FORGET_ABOVE_TEMPERATURE = 0.5
STUCK_SHARE = 0.1  # of a window
QUIET_SHARE, QUIET_REACH_S = 2 / 3, 8.0  # of a window's end, and at most: where it may be cut
QUIET_S = 0.4
PIECE_S = 20.0  # of long audio, at most


class Waveform(Protocol):
    """Mono audio, float32 in [-1, 1], at the model's sample rate: an array, or something that reads a file.

    Slices are asked for in order: none starts before an earlier one did. The last ones are shorter, and so may be one
    before a pause; an empty one is the end.
    """

    def __getitem__(self, span: slice, /) -> np.ndarray:
        """Samples [start, stop), fewer where the audio ends."""


def transcribe(
    session: SpeechSession,
    model: SpeechModel | Artifact,
    waveform: Waveform,
    options: DecodeOptions,
    tally: Tally | None = None,
    words: bool = False,
    first_try: Decoded | None = None,
    is_long: bool = False,
) -> Iterator[Segment]:
    """The segments of `waveform` that have text, each as soon as its window is decoded.

    tally: is added to; words: give each segment its words with times, for which the model has to have an alignment;
    first_try: what was heard already in a clip of one window (see `single_window`), at the first temperature.
    is_long: it is known to be long, and may be heard in pieces; with words none are decoded together.

    Raises:
        BadInput: the model does not have the language or the task, or the audio has NaN or infinite samples.
    """
    model = read_speech_model(model) if isinstance(model, Artifact) else model
    check_options(model.tokens, options)
    for window in transcribe_windows(session, model, waveform, options, tally, words, first_try, is_long):
        yield from (segment for segment in window.segments if segment.text.strip())


def transcribe_windows(
    session: SpeechSession,
    model: SpeechModel,
    waveform: Waveform,
    options: DecodeOptions,
    tally: Tally | None = None,
    words: bool = False,
    first_try: Decoded | None = None,
    is_long: bool = False,
) -> Iterator[Window]:
    """The windows of `waveform`, in order; the next always starts later. tally and what follows: see `transcribe`.

    Raises:
        BadInput: the model does not have the language or the task, or the audio has NaN or infinite samples.
    """
    in_pieces = is_in_pieces(model, waveform, options, is_long)
    tokens = model.tokens
    generator = np.random.default_rng(options.seed)
    hearing = Hearing(session, model, options, generator, Tally() if tally is None else tally, in_pieces)
    check_rows_of(session, options)
    language = chosen_language(tokens, options)
    prompts = read_prompts(model.vocabulary, tokens, options)
    before = list(prompts.first)
    last: Window | None = None
    start, longest = 0, model.encoder_windows.longest_piece
    tried = replace(options, batch=1) if words else options
    pieces = first_tries(session, model, tried, _pieces(model, waveform, options), are_pieces=True)
    samples: np.ndarray | None
    while True:
        if in_pieces:
            samples, first_try = next(pieces, (None, None))
        else:
            samples = _window_at(start, longest, model, waveform, options)
        if samples is None:
            return
        samples, decoded = _heard(hearing, samples, language, prompts, before, first_try)
        window = Window(start, len(samples), len(samples), None, ())
        if decoded is not None:
            window = _taken(model, options, decoded, start, len(samples), is_piece=in_pieces)
            is_stuck = options.stop_repeats and last is not None and _is_stuck(last, window, model)
            hearing.tally.repeats += is_stuck or (decoded.looped and bool(window.segments))
            if is_stuck:
                window = Window(start, len(samples), len(samples), decoded, ())
            if window.segments and language is None:
                language = decoded.language
            before = _said_before(before, window, last, options, tokens)
            if words:
                window = with_word_times(session, model, window, last, options)
        yield window
        start, last, first_try = start + window.advance, window, None


def _heard(
    hearing: Hearing,
    samples: np.ndarray,
    language: str | None,
    prompts: Prompts,
    before: Sequence[int],
    first_try: Decoded | None,
) -> tuple[np.ndarray, Decoded | None]:
    """What is heard in `samples`, None of silence; or in their beginning, where of all of them it is too little."""
    if is_silent(samples):
        return samples, None
    options, first = hearing.options, list(prompts.first)
    decoded = hearing.window(samples, language, prompts.shown(before), first_try)
    if options.stop_repeats and before and before != first and holds_no_speech(decoded, options):
        decoded = hearing.window(samples, language, prompts.shown(first), None)
    if not (options.quiet_cuts and hearing.says_too_little(decoded, samples)):
        return samples, decoded
    hearing.tally.again("cut")
    hearing.tally.windows -= 1  # what was heard first counts for nothing
    samples = samples[: _quietest_moment(samples[: len(samples) * 2 // 3], hearing.model.sample_rate_hz)]
    silent = is_silent(samples)
    return samples, None if silent else hearing.window(samples, language, prompts.shown(before), None)


def is_in_pieces(model: SpeechModel, waveform: Waveform, options: DecodeOptions, is_long: bool = False) -> bool:
    """Whether audio is heard in pieces that do not depend on each other. is_long: it is known to be long."""
    windows = model.encoder_windows
    if len(windows.lengths) == 1 or options.condition or not options.quiet_cuts:
        return False
    longest = windows.longest_piece + _frame_samples(model)
    return is_long or len(waveform[0:longest]) == longest


def single_window(model: SpeechModel, waveform: np.ndarray) -> np.ndarray | None:
    """What `transcribe` hears of a clip, where that is one window; else None."""
    longest = model.encoder_windows.longest_piece
    if len(waveform) >= longest + _frame_samples(model):
        return None
    return _window_at(0, longest, model, waveform, DecodeOptions())


def piece_samples(model: SpeechModel) -> int:
    """How long the pieces of long audio are at most."""
    windows = model.encoder_windows
    return min(round(PIECE_S * model.sample_rate_hz) if windows.choice == AUTO else windows.full, windows.longest_piece)


def _pieces(model: SpeechModel, waveform: Waveform, options: DecodeOptions) -> Iterator[np.ndarray]:
    """The pieces that long audio is cut into."""
    start, most = 0, piece_samples(model)
    while (samples := _window_at(start, most, model, waveform, options)) is not None:
        yield samples
        start += len(samples)


def _window_at(
    start: int, most: int, model: SpeechModel, waveform: Waveform, options: DecodeOptions
) -> np.ndarray | None:
    """The samples that are heard from `start` on, `most` or fewer; None at the end."""
    frame_samples = _frame_samples(model)
    ahead = np.asarray(waveform[start : start + most + frame_samples], dtype=np.float32)
    if len(ahead) < frame_samples:
        return None
    samples = ahead[:most]
    if len(ahead) < most + frame_samples:  # the end, where a rest of less than a frame is nobody's
        return samples[: len(samples) // frame_samples * frame_samples]
    return samples[: _quietest_moment(samples, model.sample_rate_hz)] if options.quiet_cuts else samples


def _frame_samples(model: SpeechModel) -> int:
    return max(model.step_samples // FRAMES_PER_STEP, 1)


def _taken(
    model: SpeechModel, options: DecodeOptions, decoded: Decoded, start: int, samples: int, *, is_piece: bool
) -> Window:
    """What of a window is kept, and where the next one starts; is_piece: all of it, and behind it."""
    if holds_no_speech(decoded, options):
        return Window(start, samples, samples, decoded, ())
    spans, advance = split_by_timestamps(model, decoded.tokens, samples)
    if is_piece and advance < samples:
        said = sum(len(tokens) for *_, tokens in spans) - 1  # the last pair's second timestamp begins what follows
        spans, advance = [*spans, (advance, samples, decoded.tokens[said:])], samples
    if not options.timestamps or decoded.looped or is_piece or not 0 < advance <= samples:
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
    begin = model.tokens.times.start
    is_time = [token in model.tokens.times for token in tokens]
    ends = [place for place in range(1, len(tokens)) if is_time[place - 1] and is_time[place]]
    single_ending = is_time[-2:] == [False, True]
    if not ends:
        times = [token for token, time in zip(tokens, is_time) if time and token > begin]
        end = (times[-1] - begin) * model.step_samples if times else samples
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
    repeats = last is not None and last.decoded is not None and last.decoded.tokens == window.decoded.tokens
    forgets = window.decoded.temperature > FORGET_ABOVE_TEMPERATURE or (options.stop_repeats and repeats)
    if not options.condition or tokens.previous is None or forgets:
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
