"""The rules, row by row, against transformers' own logits processors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)

from leanear.runtimes.speech.search import TokenRules
from tests.runtimes.speech_sessions import END, NO_TIMESTAMPS, SIZE, STEPS, TIMES, TOKENS, WORDS, model_with

PROMPT = 4


def theirs(scores: np.ndarray, said: list[int], max_initial: int | None, timestamps: bool) -> np.ndarray:
    config = GenerationConfig(eos_token_id=END, bos_token_id=END)
    config.no_timestamps_token_id, config.max_initial_timestamp_index = NO_TIMESTAMPS, max_initial
    processors = [
        SuppressTokensAtBeginLogitsProcessor(TOKENS.begin_suppress, begin_index=PROMPT),
        SuppressTokensLogitsProcessor(TOKENS.suppress),
    ]
    if timestamps:
        processors.append(WhisperTimeStampLogitsProcessor(config, begin_index=PROMPT))
    tokens, row = torch.tensor([[0] * PROMPT + said]), torch.from_numpy(scores[None].copy())
    for processor in processors:
        row = processor(tokens, row)
    return row[0].numpy()


def random_history(generator: np.random.Generator) -> list[int]:
    """Text and timestamps in any order, legal or not, with stretches of both."""
    said: list[int] = []
    time = 0
    for _ in range(generator.integers(0, 12)):
        kind = generator.random()
        if kind < 0.55:
            said.append(int(generator.integers(len(WORDS))))
        elif kind < 0.95:
            time = min(time + int(generator.integers(0, 12)), STEPS)
            said.append(TIMES + time)
        else:
            said.append(TIMES + int(generator.integers(STEPS + 1)))
    return said


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("max_initial", [None, 0, 7])
def test_what_may_be_said_is_what_transformers_allows(timestamps, max_initial):
    generator = np.random.default_rng(0)
    rules = TokenRules(model_with(max_initial_timestamp_index=max_initial).tokens, timestamps)
    outcomes = set()
    for _ in range(700):
        said = random_history(generator)
        scores = (generator.choice([0.5, 3.0]) * generator.standard_normal(SIZE)).astype(np.float32)
        scores[TIMES:] += np.float32(generator.choice([-3.0, 0.0, 1.0]))  # now and then timestamps together win
        expected = theirs(scores, said, max_initial, timestamps)
        found = scores[None].copy()
        rules.apply(found, [said])
        np.testing.assert_array_equal(found[0], expected)
        outcomes.add((bool(np.isfinite(expected[: len(WORDS)]).any()), bool(np.isfinite(expected[TIMES:]).any())))
    if timestamps:  # all three were seen: text is wanted, a timestamp is, either may come
        assert outcomes == {(True, False), (True, True), (False, True)}


def test_rows_have_histories_of_their_own():
    generator = np.random.default_rng(1)
    rules = TokenRules(TOKENS, True)
    histories = [random_history(generator) for _ in range(8)]
    scores = generator.standard_normal((8, SIZE)).astype(np.float32)
    expected = np.stack([theirs(row, said, None, True) for row, said in zip(scores, histories)])
    rules.apply(scores, histories)
    np.testing.assert_array_equal(scores, expected)


@pytest.mark.parametrize(
    ("said", "ends"), [([0, 1, 5], True), ([0, 1, 5, 5], False), ([0, 1, 9, 9], True), ([0], True)]
)
def test_a_text_ends_early_after_a_single_timestamp_and_not_after_a_pair_whatever_the_model_is_sure_of(said, ends):
    history = [each if each == 1 else TIMES + each for each in said]
    scores = np.zeros((1, SIZE), np.float32)
    scores[0, END] = 20.0
    expected = theirs(scores[0], history, None, True)
    assert np.isfinite(expected[END])
    expected[END] = expected[END] if ends else -np.inf
    TokenRules(TOKENS, True).apply(scores, [history], [TIMES + 9])
    np.testing.assert_array_equal(scores[0], expected)


def test_a_short_text_does_not_end_where_what_is_never_said_is_likelier():
    rules, quote = TokenRules(TOKENS, timestamps=False, least=3), TOKENS.suppress[0]
    likely = np.zeros((5, SIZE), dtype=np.float32)
    likely[:, END], likely[:, 1] = 2.0, 1.0
    likely[[0, 1, 3, 4], quote] = 3.0
    rules.apply(likely, [[1], [1, 1, 1], [1], [], [TIMES, 1, TIMES + 9]])
    assert likely.argmax(axis=1).tolist()[:3] == [1, END, END], "one goes on; one has said enough; one would end anyway"
    assert likely[3, END] == likely[4, END] == -np.inf, "times are not words"


def test_where_nothing_may_be_said_the_end_may():
    rules = TokenRules(model_with(suppress=tuple(range(SIZE))).tokens, False)
    scores = np.ones((1, SIZE), np.float32)
    rules.apply(scores, [[]])
    assert np.flatnonzero(np.isfinite(scores[0])).tolist() == [END]


def test_a_full_clock_leaves_text_and_the_end():
    rules = TokenRules(TOKENS, True)
    scores = np.zeros((1, SIZE), np.float32)
    scores[0, TIMES:] = 5.0
    rules.apply(scores, [[TIMES, 1, TIMES + STEPS, TIMES + STEPS, 2]])
    allowed = np.flatnonzero(np.isfinite(scores[0]))
    assert allowed.tolist() == [*range(len(WORDS)), END]


def test_words_behind_the_timestamps_are_text():
    """The rules are those of the same model with its added words in front of all other tokens."""
    added, own = 2, SIZE
    behind = replace(TOKENS, timestamp_end=own)
    ids = ("start", "end", "previous", "no_speech", "no_timestamps", "timestamp_begin", "transcribe", "translate")
    moved = {name: getattr(TOKENS, name) + added for name in ids}
    lists = {name: tuple(token + added for token in getattr(TOKENS, name)) for name in ("suppress", "begin_suppress")}
    in_front = TokenRules(replace(TOKENS, **moved, **lists), True)
    generator = np.random.default_rng(3)
    for _ in range(300):
        said = [own + int(generator.integers(added)) if token == 1 else token for token in random_history(generator)]
        scores = generator.standard_normal(own + added).astype(np.float32)
        scores[TIMES:own] += np.float32(generator.choice([-3.0, 0.0, 1.0]))
        expected = np.roll(scores, added)[None]
        in_front.apply(expected, [[(token + added) % (own + added) for token in said]])
        found = scores[None].copy()
        TokenRules(behind, True).apply(found, [said])
        np.testing.assert_array_equal(np.roll(found[0], added), expected[0])
