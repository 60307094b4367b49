"""No code in a checkpoint's folder, or in the folder that the user stands in, is ever run.

Modules named after all that leanear imports lie in both; each leaves its name behind when it is executed. Every command
is run there, from the source tree and as pip installs it, and every verb of a device's zip file.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from leanear.benchmarks.device.runner import _parser
from leanear.cli.commands import cli
from leanear.devices.bundle import RUNNER_FILE
from leanear.runtimes.process import isolation
from leanear.runtimes.process.isolation import code_command, isolated_environment, leave_current_folder, module_command
from tests.conftest import TINY_LABELS, write_tiny, write_tones
from tests.toolchain.deliveries import FEW as FEW_MEASUREMENTS
from tests.toolchain.deliveries import changed_benchmarks
from tests.toolchain.speech_folder import sound, write_speech_folder
from tests.whisper_models import write_whisper

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("toolchain", "calibration", "export", "runtimes", "benchmarks")
NOT_NAMED_IN_IMPORTS = ("sitecustomize", "usercustomize", "readline", "tensorrt", "tensorrt_rtx", "modeling_slim_ast")
HOSTILE = "with open({mark!r}, 'a') as stream:\n    stream.write(__name__ + ' of ' + __file__ + chr(10))\n"
# As pip writes it, but that it runs several commands, most of whose time goes to imports, measures everything once, on
# devices too, and draws the page of one report alone, that of most pictures.
LAUNCHER = """
import json, os, sys
from leanear.entry import main
from pathlib import Path
from leanear.benchmarks import summary
from leanear.benchmarks.measure import parts
from leanear.benchmarks.measure.measure import benchmark
from leanear.benchmarks.report import report
from leanear.devices.bundle import DEVICE_SOURCES
os.sched_getaffinity = lambda _process: {0}  # threads of tests that run at once would spin
benchmark.__kwdefaults__.update(repeats=1, samples=12)
summary.RESAMPLES, parts.MEMORY_SHARE_S = 200, 0.1
DEVICE_SOURCES["leanear.benchmarks"] = Path(sys.argv[2])
render_html = report.render_html
print("leanear is in", sys.modules["leanear"].__path__[0], file=sys.stderr)
status, launched = [], sys.argv
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["leanear", *arguments]
    report.render_html = render_html if arguments == ["report", "../deployment"] else lambda page: ""
    try:
        main()
    except SystemExit as stop:
        print("leanear", *arguments, "ended with", stop.code or 0, file=sys.stderr, flush=True)
        status.append([" ".join(arguments), stop.code or 0, Path(launched[3]).exists()])
Path(launched[4]).write_text(json.dumps(status))
"""
FEW = "--calibration-clips 4"
DEPLOYED = "--calibration-clips 8 --budget 1 --sparsity 0.6 --precision-drop 100"
CLASSIFIER = (
    "export . --out ../artifact",
    "bench ../artifact --threads 1 --budget 1 --data ../data --out ../results.json",
    "report ../results.json --out ../report",
    "compare ../results.json ../results.json",
    "eval . --data ../data --threads 1",
    "eval ../artifact --data ../data --threads 1",
    "classify ../sound.wav --model .",
    "classify ../sound.wav --model ../artifact",
    f"prune . --data ../data --out ../slim {FEW}",
    f"explore . --data ../data --out ../explored {FEW}",
    f"compare-methods . --data ../data --out ../compared --claim-only --seeds 1 --sparsity 0.5 {FEW}",
    "targets",
)
WHISPER = (
    "export ../whisper --data ../speech --out ../speech-artifact",
    "bench ../speech-artifact --data ../speech --threads 1 --budget 1 --out ../speech.json",
    "transcribe ../sound.wav --model ../whisper --temperatures 0 --threads 1",
    "transcribe ../sound.wav --model ../speech-artifact --temperatures 0 --threads 1",
    "eval ../whisper --data ../speech --threads 1",
    "eval ../speech-artifact --data ../speech --threads 1",
    "prune ../whisper --data ../speech --out ../slim-whisper --calibration-clips 2",
)
DEVICE = f"--target raspberrypi --host device --device-python {sys.executable} --device-folder ../device"
DEPLOYMENTS = (
    f"deploy . --target cpu --out ../deployment --data ../data {DEPLOYED}",
    f"deploy . {DEVICE} --out ../delivery --data ../data {DEPLOYED}",
    f"deploy ../whisper --target raspberrypi --out ../speech-delivery --data ../speech {DEPLOYED}",
    "import ../delivery/results/device --into ../delivery",
    "report ../deployment",
    "doctor",
)
OPENVINO = (
    "export . --form openvino --out ../openvino",
    "eval ../openvino --data ../data --threads 1 --runtime openvino",
)
VERBS = {
    "delivery": (
        ("doctor",), ("verify",), ("compile",), ("classify", "../sound.wav"), ("eval",),
        ("bench", "--out", "../a.json"), ("compare", "../a.json", "../a.json"),
    ),
    "speech-delivery": (("transcribe", "../sound.wav"), ("eval",)),
}  # fmt: skip
SSH = (
    '#!/bin/sh\nfor last; do :; done\ncd "{folder}" || exit 1\ncase "$*" in *" -G "*) exit;; esac\nexec sh -c "$last"\n'
)


@functools.cache
def imported_names() -> set[str]:
    """The top-level name of every module that a file of ours imports, and of every one of Python's."""
    names = {*sys.stdlib_module_names, *NOT_NAMED_IN_IMPORTS}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names.add(node.module.partition(".")[0])
    return names


