"""Several devices side by side, and the file that names them."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path

import pytest

from leanear.benchmarks.results import read_results
from leanear.devices.hosts import check_names, deliver_to_all, host_folder_name, read_hosts
from leanear.devices.remote import deliver
from leanear.runtimes.errors import BadInput, DeviceFailed
from tests.toolchain.deliveries import at
from tests.toolchain.ssh_server import free_port

pytestmark = pytest.mark.usefixtures("short_benchmark")


@pytest.mark.parametrize("way", ["ProxyJump elsewhere", "ProxyCommand nc %h %p", "ControlPath /tmp/%C"])
def test_a_name_that_is_looked_up_elsewhere_is_not_looked_up_here(tmp_path, monkeypatch, caplog, way):
    """Where the alias has a jump host, a proxy or a connection that may be open; and one address of two is enough."""
    config = tmp_path / "config"
    monkeypatch.setenv("LEANEAR_SSH", f"ssh -F {config}")
    config.write_text(f"Host far\n  HostName far.invalid\n  {way}\nHost gone\n  HostName gone.invalid\n")
    check_names(["far"])
    check_names([])
    with pytest.raises(DeviceFailed, match=r"gone: name unknown: no device has this name \(gone\.invalid: "):
        check_names(["gone"])
    check_names(["gone", "far"])
    assert "note: gone: no device has this name (gone.invalid: " in caplog.text
    assert "far:" not in caplog.text


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
        "leanear.devices.hosts.deliver",
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
    assert outcomes[0].results != outcomes[2].results
    assert read_results(Path(outcomes[0].results)).roles == ("slim",)


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

    monkeypatch.setattr("leanear.devices.hosts.deliver", elsewhere)
    at_work = threading.Event()

    def interrupted(futures):
        assert at_work.wait(600)
        raise KeyboardInterrupt

    monkeypatch.setattr("leanear.devices.hosts.wait", interrupted)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        deliver_to_all(names, small, tmp_path / "results", options, lambda host: at("process 1 of", at_work.set))
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
