"""What docs/examples holds is run: the steps of the workflow, and the classifier without leanear."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import yaml

from leanear.runtimes.artifact import read_artifact, read_golden
from leanear.runtimes.errors import LeanearError
from leanear.runtimes.process.interrupts import INTERRUPTED, TERMINATED
from leanear.runtimes.process.notes import CLOSED_PIPE
from leanear.runtimes.sessions import Runtime, SessionOptions
from tests.runtimes.tiny_artifact import LABELS, expected_logits, weights, write_tiny_artifact

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
# As pip writes it, but that both artifacts are measured with 12 samples, not 664, and in there
LAUNCHER = """
import os, sys
from leanear.entry import main
os.sched_getaffinity = lambda _process: {0}  # threads of tests that run at once would spin
if sys.argv[1] == "deploy":
    sys.argv[sys.argv.index("--budget") + 1] = "1"
    from pytest import MonkeyPatch
    from tests.measured import measure_here
    measure_here(MonkeyPatch())
    from leanear.benchmarks.measure.measure import benchmark
    from leanear.benchmarks.measure import parts
    benchmark.__kwdefaults__.update(repeats=1, samples=12)
    parts.MEMORY_SHARE_S = 0.1
main()
"""


@pytest.fixture(scope="module")
def workflow():
    return yaml.safe_load((EXAMPLES / "model-gate.yml").read_text())


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A user's repository with a model, its clips, and `leanear` on the path."""

    from tests.conftest import write_tiny, write_tones

    folder = tmp_path_factory.mktemp("repository")
    write_tiny(folder / "model")
    write_tones(folder / "clips", 6, 0.5)
    (folder / "bin").mkdir()
    (folder / "bin" / "leanear").write_text(f"#!{sys.executable}\n{LAUNCHER}")
    (folder / "bin" / "leanear").chmod(0o755)
    return folder


def step(workflow, name, folder, **more):
    """The exit status of one step's command, as a runner runs it."""
    (command,) = [step["run"] for step in workflow["jobs"]["gate"]["steps"] if step.get("name") == name]
    environment = {
        **os.environ,
        **workflow["env"],
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        **more,
    }
    ended = subprocess.run(["bash", "-e", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    return ended.returncode, ended.stderr


def test_the_gates_commands_run_and_hold_back_a_larger_model(workflow, repository):
    deploy, compare, show = "prune, export, prove and measure", "compare with the accepted model", "show what changed"
    status, said = step(workflow, deploy, repository, MAX_DROP="100")
    assert status == 0, said
    results = repository / "candidate" / "results" / "onnxruntime-fp32.json"
    shutil.copy(results, repository / "accepted.json")
    assert step(workflow, compare, repository)[0] == 0
    assert step(workflow, show, repository)[0] == 0
    assert "graph files" in (repository / "summary.md").read_text()
    document = json.loads(results.read_text())
    document["artifacts"]["slim"]["graphs"]["classifier"]["bytes"] //= 2
    (repository / "accepted.json").write_text(json.dumps(document))
    status, said = step(workflow, compare, repository)
    assert status == 8
    assert "graph files" in said


def test_every_step_of_the_workflow_is_known(workflow):
    named = {step["name"] for step in workflow["jobs"]["gate"]["steps"] if "run" in step}
    assert named == {
        "install", "prune, export, prove and measure", "compare with the accepted model", "show what changed"
    }  # fmt: skip
    assert "pull_request" in workflow[True]  # YAML 1.1 reads the key "on" so


def test_a_classifier_without_leanear(tmp_path):
    """Run from a folder in which nothing of leanear is found."""
    matrix = weights(2)
    artifact = write_tiny_artifact(tmp_path / "artifact", matrix)
    pcm = np.rint(32767 * read_golden(read_artifact(artifact)).waveforms[0]).astype("<i2")
    with wave.open(str(tmp_path / "clip.wav"), "wb") as clip:
        clip.setnchannels(1)
        clip.setsampwidth(2)
        clip.setframerate(16_000)
        clip.writeframes(pcm.tobytes())
    shutil.copy(EXAMPLES / "run_ast.py", tmp_path)
    command = [sys.executable, "-P", str(tmp_path / "run_ast.py"), str(artifact), str(tmp_path / "clip.wav")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    logits = expected_logits(pcm / 32768, matrix)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    printed = {line.split()[2]: float(line.split()[0]) for line in ended.stdout.splitlines()}
    assert list(printed) == [LABELS[index] for index in np.argsort(-shares)]
    for label, share in zip(LABELS, shares):
        assert printed[label] == pytest.approx(100 * share, abs=0.006)
    assert not re.search(
        r"^(from|import) (toolchain|runtimes|benchmarks|export)", (EXAMPLES / "run_ast.py").read_text()
    )


def test_the_runtime_of_the_page_on_extending_answers_as_the_graph_does(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
    (tmp_path / "example_runtime.py").write_text(code)
    spec = importlib.util.spec_from_file_location("example_runtime", tmp_path / "example_runtime.py")
    runtime = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runtime)
    assert {name for name in [*Runtime.__annotations__, *vars(Runtime)] if name[0] != "_"} <= set(vars(runtime))
    assert runtime.available() is None
    matrix, pcm = weights(2), np.arange(-800, 800, dtype=np.int16)
    artifact = read_artifact(write_tiny_artifact(tmp_path / "artifact", matrix))
    session = runtime.load(artifact, SessionOptions(threads=1))
    np.testing.assert_allclose(session.run(pcm), expected_logits(pcm / 32768, matrix), rtol=1e-4, atol=1e-6)
    assert session.facts()["threads"] == 1
    with pytest.raises(LeanearError, match="precision"):
        runtime.load(artifact, SessionOptions(threads=1, precision="int8"))


def test_the_exit_statuses_that_are_told_are_the_codes():
    text = (ROOT / "docs" / "running.md").read_text()
    table = text.partition("| status | meaning |")[2].partition("\n\n")[0]
    told = {int(number) for row in table.splitlines()[2:] for number in re.findall(r"\d+", row.split("|")[1])}
    errors = {error.exit_status for error in (LeanearError, *LeanearError.__subclasses__())}
    assert told == errors | {0, INTERRUPTED, TERMINATED, CLOSED_PIPE}
