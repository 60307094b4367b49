"""What can go wrong with a delivery under way, over a real OpenSSH server: nothing lost, one line, and it goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from leanear.benchmarks.device.bundled import BUNDLE_FILE, read_bundle
from leanear.benchmarks.results import read_results
from leanear.devices.bundle import DEVICE_SOURCES, write_bundle
from leanear.devices.remote import deliver
from leanear.devices.ssh import receiver_program
from tests.toolchain.deliveries import (
    CLIP_BYTES,
    PAUSED,
    QUICK,
    Interruption,
    at,
    changed_benchmarks,
    deployment,
    expect,
    make_bundle,
    programs,
    small_disk,
    stop_at,
    with_receiver,
)
from tests.toolchain.ssh_server import HOST, remote_python

pytestmark = pytest.mark.usefixtures("short_benchmark")


def test_no_room_is_seen_before_anything_is_copied(large, options, tmp_path):
    with small_disk(tmp_path / "disk", 24) as disk:
        outcome = deliver(HOST, large, tmp_path, dataclasses.replace(options, folder=str(disk / "leanear")))
        assert not list(disk.rglob("*.part"))
    expect(outcome, "disk full", "to be copied", "are free")


def test_a_disk_that_fills_up_under_way(large, options, tmp_path):
    """The disk is full although there seemed to be room; what arrived whole is kept, and with room it goes on."""
    with small_disk(tmp_path / "disk", 8) as disk:
        there = dataclasses.replace(options, folder=str(disk / "leanear"))
        outcome = with_receiver(
            lambda text: text.replace("    return facts.f_bavail * facts.f_frsize", "    return 1 << 60"),
            lambda: deliver(HOST, large, tmp_path, there),
        )
        expect(outcome, "disk full", "No space left on device")
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

        expect(deliver(HOST, small, tmp_path, there, at("process 1 of", fill)), "disk full", "No space left on device")
        assert read_bundle(deployment(there) / "bundle")
        (disk / "other").unlink()
        assert deliver(HOST, small, tmp_path / "results", there).status == "ok"


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
    assert deliver(HOST, new, tmp_path / "results", options).status == "ok"
    assert read_bundle(deployment(options) / "bundle").document == read_bundle(new).document


def test_a_workstation_that_dies_leaves_nothing_running(small, options, tmp_path, server):
    """SIGKILL on this side while the benchmark runs there; the next run goes on."""
    receiver = tmp_path / "receiver.py"
    receiver.write_text(receiver_program())
    arguments = [HOST, small, tmp_path / "results", options.python, options.folder, receiver]
    command = [sys.executable, "-c", PAUSED, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as workstation:
        next(line for line in workstation.stdout if "process 1 of" in line)
        workstation.kill()
    server.wait_until_idle()
    assert not programs(options.folder)
    outcome = deliver(HOST, small, tmp_path / "results", options)
    assert outcome.status == "ok", outcome
    assert outcome.notes == ("the attempt before this one was cut short before its end; this one went on",)


def test_all_that_is_written_on_the_device_lies_in_its_folder(small, options, tmp_path, server):
    """Also what a program that was killed had written: it is gone after the next run."""
    assert deliver(HOST, small, tmp_path / "first", options).status == "ok"
    place = deployment(options)
    assert sorted(path.name for path in place.iterdir()) == ["bundle", "incoming", "results"]
    shutil.rmtree(place / "results")
    expect(
        deliver(HOST, small, tmp_path, options, at("process 1 of", lambda: server.cut(everything=True))),
        "connection lost",
    )
    server.wait_until_idle()
    assert [path for path in (place / "tmp").iterdir() if path.name.startswith("leanear-")]
    assert deliver(HOST, small, tmp_path / "second", options).status == "ok"
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
    cut = at("process 1 of", lambda: server.cut(everything=True))
    outcome = deliver(HOST, small, tmp_path / "results", options, cut)
    expect(outcome, "connection lost")
    assert not (tmp_path / "results").exists()
    server.wait_until_idle()
    attempt = deployment(options) / "attempt.json"
    attempt.write_text(json.dumps({"boot": "another start"}))
    outcome = deliver(HOST, small, tmp_path / "results", options)
    assert outcome.status == "ok", outcome
    assert outcome.notes == ("the attempt before this one was cut short by a restart of the device; this one went on",)
    assert not attempt.exists()


def test_a_lost_connection_leaves_nothing_running(small, options, tmp_path, server):
    outcome = deliver(HOST, small, tmp_path, options, at("process 1 of", server.cut))
    expect(outcome, "connection lost")
    server.wait_until_idle()
    deadline = time.monotonic() + 60
    while programs(options.folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not programs(options.folder)


def test_ctrl_c_leaves_nothing_running_and_frees_the_device(small, options, tmp_path, server):
    with pytest.raises(Interruption):
        deliver(HOST, small, tmp_path, options, stop_at("process 1 of"))
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


def test_a_pause_of_both_machines_is_no_silence(small, options, tmp_path, server):
    """Both are stopped for longer than the device may be silent, and this one goes on first."""
    text = receiver_program()
    assert "\nALIVE_EVERY_S = 4.0\n" in text
    receiver = tmp_path / "receiver.py"
    receiver.write_text(text.replace("\nALIVE_EVERY_S = 4.0\n", "\nALIVE_EVERY_S = 0.5\n"))
    arguments = [HOST, small, tmp_path / "results", options.python, options.folder, receiver]
    command = [sys.executable, "-c", PAUSED, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as workstation:
        for line in workstation.stdout:
            if "process 1 of" in line:
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
        lambda: deliver(HOST, small, tmp_path, impatient),
    )
    expect(outcome, "stalled", "has done nothing for 3 s")


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

    with_receiver(lambda text: text.replace(told, untrue), work)


def test_a_receiver_that_hears_nothing_ends(small, options, tmp_path, server):
    """The workstation vanishes without a word; nothing is left that holds the device's lock."""

    def work():
        def vanish():
            time.sleep(3.0)
            raise Interruption

        with pytest.raises(Interruption):
            deliver(HOST, small, tmp_path, options, at("doctor", vanish))

    with_receiver(lambda text: text.replace("HOST_SILENCE_LIMIT_S = 120.0", "HOST_SILENCE_LIMIT_S = 0.5"), work)
    assert not [name for _, name in server.sessions() if "python" in name]


