"""The table of precisions: its rows, its ratios, and that a second run takes over what the first one made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from leanear.benchmarks.peers import precisions
from leanear.benchmarks.peers.precisions import Row, choose_rows, ratios, render
from leanear.benchmarks.report.precision_section import Change, Compared
from tests.conftest import write_tiny, write_tones


def row(role="slim", precision="int8", milliseconds=(), **facts):
    return Row(role, "onnxruntime", precision, Path("x"), milliseconds=list(milliseconds), **facts)


def test_a_row_for_every_precision_of_each_runtime(monkeypatch):
    monkeypatch.setattr(
        "leanear.runtimes.backends.openvino_cpu.precisions", lambda: ("fp32", "bf16", "int8", "int8-bf16")
    )
    rows = choose_rows(Path("state"), ["onnxruntime", "openvino"])
    assert [each.name for each in rows] == [
        *(f"{role} ONNX Runtime {precision}" for role in ("dense", "slim") for precision in ("fp32", "int8")),
        *(
            f"{role} OpenVINO {precision}"
            for role in ("dense", "slim")
            for precision in ("fp32", "bf16", "int8", "int8-bf16")
        ),
    ]
    shared = {each.name: each.artifact.name for each in rows}
    assert shared["slim OpenVINO bf16"] == shared["slim OpenVINO fp32"] == "openvino-slim-fp32"
    assert shared["dense OpenVINO int8-bf16"] == "openvino-dense-int8"


def test_ratios_are_of_rounds_and_not_of_medians():
    slow, fast = row(milliseconds=(10.0, 100.0, 30.0)), row(milliseconds=(5.0, 10.0, 15.0))
    low, middle, high = ratios(fast, slow)
    assert (low, middle, high) == pytest.approx((0.3, 0.5, 0.5))
    assert ratios(fast, row(milliseconds=(1.0,))) is None
    assert ratios(row(), row()) is None


def test_the_table_says_what_is_within_the_gate_and_what_has_no_figures():
    compared = Compared(0.9, 0.88, Change(-0.02, -0.04, 0.0), 3)
    rows = [
        row("dense", "fp32", (10.0, 20.0), bytes=2_000_000),
        row("slim", "fp32", (5.0, 10.0)),
        row("slim", "int8", (2.5, 5.0), compared=compared, within=False),
        row("dense", "int8", reason="refused"),
    ]
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(rows, "accuracy", 1.0))
    text = console.export_text()
    assert "0.250 (0.250 to 0.250)" in text
    assert "0.500 (0.500 to 0.500)" in text
    assert "a loss of 2 points (0 to 4)" in text
    assert " no " in text


@pytest.fixture(scope="module")
def model(tmp_path_factory):

    return write_tiny(tmp_path_factory.mktemp("model") / "tiny-ast")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("data"), 8, 0.5)


def test_the_whole_table_is_made_and_resumed(model, data, tmp_path, capsys, monkeypatch):
    out = tmp_path / "table.json"
    flags = ["--data", data, "--state", tmp_path / "state", "--runtime", "openvino", "--rounds", "2", "--threads", "1"]
    flags += ["--calibration-clips", "8", "--json", out]
    monkeypatch.setattr("leanear.runtimes.backends.openvino_cpu.precisions", lambda: ("fp32",))
    monkeypatch.setattr("sys.argv", ["precisions", str(model), *map(str, flags)])
    assert precisions.main() == 0
    first = capsys.readouterr()
    assert "exporting slim for openvino in fp32" in first.err
    assert "slim OpenVINO fp32" in first.out
    document = json.loads(out.read_text())
    assert document["metric"] == "accuracy"
    dense, slim = document["rows"]
    assert len(dense["milliseconds"]) == len(slim["milliseconds"]) == 2
    assert dense["ratios"] == [1.0, 1.0, 1.0]
    assert slim["bytes"] < dense["bytes"]
    assert slim["compared"]["change"]["estimate"] == 0.0
    assert precisions.main() == 0
    assert "exporting" not in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["precisions", str(model), "--data", str(tmp_path / "none"), "--state", "x"])
    monkeypatch.chdir(tmp_path)
    assert precisions.main() == 2
    assert "no such data folder" in capsys.readouterr().err
