"""Answers of models whose clips may have several labels: how well they rank clips, and how far two models are apart.

A label's average precision and its area under the ROC curve ask whether the clips that have it score higher than those
that lack it; the means are over labels, each counting the same. Intervals are a bootstrap over clips: a draw is a
number of copies of every clip. Dimension letters: N clips, C labels, P clips that have a label, R draws.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Iterable, Sequence

import numpy as np

from leanear.benchmarks.summary import Interval
from leanear.runtimes.errors import BadInput

MEAN_AP = "mAP"
MOST_DRAWS, FEWEST_DRAWS = 1000, 200
WORK = 5e10  # multiplications that draws may take, beyond the fewest
COMPARISONS_AT_ONCE = 4_000_000
HAS_LABEL = 0.5  # the probability from which on a label counts as given


@dataclass(frozen=True)
class TagQuality:
    """How well scores rank clips, as shares with 95% intervals; d_prime is the mean area as a normal distance.

    labels: over how many labels mean_ap is, those that some clip has; skipped: how many others there are; draws: of the
    intervals. The mean area leaves labels out that every clip has, and is NaN where there is no other.
    """

    mean_ap: Interval
    mean_auc: Interval
    d_prime: Interval
    clips: int
    labels: int
    skipped: int
    draws: int

    def as_json(self) -> dict[str, Any]:
        """By stable keys; None where a number is not finite, as d' of labels that are told apart without an error.

        Both ends are None where every draw of the clips gives the same, which is no interval.
        """
        answer: dict[str, Any] = {}
        for key in ("mean_ap", "mean_auc", "d_prime"):
            interval: Interval = getattr(self, key)
            answer[key] = _finite(interval.estimate)
            ends = (interval.low, interval.high) if interval.has_spread else (math.nan, math.nan)
            answer[f"{key}_interval_95"] = [_finite(end) for end in ends]
        return {**answer, "labels": self.labels, "labels_skipped": self.skipped, "draws": self.draws}


@dataclass(frozen=True)
class TagChange:
    """The change of the mean average precision, a share, paired by clip, and its standard error over draws."""

    interval: Interval
    standard_error: float


def multi_hot(label_ids: Iterable[Sequence[int]], labels: int) -> np.ndarray:
    """Which labels every clip has, bool (N, C), from the numbers of its labels."""
    rows = list(label_ids)
    truth = np.zeros((len(rows), labels), bool)
    for row, numbers in enumerate(rows):
        truth[row, list(numbers)] = True
    return truth


def average_precisions(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(C,) from scores (N, C) and truth, bool (N, C); NaN of a label that no clip has.

    Of each clip that has the label, the share of those that score as high or higher that have it too; the mean over
    these clips. It is the sum of precision times gain of recall, without interpolation.
    """
    return _by_label(scores, truth, np.ones((1, len(scores)), np.float32))[0][0]


def d_prime(mean_auc: float) -> float:
    """How many standard deviations two normal scores are apart whose area is this one; infinite of 0 and 1."""
    if math.isnan(mean_auc):
        return math.nan
    if not 0 < mean_auc < 1:
        return math.copysign(math.inf, mean_auc - 0.5)
    return math.sqrt(2) * NormalDist().inv_cdf(mean_auc)


def tag_quality(scores: np.ndarray, truth: np.ndarray, seed: int = 0) -> TagQuality:
    """Of scores (N, C), truth bool (N, C).

    Raises:
        BadInput: no clip has any label.
    """
    _require_labels(truth)
    mean_ap, mean_auc = _means(scores, truth, np.ones((1, len(scores)), np.float32))
    weights = _draws(truth, seed)
    drawn_ap, drawn_auc = _means(scores, truth, weights)
    auc = _interval(mean_auc[0], drawn_auc)
    labels = int(truth.any(axis=0).sum())
    return TagQuality(
        mean_ap=_less_optimism(_interval(mean_ap[0], drawn_ap), float(np.nanmean(drawn_ap) - mean_ap[0])),
        mean_auc=auc,
        d_prime=Interval(*(d_prime(end) for end in (auc.estimate, auc.low, auc.high))),
        clips=len(truth),
        labels=labels,
        skipped=truth.shape[1] - labels,
        draws=len(weights),
    )


def tag_change(before: np.ndarray, after: np.ndarray, truth: np.ndarray, seed: int = 0) -> TagChange:
    """The mean average precision of scores `after` less that of `before`, both (N, C), on the same draws of clips.

    Raises:
        BadInput: no clip has any label.
    """
    _require_labels(truth)
    every, weights = np.ones((1, len(truth)), np.float32), _draws(truth, seed)
    whole = [_means(scores, truth, every)[0][0] for scores in (before, after)]
    drawn = [_means(scores, truth, weights)[0] for scores in (before, after)]
    change = drawn[1] - drawn[0]
    return TagChange(_interval(whole[1] - whole[0], change), float(np.nanstd(change)))


def clip_shares(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each clip costs of the mean average precision, and what it could add to it, float64 (N,) each.

    The sums are 1 - mAP, and 1; all are 0 where no clip has a label.
    """
    counts = truth.sum(axis=0)
    used = np.flatnonzero(counts)
    lost, possible = np.zeros(len(truth)), np.zeros(len(truth))
    every = np.ones((1, len(truth)), np.float32)
    for label in used:
        has = truth[:, label]
        share = 1 / (counts[label] * len(used))
        lost[has] += share * (1 - _precisions(scores[:, label], has, every)[0][0])
        possible[has] += share
    return lost, possible


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Sigmoids, float64, in the shape of `logits`."""
    return np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))


