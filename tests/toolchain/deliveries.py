"""Deliveries over a real OpenSSH server on loopback: fixtures, moments at which something is done, what is expected."""

from __future__ import annotations

import functools
import inspect
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from leanear.benchmarks.device.bundled import BundleRun
from leanear.benchmarks.results import DeviceOutcome
from leanear.devices.bundle import DEVICE_SOURCES, EARLIEST, write_bundle, write_runner
from leanear.devices.remote import RemoteOptions
from leanear.devices.ssh import STATUSES, receiver_program
from leanear.runtimes.clips import Clips, write_clips
from tests.measured import in_this_process
from tests.runtimes.tiny_artifact import LABELS, WINDOW_SAMPLES, loudness_weights, write_tiny_artifact
from tests.toolchain.ssh_server import require_sshd, start_server

NASTY = "it's; $(touch PWNED) `touch PWNED` \"&|<>*\n-x \\ ../.. ü"
QUICK = BundleRun("null", "fp32", "fp32", 1, 0.5, 0.0)
CLIP_BYTES = 24_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    require_sshd()
    server = start_server(tmp_path_factory.mktemp("sshd"))
    yield server
    server.stop()


@pytest.fixture
def own_configuration(server, monkeypatch):
    """The client finds the server, whom it knows."""
    monkeypatch.setenv("LEANEAR_SSH", server.command)
    server.know()


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    labels = (NASTY, *LABELS[1:])
    stretch = np.array_split(np.arange(WINDOW_SAMPLES), len(labels))
    waveforms = [np.full(WINDOW_SAMPLES, 0.01, np.float32) for _ in range(8)]
    for index, waveform in enumerate(waveforms):
        waveform[stretch[index % len(labels)]] = 0.5
    long = np.random.default_rng(0).uniform(-0.1, 0.1, CLIP_BYTES // 4).astype(np.float32)
    for name, clips in (("small", waveforms), ("large", [*waveforms[:7], long])):
        write_clips(
            folder / f"{name}.npz",
            Clips(
                waveforms=tuple(clips),
                label_ids=np.arange(8) % len(labels),
                names=tuple(f"{index} {NASTY}.wav" for index in range(8)),
                labels=labels,
                sample_rate_hz=16_000,
            ),
        )
    return {
        "slim": write_tiny_artifact(folder / "slim", loudness_weights(), source=NASTY, labels=labels),
        "dense": None,
        "small": folder / "small.npz",
        "large": folder / "large.npz",
    }


FEW = {
    "measure/measure.py": {"REPEATS = 4": "REPEATS = 1", "SAMPLES_WANTED = 664": "SAMPLES_WANTED = 12"},
    "measure/parts.py": {"MEMORY_SHARE_S = 5.0": "MEMORY_SHARE_S = 0.1"},
    "measure/latency.py": {"WARM_UP_SHARE = 0.25": "WARM_UP_SHARE = 0.02"},
    "measure/memory.py": {"LEAST_WINDOWS = 20": "LEAST_WINDOWS = 3"},
    "sensors/device.py": {"_S = 0.5": "_S = 0.02"},
}

IN_ONE_PROCESS = {
    "measure/processes.py": {
        "def run_fresh(\n": "import importlib, inspect, re\n\n\n"
        + inspect.getsource(in_this_process).replace("in_this_process", "run_fresh")
        + "\n\ndef run_elsewhere(\n"
    }
}


def make_bundle(parts, out, *, clips="small", name="tiny", run=QUICK):
    return write_bundle(
        out, name=name, target="raspberrypi", slim=parts["slim"], dense=None, clips=parts[clips], run=run
    )


def changed_benchmarks(out, changes):
    """What a bundle takes along of the benchmarks, in a folder `out`; changes: by file, what stands for what in it."""
    shutil.copytree(DEVICE_SOURCES["leanear.benchmarks"], out, ignore=shutil.ignore_patterns("peers", "__pycache__"))
    for name, words in changes.items():
        text = (out / name).read_text()
        for old, new in words.items():
            assert text.count(old) == 1
            text = text.replace(old, new)
        (out / name).write_text(text)
    return out


@functools.cache
def compiled(name, source):
    """What this Python compiles a file of a bundle's runner to, for whichever moment."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "source.py")
        path.write_bytes(source)
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        return Path(py_compile.compile(path, Path(folder, "code"), name, True, invalidation_mode=mode)).read_bytes()


def write_compiled_runner(path):
    """A runner as bundles have it, with each source compiled beside it, where Python looks first.

    A device compiles all of it in each of its processes, which takes about as long as what they do of a tiny model.
    """
    write_runner(path)
    with zipfile.ZipFile(path, "a") as archive:
        for name in filter(lambda name: name.endswith(".py"), archive.namelist()):
            archive.writestr(zipfile.ZipInfo(f"{name}c", EARLIEST), compiled(name, archive.read(name)))


def patched_benchmarks(folder, changes):
    """Devices measure with what `changed_benchmarks` makes in a folder, compiled; that they run sources is shown where
    bundles are tested.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEVICE_SOURCES, "leanear.benchmarks", changed_benchmarks(folder / "benchmarks", changes))
        patch.setattr("leanear.devices.bundle.write_runner", write_compiled_runner)
        yield


