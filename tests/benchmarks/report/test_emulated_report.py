"""A time on an emulated device is called one, wherever a reader may meet it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from leanear.benchmarks.analysis import analyse
from leanear.benchmarks.report.devices_report import DeviceEntry, compose_devices_report
from leanear.benchmarks.report.headline import headline_cards, headline_rows, summary_sentences
from leanear.benchmarks.report.latency_section import latency_section
from leanear.benchmarks.report.report import render_markdown
from leanear.benchmarks.results import Results

REASON = "aarch64 on an x86 processor, so no time that is measured here says anything of a real device"


@pytest.fixture
def emulated(null_results) -> Results:
    document = copy.deepcopy(null_results.document)
    for repeat in document["latency"]["repeats"]:
        repeat["samples_ms"] *= 4
    document["device"]["emulation"] = f"yes: {REASON}"
    return replace(null_results, document=document)


def test_one_devices_report(emulated):
    analysis = analyse(emulated)
    assert analysis.emulated == REASON
    assert f"The device is emulated: {REASON}." in summary_sentences(analysis)
    assert any(REASON in getattr(block, "text", "") for block in latency_section(analysis).blocks)
    (row,) = [row for row in headline_rows(analysis) if "latency" in row[0]]
    assert row[0] == "median latency (emulated)"
    (card,) = [card for card in headline_cards(analysis, None) if "median" in card.detail]
    assert "(emulated)" in card.detail
    assert card.figure == "not trusted"
    assert row[3].endswith("×, not trusted")


def test_the_report_of_several(emulated, null_results):
    entries = [DeviceEntry("qemu", "ok", measured=emulated), DeviceEntry("real", "ok", measured=null_results)]
    text = render_markdown(compose_devices_report("t", "pi", entries, {}))
    row = next(line for line in text.splitlines() if line.startswith("| qemu | ok |"))
    assert row.count("ms (emulated)") == 2
    assert f"qemu: the device is emulated: {REASON}." in text
    assert "real: the device is emulated" not in text
    assert "(emulated)" not in next(line for line in text.splitlines() if line.startswith("| real | ok |"))


@pytest.mark.parametrize("said", ["no sign of it", "", {"status": "not measured", "reason": "no /proc"}])
def test_others_are_not(null_results, said):
    document = copy.deepcopy(null_results.document)
    document["device"]["emulation"] = said
    assert analyse(replace(null_results, document=document)).emulated == ""
