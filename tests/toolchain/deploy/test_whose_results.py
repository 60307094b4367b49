"""Whose results a deployment folder's report has: those of the models in it, of all devices that measured them."""

from __future__ import annotations

import copy
import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from leanear.benchmarks.results import DeviceOutcome
from leanear.cli.commands import run
from leanear.deploy.delivering import Devices
from tests.toolchain.deploy.test_delivering import deployment, folder, narrator, new_folder  # noqa: F401

pytestmark = pytest.mark.usefixtures("markdown_alone")
OTHERS = "0" * 64


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def place(null_results, folder):  # noqa: F811
    """Writes results in the folder, of whose slim model every inference took so long."""

    def placed(name: str, slim_ms: float, precision: str = "fp32", slim: str = "") -> Path:
        document = copy.deepcopy(null_results.document)
        document["artifacts"]["slim"]["manifest_sha256"] = slim or sha256(folder / "slim" / "manifest.json")
        document["options"]["precisions"]["slim"] = precision
        for repeat in document["latency"]["repeats"]:
            repeat["samples_ms"] = [slim_ms if repeat["role"] == "slim" else 50.0] * 36
        path = folder / "results" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))
        return path

    return placed


@pytest.fixture
def two_devices(place, folder):  # noqa: F811
    """A folder with results of two devices, whose report was not written yet."""
    hosts = {"kitchen": place("kitchen/null-fp32.json", 11.0), "attic": place("attic/null-fp32.json", 22.0)}
    outcome = {"status": "ok", "reason": "", "notes": [], "log_tail": [], "doctor": None}
    outcomes = [
        {"host": host, **outcome, "results": path.relative_to(folder).as_posix()} for host, path in hosts.items()
    ]
    document = {"schema": "leanear-devices-1", "title": "tiny", "target": "pi", "provenance": {}, "outcomes": outcomes}
    (folder / "devices.json").write_text(json.dumps(document))
    return folder


def complaint(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("leanear: ")]
    return line


@pytest.mark.parametrize("newest", [0, 1, 2, 3])
def test_the_report_is_of_the_models_in_the_folder_whichever_file_is_newest(place, folder, newest):  # noqa: F811
    paths = [
        place("onnxruntime-fp32.json", 11.0),
        place("onnxruntime-int8.json", 22.0, "int8", slim=OTHERS),
        place("onnxruntime-bf16.json", 33.0, "bf16"),  # another way to run the same graphs
        place("kitchen/onnxruntime-fp32.json", 44.0),  # of a device, from before the last deployment to this machine
    ]
    for path in paths:
        os.utime(path, (1e9, 1e9))
    os.utime(paths[newest], (2e9, 2e9))
    assert run(["report", str(folder)]) == 0
    text = (folder / "report.md").read_text()
    assert "11.00 ms" in text
    assert not [wrong for wrong in ("22.00 ms", "33.00 ms", "44.00 ms") if wrong in text]


def test_results_of_other_models_alone_are_refused_in_one_line(place, folder, capsys):  # noqa: F811
    path = place("onnxruntime-int8.json", 22.0, slim=OTHERS)
    assert run(["report", str(folder)]) == 2
    assert f"{path}: its slim model is not the one in {folder}" in complaint(capsys)
    assert not (folder / "report.md").exists()


def test_a_report_of_devices_elsewhere_has_all_of_them(two_devices, tmp_path):
    out = tmp_path / "elsewhere"
    assert run(["report", str(two_devices), "--out", str(out)]) == 0
    text = (out / "report.md").read_text()
    assert "2 of 2 devices measured" in text
    for host, median in (("kitchen", "11.00 ms"), ("attic", "22.00 ms")):
        assert f"{host}: all of it in devices/{host}/report.html" in text
        assert median in (out / "devices" / host / "report.md").read_text()
    assert not (two_devices / "report.md").exists()
    assert not (two_devices / "devices").exists()


def test_a_report_after_a_deployment_that_was_cut_off_has_no_device_of_before(two_devices, place, caplog, capsys):
    place("attic/null-fp32.json", 22.0, slim=OTHERS)
    assert run(["report", str(two_devices)]) == 0
    assert "11.00 ms" in (two_devices / "report.md").read_text()
    assert [message for message in caplog.messages if "left out of the report on devices: attic (" in message]
    place("kitchen/null-fp32.json", 11.0, slim=OTHERS)
    assert run(["report", str(two_devices)]) == 2
    assert f"{two_devices}: no device measured the models that are there now" in complaint(capsys)


def test_devices_stay_for_as_long_as_the_models_do(place, folder, narrator, monkeypatch, caplog):  # noqa: F811
    def measured(host, _bundle, results, _options, _progress, stop):
        path = place(f"{host}/null-fp32.json", {"kitchen": 11.0}.get(host, 22.0))
        assert path.parent == results
        return DeviceOutcome(host, "ok", results=str(path))

    def hosts() -> list[str]:
        return [outcome["host"] for outcome in json.loads((folder / "devices.json").read_text())["outcomes"]]

    monkeypatch.setattr("leanear.devices.hosts.deliver", measured)
    deployment(folder, Devices(("kitchen",)), narrator)
    deployment(folder, Devices(("attic",)), narrator)
    assert hosts() == ["attic", "kitchen"]
    text = (folder / "report.md").read_text()
    assert "11.00 ms" in text
    assert "22.00 ms" in text
    deployment(folder, Devices(("attic",)), narrator)
    deployment(folder, Devices(), narrator)
    assert hosts() == ["attic", "kitchen"]
    assert not caplog.messages
    document = json.loads((folder / "results" / "kitchen" / "null-fp32.json").read_text())
    document["artifacts"]["dense"]["manifest_sha256"] = OTHERS
    (folder / "results" / "kitchen" / "null-fp32.json").write_text(json.dumps(document))
    deployment(folder, Devices(("attic",)), narrator)
    assert hosts() == ["attic"]
    (said,) = caplog.messages
    assert "left out of the report on devices: kitchen (" in said
    assert f"its dense model is not the one in {folder}" in said
    assert "11.00 ms" not in (folder / "report.md").read_text()


def test_of_two_imports_at_once_the_second_is_refused(two_devices, tmp_path, capsys):
    brought = shutil.copy(two_devices / "results" / "attic" / "null-fp32.json", tmp_path)
    arguments = ["import", str(brought), "--into", str(two_devices), "--name", "cellar"]
    before = (two_devices / "devices.json").read_bytes()
    with open(two_devices / ".leanear-lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(arguments) == 2
    assert f"{two_devices}: another leanear is at work in this folder" in complaint(capsys)
    assert (two_devices / "devices.json").read_bytes() == before
    assert not (two_devices / "results" / "cellar").exists()
    assert run(arguments) == 0
    outcomes = json.loads((two_devices / "devices.json").read_text())["outcomes"]
    assert [outcome["host"] for outcome in outcomes] == ["kitchen", "attic", "cellar"]
