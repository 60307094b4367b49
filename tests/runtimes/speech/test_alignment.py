"""Token times against brute force, scipy, a synthetic diagonal, and transformers' own token timestamps."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter as scipy_median_filter

from leanear.export.whisper.golden_speech import cross_attention, window_states
from leanear.families import whisper
from leanear.runtimes.manifest import Alignment
from leanear.runtimes.speech.word_times import first_columns, median_filter, softmax, token_positions, warp
from tests.whisper_models import make_extractor, make_whisper


def all_paths(rows: int, columns: int):
    """Every monotonic path of a small matrix."""
    if (rows, columns) == (1, 1):
        yield [(0, 0)]
        return
    before = [(rows - 1, columns - 1), (rows - 1, columns), (rows, columns - 1)]
    for shape in before:
        if min(shape) > 0:
            for path in all_paths(*shape):
                yield [*path, (rows - 1, columns - 1)]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 6), (5, 1), (3, 4), (4, 4), (5, 3), (4, 6)])
def test_the_path_is_the_cheapest_of_all(rows, columns):
    for seed in range(10):
        costs = np.random.default_rng(seed).normal(size=(rows, columns))
        found = warp(costs)
        cheapest = min(all_paths(rows, columns), key=lambda path: sum(costs[cell] for cell in path))
        assert found == cheapest


def test_the_path_of_a_large_matrix_costs_what_plain_recursion_says():
    costs = np.random.default_rng(0).normal(size=(60, 200)).astype(np.float32)
    totals = np.full((61, 201), np.inf)
    totals[0, 0] = 0.0
    for row, column in itertools.product(range(60), range(200)):
        before = min(totals[row, column], totals[row, column + 1], totals[row + 1, column])
        totals[row + 1, column + 1] = before + costs[row, column]
    path = warp(costs)
    assert sum(float(costs[cell]) for cell in path) == pytest.approx(totals[-1, -1])
    steps = np.diff(path, axis=0)
    assert set(map(tuple, steps.tolist())) <= {(0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize("width", [1, 3, 7])
@pytest.mark.parametrize("length", [4, 5, 30])
def test_the_median_is_that_of_scipy(width, length):
    values = np.random.default_rng(width).normal(size=(2, 3, length)).astype(np.float32)
    found = median_filter(values, width)
    assert np.array_equal(found, scipy_median_filter(values, size=(1, 1, width), mode="mirror"))


def test_an_axis_too_short_for_the_median_stays_as_it_is():
    values = np.array([[3.0, 1.0, 2.0]])
    assert np.array_equal(median_filter(values, 7), values)


def test_tokens_on_a_diagonal_begin_where_it_enters_their_rows():
    heads, lengths = 3, [4, 9, 5, 12, 6, 10]
    looked_at = np.repeat(np.arange(6), lengths)
    noise = np.random.default_rng(0).normal(size=(heads, 8, sum(lengths)))
    scores = noise.astype(np.float32)
    scores[:, 2:] += 8.0 * (looked_at == np.arange(6)[:, np.newaxis])  # behind a prompt of two
    found = token_positions(scores, 2, 6, 3)
    assert np.abs(found - np.cumsum([0, *lengths[:-1]])).max() <= 1


def test_heads_that_look_at_nothing_in_particular_do_no_harm():
    assert token_positions(np.zeros((2, 4, 10), np.float32), 1, 3, 7).tolist() == sorted(
        token_positions(np.zeros((2, 4, 10), np.float32), 1, 3, 7).tolist()
    )


class Outputs(SimpleNamespace):
    """As `generate` hands them on: they can be asked for what they have."""

    def __contains__(self, name: str) -> bool:
        return hasattr(self, name)


@pytest.mark.parametrize("seed", range(4))
def test_positions_are_the_token_timestamps_of_transformers(seed):
    """Where the audio fills the window, for theirs crops after the softmax; theirs leaves the prompt out of all."""
    model = make_whisper(seed=seed)
    waveform = (0.1 * np.random.default_rng(seed).standard_normal(32_000)).astype(np.float32)
    tokens = np.random.default_rng(seed).integers(0, 200, 24)
    heads = [[0, 0], [1, 0], [1, 1]]
    with torch.inference_mode():
        states = window_states(model.model.encoder, whisper.features(make_extractor(), [waveform]))
        weights = cross_attention(model, tokens, states)
    outputs = Outputs(
        cross_attentions=[tuple(torch.from_numpy(of_layer)[None] for of_layer in weights)],
        sequences=torch.from_numpy(tokens)[None],
    )
    theirs = model._extract_token_timestamps(outputs, heads, num_frames=200, num_input_ids=3)[0, 3:-1]
    chosen = np.stack([np.log(weights[layer][head][3:]) for layer, head in heads])
    ours = token_positions(chosen, 0, len(tokens) - 3, model.config.median_filter_width)
    assert np.allclose(0.02 * ours, theirs.numpy())
    assert ours.max() > 0


def test_softmax_is_that_of_torch():
    scores = 30 * np.random.default_rng(0).normal(size=(2, 3, 40)).astype(np.float32)
    assert np.allclose(softmax(scores), torch.softmax(torch.from_numpy(scores), dim=-1).numpy(), atol=1e-7)


def test_first_columns_of_a_path():
    assert first_columns([(0, 0), (0, 1), (1, 2), (2, 2), (2, 3)]).tolist() == [0, 2, 2]


def test_where_heads_come_from_is_said():
    alignment = Alignment(((0, 1), (2, 3)), "upper half", lost=2, filter_positions=5)
    assert alignment.sentence.endswith("; 2 more of the model's own list were pruned")
