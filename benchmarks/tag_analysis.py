"""The statistics of a results file whose clips may have several labels: how well each model ranks them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leanear.benchmarks.results import Results
from leanear.benchmarks.summary import Interval
from leanear.benchmarks.tagging import TagQuality, average_precisions, multi_hot, tag_change, tag_quality, unpacked


@dataclass(frozen=True)
class TagAnalysis:
    """What was measured of each role; change: of the mean average precision from dense to slim, a share.

    logits: float32 (clips, labels) of each role; truth: bool (clips, labels).
    """

    quality: dict[str, TagQuality]
    change: Interval | None
    logits: dict[str, np.ndarray]
    truth: np.ndarray

    def average_precisions(self, role: str) -> np.ndarray:
        """Of every label, (labels,), NaN of those that no clip has."""
        return average_precisions(self.logits[role], self.truth)


def analyse_tags(results: Results) -> TagAnalysis:
    """The statistics of a results file of the task audio-tagging."""
    measured = results.content.accuracy.roles
    truth, logits = truth_of(results), {role: logits_of(results, role) for role in results.roles if role in measured}
    paired = len(logits) == 2
    return TagAnalysis(
        quality={role: tag_quality(scores, truth) for role, scores in logits.items()},
        change=tag_change(logits["dense"], logits["slim"], truth).interval if paired else None,
        logits=logits,
        truth=truth,
    )


def truth_of(results: Results) -> np.ndarray:
    """Which labels every evaluation clip has, bool (clips, labels)."""
    accuracy = results.content.accuracy
    return multi_hot(accuracy.label_ids, len(accuracy.labels))


def logits_of(results: Results, role: str) -> np.ndarray:
    """What a role answered, float32 (clips, labels)."""
    accuracy = results.content.accuracy
    text = accuracy.roles[role].logits_float32
    return unpacked(text, len(accuracy.label_ids), len(accuracy.labels))
