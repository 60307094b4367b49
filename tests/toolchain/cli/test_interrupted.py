"""Ctrl-C from the first moment of a command on: one line, no traceback, and nothing is called kept that is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leanear.runtimes.process.interrupts import GOES_ON, forget_kept, remember_kept, what_is_kept
from tests.conftest import write_tones

ROOT = Path(__file__).parents[3]
INTERRUPTED, KEPT = "leanear: interrupted", f"leanear: interrupted; {GOES_ON}"
MOMENTS_S = (0.0, 0.05, 0.2, 0.6, 1.5)


def start(*arguments: str, module: str = "leanear.entry", **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def last_line(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    return errors.strip().splitlines()[-1]


@pytest.fixture
def data(tmp_path):
    return write_tones(tmp_path / "data", 8)


@pytest.mark.parametrize(
    ("module", "seconds"),
    [
        *(("leanear.entry", seconds) for seconds in MOMENTS_S),
        ("leanear.benchmarks.__main__", 0.02),
        ("leanear.benchmarks.__main__", 0.1),
    ],
)
def test_while_it_is_importing(tiny_folder, data, tmp_path, module, seconds):
    """As pip writes commands; the first moments are too early even for a line, then the signal alone ends it."""
    out = ("--data", str(data), "--out", str(tmp_path / "out"))
    arguments = ("prune", str(tiny_folder), *out) if module == "leanear.entry" else ("doctor",)
    code = f"from {module} import main; print('started', flush=True); main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "started\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert "Traceback" not in errors
    assert "KeyboardInterrupt" not in errors
    if module == "leanear.entry":
        assert process.returncode in (130, -signal.SIGINT)
    if process.returncode == 130:
        assert errors.strip().splitlines()[-1] == INTERRUPTED


def test_what_is_kept_is_said_only_where_it_is(tiny_folder, data, tmp_path):
    """Ctrl-C when the chunks of the statistics are on the disk; before any is, in a process that other tests share."""
    flags = ("--data", str(data), "--out", str(tmp_path / "slim"), "--recovery", "full")
    process = start("prune", str(tiny_folder), *flags)
    while not list(tmp_path.glob(".slim.state/**/*.safetensors")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert last_line(process) == KEPT


def test_what_is_gone_again_is_not_called_kept(tmp_path):
    forget_kept()
    assert what_is_kept() == ""
    path = tmp_path / "chunk"
    remember_kept(path)
    assert what_is_kept() == ""
    path.touch()
    assert what_is_kept() == f"; {GOES_ON}"
    path.unlink()
    assert what_is_kept() == ""
    path.touch()
    forget_kept()
    assert what_is_kept() == ""