def tag_entropies(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Minus the log-probability of each clip's labels and of what it lacks, summed over all labels, nats (N,)."""
    return np.logaddexp(0.0, np.where(truth, -1.0, 1.0) * logits.astype(np.float64)).sum(axis=1)


def tag_divergences(dense_logits: np.ndarray, slim_logits: np.ndarray) -> np.ndarray:
    """KL(dense || slim) of each clip's labels, each a yes or no, summed over all labels, nats (N,)."""
    dense, slim = dense_logits.astype(np.float64), slim_logits.astype(np.float64)
    total = np.zeros(len(dense))
    for sign in (1.0, -1.0):
        log_dense, log_slim = -np.logaddexp(0.0, -sign * dense), -np.logaddexp(0.0, -sign * slim)
        total += (np.exp(log_dense) * (log_dense - log_slim)).sum(axis=1)
    return total


def differing_answers(before: np.ndarray, after: np.ndarray) -> int:
    """On how many clips two models' logits (N, C) give other labels, those of a probability of half or more."""
    given = [probabilities(logits) >= HAS_LABEL for logits in (before, after)]
    return int((given[0] != given[1]).any(axis=1).sum())


def packed(logits: np.ndarray) -> str:
    """Logits (N, C) as results files hold them: base64 of little-endian float32, clip after clip."""
    return base64.b64encode(np.ascontiguousarray(logits, "<f4").tobytes()).decode("ascii")


def unpacked(text: str, clips: int, labels: int) -> np.ndarray:
    """What `packed` was given, float32 (N, C); raises ValueError where the text is not that of so many logits."""
    values = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    if values.size != clips * labels:
        raise ValueError(f"{values.size} logits for {clips} clips and {labels} labels")
    return values.reshape(clips, labels).astype(np.float32)


def _require_labels(truth: np.ndarray) -> None:
    if not truth.any():
        raise BadInput(f"none of the {len(truth)} clips has any label, so that no label can be ranked")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _draws(truth: np.ndarray, seed: int) -> np.ndarray:
    """Copies of every clip, float32 (R, N), N in all in each draw; fewer draws of very many clips."""
    clips = len(truth)
    draws = int(min(MOST_DRAWS, max(FEWEST_DRAWS, WORK // (clips * truth.sum()))))
    return np.random.default_rng(seed).multinomial(clips, np.full(clips, 1 / clips), size=draws).astype(np.float32)


def _interval(estimate: float, drawn: np.ndarray) -> Interval:
    """Draws in which no label could be ranked are left out."""
    known = drawn[~np.isnan(drawn)]
    if not known.size:
        return Interval(float(estimate), math.nan, math.nan)
    low, high = np.percentile(known, (2.5, 97.5))
    return Interval(float(estimate), float(low), float(high))


def _less_optimism(drawn: Interval, bias: float) -> Interval:
    """An interval of the mean average precision, moved to where it holds the true one as often as it says, or nearly.

    Few clips rank labels better than many would, and draws, in which clips are there twice, better still. bias: by how
    much draws are above the estimate; the estimate may be above the truth by as much, or not at all.
    """
    low, high = drawn.low - bias - max(bias, 0.0), drawn.high - bias - min(bias, 0.0)
    return Interval(drawn.estimate, min(max(low, 0.0), drawn.estimate), max(min(high, 1.0), drawn.estimate))


def _means(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The means over labels of average precisions and of areas in every draw, (R,) each."""
    precisions, areas = _by_label(scores, truth, weights)
    return _mean_of_known(precisions), _mean_of_known(areas)


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """The mean over labels of (R, C), of those that are not NaN."""
    known = ~np.isnan(values)
    counts = known.sum(axis=1)
    sums = np.where(known, values, 0.0).sum(axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), math.nan)


def _by_label(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average precisions and areas (R, C), where clip n is there weights[r, n] times in draw r; NaN where undefined."""
    precisions, areas = (np.full((len(weights), truth.shape[1]), math.nan) for _ in range(2))
    copies = weights.sum(axis=1, dtype=np.float64)
    for label in np.flatnonzero(truth.any(axis=0)):
        has = truth[:, label]
        own = weights[:, has].astype(np.float64)
        precision, higher = _precisions(scores[:, label], has, weights)
        positives = own.sum(axis=1)
        pairs = positives * (copies - positives)
        there, both = positives > 0, pairs > 0
        precisions[there, label] = (own * precision).sum(axis=1)[there] / positives[there]
        areas[both, label] = 1 - (own * higher).sum(axis=1)[both] / pairs[both]
    return precisions, areas


def _precisions(scores: np.ndarray, has: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At every clip that has the label, (R, P) each: the precision, and how many without it score higher, ties half."""
    clips = np.flatnonzero(has)
    precision, higher = (np.zeros((len(weights), len(clips))) for _ in range(2))
    positives, negatives = weights[:, has], weights[:, ~has]
    blocks = np.array_split(np.arange(len(clips)), math.ceil(len(clips) * len(scores) / COMPARISONS_AT_ONCE))
    for block in blocks:
        level = scores[clips[block], None]  # (p, 1)
        right = (positives @ (scores[has] >= level).T.astype(np.float32)).astype(np.float64)
        wrong = (negatives @ (scores[~has] >= level).T.astype(np.float32)).astype(np.float64)
        tied = scores[~has] == level
        precision[:, block] = right / np.maximum(right + wrong, 1)  # without any copy at that level there is none of it
        higher[:, block] = wrong - (0.5 * (negatives @ tied.T.astype(np.float32)) if tied.any() else 0.0)
    return precision, higher
