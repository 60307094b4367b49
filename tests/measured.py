"""Tiny artifacts, clips for them, and what measuring them gave: made once, for every test."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from typing import Any

import numpy as np
import pytest

from leanear.benchmarks.measure.measure import benchmark
from leanear.benchmarks.measure.processes import Outcome, Progress
from leanear.export.parity import prove_parity_here
from leanear.runtimes.clips import Clips, write_clips
from leanear.runtimes.errors import BadInput, LeanearError, RuntimeUnavailable
from leanear.runtimes.sessions import SessionOptions
from tests.benchmarks.speech_artifact import CACHE_SLIM, say, write_speech_artifact
from tests.runtimes.tiny_artifact import LABELS, WINDOW_SAMPLES, loudness_weights, weights, write_tiny_artifact

SAMPLE_RATE_HZ = 16_000
CLIPS = 40


def loud_clip(label: int, seed: int) -> np.ndarray:
    """A window whose stretch number `label` is the loudest, so that the null runtime answers `label`."""
    waveform = np.abs(np.random.default_rng(seed).normal(0, 0.05, WINDOW_SAMPLES)).astype(np.float32)
    waveform[np.array_split(np.arange(WINDOW_SAMPLES), len(LABELS))[label]] += 0.5
    return waveform


@pytest.fixture(scope="session")
def slim_folder(tmp_path_factory):
    return write_tiny_artifact(tmp_path_factory.mktemp("slim") / "artifact", loudness_weights(), source="slim")


@pytest.fixture(scope="session")
def dense_folder(tmp_path_factory):
    return write_tiny_artifact(
        tmp_path_factory.mktemp("dense") / "artifact",
        weights(5),
        source="dense",
        model={"parameters": 1600, "attention_parameters": 1000, "macs": 80_000, "checkpoint_bytes": 6400},
    )


@pytest.fixture(scope="session")
def clips_path(tmp_path_factory):
    """40 clips that say their label plainly, but every fourth is labelled as its neighbour."""
    spoken = np.arange(CLIPS) % len(LABELS)
    labelled = np.where(np.arange(CLIPS) % 4 == 3, (spoken + 1) % len(LABELS), spoken)
    clips = Clips(
        waveforms=tuple(loud_clip(int(label), seed) for seed, label in enumerate(spoken)),
        label_ids=labelled,
        names=tuple(f"clip-{index:02}.wav" for index in range(CLIPS)),
        labels=LABELS,
        sample_rate_hz=SAMPLE_RATE_HZ,
    )
    path = tmp_path_factory.mktemp("clips") / "clips.npz"
    write_clips(path, clips)
    return path


@pytest.fixture(scope="session")
def null_results(dense_folder, slim_folder, clips_path, tmp_path_factory):
    """Results of both artifacts on the null runtime."""
    out = tmp_path_factory.mktemp("results") / "null.json"
    options = SessionOptions(threads=1)
    with pytest.MonkeyPatch.context() as patch:
        run_here(patch)
        return benchmark(
            dense_folder, slim_folder, clips_path, "null", options, out, budget_s=0.5, samples=9, repeats=3
        )


@pytest.fixture(autouse=True, scope="session")
def short_look_at_other_processes():
    """Tests do not wait half a second to see how busy other processes are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leanear.benchmarks.sensors.device.BUSY_WINDOW_S", 0.02)
        yield


