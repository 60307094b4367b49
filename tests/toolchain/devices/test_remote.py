"""Delivery over a real OpenSSH server on loopback, from keys to results, whatever anything is called."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from leanear.benchmarks.device.bundled import BundleRun, read_bundle
from leanear.benchmarks.results import read_results
from leanear.devices.bundle import write_bundle
from leanear.devices.remote import deliver
from leanear.devices.ssh import STATUSES, check_host, quoted_python
from leanear.runtimes.errors import BadInput
from tests.benchmarks.measure.test_engine_check import perturbed
from tests.runtimes.tiny_artifact import LABELS, weights, write_tiny_artifact
from tests.toolchain.deliveries import CLIP_BYTES, NASTY, Interruption, deployment, make_bundle, stop_at
from tests.toolchain.ssh_server import HOST

pytestmark = pytest.mark.usefixtures("short_benchmark")


def test_from_keys_to_results_and_again(small, options, tmp_path):
    shown = []
    outcome = deliver(HOST, small, tmp_path / "results", options, lambda text, share=None: shown.append((text, share)))
    assert outcome.status == "ok", outcome
    assert outcome.reason == ""
    assert outcome.notes == ()
    results = read_results(Path(outcome.results))
    assert not results.failures()
    assert Path(outcome.results) == tmp_path / "results" / "null-fp32.json"
    assert outcome.doctor["device"]["libraries"]["numpy"] == np.__version__
    assert read_bundle(deployment(options) / "bundle").document == read_bundle(small).document
    shares = [share for _, share in shown]
    assert shares[0] == 0.0
    assert shares[-1] == 1.0
    assert shares[5:] == sorted(shares[5:])
    assert [text for text, _ in shown if text.startswith("copying")]
    assert any("process 1" in text for text, _ in shown)

    shown.clear()
    before = Path(outcome.results).read_bytes()
    again = deliver(HOST, small, tmp_path / "results", options, lambda text, share=None: shown.append((text, share)))
    assert again.status == "ok"
    assert not [text for text, _ in shown if text.startswith("copying")]
    assert not [text for text, _ in shown if "process" in text]
    assert Path(again.results).read_bytes() == before
    assert not list(tmp_path.rglob("PWNED"))
    assert not Path("PWNED").exists()


def test_an_engine_that_is_wrong_there_is_a_status(parts, options, tmp_path):
    wrong = perturbed(write_tiny_artifact(tmp_path / "wrong", weights(3), labels=(NASTY, *LABELS[1:])), 0.5)
    run = BundleRun("onnxruntime", "fp32", "fp32", 1, 0.5, 0.0)
    bundle = write_bundle(
        tmp_path / "bundle", name="wrong", target="pi", slim=wrong, dense=None, clips=parts["small"], run=run
    )
    outcome = deliver(HOST, bundle.folder, tmp_path / "results", options)
    assert outcome.status == "check failed"
    assert outcome.status in STATUSES
    assert "the engine does not answer as the checkpoint does" in outcome.reason
    results = read_results(Path(outcome.results))
    assert results.is_wrong
    assert results.samples_ms("slim") == []


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
    assert read_bundle(deployment(there) / "bundle").document.name == NASTY
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
