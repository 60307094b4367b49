"""Feed-forward channels: against numpy's least squares, finite differences, and blocks that are really cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from leanear.calibration.feed_forward import (
    RIDGE,
    FeedForwardBasis,
    channel_covariance,
    elimination_order,
    feed_forward_basis,
    feed_forward_losses,
    feed_forward_squares,
    feed_forward_sums,
)
from leanear.calibration.passes import FeedForwardPass, pass_through_all
from leanear.calibration.sites import FeedForwardSite
from leanear.data.examples import SpeechInputs
from leanear.families import ast, whisper
from tests.conftest import make_tiny_ast
from tests.whisper_models import make_whisper

TOKENS, WIDTH, CHANNELS = 40, 5, 12


def toy(seed: int = 0) -> tuple[FeedForwardSite, torch.Tensor, torch.Tensor]:
    """A block, hidden channels (1, T, C) that depend on one another, and gradients (1, T, D) all of one size."""
    generator = torch.Generator().manual_seed(seed)
    site = FeedForwardSite("toy", nn.Linear(WIDTH, CHANNELS).double(), nn.Linear(CHANNELS, WIDTH).double())
    mixed = torch.randn(TOKENS, 6, generator=generator) @ torch.randn(6, CHANNELS, generator=generator)
    hidden = torch.nn.functional.gelu(mixed + 0.1 * torch.randn(TOKENS, CHANNELS, generator=generator))
    gradients = torch.nn.functional.normalize(torch.randn(TOKENS, WIDTH, generator=generator), dim=1)
    return site, hidden[None], gradients[None]


def basis_of(site: FeedForwardSite, hidden: torch.Tensor, gradients: torch.Tensor) -> FeedForwardBasis:
    sums = dict(feed_forward_sums([site], [FeedForwardPass(hidden, gradients)], None))
    return feed_forward_basis(site, sums["gram/toy"], sums["felt/toy"])


@pytest.mark.parametrize("width", [1, 4, 9, CHANNELS])
def test_the_folded_product_is_the_ridge_least_squares_fit_by_numpy(width):
    site, hidden, gradients = toy()
    basis = basis_of(site, hidden, gradients)
    weight, bias = (tensor.numpy() for tensor in basis.second(site.second.bias.detach(), width))
    rows = hidden[0].double().numpy()
    kept = basis.order[:width].numpy()
    centred = rows - rows.mean(axis=0)
    ridge = RIDGE * (centred**2).mean()  # of the mean variance
    # ridge as further rows: the dropped channels pull the fit to nothing, the kept ones to themselves
    dense, old_bias = site.second.weight.detach().numpy(), site.second.bias.detach().numpy()
    more = np.sqrt(ridge * TOKENS) * np.eye(CHANNELS)
    inputs = np.concatenate([centred[:, kept], more[:, kept]])
    wanted = np.concatenate([centred @ dense.T, more @ dense.T])
    found, *_ = np.linalg.lstsq(inputs, wanted, rcond=None)
    np.testing.assert_allclose(weight, found.T, rtol=2e-4, atol=2e-5)
    expected_bias = old_bias + dense @ rows.mean(axis=0) - found.T @ rows[:, kept].mean(axis=0)
    np.testing.assert_allclose(bias, expected_bias, rtol=2e-4, atol=2e-5)


def test_whole_width_is_the_block_and_none_is_its_mean():
    site, hidden, gradients = toy(1)
    basis = basis_of(site, hidden, gradients)
    weight, bias = basis.second(site.second.bias.detach(), CHANNELS)
    torch.testing.assert_close(weight, site.second.weight.detach()[:, basis.order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bias, site.second.bias.detach(), rtol=1e-4, atol=1e-4)
    weight, bias = basis.second(site.second.bias.detach(), 0)
    assert weight.shape == (WIDTH, 0)
    mean = site.second(hidden[0].double()).mean(dim=0)
    torch.testing.assert_close(bias, mean.detach(), rtol=1e-5, atol=1e-5)


def test_the_first_to_go_is_the_one_whose_removal_costs_least_after_the_rest_is_fitted():
    """Against the residual of numpy's fit of the outputs without each channel in turn."""
    generator = np.random.default_rng(4)
    rows = generator.normal(size=(60, 7)) @ generator.normal(size=(7, 7))
    rows -= rows.mean(axis=0)
    felt = generator.normal(size=(3, 7))
    costs = []
    for channel in range(7):
        others = np.delete(rows, channel, axis=1)
        fitted, *_ = np.linalg.lstsq(others, rows @ felt.T, rcond=None)
        costs.append(float(((rows @ felt.T - others @ fitted) ** 2).sum()))
    order = elimination_order(torch.tensor(rows.T @ rows / 60), torch.tensor(felt))
    assert sorted(order.tolist()) == list(range(7))
    assert int(order[-1]) == int(np.argmin(costs))


def test_what_others_give_exactly_goes_first():
    """Channel 2 is the sum of two others: large, and free."""
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(200, 6, generator=generator, dtype=torch.float64)
    rows[:, 2] = 3 * (rows[:, 0] + rows[:, 1])
    covariance = rows.mT @ rows / 200
    covariance.diagonal().add_(1e-6)
    order = elimination_order(covariance, torch.eye(6, dtype=torch.float64))
    assert int(order[-1]) in (0, 1, 2)


