"""The ranking's parts against finite differences, numpy and a dense model with zeros; the method's sizes are nested."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import nn

from leanear.data.examples import LabelledInputs
from leanear.families import ast
from leanear.progress import quiet
from leanear.runtimes.errors import BadInput
from leanear.studies import one_ranking as module
from leanear.studies.methods import SPEECH_MODEL, Bench, methods, methods_beyond_attention
from leanear.studies.one_ranking import (
    DAMPING,
    FITNESS_SHARES,
    Away,
    Kept,
    OneRanking,
    Ranking,
    correct_,
    crossed_entropy,
    local_ranking,
    model_of,
    natural_evolution,
    random_crop,
    starting_factors,
)
from tests.conftest import TINY_LABELS, make_tiny_ast

SHORT = OneRanking(corrected=False, clips=4, fitness_clips=4, local_crops=1, evaluations=3)


def clips(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 46, 128, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def embedded_by_hand(model, inputs: torch.Tensor) -> np.ndarray:
    """What the classifier's layer norm makes of the pooled tokens, of a dense model and of a slim one."""
    found = model.audio_spectrogram_transformer(inputs)
    return model.classifier.layernorm(getattr(found, "pooler_output", found)).double().numpy()


def crossed_by_numpy(targets: np.ndarray, embedded: np.ndarray) -> float:
    """Pair by pair; targets (2, D): of the first two crops."""
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (targets, embedded)]
    pairs = [(target, crop) for target in range(2) for crop in range(len(embedded)) if target != crop]
    return -sum(float(softmax(units[0][target]) @ log_softmax(units[1][crop])) for target, crop in pairs)


def test_the_loss_is_every_pair_of_a_target_and_another_crop():
    embedded = np.random.default_rng(0).normal(size=(5, 7))
    targets, crops = torch.from_numpy(embedded[:2]), torch.from_numpy(embedded)
    expected = crossed_by_numpy(embedded, embedded)
    assert crossed_entropy(targets, crops).item() == pytest.approx(expected)
    parts = crossed_entropy(targets, crops[:1]) + crossed_entropy(targets, crops[1:], 1)
    assert parts.item() == pytest.approx(expected), "as many at once as memory takes"


def test_what_structures_are_worth_is_the_mean_square_of_finite_differences():
    model = make_tiny_ast(head_width=4, heads=2).double()
    inputs = clips(2).double()
    found = local_ranking(ast, model, inputs, 1, torch.Generator().manual_seed(5), 2, quiet)
    generator = torch.Generator().manual_seed(5)
    areas = [module.GLOBAL_AREA] * 2 + [module.LOCAL_AREA]
    crops = [torch.stack([random_crop(clip, area, generator) for area in areas]) for clip in inputs]
    value, first = ast.attention_sites(model)[1].value, ast.feed_forward_sites(model)[0].first

    def worth(rows):
        """rows: views of weights, whose mean squared derivative is meant."""
        squares = []
        for views in crops:
            targets = embedded_by_hand(model, views)[:2]
            for weight in rows.flatten().unbind():
                losses = []
                for step in (1e-5, -1e-5):
                    weight += step
                    losses.append(crossed_by_numpy(targets, embedded_by_hand(model, views)))
                    weight -= step
                squares.append(((losses[0] - losses[1]) / 2e-5) ** 2)
        return np.mean(squares)

    with torch.no_grad():
        assert found.channels[0][7] == pytest.approx(worth(first.weight.data[7].view(-1)), rel=1e-4)
        assert found.heads[1][1] == pytest.approx(worth(value.weight.data[4:].view(-1)), rel=1e-4)


