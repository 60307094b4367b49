"""Goals: one at a time, each in its range, each complaint by the name of its flag."""

from __future__ import annotations

import pytest

from leanear.prune.recipe import Goal, choose_goal
from leanear.runtimes.errors import BadInput

NONE = dict.fromkeys(("sparsity", "macs", "latency_ms", "speedup", "rtf", "max_drop"))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("sparsity", 0.0), ("sparsity", 1.0), ("sparsity", -0.5), ("sparsity", float("nan")),
        ("macs", 0.0), ("macs", 1.0), ("macs", 1.3),
        ("speedup", 1.0), ("speedup", 0.9), ("speedup", float("nan")),
        ("latency_ms", 0.0), ("latency_ms", -3.0), ("rtf", 0.0), ("rtf", float("nan")),
        ("max_drop", -0.1), ("max_drop", 100.5),
    ],
)  # fmt: skip
def test_a_goal_out_of_range_is_named(kind, value):
    with pytest.raises(BadInput, match=f"^--{kind.replace('_', '-')} is {value:g}; it "):
        choose_goal({**NONE, kind: value})


@pytest.mark.parametrize(
    ("kind", "value", "words", "timed"),
    [
        ("sparsity", 0.7, "70 % of the attention parameters removed", False),
        ("macs", 0.8, "80 % of the multiply-accumulates kept", False),
        ("latency_ms", 12.5, "12.5 ms", True),
        ("speedup", 1.3, "1.3 times as fast", True),
        ("rtf", 0.02, "a real-time factor of 0.02", True),
        ("max_drop", 0.0, "at most 0 points lost", False),
    ],
)
def test_each_goal_alone(kind, value, words, timed):
    goal = choose_goal({**NONE, kind: value})
    assert goal == Goal(kind, value)
    assert (goal.text, goal.needs_latency) == (words, timed)


def test_without_a_goal_half_goes():
    assert choose_goal(NONE) == choose_goal({}) == Goal("sparsity", 0.5)


@pytest.mark.parametrize(
    "kinds",
    [
        ("sparsity", "speedup"),
        ("macs", "latency_ms"),
        ("latency_ms", "speedup"),
        ("speedup", "rtf"),
        ("sparsity", "macs"),
    ],
)
@pytest.mark.parametrize("gate", [None, 0.5])
def test_two_goals_are_named(kinds, gate):
    given = {"sparsity": 0.5, "macs": 0.5, "latency_ms": 9.0, "speedup": 1.2, "rtf": 0.1}
    flags = {**NONE, **{kind: given[kind] for kind in kinds}, "max_drop": gate}
    first, second = ("--" + kind.replace("_", "-") for kind in kinds)
    with pytest.raises(BadInput, match=f"^{first} and {second}: give one of them"):
        choose_goal(flags)


def test_a_drop_beside_a_goal_is_a_gate():
    assert choose_goal({**NONE, "speedup": 1.2, "max_drop": 0.5}) == Goal("speedup", 1.2)
