"""What the report says of sensors and sustained work; what is absent is named and never 0."""

from __future__ import annotations

import pytest

from benchmarks.page import Paragraph, Table
from benchmarks.pictures import Picture
from benchmarks.state_section import state_missing, state_section


def sensors(verdict="no sign of it", **series):
    return {
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
        "work": {
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


def document(latency_sensors=None, sustained=None):
    latency = {} if latency_sensors is None else {"sensors": latency_sensors}
    return {"latency": latency, "sustained": sustained}


def test_sensors_are_in_a_table_with_their_source_and_drawn():
    said = sensors(
        temperature_c={"cpu": [50.0, 60.0, 70.0, None]}, clock_mhz={"cpu 0": [2400.0, 2400.0, 1500.0, 1500.0]}
    )
    section = state_section(document(said))
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    assert table.rows[0] == ("temperature, cpu", "50 °C", "60 °C", "70 °C", "/sys/cpu")
    assert "4 readings; reading them took 0.10% of one core" in table.caption
    pictures = [block.title for block in section.blocks if isinstance(block, Picture)]
    assert pictures == ["Clock while latency was measured"]  # three temperatures are no curve
    assert "looked at: core 0" in section.blocks[0].text


def test_a_device_that_was_held_back_is_a_warning():
    section = state_section(document(sensors("throttled", temperature_c={"cpu": [50.0] * 4})))
    assert section.blocks[0].tone == "warning"
    assert "went up by 2" in section.blocks[0].text


def test_what_is_absent_is_named():
    said = sensors("not measured")
    rows = dict(state_missing(document(said, {"status": "not measured", "reason": "not asked for", "roles": {}})))
    assert rows["power"] == "no power rail"
    assert "went up" in rows["throttling"]
    assert rows["energy per inference"] == "not asked for"
    failed = {"status": "failed", "reason": "slim: it died", "roles": {}}
    assert ("work without a pause", "slim: it died") in state_missing(document(said, failed))
    assert state_section(document()) is None
    assert state_missing(document()) == []


def test_sustained_work_and_its_energy():
    sustained = {"status": "ok", "reason": "", "seconds": 600.0, "roles": {"dense": role(4.6, 1.2), "slim": role()}}
    section = state_section(document(None, sustained))
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    assert table.caption == "Work without a pause for 600 s"
    assert table.rows[0][-1] == "4.6 J (1.2 J above idle)"
    assert table.rows[1][-1] == "4.6 mJ (1 mJ above idle)"
    assert "1.50 times" in table.rows[1][4]
    (paragraph,) = [block for block in section.blocks if isinstance(block, Paragraph)]
    assert "VDD_IN (ina3221), the whole module" in paragraph.text
    assert "not an analyser" in paragraph.text


@pytest.mark.parametrize("above", [{"status": "not measured", "reason": "at rest: too few"}, 0.001])
def test_energy_that_no_sensor_shows_is_not_0(above):
    part = role(above=above)
    assert (
        "mJ"
        in state_section(document(None, {"status": "ok", "seconds": 5.0, "roles": {"slim": part}}))
        .blocks[0]
        .rows[0][-1]
    )
    part["energy_per_inference"] = {"status": "not measured", "reason": "no power rail"}
    sustained = {"status": "ok", "reason": "", "seconds": 5.0, "roles": {"slim": part}}
    section = state_section(document(None, sustained))
    assert section.blocks[0].rows[0][-1] == "not measured"
    assert ("energy per inference, slim", "no power rail") in state_missing(document(None, sustained))
