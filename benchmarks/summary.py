"""Statistics of raw samples, computed when results are read: nothing here measures, nothing here is stored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Sequence

import numpy as np

# How many samples a percentile needs before it means anything: MLPerf's early stopping at confidence 0.99 with at
# least one sample discarded from the tail (MLCommons inference policies).
SAMPLES_NEEDED = {50: 11, 90: 64, 95: 130, 99: 662}
NO_CHANGE = 0.02
NO_REASON = "no reason was recorded"
ROUNDING = 1e-9  # points: 100 * 0.01 is not 1 in all arithmetic
RESAMPLES = 1000
WORD_RESAMPLES = 10_000
Z_95 = 1.959963984540054
BISECTIONS = 60


@dataclass(frozen=True)
class LatencySummary:
    """One artifact's steady state. Times in ms; a percentile is None where n is too small for it."""

    n: int
    min_ms: float
    mean_ms: float
    max_ms: float
    sd_ms: float
    cv: float
    percentiles_ms: dict[int, float | None]


@dataclass(frozen=True)
class Interval:
    """A point estimate and its 95% confidence interval.

    Where clips are resampled and all say the same, every resample gives the estimate again: low and high are equal to
    it, which is no interval, and is never shown as one.
    """

    estimate: float
    low: float
    high: float

    @property
    def has_spread(self) -> bool:
        """Whether there is an interval at all."""
        return self.low < self.high


@dataclass(frozen=True)
class SpeedUp:
    """How many times faster slim is than dense (below 1: slower).

    ratio: of the medians, with its interval; per_repeat: the same within each neighbouring pair of processes;
    verdict: "faster", "slower", "no change" (under 2%) or "not distinguishable" (the interval holds 1).
    """

    ratio: Interval
    per_repeat: tuple[float, ...]
    verdict: str


@dataclass(frozen=True)
class AccuracyChange:
    """Slim against dense on the same clips.

    change: slim's accuracy minus dense's, a share, with its interval as in `paired_change`; agreement: share of clips
    with the same top label; p_value: exact McNemar.
    """

    change: Interval
    only_dense_right: int
    only_slim_right: int
    agreement: float
    p_value: float


@dataclass(frozen=True)
class WordErrorChange:
    """Slim against dense on the same clips.

    change: slim's word error rate minus dense's, a share, with its paired interval; relative: the same divided by
    dense's rate, None where that has no errors, its upper end infinite where dense may well have none;
    only_dense_better, only_slim_better: clips with fewer errors than the other has.
    """

    change: Interval
    relative: Interval | None
    only_dense_better: int
    only_slim_better: int


@dataclass(frozen=True)
class Gate:
    """The accuracy gate's verdict: "PASS", "FAIL" or "INCONCLUSIVE", and the sentence that says why."""

    verdict: str
    sentence: str


def summarise_latency(samples_ms: Sequence[float]) -> LatencySummary:
    """Summary of steady-state samples; percentiles are interpolated linearly (numpy's default).

    sd is the sample standard deviation (n - 1), nan for one sample.
    """
    samples = np.asarray(samples_ms, dtype=np.float64)
    mean = float(samples.mean())
    sd = float(samples.std(ddof=1)) if samples.size > 1 else math.nan
    return LatencySummary(
        n=samples.size,
        min_ms=float(samples.min()),
        mean_ms=mean,
        max_ms=float(samples.max()),
        sd_ms=sd,
        cv=sd / mean,
        percentiles_ms={
            percent: float(np.percentile(samples, percent)) if samples.size >= needed else None
            for percent, needed in SAMPLES_NEEDED.items()
        },
    )


def speed_up(dense_ms: Sequence[Sequence[float]], slim_ms: Sequence[Sequence[float]], seed: int = 0) -> SpeedUp:
    """Speed-up of the medians over all samples, from the samples of each process, paired by repeat.

    The interval is a bootstrap in two stages, processes and then samples within them, because samples of one process
    are not independent of each other.
    """
    dense = [np.asarray(samples, dtype=np.float64) for samples in dense_ms]
    slim = [np.asarray(samples, dtype=np.float64) for samples in slim_ms]
    estimate = float(np.median(np.concatenate(dense)) / np.median(np.concatenate(slim)))
    drawn = resampled_speed_ups(dense, slim, np.random.default_rng(seed))
    low, high = (float(bound) for bound in np.percentile(drawn, (2.5, 97.5)))
    per_repeat = tuple(float(np.median(a) / np.median(b)) for a, b in zip(dense, slim))
    return SpeedUp(Interval(estimate, low, high), per_repeat, _speed_verdict(estimate, low, high))


