"""Delivery over a real OpenSSH server on loopback, and every way in which it can fail."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import benchmarks.receiver
from benchmarks.bundled import BUNDLE_FILE, read_bundle
from benchmarks.results import read_results
from runtimes.clips import Clips, write_clips
from runtimes.errors import BadInput
from tests.runtimes.tiny_artifact import LABELS, WINDOW_SAMPLES, loudness_weights, write_tiny_artifact
from tests.toolchain.ssh_server import HOST, free_port, make_key, remote_python, require_sshd, start_server
from toolchain.bundle import RunSettings, write_bundle
from toolchain.hosts import deliver_to_all, host_folder_name, read_hosts
from toolchain.remote import RemoteOptions, RemoteOutcome, deliver
from toolchain.ssh import check_host, quoted_python
from toolchain.statuses import STATUSES

NASTY = "it's; $(touch PWNED) `touch PWNED` \"&|<>*\n-x \\ ../.. ü"
QUICK = RunSettings("null", "fp32", 1, 0.5)
CLIP_BYTES = 24_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    require_sshd()
    server = start_server(tmp_path_factory.mktemp("sshd"))
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def own_configuration(server, monkeypatch):
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


def make_bundle(parts, out, *, clips="small", name="tiny", run=QUICK):
    return write_bundle(
        out, name=name, target="raspberrypi", slim=parts["slim"], dense=None, clips=parts[clips], run=run
    )


@pytest.fixture
def options(tmp_path):
    return RemoteOptions(python=sys.executable, folder=str(tmp_path / "device"), batch=True, connect_limit_s=20.0)


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
    assert isinstance(outcome, RemoteOutcome)
    assert outcome.status == status, outcome
    assert outcome.status in STATUSES
    assert "\n" not in outcome.reason
    for word in words:
        assert word in outcome.reason, outcome.reason
    assert outcome.results_path is None
    print(f"{outcome.status}: {outcome.reason}")


def test_from_keys_to_results_and_again(small, options, tmp_path):
    shown = []
    outcome = deliver(HOST, small, tmp_path / "results", options, lambda text, share=None: shown.append((text, share)))
    assert outcome.ok, outcome
    assert outcome.reason == ""
    assert outcome.notes == ()
    results = read_results(outcome.results_path)
    assert not results.failures()
    assert outcome.results_path == tmp_path / "results" / "null-fp32.json"
    assert outcome.doctor["device"]["libraries"]["numpy"] == np.__version__
    assert read_bundle(deployment(options) / "bundle").document == read_bundle(small).document
    shares = [share for _, share in shown]
    assert shares[0] == 0.0
    assert shares[-1] == 1.0
    assert shares[5:] == sorted(shares[5:])
    assert [text for text, _ in shown if text.startswith("copying")]
    assert any("process 1" in text for text, _ in shown)

    shown.clear()
    before = outcome.results_path.read_bytes()
    again = deliver(HOST, small, tmp_path / "results", options, lambda text, share=None: shown.append((text, share)))
    assert again.ok
    assert not [text for text, _ in shown if text.startswith("copying")]
    assert not [text for text, _ in shown if "process" in text]
    assert again.results_path.read_bytes() == before
    assert not list(tmp_path.rglob("PWNED"))
    assert not Path("PWNED").exists()


def test_only_what_changed_is_copied_and_what_is_old_goes(parts, small, large, options, tmp_path):
    small = make_bundle(parts, tmp_path / "small").folder
    with pytest.raises(Interruption):
        deliver(HOST, small, tmp_path / "results", options, stop_at("doctor"))
    sent = []
    with pytest.raises(Interruption):
        deliver(
            HOST,
            large,
            tmp_path / "results",
            options,
            lambda text, share=None: (sent.append(text), stop_at("doctor")(text)),
        )
    (total,) = {text.split()[3] for text in sent if text.startswith("copying")}
    assert float(total) == pytest.approx(CLIP_BYTES / 1e6, abs=0.1)
    assert read_bundle(deployment(options) / "bundle").document == read_bundle(large).document
    assert not list((deployment(options) / "incoming").iterdir())
    assert sorted(path.name for path in deployment(options).iterdir()) == ["attempt.json", "bundle", "incoming", "tmp"]


# Before there is a connection


def test_connection_refused(small, options, tmp_path, server, monkeypatch):
    monkeypatch.setenv("LEANEAR_SSH", server.configure(name="closed", port=free_port()))
    expect(deliver(HOST, small, tmp_path, options), "connection refused", "sshd running", "Connection refused")


def test_name_unknown(small, options, tmp_path, server, monkeypatch):
    monkeypatch.setenv("LEANEAR_SSH", server.configure("HostName no-such-device.invalid", name="unknown"))
    expect(deliver(HOST, small, tmp_path, options), "name unknown", "no-such-device.invalid")


def test_a_port_that_says_nothing(small, options, tmp_path, server, monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setenv("LEANEAR_SSH", server.configure(name="silent", port=listener.getsockname()[1]))
        started = time.monotonic()
        outcome = deliver(HOST, small, tmp_path, dataclasses.replace(options, connect_limit_s=1.0))
        assert time.monotonic() - started < 10
    expect(outcome, "no answer", "within 1 s")


def test_another_host_key(small, options, tmp_path, server):
    server.know(make_key(tmp_path / "other"))
    expect(deliver(HOST, small, tmp_path, options), "host key changed", "not the one that was known")


def test_a_host_key_is_checked_whatever_the_configuration_says(small, options, tmp_path, server, monkeypatch):
    server.know(make_key(tmp_path / "other"))
    monkeypatch.setenv("LEANEAR_SSH", server.configure("StrictHostKeyChecking no", name="careless"))
    expect(deliver(HOST, small, tmp_path, options), "host key changed")


def test_a_host_key_that_was_never_seen(small, options, tmp_path, server):
    (server.folder / "known_hosts").write_text("")
    expect(deliver(HOST, small, tmp_path, options), "host key unknown", "by hand: ssh HOST")
    assert (server.folder / "known_hosts").read_text() == ""


def test_a_key_that_is_not_let_in(small, options, tmp_path, server, monkeypatch):
    key = make_key(tmp_path / "stranger")
    monkeypatch.setenv("LEANEAR_SSH", server.configure(f"IdentityFile {key}", name="stranger"))
    (server.folder / "stranger").write_text(
        (server.folder / "stranger").read_text().replace(str(server.folder / "key"), str(key))
    )
    expect(deliver(HOST, small, tmp_path, options), "authentication failed", "Permission denied (publickey)")


def test_a_password_that_cannot_be_asked_for(small, options, tmp_path, monkeypatch):
    (tmp_path / "sshd").mkdir()
    server = start_server(tmp_path / "sshd", "PasswordAuthentication yes", "AuthorizedKeysFile none")
    try:
        monkeypatch.setenv("LEANEAR_SSH", server.command)
        outcome = deliver(HOST, small, tmp_path, options)
    finally:
        server.stop()
    expect(outcome, "asks for a password", "ssh-copy-id")


def test_a_configuration_that_ssh_does_not_read(small, options, tmp_path, server, monkeypatch):
    monkeypatch.setenv("LEANEAR_SSH", server.configure("NoSuchOption yes", name="broken"))
    expect(deliver(HOST, small, tmp_path, options), "ssh configuration", "NoSuchOption".lower())
    monkeypatch.setenv("LEANEAR_SSH", "no-such-ssh-program")
    with pytest.raises(BadInput, match="no such program"):
        deliver(HOST, small, tmp_path, options)


def test_the_users_configuration_applies(small, options, tmp_path, server, monkeypatch):
    """A jump host, an environment that prints, a forwarding and a command of the user's own for this host."""
    server.configure(host="jump", name="jumping")
    jump = (server.folder / "jumping").read_text()
    server.configure(
        "ProxyJump jump", "RemoteCommand echo no", "LocalForward 1 localhost:1", "LogLevel QUIET", name="jumping"
    )
    (server.folder / "jumping").write_text((server.folder / "jumping").read_text() + jump)
    monkeypatch.setenv("LEANEAR_SSH", f"ssh -F {server.folder / 'jumping'}")
    python = remote_python(
        tmp_path, 'echo \'Welcome! {"say": "x"}\'; printf \'\\377\\0 no line end\'; echo; exec PYTHON "$@"'
    )
    with pytest.raises(Interruption):
        deliver(HOST, small, tmp_path, dataclasses.replace(options, python=python), stop_at("doctor"))
    assert (deployment(options) / "bundle" / BUNDLE_FILE).is_file()