def test_crops_are_of_the_share_that_was_asked_and_have_the_size_of_the_whole():
    generator = torch.Generator().manual_seed(1)
    down, across = torch.meshgrid(torch.arange(400.0), torch.arange(200.0), indexing="ij")
    for low, high in (module.GLOBAL_AREA, module.LOCAL_AREA):
        for _ in range(20):
            state = generator.get_state()
            rows = random_crop(down, (low, high), generator)
            generator.set_state(state)
            columns = random_crop(across, (low, high), generator)
            assert rows.shape == columns.shape == down.shape
            sides = [float(each.max() - each.min() + 1) for each in (rows, columns)]
            share = sides[0] / 400 * sides[1] / 200
            assert 0.7 * low < share < 1.05 * high
            assert 0.7 < sides[0] / 400 / (sides[1] / 200) < 1.4
    assert random_crop(torch.arange(100.0), (0.25, 0.25), generator).shape == (100,)


def test_what_is_worth_least_goes_but_every_block_keeps_its_best():
    ranking = Ranking(
        (np.array([5.0, 1.0, 2.0, 4.0]), np.array([0.4, 0.1, 0.2, 0.3])), (np.arange(40.0), np.arange(40.0) + 100)
    )
    kept = ranking.kept(0.65, "all")
    assert [stays.tolist() for stays in kept.heads] == [[True, False, True, True], [True, False, False, False]]
    assert [stays.sum() for stays in kept.channels] == [2, 26], "52 of 80 go; the best two of the first block stay"
    assert kept.channels[0][38:].all()
    assert [stays.tolist() for stays in ranking.kept(0.25, "attention").heads] == [
        [True] * 4,
        [True, False, False, True],
    ]
    assert all(stays.all() for stays in ranking.kept(0.9, "feed-forward").heads)
    assert [stays.sum() for stays in ranking.kept(1.0, "attention").heads] == [1, 1]


def test_factors_are_of_blocks_and_of_single_heads():
    ranking = Ranking((np.ones(2), np.ones(2)), (np.ones(3), np.ones(3)))
    assert starting_factors(ranking).tolist() == pytest.approx([1.2, 0.8, 1.2, 1.2, 0.8, 0.8])
    scaled = ranking.times(np.arange(6.0))
    assert [worth.tolist() for worth in scaled.channels] == [[0, 0, 0], [1, 1, 1]]
    assert [worth.tolist() for worth in scaled.heads] == [[2, 3], [4, 5]]


def test_the_evolution_finds_the_lowest_point_by_the_order_of_values_alone():
    lowest, scales = np.array([1.0, -2.0, 0.5]), np.array([1.0, 10.0, 100.0])
    counted = []

    def bowl(point):
        counted.append(point)
        return float((scales * (point - lowest) ** 2).sum())

    found = natural_evolution(bowl, np.zeros(3), 2000, np.random.default_rng(0))
    assert len(counted) == 2000
    np.testing.assert_allclose(found, lowest, atol=0.02)
    other = natural_evolution(lambda p: math.log1p(bowl(p)), np.zeros(3), 2000, np.random.default_rng(0))
    np.testing.assert_array_equal(found, other)


def test_a_cut_model_is_the_dense_one_with_zeros():
    model = make_tiny_ast(head_width=8, heads=4)
    kept = Kept(
        (np.array([True, False, True, True]), np.array([False, False, False, True])),
        (np.arange(48) % 3 > 0, np.arange(48) > 40),
    )
    slim, _, _ = model_of(ast, model, kept)
    zeroed = make_tiny_ast(head_width=8, heads=4)
    with torch.no_grad():
        for site, stays in zip(ast.attention_sites(zeroed), kept.heads, strict=True):
            site.output.weight[:, torch.from_numpy(~np.repeat(stays, 8))] = 0.0
        for site, stays in zip(ast.feed_forward_sites(zeroed), kept.channels, strict=True):
            site.second.weight[:, torch.from_numpy(~stays)] = 0.0
        assert torch.allclose(slim(clips(3)).logits, zeroed(clips(3)).logits, atol=1e-5)
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in zeroed.parameters())


