"""Commands whose reader goes away, or that are told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def start(module, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("leanear.entry", ["targets"]),
        ("leanear.entry", ["targets", "--json"]),
        ("leanear.entry", ["--help"]),
        ("benchmarks", ["doctor"]),
        ("benchmarks", ["doctor", "--json"]),
    ],
)
def test_a_closed_pipe_is_no_error_and_nothing_to_say(module, arguments):
    process = start(module, *arguments)
    process.stdout.close()
    assert process.wait(timeout=600) == 141
    assert process.stderr.read() == b""


def test_shell_completion_says_what_it_completes_and_nothing_else():
    words = {"_LEANEAR_COMPLETE": "bash_complete", "COMP_WORDS": "leanear pru", "COMP_CWORD": "1"}
    printed, errors = start("leanear.entry", **words).communicate(timeout=600)
    assert printed.split() == [b"plain,prune"]
    assert errors == b""


def catches(pid, number):
    """Whether a process has a handler for a signal, by what Linux says of it."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_only_sigterm_is_called_terminated():
    process = start("leanear.entry", "transcribe", "toolchain/demo/whisper/clips/evaluation/sentence_000.flac")
    while not catches(process.pid, signal.SIGTERM):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 143
    assert errors.decode().strip().splitlines()[-1] == "leanear: terminated"