def plant(folder: Path, mark: Path) -> None:
    """Hostile modules in `folder`; our packages as folders, but for one that is a file."""
    text = HOSTILE.format(mark=str(mark))
    for name in imported_names():
        (folder / f"{name}.py").write_text(text)
    for package in ("leanear", "toolchain", "calibration", "export", "benchmarks", "custom_generate"):
        (folder / package).mkdir(exist_ok=True)
        for name in ("__init__", "__main__", "entry", "parity", "latency", "generate"):
            (folder / package / f"{name}.py").write_text(text)


@pytest.fixture(scope="module", params=["editable", pytest.param("installed", marks=pytest.mark.slow)])
def home(request, tmp_path_factory):
    """Where the packages are: the source tree, or a folder into which pip has installed them."""
    if request.param == "editable":
        return ROOT
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    for name in PACKAGES:  # a build leaves files beside what it builds
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(folder), str(source)], check=True, timeout=600)
    return folder


@pytest.fixture(scope="module")
def field(home, tmp_path_factory):
    """Checkpoints `ast` and `whisper` with hostile modules in them, data, a launcher and a stand-in for ssh."""
    folder = tmp_path_factory.mktemp("field")

    write_tiny(folder / "ast")
    config = json.loads((folder / "ast" / "config.json").read_text())
    config["auto_map"] = {"AutoModelForAudioClassification": "modeling_slim_ast.SlimASTForAudioClassification"}
    (folder / "ast" / "config.json").write_text(json.dumps(config))
    write_whisper(folder / "whisper")
    for name in ("ast", "whisper"):
        plant(folder / name, folder / "mark")
    write_tones(folder / "data", 4, **{label: 200 + 90 * number for number, label in enumerate(TINY_LABELS)})
    write_speech_folder(folder / "speech", ["a", "an and", "the", "on"])
    soundfile.write(folder / "sound.wav", sound(1), 16_000)
    changed_benchmarks(folder / "short-benchmarks", FEW_MEASUREMENTS)
    (folder / "bin").mkdir()
    (folder / "bin" / "leanear").write_text(LAUNCHER)
    (folder / "bin" / "ssh").write_text(SSH.format(folder=folder / "ast"))
    (folder / "bin" / "ssh").chmod(0o755)
    return folder


