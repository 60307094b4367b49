"""Ctrl-C is one line and 130 whatever it hits: our code, an import that turns it into another error, a destructor."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

START = """
import os, signal, time
from leanear.runtimes.process.interrupts import run_interruptibly, was_interrupted

def press():
    os.kill(os.getpid(), signal.SIGINT)

{work}

raise SystemExit(run_interruptibly(work))
"""
WORKS = {
    "in our own code": "def work():\n    press()\n    time.sleep(5)\n",
    "in an import that fails another way": """
def work():
    try:
        press()
        time.sleep(5)
    except KeyboardInterrupt:
        raise ImportError("numpy.core.multiarray failed to import")
""",
    "in the start-up of a library, which ends the process where an error reaches it": """
import _imp
start_up = _imp.exec_dynamic

def started(module):
    _imp.exec_dynamic = start_up
    try:
        press()
        time.sleep(0.01)
    except KeyboardInterrupt:
        os.abort()
    return start_up(module)

def work():
    _imp.exec_dynamic = started
    import numpy
    time.sleep(20)
""",
    "where Python would forget it": """
class Thing:
    def __del__(self):
        press()
        time.sleep(0.01)

def work():
    thing = Thing()
    del thing
    time.sleep(20)
    return 0
""",
}


def ended(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
def test_one_line_and_130(work):
    process = ended(START.format(work=work))
    assert (process.returncode, process.stderr) == (130, "leanear: interrupted\n")


def test_other_errors_are_themselves():
    process = ended(START.format(work="def work():\n    raise RuntimeError('no interrupt')\n"))
    assert process.returncode == 1
    assert process.stderr.rstrip().endswith("RuntimeError: no interrupt")
    assert ended(START.format(work="def work():\n    return 7\n")).returncode == 7


def test_another_ctrl_c_while_it_ends_says_nothing():
    code = START.format(work="def work():\n    press()\n    time.sleep(5)\n").replace(
        "raise SystemExit(run_interruptibly(work))", "run_interruptibly(work)\npress()\ntime.sleep(5)"
    )
    process = ended(code)
    assert (process.returncode, process.stderr) == (-signal.SIGINT, "leanear: interrupted\n")


def test_a_job_in_the_background_does_not_listen():
    code = START.format(work="def work():\n    press()\n    return 3\n").replace(
        "import os, signal, time\n", "import os, signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    )
    process = ended(code)
    assert (process.returncode, process.stderr) == (3, "")