def resampled_speed_ups(dense: list[np.ndarray], slim: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """(RESAMPLES,) ratios of medians, each of processes drawn in pairs and of samples drawn within them."""
    pairs = min(len(dense), len(slim))
    ratios = np.empty(RESAMPLES)
    for draw in range(RESAMPLES):
        chosen = generator.integers(pairs, size=pairs)
        ratios[draw] = np.median(_resampled(dense, chosen, generator)) / np.median(_resampled(slim, chosen, generator))
    return ratios


def resampled_medians(repeats: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """(RESAMPLES,) medians, each of processes drawn with replacement and of samples drawn within them."""
    medians = np.empty(RESAMPLES)
    for draw in range(RESAMPLES):
        chosen = generator.integers(len(repeats), size=len(repeats))
        medians[draw] = np.median(_resampled(repeats, chosen, generator))
    return medians


def _resampled(repeats: list[np.ndarray], chosen: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return np.concatenate([repeats[k][generator.integers(repeats[k].size, size=repeats[k].size)] for k in chosen])


def _speed_verdict(ratio: float, low: float, high: float) -> str:
    if max(ratio, 1 / ratio) < 1 + NO_CHANGE:
        return "no change"
    if low <= 1.0 <= high:
        return "not distinguishable"
    return "faster" if ratio > 1 else "slower"


def wilson_interval(correct: int, clips: int) -> Interval:
    """Accuracy as a share with Wilson's 95% score interval."""
    if clips < 1 or not 0 <= correct <= clips:
        raise ValueError(f"{correct} correct of {clips} clips")
    share, squared = correct / clips, Z_95**2
    centre = (share + squared / (2 * clips)) / (1 + squared / clips)
    half = Z_95 * math.sqrt(share * (1 - share) / clips + squared / (4 * clips**2)) / (1 + squared / clips)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def mcnemar_p_value(only_dense_right: int, only_slim_right: int) -> float:
    """Two-sided exact p: how often a fair coin splits the clips on which only one is right as unevenly as this."""
    differing = only_dense_right + only_slim_right
    tail = sum(math.comb(differing, k) for k in range(min(only_dense_right, only_slim_right) + 1))
    return min(1.0, 2 * tail / 2**differing)


def paired_change(only_before: int, only_after: int, clips: int) -> Interval:
    """The share of clips that are right after, less that of those right before, with Tango's 95% score interval.

    only_before, only_after: clips on which one alone is right. T. Tango, Statistics in Medicine 17 (1998) 891: for
    paired shares what Wilson's is for one; it does not shrink to nothing where the two never differ.
    """
    if clips < 1 or min(only_before, only_after) < 0 or only_before + only_after > clips:
        raise ValueError(f"{only_before} and {only_after} of {clips} clips")
    estimate = (only_after - only_before) / clips
    low = _score_limit(only_before, only_after, clips)
    return Interval(estimate, low, -_score_limit(only_after, only_before, clips))


def _score_limit(lost: int, won: int, clips: int) -> float:
    """The least difference that the score test does not reject."""

    def rejected(change: float) -> bool:
        return won - lost - clips * change > Z_95 * math.sqrt(clips * _variance(lost, won, clips, change))

    return _boundary(rejected, -1.0, (won - lost) / clips)


def _variance(lost: int, won: int, clips: int, change: float) -> float:
    """Of one clip's difference, with the shares that are likeliest if the true difference is `change`."""
    linear = (2 * clips - won + lost) * change - (won + lost)
    constant = -lost * change * (1 - change)
    share_lost = (math.sqrt(max(linear**2 - 8 * clips * constant, 0.0)) - linear) / (4 * clips)
    return max(2 * share_lost + change * (1 - change), 0.0)


def _boundary(rejected: Callable[[float], bool], low: float, high: float) -> float:
    """Where `rejected` turns from true, at `low`, to false, at `high`."""
    if not rejected(low):
        return low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return high


def accuracy_change(dense_ids: Sequence[int], slim_ids: Sequence[int], label_ids: Sequence[int]) -> AccuracyChange:
    """The paired difference of two classifiers' accuracy, from their top labels on the same clips."""
    dense, slim, truth = (np.asarray(ids) for ids in (dense_ids, slim_ids, label_ids))
    if not dense.shape == slim.shape == truth.shape or not truth.size:
        raise ValueError(f"{dense.size} dense, {slim.size} slim and {truth.size} true labels")
    dense_right, slim_right = dense == truth, slim == truth
    lost, won = int((dense_right & ~slim_right).sum()), int((slim_right & ~dense_right).sum())
    return AccuracyChange(
        change=paired_change(lost, won, truth.size),
        only_dense_right=lost,
        only_slim_right=won,
        agreement=float((dense == slim).mean()),
        p_value=mcnemar_p_value(lost, won),
    )


def word_error_rate(errors: Sequence[int], words: Sequence[int], seed: int = 0) -> Interval:
    """Errors per reference word over all clips, a share, with a bootstrap interval over clips."""
    counts = _clip_counts(errors, words)
    sums = _resampled_sums(counts, seed)
    low, high = np.percentile(sums[0] / sums[1], (2.5, 97.5))
    return Interval(float(counts[0].sum() / counts[1].sum()), float(low), float(high))


def word_error_change(
    dense_errors: Sequence[int], slim_errors: Sequence[int], words: Sequence[int], seed: int = 0
) -> WordErrorChange:
    """The paired difference of two word error rates, from the errors on the same clips; a bootstrap over clips."""
    counts = _clip_counts(dense_errors, slim_errors, words)
    dense, slim, total = counts.sum(axis=1)
    sums = _resampled_sums(counts, seed)
    change = (sums[1] - sums[0]) / sums[2]
    relative = None if dense == 0 else _relative_interval(float(slim / dense - 1), sums[0], sums[1])
    low, high = np.percentile(change, (2.5, 97.5))
    return WordErrorChange(
        change=Interval(float((slim - dense) / total), float(low), float(high)),
        relative=relative,
        only_dense_better=int((counts[0] < counts[1]).sum()),
        only_slim_better=int((counts[1] < counts[0]).sum()),
    )


def _relative_interval(estimate: float, dense: np.ndarray, slim: np.ndarray) -> Interval:
    """Of the resampled errors; where dense happens to have none and slim has some, the rise has no bound."""
    without = np.where(slim > 0, np.inf, 0.0)
    changes = np.sort(np.where(dense > 0, slim / np.maximum(dense, 1.0) - 1, without))
    low, high = (changes[round(share * (changes.size - 1))] for share in (0.025, 0.975))
    return Interval(estimate, float(low), float(high))


def _clip_counts(*columns: Sequence[int]) -> np.ndarray:
    """(columns, clips) float64, the last column being the reference words."""
    if len({len(column) for column in columns}) != 1 or not len(columns[-1]) or not sum(columns[-1]):
        raise ValueError(f"{[len(column) for column in columns]} counts, {sum(columns[-1])} reference words")
    return np.array([np.asarray(column) for column in columns], dtype=np.float64)


def _resampled_sums(counts: np.ndarray, seed: int) -> np.ndarray:
    """Sums of each column over clips drawn with replacement, (columns, resamples), but draws without a word."""
    generator = np.random.default_rng(seed)
    clips = counts.shape[1]
    sums = np.concatenate(
        [counts[:, generator.integers(clips, size=(100, clips))].sum(axis=2) for _ in range(WORD_RESAMPLES // 100)],
        axis=1,
    )
    return sums[:, sums[-1] > 0]


def judge_gate(
    change: Interval | None, max_drop_points: float, why_unknown: str = "", metric: str = "accuracy"
) -> Gate:
    """PASS when the measured drop is at most `max_drop_points`, FAIL when it is more, INCONCLUSIVE if unmeasured.

    The point estimate decides; the sentence says whether the whole interval is on its side, or the point alone.
    change: of the metric as a share, negative when some was lost.
    """
    if change is None:
        return Gate("INCONCLUSIVE", f"the {metric} change was not measured ({why_unknown or NO_REASON})")
    drop = -100 * change.estimate
    measured = f"a {'gain' if drop < 0 else 'drop'} of {_points(abs(drop))}"
    points = "points" if metric == "accuracy" else f"points of {metric}"
    said = f"{measured} {points}, where at most {_points(max_drop_points)} may be lost"
    return _verdict(said, Interval(-change.estimate, -change.high, -change.low), max_drop_points)


def judge_word_gate(change: WordErrorChange | None, max_rise_points: float, why_unknown: str = "") -> Gate:
    """The same of a word error rate, which may rise by at most `max_rise_points`; the relative change is stated too."""
    if change is None:
        return Gate("INCONCLUSIVE", f"the change of the word error rate was not measured ({why_unknown or NO_REASON})")
    rise = 100 * change.change.estimate
    measured = f"a {'fall' if rise < 0 else 'rise'} of {_points(abs(rise))}"
    relative = "" if change.relative is None else f" ({100 * change.relative.estimate:+.1f}% of dense's rate)"
    said = f"{measured} points of word error rate{relative}, where at most {_points(max_rise_points)} may be added"
    return _verdict(said, change.change, max_rise_points)


def _verdict(said: str, loss: Interval, limit_points: float) -> Gate:
    verdict = "PASS" if is_within(loss, limit_points) else "FAIL"
    return Gate(verdict, f"{said}; {how_surely(loss, limit_points)}")


def is_within(loss: Interval, limit_points: float) -> bool:
    """Whether a loss, as a share, is at most so many points; its point estimate decides."""
    return 100 * loss.estimate <= limit_points + ROUNDING


def how_surely(loss: Interval, limit_points: float) -> str:
    """Whether the whole 95% interval of a loss, as a share, is on the point's side of so many points, in words."""
    within = is_within(loss, limit_points)
    if not loss.has_spread:
        return f"that is the point alone: {no_interval(loss.estimate)}"
    least, worst = 100 * loss.low, 100 * loss.high
    if within and worst > limit_points + ROUNDING:
        more = "so more clips would be needed to rule out a miss"
        return f"only the point is within it: the 95% interval reaches {_points(worst)}, {more}"
    if not within and least <= limit_points + ROUNDING:
        more = "so more clips might change the verdict"
        return f"only the point is beyond it: the 95% interval reaches down to {_points(least)}, {more}"
    side = "within" if within else "beyond"
    return f"the whole 95% interval, {_points(least)} to {_points(worst)}, is {side} it"


def no_interval(change: float) -> str:
    """Why resampled clips give no interval of a change."""
    if change == 0:
        return "no clip differs, so resampling the clips gives no interval"
    return "every resample of the clips gives the same, which is no interval"


def _points(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00")
