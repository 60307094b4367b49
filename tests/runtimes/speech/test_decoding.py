"""One window over made-up sessions: searches against ones that try everything, prompts, budgets, loops."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from leanear.runtimes.errors import BadInput, MeasurementFailed
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.decoding import Decoded, decode_window
from leanear.runtimes.speech.speech_model import SpeechModel
from tests.runtimes.speech_sessions import (
    DE,
    EN,
    END,
    MODEL,
    NO_SPEECH,
    NO_TIMESTAMPS,
    PREVIOUS,
    SIZE,
    START,
    TIMES,
    TRANSCRIBE,
    TRANSLATE,
    FakeSession,
    at_time,
    hashed,
    model_with,
    scripted,
)

PLAIN = DecodeOptions(timestamps=False, stop_repeats=False)
WINDOW = np.ones(100, np.float32)


def decode(session: FakeSession, options: DecodeOptions = PLAIN, model: SpeechModel = MODEL, **settings) -> Decoded:
    session.encode(WINDOW)
    return decode_window(session, model.tokens, options, **settings)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


# A model of four tokens: three words and the end, no rules and a prompt of the start alone.
SMALL = model_with(
    start=3, end=3, previous=None, no_speech=None, no_timestamps=None, timestamp_begin=None, transcribe=None,
    translate=None, languages={}, default_language=None, multilingual=False, suppress=(), begin_suppress=(),
)  # fmt: skip
SMALL_END = 3


def log_probabilities_of(session: FakeSession) -> Callable[[tuple[int, ...]], np.ndarray]:
    return lambda said: log_softmax(session._logits([SMALL.tokens.start, *said], WINDOW))


def naive_beams(
    after: Callable[[tuple[int, ...]], np.ndarray], budget: int, beams: int, patience: float, penalty: float | None
) -> tuple[tuple[int, ...], bool, float]:
    """openai's beam search with dictionaries of whole sequences, one call per prefix."""
    live, ended = {(): 0.0}, {}
    wanted = max(round(beams * patience), 1)
    for _ in range(budget):
        scores = {}
        for said, total in live.items():
            values = after(said)
            for token in np.argsort(-values)[: beams + 1]:
                scores[(*said, int(token))] = total + values[token]
        live = {}
        for said in sorted(scores, key=lambda sequence: -scores[sequence]):
            if said[-1] == SMALL_END:
                if len(ended) < wanted:
                    ended[said] = scores[said]
            else:
                live[said] = scores[said]
            if len(live) == beams:
                break
        if len(ended) >= wanted:
            break
    results = [(said[:-1], True, total) for said, total in ended.items()]
    for said in sorted(live, key=lambda sequence: -live[sequence])[: max(beams - len(results), 0)]:
        results.append((said, False, live[said]))

    def rank(result: tuple[tuple[int, ...], bool, float]) -> float:
        length = len(result[0])
        return result[2] / (max(length, 1) if penalty is None else ((5 + length) / 6) ** penalty)

    return max(results, key=rank)


