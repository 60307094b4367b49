"""The comparison's page from a document made by hand: cells, marks, ratios, and where the pictures put their points."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from matplotlib.backends.backend_svg import FigureCanvasSVG

from leanear.benchmarks.report.drawing.pictures import Curve, picture_curves
from leanear.benchmarks.report.drawing.plotting import svgs
from leanear.benchmarks.report.report import write_page
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import write_json
from leanear.runtimes.records import read
from leanear.studies.comparison_document import COMPARISON_SCHEMA, ComparisonDocument, read_comparison
from leanear.studies.comparison_page import comparison_report
from leanear.studies.comparison_sections import comparison_sections
from tests.benchmarks.drawn import dots, drawn

REFERENCE = "reference: channels, fisher, local"


def row(method, asked, seed, sparsity, kl, correct):
    return {
        "method": method, "asked": asked, "seed": seed, "sparsity": sparsity, "attention_parameters": 10,
        "parameters": 2000, "macs": 3_000_000, "by_kind": {"encoder": sparsity}, "clips": 200, "counted": 200,
        "errors": 200 - correct, "cross_entropy": 0.2 + kl,
        "kl_divergence": kl, "updates": 0, "seconds": 1.5,
    }  # fmt: skip


def error_rate(rows, method, asked):
    """Of the dense model Wilson's interval of 10 errors in 200."""
    errors = [each["errors"] / each["counted"] for each in rows if (each["method"], each["asked"]) == (method, asked)]
    rate = {"estimate": sum(errors) / len(errors), "low": 0.02739, "high": 0.09000}
    return {"method": method, "asked": asked, "rate": rate}


def interval(estimate):
    return {"estimate": estimate, "low": 0.9 * estimate, "high": 1.1 * estimate}


def ratio(theirs, asked, value, measure="kl_divergence"):
    return {
        "ours": "default", "theirs": theirs, "asked": asked, "measure": measure, "our_mean": interval(0.1),
        "their_mean": interval(0.2), "ratio": None if value is None else interval(value), "seeds": [0, 1],
    }  # fmt: skip


def document():
    rows = [
        row("dense", 0.0, -1, 0.0, 0.0, 190),
        row(REFERENCE, 0.5, 0, 0.51, 0.2, 150),
        row(REFERENCE, 0.7, 0, 0.70, 2.0, 100),
        row("slack", 0.5, 0, 0.48, 0.03, 180),
        row("default", 0.5, 0, 0.5, 0.001, 189),
        row("default", 0.5, 1, 0.5, 0.003, 187),
        row("default", 0.7, 0, 0.7, 0.01, 180),
        row("default", 0.7, 1, 0.7, 0.01, 180),
    ]
    ratios = [ratio(REFERENCE, 0.5, 0.01), ratio(REFERENCE, 0.7, 0.005), ratio("slack", 0.5, None)]
    ratios += [ratio(REFERENCE, 0.5, 0.02, "cross_entropy_change")]
    return {
        "schema": COMPARISON_SCHEMA,
        "model": "a-model",
        "prune": "attention",
        "made_from": {"checkpoint": "c0ffee"},
        "command": ["leanear", "compare-methods", "a-model"],
        "calibration": {"pool": 30, "clips": 20, "seed": 0, "split": "by hand"},
        "evaluation": {"clips": 200},
        "metric": "accuracy",
        "bundle_sparsity": 0.005,
        "default": "default",
        "published": [REFERENCE],
        "drawn": ["default", REFERENCE, "not there"],
        "methods": [
            {"name": REFERENCE, "group": "reference", "about": "as published", "drawn": True},
            {"name": "default", "group": "default", "about": "ours", "drawn": True},
        ],
        "one_shot": {
            "rows": rows,
            "error_rates": [error_rate(rows, *place) for place in {(row["method"], row["asked"]): 0 for row in rows}],
            "ratios": ratios,
            "out_of_reach": [{"method": "slack", "asked": 0.7, "seed": 0, "reason": "one head stays"}],
        },
        "recovery": None,
        "latency": None,
    }


def content(value) -> ComparisonDocument:
    return read(ComparisonDocument, value, "comparison.json")


def written(tmp_path, value) -> tuple[str, str]:
    write_json(tmp_path / "comparison.json", value)
    report = comparison_report(read_comparison(tmp_path / "comparison.json"))
    markdown, html = write_page(report, tmp_path, "comparison")
    return markdown.read_text(), html.read_text()


def cells(markdown: str, first: str) -> list[str]:
    (line,) = [line for line in markdown.splitlines() if line.startswith(f"| {first} |")][:1]
    return [cell.strip().replace("\\", "") for cell in line.strip("|").split(" | ")]


def test_cells_marks_and_ranges(tmp_path):
    markdown, _ = written(tmp_path, document())
    assert cells(markdown, "default")[1:] == ["0.002 (0.001 to 0.003)", "0.01 (0.01 to 0.01)"]
    assert cells(markdown, REFERENCE)[1:] == ["0.2 +", "2"], "removes a whole point more, then as much"
    assert cells(markdown, "slack")[1:] == ["0.03 *", "out of reach"], "removes two points less"
    assert "keeps 94.0%" in markdown
    assert "0.01 (0.009 to 0.011)" in markdown
    assert "not measurable" in markdown
    assert "95.0 (91.0 to 97.3)" in markdown, "190 of 200, Wilson"
    assert "+0.0020" in markdown, "the default's mean change of the cross-entropy at 50 %"


