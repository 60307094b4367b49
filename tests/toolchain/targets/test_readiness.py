"""What `leanear targets` says that this machine can do, with and without libraries and GPUs."""

from __future__ import annotations

import json
import sys

import pytest

from leanear.cli.commands import run
from leanear.runtimes.backends import openvino_cpu as intel_cpu
from leanear.targets.doctor import readiness
from leanear.targets.target import read_target, target_names
from tests.runtimes.fake_tensorrt import FakeCuda, FakeTensorRT


@pytest.fixture
def cuda(monkeypatch) -> FakeCuda:
    fake = FakeCuda(devices=0)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", FakeTensorRT(fake, "tensorrt_rtx", "1.7.1", capable=True))
    return fake


def test_engines_are_built_ahead_of_time_without_a_gpu(cuda):
    found = readiness(read_target("rtx"))
    assert (found.built, found.measured) == ("here", "not here")
    assert found.text.startswith("builds here, not measured here: no NVIDIA GPU that CUDA can use")


def test_with_a_gpu_they_are_measured_too(cuda):
    cuda.devices = 1
    found = readiness(read_target("rtx"))
    assert (found.built, found.measured, found.reason) == ("here", "here", "")
    assert found.text == "builds and is measured here"


def test_without_the_library_there_is_the_command_that_installs_it(cuda, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    found = readiness(read_target("rtx"))
    assert (found.built, found.measured) == ("not here", "not here")
    assert found.text.startswith("not here: tensorrt_rtx: the package tensorrt_rtx does not import")
    assert found.text.endswith("pip install tensorrt-rtx cuda-python")


def test_without_cuda_python_engines_are_built_all_the_same(cuda, monkeypatch):
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, name, None)
    found = readiness(read_target("rtx"))
    assert (found.built, found.measured) == ("here", "not here")
    assert found.text.endswith("pip install cuda-python")


def test_what_is_elsewhere_is_measured_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    jetson, pi = readiness(read_target("jetson")), readiness(read_target("raspberrypi"))
    assert (jetson.built, jetson.measured, jetson.reason) == ("on the device", "on the device", "")
    assert jetson.text == "bundle made here, engines built and measured on the device: --host [user@]name"
    assert (pi.built, pi.measured, pi.reason) == ("here", "on the device", "")
    assert pi.text == "bundle made here, measured on the device: --host [user@]name"


def test_a_runtime_that_is_missing_and_a_precision_that_the_machine_lacks(monkeypatch, tmp_path):
    assert readiness(read_target("cpu")).text == "ready"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install" in readiness(read_target("cpu")).reason
    path = tmp_path / "own.toml"
    path.write_text(
        'description = "mine"\nruntime = "openvino"\ngraph_form = "openvino"\nprecision = "bf16"\nthreads = 1\n'
    )
    monkeypatch.setattr(intel_cpu, "precisions", lambda: ("fp32",))
    found = readiness(read_target(str(path)))
    assert found.text == "not here: openvino does not compute in bf16 on this machine; it offers fp32"


def test_the_command_says_it_of_all_or_of_some(cuda, capsys, tmp_path):
    assert run(["targets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(target_names())
    (rtx,) = (line.split("; ") for line in lines if line.startswith("rtx "))
    assert rtx[1:] == ["fp16", readiness(read_target("rtx")).text]
    assert run(["targets", "--json", "rtx", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["target"] for one in found] == ["rtx", "cpu"]
    keys = {"target", "description", "runtime", "graph_form", "precision", "built", "measured", "reason", "text"}
    assert set(found[0]) == keys
    assert run(["targets", str(tmp_path / "none.toml")]) == 2
    assert "none.toml: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("library", [True, False])
def test_to_the_doctor_nothing_is_missing_where_engines_are_built_without_a_gpu(cuda, monkeypatch, capsys, library):
    if not library:
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    status = run(["doctor"])
    (found,) = (line.split() for line in capsys.readouterr().out.splitlines() if " target rtx " in line)
    assert (found[0], status) == ("ok" if library else "missing", 0), "no other target needs it"


def test_the_doctor_fails_where_every_target_lacks_something(monkeypatch, capsys):
    monkeypatch.setattr("leanear.targets.doctor.NEEDED_FREE_BYTES", 2**62)
    assert run(["doctor"]) == 1
    assert "missing disk" in capsys.readouterr().out
