"""A tiny Whisper brought to a device over a real SSH server: word errors and the latency of a window in its report."""

from __future__ import annotations

import sys

import pytest

from leanear.benchmarks.device.bundled import read_bundle
from leanear.benchmarks.results import read_results
from leanear.cli.commands import run
from tests.toolchain.speech_folder import write_speech_folder
from tests.toolchain.ssh_server import HOST
from tests.whisper_models import write_whisper

TEXTS = [f"the colour of number {number}" for number in range(10)]
pytestmark = pytest.mark.usefixtures("shortest_benchmark", "measured_here", "markdown_alone")
EIGHT_BITS = """description = "A small computer, in 8 bits"
runtime = "onnxruntime"
graph_form = "onnxruntime"
precision = "int8"
threads = 1
measured = "device"
python = PYTHON
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_whisper(tmp_path_factory.mktemp("model") / "tiny-whisper")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_speech_folder(tmp_path_factory.mktemp("data") / "clips", TEXTS)


@pytest.fixture
def there(model, data, server, tmp_path, monkeypatch):
    """The flags of a deploy of the tiny Whisper to the server."""
    monkeypatch.setenv("LEANEAR_SSH", server.command)
    clips = ["--data", str(data), "--calibration-clips", "4", "--budget", "1"]
    device = ["--host", HOST, "--device-folder", str(tmp_path / "device"), "--out", str(tmp_path / "out")]
    return ["deploy", str(model), *clips, *device]


def test_a_whisper_over_ssh_has_word_errors_and_the_latency_of_a_window(there, tmp_path, capsys):
    assert run([*there, "--target", "raspberrypi", "--device-python", sys.executable]) == 0
    said = capsys.readouterr()
    assert f"{HOST}: measured" in said.err
    for row in ("window, ", "each token", "real-time factor", "word error rate", "cache of keys and values"):
        assert row in said.out
    results = read_results(tmp_path / "out" / "results" / HOST / "onnxruntime-fp32.json")
    assert results.is_speech
    assert not results.failures()
    errors = results.document["accuracy"]["word_errors"]
    assert errors["reference_words"] == [5] * 5
    assert set(errors["roles"]) == {"dense", "slim"}
    report = (tmp_path / "out" / "report.md").read_text()
    for text in ("for raspberrypi", "## Word errors", "## Stages of a window", "first token"):
        assert text in report


def test_a_users_target_in_8_bits(there, tmp_path, capsys):
    target = tmp_path / "radio.toml"
    target.write_text(EIGHT_BITS.replace("PYTHON", f'"{sys.executable}"'))
    assert run([*there, "--target", str(target), "--max-drop", "100", "--sparsity", "0.3"]) == 0
    bundle = read_bundle(tmp_path / "out" / "bundle")
    precision = bundle.document.run.precision
    results = read_results(tmp_path / "out" / "results" / HOST / f"onnxruntime-{precision}.json")
    assert results.precisions["slim"] == precision
    assert precision in (tmp_path / "out" / "report.md").read_text()
    assert "word error rate" in capsys.readouterr().out