def test_the_page_stands_alone_and_its_pictures_say_what_they_show(tmp_path):
    _, html = written(tmp_path, document())
    assert "Comparison of pruning methods" in html
    assert not re.search(r"(src|href)=(?!\"#)", html)
    pictures = re.findall(r"<svg.*?</svg>", html)
    assert len(pictures) == 4, "two, each for wide and for narrow pages"
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        assert root.get("role") == "img"
        assert "default" in root.get("aria-label")
    used = set(re.findall(r"var\((--[\w-]+)\)", "".join(pictures)))
    assert len(used) > 3
    for name in used:
        assert html.count(f" {name}: #") == 2, "every colour is in the page's style, for light and for dark"


def test_curves_are_placed_by_their_values():
    curves = [Curve("one", ((10.0, 1.0), (30.0, 100.0))), Curve("two", ((20.0, 10.0),))]
    (ax, ay), (bx, by), (cx, cy) = dots(drawn(picture_curves(curves, "x", "y", "title", log=True)))
    assert cx == pytest.approx((ax + bx) / 2, abs=0.11)
    assert cy == pytest.approx((ay + by) / 2, abs=0.11), "ten is half-way between one and a hundred"
    assert by < ay
    root = drawn(picture_curves(curves, "x", "y", "title", level=("all", 55.5)))
    (_, ay), (_, by), (_, cy) = dots(root)
    assert (ay - cy) / (ay - by) == pytest.approx(9 / 99, abs=0.005)
    levels = [path.get("d").split() for path in root.iter("path") if "stroke:var(--ink)" in (path.get("style") or "")]
    assert (ay - float(levels[0][2])) / (ay - by) == pytest.approx(54.5 / 99, abs=0.005)


def test_what_is_drawn_once_is_what_matplotlib_saves(monkeypatch):
    """`savefig` draws everything a second time when it has laid it out."""
    curves = [Curve("one", ((10.0, 1.0), (30.0, 100.0))), Curve("two, which has a long name", ((20.0, 10.0),))]
    picture = picture_curves(curves, "x", "y", "title", log=True, level=("all", 55.5))
    once, draw = list(svgs(picture)), FigureCanvasSVG.print_svg

    def save(canvas, out, **settings):
        monkeypatch.setattr(FigureCanvasSVG, "print_svg", draw)
        canvas.figure.savefig(out, format="svg", **settings)
        monkeypatch.setattr(FigureCanvasSVG, "print_svg", save)

    monkeypatch.setattr(FigureCanvasSVG, "print_svg", save)
    assert list(svgs(picture)) == once


def test_one_point_and_none_are_drawn_too():
    picture = picture_curves([Curve("one", ((0.5, 0.0),)), Curve("none", ())], "x", "y", "title", log=True)
    assert len(dots(drawn(picture))) == 1


def test_latency_and_recovery_have_their_sections():
    value = document()
    timed = {"asked": 0.5, "seed": 0, "lower_quartile_ms": 1.0, "upper_quartile_ms": 3.0, "samples": 9}
    value["latency"] = {
        "target": "cpu", "runtime": "onnxruntime", "precision": "fp32", "threads": 2, "device": "a machine",
        "others_share": 0.02,
        "rows": [
            {**timed, "method": "dense", "asked": 0.0, "sparsity": 0.0, "median_ms": 4.0},
            {**timed, "method": "default", "sparsity": 0.5, "median_ms": 2.0},
        ],
    }  # fmt: skip
    value["recovery"] = {**value["one_shot"], "ratios": [ratio(REFERENCE, 0.7, 0.4, "excess_error")]}
    sections = {section.title: section for section in comparison_sections(content(value))}
    latency = sections["Quality against measured latency on cpu"]
    assert latency.blocks[1].rows == (("default", "50.0", "2.00", "1.00 to 3.00", "2.00×", "0.0010", "94.5"),)
    recovered = sections["The default against the others, after recovery"]
    assert ("excess error of default ÷ that of the method", ((REFERENCE, "0.4 (0.36 to 0.44)"),)) in [
        (block.caption, block.rows) for block in recovered.blocks[1:]
    ]


def test_what_is_no_comparison_is_refused(tmp_path):
    path = tmp_path / "comparison.json"
    with pytest.raises(BadInput, match="comparison.json"):
        read_comparison(path)
    value = document()
    write_json(path, {**value, "colour": "red"})
    with pytest.raises(BadInput, match="unknown key 'colour'"):
        read_comparison(path)
    value["one_shot"]["rows"] = value["one_shot"]["rows"][1:]
    write_json(path, value)
    with pytest.raises(BadInput, match="dense"):
        read_comparison(path)
    del value["one_shot"]["ratios"]
    write_json(path, value)
    with pytest.raises(BadInput, match="ratios"):
        read_comparison(path)