@pytest.mark.parametrize("beams", [2, 3, 5])
@pytest.mark.parametrize("patience", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("penalty", [None, 0.0, 1.0])
def test_beam_search_is_openais(beams, patience, penalty):
    options = DecodeOptions(
        timestamps=False, beam_size=beams, patience=patience, length_penalty=penalty, max_tokens=7, stop_repeats=False
    )
    for seed in range(20):
        session = hashed(seed, size=8, spread=1.5)
        found = decode(session, options, SMALL)
        tokens, ended, total = naive_beams(log_probabilities_of(session), 7, beams, patience, penalty)
        assert (found.tokens, found.ended) == (tokens, ended)
        assert found.average_log_probability == pytest.approx(total / max(len(tokens) + ended, 1), abs=1e-5)


def test_a_beam_as_wide_as_the_tree_finds_the_best_transcript_of_all():
    for seed in range(20):
        session = hashed(seed, size=4, spread=1.0)
        options = DecodeOptions(timestamps=False, beam_size=27, patience=100.0, max_tokens=3, stop_repeats=False)
        # Of four tokens all are among the likeliest 28.
        found = decode(session, options, SMALL)
        after, best = log_probabilities_of(session), (-np.inf, ())
        for length in range(4):
            for said in itertools.product(range(3), repeat=length):
                total = sum(after(said[:place])[token] for place, token in enumerate(said))
                total += after(said)[SMALL_END] if length < 3 else 0.0
                best = max(best, (total / max(length, 1), said))
        assert found.tokens == best[1]


def test_one_beam_is_greedy_and_beams_are_at_least_as_likely_on_average():
    gains = []
    for seed in range(20):
        greedy = decode(hashed(seed), DecodeOptions(timestamps=False, max_tokens=6, stop_repeats=False))
        said: list[int] = []
        session, banned = hashed(seed), [*MODEL.tokens.suppress]
        while len(said) < 6:
            logits = session._logits([START, EN, TRANSCRIBE, NO_TIMESTAMPS, *said], WINDOW).copy()
            logits[banned] = -np.inf
            logits[END] = -np.inf if not said else logits[END]
            if logits.argmax() == END:
                break
            said.append(int(logits.argmax()))
        assert greedy.tokens == tuple(said)
        wide = decode(hashed(seed), DecodeOptions(timestamps=False, max_tokens=6, beam_size=6, stop_repeats=False))
        gains.append(wide.average_log_probability - greedy.average_log_probability)
    assert np.mean(gains) > 0


@pytest.mark.parametrize(
    ("options", "model", "prompt"),
    [
        (PLAIN, MODEL, [START, EN, TRANSCRIBE, NO_TIMESTAMPS]),
        (DecodeOptions(task="translate", language="de", timestamps=True), MODEL, [START, DE, TRANSLATE]),
        (DecodeOptions(timestamps=False, language="de"), MODEL, [START, DE, TRANSCRIBE, NO_TIMESTAMPS]),
        (PLAIN, model_with(multilingual=False, languages={}, default_language=None), [START, NO_TIMESTAMPS]),
        (DecodeOptions(), model_with(multilingual=False, languages={}, default_language=None), [START]),
    ],
)
def test_the_prompt(options, model, prompt):
    for no_speech in (False, True):
        fed: list[list[int]] = []

        def logits(row: list[int], _window: np.ndarray, fed=fed) -> np.ndarray:
            fed.append(row)
            answer = np.zeros(SIZE, np.float32)
            answer[[3, END]] = (1.0, 0.0) if not fed or len(fed[-1]) <= len(prompt) else (0.0, 1.0)
            return answer

        decode(FakeSession(logits), options, model, no_speech=no_speech)
        assert prompt in fed
        assert all(row[: len(prompt)] == prompt[: len(row)] for row in fed)
        assert ([START] in fed) == (no_speech or prompt == [START])


def test_earlier_text_stands_before_the_start():
    session = scripted([1, 2])
    found = decode(session, previous=[4, 5])
    assert found.tokens == (1, 2)
    assert session.rows[0][:7] == [PREVIOUS, 4, 5, START, EN, TRANSCRIBE, NO_TIMESTAMPS]


def test_a_model_without_a_token_for_it_is_shown_no_earlier_text():
    session = scripted([1, 2])
    decode(session, model=model_with(previous=None), previous=[4, 5])
    assert session.rows[0][0] == START


def test_language_and_no_speech_are_read_after_the_start_alone():
    def logits(fed: list[int], _window: np.ndarray) -> np.ndarray:
        row = np.zeros(SIZE, np.float32)
        if fed == [START]:
            row[DE], row[EN], row[NO_SPEECH], row[3] = 2.0, 1.0, 3.0, 9.0
        else:
            row[END if len(fed) > 4 else 2] = 5.0
        return row

    found = decode(FakeSession(logits), DecodeOptions(language="auto", timestamps=False))
    assert (found.language, found.tokens) == ("de", (2,))
    expected = np.exp(3.0) / (np.exp([2.0, 1.0, 3.0, 9.0]).sum() + SIZE - 4)
    assert found.no_speech_probability == pytest.approx(expected, rel=1e-6)


def test_no_language_and_no_speech_token_cost_no_step_of_their_own():
    session = scripted([1, 2])
    found = decode(session, no_speech=False)
    assert (found.no_speech_probability, session.steps) == (None, 3)
    session = scripted([1, 2])
    assert decode(session, model=model_with(no_speech=None)).no_speech_probability is None
    assert session.steps == 3


def test_the_average_log_probability_counts_the_end():
    found = decode(scripted([1, 2, 3], certainty=3.0))

    def probability(free: int) -> float:
        return 3.0 - np.log(np.exp(3.0) + free - 1)

    free = SIZE - len(MODEL.tokens.suppress)
    expected = (probability(free - 1) + 3 * probability(free)) / 4  # at first the end may not be said
    assert found.average_log_probability == pytest.approx(expected, abs=1e-5)
    assert found.ended


@pytest.mark.parametrize("beams", [1, 3])
def test_positions_are_the_budget(beams):
    session = hashed(5, spread=0.1)
    options = DecodeOptions(timestamps=False, beam_size=beams, stop_repeats=False)
    found = decode(session, options, model_with(positions=12, suppress=(END, *MODEL.tokens.suppress)))
    assert len(found.tokens) == 12 - 4
    assert not found.ended
    assert session.longest == 11  # the last token is not fed: nothing follows it
    limited = DecodeOptions(timestamps=False, beam_size=beams, max_tokens=3, stop_repeats=False)
    assert len(decode(hashed(5, spread=0.1), limited, model_with(suppress=(END, *MODEL.tokens.suppress))).tokens) == 3


def test_a_prompt_that_fills_the_positions_says_nothing():
    for beams in (1, 2):
        found = decode(scripted([1]), DecodeOptions(timestamps=False, beam_size=beams), model_with(positions=4))
        assert (found.tokens, found.ended, found.average_log_probability) == ((), False, 0.0)


def test_samples_are_drawn_as_likely_as_they_are():
    logits = np.full(SIZE, -np.inf, np.float32)
    weights = {1: 0.5, 2: 0.3, 3: 0.2}
    for token, weight in weights.items():
        logits[token] = np.log(weight)
    session = FakeSession(lambda fed, window: logits)
    for temperature in (1.0, 0.5):
        options = DecodeOptions(timestamps=False, best_of=1, max_tokens=1)
        generator = np.random.default_rng(0)
        drawn = [decode(session, options, temperature=temperature, generator=generator).tokens[0] for _ in range(1500)]
        powers = {token: weight ** (1 / temperature) for token, weight in weights.items()}
        for token, power in powers.items():
            share = power / sum(powers.values())
            assert abs(drawn.count(token) / 1500 - share) < 4 * np.sqrt(share * (1 - share) / 1500)


def test_a_cold_sample_is_greedy_and_a_seed_decides():
    options = DecodeOptions(timestamps=False, best_of=2, max_tokens=8, stop_repeats=False, seed=4)
    greedy = decode(hashed(1), options)
    assert decode(hashed(1), options, temperature=1e-4).tokens == greedy.tokens
    assert decode(hashed(1), options, temperature=1.0) == decode(hashed(1), options, temperature=1.0)
    other = [
        decode(hashed(1), options, temperature=1.0, generator=np.random.default_rng(seed)).tokens for seed in range(5)
    ]
    assert len(set(other)) > 1


def test_the_likeliest_of_several_samples_is_taken():
    session = hashed(2)
    options = DecodeOptions(timestamps=False, best_of=8, max_tokens=6, stop_repeats=False)
    found = decode(session, options, temperature=1.0)
    free = SIZE - len(MODEL.tokens.suppress)
    totals = []
    for row in session.rows:
        said = row[4:] if END not in row[4:] else row[4 : row.index(END, 4) + 1]
        total = 0.0
        for place, token in enumerate(said):
            logits = session._logits([*row[:4], *said[:place]], WINDOW).copy()
            logits[[*MODEL.tokens.suppress, *([END] if place == 0 else [])]] = -np.inf
            total += log_softmax(logits)[token]
        totals.append((total, said))
    assert free > 0
    # The last token of a row that used up the budget was never fed, so rows are compared with what they share.
    assert any(list(found.tokens[: len(said)]) == [t for t in said if t != END] for _, said in totals)
    single = decode(hashed(2), DecodeOptions(timestamps=False, best_of=1, max_tokens=6), temperature=1.0)
    assert found.average_log_probability >= single.average_log_probability


def test_timestamps_follow_the_rules():
    session = hashed(3)
    for seed in range(30):
        session = hashed(seed)
        said = decode(session, DecodeOptions(stop_repeats=False), MODEL).tokens
        times = [token for token in said if token >= TIMES]
        assert said[0] >= TIMES
        assert times == sorted(times)
        assert NO_TIMESTAMPS not in said


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_loop_is_stopped_early_and_its_first_round_kept(beams, temperature):
    session = scripted([4, *[1, 2, 3] * 40])
    options = DecodeOptions(timestamps=False, beam_size=beams, best_of=2)
    found = decode(session, options, model_with(positions=448), temperature=temperature)
    assert (found.tokens, found.looped, found.ended) == ((4, 1, 2, 3), True, False)
    assert session.longest < 60


def test_a_loop_of_timed_text_is_a_loop():
    script = []
    for step in range(0, 48, 2):
        script += [TIMES + step, 1, 2, TIMES + step + 2]
    found = decode(scripted(script), DecodeOptions(), model_with(positions=448))
    assert found.looped
    assert found.tokens == (at_time(0.0), 1, 2, at_time(0.04))


def test_without_protection_a_loop_goes_on_to_the_budget():
    found = decode(scripted([1] * 1000), PLAIN)
    assert (len(found.tokens), found.looped) == (60, False)


@pytest.mark.parametrize(
    ("options", "model", "complaint"),
    [
        ({"language": "fr"}, MODEL, "language: this model has no 'fr'; it has de, en"),
        ({"task": "translate"}, model_with(multilingual=False, languages={}), "cannot translate"),
        ({"task": "translate"}, model_with(translate=None), "cannot translate"),
        ({"language": "de"}, model_with(multilingual=False, languages={}), "knows one language"),
        ({"timestamps": True}, model_with(timestamp_begin=None), "no timestamp tokens"),
    ],
)
def test_what_a_model_cannot_do_is_one_line(options, model, complaint):
    with pytest.raises(BadInput, match=complaint):
        decode(scripted([1]), DecodeOptions(**{"timestamps": False, **options}), model)


@pytest.mark.parametrize(
    "wrong",
    [
        {"task": "summarise"},
        {"beam_size": 0},
        {"best_of": 0},
        {"max_tokens": 0},
        {"temperatures": ()},
        {"temperatures": (-0.1,)},
        {"temperatures": (float("nan"),)},
        {"patience": 0.0},
    ],
)
def test_options_out_of_range_are_named(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        DecodeOptions(**wrong)


def test_a_decoder_of_another_size_is_one_line():
    with pytest.raises(BadInput, match="the decoder knows 12 tokens"):
        decode(FakeSession(lambda fed, window: np.zeros(12, np.float32), size=12))


@pytest.mark.parametrize("beams", [1, 2])
def test_logits_that_are_no_numbers_are_no_transcript(beams):
    session = FakeSession(lambda fed, window: np.full(SIZE, np.nan, np.float32))
    with pytest.raises(MeasurementFailed, match="NaN"):
        decode(session, DecodeOptions(timestamps=False, beam_size=beams, max_tokens=3))
