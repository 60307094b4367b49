"""What a report says of goal, search, recovery and prediction, number by number."""

from __future__ import annotations

import pytest

from toolchain.pruning_notes import pruning_notes


def trial(sparsity, drop, expected, error):
    return {
        "sparsity": sparsity, "clips": 256, "lost": 0, "won": 0, "drop_points": drop,
        "expected_drop_points": expected, "standard_error_points": error, "kl_divergence": 0.1, "within": True,
    }  # fmt: skip


ROTATED = {"method": "rotated", "goal": {"kind": "sparsity", "value": 0.5}, "sparsity": 0.5}
PARAMETERS = {"unit": "attention parameters", "dense": 100.0, "budget": 50.0, "slim": 49.0}
MILLISECONDS = {"unit": "ms", "dense": 20.0, "budget": 16.0, "slim": 15.0}


@pytest.mark.parametrize(
    "pruning", [None, {"method": "reference", "goal": {}}, ROTATED, {**ROTATED, "cost": PARAMETERS}]
)
def test_nothing_is_said_where_there_is_nothing_to_say(pruning):
    assert pruning_notes(pruning, {"dense": 20.0, "slim": 15.0}) == []


def test_a_search_is_told_in_the_order_of_sparsity():
    search = [trial(0.8, 2.0, 1.5, 0.25), trial(0.5, -0.4, 0.1, 0.125)]
    goal = {"kind": "max_drop", "value": 0.5}
    (note,) = pruning_notes({**ROTATED, "goal": goal, "search": search, "cost": PARAMETERS}, {})
    assert "sparsity of 50.0 %" in note
    assert "256 held-out calibration clips fell by at most 0.5 points" in note
    assert "50 %: +0.40, expected -0.10 ± 0.12; 80 %: -2.00, expected -1.50 ± 0.25" in note


def test_prediction_beside_measurement():
    """Predicted 20 / 15 = 1.333, measured 21 / 15 = 1.4: 5 % more."""
    (note,) = pruning_notes({**ROTATED, "cost": MILLISECONDS}, {"dense": 21.0, "slim": 15.0})
    assert "predicted 20 ms dense and 15 ms slim, 1.333×;" in note
    assert "measured were 21 ms and 15 ms, 1.400× (+5.0 % of the ratio)" in note


@pytest.mark.parametrize("medians", [{}, {"dense": 20.0}, {"dense": None, "slim": None}])
def test_what_was_not_measured_is_said_so(medians):
    (note,) = pruning_notes({**ROTATED, "cost": MILLISECONDS}, medians)
    assert note.endswith("the latency was not measured.")


def test_recovery_is_judged_by_its_best_epoch():
    recovery = {"updates": 123, "held_out_kls": [0.5, 0.2, 0.25], "best_epoch": 1}
    (note,) = pruning_notes({**ROTATED, "cost": PARAMETERS, "recovery": recovery}, {})
    assert "took 123 updates" in note
    assert "from 0.5000 to 0.2000 nats" in note
    assert pruning_notes({**ROTATED, "recovery": {**recovery, "held_out_kls": []}}, {}) == []
    assert pruning_notes({**ROTATED, "recovery": None}, {}) == []
