"""Facts of boards, from made-up trees; what is absent has its reason."""

from __future__ import annotations

import json

from leanear.benchmarks.sensors.device import board_facts, is_measured
from tests.benchmarks.device_trees import JETSON, LAPTOP, PI, nobody, pi_programs, tree


def test_a_jetson(tmp_path):
    said = {("nvpmodel", "-q"): "NV Power Mode: MAXN_SUPER\n2\n"}
    facts = board_facts(tree(tmp_path, JETSON), lambda command: said.get(tuple(command)))
    assert facts["soc"] == "nvidia,tegra234"
    assert facts["l4t"] == "36.4.3"
    assert facts["jetpack"] == "6.2.1+b38"
    assert facts["cuda"] == "12.6.11"
    assert facts["tensorrt"] == "10.3.0.30-1+cuda12.5"  # not the one that was removed
    assert facts["nvidia_driver"] == "540.4.0"
    assert facts["power_mode"] == "MAXN_SUPER (2)"
    assert facts["clock_limits"] == {"cpu 0 1 2 3": "729 to 1728 MHz"}
    assert board_facts(tmp_path, nobody)["power_mode"] == "mode 1"


def test_a_pi_and_a_laptop(tmp_path):
    facts = board_facts(tree(tmp_path / "pi", PI), pi_programs)
    assert facts["soc"] == "brcm,bcm2712"
    assert "30f0c5e4" in facts["firmware"]
    assert not is_measured(facts["power_mode"])
    assert not {"l4t", "jetpack", "cuda", "tensorrt", "nvidia_driver"} & set(facts)
    facts = board_facts(tree(tmp_path / "laptop", LAPTOP), nobody)
    assert facts["power_mode"] == "balanced"
    assert facts["firmware"] == "N3AET80W"


def test_a_machine_that_tells_nothing_gives_reasons(tmp_path):
    facts = board_facts(tmp_path, nobody)
    json.dumps(facts)
    assert all(not is_measured(value) and value["reason"] for value in facts.values())


def test_damaged_files_are_no_facts(tmp_path):
    files = {
        "usr/local/cuda/version.json": "{",
        "etc/nv_tegra_release": "garbage",
        "var/lib/dpkg/status": "\xff\n\nPackage:",
    }
    facts = board_facts(tree(tmp_path, files), nobody)
    for name in ("cuda", "l4t", "tensorrt", "jetpack", "nvidia_driver"):
        assert not is_measured(facts[name]), name
        assert facts[name]["reason"]
