"""Differences of two runs against enumeration, likelihoods maximised by scipy, published examples, and mirrors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binom, multinomial

from leanear.benchmarks.compare.compare_rows import (
    ratio_of_medians,
    ratio_of_slim_to_dense,
    ratio_of_sums,
    unpaired_change,
)
from leanear.benchmarks.summary import Interval, paired_change, wilson_interval

pytestmark = pytest.mark.usefixtures("all_resamples")


def run(seed: int, scale: float = 1.0, processes: int = 4, samples: int = 100, spread: float = 0.02) -> list:
    """Samples of processes that differ from each other by `spread`, and more within."""
    generator = np.random.default_rng(seed)
    levels = 10 * scale * np.exp(spread * generator.standard_normal(processes))
    return [(level * (1 + generator.gamma(2.0, 0.02, samples))).tolist() for level in levels]


def assert_mirrored(one: Interval, other: Interval) -> None:
    assert other.estimate == pytest.approx(1 / one.estimate, rel=1e-12)
    assert (other.low, other.high) == pytest.approx((1 / one.high, 1 / one.low), rel=1e-12)


def test_the_ratio_of_a_scaled_copy_is_the_scale_and_lies_within_its_interval():
    before = run(0)
    ratio = ratio_of_medians(before, [[1.2 * sample for sample in process] for process in before])
    assert ratio.estimate == pytest.approx(1.2)
    assert 1.1 < ratio.low < 1.2 < ratio.high < 1.3


def test_the_estimate_is_the_ratio_of_the_medians_of_all_samples():
    before, after = run(1), run(2, samples=70)
    expected = np.median(np.concatenate(after)) / np.median(np.concatenate(before))
    assert ratio_of_medians(before, after).estimate == pytest.approx(expected)


def enumerated_medians(processes) -> dict[float, float]:
    """Every median of the bootstrap in two stages with its probability: processes, then samples within them."""
    found: dict[float, float] = {}
    for chosen in itertools.product(processes, repeat=len(processes)):
        draws = [list(itertools.product(process, repeat=len(process))) for process in chosen]
        share = 1 / len(processes) ** len(processes) / math.prod(len(each) for each in draws)
        for samples in itertools.product(*draws):
            median = float(np.median([value for process in samples for value in process]))
            found[median] = found.get(median, 0.0) + share
    return found


def test_the_interval_is_that_of_all_resamples_enumerated():
    before, after = [[1.0, 2.0, 4.0], [3.0, 8.0]], [[3.0, 5.0, 9.0], [7.0, 8.0]]
    ratios = sorted(
        (b / a, p * q)
        for (a, p), (b, q) in itertools.product(enumerated_medians(before).items(), enumerated_medians(after).items())
    )
    values, reached = [ratio for ratio, _ in ratios], np.cumsum([share for _, share in ratios])
    assert reached[-1] == pytest.approx(1.0)
    found = ratio_of_medians(before, after)
    for bound, percent in ((found.low, 0.025), (found.high, 0.975)):
        least, most = (values[int(np.searchsorted(reached, share))] for share in (percent - 0.008, percent + 0.008))
        assert least <= bound * (1 + 1e-9)
        assert bound <= most * (1 + 1e-9)


def test_one_sample_of_each_process_is_resampled_by_process():
    ratio = ratio_of_medians([[10.0]] * 4, [[11.0], [12.0], [13.0], [14.0]])
    assert ratio.estimate == pytest.approx(1.25)
    assert (ratio.low, ratio.high) == pytest.approx((1.1, 1.4), abs=0.051)


@pytest.mark.parametrize("seed", range(6))
def test_ratios_are_mirrored(seed):
    before, after = run(seed, samples=30), run(100 + seed, 1.1, processes=3, samples=20)
    assert_mirrored(ratio_of_medians(before, after), ratio_of_medians(after, before))
    runs = [(run(seed + 10 * k, samples=20), run(seed + 10 * k + 1, 0.8, samples=20)) for k in range(2)]
    assert_mirrored(ratio_of_slim_to_dense(*runs), ratio_of_slim_to_dense(*reversed(runs)))
    clips = np.random.default_rng(seed).gamma(2, 1, (2, 30))
    assert_mirrored(ratio_of_sums(*clips), ratio_of_sums(*reversed(clips)))


def test_equal_distributions_are_seldom_told_apart():
    told = 0
    for seed in range(20):
        ratio = ratio_of_medians(run(seed, samples=40), run(1000 + seed, samples=40))
        told += not ratio.low <= 1 <= ratio.high and max(ratio.estimate, 1 / ratio.estimate) >= 1.02
    assert told <= 3  # four processes a side are few, so somewhat more than one in twenty


def test_what_the_machine_does_to_both_models_cancels_out():
    dense, slim = run(3), run(4, 0.8)
    slow = [[[1.5 * sample for sample in process] for process in model] for model in (dense, slim)]
    ratio = ratio_of_slim_to_dense((dense, slim), (slow[0], slow[1]))
    assert ratio.estimate == pytest.approx(1.0)
    assert ratio.low < 1 < ratio.high
    slower = [[1.2 * sample for sample in process] for process in slow[1]]
    assert ratio_of_slim_to_dense((dense, slim), (slow[0], slower)).estimate == pytest.approx(1.2)


def test_the_ratio_of_sums_is_that_of_all_resamples_enumerated():
    before, after = [1.0, 2.0, 4.0, 3.0], [2.0, 2.5, 3.0, 6.0]
    draws = [
        sum(after[clip] for clip in chosen) / sum(before[clip] for clip in chosen)
        for chosen in itertools.product(range(4), repeat=4)
    ]
    found = ratio_of_sums(before, after)
    assert found.estimate == pytest.approx(sum(after) / sum(before))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(draws, (2.5, 97.5))), rel=0.03)


def test_pairing_by_clip_narrows_the_ratio_of_sums():
    generator = np.random.default_rng(0)
    before = generator.gamma(1.0, 1.0, 200)
    after = before * 1.1 * np.exp(0.05 * generator.standard_normal(200))
    paired, shuffled = ratio_of_sums(before, after), ratio_of_sums(before, generator.permutation(after))
    assert paired.low < 1.1 < paired.high
    assert paired.high - paired.low < (shuffled.high - shuffled.low) / 5


# --- shares ---


def score(lost: int, won: int, clips: int, change: float) -> float:
    """The score statistic at `change`, the likelihood of the discordant shares maximised by scipy."""

    def loss(share_lost: float) -> float:
        shares = (share_lost, share_lost + change, 1 - 2 * share_lost - change)
        counts = (lost, won, clips - lost - won)
        if min(shares) < 0 or any(count and not share for count, share in zip(counts, shares)):
            return math.inf
        return -sum(count * math.log(share) for count, share in zip(counts, shares) if count)

    bounds = (max(0.0, -change), (1 - change) / 2)
    share_lost = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    return (won - lost - clips * change) / math.sqrt(clips * (2 * share_lost + change - change**2))


@pytest.mark.parametrize(("lost", "won", "clips"), [(7, 1, 21), (3, 9, 60), (20, 18, 840), (1, 4, 200), (30, 2, 50)])
def test_the_ends_of_the_paired_interval_are_where_the_score_test_rejects(lost, won, clips):
    interval = paired_change(lost, won, clips)
    assert interval.estimate == (won - lost) / clips
    assert score(lost, won, clips, interval.low) == pytest.approx(1.959964, abs=1e-3)
    assert score(lost, won, clips, interval.high) == pytest.approx(-1.959964, abs=1e-3)


def test_the_paired_interval_of_a_published_example():
    """Airway hyper-responsiveness before and after transplantation: Fagerland, Lydersen, Laake, Stat Med 33 (2014)."""
    interval = paired_change(7, 1, 21)
    assert (interval.low, interval.high) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_the_paired_interval_covers_as_often_as_it_says():
    clips = 30
    tables = [(lost, won) for lost in range(clips + 1) for won in range(clips + 1 - lost)]
    intervals = [paired_change(lost, won, clips) for lost, won in tables]
    counts = [(lost, won, clips - lost - won) for lost, won in tables]
    covered = []
    for lost_share, won_share in itertools.product((0.02, 0.05, 0.1, 0.2), repeat=2):
        chances = multinomial.pmf(counts, clips, (lost_share, won_share, 1 - lost_share - won_share))
        inside = [each.low <= won_share - lost_share <= each.high for each in intervals]
        covered.append(float(np.sum(chances[inside])))
    assert min(covered) > 0.92
    assert 0.945 < np.mean(covered) < 0.985


def test_the_paired_interval_does_not_vanish_where_nothing_differs():
    interval = paired_change(0, 0, 840)
    assert interval.low == -interval.high
    assert interval.high == pytest.approx(1.96**2 / (840 + 1.96**2), rel=1e-3)


@pytest.mark.parametrize(("lost", "won", "clips"), [(0, 0, 1), (1, 0, 1), (0, 5, 5), (5, 0, 5), (2, 3, 5), (0, 1, 9)])
def test_the_paired_interval_stays_inside_what_is_possible_and_is_mirrored(lost, won, clips):
    one, other = paired_change(lost, won, clips), paired_change(won, lost, clips)
    assert -1 <= one.low <= one.estimate <= one.high <= 1
    assert (one.low, one.estimate, one.high) == (-other.high, -other.estimate, -other.low)


@pytest.mark.parametrize(("lost", "won", "clips"), [(1, 1, 1), (-1, 0, 3), (0, 0, 0)])
def test_impossible_counts_are_refused(lost, won, clips):
    with pytest.raises(ValueError, match="clips"):
        paired_change(lost, won, clips)


@pytest.mark.parametrize(
    ("after", "before", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((10, 10), (0, 20), 0.6791, 1.0000)],
)
def test_the_unpaired_interval_is_newcombes_of_his_examples(after, before, low, high):
    interval = unpaired_change(wilson_interval(*before), wilson_interval(*after))
    assert interval.estimate == pytest.approx(after[0] / after[1] - before[0] / before[1])
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=6e-5)


def test_the_unpaired_interval_covers_as_often_as_it_says():
    clips, before, after = 60, 0.9, 0.8
    inside = 0.0
    for a, b in itertools.product(range(clips + 1), repeat=2):
        interval = unpaired_change(wilson_interval(a, clips), wilson_interval(b, clips))
        if interval.low <= after - before <= interval.high:
            inside += binom.pmf(a, clips, before) * binom.pmf(b, clips, after)
    assert inside == pytest.approx(0.95, abs=0.02)


def test_the_unpaired_interval_is_mirrored_and_wider_than_the_paired():
    a, b = wilson_interval(800, 840), wilson_interval(790, 840)
    one, other = unpaired_change(a, b), unpaired_change(b, a)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    paired = paired_change(14, 4, 840)
    assert paired.estimate == pytest.approx(one.estimate)
    assert one.high - one.low > 2 * (paired.high - paired.low)
