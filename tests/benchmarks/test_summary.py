"""Statistics against numpy, scipy, brute force and identities."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm

from leanear.benchmarks.summary import (
    SAMPLES_NEEDED,
    Interval,
    accuracy_change,
    judge_gate,
    mcnemar_p_value,
    speed_up,
    summarise_latency,
    wilson_interval,
)

pytestmark = pytest.mark.usefixtures("all_resamples")


def skewed(seed: int, samples: int, scale: float = 1.0) -> np.ndarray:
    return scale * (10 + np.random.default_rng(seed).gamma(2.0, 0.5, samples))


@pytest.mark.parametrize("samples", [1, 2, 10, 11, 63, 64, 129, 130, 661, 662])
def test_latency_summary_is_numpys_and_percentiles_wait_for_enough_samples(samples):
    values = skewed(samples, samples)
    summary = summarise_latency(values.tolist())
    assert summary.n == samples
    assert summary.min_ms == values.min()
    assert summary.max_ms == values.max()
    assert summary.mean_ms == pytest.approx(np.mean(values))
    if samples > 1:
        assert summary.sd_ms == pytest.approx(np.std(values, ddof=1))
        assert summary.cv == pytest.approx(np.std(values, ddof=1) / np.mean(values))
    else:
        assert math.isnan(summary.sd_ms)
    for percent, needed in {50: 11, 90: 64, 95: 130, 99: 662}.items():
        if samples >= needed:
            assert summary.percentiles_ms[percent] == pytest.approx(np.quantile(values, percent / 100))
        else:
            assert summary.percentiles_ms[percent] is None


def test_sample_counts_are_those_of_early_stopping():
    """The least n whose slowest two samples prove the percentile at confidence 0.99: one of them is discarded."""
    for percent, needed in SAMPLES_NEEDED.items():
        proved = (n for n in itertools.count(2) if binom.cdf(1, n, 1 - percent / 100) <= 0.01)
        assert next(proved) == needed


@pytest.mark.parametrize(("correct", "clips"), [(0, 1), (1, 1), (0, 50), (50, 50), (35, 50), (690, 735), (1, 735)])
def test_wilson_is_scipys(correct, clips):
    ours = wilson_interval(correct, clips)
    theirs = binomtest(correct, clips).proportion_ci(0.95, method="wilson")
    assert ours.estimate == correct / clips
    assert ours.low == pytest.approx(theirs.low, abs=1e-12)
    assert ours.high == pytest.approx(theirs.high, abs=1e-12)


@pytest.mark.parametrize("counts", [(2, 1), (-1, 3), (0, 0)])
def test_wilson_refuses_impossible_counts(counts):
    with pytest.raises(ValueError, match="correct of"):
        wilson_interval(*counts)


def test_mcnemar_is_scipys_binomial_test():
    for lost, won in itertools.product(range(0, 30, 3), repeat=2):
        expected = 1.0 if lost + won == 0 else binomtest(lost, lost + won, 0.5).pvalue
        assert mcnemar_p_value(lost, won) == pytest.approx(expected, rel=1e-9)


def test_speed_up_of_a_scaled_copy_is_the_scale():
    dense = [skewed(repeat, 200) for repeat in range(4)]
    slim = [samples / 1.5 for samples in dense]
    result = speed_up(dense, slim)
    assert result.ratio.estimate == pytest.approx(1.5)
    assert result.per_repeat == pytest.approx((1.5,) * 4)
    assert result.ratio.low < 1.5 < result.ratio.high
    assert result.verdict == "faster"
    assert speed_up(slim, dense).verdict == "slower"


def test_speed_up_interval_widens_when_processes_disagree():
    steady = [skewed(repeat, 200) for repeat in range(4)]
    drifting = [samples * factor for samples, factor in zip(steady, (1.0, 1.3, 0.8, 1.1), strict=True)]
    narrow, wide = speed_up(steady, steady).ratio, speed_up(drifting, steady).ratio
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_a_difference_under_two_percent_is_no_change():
    dense = [skewed(repeat, 500) for repeat in range(4)]
    assert speed_up(dense, [samples * 0.985 for samples in dense]).verdict == "no change"
    assert speed_up(dense, [samples * 1.015 for samples in dense]).verdict == "no change"
    assert speed_up(dense, [samples * 0.95 for samples in dense]).verdict == "faster"


def test_a_noisy_difference_is_not_called_one():
    dense = [np.full(20, value) for value in (10.0, 20.0, 10.0, 21.0)]
    slim = [np.full(20, value) for value in (19.0, 9.5, 20.0, 9.0)]
    assert speed_up(dense, slim).verdict in ("no change", "not distinguishable")


def test_speed_up_is_the_same_every_time():
    dense, slim = [skewed(1, 50), skewed(2, 50)], [skewed(3, 50), skewed(4, 50)]
    assert speed_up(dense, slim) == speed_up(dense, slim)


def test_accuracy_change_counts_and_brackets_the_difference():
    generator = np.random.default_rng(0)
    truth = generator.integers(35, size=735)
    dense = np.where(generator.random(735) < 0.95, truth, (truth + 1) % 35)
    slim = np.where(generator.random(735) < 0.90, truth, (truth + 2) % 35)
    change = accuracy_change(dense, slim, truth)
    assert change.change.estimate == pytest.approx((slim == truth).mean() - (dense == truth).mean())
    assert change.only_dense_right == sum(d == t != s for d, s, t in zip(dense, slim, truth, strict=True))
    assert change.only_slim_right == sum(s == t != d for d, s, t in zip(dense, slim, truth, strict=True))
    assert change.agreement == np.mean(dense == slim)
    resampled = []
    for _ in range(4000):
        clips = generator.integers(735, size=735)
        resampled.append((slim[clips] == truth[clips]).mean() - (dense[clips] == truth[clips]).mean())
    low, high = np.percentile(resampled, (2.5, 97.5))
    assert change.change.low == pytest.approx(low, abs=0.004)
    assert change.change.high == pytest.approx(high, abs=0.004)


def test_identical_answers_of_few_clips_are_no_proof_of_no_change():
    change = accuracy_change([1, 2, 3], [1, 2, 3], [1, 2, 0])
    most = norm.ppf(0.975) ** 2 / (3 + norm.ppf(0.975) ** 2)
    assert change.change.estimate == 0.0
    assert (change.change.low, change.change.high) == pytest.approx((-most, most))
    assert change.p_value == 1.0


def test_answers_of_different_clips_are_refused():
    with pytest.raises(ValueError, match="true labels"):
        accuracy_change([1, 2], [1, 2], [1, 2, 3])


@pytest.mark.parametrize(
    ("change", "limit", "verdict"),
    [
        (Interval(-0.010, -0.02, 0.0), 1.0, "PASS"),
        (Interval(-0.011, -0.02, 0.0), 1.0, "FAIL"),
        (Interval(0.02, 0.01, 0.03), 0.0, "PASS"),
        (None, 1.0, "INCONCLUSIVE"),
    ],
)
def test_the_gate_compares_the_point_estimate(change, limit, verdict):
    assert judge_gate(change, limit).verdict == verdict


def test_a_gate_of_what_was_not_measured_says_why():
    assert "no clips" in judge_gate(None, 1.0, "no clips").sentence
