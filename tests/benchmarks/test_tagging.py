"""Rankings of clips by label against scikit-learn, and intervals against clips that are really there several times."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from leanear.benchmarks.tagging import (
    _by_label,
    average_precisions,
    clip_shares,
    d_prime,
    differing_answers,
    multi_hot,
    packed,
    probabilities,
    tag_change,
    tag_divergences,
    tag_entropies,
    tag_quality,
    unpacked,
)
from leanear.runtimes.errors import BadInput


def answers(clips: int, labels: int, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Scores that know something of the truth, float32 (N, C), rounded where there are to be ties; and the truth."""
    generator = np.random.default_rng(seed)
    truth = generator.random((clips, labels)) < generator.uniform(0.05, 0.6, labels)
    scores = generator.normal(size=(clips, labels)) + truth
    return (np.round(scores) if ties else scores).astype(np.float32), truth


def macro(metric, scores: np.ndarray, truth: np.ndarray) -> float:
    """The mean of one of scikit-learn's metrics over the labels for which it is defined."""
    has = truth.any(axis=0) if metric is average_precision_score else truth.any(axis=0) & ~truth.all(axis=0)
    return float(np.mean([metric(truth[:, label], scores[:, label]) for label in np.flatnonzero(has)]))


def roc_areas(scores, truth):
    return _by_label(scores, truth, np.ones((1, len(scores)), np.float32))[1][0]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("clips", "labels"), [(7, 3), (60, 12), (400, 5)])
def test_every_label_is_as_scikit_learn_has_it(clips, labels, ties):
    scores, truth = answers(clips, labels, ties=ties)
    for label in range(labels):
        if truth[:, label].any() and not truth[:, label].all():
            expected = average_precision_score(truth[:, label], scores[:, label])
            assert average_precisions(scores, truth)[label] == pytest.approx(expected, abs=1e-12)
            assert roc_areas(scores, truth)[label] == pytest.approx(
                roc_auc_score(truth[:, label], scores[:, label]), abs=1e-12
            )


def test_blocks_of_comparisons_are_the_same_as_all_at_once(monkeypatch):
    scores, truth = answers(50, 4, ties=True)
    at_once = average_precisions(scores, truth), roc_areas(scores, truth)
    monkeypatch.setattr("leanear.benchmarks.tagging.COMPARISONS_AT_ONCE", 60)
    np.testing.assert_array_equal((average_precisions(scores, truth), roc_areas(scores, truth)), at_once)


def test_labels_that_no_clip_has_are_left_out_and_counted():
    scores, truth = answers(40, 6)
    truth[:, 2] = False
    truth[:, 4] = True
    quality = tag_quality(scores, truth)
    assert (quality.labels, quality.skipped, quality.clips) == (5, 1, 40)
    assert quality.mean_ap.estimate == pytest.approx(macro(average_precision_score, scores, truth))
    assert quality.mean_auc.estimate == pytest.approx(macro(roc_auc_score, scores, truth)), "label 4 has no opposite"
    assert math.isnan(average_precisions(scores, truth)[2])
    assert quality.d_prime.estimate == pytest.approx(math.sqrt(2) * stats.norm.ppf(quality.mean_auc.estimate))


def test_d_prime_is_the_distance_of_two_normal_scores():
    for distance in (0.0, 0.7, 2.5):
        assert d_prime(float(stats.norm.cdf(distance / math.sqrt(2)))) == pytest.approx(distance, abs=1e-9)
    assert d_prime(1.0) == math.inf
    assert math.isnan(d_prime(math.nan))


@pytest.mark.parametrize("ties", [False, True])
def test_intervals_are_those_of_clips_drawn_with_replacement(ties, monkeypatch):
    """Each draw's copies of clips, written out, and given to scikit-learn."""
    monkeypatch.setattr("leanear.benchmarks.tagging.MOST_DRAWS", 200)
    scores, truth = answers(12, 4, ties=ties)
    quality = tag_quality(scores, truth, seed=3)
    copies = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), size=quality.draws)
    drawn = [np.repeat(np.arange(12), each) for each in copies]
    means = [macro(average_precision_score, scores[draw], truth[draw]) for draw in drawn if truth[draw].any()]
    low, high = np.percentile(means, (2.5, 97.5))
    bias = np.mean(means) - quality.mean_ap.estimate
    expected = (low - bias - max(bias, 0), high - bias - min(bias, 0))
    assert (quality.mean_ap.low, quality.mean_ap.high) == pytest.approx(expected)
    areas = [macro(roc_auc_score, scores[draw], truth[draw]) for draw in drawn if some_pair(truth[draw])]
    assert (quality.mean_auc.low, quality.mean_auc.high) == pytest.approx(np.percentile(areas, (2.5, 97.5)))


