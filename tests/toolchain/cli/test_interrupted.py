"""Ctrl-C from the first moment of a command on: one line, no traceback, and nothing is called kept that is not."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leanear.runtimes.process.interrupts import GOES_ON, forget_kept, remember_kept, what_is_kept
from tests.conftest import write_tiny, write_tones

ROOT = Path(__file__).parents[3]
ENVIRONMENTS = {
    "ASCII": {"PYTHONIOENCODING": "ascii"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
COMMANDS = {
    "ASCII": (("--help",), ("targets",), ("prune", "{out}/größer", "--out", "{out}/slim")),
    "C": (
        ("explore", "{model}", "--data", "{data}", "--out", "{out}/explored"),
        ("prune", "{model}", "--data", "{data}", "--out", "{out}/größer", "--sparsity", "0.4"),
    ),
}
SEVERAL = """
import json, sys
from leanear.entry import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["leanear", *arguments]
    try:
        main()
    except SystemExit as stop:
        for stream in (sys.stdout, sys.stderr):
            print("--", stop.code or 0, file=stream, flush=True)
"""
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
    """Ctrl-C when the chunks of the statistics are on the disk, and again in the same command before any is.

    The second time where the clips are to be read.
    """
    flags = ("--data", str(data), "--out", str(tmp_path / "slim"), "--recovery", "full")
    process = start("prune", str(tiny_folder), *flags)
    while not list(tmp_path.glob(".slim.state/**/*.safetensors")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert last_line(process) == KEPT
    shutil.rmtree(tmp_path / ".slim.state")
    # in a process of its own: what other tests leave in this one may end it by the signal
    program = (
        "import sys; from tests.toolchain.interrupting import interrupted_at;"
        " sys.exit(interrupted_at(sys.argv[1], sys.argv[2:]))"
    )
    place = "leanear.prune.pruning.read_calibration"
    command = [sys.executable, "-c", program, place, "prune", str(tiny_folder), *flags]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert (again.returncode, again.stderr.strip().splitlines()[-1]) == (130, INTERRUPTED)
    assert not list(tmp_path.glob(".slim.state/**/*.safetensors"))


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


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory):
    """Gives status, output and errors of each of some commands in an environment, run once, one after another."""
    out = tmp_path_factory.mktemp("out")
    places = {"model": write_tiny(out / "model"), "data": write_tones(out / "data", 8), "out": out}

    def ended(environment):
        commands = [[word.format(**places) for word in command] for command in COMMANDS[environment]]
        program = [sys.executable, "-c", SEVERAL, json.dumps(commands, ensure_ascii=False)]
        environ = {**os.environ, **ENVIRONMENTS[environment]}
        process = subprocess.run(program, env=environ, capture_output=True, text=True, timeout=600)
        parts = [re.split(r"-- (\d+)\n", stream) for stream in (process.stdout, process.stderr)]
        assert len(parts[0]) == len(parts[1]) == 2 * len(commands) + 1, process.stderr
        return list(zip(map(int, parts[0][1::2]), parts[0][::2], parts[1][::2]))

    return functools.cache(ended)


@pytest.mark.parametrize(
    ("environment", "number"), [(name, n) for name in COMMANDS for n in range(len(COMMANDS[name]))]
)
def test_no_letter_is_too_much_for_an_output_in_ascii(in_one_process, environment, number):
    status, printed, errors = in_one_process(environment)[number]
    assert "Traceback" not in errors
    assert status in (0, 1, 2), errors
    assert printed or errors
