"""What keeps a delivery from beginning: no connection, no Python, nothing that the Python needs."""

from __future__ import annotations

import dataclasses
import socket
import subprocess
import sys
import time

import pytest

from leanear.benchmarks.device.bundled import BUNDLE_FILE, BundleRun, read_bundle
from leanear.devices.remote import deliver
from leanear.runtimes.errors import BadInput
from tests.toolchain.deliveries import Interruption, deployment, expect, make_bundle, stop_at
from tests.toolchain.ssh_server import HOST, free_port, make_key, remote_python, start_server


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
        assert time.monotonic() - started < 60
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
    run = BundleRun("tensorrt", "fp16", "fp16", "all", 1.0, 0.0)
    bundle = make_bundle(parts, tmp_path / "bundle", run=run).folder
    outcome = deliver(HOST, bundle, tmp_path, options)
    expect(outcome, "runtime absent", "tensorrt: not installed", "not a Jetson")
    again = deliver(HOST, bundle, tmp_path, options)
    expect(again, "runtime absent")
    assert again.notes == (), "an attempt that found this out was not cut short"