def some_pair(truth: np.ndarray) -> bool:
    return bool((truth.any(axis=0) & ~truth.all(axis=0)).any())


def population(clips: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    truth = generator.random((clips, 4)) < 0.2
    return (generator.normal(size=truth.shape) + 1.5 * truth).astype(np.float32), truth


def test_intervals_hold_the_truth_nearly_as_often_as_they_say(monkeypatch):
    """Of 60 clips each; without the correction it is in 86 % of them, and in half of them where scores are noise."""
    monkeypatch.setattr("leanear.benchmarks.tagging.MOST_DRAWS", 200)
    true = macro(average_precision_score, *population(100_000, 0))
    found = [tag_quality(*population(60, seed)).mean_ap for seed in range(1, 121)]
    assert np.mean([interval.low <= true <= interval.high for interval in found]) > 0.88


def test_a_change_is_paired_by_clip():
    scores, truth = answers(80, 5)
    worse = scores + np.random.default_rng(1).normal(0, 0.5, scores.shape).astype(np.float32)
    change = tag_change(scores, worse, truth)
    means = [macro(average_precision_score, each, truth) for each in (scores, worse)]
    assert change.interval.estimate == pytest.approx(means[1] - means[0])
    back = tag_change(worse, scores, truth).interval
    assert (back.low, back.high) == pytest.approx((-change.interval.high, -change.interval.low))
    assert change.standard_error == pytest.approx((change.interval.high - change.interval.low) / 3.92, rel=0.15)
    alone = [tag_quality(each, truth).mean_ap for each in (scores, worse)]
    assert change.interval.high - change.interval.low < sum(each.high - each.low for each in alone)
    same = tag_change(scores, 3 * scores - 1, truth)
    assert (same.interval.estimate, same.standard_error) == (0.0, 0.0), "ranks alone count"


def test_what_clips_cost_adds_up_to_what_lacks():
    scores, truth = answers(50, 6, ties=True)
    truth[:, 0] = False
    truth[7] = False
    lost, possible = clip_shares(scores, truth)
    assert possible.sum() == pytest.approx(1)
    assert lost.sum() == pytest.approx(1 - macro(average_precision_score, scores, truth))
    assert lost[7] == possible[7] == 0
    assert (lost <= possible).all()


def test_likelihoods_against_torch():
    logits, truth = answers(9, 4, seed=5)
    logits[0] = (200, -200, 90, 0)
    slim = logits + np.float32(0.3)
    own, other = (torch.distributions.Bernoulli(logits=torch.from_numpy(each).double()) for each in (logits, slim))
    expected = torch.distributions.kl_divergence(own, other).sum(1)
    np.testing.assert_allclose(tag_divergences(logits, slim), expected, atol=1e-12)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(logits).double(), torch.from_numpy(truth).double(), reduction="none"
    )
    np.testing.assert_allclose(tag_entropies(logits, truth), losses.sum(1), rtol=1e-12)
    np.testing.assert_allclose(probabilities(logits), torch.from_numpy(logits).double().sigmoid(), rtol=1e-12)


def test_answers_differ_where_a_label_passes_half():
    before = np.array([[1.0, -1.0], [2.0, -0.1], [-3.0, -3.0]], np.float32)
    after = np.array([[0.1, -9.0], [2.0, 0.1], [-3.0, 3.0]], np.float32)
    assert differing_answers(before, after) == 2


def test_logits_survive_their_text():
    logits, _ = answers(5, 3)
    np.testing.assert_array_equal(unpacked(packed(logits), 5, 3), logits)
    for text in (packed(logits)[:-4], packed(logits[:4]), "no base64!"):
        with pytest.raises(ValueError):
            unpacked(text, 5, 3)


def test_multi_hot():
    assert multi_hot([[0, 2], [], [1]], 3).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_clips_without_any_label_cannot_be_ranked():
    with pytest.raises(BadInput, match="none of the 4 clips has any label"):
        tag_quality(np.zeros((4, 2)), np.zeros((4, 2), bool))
