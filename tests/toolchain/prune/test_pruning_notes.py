"""What a report says of goal, search, recovery and prediction, number by number."""

from __future__ import annotations

import pytest

from leanear.benchmarks.formatting import WORD_ERROR_RATE
from leanear.evaluate.measured_loss import MeasuredLoss
from leanear.prune.document import Cost, Loss
from leanear.prune.latency_goal import LatencyCheck
from leanear.prune.notes import loss_sentence, loss_warning, pruning_notes
from leanear.prune.recipe import Goal
from leanear.prune.search import Trial
from leanear.runtimes.records import as_json
from leanear.timing.model_timing import Timed
from tests.toolchain.pruning_documents import compensated, distilled, pruning_document, round_of


def trial(sparsity, drop, expected, error):
    return Trial(sparsity, 256, 0, 0, drop, None, None, expected, error, 0.1, within=False)


PARAMETERS = Cost("attention parameters", 100.0, 50.0, 49.0)
MILLISECONDS = Cost("ms", 20.0, 16.0, 15.0)


@pytest.mark.parametrize(
    "pruning", [None, pruning_document(method="reference"), pruning_document(), pruning_document(cost=PARAMETERS)]
)
def test_nothing_is_said_where_there_is_nothing_to_say(pruning):
    assert pruning_notes(pruning, {"dense": 20.0, "slim": 15.0}) == []


def test_a_search_is_told_in_the_order_of_sparsity():
    search = (trial(0.8, 2.0, 1.5, 0.25), trial(0.5, -0.4, 0.1, 0.125))
    pruning = pruning_document(goal=Goal("max_drop", 0.5), search=search, cost=PARAMETERS)
    (note,) = pruning_notes(pruning, {})
    assert "sparsity of 50.0 %" in note
    assert "256 held-out calibration clips fell by at most 0.5 points" in note
    assert "50 %: +0.40, expected -0.10 ± 0.12; 80 %: -2.00, expected -1.50 ± 0.25" in note


def test_prediction_beside_measurement():
    """Predicted 20 / 15 = 1.333, measured 21 / 15 = 1.4: 5 % more."""
    (note,) = pruning_notes(pruning_document(cost=MILLISECONDS), {"dense": 21.0, "slim": 15.0})
    assert "predicted 20 ms dense and 15 ms slim, 1.333×;" in note
    assert "measured were 21 ms and 15 ms, 1.400× (+5.0 % of the ratio)" in note


@pytest.mark.parametrize("medians", [{}, {"dense": 20.0}, {"dense": None, "slim": None}])
def test_what_was_not_measured_is_said_so(medians):
    (note,) = pruning_notes(pruning_document(cost=MILLISECONDS), medians)
    assert note.endswith("the latency was not measured.")


@pytest.mark.parametrize("doubt", ["", "the samples spread by 30% (CV)"])
def test_a_check_that_is_not_to_be_trusted_says_why(doubt):
    check = LatencyCheck(16.0, 15.0, 20.0, 15.0, 20.0, 16.0, met=True, doubt=doubt)
    note = pruning_notes(pruning_document(latency_checks=(check,), timed=Timed("fp32", 10.0)), {})[-1]
    said = "The goal was met, by plan 1 of 1."
    assert note.endswith(f"{said} These times are not to be trusted: {doubt}." if doubt else said)


def test_recovery_is_judged_by_its_best_epoch():
    (note,) = pruning_notes(pruning_document(cost=PARAMETERS, recovery=distilled(123, (0.5, 0.2, 0.25), 1)), {})
    assert "took 123 updates" in note
    assert "from 0.5000 to 0.2000 nats" in note
    assert pruning_notes(pruning_document(recovery=distilled(123)), {}) == []


# What was lost


def with_loss(divergence=0.25, slim_mistakes=20.0, begins=0.41, rounds=(), shots=None, **more):
    finished = MeasuredLoss(50, divergence, 5.0, slim_mistakes, 100.0, 12.5, 17.5, 1.25)
    best = max(len(rounds) - 1, 0)
    return pruning_document(Loss(finished=finished, begins_at=begins, rounds=rounds, best=best, shots=shots), **more)


def test_damage_is_said_in_plain_words_with_a_way_out():
    assert loss_warning(with_loss()) == (
        "Removing 50 % of the attention does damage here: on 50 held-out calibration clips accuracy went from 95.0 to"
        " 80.0 %, and the model's answers diverge from the dense model's by 0.25 nats. By the corrected estimates such"
        " a loss begins at about 41 %: stay below --sparsity 0.41, or fit it again with --recovery full."
    )


