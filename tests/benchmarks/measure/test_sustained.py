"""Sustained work: first against last part, energy per inference, and that reading sensors is no part of the work."""

from __future__ import annotations

import numpy as np
import pytest

from leanear.benchmarks.measure.sustained import run_sustained, verdict, work
from leanear.runtimes.errors import BadInput, RuntimeUnavailable
from tests.benchmarks.device_trees import JETSON, tree


@pytest.fixture
def request_of(slim_folder, tmp_path):
    np.save(tmp_path / "waveform.npy", np.zeros(160, np.float32))

    def make(seconds, runtime="null"):
        return {
            "artifact": str(slim_folder),
            "runtime": runtime,
            "threads": 1,
            "precision": "fp32",
            "window": None,
            "waveform": str(tmp_path / "waveform.npy"),
            "tokens": None,
            "seconds": seconds,
        }

    return make


class Clock:
    """Time that passes only when something says so."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def perf_counter_ns(self):
        return round(self.now * 1e9)


def test_work_that_becomes_slower_is_seen(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("leanear.benchmarks.measure.sustained.time", clock)

    def inference():
        clock.now += 0.02 if clock.now < 1300 else 0.06
        return {}

    shown = []
    answer = work(inference, 600.0, lambda text, share: shown.append(share))
    assert answer["inferences"] == pytest.approx(300 / 0.02 + 300 / 0.06, abs=2)
    assert answer["window_s"] == 60.0
    assert (answer["first"]["median_ms"], answer["last"]["median_ms"]) == (20.0, 60.0)
    assert answer["first"]["n"] == pytest.approx(3000, abs=1)
    assert answer["end_monotonic_s"] - answer["start_monotonic_s"] == pytest.approx(600.0, abs=0.1)
    assert verdict(answer) == {
        "ratio": 3.0,
        "text": "slower with time: the last minute takes 3.00 times as long as the first",
    }
    assert answer["median_ms_by_tenth"][0] == 20.0
    assert answer["median_ms_by_tenth"][-1] == 60.0
    assert shown == sorted(shown)
    steady = {**answer, "last": answer["first"], "window_s": 0.2}
    assert verdict(steady) == {"ratio": 1.0, "text": "steady: the last 0.2 s takes 1.00 times as long as the first"}


def test_a_run_on_a_jetson_has_its_energy_and_the_sensors_name(request_of, tmp_path):
    root = tree(tmp_path / "root", JETSON)
    shown = []
    part = run_sustained(request_of(1.5), lambda text, share: shown.append(text), root)
    assert part["status"] == "ok", part
    used = part["energy_per_inference"]
    assert used["sensor"] == "VDD_IN (ina3221), the whole module"
    seconds = part["work"]["end_monotonic_s"] - part["work"]["start_monotonic_s"]
    assert used["joules"] == pytest.approx(4.6 * seconds / part["work"]["inferences"], rel=0.02)
    assert used["above_idle_joules"] == pytest.approx(0.0, abs=1e-3)  # this device draws as much at rest
    assert part["throttling"]["verdict"] == "no sign of it"
    assert part["work"]["first"]["median_ms"] >= 1.0
    assert any("of 1.5 s" in text for text in shown)


def test_a_device_without_a_power_sensor_has_no_energy(request_of, tmp_path):
    part = run_sustained(request_of(0.5), lambda *_: None, tmp_path / "empty")
    assert part["status"] == "ok"
    assert part["energy_per_inference"]["status"] == "not measured"
    assert "INA3221" in part["energy_per_inference"]["reason"]
    assert part["throttling"]["verdict"] == "not measured"


def test_what_cannot_be_run_is_told(request_of, tmp_path):
    with pytest.raises(BadInput, match="0 s"):
        run_sustained(request_of(0.0), lambda *_: None, tmp_path)
    with pytest.raises((BadInput, RuntimeUnavailable)):
        run_sustained(request_of(0.2, "tensorrt"), lambda *_: None, tmp_path)
