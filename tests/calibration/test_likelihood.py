"""Likelihoods and divergences of one softmax or of several sigmoids, against torch's distributions."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, kl_divergence

from leanear.calibration.passes import LABELS, _objective
from leanear.calibration.targets import NO_TARGET, kl_divergences, negative_log_likelihoods

TAGS = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0]])


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_tags_are_independent_of_each_other():
    dense, slim = logits(3, 4), logits(3, 4, seed=1)
    expected = kl_divergence(Bernoulli(logits=dense), Bernoulli(logits=slim)).sum(1)
    torch.testing.assert_close(kl_divergences(dense, slim, TAGS), expected)
    likelihoods = Bernoulli(logits=slim).log_prob(TAGS.double()).sum(1)
    torch.testing.assert_close(negative_log_likelihoods(slim, TAGS), -likelihoods)


def test_sure_tags_stay_finite():
    dense, slim = torch.tensor([[300.0, -300.0]]), torch.tensor([[-300.0, -300.0]])
    assert kl_divergences(dense, slim, torch.ones(1, 2)).tolist() == [300.0]


def test_labels_and_sequences_are_one_softmax():
    labels = torch.tensor([0, 3, 2])
    dense, slim = logits(3, 4), logits(3, 4, seed=1)
    torch.testing.assert_close(
        kl_divergences(dense, slim, labels), kl_divergence(Categorical(logits=dense), Categorical(logits=slim))
    )
    torch.testing.assert_close(negative_log_likelihoods(slim, labels), -Categorical(logits=slim).log_prob(labels))
    sequences = torch.tensor([[NO_TARGET, 1, 0], [2, NO_TARGET, NO_TARGET]])
    assert len(kl_divergences(logits(2, 3, 4), logits(2, 3, 4, seed=1), sequences)) == 3


def gradients(chosen: str, targets: torch.Tensor, own: torch.Tensor, draws: int) -> torch.Tensor:
    """Of the objective by the logits, (draws, C), for so many copies of one clip."""
    copies = own.expand(draws, -1).clone().requires_grad_()
    generator = torch.Generator().manual_seed(2)
    _objective(copies, targets.expand(draws, *targets.shape), chosen, generator).backward()
    return copies.grad


@pytest.mark.parametrize("chosen", ["projected", "sampled"])
def test_expected_squares_of_tags_are_their_fisher_information(chosen):
    own = torch.tensor([2.0, -0.5, -4.0], dtype=torch.float64)
    found = gradients(chosen, torch.ones(3), own, 200_000)
    probabilities = own.sigmoid()
    fisher = torch.diag(probabilities * (1 - probabilities))
    torch.testing.assert_close(found.T @ found / len(found), fisher, atol=3e-3, rtol=0.0)


def test_observed_tags_are_the_clips_own():
    own = torch.tensor([2.0, -0.5, -4.0], dtype=torch.float64)
    tags = torch.tensor([1.0, 0.0, 1.0])
    torch.testing.assert_close(gradients("observed", tags, own, 1)[0], own.sigmoid() - tags.double())


def test_every_objective_is_there_for_both_kinds():
    for chosen in LABELS:
        for targets in (torch.tensor(1), torch.ones(3)):
            assert gradients(chosen, targets, torch.zeros(3), 4).isfinite().all()
