"""Graphs that take turns: a sample for every round, disturbed ones told apart."""

from __future__ import annotations

from leanear.benchmarks.measure.processes import free_of_noise, run_fresh
from leanear.benchmarks.measure.rounds import measure_rounds, quiet_samples


def request(tmp_path, rounds):
    graphs = [{"file": str(tmp_path / "any.onnx"), "labels": labels, "samples": 100} for labels in (1, 3)]
    return {"graphs": graphs, "runtime": "null", "threads": 1, "precision": "fp32", "rounds": rounds, "share_s": 60.0}


def test_every_graph_has_a_sample_for_every_round(tmp_path):
    answer = measure_rounds(request(tmp_path, 3), free_of_noise)
    assert [len(samples) for samples in answer["samples_ms"]] == [3, 3]
    assert [len(shares) for shares in answer["others_share"]] == [3, 3]
    assert all(ms > 0 for samples in answer["samples_ms"] for ms in samples)
    assert all(share >= 0 for shares in answer["others_share"] for share in shares)
    assert answer["facts"]["runtime"] == "null"


def test_two_rounds_are_made_when_there_is_no_time(tmp_path):
    answer = measure_rounds({**request(tmp_path, 9), "share_s": 0.0}, free_of_noise)
    assert [len(samples) for samples in answer["samples_ms"]] == [2, 2]


def test_in_a_fresh_process(tmp_path):
    seen = []
    outcome = run_fresh(
        "leanear.benchmarks.measure.rounds", request(tmp_path, 2), lambda text, fraction: seen.append(fraction)
    )
    assert outcome.answer is not None, outcome.reason
    assert len(outcome.answer["samples_ms"]) == 2
    assert seen == sorted(seen)


def test_disturbed_samples_are_left_out():
    assert quiet_samples([10.0, 10.1, 19.0, 10.2, 9.0], [0.0, 0.01, 0.4, 0.0, 0.5]) == [10.0, 10.1, 10.2]


def test_where_almost_all_are_disturbed_the_fastest_count():
    samples = [float(number) for number in range(12, 0, -1)]
    assert quiet_samples(samples, [0.0, 0.0] + [0.5] * 10) == [1.0, 2.0, 3.0, 4.0]
    assert quiet_samples([5.0, 4.0], [0.5, 0.4]) == [4.0, 5.0]
