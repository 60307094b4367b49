"""Loops by comparison with a search that tries everything; the compression ratio by hand."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from leanear.runtimes.speech.tokens.repeats import LOOP_TIMES, LOOP_TOKENS, compression_ratio, loop_start


def brute_force(tokens: list[int]) -> tuple[int, int] | None:
    for period in range(1, len(tokens) // LOOP_TIMES + 1):
        length = period
        while length < len(tokens) and tokens[-1 - length] == tokens[-1 - length + period]:
            length += 1
        if length >= max(LOOP_TOKENS, LOOP_TIMES * period):
            return len(tokens) - length, period
    return None


def test_loops_are_those_that_a_search_finds():
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(500):
        start = generator.integers(0, 4, size=generator.integers(0, 30)).tolist()
        unit = generator.integers(0, 4, size=generator.integers(1, 14)).tolist()
        tokens = [*start, *(unit * int(generator.integers(1, 12)))]
        tokens = tokens[: len(tokens) - int(generator.integers(0, 3))]
        assert loop_start(tokens) == brute_force(tokens)
        found += loop_start(tokens) is not None
    assert 100 < found < 450


@pytest.mark.parametrize("tokens", [[], [1], [1] * (LOOP_TOKENS - 1), list(range(200)), [1, 2, 3] * 10])
def test_what_people_may_say_is_no_loop(tokens):
    assert loop_start(tokens) is None


def test_a_loop_is_found_where_it_starts_and_with_its_shortest_period():
    assert loop_start([5, 6, *[1, 2] * 16]) == (2, 2)
    assert loop_start([7] * LOOP_TOKENS) == (0, 1)
    assert loop_start([*[1, 2, 3] * 11, 1]) == (0, 3)


def test_the_compression_ratio_is_of_the_stripped_text():
    text = "It was the best of times."
    assert compression_ratio(f"  {text} ") == len(text) / len(zlib.compress(text.encode()))
    assert compression_ratio("") == 0.0
    assert compression_ratio("ünd " * 100) > 2.4
