"""A deployment for devices: bundle, deliveries side by side, and one report; from a hand-made deployment folder."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import sys

import pytest
from rich.console import Console

from leanear.benchmarks.device.bundled import BundleRun
from leanear.benchmarks.results import DeviceOutcome
from leanear.deploy.delivering import Devices, commands, deliver_deployment, require_all
from leanear.deploy.measuring import write_deployment_report
from leanear.devices.remote import RemoteOptions, deliver
from leanear.progress import Narrator
from leanear.runtimes.errors import BadInput, DeviceFailed
from tests.toolchain.ssh_server import free_port, start_server

QUICK = BundleRun("null", "fp32", "fp32", "all", 0.5, 0.0)
pytestmark = pytest.mark.usefixtures("shortest_benchmark")


@pytest.fixture(scope="module")
def new_folder(dense_folder, slim_folder, clips_path):
    """Makes a folder as a deployment leaves it before its bundle."""

    def make(folder):
        (folder / "clips").mkdir(parents=True)
        (folder / "dense").symlink_to(dense_folder)
        (folder / "slim").symlink_to(slim_folder)
        (folder / "clips" / "evaluation.npz").write_bytes(clips_path.read_bytes())
        return folder

    return make


@pytest.fixture
def folder(new_folder, tmp_path):
    return new_folder(tmp_path / "deployment")


@pytest.fixture
def narrator():
    narrator = Narrator()
    narrator.console = Console(file=io.StringIO(), width=400)
    return narrator


def deployment(folder, devices, narrator):
    return deliver_deployment(
        folder,
        title="tiny for pi",
        target="pi: a small computer",
        run=QUICK,
        devices=devices,
        provenance={"model": "tiny"},
        max_drop=None,
        narrator=narrator,
    )


def test_without_a_host_there_is_a_bundle_and_what_to_type(folder, narrator):
    delivery = deployment(folder, Devices(), narrator)
    assert delivery.outcomes == ()
    require_all(delivery.outcomes)
    text = delivery.report.markdown.read_text()
    assert "nothing was measured on one" in text
    for command in commands(folder)[1:4]:
        assert command in text.replace("\\", "")
    assert (delivery.bundle / "leanear.pyz").is_file()


def test_three_devices_one_dead_and_one_without_the_runtime(folder, narrator, tmp_path, monkeypatch):
    (tmp_path / "sshd").mkdir()
    server = start_server(tmp_path / "sshd")
    bare = tmp_path / "bare"
    try:
        for host, port in (("one", None), ("dead", free_port()), ("bare", None)):
            server.configure(host=host, port=port, name=host)
        text = "".join((server.folder / host).read_text() for host in ("one", "dead", "bare"))
        (server.folder / "three").write_text(text)
        monkeypatch.setenv("LEANEAR_SSH", f"ssh -F {server.folder / 'three'}")

        def elsewhere(host, bundle, results, options, progress, stop):
            """One loopback machine stands for three: each has a folder of its own, and "bare" a Python that is none."""
            python = str(bare) if host == "bare" else options.python
            there = dataclasses.replace(options, folder=str(tmp_path / f"device-{host}"), python=python)
            return deliver(host, bundle, results, there, progress)

        monkeypatch.setattr("leanear.devices.hosts.deliver", elsewhere)
        options = RemoteOptions(python=sys.executable, batch=True, connect_limit_s=60.0)
        delivery = deployment(folder, Devices(("one", "dead", "bare"), options), narrator)
    finally:
        server.stop()
    assert [outcome.status for outcome in delivery.outcomes] == ["ok", "connection refused", "no python"]
    said = narrator.console.file.getvalue()
    assert "one: measured" in said
    assert "dead: connection refused: " in said
    text = delivery.report.markdown.read_text()
    assert "1 of 3 devices measured" in text
    assert (folder / "devices" / "one" / "report.html").is_file()
    assert not (folder / "devices" / "dead").exists()
    assert (folder / "results" / "one" / "null-fp32.json").is_file()
    page = delivery.report.html.read_bytes()
    delivery.report.html.unlink()
    again = write_deployment_report(folder, out=None, max_drop=None)  # what `leanear report FOLDER` does
    assert again.html.read_bytes() == page
    with open(folder / ".leanear-lock", "w") as lock, pytest.raises(BadInput, match="another leanear is at work"):
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_deployment_report(folder, out=None, max_drop=None)
    with pytest.raises(DeviceFailed, match="dead: connection refused") as caught:
        require_all(delivery.outcomes)
    assert caught.value.exit_status == 7
    assert "one" not in str(caught.value).split(":")[0]


def test_every_device_that_was_measured_is_no_failure():
    require_all([DeviceOutcome("a", "ok"), DeviceOutcome("b", "ok")])
