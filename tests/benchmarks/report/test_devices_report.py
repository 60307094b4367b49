"""The report over several devices: measured ones, dead ones, none; in both formats, escaped."""

from __future__ import annotations

import copy
import html
from pathlib import Path

import pytest

from leanear.benchmarks.report import report
from leanear.benchmarks.report.devices_report import DeviceEntry, compose_devices_report
from leanear.benchmarks.report.drawing.plotting import Picture
from leanear.benchmarks.report.page import Table
from leanear.benchmarks.report.report import render_html, render_markdown, write_page
from leanear.benchmarks.results import Results
from leanear.benchmarks.summary import Gate
from tests.benchmarks.drawn import drawn, lines, texts

NASTY = "pi<script>alert(1)</script>|`x`"


@pytest.fixture
def more_results(null_results):
    """The same results with each sample four times, so that there are enough of them for a median."""
    document = copy.deepcopy(null_results.document)
    for repeat in document["latency"]["repeats"]:
        repeat["samples_ms"] *= 4
    return Results(null_results.path, document)


@pytest.fixture
def entries(more_results):
    findings = [{"name": "tensorrt", "ok": False, "text": "not installed", "remedy": ""}]
    return [
        DeviceEntry("one", "ok", measured=more_results, report="devices/one/report.html", gate=Gate("PASS", "fine")),
        DeviceEntry(NASTY, "ok", measured=more_results, notes=("the device's clock is 1 h behind",)),
        DeviceEntry("dead", "connection refused", "nothing listens there", log_tail=("ssh: refused", "<b>bold</b>")),
        DeviceEntry(
            "jetson",
            "runtime absent",
            "tensorrt: not installed",
            doctor={"device": {"board": "NVIDIA Jetson", "libraries": {}}, "findings": findings},
        ),
    ]


def test_everyone_is_in_the_one_report(entries, tmp_path):
    report = compose_devices_report("tiny for pi", "raspberrypi", entries, {"model": "tiny"})
    markdown, page = (path.read_text() for path in write_page(report, tmp_path, "report"))
    for text in (markdown, html.unescape(page)):
        assert "2 of 4 devices measured" in text
        assert "connection refused: nothing listens there" in text
        assert "dead: not measured, connection refused." in text
        assert "times as fast as dense" in text
        assert "the device's clock is 1 h behind" in text
        assert "devices/one/report.html" in text
        assert "NVIDIA Jetson" in text
        assert "What the doctor of jetson found" in text
    assert "<script>alert" not in page
    assert "<b>bold" not in page
    assert "<svg" in page
    assert "| dead | connection refused | not measured |" in markdown
    assert " 0.00 ms" not in markdown
    assert report.gate.verdict == "PASS"


def test_the_same_entries_give_the_same_bytes(entries, tmp_path):
    for name in ("a", "b"):
        write_page(compose_devices_report("t", "pi", entries, {}), tmp_path / name, "report")
    assert (tmp_path / "a/report.html").read_bytes() == (tmp_path / "b/report.html").read_bytes()


def test_no_device_at_all_says_what_to_type():
    composed = compose_devices_report("t", "jetson", [], {"model": "x"}, ("python3 leanear.pyz doctor",))
    text = render_markdown(composed)
    assert "nothing was measured on one" in text
    assert "python3 leanear.pyz doctor" in text
    assert composed.gate is None
    assert "python3 leanear.pyz doctor" in render_html(composed)


def test_one_failed_gate_is_the_gate_of_all(entries, null_results):
    entries[1] = DeviceEntry("two", "ok", measured=null_results, gate=Gate("FAIL", "too much was lost"))
    assert compose_devices_report("t", "pi", entries, {}).gate.verdict == "FAIL"


def test_results_of_a_measurement_that_failed_in_parts_are_shown_with_its_status(null_results):
    document = {
        **null_results.document,
        "memory": {"status": "failed", "reason": "it died", "log_tail": [], "roles": {}},
    }
    entry = DeviceEntry("one", "measurement failed", "memory: it died", measured=Results(null_results.path, document))
    text = render_markdown(compose_devices_report("t", "pi", [entry], {}))
    assert "| one | measurement failed | " in text
    assert "memory: it died" in text
    assert "0 of 1 devices measured" in text


def faster(results: Results, factor: float) -> Results:
    """Results of a device on which dense takes 5 ms / factor, slim 4 ms / factor."""
    document = copy.deepcopy(results.document)
    for repeat in document["latency"]["repeats"]:
        repeat["samples_ms"] = [{"dense": 5.0, "slim": 4.0}[repeat["role"]] / factor] * 20
    return Results(results.path, document)


def the_picture(entries) -> Picture:
    composed = compose_devices_report("t", "pi", entries, {})
    (devices,) = [section for section in composed.sections if section.title == "Devices"]
    assert sum(isinstance(block, Table) for block in devices.blocks) == 1
    (picture,) = [block for block in devices.blocks if isinstance(block, Picture)]
    return picture


def test_one_picture_of_all_measured_devices_says_which_end_is_dense(entries):
    picture = the_picture(entries)
    assert picture.title == "Accuracy against latency, dense (hollow) and slim of each device"
    assert picture.description.count("dense ") == picture.description.count("slim ") == 2
    root = drawn(picture)
    assert len(lines(root)) == 2
    hollow = [mark for mark in root.iter("use") if "fill:var(--sheet)" in mark.get("style")]
    assert len(hollow) == 2
    assert "NVIDIA" not in " ".join(texts(root))


def test_every_one_of_many_devices_has_a_line_that_is_seen(more_results):
    style = (Path(report.__file__).with_name("report.css")).read_text()
    entries = [DeviceEntry(f"device-{number}", "ok", measured=more_results) for number in range(9)]
    found = lines(drawn(the_picture(entries)))
    plain, dashed = ([colour for colour, is_dashed, _ in found if is_dashed == wanted] for wanted in (False, True))
    assert len(set(plain)) >= 6
    assert len(set(dashed)) == 3
    assert all(style.count(f"--{name}: #") == 2 for name in {*plain, *dashed})


@pytest.mark.parametrize(("factor", "equal"), [(4.0, False), (100.0, True)])
def test_latencies_far_apart_share_a_logarithmic_axis(more_results, factor, equal):
    """On it, dense and slim are as far apart on a device that is a hundred times as fast."""
    entries = [DeviceEntry(f"{f:g}", "ok", measured=faster(more_results, f)) for f in (1.0, factor)]
    widths = [points[1][0] - points[0][0] for _, _, points in lines(drawn(the_picture(entries)))]
    assert len(widths) == 2
    assert (widths[0] == pytest.approx(widths[1], abs=0.11)) == equal
