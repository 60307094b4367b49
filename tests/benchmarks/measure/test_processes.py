"""A fresh process: its answer, its progress, and each way in which it can end without one."""

from __future__ import annotations

import os
import time

import pytest

from leanear.benchmarks.measure.processes import part_of, run_fresh
from leanear.runtimes.errors import BadInput, RuntimeUnavailable

WORKER = "tests.benchmarks.odd_worker"


def test_answer_and_progress_come_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runtimes").mkdir()
    (tmp_path / "runtimes" / "__init__.py").write_text("raise SystemExit('a folder of the user was imported')")
    shown = []
    outcome = run_fresh(WORKER, {"do": "answer"}, lambda text, fraction: shown.append((text, fraction)))
    assert outcome.answer["process"] != os.getpid()
    assert shown == [("half of it", 0.5)]


def test_a_crash_keeps_the_end_of_the_log():
    outcome = run_fresh(WORKER, {"do": "crash"}, lambda *_: None)
    assert outcome.answer is None
    assert "status 1: ZeroDivisionError" in outcome.reason
    assert any("Traceback" in line for line in outcome.log_tail)


def test_a_kill_is_named():
    outcome = run_fresh(WORKER, {"do": "die"}, lambda *_: None)
    assert "SIGKILL" in outcome.reason
    assert "memory" in outcome.reason


def test_a_measurement_error_is_its_own_line():
    outcome = run_fresh(WORKER, {"do": "nan"}, lambda *_: None)
    assert outcome.reason == "the graph gave NaN"


@pytest.mark.parametrize(("do", "error"), [("bad", BadInput), ("unavailable", RuntimeUnavailable)])
def test_named_errors_cross_the_process(do, error):
    with pytest.raises(error, match="said by the worker"):
        run_fresh(WORKER, {"do": do}, lambda *_: None)


def test_a_silent_process_is_ended():
    outcome = run_fresh(WORKER, {"do": "hang"}, lambda *_: None, silence_limit_s=1.0)
    assert outcome.answer is None
    assert "said nothing for 1 s" in outcome.reason


def test_an_interrupt_leaves_no_process_behind(tmp_path):
    path = tmp_path / "pid"

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_fresh(WORKER, {"do": "speak and hang", "pid": str(path)}, interrupt)
    time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(int(path.read_text()), 0)


def test_part_of_maps_shares():
    shown = []
    part_of(lambda text, fraction: shown.append((text, fraction)), 0.5, 0.7, "memory: ")("half", 0.5)
    assert shown == [("memory: half", pytest.approx(0.6))]
