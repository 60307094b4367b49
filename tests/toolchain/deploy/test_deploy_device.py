"""`leanear deploy` for devices: from a checkpoint to a report, over a real SSH server, and without any device."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from leanear.benchmarks.device.bundled import read_bundle
from leanear.benchmarks.results import read_results
from leanear.cli.commands import run
from tests.conftest import tone, write_tiny
from tests.toolchain.ssh_server import HOST, free_port, start_server

NASTY = "it's; $(touch PWNED) `touch PWNED` \"&|<>\n-x ü"
pytestmark = pytest.mark.usefixtures("shortest_benchmark", "measured_here")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / NASTY)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for label, frequency_hz in (("yes", 500), ("up", 1500)):
        (folder / label).mkdir()
        for number in range(8):
            sound = tone(frequency_hz + 20 * number, 0.5, 16000)
            soundfile.write(folder / label / f"{number} {NASTY}.wav", np.asarray(sound), 16000, format="WAV")
    return folder


@pytest.fixture(scope="module")
def exported(model, data, tmp_path_factory):
    """A deployment folder with everything up to the bundle."""
    out = tmp_path_factory.mktemp("deployments") / "pi"
    assert run(["deploy", str(model), "--data", str(data), "--target", "raspberrypi", "--out", str(out)]) == 0
    return out


def deploy(model, data, out, *more, target="raspberrypi"):
    arguments = ["deploy", "--data", str(data), "--target", target, "--out", str(out), "--budget", "1"]
    return run([*arguments, "--device-python", sys.executable, *map(str, more), "--", str(model)])


def test_without_a_host_there_are_a_bundle_and_three_commands(model, data, exported, tmp_path, capsys, markdown_alone):
    out = tmp_path / "pi"
    shutil.copytree(exported, out)
    assert deploy(model, data, out) == 0
    printed = capsys.readouterr()
    said = printed.out
    assert "(a rough timing on this machine, which says nothing of the device: dense " in printed.err
    assert str(out / "bundle") in said
    for verb in ("doctor", "compile", "bench"):
        assert f"python3 leanear.pyz {verb}" in said
    bundle = read_bundle(out / "bundle")
    assert bundle.document.run.threads == "all"
    assert "nothing was measured on one" in (out / "report.md").read_text()


def test_a_pi_over_ssh_has_the_whole_report(model, data, exported, server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LEANEAR_SSH", server.command)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / NASTY
    shutil.copytree(exported, out)
    folder = tmp_path / "device"
    assert deploy(model, data, out, "--host", HOST, "--device-folder", folder) == 0
    said = capsys.readouterr()
    assert "median latency" in said.out
    assert f"{HOST}: measured" in said.err
    results = read_results(out / "results" / HOST / "onnxruntime-fp32.json")
    assert not results.failures()
    assert results.roles == ("dense", "slim")
    text = (out / "report.md").read_text()
    assert "for raspberrypi" in text
    assert "Latency" in text
    assert not list(tmp_path.rglob("PWNED"))
    assert not Path("PWNED").exists()
    assert not (Path.home() / "PWNED").exists()


def test_a_jetson_that_is_none_has_a_status_and_a_report(
    model, data, exported, server, tmp_path, capsys, monkeypatch, markdown_alone
):
    monkeypatch.setenv("LEANEAR_SSH", server.command)
    out = tmp_path / "jetson"
    assert deploy(model, data, out, target="jetson") == 0
    printed = capsys.readouterr().out
    by_hand_says_the_same(printed, out / "bundle", tmp_path / "carried there")
    assert deploy(model, data, out, "--host", HOST, "--device-folder", tmp_path / "device", target="jetson") == 7
    (complaint,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("leanear: ")]
    assert f"{HOST}: runtime absent: tensorrt: not installed" in complaint
    text = (out / "report.md").read_text()
    assert "runtime absent" in text
    assert "not a Jetson" in text
    assert " 0.00 ms" not in text


def by_hand_says_the_same(printed, bundle, copy):
    """The three commands, as they were printed, in a copy of the bundle: each ends with what is missing."""
    shutil.copytree(bundle, copy)
    typed = [line.split() for line in printed.splitlines() if line.startswith("python3 leanear.pyz ")]
    assert [words[2] for words in typed] == ["doctor", "compile", "bench"]
    for words in typed:
        ended = subprocess.run([sys.executable, *words[1:]], cwd=copy, capture_output=True, text=True, timeout=600)
        assert ended.returncode == 4
        (complaint,) = ended.stderr.splitlines()
        assert complaint.startswith("leanear: tensorrt: ")
        assert "comes with JetPack" in complaint
    assert not (copy / "results").exists()


def test_three_devices_of_which_one_is_dead(model, data, exported, tmp_path, capsys, monkeypatch, without_pictures):
    """Two servers with homes of their own, and a port on which nothing listens, in a file with an odd name."""
    out, hosts = tmp_path / "pi", tmp_path / "my hosts; $(touch PWNED)"
    shutil.copytree(exported, out)
    servers, configuration = [], ""
    try:
        for host in ("kitchen", "attic"):
            (tmp_path / host / "sshd").mkdir(parents=True)
            servers.append(start_server(tmp_path / host / "sshd", f"SetEnv HOME={tmp_path / host}"))
            servers[-1].configure(host=host, name=host)
            configuration += (servers[-1].folder / host).read_text()
        servers[0].configure(host="cellar", port=free_port(), name="cellar")
        (tmp_path / "config").write_text(configuration + (servers[0].folder / "cellar").read_text())
        monkeypatch.setenv("LEANEAR_SSH", f"ssh -F {tmp_path / 'config'}")
        hosts.write_text("kitchen\ncellar  # switched off\nattic\n")
        assert deploy(model, data, out, "--hosts", hosts) == 7
    finally:
        for server in servers:
            server.stop()
    said = capsys.readouterr().err
    assert "kitchen: measured" in said
    assert "attic: measured" in said
    (complaint,) = [line for line in said.splitlines() if line.startswith("leanear: ")]
    assert complaint.startswith("leanear: cellar: connection refused: ")
    text = (out / "report.md").read_text()
    assert "2 of 3 devices measured" in text
    for host in ("kitchen", "attic"):
        assert (out / "devices" / host / "report.html").is_file()
        assert not read_results(out / "results" / host / "onnxruntime-fp32.json").failures()
        assert list((tmp_path / host / ".leanear").glob("*/bundle/bundle.json")), "each in its own home"
    assert "| cellar | connection refused | not measured |" in text
    assert not (out / "results" / "cellar").exists()


def test_a_name_without_an_address_is_said_before_any_work(model, data, tmp_path, capsys, monkeypatch):
    config = tmp_path / "config"
    monkeypatch.setenv("LEANEAR_SSH", f"ssh -F {config}")
    config.write_text("Host kitchen\n  HostName no-such-device.invalid\n")
    monkeypatch.setattr("leanear.cli.deploying.prune_job", lambda *_arguments, **_flags: pytest.fail("too late"))
    assert deploy(model, data, tmp_path / "out", "--host", "kitchen") == 7
    (complaint,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("leanear: ")]
    assert complaint.startswith("leanear: kitchen: name unknown: no device has this name (no-such-device.invalid: ")
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("LEANEAR_SSH", "no-such-ssh-program")
    assert deploy(model, data, tmp_path / "out", "--host", "kitchen") == 2
    assert "no-such-ssh-program: there is no such program" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--host", "-oProxyCommand=touch PWNED"], "HOST '-oProxyCommand"),
        (["--host", "a;b"], "HOST 'a;b'"),
        (["--host", "a", "--host", "a"], "named twice"),
        (["--hosts", "no-such-file"], "no-such-file: cannot be read"),
        (["--host", "a", "--device-python", "-c"], "Python '-c'"),
        (["--host", "localhost", "--speedup", "1.3"], "the latency table is timed on this machine"),
        (["--latency-ms", "3"], "the latency table is timed on this machine"),
    ],
)
def test_what_cannot_be_is_one_line(model, data, tmp_path, capsys, more, word):
    assert deploy(model, data, tmp_path / "out", *more) == 2
    (complaint,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("leanear: ")]
    assert word in complaint
    assert not (tmp_path / "out").exists()
