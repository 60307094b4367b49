"""What the report says of sensors and sustained work; what is absent is named and never 0."""

from __future__ import annotations

import copy
import time
from types import SimpleNamespace

import numpy as np
import pytest

from leanear.benchmarks.measure.sustained import run_sustained
from leanear.benchmarks.report.drawing.plotting import Picture
from leanear.benchmarks.report.page import Paragraph, Table
from leanear.benchmarks.report.report import write_report
from leanear.benchmarks.report.state_section import state_missing, state_section
from leanear.benchmarks.results import write_results
from leanear.benchmarks.results_document import Sensors, Sustained
from leanear.benchmarks.sensors.recorder import Recorder
from leanear.benchmarks.sensors.sensor_records import throttling
from leanear.runtimes.errors import BadInput
from leanear.runtimes.records import read
from tests.benchmarks.device_trees import JETSON, nobody, tree


def sensors(verdict="no sign of it", **series):
    return {
        "start_monotonic_s": 0.0,
        "interval_s": 1.0,
        "seconds": [0.0, 1.0, 2.0, 3.0],
        "series": series,
        "sources": {kind: {name: f"/sys/{name}" for name in readings} for kind, readings in series.items()},
        "not_measured": {"power_w": "no power rail", "energy_j": "no RAPL"},
        "sampling_cpu_s": 0.003,
        "throttling": {"verdict": verdict, "reasons": ["core 0: the counter went up by 2"], "looked_at": ["core 0"]},
    }


def role(joules=0.0046, above=0.001):
    energy = {
        "status": "ok",
        "joules": joules,
        "above_idle_joules": above,
        "sensor": "VDD_IN (ina3221), the whole module",
    }
    return {
        "idle": {},
        "energy": {},
        "sensors": {key: value for key, value in sensors().items() if key != "throttling"},
        "work": {
            "start_monotonic_s": 0.0,
            "end_monotonic_s": 600.0,
            "inferences": 1234,
            "window_s": 60.0,
            "first": {"n": 100, "median_ms": 4.0, "most_ms": 9.0},
            "last": {"n": 100, "median_ms": 6.0, "most_ms": 9.0},
            "median_ms_by_tenth": [4.0, 6.0],
        },
        "verdict": {"ratio": 1.5, "text": "slower with time: the last minute takes 1.50 times as long as the first"},
        "throttling": {"verdict": "throttled", "reasons": [], "looked_at": []},
        "energy_per_inference": energy,
    }


NO_SENSORS = {**sensors("not measured"), "not_measured": {}}
NOT_ASKED = {"status": "not measured", "reason": "not asked for", "log_tail": [], "seconds": 0.0, "roles": {}}


def content(latency_sensors=NO_SENSORS, sustained=NOT_ASKED):
    """As much of a results file as the section looks at."""
    latency = SimpleNamespace(sensors=read(Sensors, latency_sensors, "sensors"))
    return SimpleNamespace(latency=latency, sustained=read(Sustained, {**NOT_ASKED, **sustained}, "sustained"))


def test_sensors_are_in_a_table_with_their_source_and_drawn():
    said = sensors(
        temperature_c={"cpu": [50.0, 60.0, 70.0, None]}, clock_mhz={"cpu 0": [2400.0, 2400.0, 1500.0, 1500.0]}
    )
    section = state_section(content(said))
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    assert table.rows[0] == ("temperature, cpu", "50 °C", "60 °C", "70 °C", "/sys/cpu")
    assert "4 readings; reading them took 0.10% of one core" in table.caption
    pictures = [block.title for block in section.blocks if isinstance(block, Picture)]
    assert pictures == ["Clock while latency was measured"]  # three temperatures are no curve
    assert "looked at: core 0" in section.blocks[0].text


def test_a_device_that_was_held_back_is_a_warning():
    section = state_section(content(sensors("throttled", temperature_c={"cpu": [50.0] * 4})))
    assert section.blocks[0].tone == "warning"
    assert "went up by 2" in section.blocks[0].text


def test_what_is_absent_is_named():
    said = sensors("not measured")
    rows = dict(state_missing(content(said)))
    assert rows["power"] == "no power rail"
    assert "went up" in rows["throttling"]
    assert rows["energy per inference"] == "not asked for"
    failed = {"status": "failed", "reason": "slim: it died", "roles": {}}
    assert ("work without a pause", "slim: it died") in state_missing(content(said, failed))
    assert state_section(content()) is None


