"""A runtime is one file and one line: in a copy of what runs on a device it is offered, measured and reported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from leanear.benchmarks.report.report import write_report
from leanear.benchmarks.results import read_results
from leanear.devices.bundle import write_runner
from tests.runtimes.tiny_artifact import loudness_weights, write_tiny_artifact

RUNTIME = Path(__file__).with_name("loud_runtime.py")


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The device's program, unpacked, with the file and the line."""
    folder = tmp_path_factory.mktemp("device")
    write_runner(folder / "leanear.pyz")
    program = folder / "program"
    with zipfile.ZipFile(folder / "leanear.pyz") as packed:
        packed.extractall(program)
    runtimes = program / "leanear" / "runtimes"
    (runtimes / "backends" / "loud.py").write_bytes(RUNTIME.read_bytes())
    registry = runtimes / "choose.py"
    line = '    "loud": "leanear.runtimes.backends.loud",\n'
    changed, times = re.subn(r"^MODULES = \{\n", lambda found: found[0] + line, registry.read_text(), flags=re.M)
    assert times == 1
    registry.write_text(changed)
    return program


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(program), *arguments], capture_output=True, text=True, cwd=program.parent
    )


def test_it_is_offered(program):
    assert "loud" in run(program, "bench", "--help").stdout
    said = json.loads(run(program, "doctor", "--json").stdout)
    assert next(finding for finding in said["findings"] if finding["name"] == "loud")["text"] == "not installed"


def test_it_is_measured_and_reported(program, tmp_path, markdown_alone):
    slim = write_tiny_artifact(tmp_path / "slim", loudness_weights())
    dense = write_tiny_artifact(tmp_path / "dense", loudness_weights())
    out = tmp_path / "results.json"
    flags = ["--dense", str(dense), "--runtime", "loud", "--threads", "1", "--budget", "1", "--out", str(out)]
    ended = run(program, "bench", str(slim), *flags)
    assert ended.returncode == 0, ended.stderr
    assert read_results(out).document["runtime"] == "loud"
    page = write_report(out, tmp_path / "page").markdown.read_text()
    assert "loud" in page  # by its key: this copy of leanear does not know the file


def test_a_precision_that_it_lacks_is_refused(program, tmp_path):
    slim = write_tiny_artifact(tmp_path / "slim", loudness_weights())
    ended = run(program, "bench", str(slim), "--runtime", "loud", "--precision", "bf16", "--budget", "1")
    assert ended.returncode == 2
    assert ended.stderr.strip() == "leanear: precision: loud does not compute in bf16 on this machine; it offers fp32"
