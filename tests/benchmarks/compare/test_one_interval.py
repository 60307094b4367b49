"""One interval of a paired change of accuracy: the report, the precision gate, `compare` and the search say the same.

The oracle inverts Tango's score test itself, by scipy's root finding over a likelihood that scipy maximises.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import norm

from leanear.benchmarks.analysis import analyse
from leanear.benchmarks.compare.compare import compare
from leanear.benchmarks.compare.compare_page import row_cells, said_of
from leanear.benchmarks.report.precision_section import (
    Change,
    Compared,
    GateFacts,
    PrecisionDocument,
    Trial,
    trial_sentence,
)
from leanear.benchmarks.report.report import write_report
from leanear.benchmarks.results import read_results
from leanear.benchmarks.summary import Interval, judge_gate, judge_word_gate, paired_change, word_error_change
from leanear.benchmarks.tagging import MEAN_AP, clip_shares, tag_change, tag_quality
from leanear.benchmarks.verdict import loss_of
from leanear.data.examples import Mistakes
from leanear.deploy.precision_gate import compare_answers
from leanear.prune.notes import pruning_notes
from leanear.prune.recipe import Goal
from leanear.prune.search import Trial as SearchTrial
from leanear.prune.search import _Answers, _trial
from leanear.runtimes.clips import Clips
from tests.toolchain.pruning_documents import pruning_document

CLIPS, LABELS = 21, ("bed", "cat", "dog", "owl")
TRUTH = [place % len(LABELS) for place in range(CLIPS)]


def statistic(change: float, lost: int, won: int, clips: int) -> float:
    """The score statistic at `change`, the shares of lost and won clips being the likeliest ones that it allows."""

    def loss(share_lost: float) -> float:
        shares = (share_lost, share_lost + change, 1 - 2 * share_lost - change)
        counts = (lost, won, clips - lost - won)
        if min(shares) < -1e-15 or any(count and share <= 0 for count, share in zip(counts, shares, strict=True)):
            return math.inf
        return -sum(count * math.log(share) for count, share in zip(counts, shares, strict=True) if count)

    low, high = max(0.0, -change), (1 - change) / 2
    inner = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
    share_lost = min((low, inner, high), key=loss)  # the likeliest may lie on the edge, where nothing differs
    return (won - lost - clips * change) / math.sqrt(clips * (2 * share_lost + change - change**2))


def inverted(lost: int, won: int, clips: int) -> tuple[float, float]:
    """Where the score test at 5 % turns from rejecting a change to not rejecting it."""
    z, estimate = norm.ppf(0.975), (won - lost) / clips
    low = brentq(lambda change: statistic(change, lost, won, clips) - z, -1 + 1e-9, estimate - 1e-9)
    high = brentq(lambda change: statistic(change, lost, won, clips) + z, estimate + 1e-9, 1 - 1e-9)
    return low, high


@pytest.mark.parametrize(
    ("lost", "won", "clips"), [(0, 0, 21), (0, 0, 1000), (1, 0, 21), (7, 1, 21), (3, 9, 60), (20, 18, 840)]
)
def test_the_interval_is_the_inverted_score_test(lost, won, clips):
    interval = paired_change(lost, won, clips)
    assert (interval.low, interval.high) == pytest.approx(inverted(lost, won, clips), abs=1e-6)


def answers(lost: int, won: int) -> tuple[list[int], list[int]]:
    """Labels given before and after: of 21 clips `lost` are right before alone, `won` after alone, 5 never."""
    wrong = [(label + 1) % len(LABELS) for label in TRUTH]
    before, after = list(TRUTH), list(TRUTH)
    for place in range(lost):
        after[place] = wrong[place]
    for place in range(lost, lost + won):
        before[place] = wrong[place]
    for place in range(CLIPS - 5, CLIPS):
        before[place] = after[place] = wrong[place]
    return before, after


@pytest.fixture
def deployments(null_results, tmp_path):
    """Results files of two deployments: in each the slim model answers as `answers` says, and dense as before."""

    def written(lost: int, won: int):
        before, after = answers(lost, won)
        for name, slim in (("a", before), ("b", after)):
            document = json.loads(json.dumps(null_results.document))
            accuracy = document["accuracy"]
            accuracy |= {"names": [f"{n}.wav" for n in range(CLIPS)], "label_ids": TRUTH, "labels": list(LABELS)}
            accuracy["kl_dense_slim_nats"] = [0.0] * CLIPS
            for role, given in (("dense", before), ("slim", slim)):
                accuracy["roles"][role] |= {"predicted_ids": given, "cross_entropy_nats": [0.1] * CLIPS}
            (tmp_path / f"{name}.json").write_text(json.dumps(document))
        return tmp_path / "a.json", tmp_path / "b.json"

    return written


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (2, 3)])
def test_report_precision_gate_compare_and_search_say_the_same(deployments, tmp_path, lost, won):
    low, high = inverted(lost, won, CLIPS)
    before, after = answers(lost, won)
    a, b = deployments(lost, won)

    report = analyse(read_results(b)).change.change
    compared = next(row for row in compare(a, b).rows if row.what.key == "accuracy")
    clips = Clips(
        tuple(np.zeros(9, np.float32) for _ in TRUTH), np.array(TRUTH), tuple(map(str, TRUTH)), LABELS, 16_000
    )
    gate = compare_answers(clips, before, after, None, None).change.interval
    wrong = [np.array([float(x != y) for x, y in zip(given, TRUTH, strict=True)]) for given in (before, after)]
    logits = torch.eye(len(LABELS))[TRUTH]
    dense = _Answers(logits, Mistakes(wrong[0], np.ones(CLIPS)))
    trial = _trial(0.5, dense, logits, wrong[1], torch.tensor(TRUTH), 1.0)
    for change in (report, compared, gate):
        assert (change.low, change.high) == pytest.approx((low, high), abs=1e-6)
    assert (trial.low_points, trial.high_points) == pytest.approx((-100 * high, -100 * low), abs=1e-4)


def at_its_gate(metric: str, compared: Compared) -> str:
    gate = GateFacts("onnxruntime", 1, "a machine", CLIPS, 0, "")
    document = PrecisionDocument("", "int8", "int8", 1.0, metric, gate, (), "")
    return trial_sentence(document, Trial("int8", "PASS", "", **vars(compared)))


def test_21_clips_without_a_discordant_pair_in_words(deployments, tmp_path, markdown_alone):
    """The interval of no difference is closed: n clips say no more than z²/(n + z²), here 15.46 points."""
    share = norm.ppf(0.975) ** 2 / (CLIPS + norm.ppf(0.975) ** 2)
    said = f"a gain of {100 * share:.2f} to a loss of {100 * share:.2f}"
    assert said == "a gain of 15.46 to a loss of 15.46"
    a, b = deployments(0, 0)

    paths = write_report(b, tmp_path / "report", max_drop=1.0)
    text = paths.markdown.read_text()
    assert f"0 points ({said})" in text
    assert "0.00 to 0.00" not in text
    wide = "no loss on 21 clips, too few to rule out a loss of 15.46 points (the gate is 1 point)"
    assert f"**Accuracy: not decided: {wide}" in text
    assert paths.gate.verdict == "PASS"
    assert "only the point is within it: the 95% interval reaches 15.46" in paths.gate.sentence

    comparison = compare(a, b)
    row = next(row for row in comparison.rows if row.what.key == "accuracy")
    assert row_cells(row, comparison)[4] == "a gain of 15.46 to a loss of 15.46"
    assert any(
        line.startswith(f"bound: accuracy: 0 points ({said})") and line.endswith("kept, by the point alone")
        for line in said_of(comparison)
    )

    clips = Clips(
        tuple(np.zeros(9, np.float32) for _ in TRUTH), np.array(TRUTH), tuple(map(str, TRUTH)), LABELS, 16_000
    )
    sentence = at_its_gate("accuracy", compare_answers(clips, *answers(0, 0), None, None))
    assert f"0 points of accuracy against fp32 ({said}) on 21 calibration clips" in sentence
    assert "only the point is within it: the 95% interval reaches 15.46" in sentence


def test_a_search_says_how_surely_it_is_within_its_goal():
    trial = SearchTrial(0.5, CLIPS, 0, 0, 0.0, -15.46, 15.46, 0.1, 0.1, 0.0, within=True)
    (note,) = pruning_notes(pruning_document(goal=Goal("max_drop", 1.0), search=(trial,)), {})
    assert note.endswith(
        "As counted at 50 %, only the point is within it: the 95% interval reaches 15.46, so more clips would be needed"
        " to rule out a miss."
    )


@pytest.mark.parametrize(
    ("change", "limit", "verdict", "said"),
    [
        (Interval(-0.002, -0.004, 0.0), 1.0, "PASS", "the whole 95% interval, 0.00 to 0.40, is within it"),
        (Interval(-0.005, -0.025, 0.015), 1.0, "PASS", "only the point is within it: the 95% interval reaches 2.50"),
        (
            Interval(-0.011, -0.02, 0.0),
            1.0,
            "FAIL",
            "only the point is beyond it: the 95% interval reaches down to 0.00",
        ),
        (Interval(-0.03, -0.04, -0.02), 1.0, "FAIL", "the whole 95% interval, 2.00 to 4.00, is beyond it"),
        (Interval(0.02, 0.01, 0.03), 0.0, "PASS", "the whole 95% interval, -3.00 to -1.00, is within it"),
    ],
)
def test_a_gate_says_whether_the_interval_or_the_point_alone_decides(change, limit, verdict, said):
    gate = judge_gate(change, limit)
    assert gate.verdict == verdict
    assert said in gate.sentence


def test_word_errors_that_differ_on_no_clip_have_no_interval_and_that_is_said():
    change = word_error_change([1, 0, 2], [1, 0, 2], [5, 5, 5])
    assert not change.change.has_spread
    gate = judge_word_gate(change, 1.0)
    assert gate.verdict == "PASS"
    assert gate.sentence.endswith("that is the point alone: no clip differs, so resampling the clips gives no interval")
    once = word_error_change([1], [2], [5])
    assert "every resample of the clips gives the same" in judge_word_gate(once, 1.0).sentence
    sentence = at_its_gate("word error rate", Compared(0.1, 0.1, Change(0.0, None, None), 0))
    assert "no change of word error rate against fp32 (no clip differs, so" in sentence


def test_mistakes_that_are_counted_by_the_word_are_resampled():
    before, after = (np.array(errors, float) for errors in ([0, 1, 2, 0] * 5, [1, 1, 2, 0] * 5))
    words = np.full(20, 4.0)
    rise, _ = Mistakes(after, words).rise_over(Mistakes(before, words))
    expected = word_error_change(before.tolist(), after.tolist(), words.tolist()).change
    assert rise == expected
    assert rise.estimate == pytest.approx(5 / 80)


def test_a_fall_of_the_mean_average_precision_is_a_rise_of_what_it_lacks():
    generator = np.random.default_rng(0)
    truth = generator.random((60, 4)) < 0.3
    before = generator.normal(size=(60, 4)) + 2 * truth
    after = before + generator.normal(size=(60, 4))
    dense, slim = (Mistakes(*clip_shares(scores, truth), scores, truth) for scores in (before, after))
    rise, error = slim.rise_over(dense)
    change = tag_change(before, after, truth)
    assert rise.estimate == pytest.approx(slim.errors.sum() - dense.errors.sum(), abs=1e-9)
    assert rise == loss_of(change.interval, MEAN_AP)
    assert rise.low < rise.estimate < rise.high
    assert error == change.standard_error
    gate = judge_gate(change.interval, 0.0, metric=MEAN_AP)
    assert gate.verdict == "FAIL"
    assert "points of mAP, where at most 0.00 may be lost; the whole 95% interval" in gate.sentence


def test_a_ranking_that_never_differs_has_no_interval():
    truth = np.tile(np.eye(3, dtype=bool), (8, 1))
    scores = truth.astype(np.float32)
    rise, error = Mistakes(*clip_shares(scores, truth), scores, truth).rise_over(
        Mistakes(*clip_shares(scores, truth), scores, truth)
    )
    assert (rise.has_spread, error) == (False, 0.0)
    told = tag_quality(scores, truth).as_json()
    assert (told["mean_ap"], told["mean_ap_interval_95"]) == (1.0, [None, None])
    gate = judge_gate(tag_change(scores, scores, truth).interval, 1.0, metric=MEAN_AP)
    assert (gate.verdict, "that is the point alone" in gate.sentence) == ("PASS", True)
