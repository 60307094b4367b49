"""The bundle: reproducible, verified, and its runner works with this Python and numpy from inside one file."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import soundfile

from leanear.benchmarks.device.bundled import BUNDLE_FILE, RUNNER_FILE, BundleRun, is_bundle_path, read_bundle
from leanear.benchmarks.results import read_results
from leanear.devices.bundle import MAIN, device_folder_name, write_bundle, write_runner
from leanear.devices.bundle_readme import README_FILE, by_hand
from leanear.runtimes.clips import Clips, write_clips
from leanear.runtimes.errors import BadInput
from tests.runtimes.tiny_artifact import LABELS, WINDOW_SAMPLES, loudness_weights, weights, write_tiny_artifact
from tests.toolchain.deliveries import write_compiled_runner

RUN = BundleRun("null", "fp32", "fp32", "all", 1.0, 0.0)


def loud_clip(label):
    waveform = np.full(WINDOW_SAMPLES, 0.01, np.float32)
    waveform[np.array_split(np.arange(WINDOW_SAMPLES), len(LABELS))[label]] = 0.5
    return waveform


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    clips = Clips(
        waveforms=tuple(loud_clip(index % len(LABELS)) for index in range(8)),
        label_ids=np.arange(8) % len(LABELS),
        names=tuple(f"{index}; $(touch nothing) 'x'\n.wav" for index in range(8)),
        labels=LABELS,
        sample_rate_hz=16_000,
    )
    write_clips(folder / "clips.npz", clips)
    return {
        "slim": write_tiny_artifact(folder / "slim", loudness_weights(), source="slim"),
        "dense": write_tiny_artifact(folder / "dense", weights(5), source="dense"),
        "clips": folder / "clips.npz",
    }


@pytest.fixture
def bundle(parts, tmp_path):
    return write_bundle(tmp_path / "bundle", name="tiny", target="raspberrypi", run=RUN, **parts)


@pytest.fixture
def compiled(monkeypatch):
    """The bundle's runner need not be compiled in every process of a test of what it says."""
    monkeypatch.setattr("leanear.devices.bundle.write_runner", write_compiled_runner)


def runner(bundle, *arguments, python=sys.executable, cwd=None, **environment):
    command = [python, str(bundle.folder / RUNNER_FILE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd or bundle.folder, timeout=600)


def test_the_same_inputs_give_the_same_bytes(parts, tmp_path):
    documents = []
    for name in ("one", "two"):
        bundle = write_bundle(tmp_path / name, name="tiny", target="raspberrypi", run=RUN, **parts)
        documents.append((bundle.folder / BUNDLE_FILE).read_bytes())
    assert documents[0] == documents[1]


def test_the_runner_holds_device_code_alone(tmp_path):
    write_runner(tmp_path / RUNNER_FILE)
    names = zipfile.ZipFile(tmp_path / RUNNER_FILE).namelist()
    assert names == sorted(names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"__main__.py", "leanear"}
    assert {name.split("/")[1] for name in names if name.startswith("leanear/")} == {
        "__init__.py", "benchmarks", "runtimes"
    }  # fmt: skip
    assert not [name for name in names if "peers" in name]


def test_every_file_is_named_with_its_contents(bundle):
    files = {path.relative_to(bundle.folder).as_posix() for path in bundle.folder.rglob("*") if path.is_file()}
    assert set(bundle.document.files) == files - {BUNDLE_FILE}
    assert bundle.artifacts["dense"].name == "dense"
    assert bundle.threads >= 1


def damage_flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("slim/model.onnx", damage_flip, "sha256 differs"),
        ("clips.npz", lambda path: path.write_bytes(path.read_bytes()[:-1]), "incomplete"),
        ("dense/manifest.json", lambda path: path.unlink(), "missing"),
        (RUNNER_FILE, lambda path: path.open("ab").write(b"x"), "incomplete"),
        (BUNDLE_FILE, lambda path: path.write_text(path.read_text()[:100]), "not JSON"),
    ],
)
def test_damage_is_found_here_and_on_the_device(compiled, parts, tmp_path, name, change, word):
    bundle = write_bundle(tmp_path / "bundle", name="tiny", target="raspberrypi", run=RUN, **parts)
    path = bundle.folder / name
    data = path.read_bytes()  # a file of its own: the bundle's are links
    path.unlink()
    path.write_bytes(data)
    change(path)
    with pytest.raises(BadInput, match=word):
        read_bundle(bundle.folder)
    for verb in ("verify", "bench", "eval"):
        ended = runner(bundle, verb)
        assert ended.returncode == 2, ended.stderr
        assert word in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda document: document["files"].update({"../x": document["files"][RUNNER_FILE]}), "not the path of a file"),
        (lambda document: document["files"].pop(RUNNER_FILE), RUNNER_FILE),
        (lambda document: document.update(more=1), "unknown key 'more'"),
        (lambda document: document.pop("clips"), "missing key 'clips'"),
        (lambda document: document["run"].update(threads=0), "threads"),
        (lambda document: document["run"].update(sustained_s=-1), "sustained_s"),
        (lambda document: document["artifacts"].update(slim="elsewhere"), "no manifest.json"),
        (lambda document: document["files"][RUNNER_FILE].update(sha256="x"), "no sha256"),
    ],
)
def test_bundle_json_is_read_strictly(bundle, edit, word):
    path = bundle.folder / BUNDLE_FILE
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    with pytest.raises(BadInput, match=word):
        read_bundle(bundle.folder)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", "a//b", "./a", "a\0b", "a\\b", "bundle.json"])
