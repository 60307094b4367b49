"""What a report decides, in words: the same sign for accuracy and word errors, and no decision on too few clips."""

from __future__ import annotations

import math

import pytest

from leanear.benchmarks.summary import Interval, accuracy_change, word_error_change
from leanear.benchmarks.verdict import loss_of, loss_text, points_moved, quality_verdict


def share(estimate: float, low: float, high: float) -> Interval:
    """A loss from points."""
    return Interval(estimate / 100, low / 100, high / 100)


@pytest.mark.parametrize(
    ("loss", "limit", "text", "tone"),
    [
        (share(0.4, 0.1, 0.8), 1.0, "a loss of 0.4 points (0.1 to 0.8), within the gate of 1 point", "good"),
        (
            share(0.2, -0.2, 0.6),
            1.0,
            "a loss of 0.2 points (a gain of 0.2 to a loss of 0.6), which may be chance, within the gate of 1 point",
            "good",
        ),
        (share(-0.4, -0.8, -0.1), 0.0, "a gain of 0.4 points (0.1 to 0.8), within the gate of 0 points", "good"),
        (share(3, 2.5, 4), 1.0, "a loss of 3 points (2.5 to 4), beyond the gate of 1 point", "bad"),
        (
            share(0.9, 0.3, 1.6),
            1.0,
            "not decided: too few clips (50); measured: a loss of 0.9 points (0.3 to 1.6), which by itself keeps the"
            " gate of 1 point",
            "",
        ),
        (share(0.4, 0.1, 0.8), None, "a loss of 0.4 points (0.1 to 0.8)", "bad"),
        (
            share(-0.2, -0.6, 0.2),
            None,
            "a gain of 0.2 points (a gain of 0.6 to a loss of 0.2), which may be chance",
            "good",
        ),
        (share(0, -0.5, 0.6), None, "no loss measured (95%: a gain of 0.5 to a loss of 0.6 points)", "good"),
        (
            share(0, -27.75, 27.75),
            None,
            "not decided: no loss on 50 clips, too few to rule out a loss of 27.75 points",
            "",
        ),
        (
            share(0.001, -2, 2),
            1.0,
            "not decided: no loss on 50 clips, too few to rule out a loss of 2 points (the gate is 1 point)",
            "",
        ),
    ],
)
def test_the_words(loss, limit, text, tone):
    said = quality_verdict(loss, 50, limit)
    assert (said.text, said.tone) == (text, tone)


@pytest.mark.parametrize(("clips", "decided"), [(299, False), (301, True)])
def test_where_no_clip_differs_the_rule_of_three_decides(clips, decided):
    """0.95 = 1 - (1 - p)^n has p near 3/n; a hundredth of the clips, here."""
    assert -math.log(0.05) == pytest.approx(3, abs=0.01)
    said = quality_verdict(share(0, 0, 0), clips, None).text
    assert said.startswith("no loss measured (95%: a gain of" if decided else "not decided")


def test_a_loss_is_a_loss_in_accuracy_and_in_word_errors():
    fewer_right = accuracy_change([0] * 400, [0] * 390 + [1] * 10, [0] * 400).change
    more_errors = word_error_change([0] * 400, [0] * 390 + [1] * 10, [1] * 400).change
    for change, metric in ((fewer_right, "accuracy"), (more_errors, "word error rate")):
        loss = loss_of(change, metric)
        assert points_moved(loss.estimate) == "2.5 points lost"
        assert loss_text(loss).startswith("a loss of 2.5 points (1")
    assert points_moved(-0.025) == "2.5 points gained"
    assert points_moved(0.00001) == "0 points"
