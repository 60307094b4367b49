"""The results file refuses what is missing, unknown or mistyped, and names the key."""

from __future__ import annotations

import copy
import json

import pytest

from leanear.benchmarks.results import read_results, write_results
from leanear.runtimes.errors import BadInput


@pytest.fixture(scope="module")
def document(null_results):
    return null_results.document


def test_what_is_written_is_read_back(document, tmp_path):
    write_results(tmp_path / "a.json", document)
    assert read_results(tmp_path / "a.json").document == document


def test_statistics_are_not_stored(document):
    text = json.dumps(document)
    assert not any(f'"{word}' in text for word in ("mean", "median", "p50", "p99", "accuracy_share", "ratio"))


def changed(document, path, value):
    """A copy with the value at `path` replaced, or removed where it is None."""
    copied = copy.deepcopy(document)
    place = copied
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return copied


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("runtime",), None, "missing key 'runtime'"),
        (("latency", "settings", "budget_s"), None, "missing key 'latency.settings.budget_s'"),
        (("latency", "repeats", 2, "samples_ms"), None, r"missing key 'latency.repeats\[2\].samples_ms'"),
        (("latency", "repeats", 1, "samples_ms", 0), "fast", r"samples_ms\[0\] is 'fast', expected a number"),
        (("options", "threads"), True, "options.threads is True, expected a whole number"),
        (("options", "precisions", "dense"), None, "missing key 'options.precisions.dense'"),
        (("memory", "roles", "slim", "gpu"), 3, "unknown key 'memory.roles.slim.gpu'"),
        (("artifacts", "third"), {}, "unknown key 'artifacts.third'"),
        (("surprise",), 1, "unknown key 'surprise'"),
        (("accuracy", "status"), "fine", "accuracy.status is 'fine', expected one of ok, not measured, failed"),
        (("memory", "status"), "failed", "memory.reason: empty"),
        (("device_before", "cpu_busy_share"), None, "missing key 'device_before.cpu_busy_share'"),
        (("memory", "roles", "slim"), None, "missing key 'memory.roles.slim'"),
        (("accuracy", "roles", "dense"), None, "missing key 'accuracy.roles.dense'"),
        (("latency", "repeats"), [], "latency.repeats: no samples of 'dense'"),
        (("accuracy", "roles", "slim", "predicted_ids"), [1], "predicted_ids: 1 for 40 clips"),
    ],
)
def test_a_wrong_key_is_named(document, tmp_path, path, value, said):
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(changed(document, path, value)))
    with pytest.raises(BadInput, match=said) as caught:
        read_results(broken)
    assert "broken.json" in str(caught.value)


def test_another_schema_is_refused(document, tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps({**document, "schema": "leanear-results-0"}))
    with pytest.raises(BadInput, match="leanear-results-0"):
        read_results(path)


def test_nan_is_not_written(document, tmp_path):
    with pytest.raises(BadInput, match=r"load_ms is nan"):
        write_results(tmp_path / "nan.json", changed(document, ("latency", "repeats", 0, "load_ms"), float("nan")))
    assert not list(tmp_path.iterdir())