def test_paths_that_leave_the_bundle_are_none(name):
    assert not is_bundle_path(name)


def test_what_is_not_a_bundle_is_left_alone(parts, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_text("x")
    with pytest.raises(BadInput, match="left alone"):
        write_bundle(tmp_path / "mine", name="tiny", target="t", run=RUN, **parts)
    assert (tmp_path / "mine" / "photo.jpg").read_text() == "x"


def test_a_device_folder_is_plain_and_its_own():
    names = {device_folder_name(name) for name in ("a b", "a;b", "$(a)b", "../../a", "a\nb", "", "ä", "x" * 500)}
    assert len(names) == 8
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and len(name) < 60 for name in names)


def test_doctor_finds_all_and_says_what_is_missing(bundle):
    ended = runner(bundle, "doctor", "--json")
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert document["ok"]
    assert document["device"]["libraries"]["leanear"] == bundle.document.leanear
    findings = {finding["name"]: finding for finding in document["findings"]}
    assert findings["numpy"]["text"] == np.__version__
    ended = runner(bundle, "doctor", "--runtime", "tensorrt")
    assert ended.returncode == 4
    assert "tensorrt: not installed" in ended.stderr
    assert "not a Jetson" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert "MISSING  tensorrt" in ended.stdout


def test_compile_bench_eval_and_classify_from_inside_the_file(bundle, tmp_path):
    assert "nothing to do ahead of time" in runner(bundle, "compile").stdout
    ended = runner(bundle, "bench", cwd=tmp_path, python=sys.executable)
    assert ended.returncode == 0, ended.stderr
    results = read_results(next((tmp_path / "results").rglob("*.json")))
    assert results.roles == ("dense", "slim")
    assert not results.failures()
    ended = runner(bundle, "eval", "--json")
    assert json.loads(ended.stdout)["correct"] == 8
    names = ["it's; $(touch here).wav", "two\nlines.wav"]
    for label, name in enumerate(names):
        soundfile.write(tmp_path / name, loud_clip(label), 16_000, format="WAV")
    ended = runner(bundle, "classify", "--json", "--", *(tmp_path / name for name in names))
    assert [answer["labels"][0]["label"] for answer in json.loads(ended.stdout)] == list(LABELS[:2]), ended.stderr
    assert not (bundle.folder / "here").exists()


def test_a_python_without_numpy_gets_one_line(compiled, bundle, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    for verb in ("bench", "compile", "classify"):
        ended = runner(bundle, verb, *(["x.wav"] if verb == "classify" else []), python=python)
        assert ended.returncode == 4
        assert len(ended.stderr.splitlines()) == 1
        assert f"{python} -m pip install 'numpy" in ended.stderr
    ended = runner(bundle, "doctor", python=python)
    assert ended.returncode == 4
    assert "numpy: not installed" in ended.stderr


def test_an_old_python_gets_one_line(tmp_path):
    program = MAIN.replace("sys.version_info < (3, 9)", "sys.version_info < (9, 9)")
    (tmp_path / "__main__.py").write_text(program)
    ended = subprocess.run([sys.executable, str(tmp_path)], capture_output=True, text=True)
    assert ended.returncode == 4
    assert "leanear.pyz needs Python 3.9 or later" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_the_commands_to_type_are_the_runners_own(compiled, bundle):
    assert [command.split()[:2] for command in by_hand()] == [["python3", RUNNER_FILE]] * 3
    for command in by_hand():
        assert runner(bundle, command.split()[2], "--help").returncode == 0


def test_the_readme_says_what_to_install_to_type_and_to_bring_home(bundle):
    text = (bundle.folder / README_FILE).read_text()
    assert all(command in text for command in by_hand())
    assert "numpy>=" in text
    assert "8 evaluation clips" in text
    assert "leanear import results/" in text
    assert bundle.document.leanear in text


def test_the_runner_speaks_of_itself_by_its_own_name(compiled, bundle, parts, tmp_path):
    assert runner(bundle, "--version").stdout.strip() == bundle.document.leanear
    for verb in ("eval", "compare", "transcribe", "bench"):
        said = runner(bundle, verb, "--help").stdout
        assert f"usage: python3 leanear.pyz {verb}" in said
        assert "benchmarks" not in said
    assert "default: the bundle's" in said
    alone = tmp_path / RUNNER_FILE
    write_runner(alone)
    ended = subprocess.run([sys.executable, str(alone), "bench"], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "python3 leanear.pyz bench: error" in ended.stderr


def test_a_task_is_for_whisper_alone(compiled, bundle):
    for verb in ("bench", "eval"):
        ended = runner(bundle, verb, "--task", "translate")
        assert ended.returncode == 2
        assert "--task: for Whisper" in ended.stderr
