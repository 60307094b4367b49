"""A 64-bit ARM device over SSH: its Python is emulated, its answers are a real one's."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from leanear.benchmarks.device.bundled import BundleRun
from leanear.benchmarks.measure.measure import benchmark
from leanear.benchmarks.peers.emulated_device import make_device, missing
from leanear.benchmarks.results import read_results
from leanear.devices.bundle import write_bundle
from leanear.devices.remote import RemoteOptions, deliver
from leanear.runtimes.clips import Clips, write_clips
from leanear.runtimes.sessions import SessionOptions
from tests.runtimes.tiny_artifact import LABELS, WINDOW_SAMPLES, weights, write_tiny_artifact
from tests.toolchain.ssh_server import HOST, start_server


@pytest.mark.slow
def test_an_emulated_pi_answers_as_this_machine_does(tmp_path, monkeypatch):
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    python = make_device(Path(os.environ.get("LEANEAR_EMULATED_DEVICE", tmp_path / "emulated")))
    dense = write_tiny_artifact(tmp_path / "dense", weights(5), source="dense")
    slim = write_tiny_artifact(tmp_path / "slim", weights(6), source="slim")
    noise = np.random.default_rng(0)
    clips = Clips(
        waveforms=tuple(noise.uniform(-1, 1, WINDOW_SAMPLES).astype(np.float32) for _ in range(24)),
        label_ids=noise.integers(0, len(LABELS), 24),
        names=tuple(f"{index}.wav" for index in range(24)),
        labels=LABELS,
        sample_rate_hz=16_000,
    )
    write_clips(tmp_path / "clips.npz", clips)
    run = BundleRun("onnxruntime", "fp32", "fp32", 1, 2.0, 0.0)
    bundle = write_bundle(
        tmp_path / "bundle", name="t", target="pi", slim=slim, dense=dense, clips=tmp_path / "clips.npz", run=run
    )
    (tmp_path / "sshd").mkdir()
    server = start_server(tmp_path / "sshd")
    try:
        monkeypatch.setenv("LEANEAR_SSH", server.command)
        options = RemoteOptions(python=str(python), folder=str(tmp_path / "device"), batch=True)
        outcome = deliver(HOST, bundle.folder, tmp_path / "results", options)
    finally:
        server.stop()
    assert outcome.status == "ok", outcome
    there = read_results(Path(outcome.results)).document
    assert there["device"]["emulation"].startswith("yes: aarch64 on an x86 processor")
    here = benchmark(
        dense,
        slim,
        tmp_path / "clips.npz",
        "onnxruntime",
        SessionOptions(threads=1),
        tmp_path / "here.json",
        budget_s=1.0,
    ).document
    assert there["device"]["architecture"] == "aarch64"
    assert here["device"]["architecture"] != "aarch64"
    for role in ("dense", "slim"):
        ours, theirs = here["accuracy"]["roles"][role], there["accuracy"]["roles"][role]
        assert ours["predicted_ids"] == theirs["predicted_ids"]
        # Cross-entropies of logits that are within the bound of the proofs of exports.
        np.testing.assert_allclose(ours["cross_entropy_nats"], theirs["cross_entropy_nats"], atol=1e-4)