def test_sustained_work_and_its_energy():
    sustained = {"status": "ok", "reason": "", "seconds": 600.0, "roles": {"dense": role(4.6, 1.2), "slim": role()}}
    section = state_section(content(NO_SENSORS, sustained))
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    assert table.caption == "Work without a pause for 600 s"
    assert table.header == ("", "dense", "slim")
    assert table.rows[-1] == ("energy per inference", "4.6 J (1.2 J above idle)", "4.6 mJ (1 mJ above idle)")
    assert "1.50 times" in table.rows[3][2]
    (paragraph,) = [block for block in section.blocks if isinstance(block, Paragraph)]
    assert "VDD_IN (ina3221), the whole module" in paragraph.text
    assert "not an analyser" in paragraph.text


@pytest.mark.parametrize("above", [{"status": "not measured", "reason": "at rest: too few"}, 0.001])
def test_energy_that_no_sensor_shows_is_not_0(above):
    part = role(above=above)
    assert (
        "mJ"
        in state_section(content(NO_SENSORS, {"status": "ok", "seconds": 5.0, "roles": {"slim": part}}))
        .blocks[0]
        .rows[-1][-1]
    )
    part["energy_per_inference"] = {"status": "not measured", "reason": "no power rail"}
    sustained = {"status": "ok", "reason": "", "seconds": 5.0, "roles": {"slim": part}}
    section = state_section(content(NO_SENSORS, sustained))
    assert section.blocks[0].header == ("", "model"), "one alone is not slim"
    assert section.blocks[0].rows[-1][-1] == "not measured"
    assert ("energy per inference", "no power rail") in state_missing(content(NO_SENSORS, sustained))


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda document: document["latency"]["sensors"]["series"].update(clock_mhz={"cpu": [1.0]}), "values for"),
        (
            lambda document: document["latency"]["sensors"]["series"].update(clock_mhz={"cpu": "fast"}),
            "clock_mhz.cpu is 'fast', expected a list",
        ),
        (lambda document: document["latency"]["sensors"]["throttling"].pop("verdict"), "throttling.verdict'"),
        (lambda document: document["sustained"].update(status="fine"), "sustained.status"),
        (lambda document: document["sustained"].update(roles={"slim": {}}), "missing key 'sustained.roles.slim.work'"),
        (lambda document: document["sustained"].update(status="failed", reason=""), "sustained.reason: empty"),
    ],
)
def test_results_with_another_state_are_refused(null_results, tmp_path, edit, word):
    document = copy.deepcopy(null_results.document)
    write_results(tmp_path / "results.json", document)
    edit(document)
    with pytest.raises(BadInput, match=word):
        write_results(tmp_path / "results.json", document)


def test_a_run_on_a_device_with_sensors_is_read_back_and_shown(null_results, slim_folder, tmp_path, markdown_alone):
    """From recorder and worker through the results file into the report."""
    np.save(tmp_path / "waveform.npy", np.zeros(160, np.float32))
    root = tree(tmp_path / "root", JETSON)
    request = {
        "artifact": str(slim_folder),
        "runtime": "null",
        "threads": 1,
        "precision": "fp32",
        "window": None,
        "waveform": str(tmp_path / "waveform.npy"),
        "tokens": None,
        "seconds": 1.0,
    }
    part = run_sustained(request, lambda *_: None, root)
    status, reason, log_tail = (part.pop(key) for key in ("status", "reason", "log_tail"))
    assert (status, reason, log_tail) == ("ok", "", [])
    document = copy.deepcopy(null_results.document)
    document["sustained"] = {"status": "ok", "reason": "", "log_tail": [], "seconds": 1.0, "roles": {"slim": part}}
    with Recorder(root, interval_s=0.02, ask=nobody, tegrastats="") as recorder:
        time.sleep(0.2)
    record = recorder.record()
    document["latency"]["sensors"] = {**record, "throttling": throttling(record)}
    write_results(tmp_path / "results.json", document)
    text = write_report(tmp_path / "results.json", tmp_path).markdown.read_text()
    assert "Heat, clocks and power" in text
    assert "Work without a pause for 1 s" in text
    assert "mJ (" in text
    assert "temperature, thermal\\_zone0 cpu-thermal" in text
    assert "No sign that the device was held back" in text
