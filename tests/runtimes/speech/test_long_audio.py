"""Windows, seeking, fallback and protection over made-up sessions that do their worst."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from leanear.runtimes.errors import BadInput
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.first_tries import SILENT_PEAK
from leanear.runtimes.speech.long_audio import split_by_timestamps, transcribe, transcribe_windows
from leanear.runtimes.speech.tokens.repeats import SUSPECT_LOOP_TOKENS, loop_start
from leanear.runtimes.speech.transcript import Segment, Tally
from tests.runtimes.speech_sessions import (
    EN,
    END,
    MODEL,
    NO_SPEECH,
    NO_TIMESTAMPS,
    PREVIOUS,
    RATE_HZ,
    SIZE,
    START,
    TIMES,
    TRANSCRIBE,
    WINDOW,
    FakeSession,
    at_time,
    hashed,
    model_with,
    said_since_prompt,
    scripted,
)

FRAME = 10  # samples: half of a timestamp step
TIMED = DecodeOptions(temperatures=(0.0,), quiet_cuts=False)
PLAIN = DecodeOptions(temperatures=(0.0,), timestamps=False)


def loud(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE_HZ)).astype(np.float32)


def heard(session, waveform, options=TIMED, model=MODEL) -> list[Segment]:
    return list(transcribe(session, model, waveform, options))


def times_and_texts(segments: list[Segment]) -> list[tuple[float, float, str]]:
    return [(segment.start_s, segment.end_s, segment.text) for segment in segments]


def test_a_window_with_a_single_ending_is_done_with():
    script = [at_time(0.0), 0, 1, at_time(0.5)]
    segments = heard(scripted(script), loud(1.0))
    assert times_and_texts(segments) == [(0.0, 0.5, " yes no")]
    assert segments[0].tokens == tuple(script)
    assert (segments[0].language, segments[0].temperature) == ("en", 0.0)


def test_pairs_of_timestamps_part_segments_and_the_last_one_says_where_to_go_on():
    first = [at_time(0.1), 2, at_time(0.3), at_time(0.4), 3, at_time(0.6), at_time(0.6), 4]
    second = [at_time(0.0), 5, at_time(0.9)]
    session, audio = scripted(first, second), loud(1.5)
    assert times_and_texts(heard(session, audio)) == [(0.1, 0.3, " one"), (0.4, 0.6, " two"), (0.6, 1.5, " four")]
    assert [len(window) for window in session.windows] == [WINDOW, 900]
    np.testing.assert_array_equal(session.windows[1], audio[600:1500])


def test_a_pair_and_then_a_single_ending():
    script = [at_time(0.0), 0, at_time(0.2), at_time(0.2), 1, at_time(0.8)]
    session = scripted(script)
    segments = heard(session, loud(0.95))
    assert times_and_texts(segments) == [(0.0, 0.2, " yes"), (0.2, 0.8, " no")]
    assert [segment.tokens for segment in segments] == [tuple(script[:3]), tuple(script[3:])]
    assert len(session.windows) == 1


def test_no_end_in_sight_takes_the_whole_window():
    assert times_and_texts(heard(scripted([at_time(0.2), 0, 1]), loud(0.8))) == [(0.0, 0.2, " yes no")]
    assert times_and_texts(heard(scripted([at_time(0.0), 0, 1]), loud(0.8))) == [(0.0, 0.8, " yes no")]


def test_times_are_cut_to_the_audio():
    assert times_and_texts(heard(scripted([at_time(0.0), 0, at_time(0.9)]), loud(0.4))) == [(0.0, 0.4, " yes")]


def test_split_by_timestamps_without_timestamps_is_one_segment():
    assert split_by_timestamps(model_with(timestamp_begin=None), (1, 2, TIMES, TIMES), 700) == (
        [(0, 700, (1, 2, TIMES, TIMES))],
        700,
    )
    assert split_by_timestamps(MODEL, (), 700) == ([(0, 700, ())], 700)


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.009])
def test_audio_shorter_than_a_frame_has_no_segments(seconds):
    session = scripted([at_time(0.0), 0, at_time(0.5)])
    assert heard(session, loud(seconds)) == []
    assert session.windows == []


@pytest.mark.parametrize("options", [TIMED, PLAIN])
@pytest.mark.parametrize(("extra", "windows"), [(0, 1), (FRAME - 1, 1), (FRAME, 2)])
def test_exactly_one_window_is_one_window(options, extra, windows):
    session = scripted([at_time(0.0), 0, at_time(1.0)] if options.timestamps else [0])
    # Silence at the very end, so that a window without timestamps is cut there or not at all.
    audio = np.concatenate([loud(1.0), np.full(extra, 0.01, np.float32)])
    taken = list(transcribe_windows(session, MODEL, audio, options))
    assert len(taken) == windows
    assert 0 <= len(audio) - (taken[-1].start + taken[-1].samples) < FRAME


def test_a_rest_of_less_than_a_frame_is_cut_off():
    session = scripted([at_time(0.0), 0, at_time(0.1)])
    heard(session, loud(0.123))
    assert [len(window) for window in session.windows] == [120]


def test_a_window_ends_where_it_is_quietest():
    audio = loud(2.3)
    audio[400:800] *= 0.01
    audio[1300:1700] *= 0.01
    session = scripted([0], [1], [2])
    segments = heard(session, audio, PLAIN)
    assert [segment.start_s for segment in segments] == pytest.approx([0.0, 0.6, 1.4], abs=0.01)
    assert segments[1].start_s == segments[0].end_s
    assert [segment.text for segment in segments] == [" yes", " no", " one"]
    assert segments[-1].end_s == pytest.approx(2.3, abs=0.01)
    timed = scripted([at_time(0.0), 0, at_time(0.5)], [at_time(0.1), 1, at_time(0.3), at_time(0.3)])
    segments = heard(timed, audio, replace(TIMED, quiet_cuts=True))
    assert times_and_texts(segments)[0] == (0.0, 0.5, " yes")
    assert segments[1].start_s == pytest.approx(0.7, abs=0.01), "the rest of the window after the cut was heard again"
    assert NO_TIMESTAMPS in session.rows[0]


def test_without_quiet_cuts_windows_are_whole():
    session = scripted([0])
    heard(session, loud(2.5), replace(PLAIN, quiet_cuts=False))
    assert [len(window) for window in session.windows] == [WINDOW, WINDOW, 500]


def test_windows_without_timestamps_tile_the_audio():
    for seed in range(5):
        audio = loud(3.7, seed)
        windows = list(transcribe_windows(scripted([0]), MODEL, audio, PLAIN))
        assert [window.start for window in windows[1:]] == [window.start + window.advance for window in windows[:-1]]
        assert all(window.advance == window.samples >= WINDOW // 3 for window in windows[:-1])
        assert 0 <= len(audio) - (windows[-1].start + windows[-1].samples) < FRAME


def test_digital_silence_is_not_decoded():
    session = scripted([at_time(0.0), 0, at_time(0.5)])
    assert heard(session, np.zeros(3 * WINDOW, np.float32)) == []
    assert heard(session, np.full(700, 0.9 * SILENT_PEAK, np.float32)) == []
    assert session.windows == []
    audio = np.concatenate([np.zeros(WINDOW, np.float32), loud(1.0)])
    assert times_and_texts(heard(session, audio)) == [(1.0, 1.5, " yes")]


def no_speech_session(probability: float, certainty: float) -> FakeSession:
    """After the start says no speech with `probability`; then one word, as sure as `certainty` makes it."""

    def logits(fed: list[int], _window: np.ndarray) -> np.ndarray:
        row = np.zeros(SIZE, np.float32)
        if fed[-1] == START:
            row[NO_SPEECH] = np.log(probability / (1 - probability) * (SIZE - 1))
        else:
            row[[2, END][min(len(said_since_prompt(fed)), 1)]] = certainty
        return row

    return FakeSession(logits)


@pytest.mark.parametrize(
    ("probability", "certainty", "options", "text"),
    [
        (0.9, 1.0, {}, []),  # likely silent, words unlikely
        (0.5, 1.0, {}, [" one"]),  # words unlikely, but not silent
        (0.9, 20.0, {}, [" one"]),  # likely silent, but the words are sure
        (0.9, 20.0, {"log_probability_limit": None}, []),  # nothing but the no-speech test
        (0.9, 1.0, {"no_speech_limit": None}, [" one"]),
    ],
)
def test_no_speech_is_no_text(probability, certainty, options, text):
    options = replace(PLAIN, **options)
    segments = heard(no_speech_session(probability, certainty), loud(0.5), options)
    assert [segment.text for segment in segments] == text
    if text and options.no_speech_limit is not None:
        assert segments[0].no_speech_probability == pytest.approx(probability, abs=1e-4)


def test_an_unlikely_window_is_tried_at_higher_temperatures_until_it_passes():
    session = no_speech_session(0.1, 1.0)
    options = DecodeOptions(timestamps=False, temperatures=(0.0, 0.4, 0.8), best_of=3)
    (segment,) = heard(session, loud(0.5), options) or [None]
    assert len(session.windows) == 1, "the encoder ran once"
    assert segment.temperature == 0.8  # none passes, so the last counts
    assert segment.no_speech_probability == pytest.approx(0.1, abs=1e-4)  # measured at the first attempt
    sure = heard(no_speech_session(0.1, 20.0), loud(0.5), options)
    assert sure[0].temperature == 0.0


def test_repeated_text_is_tried_again():
    """At temperature 0 it says one word 25 times (too few to be a loop, too many for the compression test)."""

    def logits(fed: list[int], _window: np.ndarray) -> np.ndarray:
        row = np.full(SIZE, -30.0, np.float32)
        said = len(said_since_prompt(fed))
        row[8 if said < 25 else END] = 5.0
        row[END] = max(row[END], 4.0)  # so that a warm sample soon ends
        return row

    options = DecodeOptions(timestamps=False, temperatures=(0.0, 1.0), log_probability_limit=None, best_of=1)
    (segment,) = heard(FakeSession(logits), loud(0.5), options)
    assert segment.temperature == 1.0
    assert segment.compression_ratio < 2.4
    (kept,) = heard(FakeSession(logits), loud(0.5), replace(options, compression_ratio_limit=None))
    assert (kept.temperature, kept.text) == (0.0, " seven" * 25)
    assert kept.compression_ratio > 2.4


def test_the_seed_decides_over_the_whole_audio():
    options = DecodeOptions(timestamps=False, temperatures=(1.0,), seed=3)
    first, again, other = (
        [segment.tokens for segment in heard(hashed(1), loud(3.0), replace(options, seed=seed))] for seed in (3, 3, 4)
    )
    assert first == again != other


def test_what_was_said_before_is_shown_to_the_next_window():
    first = [at_time(0.0), 0, at_time(0.5), at_time(0.5)]
    second = [at_time(0.0), 1, at_time(1.0)]
    third = [at_time(0.0), 2, at_time(0.2)]
    session, seen = scripted(first, second, third), []
    options = replace(TIMED, condition=True)
    for _ in transcribe_windows(session, MODEL, loud(1.8), options):
        seen.append(session.rows[0])
    prompt = [START, EN, TRANSCRIBE]
    assert seen[0][:3] == prompt
    before = [at_time(0.0), 0, at_time(0.5)]  # without the second timestamp of the pair
    assert seen[1][: 4 + 3] == [PREVIOUS, *before, *prompt]
    assert seen[2][: 7 + 3] == [PREVIOUS, *before, *second, *prompt]
    plain = scripted(first, second, third)
    list(transcribe_windows(plain, MODEL, loud(1.8), TIMED))
    assert PREVIOUS not in plain.rows[0]


def test_earlier_text_is_cut_to_half_of_the_positions():
    session = hashed(0)
    options = replace(PLAIN, condition=True, stop_repeats=False, max_tokens=20, no_speech_limit=None)
    longest = 0
    for _ in transcribe_windows(session, MODEL, loud(6.0), options):
        row = session.rows[0]
        longest = max(longest, row.index(START))
    assert longest == MODEL.tokens.positions // 2  # the token for earlier text included
    assert session.longest <= MODEL.tokens.positions


@pytest.mark.parametrize(("temperature", "shown"), [(0.4, True), (0.6, False)])
def test_a_hot_window_is_forgotten(temperature, shown):
    session = scripted([0, 1], [2, 3], certainty=60.0)
    options = replace(PLAIN, condition=True, temperatures=(temperature,), best_of=1)
    list(transcribe_windows(session, MODEL, loud(1.5), options))
    assert (PREVIOUS in session.rows[0]) == shown


def test_a_window_that_says_the_same_again_is_forgotten():
    session = scripted([0, 1])
    seen = []
    for _ in transcribe_windows(session, MODEL, loud(3.0), replace(PLAIN, condition=True)):
        seen.append(PREVIOUS in session.rows[0])
    assert seen[:3] == [False, True, False]


def test_text_from_before_does_not_silence_a_window():
    """As tiny.en lost the last 23 s of nine minutes: what was said before made it find no speech there."""

    def logits(fed: list[int], _window: np.ndarray) -> np.ndarray:
        row, is_silenced = np.zeros(SIZE, np.float32), PREVIOUS in fed
        if fed[-1] == START:
            row[NO_SPEECH] = 9.0 if is_silenced else -9.0
        else:
            row[[2, END][min(len(said_since_prompt(fed)), 1)]] = 1.0 if is_silenced else 20.0
        return row

    options = replace(PLAIN, condition=True, quiet_cuts=False)
    segments = heard(FakeSession(logits), loud(2.5), options)
    assert [segment.text for segment in segments] == [" one"] * 3
    as_transformers = heard(FakeSession(logits), loud(2.5), replace(options, stop_repeats=False))
    assert [segment.text for segment in as_transformers] == [" one"]


def test_more_hypotheses_than_the_session_follows_are_refused_before_anything_is_heard():
    session = scripted([0, 1])
    session.most_rows = 8
    for options, said in ((replace(PLAIN, beam_size=9), "beam_size: 9"), (DecodeOptions(best_of=9), "best_of: 9")):
        with pytest.raises(BadInput, match=f"{said} hypotheses at once; this runtime's engines take 8"):
            heard(session, loud(1.0), options)
    assert session.windows == []
    assert heard(session, loud(1.0), replace(PLAIN, best_of=9)), "at temperature 0 there are no samples"


def test_what_is_left_out_of_a_loop_is_counted():
    tally = Tally()
    list(transcribe(always(2), MODEL, loud(1.0), replace(PLAIN, temperatures=(0.0,)), tally))
    assert tally.repeats == tally.windows == 1
    assert tally.sentence == "in 1 window what came again and again was left out"
    tally = Tally()
    list(transcribe(scripted([0, 1], [2, 3]), MODEL, loud(1.0), PLAIN, tally))
    assert (tally.repeats, tally.sentence) == (0, "")


def test_the_language_is_that_of_the_first_window_with_speech():
    def logits(fed: list[int], window: np.ndarray) -> np.ndarray:
        row = np.zeros(SIZE, np.float32)
        speaks = np.abs(window).max() > 0.1
        if fed[-1] == START:
            row[model.tokens.languages["de" if speaks else "en"]] = 5.0
            row[NO_SPEECH] = 0.0 if speaks else 9.0
        else:
            row[[2, END][min(len(said_since_prompt(fed)), 1)]] = 20.0 if speaks else 1.0
        return row

    model = model_with(default_language=None)
    audio = np.concatenate([0.01 * loud(1.0), loud(2.0)])
    segments = heard(FakeSession(logits), audio, PLAIN, model)
    assert {segment.language for segment in segments} == {"de"}


def always(token: int) -> FakeSession:
    """Wants one token whatever happens."""

    def logits(_fed: list[int], _window: np.ndarray) -> np.ndarray:
        row = np.zeros(SIZE, np.float32)
        row[token] = 20.0
        return row

    return FakeSession(logits)


def never_ending(seed: int) -> FakeSession:
    """Random, but never ends by itself."""
    inner = hashed(seed)

    def logits(fed: list[int], window: np.ndarray) -> np.ndarray:
        row = inner._logits(fed, window)
        row[END] = -50.0
        return row

    return FakeSession(logits)


def ticking(word: int) -> FakeSession:
    """The same word in segments of one timestamp step each: as slow as a decoder can get on."""
    script = []
    for step in range(0, 50):
        script += [TIMES + step, word, TIMES + step + 1]
    return scripted(script)


def short_pair() -> FakeSession:
    """In every window one word of one step, and a pair of timestamps that asks to go on right there."""
    return scripted([at_time(0.0), 3, at_time(0.02), at_time(0.02)])


STUBBORN = {
    "one word for ever": lambda: always(4),
    "the first timestamp for ever": lambda: always(TIMES),
    "the last timestamp for ever": lambda: always(TIMES + 50),
    "the end at once": lambda: always(END),
    "no timestamps": lambda: always(NO_TIMESTAMPS),
    "a forbidden token": lambda: always(START),
    "random without an end": lambda: never_ending(0),
    "ticking": lambda: ticking(5),
    "a short pair": short_pair,
}


@pytest.mark.parametrize("name", STUBBORN)
@pytest.mark.parametrize("options", [DecodeOptions(best_of=2), DecodeOptions(timestamps=False, best_of=2, beam_size=2)])
@pytest.mark.parametrize("condition", [False, True])
def test_a_stubborn_decoder_comes_to_an_end_with_little_to_say(name, options, condition):
    seconds = 15
    session = STUBBORN[name]()
    options = replace(options, condition=condition, temperatures=(0.0, 1.0))
    audio = loud(seconds)
    windows, last = [], -1
    for window in transcribe_windows(session, MODEL, audio, options):
        assert window.start > last
        last = window.start
        windows.append(window)
    assert len(session.windows) <= 3 * seconds * RATE_HZ / WINDOW + 2
    assert windows[-1].start + windows[-1].advance >= len(audio) - FRAME
    for window in windows:
        words = [token for segment in window.segments for token in segment.tokens if token < END]
        assert loop_start(words, SUSPECT_LOOP_TOKENS) is None, "a loop got through"
    assert session.longest <= MODEL.tokens.positions


def test_without_protection_only_progress_is_promised():
    session = short_pair()
    windows = list(transcribe_windows(session, MODEL, loud(3.0), replace(TIMED, stop_repeats=False)))
    assert len(windows) == 150
    assert all(window.advance == 20 for window in windows)


def test_segments_come_as_soon_as_their_window_is_decoded():
    session = scripted([at_time(0.0), 0, at_time(1.0)])
    segments = transcribe(session, MODEL, loud(10.0), TIMED)
    next(segments)
    assert len(session.windows) == 1
    next(segments)
    assert len(session.windows) == 2


def test_audio_may_come_from_anywhere_that_slices_in_order():
    class Tape:
        def __init__(self, samples: np.ndarray) -> None:
            self.samples, self.position, self.largest = samples, 0, 0

        def __getitem__(self, span: slice) -> np.ndarray:
            assert span.start >= self.position
            self.position, self.largest = span.start, max(self.largest, span.stop - span.start)
            return self.samples[span]

    script = [at_time(0.0), 0, at_time(0.6), at_time(0.6)]
    audio = loud(4.3)
    tape = Tape(audio)
    from_tape = heard(scripted(script), tape)
    assert from_tape == heard(scripted(script), audio)
    assert tape.largest <= WINDOW + FRAME


def test_other_number_types_are_taken_for_what_they_are():
    for kind in (np.float64, np.float16):
        assert heard(scripted([at_time(0.0), 0, at_time(0.2)]), loud(0.3).astype(kind))


def test_options_are_checked_before_anything_is_heard():
    session = scripted([0])
    with pytest.raises(BadInput, match="language"):
        heard(session, loud(1.0), replace(TIMED, language="fr"))
    assert session.windows == []
