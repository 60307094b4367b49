"""Processes that answer one request at a time."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from leanear.benchmarks.peers.lasting_worker import LastingWorker, WorkerFailed

WORKER = "tests.benchmarks.odd_lasting_worker"


@pytest.fixture
def worker():
    worker = LastingWorker(Path(sys.executable), WORKER)
    yield worker
    worker.close()


def test_one_process_answers_one_request_after_another(worker):
    first, second = worker.ask({"do": "count", "word": "a"}), worker.ask({"do": "count", "word": "b"})
    assert first["process"] == second["process"] != os.getpid()
    assert second["asked"] == ["a", "b"]


def test_a_closed_worker_ends_and_starts_afresh(worker):
    first = worker.ask({"do": "count", "word": "a"})
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(first["process"], 0)
    worker.close()
    assert worker.ask({"do": "count", "word": "b"})["asked"] == ["b"]


@pytest.mark.parametrize(
    ("do", "said"),
    [
        ("crash", "ended with status 1: ZeroDivisionError: division by zero"),
        ("nan", "ended with status 1: ValueError: Out of range float values"),
        ("unheard of", "ended with status 1: KeyError: 'unheard of'"),
        ("die", "ended by signal 9: "),
        ("list", "answered something that is not a JSON object: '[1, 2]'"),
    ],
)
def test_a_failure_is_a_reason_and_never_an_answer(worker, do, said):
    with pytest.raises(WorkerFailed) as failure:
        worker.ask({"do": do})
    assert str(failure.value).startswith(said)


def test_the_log_of_a_failure_is_kept(worker):
    worker.ask({"do": "count", "word": "a"})
    with pytest.raises(WorkerFailed) as failure:
        worker.ask({"do": "crash"})
    assert "a library prints this to stdout" in failure.value.log_tail
    assert "and so does a program that it starts" in failure.value.log_tail


def test_a_dead_worker_says_so_again(worker):
    for _ in range(2):
        with pytest.raises(WorkerFailed, match="ended by signal 9"):
            worker.ask({"do": "die"})
    assert not worker.alive


def test_a_silent_worker_is_ended(worker):
    process = worker.ask({"do": "count", "word": "a"})["process"]
    with pytest.raises(WorkerFailed, match=r"said nothing for 0\.5 s"):
        worker.ask({"do": "hang"}, limit_s=0.5)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_an_environment_that_is_not_there_is_a_failure(tmp_path):
    worker = LastingWorker(tmp_path / "python", WORKER)
    with pytest.raises(WorkerFailed, match="No such file"):
        worker.ask({"do": "count", "word": "a"})
    worker.close()