def ended(command: list[str], field: Path, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command that was run in the hostile folder, which has to end well and to have executed none of its modules."""
    done = subprocess.run(
        command,
        cwd=field / "ast",
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(home), "HOME": str(field), **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert not (field / "mark").exists(), (field / "mark").read_text()
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def launched(field, home):
    """By command, its status; all are run in one process, as each would take seconds to import torch again."""
    deployments = [line.replace("../device", f"{field}/device") for line in DEPLOYMENTS]
    classifier = [line for line in CLASSIFIER if home == ROOT or not line.startswith("compare-methods")]
    commands = [*classifier, *OPENVINO, *WHISPER, *deployments]
    given = [json.dumps([command.split() for command in commands]), str(field / "short-benchmarks")]
    launcher, told = str(field / "bin" / "leanear"), field / "told.json"
    ssh = str(field / "bin" / "ssh")
    done = ended([sys.executable, launcher, *given, str(field / "mark"), str(told)], field, home, LEANEAR_SSH=ssh)
    assert f"leanear is in {home}/{'toolchain' if home == ROOT else 'leanear'}" in done.stderr
    statuses = json.loads(told.read_text())
    assert [command for command, _, _ in statuses] == [" ".join(command.split()) for command in commands]
    return {command: (status, was_marked, done.stderr) for command, status, was_marked in statuses}


def ended_well(launched, commands) -> None:
    """Every one of the commands ended well, and until then no hostile module was executed."""
    for command in commands:
        status, was_marked, said = launched[" ".join(command.split())]
        assert (status, was_marked) == (0, False), (command, said)


def test_hostile_modules_are_executed_where_python_is_started_as_usual(tmp_path):
    """The check sees what it is to see."""
    plant(tmp_path, tmp_path / "mark")
    subprocess.run([sys.executable, "-c", "import onnxruntime"], cwd=tmp_path, check=True)
    assert "onnxruntime" in (tmp_path / "mark").read_text()


def test_every_command_and_every_verb_is_run_here():
    commands = {line.split()[0] for line in (*CLASSIFIER, *WHISPER, *DEPLOYMENTS, *OPENVINO)}
    assert commands == set(cli.commands)
    (subparsers,) = (action for action in _parser()._actions if isinstance(action.choices, dict))
    assert {verb for verbs in VERBS.values() for verb, *_ in verbs} == set(subparsers.choices)


def test_commands_on_a_classifier(home, launched):
    ended_well(launched, (line for line in CLASSIFIER if home == ROOT or not line.startswith("compare-methods")))


def test_commands_on_a_whisper(launched):
    ended_well(launched, WHISPER)


def test_deployments_here_and_on_a_device(field, home, launched):
    ended_well(launched, (line.replace("../device", f"{field}/device") for line in DEPLOYMENTS))
    for delivery, verbs in VERBS.items():
        for verb in verbs:
            ended([sys.executable, str(field / delivery / "bundle" / RUNNER_FILE), *verb], field, home)


def test_openvino(launched):
    ended_well(launched, OPENVINO)


@pytest.mark.slow
def test_the_script_that_pip_writes(field, home):
    if home == ROOT:
        pytest.skip("of an editable install it is the launcher above")
    done = ended([str(home / "bin" / "leanear"), "classify", "../sound.wav", "--model", "."], field, home)
    assert any(label in done.stdout for label in TINY_LABELS)


def test_the_devices_own_command(tmp_path):
    """`python -m` itself looks in the current folder; what it starts there does not."""
    for name in ("onnxruntime", "openvino", "numpy", "click"):
        (tmp_path / f"{name}.py").write_text(HOSTILE.format(mark=str(tmp_path / "mark")))
    command = [sys.executable, "-m", "leanear.benchmarks", "doctor"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert (done.returncode, (tmp_path / "mark").exists()) == (0, False), done.stderr


def test_relative_entries_of_pythonpath_are_not_handed_on(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", "lib", "/own/libraries", ""]))
    environment = isolated_environment()
    assert (environment["PYTHONPATH"], environment["PYTHONSAFEPATH"]) == ("/own/libraries", "1")
    monkeypatch.setenv("PYTHONPATH", "")
    assert "PYTHONPATH" not in isolated_environment()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong one')")
    for command in (code_command("import numpy"), module_command("leanear.benchmarks.device.doctor")):
        subprocess.run(command, check=True, env={"PYTHONPATH": ""}, timeout=600)


def test_the_current_folder_leaves_the_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ":/own")
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "/own", "/usr/lib/python"])
    leave_current_folder()
    assert sys.path == ["/own", "/usr/lib/python"]


@pytest.mark.parametrize("spelt_out", [True, False])
def test_a_folder_that_is_asked_for_stays(monkeypatch, tmp_path, spelt_out):
    folder = str(tmp_path)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", folder if spelt_out else "")
    monkeypatch.setattr(isolation, "IMPORT_ROOT", None if spelt_out else folder)
    monkeypatch.setattr(sys, "path", [folder])
    leave_current_folder()
    assert sys.path == [folder]