@pytest.fixture(scope="module")
def short_benchmark(tmp_path_factory):
    """Devices take 12 samples of each artifact, hardly warm up, and do not look long how busy others are."""
    yield from patched_benchmarks(tmp_path_factory.mktemp("source"), FEW)


@pytest.fixture(scope="module")
def shortest_benchmark(tmp_path_factory):
    """And all in one process of the device, where its processes are not what is looked at: most of their time is their
    start, ten times in each measurement.
    """
    yield from patched_benchmarks(tmp_path_factory.mktemp("source"), {**FEW, **IN_ONE_PROCESS})


@pytest.fixture
def options(own_configuration, tmp_path):
    return RemoteOptions(python=sys.executable, folder=str(tmp_path / "device"), batch=True, connect_limit_s=60.0)


@pytest.fixture
def small(parts, tmp_path):
    return make_bundle(parts, tmp_path / "bundle").folder


@pytest.fixture
def large(parts, tmp_path):
    return make_bundle(parts, tmp_path / "bundle", clips="large").folder


class Interruption(Exception):
    pass


def at(word, action, once=True):
    """A progress that acts when its text has `word` in it."""
    seen = []

    def progress(text, fraction=None):
        if word in text and not (once and seen):
            seen.append(text)
            action()

    return progress


def stop_at(word):
    """A progress that ends the delivery there, as ctrl-C would."""

    def interrupt():
        raise Interruption

    return at(word, interrupt)


def deployment(options):
    """The deployment's folder on the device."""
    (folder,) = [path for path in Path(options.folder).iterdir() if path.is_dir()]
    return folder


def expect(outcome, status, *words):
    assert isinstance(outcome, DeviceOutcome)
    assert outcome.status == status, outcome
    assert outcome.status in STATUSES
    assert "\n" not in outcome.reason
    for word in words:
        assert word in outcome.reason, outcome.reason
    assert outcome.results is None
    print(f"{outcome.status}: {outcome.reason}")


class small_disk:
    """A file system of a few megabytes; the test is skipped where it cannot be mounted."""

    def __init__(self, path, megabytes):
        self.path, self.megabytes = path, megabytes

    def __enter__(self):
        self.path.mkdir()
        if os.getuid() != 0 or shutil.which("mount") is None:
            pytest.skip("a small tmpfs takes root")
        command = ["mount", "-t", "tmpfs", "-o", f"size={self.megabytes}m", "tmpfs", str(self.path)]
        if subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("a tmpfs cannot be mounted here")
        return self.path

    def __exit__(self, *_):
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


def programs(folder):
    """Command lines of processes that name a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if folder in line and "pytest" not in line:
            found.append(line)
    return found


PAUSED = """
import sys
from pathlib import Path
import leanear.devices.channel
from leanear.devices.remote import RemoteOptions, deliver
host, bundle, results, python, folder, receiver = sys.argv[1:]
leanear.devices.channel.receiver_program = Path(receiver).read_text
leanear.devices.channel.LONGEST_STEP_S = 0.5
options = RemoteOptions(python=python, folder=folder, batch=True, silence_limit_s=2.0)
print(deliver(host, Path(bundle), Path(results), options, lambda text, share=None: print(text, flush=True)).status)
"""


def with_receiver(change, work):
    """What `work` returns while a changed receiver is sent in place of our own."""
    text = receiver_program()
    assert change(text) != text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leanear.devices.channel.receiver_program", lambda: change(text))
        return work()