@pytest.fixture(autouse=True, scope="session")
def short_measurements():
    """Where a test does not say how much is measured, it is 12 samples in one process, which are drawn 200 times.

    Memory is looked at as often as it has to be, not for seconds.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("repeats", 1), ("samples", 12)):
            patch.setitem(benchmark.__kwdefaults__, name, value)
        patch.setattr("leanear.benchmarks.summary.RESAMPLES", 200)
        patch.setattr("leanear.benchmarks.measure.parts.MEMORY_SHARE_S", 0.01)
        yield


def in_this_process(module: str, request: dict[str, Any], progress: Progress, **_limits: float) -> Outcome:
    """What a fresh process would answer, through JSON both ways: for tests that are not of processes."""
    imported = importlib.import_module(module)
    measure = re.search(r"^    answer_request\((\w+)\)$", inspect.getsource(imported), re.MULTILINE)[1]
    try:
        answer = getattr(imported, measure)(json.loads(json.dumps(request)), progress)
    except (BadInput, RuntimeUnavailable):
        raise
    except LeanearError as error:
        return Outcome(None, str(error))
    return Outcome(json.loads(json.dumps(answer, allow_nan=False)))


def run_here(patch: pytest.MonkeyPatch) -> None:
    """Let measurements take place in this process.

    A start of Python, numpy and a runtime takes longer than a tiny model's whole measurement, ten times in each.
    """
    for name in ("parts", "engine_check", "sustained", "evaluation"):
        patch.setattr(f"leanear.benchmarks.measure.{name}.run_fresh", in_this_process)


def measure_here(patch: pytest.MonkeyPatch) -> None:
    """And proofs too; it needs no half a second to warm up, nor twenty windows to show whether memory grows."""
    run_here(patch)
    patch.setattr("leanear.deploy.exporting.prove_parity", prove_parity_here)
    patch.setattr("leanear.benchmarks.measure.latency.WARM_UP_SHARE", 0.02)
    patch.setattr("leanear.benchmarks.measure.memory.LEAST_WINDOWS", 3)


@pytest.fixture(scope="module")
def measured_here():
    """Measurements and proofs take place here; that they do in processes of their own is shown where it matters."""
    with pytest.MonkeyPatch.context() as patch:
        measure_here(patch)
        yield


@pytest.fixture
def run_in_one_process(monkeypatch):
    """For a test whose neighbours look at the processes that measure."""
    run_here(monkeypatch)


@pytest.fixture
def markdown_alone(monkeypatch):
    """Reports are written without their page, where a test does not look at it: most of their time is its pictures."""
    monkeypatch.setattr("leanear.benchmarks.report.report.render_html", lambda _report: "")


@pytest.fixture
def without_pictures(monkeypatch):
    """Pages are written without their pictures, where a test looks at the words of the page alone."""
    monkeypatch.setattr("leanear.benchmarks.report.report.svgs", lambda _picture: ())


@pytest.fixture(scope="module")
def markdown_alone_here():
    """The same for all of a file, and what its tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leanear.benchmarks.report.report.render_html", lambda _report: "")
        yield


@pytest.fixture
def all_resamples(monkeypatch):
    """As many as in reports of users."""
    monkeypatch.setattr("leanear.benchmarks.summary.RESAMPLES", 1000)


@pytest.fixture(scope="session")
def dense_speech(tmp_path_factory):
    return write_speech_artifact(tmp_path_factory.mktemp("dense-speech") / "artifact", source="dense")


@pytest.fixture(scope="session")
def slim_speech(tmp_path_factory):
    return write_speech_artifact(
        tmp_path_factory.mktemp("slim-speech") / "artifact",
        source="slim",
        cache=CACHE_SLIM,
        model={"parameters": 1500, "attention_parameters": 400, "macs": 60_000, "checkpoint_bytes": 6000},
    )


@pytest.fixture(scope="session")
def speech_clips_path(tmp_path_factory):
    """12 clips of one sentence each, and one that is silent; every fourth says another word than its transcript."""
    sentences = [("the", "cat", "sat"), ("lights", "on"), ("seven", "dog", "ran", "home")] * 4
    texts = [" ".join(words) for words in sentences]
    said = [(*words[:-1], "down") if place % 4 == 3 else words for place, words in enumerate(sentences)]
    clips = Clips(
        waveforms=(*(say(*words) for words in said), np.zeros(4000, np.float32)),
        label_ids=np.zeros(0, np.int64),
        names=tuple(f"clip-{index:02}.wav" for index in range(len(texts) + 1)),
        labels=(),
        sample_rate_hz=SAMPLE_RATE_HZ,
        texts=(*texts, "off"),
    )
    path = tmp_path_factory.mktemp("speech-clips") / "clips.npz"
    write_clips(path, clips)
    return path


@pytest.fixture(scope="session")
def speech_results(dense_speech, slim_speech, speech_clips_path, tmp_path_factory):
    """Results of both speech artifacts on the null runtime."""
    out, options = tmp_path_factory.mktemp("results") / "speech.json", SessionOptions(threads=1)
    with pytest.MonkeyPatch.context() as patch:
        run_here(patch)
        return benchmark(
            dense_speech, slim_speech, speech_clips_path, "null", options, out, budget_s=0.5, samples=9, repeats=3
        )
