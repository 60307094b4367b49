"""When a short window is heard again in full: on made-up tokens, and over made-up sessions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from leanear.runtimes.manifest import EncoderWindows
from leanear.runtimes.speech.attempts import audible_s, most_tokens, why_heard_again
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.decoding import Decoded
from leanear.runtimes.speech.long_audio import transcribe, transcribe_windows
from leanear.runtimes.speech.transcript import Tally
from tests.runtimes.speech_sessions import END, MODEL, RATE_HZ, TOKENS, WINDOW, FakeSession, at_time, scripted

PLAIN = DecodeOptions(
    temperatures=(0.0,),
    timestamps=False,
    compression_ratio_limit=None,
    log_probability_limit=None,
    no_speech_limit=None,
)
SHORT = 400  # samples: 0.4 s of the made-up model's one second
TAIL = 100
TWO_WINDOWS = replace(MODEL, windows=EncoderWindows("auto", (SHORT, WINDOW), TAIL))


def loud(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE_HZ)).astype(np.float32)


def decoded(tokens: list[int], ended: bool = True) -> Decoded:
    return Decoded(tuple(tokens), ended, False, 0.0, -0.1, None, "en")


def why(tokens: list[int], samples: np.ndarray, ended: bool = True) -> str:
    return why_heard_again(decoded(tokens, ended), TOKENS, MODEL.vocabulary, samples, RATE_HZ)


def test_the_most_tokens_are_eight_a_second_and_twelve():
    assert [most_tokens(round(seconds * 16_000), 16_000) for seconds in (0.0, 1.0, 7.99, 28.0)] == [12, 20, 75, 236]


def test_a_text_that_was_cut_off_at_the_cap_is_not_trusted():
    many = [0, 3, 1, 4, 9, 2, 5, 8, 7, 6, 0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    assert why(many, loud(1.0), ended=False) == "cap"
    assert why(many, loud(1.0)) == "", "it ended by itself"
    assert why(many, loud(1.2), ended=False) == "", "of so much audio there may be more"


def test_a_loop_is_not_trusted_however_it_ended():
    assert why([1, 0, 2, *[3, 4] * 4], loud(4.0)) == "loop"
    assert why([1, 0, 2, *[3, 4] * 3], loud(4.0)) == ""
    assert why([at_time(0.0), *[3, 4, at_time(0.1), at_time(0.1)] * 5], loud(4.0)) == "loop", "times do not break it"
    assert why([*[5, 6, 7] * 12, 1], loud(9.0)) == "loop", "it compresses too well"


def test_ten_tokens_in_a_row_that_come_again_are_not_trusted():
    sentence = list(range(10))
    assert why([*sentence, 3, *sentence], loud(4.0)) == "loop"
    assert why([at_time(0.0), *sentence[:4], at_time(0.1), at_time(0.1), *sentence[4:], *sentence], loud(4.0)) == "loop"
    assert why([*sentence[:9], 3, *sentence[:9], 5], loud(4.0)) == "", "nine may be a figure of speech"
    assert why([9, *sentence[:5] * 3, 0, 1], loud(4.0)) == "loop", "cut short, it is no loop to its end"


def test_too_little_of_audible_audio_is_not_trusted():
    assert why([1], loud(2.5)) == why([], loud(2.5)) == "short"
    assert why([1, 2, 3], loud(2.5)) == "short"
    assert why([1, 2, 3, 4], loud(2.5)) == ""
    assert why([], loud(1.5)) == "", "a short noise need not be a word"
    quiet = np.concatenate([loud(1.0), 0.001 * loud(6.0)])
    assert why([1], quiet) == "", "what is 50 dB quieter is not audible"


def test_audible_is_what_is_within_30_dB_of_the_loudest():
    parts = [loud(1.0), 0.1 * loud(1.0, 1), 0.01 * loud(1.0, 2), np.zeros(500, np.float32)]
    assert audible_s(np.concatenate(parts), RATE_HZ) == pytest.approx(2.0)
    assert audible_s(np.zeros(300, np.float32), RATE_HZ) == 0.0
    assert audible_s(np.zeros(3, np.float32), RATE_HZ) == 0.0


def heard(session: FakeSession, audio: np.ndarray, model=TWO_WINDOWS, options=PLAIN) -> tuple[str, Tally]:
    tally = Tally()
    segments = list(transcribe(session, model, audio, options, tally))
    return "".join(segment.text for segment in segments), tally


def test_a_trusted_short_window_is_heard_once():
    session = scripted([0, 1, 2])
    assert heard(session, loud(0.3)) == (" yes no one", Tally(windows=1, short=1))
    assert session.lengths == [SHORT]


def test_audio_that_leaves_no_tail_is_heard_in_full():
    session = scripted([0, 1, 2])
    assert heard(session, loud(0.31))[1] == Tally(windows=1)
    assert session.lengths == [None]


def test_a_window_that_does_not_end_is_heard_again_in_full():
    runaway = [number % 10 for number in (0, 3, 1, 4, 9, 2, 5, 8, 7, 6) * 6]
    session = scripted(runaway, [5, 6])
    assert heard(session, loud(0.3)) == (" four five", Tally(windows=1, short=1, second_tries={"cap": 1}))
    said = [Tally(count, second_tries={"cap": again}).sentence for count, again in ((1, 1), (18, 1), (18, 2))]
    assert said == [
        "1 of 1 window was heard again (1 cap)",
        "1 of 18 windows was heard again (1 cap)",
        "2 of 18 windows were heard again (2 cap)",
    ]
    assert session.lengths == [SHORT, None]
    assert session.longest <= 4 + most_tokens(300, RATE_HZ), "the short one was stopped at the cap"


def test_a_loop_is_heard_again_although_nothing_protects_the_full_window():
    session = scripted([1, *[3, 4] * 5], [*[3, 4] * 6, 7])
    text, tally = heard(session, loud(0.3), options=replace(PLAIN, stop_repeats=False))
    assert tally.second_tries == {"loop": 1}
    assert text == 6 * " two three" + " six"


def test_what_fails_the_users_own_test_is_heard_again():
    def unsure(fed, _window):
        return np.zeros(MODEL.tokens.timestamp_begin + 51, np.float32)

    session = FakeSession(unsure)
    _, tally = heard(session, loud(0.3), options=replace(PLAIN, log_probability_limit=-1.0, max_tokens=3))
    assert tally.second_tries == {"unlikely": 1}


def test_a_loud_window_of_which_nothing_was_heard_is_heard_again():
    long = replace(MODEL, windows=EncoderWindows("auto", (3 * WINDOW, 4 * WINDOW), TAIL), window_samples=4 * WINDOW)
    session = scripted([7], [0, 1, 2])
    assert heard(session, loud(2.5), long) == (" yes no one", Tally(windows=1, short=1, second_tries={"short": 1}))
    assert session.lengths == [3 * WINDOW, None]


@pytest.mark.parametrize(
    ("says", "changes", "heard_samples"),
    [
        ([7], {}, [3900, 1700, 2200]),
        ([7, 6, 5, 4, 3, 2], {}, [3900]),  # 1.5 tokens a second of 3.5 s would do
        ([7], {"stop_repeats": False}, [3900, 1700, 2200]),
        ([7], {"quiet_cuts": False}, [3900]),
    ],
)
def test_a_full_window_of_which_too_little_is_said_is_heard_again_to_a_quiet_moment(says, changes, heard_samples):
    model = replace(MODEL, windows=EncoderWindows("full", (4 * WINDOW,), 0), window_samples=4 * WINDOW)
    audio = loud(3.9)
    audio[1500:1900] *= 0.01
    session = scripted(says, [0, 1, 2], [3, 4, 5])
    tally = Tally()
    windows = list(transcribe_windows(session, model, audio, replace(PLAIN, **changes), tally))
    assert (tally.second_tries, tally.windows) == ({"cut": 1} if len(heard_samples) > 1 else {}, len(windows))
    assert [len(samples) for samples in session.windows] == heard_samples
    assert [window.samples for window in windows] == heard_samples[-2:]
    np.testing.assert_array_equal(np.concatenate(session.windows[-len(windows) :]), audio)


def test_the_silent_part_of_a_cut_window_is_not_decoded():
    model = replace(MODEL, windows=EncoderWindows("full", (4 * WINDOW,), 0), window_samples=4 * WINDOW)
    audio = loud(3.9)
    audio[:1900] = 0.0
    session = scripted([7], [0, 1, 2])
    text, tally = heard(session, audio, model)
    assert text == " yes no one"
    assert [len(samples) for samples in session.windows] == [3900, 2200]
    assert (tally.windows, tally.second_tries) == (1, {"cut": 1})


def test_long_audio_is_cut_as_ever_and_its_rest_is_heard_in_a_short_window():
    session = scripted([0, 1], [2, 3])
    windows = list(transcribe_windows(session, TWO_WINDOWS, loud(1.25), replace(PLAIN, quiet_cuts=False)))
    assert [window.samples for window in windows] == [WINDOW, 250]
    assert session.lengths == [None, SHORT]


def test_seconds_cut_long_audio_into_pieces_that_fit():
    model = replace(MODEL, windows=EncoderWindows("0.4", (SHORT, WINDOW), TAIL))
    session, tally = scripted([0, 1]), Tally()
    audio = loud(1.25)
    audio[190:230] = audio[480:520] = 0.0  # the quiet moments
    windows = list(transcribe_windows(session, model, audio, PLAIN, tally))
    assert sum(window.samples for window in windows) == len(audio) // 10 * 10
    assert max(window.samples for window in windows) <= SHORT - TAIL
    assert tally == Tally(windows=len(windows), short=len(windows))
    assert set(session.lengths) == {SHORT}


PIECES = replace(MODEL, windows=EncoderWindows("0.4", (SHORT, WINDOW), TAIL))


def pieces_heard(audio, *scripts: list[int], **changes):
    """Windows and segments (first second, last, text) of audio heard in pieces of 300 samples at most."""
    session = scripted(*scripts)
    options = replace(PLAIN, timestamps=True, **changes)
    windows = list(transcribe_windows(session, PIECES, audio, options))
    segments = [segment for window in windows for segment in window.segments]
    return windows, [(round(each.start_s, 2), round(each.end_s, 2), each.text) for each in segments]


def test_the_next_piece_begins_where_one_was_cut():
    audio, pair = loud(0.7), [at_time(0.0), 2, at_time(0.12), at_time(0.12)]
    windows, segments = pieces_heard(audio, [*pair, 3], [*pair, 4], [at_time(0.0), 5, at_time(0.9), at_time(0.9)])
    first, second, third = windows
    assert [second.start, third.start] == [first.samples, first.samples + second.samples]
    assert all(window.advance == window.samples for window in windows)
    cuts = [round(window.start / RATE_HZ, 2) for window in windows]
    assert segments == [
        (0.0, 0.12, " one"),
        (0.12, cuts[1], " two"),  # what was said after the last pair of timestamps
        (cuts[1], round(second.start / RATE_HZ + 0.12, 2), " one"),
        (round(second.start / RATE_HZ + 0.12, 2), cuts[2], " three"),
        (cuts[2], 0.7, " four"),
    ]


def test_a_piece_is_heard_to_its_end_where_the_model_would_stop_in_a_segment_that_has_begun(monkeypatch):
    """What may not be said is the end; the script goes on after it with what is said in its place."""
    monkeypatch.setattr("leanear.runtimes.speech.attempts.LEFT_S", 0.1)
    audio, script = loud(0.5), [at_time(0.0), 2, at_time(0.06), at_time(0.06), END, 4, at_time(0.28)]
    (piece, *_), _ = pieces_heard(audio, script)
    assert piece.decoded.tokens[:4] == tuple(script[:4])
    assert piece.decoded.tokens[-2:] == (4, at_time(0.28))
    audio[60:300] *= 0.01  # 40 dB quieter, so that there is nothing more to be heard
    (piece, *_), _ = pieces_heard(audio, script)
    assert piece.decoded.tokens == tuple(script[:4])
    assert piece.advance == piece.samples


def test_a_piece_may_end_at_a_single_timestamp_as_of_noise_after_speech(monkeypatch):
    monkeypatch.setattr("leanear.runtimes.speech.attempts.LEFT_S", 0.1)
    script = [at_time(0.0), 2, at_time(0.06), END, 4, at_time(0.28)]
    (piece, *_), _ = pieces_heard(loud(0.5), script)
    assert piece.decoded.tokens == tuple(script[:3])
    assert piece.advance == piece.samples


def test_a_piece_that_is_heard_again_is_heard_to_its_end_where_something_ends_a_loop(monkeypatch):
    monkeypatch.setattr("leanear.runtimes.speech.attempts.LEFT_S", 0.1)
    looped = [at_time(0.0), *[3, 4] * 5, at_time(0.28)]
    early = [at_time(0.0), 2, at_time(0.06), at_time(0.06), END, 4, at_time(0.28)]
    (piece, *_), _ = pieces_heard(loud(0.5), looped, early)
    assert piece.decoded.tokens[-2:] == (4, at_time(0.28))
    (piece, *_), _ = pieces_heard(loud(0.5), looped, early, stop_repeats=False)
    assert piece.decoded.tokens == tuple(early[:4])


def test_windows_that_follow_what_was_said_before_go_on_from_the_last_timestamp():
    windows, _ = pieces_heard(loud(0.7), [at_time(0.0), 2, at_time(0.1), at_time(0.1)], condition=True)
    assert [window.start for window in windows[:3]] == [0, 100, 200]


def test_pieces_are_read_ahead_only_where_several_are_decoded_together():
    class Tape:
        def __init__(self) -> None:
            self.read_to = 0

        def __getitem__(self, span: slice) -> np.ndarray:
            self.read_to = span.stop
            return loud(20.0)[span]

    for batch, takes_several, most in ((1, True, 2 * SHORT), (4, False, 2 * SHORT), (4, True, 16 * SHORT)):
        tape, session = Tape(), scripted([0, 1])
        session.takes_several = takes_several
        session.encode_several = lambda windows, length, of=session: of.encode(windows[0], length)
        next(transcribe_windows(session, PIECES, tape, replace(PLAIN, batch=batch)))
        assert tape.read_to <= max(most, WINDOW + 10)
        assert (tape.read_to > 2 * WINDOW) == (batch > 1 and takes_several)
