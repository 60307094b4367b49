"""By hand: a bundle carried elsewhere, its printed commands typed there, and its results imported at home."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys

import pytest

from leanear.benchmarks.device.bundled import BundleRun
from leanear.benchmarks.results import read_results
from leanear.cli.commands import run
from leanear.deploy.delivering import Devices, commands
from leanear.devices.bundle import write_bundle
from leanear.progress import Narrator
from leanear.runtimes.files import sha256_file
from tests.benchmarks.measure.test_engine_check import perturbed
from tests.runtimes.tiny_artifact import weights, write_tiny_artifact
from tests.toolchain.deploy.test_delivering import deployment, narrator, new_folder  # noqa: F401

pytestmark = pytest.mark.usefixtures("shortest_benchmark")


@pytest.fixture(scope="module")
def home(new_folder, tmp_path_factory):  # noqa: F811
    """A deployment with a bundle that nobody fetched yet."""
    folder = new_folder(tmp_path_factory.mktemp("home") / "deployment")
    deployment(folder, Devices(), Narrator("quiet"))
    return folder


@pytest.fixture(scope="module")
def typed(home, tmp_path_factory):
    """Its bundle, elsewhere, where its three commands were typed as they are printed."""
    elsewhere = tmp_path_factory.mktemp("typed")
    shutil.copytree(home / "bundle", elsewhere, dirs_exist_ok=True)
    for command in commands(home)[1:4]:
        words = shlex.split(command)
        ended = subprocess.run([sys.executable, *words[1:]], cwd=elsewhere, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
    return elsewhere


@pytest.fixture
def folder(home, tmp_path):
    """The deployment, for one test."""
    return shutil.copytree(home, tmp_path / "deployment", symlinks=True)


@pytest.fixture
def carried(typed, tmp_path):
    """The bundle with its results, as it comes back."""
    return shutil.copytree(typed, tmp_path / "stick" / "a bundle") / "results"


def test_what_comes_home_is_in_the_report(carried, folder, narrator, capsys, markdown_alone):  # noqa: F811
    assert run(["import", str(carried), "--into", str(folder), "--name", "kitchen $(x)"]) == 0
    assert "kitchen $(x): measured" in capsys.readouterr().out
    (path,) = folder.glob("results/kitchen*/*.json")
    assert not read_results(path).failures()
    text = (folder / "report.md").read_text()
    assert "brought home" in text
    assert "median" in text
    assert run(["import", str(carried), "--into", str(folder), "--name", "attic"]) == 0
    outcomes = json.loads((folder / "devices.json").read_text())["outcomes"]
    assert [outcome["host"] for outcome in outcomes] == ["kitchen $(x)", "attic"]
    assert "attic" in (folder / "report.md").read_text()
    assert run(["import", str(next(carried.rglob("*.json"))), "--into", str(folder), "--name", "attic"]) == 0
    assert len(json.loads((folder / "devices.json").read_text())["outcomes"]) == 2
    deployment(folder, Devices(), narrator)
    assert "attic" in (folder / "report.md").read_text()


def test_its_deployment_is_found_by_the_model(carried, folder, tmp_path, monkeypatch, capsys, markdown_alone):
    shutil.copytree(folder, tmp_path / "deployments" / "tiny" / "pi")
    monkeypatch.chdir(tmp_path)
    assert run(["import", str(carried.parent)]) == 0
    assert "into deployments/tiny/pi" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "deployments")
    assert run(["import", str(carried)]) == 2
    assert "name it with --into" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda path: path.unlink(), "no results there"),
        (lambda path: path.write_text("{}"), "schema"),
        (lambda path: shutil.copy(path, path.with_name("other.json")), "one at a time"),
    ],
)
def test_what_is_no_results_is_left_there(carried, folder, change, word, capsys):
    change(next(carried.rglob("*.json")))
    before = sha256_file(folder / "devices.json")
    assert run(["import", str(carried), "--into", str(folder)]) == 2
    (complaint,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("leanear: ")]
    assert word in complaint
    assert sha256_file(folder / "devices.json") == before
    assert not (folder / "results").exists()


def test_a_folder_that_is_no_deployment_for_devices_is_named(carried, tmp_path, capsys):
    assert run(["import", str(carried), "--into", str(tmp_path)]) == 2
    assert f"{tmp_path}: no deployment for devices that are measured elsewhere" in capsys.readouterr().err


def test_results_of_another_model_do_not_belong_there(carried, folder, tmp_path, capsys):
    (folder / "slim").unlink()
    shutil.copytree(write_tiny_artifact(tmp_path / "other", weights(3), source="other"), folder / "slim")
    assert run(["import", str(carried), "--into", str(folder)]) == 2
    assert "its slim model is not the one in" in capsys.readouterr().err


def test_a_wrong_engine_comes_home_as_a_status_and_no_number(folder, narrator, tmp_path, capsys, markdown_alone):  # noqa: F811
    (folder / "slim").unlink()
    shutil.copytree(write_tiny_artifact(tmp_path / "right", weights(3), source="slim"), folder / "slim")
    perturbed(folder / "slim", 0.5)
    bundle = write_bundle(
        tmp_path / "bundle",
        name="tiny",
        target="pi",
        slim=folder / "slim",
        dense=folder / "dense",
        clips=folder / "clips" / "evaluation.npz",
        run=BundleRun("onnxruntime", "fp32", "fp32", 1, 0.5, 0.0),
    )
    deployment(folder, Devices(), narrator)
    ended = subprocess.run(
        [sys.executable, "leanear.pyz", "bench"], cwd=bundle.folder, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 3
    assert "slim: the engine does not answer as the checkpoint does" in ended.stderr
    results = next((bundle.folder / "results").rglob("*.json"))
    assert run(["import", str(results), "--into", str(folder), "--name", "kitchen"]) == 7
    assert "kitchen: check failed: check: slim: the engine" in capsys.readouterr().err
    text = (folder / "report.md").read_text()
    assert "check failed" in text
    assert "of the logits' spread" in text
    assert " 0.00 ms" not in text