# With a connection


def test_no_python(small, options, tmp_path):
    outcome = deliver(HOST, small, tmp_path, dataclasses.replace(options, python="no-such-python"))
    expect(outcome, "no python", "no-such-python", "not found")


def test_a_program_that_is_no_python(small, options, tmp_path):
    expect(deliver(HOST, small, tmp_path, dataclasses.replace(options, python="false")), "no python", "status 1")


def test_a_python_that_is_too_old(small, options, tmp_path):
    said = "leanear: this is Python 3.8; leanear needs Python 3.9 or later on the device"
    python = remote_python(tmp_path, f"echo '{said}' >&2; exit 1")
    expect(deliver(HOST, small, tmp_path, dataclasses.replace(options, python=python)), "python too old", "3.8")


def test_a_python_without_numpy(small, options, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    outcome = deliver(HOST, small, tmp_path, dataclasses.replace(options, python=python))
    expect(outcome, "no numpy", f"{python} -m pip install 'numpy>=1.22'")
    assert outcome.doctor["device"]["python"]
    assert read_bundle(deployment(options) / "bundle")


def test_a_runtime_that_is_absent(parts, options, tmp_path):
    run = RunSettings("tensorrt", "fp16", "all", 1.0)
    bundle = make_bundle(parts, tmp_path / "bundle", run=run).folder
    outcome = deliver(HOST, bundle, tmp_path, options)
    expect(outcome, "runtime absent", "tensorrt: not installed", "not a Jetson")


def test_no_room_is_seen_before_anything_is_copied(large, options, tmp_path):
    with small_disk(tmp_path / "disk", 24) as disk:
        outcome = deliver(HOST, large, tmp_path, dataclasses.replace(options, folder=str(disk / "leanear")))
        assert not list(disk.rglob("*.part"))
    expect(outcome, "disk full", "to be copied", "are free")


def test_a_disk_that_fills_up_under_way(large, options, tmp_path, monkeypatch):
    """The disk is full although there seemed to be room; what arrived whole is kept, and with room it goes on."""
    careless = tmp_path / "receiver.py"
    text = Path(benchmarks.receiver.__file__).read_text()
    assert "    return facts.f_bavail * facts.f_frsize" in text
    careless.write_text(text.replace("    return facts.f_bavail * facts.f_frsize", "    return 1 << 60"))
    with small_disk(tmp_path / "disk", 8) as disk:
        there = dataclasses.replace(options, folder=str(disk / "leanear"))
        with monkeypatch.context() as patch:
            patch.setattr(benchmarks.receiver, "__file__", str(careless))
            expect(deliver(HOST, large, tmp_path, there), "disk full", "No space left on device")
        assert not list(disk.rglob("*.part"))
        assert not list(disk.rglob(BUNDLE_FILE))
        assert list((deployment(there) / "incoming").iterdir())
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        with pytest.raises(Interruption):
            deliver(HOST, large, tmp_path, there, stop_at("doctor"))
        assert read_bundle(deployment(there) / "bundle")


def test_a_disk_that_fills_up_during_bench(small, options, tmp_path):
    """Something else takes the room while it is measured; with room again, the next run ends."""
    with small_disk(tmp_path / "disk", 40) as disk:
        there = dataclasses.replace(options, folder=str(disk / "leanear"))

        def fill():
            with contextlib.suppress(OSError), open(disk / "other", "wb", buffering=0) as stream:
                while True:
                    stream.write(bytes(1 << 12))

        expect(
            deliver(HOST, small, tmp_path, there, at("process 1 of 4", fill)), "disk full", "No space left on device"
        )
        assert read_bundle(deployment(there) / "bundle")
        (disk / "other").unlink()
        assert deliver(HOST, small, tmp_path / "results", there).ok


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


def test_a_folder_that_cannot_be_written(small, options, tmp_path):
    outcome = deliver(HOST, small, tmp_path, dataclasses.replace(options, folder="/sys/leanear"))
    expect(outcome, "not writable", "/sys/leanear")
    outcome = deliver(HOST, small, tmp_path, dataclasses.replace(options, folder="/dev/null/leanear"))
    expect(outcome, "failed", "/dev/null")


def test_a_connection_lost_during_copy_goes_on_there(large, options, tmp_path, server):
    outcome = deliver(HOST, large, tmp_path, options, at("copying 17", server.cut))
    expect(outcome, "connection lost")
    server.wait_until_idle()
    partial = [path for path in (deployment(options) / "incoming").iterdir() if path.suffix == ".part"]
    arrived = sum(path.stat().st_size for path in partial)
    assert 1_000_000 < arrived < CLIP_BYTES
    assert not (deployment(options) / "bundle").exists()
    sent = []
    with pytest.raises(Interruption):
        deliver(HOST, large, tmp_path, options, lambda text, share=None: (sent.append(text), stop_at("doctor")(text)))
    (total,) = {float(text.split()[3]) for text in sent if text.startswith("copying")}
    assert total == pytest.approx((CLIP_BYTES - arrived) / 1e6, abs=0.2)
    assert read_bundle(deployment(options) / "bundle")


def test_a_restart_during_copy_leaves_the_old_bundle(small, parts, options, tmp_path, server):
    """Everything there dies while a new bundle comes: the one that was there stays whole, and the next run ends."""
    with pytest.raises(Interruption):
        deliver(HOST, small, tmp_path, options, stop_at("doctor"))
    old = read_bundle(small).document
    new = make_bundle(parts, tmp_path / "new", clips="large").folder
    expect(
        deliver(HOST, new, tmp_path, options, at("copying 17", lambda: server.cut(everything=True))), "connection lost"
    )
    server.wait_until_idle()
    assert read_bundle(deployment(options) / "bundle").document == old
    assert deliver(HOST, new, tmp_path / "results", options).ok
    assert read_bundle(deployment(options) / "bundle").document == read_bundle(new).document


def test_a_workstation_that_dies_leaves_nothing_running(small, options, tmp_path, server):
    """SIGKILL on this side while the benchmark runs there; the next run goes on."""
    arguments = [HOST, small, tmp_path / "results", options.python, options.folder, benchmarks.receiver.__file__]
    command = [sys.executable, "-c", PAUSED, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as workstation:
        next(line for line in workstation.stdout if "process 1 of 4" in line)
        workstation.kill()
    server.wait_until_idle()
    assert not programs(options.folder)
    outcome = deliver(HOST, small, tmp_path / "results", options)
    assert outcome.ok, outcome
    assert outcome.notes == ("the attempt before this one was cut short before its end; this one went on",)


def test_all_that_is_written_on_the_device_lies_in_its_folder(small, options, tmp_path, server):
    """Also what a program that was killed had written: it is gone after the next run."""
    assert deliver(HOST, small, tmp_path / "first", options).ok
    place = deployment(options)
    assert sorted(path.name for path in place.iterdir()) == ["bundle", "incoming", "results"]
    shutil.rmtree(place / "results")
    expect(
        deliver(HOST, small, tmp_path, options, at("process 1 of 4", lambda: server.cut(everything=True))),
        "connection lost",
    )
    server.wait_until_idle()
    assert [path for path in (place / "tmp").iterdir() if path.name.startswith("leanear-")]
    assert deliver(HOST, small, tmp_path / "second", options).ok
    assert not (place / "tmp").exists()


def test_a_partial_file_that_is_damaged_is_sent_again(large, options, tmp_path, server):
    expect(deliver(HOST, large, tmp_path, options, at("copying 17", server.cut)), "connection lost")
    server.wait_until_idle()
    (partial,) = [path for path in (deployment(options) / "incoming").iterdir() if path.suffix == ".part"]
    with open(partial, "r+b") as stream:
        stream.write(b"\0\0\0\0 damaged")
    with pytest.raises(Interruption):
        deliver(HOST, large, tmp_path, options, stop_at("doctor"))
    assert read_bundle(deployment(options) / "bundle")


def test_a_restart_during_bench_goes_on_there(small, options, tmp_path, server):
    cut = at("process 1 of 4", lambda: server.cut(everything=True))
    outcome = deliver(HOST, small, tmp_path / "results", options, cut)
    expect(outcome, "connection lost")
    assert not (tmp_path / "results").exists()
    server.wait_until_idle()
    attempt = deployment(options) / "attempt.json"
    attempt.write_text(json.dumps({"boot": "another start"}))
    outcome = deliver(HOST, small, tmp_path / "results", options)
    assert outcome.ok, outcome
    assert outcome.notes == ("the attempt before this one was cut short by a restart of the device; this one went on",)
    assert not attempt.exists()


def test_a_lost_connection_leaves_nothing_running(small, options, tmp_path, server):
    outcome = deliver(HOST, small, tmp_path, options, at("process 1 of 4", server.cut))
    expect(outcome, "connection lost")
    server.wait_until_idle()
    deadline = time.monotonic() + 10
    while programs(options.folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not programs(options.folder)


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


def test_ctrl_c_leaves_nothing_running_and_frees_the_device(small, options, tmp_path, server):
    with pytest.raises(Interruption):
        deliver(HOST, small, tmp_path, options, stop_at("process 1 of 4"))
    server.wait_until_idle()
    with pytest.raises(Interruption):
        deliver(HOST, small, tmp_path, options, stop_at("doctor"))


def test_a_device_that_stops_talking(small, options, tmp_path, server):
    impatient = dataclasses.replace(options, silence_limit_s=1.0)
    try:
        outcome = deliver(HOST, small, tmp_path, impatient, at("compiling", server.freeze))
    finally:
        server.freeze(stop=False)
    expect(outcome, "stalled", "no sign of life from the device for 1 s")


PAUSED = """
import sys
from pathlib import Path
import benchmarks.receiver
import toolchain.channel
from toolchain.remote import RemoteOptions, deliver
host, bundle, results, python, folder, receiver = sys.argv[1:]
benchmarks.receiver.__file__ = receiver
toolchain.channel.LONGEST_STEP_S = 0.5
options = RemoteOptions(python=python, folder=folder, batch=True, silence_limit_s=2.0)
print(deliver(host, Path(bundle), Path(results), options, lambda text, share=None: print(text, flush=True)).status)
"""


def test_a_pause_of_both_machines_is_no_silence(small, options, tmp_path, server):
    """Both are stopped for longer than the device may be silent, and this one goes on first."""
    text = Path(benchmarks.receiver.__file__).read_text()
    assert "\nALIVE_EVERY_S = 4.0\n" in text
    receiver = tmp_path / "receiver.py"
    receiver.write_text(text.replace("\nALIVE_EVERY_S = 4.0\n", "\nALIVE_EVERY_S = 0.5\n"))
    arguments = [HOST, small, tmp_path / "results", options.python, options.folder, receiver]
    command = [sys.executable, "-c", PAUSED, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as workstation:
        for line in workstation.stdout:
            if "process 1 of 4" in line:
                break
        workstation.send_signal(signal.SIGSTOP)
        server.freeze()
        time.sleep(3.0)
        workstation.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        server.freeze(stop=False)
        said = workstation.stdout.read().split("\n")
    assert said[-2] == "ok", said[-5:]


def test_a_device_that_lives_but_does_nothing(small, options, tmp_path):
    python = remote_python(tmp_path, 'case "$3" in compile) exec sleep 60;; esac; exec PYTHON "$@"')
    impatient = dataclasses.replace(options, standstill_limit_s=3.0)
    outcome = with_receiver(
        lambda text: text.replace('sys.executable, "-u"', f'{python!r}, "-u"'),
        tmp_path,
        lambda: deliver(HOST, small, tmp_path, impatient),
    )
    expect(outcome, "stalled", "has done nothing for 3 s")


def with_receiver(change, folder, work):
    """What `work` returns while a changed receiver is sent in place of our own."""
    text = Path(benchmarks.receiver.__file__).read_text()
    assert change(text) != text
    (folder / "changed_receiver.py").write_text(change(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarks.receiver, "__file__", str(folder / "changed_receiver.py"))
        return work()


@pytest.mark.parametrize(
    ("told", "untrue", "word"),
    [
        ('"missing": missing', '"missing": 5', "which files it lacks"),
        ('"missing": missing', '"missing": {"x": 0}', "which files it lacks"),
        ('"missing": missing', '"missing": {sha256: -7 for sha256 in missing}', "-7 for"),
        ('"missing": missing', '"missing": {sha256: 1 << 60 for sha256 in missing}', "for"),
        ('"missing": missing', '"missing": {sha256: "0" for sha256 in missing}', "'0' for"),
        ('{"say": "ended", "status": status}', '{"say": "ended"}', "None for status"),
        ('{"say": "ended", "status": status}', '{"say": "ended", "status": 1e9}', "for status"),
        ('"say": "opened"', '"say": "\\33[2J"', "was wanted"),
        ('"time": time.time()', '"time": float("nan")', ""),
        ('"time": time.time()', '"time": [1]', ""),
    ],
)
def test_a_device_that_says_what_it_should_not(small, options, tmp_path, told, untrue, word):
    """Whatever it says ends in one line, or is passed over where nothing depends on it."""

    def work():
        if word:
            expect(deliver(HOST, small, tmp_path, options), "failed", word)
            return
        notes = []
        with contextlib.suppress(Interruption):
            nowhere = dataclasses.replace(options, folder="/dev/null/x")
            notes = deliver(HOST, small, tmp_path, nowhere).notes
        assert notes == ("the device did not tell the time",)

    with_receiver(lambda text: text.replace(told, untrue), tmp_path, work)


def test_a_receiver_that_hears_nothing_ends(small, options, tmp_path, server):
    """The workstation vanishes without a word; nothing is left that holds the device's lock."""

    def work():
        def vanish():
            time.sleep(3.0)
            raise Interruption

        with pytest.raises(Interruption):
            deliver(HOST, small, tmp_path, options, at("doctor", vanish))

    with_receiver(
        lambda text: text.replace("HOST_SILENCE_LIMIT_S = 120.0", "HOST_SILENCE_LIMIT_S = 0.5"), tmp_path, work
    )
    assert not [name for _, name in server.sessions() if "python" in name]


def test_two_deploys_at_once_are_told_apart(small, options, tmp_path):
    first_is_there, second_is_done = threading.Event(), threading.Event()
    outcomes = []

    def wait():
        first_is_there.set()
        assert second_is_done.wait(30)
        raise Interruption

    def first():
        with pytest.raises(Interruption):
            deliver(HOST, small, tmp_path / "first", options, at("doctor", wait))
        outcomes.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert first_is_there.wait(30)
    busy = with_receiver(
        lambda text: text.replace("LOCK_PATIENCE_S = 15.0", "LOCK_PATIENCE_S = 0.5"),
        tmp_path,
        lambda: deliver(HOST, small, tmp_path / "second", options),
    )
    expect(busy, "busy", f"from {getpass.getuser()}@", "since")
    second_is_done.set()
    thread.join(30)
    assert outcomes == ["first"]
    with pytest.raises(Interruption):
        deliver(HOST, small, tmp_path / "second", options, stop_at("doctor"))


def test_a_damaged_bundle_is_not_sent(small, options, tmp_path):
    path = small / "slim" / "model.onnx"
    data = bytearray(path.read_bytes())
    path.unlink()
    path.write_bytes(data[:-1])
    expect(deliver(HOST, small, tmp_path, options), "damaged", "model.onnx", "incomplete")
    data[100] ^= 1
    path.write_bytes(data)
    expect(deliver(HOST, small, tmp_path, options), "damaged", "model.onnx", "sha256 differs")
    assert not Path(options.folder).exists()


def test_what_was_damaged_on_the_device_is_mended(small, options, tmp_path):
    with pytest.raises(Interruption):
        deliver(HOST, small, tmp_path, options, stop_at("doctor"))
    bundle = deployment(options) / "bundle"
    path = bundle / "slim" / "model.onnx"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    (bundle / "leanear.pyz").unlink()
    clips = (bundle / "clips.npz").read_bytes()
    (bundle / "clips.npz").unlink()
    (bundle / "clips.npz").write_bytes(clips[: len(clips) // 2])
    (bundle / BUNDLE_FILE).write_text("{")
    with pytest.raises(Interruption):
        deliver(HOST, small, tmp_path, options, stop_at("doctor"))
    assert read_bundle(bundle).document == read_bundle(small).document


def test_a_byte_that_flips_between_copy_and_use(small, options, tmp_path):
    def flip():
        path = deployment(options) / "bundle" / "slim" / "model.onnx"
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.write_bytes(data)

    expect(deliver(HOST, small, tmp_path, options, at("compiling", flip)), "damaged", "model.onnx", "sha256 differs")


@pytest.mark.parametrize("moment", ["old", "new"])
def test_an_exchange_that_was_cut_short_is_mended(small, options, tmp_path, moment):
    with pytest.raises(Interruption):
        deliver(HOST, small, tmp_path, options, stop_at("doctor"))
    place = deployment(options)
    (place / "bundle").rename(place / f"bundle.{moment}")
    sent = []
    with pytest.raises(Interruption):
        deliver(HOST, small, tmp_path, options, lambda text, share=None: (sent.append(text), stop_at("doctor")(text)))
    assert not [text for text in sent if text.startswith("copying")]
    assert read_bundle(place / "bundle")
    assert not (place / f"bundle.{moment}").exists()


@pytest.mark.parametrize(
    ("ahead_s", "words"), [(90_000.0, "1 day 1 h 0 min behind"), (-4000.0, "1 h 6 min ahead of"), (60.0, "")]
)
def test_a_clock_that_is_wrong_is_told(small, options, tmp_path, ahead_s, words):
    nowhere = dataclasses.replace(options, folder="/dev/null/x")
    outcome = deliver(HOST, small, tmp_path, nowhere, clock=lambda: time.time() + ahead_s)
    assert [words in note for note in outcome.notes] == ([True] if words else [])


def test_a_device_that_lives_in_another_year(small, options, tmp_path):
    """Its clock is really wrong: the results come home all the same, and the reader is told."""
    if shutil.which("faketime") is None:
        pytest.skip("there is no faketime here; on Debian: apt-get install faketime")
    python = remote_python(tmp_path, 'exec faketime -f -4000d PYTHON "$@"')
    outcome = deliver(HOST, small, tmp_path / "results", dataclasses.replace(options, python=python))
    assert outcome.ok, outcome
    (note,) = outcome.notes
    assert "4000 days 0 h 0 min behind this machine's" in note
    year = time.gmtime(time.time() - 4000 * 86_400).tm_year
    (clock,) = [finding for finding in outcome.doctor["findings"] if finding["name"] == "clock"]
    assert clock["ok"] is None
    assert f"it says {year}" in clock["text"]
    assert "set-ntp" in clock["text"]
    results = read_results(outcome.results_path)
    assert results.document["started_utc"].startswith(str(year))
    samples = [sample for repeat in results.samples_ms("slim") for sample in repeat]
    assert samples
    assert min(samples) > 0


def test_results_of_a_measurement_that_failed_come_home(parts, options, tmp_path, monkeypatch):
    """The process that measures memory dies: its reason and the other parts are here."""
    for package in ("runtimes", "benchmarks"):
        source = Path(benchmarks.receiver.__file__).parents[1] / package
        shutil.copytree(source, tmp_path / "source" / package, ignore=shutil.ignore_patterns("peers", "__pycache__"))
    with open(tmp_path / "source" / "benchmarks" / "memory.py", "a") as stream:
        stream.write("\nmeasure_memory = None\n")
    text = (tmp_path / "source" / "benchmarks" / "memory.py").read_text()
    dying = "import os\n\n    os.abort()\n"
    (tmp_path / "source" / "benchmarks" / "memory.py").write_text(text.replace("answer_request(measure_memory)", dying))
    monkeypatch.setattr("toolchain.bundle.SOURCES", tmp_path / "source")
    bundle = make_bundle(parts, tmp_path / "dying").folder
    outcome = deliver(HOST, bundle, tmp_path / "results", options)
    assert outcome.status == "measurement failed", outcome
    assert "memory" in outcome.reason
    assert "SIGABRT" in outcome.reason
    assert read_results(outcome.results_path).failures().keys() == {"memory"}
    print(outcome.status, outcome.reason)


def test_a_bundle_that_cannot_be_measured(parts, options, tmp_path):
    """A clip that no runtime can answer."""
    with np.load(parts["small"]) as arrays:
        values = {name: arrays[name] for name in arrays.files}
    values["samples"] = values["samples"].copy()
    values["samples"][-1] = np.nan
    np.savez(tmp_path / "nan.npz", **values)
    bundle = write_bundle(
        tmp_path / "bundle",
        name="tiny",
        target="t",
        slim=parts["slim"],
        dense=None,
        clips=tmp_path / "nan.npz",
        run=QUICK,
    )
    outcome = deliver(HOST, bundle.folder, tmp_path / "results", options)
    expect(outcome, "measurement failed")
    assert outcome.reason
    assert outcome.log_tail


def test_names_run_no_command(parts, options, tmp_path, monkeypatch):
    """A model, a folder on the device, the path of its Python and labels that are full of shell."""
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "it's; $(touch PWNED) `touch PWNED` \"&"
    odd.mkdir()
    python = odd / "python 3"
    python.symlink_to(sys.executable)
    bundle = make_bundle(parts, tmp_path / NASTY.replace("/", "_"), name=NASTY).folder
    there = dataclasses.replace(options, python=str(python), folder=str(odd / "de\nvice; $(touch PWNED)"))
    with pytest.raises(Interruption):
        deliver(HOST, bundle, tmp_path, there, stop_at("doctor"))
    assert read_bundle(deployment(there) / "bundle").document["name"] == NASTY
    assert not list(tmp_path.rglob("PWNED"))
    assert not (Path.home() / "PWNED").exists()


@pytest.mark.parametrize(
    "host",
    ["-oProxyCommand=touch PWNED", "", "a b", "a;b", "$(x)", "a\nb", "user@-oX", "@x", "a`b`", "a'b", 'a"b', "x" * 600],
)
def test_hosts_that_are_none_are_refused(small, options, tmp_path, host):
    with pytest.raises(BadInput, match="HOST") as caught:
        deliver(host, small, tmp_path, options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "host", ["pi@raspberrypi.local", "10.0.0.2", "ssh://me@host:2222", "me@[fe80::1%eth0]", "jetson_1"]
)
def test_hosts_that_are_some_are_taken(host):
    assert check_host(host) == host


@pytest.mark.parametrize("python", ["", "-c", "a\nb", "a\0b"])
def test_pythons_that_are_none_are_refused(python):
    with pytest.raises(BadInput, match="Python"):
        quoted_python(python)


def test_a_python_in_the_home_folder_is_found_there():
    assert quoted_python("~/my venv/bin/python") == "\"$HOME\"/'my venv/bin/python'"
    assert quoted_python("python3") == "python3"


# Several devices


def test_several_devices_one_of_them_dead(small, options, tmp_path, server, monkeypatch):
    text = "".join(
        (server.folder / server.configure(host=host, port=port, name=f"config-{host}").rpartition("/")[2]).read_text()
        for host, port in (("one", None), ("two", None), ("dead", free_port()))
    )
    (server.folder / "three").write_text(text)
    monkeypatch.setenv("LEANEAR_SSH", f"ssh -F {server.folder / 'three'}")
    (tmp_path / "hosts").write_text("# my devices\none\n\ndead  # in the cellar\ntwo\n")
    hosts = read_hosts(tmp_path / "hosts")
    assert hosts == ("one", "dead", "two")
    done = []
    # One loopback machine stands for two: each is given a folder, and so a lock, of its own.
    folders = {"one": tmp_path / "1", "two": tmp_path / "2", "dead": tmp_path / "3"}
    monkeypatch.setattr(
        "toolchain.hosts.deliver",
        lambda host, bundle, results, options, progress, stop: deliver(
            host, bundle, results, dataclasses.replace(options, folder=str(folders[host])), progress
        ),
    )
    outcomes = deliver_to_all(
        hosts, small, tmp_path / "results", options, lambda host: lambda text, share=None: None, done.append
    )
    assert [outcome.host for outcome in outcomes] == list(hosts)
    assert [outcome.status for outcome in outcomes] == ["ok", "connection refused", "ok"]
    assert {outcome.host for outcome in done} == set(hosts)
    assert done[0].host == "dead"
    assert outcomes[0].results_path != outcomes[2].results_path
    assert read_results(outcomes[0].results_path).roles == ("slim",)


def test_an_interruption_ends_all_deliveries(small, options, tmp_path, server, monkeypatch):
    """What ctrl-C does while two devices are at work: neither is waited for, and nothing goes on there."""
    names = ("one", "two")
    for host in names:
        server.configure(host=host, name=host)
    (server.folder / "both").write_text("".join((server.folder / host).read_text() for host in names))
    monkeypatch.setenv("LEANEAR_SSH", f"ssh -F {server.folder / 'both'}")
    outcomes = []

    def elsewhere(host, bundle, results, options, progress, stop):
        there = dataclasses.replace(options, folder=str(tmp_path / f"device-{host}"))
        outcomes.append(deliver(host, bundle, results, there, progress, stop=stop))
        return outcomes[-1]

    monkeypatch.setattr("toolchain.hosts.deliver", elsewhere)
    at_work = threading.Event()

    def interrupted(futures):
        assert at_work.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr("toolchain.hosts.wait", interrupted)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        deliver_to_all(names, small, tmp_path / "results", options, lambda host: at("process 1 of 4", at_work.set))
    assert [outcome.status for outcome in outcomes] == ["interrupted"] * 2
    assert time.monotonic() - started < 60
    server.wait_until_idle()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no host in it"),
        ("# none\n", "no host in it"),
        ("a\nb\na\n", "line 3: HOST 'a' was named before"),
        ("good\n-oX\n", "line 2: HOST '-oX'"),
        ("two words\n", "line 1"),
        ("\n".join(f"h{index}" for index in range(65)), "64 at most"),
    ],
)
def test_a_hosts_file_is_read_strictly(tmp_path, text, word):
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(BadInput, match=word):
        read_hosts(tmp_path / "hosts")
    with pytest.raises(BadInput, match="cannot be read"):
        read_hosts(tmp_path / "no")


def test_folders_of_hosts_are_plain_and_their_own():
    hosts = ["pi", "me@pi", "you@pi", "ssh://pi:22", "[fe80::1%eth0]", "..", "PI"]
    names = [host_folder_name(host) for host in hosts]
    assert len(set(names)) == len(hosts)
    assert names[0] == "pi"
    assert all("/" not in name and not name.startswith(".") for name in names)