def test_fitness_is_the_angle_within_the_dense_models_components():
    model, inputs = make_tiny_ast(head_width=8, heads=4), clips(9)
    generator = np.random.default_rng(2)
    ranking = Ranking(tuple(generator.random(4) for _ in range(2)), tuple(generator.random(48) for _ in range(2)))

    dense = embedded_by_hand(model, inputs)
    centre = dense.mean(axis=0)
    axes = np.linalg.svd(dense - centre)[2][:8]  # a quarter of 32; fewer than clips
    cosines = []
    for share in FITNESS_SHARES:
        slim, _, _ = model_of(ast, model, ranking.kept(share, "all"))
        one, other = ((each - centre) @ axes.T for each in (embedded_by_hand(slim, inputs), dense))
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        cosines.append(((one * other).sum(axis=1) / lengths).mean())
    assert Away(ast, model, inputs, "all", 4).of(ranking) == pytest.approx(1 - np.mean(cosines), abs=1e-5)


def test_the_correction_is_numpys_least_squares():
    generator = np.random.default_rng(4)
    rows = generator.normal(size=(60, 3)) @ generator.normal(size=(3, 8)) + 0.3 * generator.normal(size=(60, 8))
    dense, slim = nn.Linear(8, 5).double(), nn.Linear(4, 5).double()
    columns = [1, 2, 5, 7]
    gram = rows.T @ rows / len(rows)
    correct_(slim, dense, torch.from_numpy(gram), torch.tensor(columns))
    pull = math.sqrt(DAMPING * np.trace(gram) / 8) * np.eye(8)
    inputs = np.concatenate([rows / math.sqrt(len(rows)), pull])
    wanted = inputs @ dense.weight.detach().numpy().T
    expected, *_ = np.linalg.lstsq(inputs[:, columns], wanted, rcond=None)
    np.testing.assert_allclose(slim.weight.detach().numpy(), expected.T, atol=1e-8)


@pytest.fixture
def bench(tmp_path, tiny_extractor):
    checkpoint = ast.AstCheckpoint(tmp_path, make_tiny_ast(head_width=8, heads=4), tiny_extractor, TINY_LABELS)
    return Bench(ast, checkpoint, LabelledInputs(clips(20), torch.arange(20) % 5), clips=16, seed=1, prune="all")


def make(bench, sparsity, recipe=SHORT):
    (method,) = (method for method in methods_beyond_attention(bench.prune) if method.name == "one ranking")
    return method.make(bench, sparsity, recipe)


def test_every_size_is_within_the_larger_ones_by_one_ranking(bench, monkeypatch):
    made = [make(bench, sparsity) for sparsity in (0.2, 0.4, 0.6)]

    def never(*_arguments):
        raise AssertionError("another ranking")

    monkeypatch.setattr("leanear.studies.methods.make_ranking", never)
    made.append(make(bench, 0.7))
    for larger, smaller in pairwise(made):
        for one, other in zip(larger.plan.sites, smaller.plan.sites, strict=True):
            assert {head.head for head in other.heads} <= {head.head for head in one.heads}
        for one, other in zip(larger.plan.feed_forward, smaller.plan.feed_forward, strict=True):
            assert set(other.channels) <= set(one.channels)
        assert smaller.plan.sparsity > larger.plan.sparsity
    with pytest.raises(BadInput, match="out of reach"):
        make(bench, 0.97)


def test_the_correction_brings_the_outputs_nearer(bench):
    plain, corrected = make(bench, 0.4), make(bench, 0.4, OneRanking(True, 4, 4, 1, 3))
    assert corrected.plan == plain.plan
    inputs = bench.pool[bench.order].inputs[:4]
    models = (bench.checkpoint.model, plain.model, corrected.model)
    dense, *others = (embedded_by_hand(model, inputs) for model in models)
    distances = [np.square(other - dense).mean() for other in others]
    assert distances[1] < distances[0]


def test_it_is_compared_where_a_clip_has_one_embedding():
    for known in (methods(), methods_beyond_attention("all"), methods_beyond_attention("feed-forward")):
        assert sum("SnapViT" in method.about for method in known) == 1
        assert {"one ranking", "one ranking, corrected"} <= {method.name for method in known}
    for known in (methods(SPEECH_MODEL), methods_beyond_attention("all", SPEECH_MODEL)):
        assert not any(isinstance(method.recipe, OneRanking) for method in known)
