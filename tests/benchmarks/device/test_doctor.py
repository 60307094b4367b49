"""The doctor: what it looks at, and the command that it names for each thing that is missing."""

from __future__ import annotations

import json
import sys

import pytest

from leanear.benchmarks.device import doctor
from leanear.runtimes.errors import BadInput
from tests.benchmarks.device_trees import JETSON, tree


@pytest.fixture
def system_python(monkeypatch):
    """Pretends that this is the system's own Python, which lets pip write to it."""
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(doctor, "_externally_managed", lambda: False)


def test_numpy_comes_from_the_systems_packages_for_the_systems_python(tmp_path, system_python):
    (tmp_path / "usr/bin").mkdir(parents=True)
    assert doctor.remedy("numpy", tmp_path) == "/usr/bin/python3 -m pip install --user 'numpy>=1.22'"
    (tmp_path / "usr/bin/apt-get").touch()
    assert doctor.remedy("numpy", tmp_path) == "sudo apt-get install python3-numpy"


def test_a_runtime_comes_by_pip_or_in_a_venv_where_the_system_forbids_that(tmp_path, system_python, monkeypatch):
    monkeypatch.setattr(doctor, "_externally_managed", lambda: False)
    assert doctor.remedy("onnxruntime", tmp_path) == "/usr/bin/python3 -m pip install --user 'onnxruntime>=1.17'"
    monkeypatch.setattr(doctor, "_externally_managed", lambda: True)
    said = doctor.remedy("onnxruntime", tmp_path)
    assert said.startswith("/usr/bin/python3 -m venv --system-site-packages ~/leanear-venv && ")
    assert "~/leanear-venv/bin/pip install 'onnxruntime>=1.17'" in said
    monkeypatch.setattr(sys, "prefix", "/home/me/venv")
    monkeypatch.setattr(sys, "executable", "/home/me/venv/bin/python")
    assert doctor.remedy("onnxruntime", tmp_path) == "/home/me/venv/bin/python -m pip install 'onnxruntime>=1.17'"


def test_tensorrt_comes_with_jetpack_or_not_at_all(tmp_path, system_python):
    assert doctor.remedy("tensorrt", tmp_path) == ""
    assert "not a Jetson" in doctor._about_tensorrt(tmp_path)
    assert "the target raspberrypi measures the CPU" in doctor._about_tensorrt(tmp_path)
    tree(tmp_path, JETSON)
    assert doctor.remedy("tensorrt", tmp_path) == "sudo apt-get install python3-libnvinfer"
    assert doctor._about_tensorrt(tmp_path) == ""


def test_tensorrt_comes_by_pip_where_another_nvidia_gpu_is(tmp_path, system_python, monkeypatch):
    tree(tmp_path, {"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14\n"})
    monkeypatch.setattr(doctor, "_externally_managed", lambda: False)
    assert doctor.remedy("tensorrt", tmp_path) == "/usr/bin/python3 -m pip install --user 'tensorrt>=10'"
    assert doctor._about_tensorrt(tmp_path).endswith("(there is no /etc/nv_tegra_release)")


def test_a_venv_on_a_jetson_is_told_about_the_systems_tensorrt(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/home/me/venv/bin/python")
    assert "--system-site-packages" in doctor._about_tensorrt(tree(tmp_path, JETSON))


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGILL)", "ended by SIGILL: this build is not for this CPU"),
        ("raise ImportError('libgomp.so.1: cannot open')", "does not import: ImportError: libgomp.so.1"),
        ("import numpy_of_another_kind", "does not import"),
    ],
)
def test_a_library_that_does_not_import_is_tried_and_told(tmp_path, monkeypatch, source, word):
    (tmp_path / "broken_runtime.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "package", lambda name: name)
    finding = doctor._library("broken_runtime", tmp_path)
    assert finding.ok is False
    assert word in finding.text


def test_a_runtime_whose_library_imports_may_still_say_no(tmp_path, monkeypatch):
    assert doctor._runtime("onnxruntime", tmp_path).ok
    monkeypatch.setattr(
        "leanear.runtimes.backends.onnx_cpu.available", lambda: "no processor that it likes; pip install another"
    )
    finding = doctor._runtime("onnxruntime", tmp_path)
    assert finding.ok is False
    assert finding.text == "no processor that it likes; pip install another"


def test_a_library_that_hangs_is_told(tmp_path, monkeypatch):
    (tmp_path / "broken_runtime.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "IMPORT_LIMIT_S", 0.5)
    finding = doctor._library("broken_runtime", tmp_path)
    assert finding.ok is False
    assert "over 0.5 s" in finding.text


def test_a_clock_before_this_program_existed_is_told(monkeypatch):
    monkeypatch.setattr(doctor.time, "gmtime", lambda: __import__("time").struct_time((1970, 1, 1, 0, 0, 5, 3, 1, 0)))
    finding = doctor._clock()
    assert finding.ok is None
    assert "1970-01-01" in finding.text
    assert "set-ntp true" in finding.text


def test_little_room_and_other_work_inform_and_do_not_stop(tmp_path, monkeypatch):
    state = {"memory_available_bytes": 10**8, "cpu_busy_share": 0.7}
    assert doctor._memory(state).ok is None
    assert "may not fit" in doctor._memory(state).text
    assert doctor._load(state).ok is None
    assert "70%" in doctor._load(state).text
    unknown = {name: {"status": "not measured", "reason": "no /proc"} for name in state}
    assert doctor._memory(unknown).text == "not measured (no /proc)"
    assert doctor._load(unknown).text == "not measured (no /proc)"


@pytest.mark.parametrize(
    "edit",
    [
        lambda document: "{",
        lambda document: "[]",
        lambda document: json.dumps({**document, "schema": "other"}),
        lambda document: json.dumps({**document, "device": []}),
        lambda document: json.dumps({**document, "findings": {}}),
        lambda document: json.dumps({**document, "findings": [{"name": "numpy"}]}),
        lambda document: json.dumps({**document, "findings": [{"name": "x", "ok": 1, "text": "", "remedy": ""}]}),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, edit):
    document = {"schema": doctor.DOCTOR_SCHEMA, "device": {}, "findings": []}
    assert doctor.read_report(json.dumps(document)) == document
    with pytest.raises(BadInput):
        doctor.read_report(edit(document))


def test_the_report_goes_into_json_and_into_lines(tmp_path):
    document = json.loads(json.dumps(doctor.report("null", tmp_path)))
    assert document["ok"]
    assert doctor.lacks(document) == []
    shown = "\n".join(doctor.lines(document))
    assert "ok       numpy" in shown
    document["findings"].append({"name": "x", "ok": False, "text": "gone", "remedy": "apt-get install x"})
    assert doctor.lacks(document) == ["x: gone; mend it with: apt-get install x"]
    assert "mend it with: apt-get install x" in "\n".join(doctor.lines(document))
