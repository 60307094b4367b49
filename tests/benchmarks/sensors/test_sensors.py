"""Sensors of made-up devices: what is read, what is left out, what a record says; what is absent is never 0."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest

from leanear.benchmarks.sensors.readings import run_program
from leanear.benchmarks.sensors.recorder import Recorder, parse_tegrastats
from leanear.benchmarks.sensors.sensor_records import between, energy, throttling
from leanear.benchmarks.sensors.sensors import KINDS, find_sensors, parse_pmic
from tests.benchmarks.device_trees import (
    JETSON,
    LAPTOP,
    NANO_LINE,
    ORIN_NANO_LINE,
    PI,
    PI_PROGRAMS,
    nobody,
    pi_programs,
    tree,
)


def readings(found, kind):
    return {sensor.name: sensor.read() for sensor in found.of(kind)}


def test_a_jetson(tmp_path):
    found = find_sensors(tree(tmp_path, JETSON), nobody)
    assert readings(found, "temperature_c") == {
        "thermal_zone0 cpu-thermal": pytest.approx(48.062),
        "thermal_zone8 tj-thermal": pytest.approx(48.625),
    }
    assert readings(found, "clock_mhz") == {"cpu 0 1 2 3": 1728.0, "gpu 17000000.gpu": 306.0}
    assert readings(found, "power_w") == {
        "VDD_IN (ina3221)": pytest.approx(4.6),
        "VDD_CPU_GPU_CV (ina3221)": pytest.approx(0.559104),
    }
    assert readings(found, "throttle_count") == {"over-current oc1_event_cnt": 0.0, "over-current oc3_event_cnt": 4.0}
    assert readings(found, "cooling_state") == {"cooling_device0 cpufreq-cpu0": 0.0}
    assert readings(found, "memory_available_bytes") == {"available": 5604000 * 1024}
    assert "RAPL" in found.missing["energy_j"]
    assert found.of("power_w")[0].source == "/sys/class/hwmon/hwmon1/curr1_input"


def test_a_jetson_of_jetpack_4(tmp_path):
    folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    files = {
        f"{folder}/rail_name_0": "POM_5V_IN\n",
        f"{folder}/in_power0_input": "2132\n",
        f"{folder}/rail_name_1": "POM_5V_GPU\n",
        f"{folder}/in_power1_input": "78\n",
        f"{folder}/rail_name_2": "NC\n",
        f"{folder}/in_power2_input": "0\n",
    }
    found = find_sensors(tree(tmp_path, files), nobody)
    assert readings(found, "power_w") == {"POM_5V_IN (ina3221x)": 2.132, "POM_5V_GPU (ina3221x)": 0.078}


def test_a_pi(tmp_path):
    found = find_sensors(tree(tmp_path, PI), pi_programs)
    assert readings(found, "temperature_c") == {"thermal_zone0 cpu-thermal": pytest.approx(54.321)}
    assert readings(found, "throttle_flags") == {"firmware": 0x50000}
    assert readings(found, "power_w") == {"sum of the PMIC's rails": pytest.approx(3.2125)}
    assert found.of("power_w")[0].source == "vcgencmd pmic_read_adc"


def test_a_pi_4_shows_no_power_and_no_kernel_files(tmp_path):
    programs = {key: text for key, text in PI_PROGRAMS.items() if key[1] != "pmic_read_adc"}
    found = find_sensors(tmp_path, lambda command: programs.get(tuple(command)))
    assert readings(found, "temperature_c") == {"firmware": 54.3}
    assert readings(found, "clock_mhz") == {"arm": 2400.0}
    assert "pmic_read_adc" in found.missing["power_w"]


def test_a_laptop(tmp_path):
    found = find_sensors(tree(tmp_path, LAPTOP), nobody)
    assert readings(found, "temperature_c") == {"coretemp Package id 0": 52.0}
    assert readings(found, "power_w") == {"PPT (amdgpu)": 7.5}  # and not the battery
    assert set(readings(found, "energy_j")) == {"package-0 (RAPL, intel-rapl:0)", "dram (RAPL, intel-rapl:0:1)"}
    assert readings(found, "throttle_count") == {"core 0, heat": 7.0, "package, heat": 9.0}


def test_a_counter_that_starts_again_goes_on(tmp_path):
    found = find_sensors(tree(tmp_path, LAPTOP), nobody)
    (package,) = [sensor for sensor in found.of("energy_j") if sensor.name.startswith("package")]
    before = package.read()
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("671150\n")
    assert package.read() - before == pytest.approx(1.0)


def test_a_counter_for_root_alone_is_told(tmp_path):
    if os.getuid() == 0:
        path = tree(tmp_path, LAPTOP) / "sys/class/powercap"
        for zone in path.glob("intel-rapl*"):
            (zone / "energy_uj").unlink()
            (zone / "energy_uj").mkdir()  # as unreadable to root as a file of root's is to others
    else:
        for path in tree(tmp_path, LAPTOP).glob("sys/class/powercap/*/energy_uj"):
            path.chmod(0)
    found = find_sensors(tmp_path, nobody)
    assert "root alone" in found.missing["energy_j"]
    assert not found.of("energy_j")


def test_a_device_that_shows_nothing_gives_a_reason_for_each_kind(tmp_path):
    found = find_sensors(tmp_path, nobody)
    assert found.sensors == ()
    assert set(found.missing) == set(KINDS)
    assert all(found.missing.values())
    with Recorder(tmp_path, interval_s=0.05, ask=nobody, tegrastats="") as recorder:
        pass
    record = recorder.record()
    assert record["series"] == {}
    assert set(record["not_measured"]) == set(KINDS)
    assert throttling(record)["verdict"] == "not measured"
    assert energy(record, 0.0, 1.0)["status"] == "not measured"


@pytest.mark.parametrize("text", ["", "garbage\n", "12abc", "\0"])
def test_a_file_that_says_no_number_is_no_sensor(tmp_path, text):
    files = {**LAPTOP, "sys/class/hwmon/hwmon3/temp1_input": text}
    assert readings(find_sensors(tree(tmp_path, files), nobody), "temperature_c") == {}


def test_lines_of_tegrastats():
    said = parse_tegrastats(ORIN_NANO_LINE)
    assert said["power_w"] == {"VDD_IN": 4.556, "VDD_CPU_GPU_CV": 0.483, "VDD_SOC": 1.451}
    assert said["temperature_c"] == {"cpu": 47.687, "soc2": 46.718, "gpu": 48.625, "tj": 48.625}
    assert said["clock_mhz"] == {"cpu": 1036.0, "gpu": 306.0}
    assert said["memory_available_bytes"] == {"available": (7620 - 2147) * 2**20}
    said = parse_tegrastats(NANO_LINE)
    assert said["power_w"] == {"POM_5V_IN": 2.132, "POM_5V_GPU": 0.078, "POM_5V_CPU": 0.275}
    assert "PMIC" not in said["temperature_c"]
    assert said["clock_mhz"] == {"cpu": 204.0, "gpu": 76.0}
    assert not any(parse_tegrastats("nothing at all").values())


def test_power_of_a_pmic():
    assert parse_pmic(PI_PROGRAMS["vcgencmd", "pmic_read_adc"]) == pytest.approx(3.2125)
    assert parse_pmic(" EXT5V_V volt(24)=5.1V\n") is None
    assert parse_pmic('error=1 error_msg="Command not registered"') is None


def until(happened) -> None:
    """Wait, for a busy machine takes its time."""
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def until_readings(recorder: Recorder, more: int) -> None:
    """Wait until the recorder has made so many readings more."""
    wanted = len(recorder.record()["seconds"]) + more
    until(lambda: len(recorder.record()["seconds"]) >= wanted)


def test_a_recording_of_tegrastats(tmp_path):
    program = tmp_path / "tegrastats"
    program.write_text(f"#!/bin/sh\nwhile :; do echo '{ORIN_NANO_LINE}'; sleep 0.05; done\n")
    program.chmod(0o755)
    with Recorder(tmp_path, interval_s=0.05, ask=nobody, tegrastats=str(program)) as recorder:
        until(lambda: any(recorder.record()["series"].get("power_w", {}).get("VDD_IN", ())))
        start = time.monotonic()
        until_readings(recorder, 10)
        end = time.monotonic()
    record = recorder.record()
    assert record["sources"]["power_w"]["VDD_IN"] == "tegrastats"
    assert "power_w" not in record["not_measured"]
    used = energy(record, start, end)
    assert used["sensor"] == "VDD_IN, the whole module"
    assert used["mean_w"] == pytest.approx(4.556, rel=1e-3)
    assert used["joules"] == pytest.approx(4.556 * (end - start), rel=1e-3)


def test_what_a_recording_costs_and_holds(tmp_path):
    tree(tmp_path, {**JETSON, **LAPTOP})
    with Recorder(tmp_path, interval_s=0.02, ask=nobody, tegrastats="") as recorder:
        until_readings(recorder, 6)
    record = json.loads(json.dumps(recorder.record()))
    assert record["seconds"] == sorted(record["seconds"])
    for series in record["series"].values():
        for values in series.values():
            assert len(values) == len(record["seconds"])
    cpu_s = record["sampling_cpu_s"] / len(record["seconds"])
    assert cpu_s < 0.01  # a hundredth of a second of the processor a reading, at the very most


def test_a_sensor_that_goes_away_is_a_gap_and_not_0(tmp_path):
    tree(tmp_path, JETSON)
    with Recorder(tmp_path, interval_s=0.02, ask=nobody, tegrastats="") as recorder:
        until_readings(recorder, 2)
        (tmp_path / "sys/class/hwmon/hwmon1/curr1_input").unlink()
        until_readings(recorder, 3)
    values = recorder.record()["series"]["power_w"]["VDD_IN (ina3221)"]
    assert values[0] == pytest.approx(4.6)
    assert values[-1] is None
    assert 0 not in values


def made_record(series, seconds=None):
    length = len(next(iter(next(iter(series.values())).values())))
    return {
        "start_monotonic_s": 100.0,
        "interval_s": 1.0,
        "seconds": seconds or [float(second) for second in range(length)],
        "series": series,
        "sources": {},
        "not_measured": {},
        "sampling_cpu_s": 0.0,
    }


def test_energy_is_the_area_under_the_power_of_the_whole_module():
    ramp = [float(watts) for watts in range(11)]
    record = made_record({"power_w": {"VDD_IN (ina3221)": ramp, "VDD_SOC (ina3221)": [100.0] * 11}})
    used = energy(record, 102.0, 106.0)
    assert used["joules"] == pytest.approx((2 + 6) / 2 * 4)
    assert used["mean_w"] == pytest.approx(4.0)
    used = energy(record, 102.5, 105.5)  # between readings
    assert used["joules"] == pytest.approx(4.0 * 3.0)
    assert energy(record, 102.0, 103.0)["status"] == "not measured"
    assert energy(record, 105.0, 120.0)["status"] == "not measured"


def test_energy_of_counters_comes_before_power_and_of_rails_is_their_sum():
    counter = [10.0 * second for second in range(11)]
    record = made_record(
        {
            "energy_j": {"package-0 (RAPL, x)": counter, "dram (RAPL, y)": counter},
            "power_w": {"PPT (amdgpu)": [1.0] * 11},
        }
    )
    assert energy(record, 102.0, 106.0)["joules"] == pytest.approx(80.0)
    assert energy(record, 102.0, 106.0)["sensor"] == "package-0 (RAPL, x) + dram (RAPL, y)"
    with_platform = made_record({"energy_j": {"package-0 (RAPL, x)": counter, "psys (RAPL, z)": counter}})
    assert energy(with_platform, 102.0, 106.0)["sensor"] == "psys (RAPL, z)"
    rails = made_record({"power_w": {"VDD_GPU_SOC (ina3221)": [2.0] * 11, "VDD_CPU_CV (ina3221)": [1.0] * 11}})
    assert energy(rails, 102.0, 106.0)["mean_w"] == pytest.approx(3.0)
    assert energy(rails, 102.0, 106.0)["sensor"].startswith("sum of ")


def test_a_gap_in_the_readings_is_bridged_and_a_hole_at_an_end_is_not():
    values = [5.0, 5.0, None, 5.0, 5.0, 5.0, None, None]
    record = made_record({"power_w": {"VDD_IN (ina3221)": values}})
    assert energy(record, 100.5, 104.5)["joules"] == pytest.approx(20.0)
    assert energy(record, 100.5, 106.5)["status"] == "not measured"


@pytest.mark.parametrize(
    ("series", "verdict", "word"),
    [
        ({"throttle_count": {"core 0, heat": [7.0, 7.0, 9.0]}}, "throttled", "went up by 2"),
        ({"throttle_count": {"core 0, heat": [7.0, 7.0, 7.0]}}, "no sign of it", ""),
        ({"cooling_state": {"cpufreq-cpu0": [0.0, 2.0, 2.0, 0.0]}}, "throttled", "in 2 of 4 readings"),
        ({"throttle_flags": {"firmware": [0.0, float(0x4), 0.0]}}, "throttled", "firmware: throttled"),
        ({"throttle_flags": {"firmware": [float(0x50000)] * 3}}, "no sign of it", ""),
        (
            {"clock_mhz": {"cpu 0": [2400.0] * 6 + [1500.0] * 6}, "temperature_c": {"cpu": [50.0] * 6 + [84.0] * 6}},
            "throttled",
            "from 2400 to 1500 MHz",
        ),
        (
            {"clock_mhz": {"cpu 0": [2400.0] * 6 + [1500.0] * 6}, "temperature_c": {"cpu": [50.0] * 12}},
            "no sign of it",
            "",
        ),
        ({"clock_mhz": {"cpu 0": [2400.0] * 12}}, "no sign of it", ""),
        ({"clock_mhz": {"cpu 0": [2400.0, 1000.0]}}, "not measured", "neither clocks nor counters"),
    ],
)
def test_throttling(series, verdict, word):
    judged = throttling(made_record(series))
    assert judged["verdict"] == verdict
    assert word in " ".join(judged["reasons"])


def test_a_part_of_a_record():
    record = made_record({"cooling_state": {"cpufreq-cpu0": [1.0, 0.0, 0.0, 0.0, 1.0]}})
    part = between(record, 100.5, 103.5)
    assert part["seconds"] == [1.0, 2.0, 3.0]
    assert throttling(part)["verdict"] == "no sign of it"


def test_programs_that_are_not_there_or_fail_say_nothing():
    assert run_program(["no-such-program-here"]) is None
    assert run_program([sys.executable, "-c", "raise SystemExit(1)"]) is None
    assert run_program([sys.executable, "-c", "print('said')"]) == "said\n"