def test_several_shots_are_told_and_older_files_tell_of_none():
    rounds = (round_of(0.1, 0.1),)
    once, twice = with_loss(rounds=rounds), with_loss(rounds=rounds, shots=2)
    assert "shots" not in loss_sentence(once)
    assert "It was pruned in 2 shots, of which this was the last." in loss_sentence(twice)
    assert "shots" not in as_json(once)["loss"]
    assert as_json(twice)["loss"]["shots"] == 2


def test_words_are_counted_wrong_not_right():
    assert "the word error rate went from 5.0 to 20.0 %" in loss_warning(with_loss(metric="word error rate"))


def test_what_has_been_fitted_is_not_told_to_fit():
    said = loss_warning(with_loss(recovery=distilled()))
    assert said.endswith("stay below --sparsity 0.41, or keep more of the model.")


@pytest.mark.parametrize(
    ("pruning", "end"),
    [
        (with_loss(begins=0.0), "By the corrected estimates no share is free of that."),
        (with_loss(begins=None), "from the dense model's by 0.25 nats."),
        (with_loss(begins=0.6), "did not tell: keep more of the model, or fit it again with --recovery full."),
        (with_loss(begins=0.5, recovery=distilled()), "did not tell: keep more of the model."),
        (with_loss(divergence=None), "the pruned model's answers are not numbers. Do not use it."),
    ],
)
def test_no_advice_is_given_that_would_not_help(pruning, end):
    assert loss_warning(pruning).endswith(end)


@pytest.mark.parametrize("pruning", [None, with_loss(divergence=0.01, slim_mistakes=5.5)])
def test_nobody_is_warned_of_nothing(pruning):
    assert loss_warning(pruning) is None


def test_estimate_and_measurement_are_told_side_by_side():
    rounds = (round_of(0.01, 0.5, {"a": (0.005, 0.1), "b": (0.005, 0.3)}), round_of(0.2, 0.3))
    expected = (
        "Measured on 50 held-out calibration clips: 0.25 nats from the dense model's answers; accuracy went from 95.0"
        " to 80.0 %, a loss of 15 points (12.5 to 17.5). The plan's estimate was 0.2 nats, and 0.3 were measured. It is"
        " round 2 of 2: the first plan, estimated at 0.01, measured 0.5, so blocks were measured one by one and widths"
        " chosen again."
    )
    assert loss_sentence(with_loss(rounds=rounds)) == expected
    assert pruning_notes(with_loss(rounds=rounds), {}) == [expected]
    assert loss_sentence(with_loss(rounds=rounds[:1])).endswith(
        " The plan's estimate was 0.01 nats, and 0.5 were measured; its blocks, cut one by one, lose 0.4 together."
    )
    assert "estimate" not in loss_sentence(with_loss())
    assert loss_sentence(with_loss(divergence=None)) is None


def test_what_was_measured_before_and_after_compensation_is_told_apart():
    rounds = (round_of(0.2, 0.3),)
    said = loss_sentence(with_loss(rounds=rounds, compensation=compensated(False, True)))
    assert said.startswith("Measured on 50 held-out calibration clips, after compensation: 0.25 nats from")
    assert said.endswith(" Before that, the plan's estimate was 0.2 nats, and 0.3 were measured.")
    both = with_loss(rounds=rounds, compensation=compensated(False, True), recovery=distilled(best=2))
    assert "clips, after compensation and recovery: 0.25" in loss_sentence(both)
    none = with_loss(rounds=rounds, compensation=compensated(False), recovery=distilled())
    assert "after" not in loss_sentence(none), "nothing of it was kept"


def test_a_divergence_of_rounding_is_none_and_a_rate_that_stayed_is_said_once():
    pruning = with_loss(divergence=-1.6e-09, slim_mistakes=5.0, rounds=(round_of(1e-9, 2e-9),))
    said = loss_sentence(pruning)
    assert "clips: 0 nats from the dense model's answers; accuracy stayed at 95.0 %" in said
    assert "estimate was 0 nats, and 0 were measured." in said


def test_most_of_what_a_whisper_is_held_out_are_windows():
    assert loss_sentence(with_loss(metric=WORD_ERROR_RATE)).startswith("Measured on 50 held-out calibration windows: ")


def test_the_reference_has_its_loss_measured_too():
    (note,) = pruning_notes(with_loss(method="reference"), {})
    assert note.startswith("Measured on 50 held-out calibration clips")
