"""What a machine does not tell is said once, with its reason; a limit is not taken for a count."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace

import pytest

from leanear.benchmarks.analysis import analyse
from leanear.benchmarks.report.origin_sections import environment_section, missing_section, provenance_section
from leanear.benchmarks.report.page import Table

NO_CLOCK = {"status": "not measured", "reason": "the kernel shows no cpufreq"}
NO_HEAT = {"status": "not measured", "reason": "the kernel shows no thermal zone"}


@pytest.fixture
def analysis(null_results):
    document = copy.deepcopy(null_results.document)
    document["device"].update(governor=NO_CLOCK, frequency_max_khz=NO_CLOCK, board="a board")
    for state in ("device_before", "device_after"):
        document[state].update(frequency_khz=NO_CLOCK, temperature_c=NO_HEAT, load_average_1_min=0.5)
    document["device_before"]["load_average_1_min"] = NO_CLOCK
    document["latency"]["sensors"]["not_measured"].update(clock_mhz=NO_CLOCK["reason"], temperature_c="no sensor")
    return analyse(replace(null_results, document=document))


def tables(section):
    return [block for block in section.blocks if isinstance(block, Table)]


def test_each_thing_that_was_not_measured_is_named_once(analysis):
    (table,) = tables(missing_section(analysis))
    names = Counter(name for what, _ in table.rows for name in what.split(", "))
    for name in ("governor", "frequency max", "frequency", "clock", "temperature"):
        assert names[name] == 1
    reasons = [why for _, why in table.rows]
    assert len(reasons) == len(set(reasons))
    (together,) = [what for what, why in table.rows if why == NO_CLOCK["reason"]]
    assert {"clock", "governor", "frequency max", "frequency"} <= set(together.split(", "))


def test_the_machine_is_told_by_what_it_shows(analysis):
    section = environment_section(analysis)
    machine, state = tables(section)[-2:]
    shown = dict(machine.rows)
    assert shown["board"] == "a board"
    assert not {"governor", "frequency max"} & set(shown)
    rows = {name: cells for name, *cells in state.rows}
    assert not {"frequency", "temperature"} & set(rows)
    assert rows["load average over 1 minute"] == ["not measured (the kernel shows no cpufreq)", "0.5"]
    assert "What was not measured, and why" in section.blocks[-1].text


def test_a_limit_of_calibration_clips_is_called_one(analysis):
    plan = {"recipe": {"calibration_clips": 256, "seed": 0}}
    (table,) = tables(provenance_section(analysis, plan, {"clips used": "150 to calibrate on"}))
    assert dict(table.rows)["recipe: calibration clips, at most"] == "256"
    assert "recipe: calibration clips" not in dict(table.rows)