def test_two_deploys_at_once_are_told_apart(small, options, tmp_path):
    first_is_there, second_is_done = threading.Event(), threading.Event()
    outcomes = []

    def wait():
        first_is_there.set()
        assert second_is_done.wait(600)
        raise Interruption

    def first():
        with pytest.raises(Interruption):
            deliver(HOST, small, tmp_path / "first", options, at("doctor", wait))
        outcomes.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert first_is_there.wait(600)
    busy = with_receiver(
        lambda text: text.replace("LOCK_PATIENCE_S = 15.0", "LOCK_PATIENCE_S = 0.5"),
        lambda: deliver(HOST, small, tmp_path / "second", options),
    )
    expect(busy, "busy", f"from {getpass.getuser()}@", "since")
    second_is_done.set()
    thread.join(600)
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
    assert outcome.status == "ok", outcome
    (note,) = outcome.notes
    assert "4000 days 0 h 0 min behind this machine's" in note
    year = time.gmtime(time.time() - 4000 * 86_400).tm_year
    (clock,) = [finding for finding in outcome.doctor["findings"] if finding["name"] == "clock"]
    assert clock["ok"] is None
    assert f"it says {year}" in clock["text"]
    assert "set-ntp" in clock["text"]
    results = read_results(Path(outcome.results))
    assert results.document["started_utc"].startswith(str(year))
    samples = [sample for repeat in results.samples_ms("slim") for sample in repeat]
    assert samples
    assert min(samples) > 0


def test_results_of_a_measurement_that_failed_come_home(parts, options, tmp_path, monkeypatch):
    """The process that measures memory dies: its reason and the other parts are here."""
    dying = {"    answer_request(measure_memory)": "    import os\n\n    os.abort()"}
    source = changed_benchmarks(tmp_path / "source", {"measure/memory.py": dying})
    monkeypatch.setitem(DEVICE_SOURCES, "leanear.benchmarks", source)
    bundle = make_bundle(parts, tmp_path / "dying").folder
    outcome = deliver(HOST, bundle, tmp_path / "results", options)
    assert outcome.status == "measurement failed", outcome
    assert "memory" in outcome.reason
    assert "SIGABRT" in outcome.reason
    assert read_results(Path(outcome.results)).failures().keys() == {"memory"}
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
