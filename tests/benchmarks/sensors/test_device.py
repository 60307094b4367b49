"""Device facts from made-up /proc and /sys trees; what is absent is never a number."""

from __future__ import annotations

import json
import platform

from leanear.benchmarks.sensors.device import device_facts, device_name, device_state, is_measured

PI = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0b\n\nprocessor\t: 1\n",
    "proc/meminfo": "MemTotal:        8245692 kB\nMemAvailable:    7000000 kB\nSwapTotal:             0 kB\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "54321\n",
    "etc/os-release": 'NAME="Debian GNU/Linux"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    "sys/fs/cgroup/cpu.max": "150000 100000\n",
}


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_facts_of_a_board(tmp_path):
    facts = device_facts(tree(tmp_path, PI))
    assert facts["board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert facts["governor"] == "ondemand"
    assert facts["memory_bytes"] == 8245692 * 1024
    assert facts["instructions"] == ["asimd", "asimddp"]
    assert facts["system"] == "Debian GNU/Linux 12 (bookworm)"
    assert facts["cpu_quota_cores"] == 1.5
    assert not is_measured(facts["cpu"])
    assert device_name(facts).startswith("raspberry-pi-5-model-b-rev-1-0-")
    state = device_state(tmp_path)
    assert state["temperature_c"] == {"thermal_zone0 cpu-thermal": 54.321}
    assert state["frequency_khz"] == 1_500_000


def test_emulation_is_told(tmp_path, monkeypatch):
    tree(tmp_path, {"proc/cpuinfo": "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: avx2\n"})
    assert device_facts(tmp_path)["emulation"] == "no sign of it"
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert device_facts(tmp_path)["emulation"].startswith("yes: aarch64 on an x86 processor")
    assert device_facts(tree(tmp_path / "pi", PI))["emulation"] == "no sign of it"


def test_a_machine_that_tells_nothing_gives_reasons_and_no_zero(tmp_path):
    facts = {**device_facts(tmp_path), **device_state(tmp_path)}
    for name in ("board", "cpu", "memory_bytes", "swap_bytes", "governor", "temperature_c", "frequency_khz", "system"):
        assert not is_measured(facts[name]), name
        assert facts[name]["reason"], name
    assert 0 not in [value for value in facts.values() if not isinstance(value, float)]
    assert device_name(facts)


def test_a_virtual_machine_and_a_container_are_told(tmp_path):
    files = {
        "proc/cpuinfo": "model name\t: Intel(R) Core(TM) i7 CPU @ 2.10GHz\nflags\t\t: avx2 hypervisor\n",
        ".dockerenv": "",
    }
    facts = device_facts(tree(tmp_path, files))
    assert facts["virtual_machine"].startswith("yes")
    assert facts["container"].startswith("yes")
    assert device_name(facts).startswith("intel-core-i7-")


def test_facts_of_this_machine_go_into_json():
    facts = device_facts()
    json.dumps(facts)
    assert facts["python"] == platform.python_version()
    assert facts["libraries"]["numpy"]