def test_channels_that_are_all_but_constant_have_a_covariance_that_can_be_factorised():
    """A float32 sum of a few tokens far from zero, whose covariance numpy finds indefinite with the usual ridge."""
    generator = torch.Generator().manual_seed(6)
    rows = 100 + 0.01 * torch.randn(40, 300, generator=generator)
    ones = torch.cat([rows, torch.ones(40, 1)], dim=1)
    gram = ones.mT @ ones
    moments = gram.double().numpy() / 40
    plain = moments[:-1, :-1] - np.outer(moments[-1, :-1], moments[-1, :-1])
    ridge = RIDGE * max(np.trace(plain) / 300, 0.0)
    assert np.linalg.eigvalsh(plain + ridge * np.eye(300)).min() < 0
    covariance, mean = channel_covariance(gram)
    assert np.linalg.eigvalsh(covariance.numpy()).min() > 0
    np.testing.assert_allclose(mean, rows.double().mean(dim=0), rtol=1e-5)


@pytest.mark.parametrize("family", ["ast", "whisper"])
def test_losses_are_half_the_mean_square_of_the_change_of_blocks_that_are_really_cut(family):
    """The cut block's own outputs, times the gradients, for every width; and 0 at the whole one."""
    model, sites, inputs, targets, logits = cases(family)
    passed = pass_through_all(model, (), sites, inputs, targets, logits, labels="observed")
    used = None if family == "ast" else torch.ones_like(targets, dtype=torch.bool)
    sums = dict(feed_forward_sums(sites, passed.feed_forward, used))
    bases = {s.name: feed_forward_basis(s, sums[f"gram/{s.name}"], sums[f"felt/{s.name}"]) for s in sites}
    squares = feed_forward_squares(sites, bases, passed.feed_forward)
    for site, block in zip(sites, passed.feed_forward, strict=True):
        basis, expected = bases[site.name], []
        for width in range(site.width + 1):
            weight, bias = basis.second(site.second.bias.detach(), width)
            before = block.hidden.double() @ site.second.weight.detach().double().mT + site.second.bias.double()
            after = block.hidden.double()[..., basis.order[:width]] @ weight.mT + bias
            changes = ((after - before) * block.output_gradients.double()).sum((1, 2)).detach()
            expected.append(float(changes.square().sum()))
        found = squares[site.name].numpy()
        np.testing.assert_allclose(found[:-1], np.array(expected)[:-1], rtol=2e-3, atol=1e-6 * max(expected))
        assert found[-1] == 0.0
        losses = feed_forward_losses(squares[site.name], len(targets), 2.0)
        assert np.all(np.diff(losses) <= 0)
        assert losses[0] == pytest.approx(expected[0] / (4 * len(targets)), rel=2e-3)


def test_gradients_by_outputs_are_finite_differences_of_the_objective():
    """The objective's change by a block's second bias is the sum of the gradients over tokens."""
    model, sites, inputs, targets, logits = cases("ast")
    model.double()
    inputs = inputs.double()
    passed = pass_through_all(model, (), sites, inputs, targets, logits, labels="observed")

    def objective() -> torch.Tensor:
        with torch.no_grad():
            return nn.functional.cross_entropy(logits(model, inputs), targets, reduction="sum")

    step = 1e-5
    for site, block in zip(sites, passed.feed_forward, strict=True):
        for place in (0, 7):
            with torch.no_grad():
                site.second.bias[place] += step
                up = objective()
                site.second.bias[place] -= 2 * step
                down = objective()
                site.second.bias[place] += step
            by_difference = float((up - down) / (2 * step))
            assert float(block.output_gradients[..., place].sum()) == pytest.approx(by_difference, rel=1e-5, abs=1e-8)


def test_tokens_after_the_end_count_for_nothing():
    site, hidden, gradients = toy(2)
    site = FeedForwardSite("toy", site.first, site.second, "decoder")
    used = torch.arange(TOKENS)[None] < 25
    found = dict(feed_forward_sums([site], [FeedForwardPass(hidden, gradients)], used))["gram/toy"]
    alone = dict(feed_forward_sums([site], [FeedForwardPass(hidden[:, :25], gradients[:, :25])], None))["gram/toy"]
    torch.testing.assert_close(found, alone)


def cases(family: str):
    if family == "ast":
        model = make_tiny_ast()
        inputs = torch.randn(4, 46, 128, generator=torch.Generator().manual_seed(3))
        return model, ast.feed_forward_sites(model), inputs, torch.arange(4) % 5, ast.logits
    model = make_whisper()
    generator = torch.Generator().manual_seed(3)
    config = model.config
    features = torch.randn(3, config.num_mel_bins, 2 * config.max_source_positions, generator=generator)
    tokens = torch.randint(0, config.vocab_size, (3, 6), generator=generator)
    return model, whisper.feed_forward_sites(model), SpeechInputs(features, tokens), tokens.roll(-1, 1), whisper.logits
