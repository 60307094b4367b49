"""The report's section on losses, from a pruning.json made up by hand, and the warning at its head."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leanear.benchmarks.report.drawing.pictures import Curve
from leanear.benchmarks.report.drawing.plotting import Picture
from leanear.benchmarks.report.page import Paragraph, Section, Table
from leanear.benchmarks.results import write_results
from leanear.deploy.measuring import pruning_sections, write_folder_report
from leanear.evaluate.measured_loss import MeasuredLoss
from leanear.prune.document import CurvePoint, Loss
from leanear.prune.notes import curve_picture, loss_section, nats
from leanear.prune.recipe import Goal
from leanear.runtimes.records import write
from tests.benchmarks.drawn import drawn, lines, texts
from tests.benchmarks.report.test_report import Page
from tests.toolchain.pruning_documents import pruning_document, round_of

FINISHED = MeasuredLoss(40, 0.31, 2.0, 10.0, 40.0, 10.0, 30.0, 5.5)
LOSS = Loss(
    estimated=0.2,
    rounds=(
        round_of(0.01, 0.9, {"layers.0.attention": (0.01, 0.9)}),
        round_of(0.2, 0.31, {"layers.0.attention": (0.15, 0.25), "layers.1.attention": (0.0, 0.0)}),
    ),
    best=1,
    curve=(CurvePoint(0.1, 0.0), CurvePoint(0.5, 0.04), CurvePoint(0.9, 2.0)),
    begins_at=0.52,
    finished=FINISHED,
)
PRUNING = pruning_document(LOSS, goal=Goal("sparsity", 0.7), sparsity=0.7)


def blocks(section: Section, kind: type) -> list:
    return [block for block in section.blocks if isinstance(block, kind)]


def test_rounds_and_the_blocks_of_the_best_one_are_told():
    section = loss_section(PRUNING)
    rounds, by_block = blocks(section, Table)
    assert rounds.rows == (("round 1", "0.01", "0.9", "0.9", ""), ("round 2", "0.2", "0.25", "0.31", "this model"))
    assert by_block.rows == (("layer 0, attention", "0.15", "0.25"), ("layer 1, attention", "0", "0"))
    assert len(blocks(section, Paragraph)) == 1
    curve, ratio = blocks(section, Picture)
    assert (curve.title, ratio.title) == ("Size against loss", "Estimate and measurement of every block")


def test_without_a_curve_or_a_block_that_lost_anything_there_is_no_picture():
    without_curve = replace(LOSS, curve=())
    assert len(blocks(loss_section(pruning_document(without_curve)), Picture)) == 1
    nothing_lost = round_of(0.2, 0.31, {"layers.1.attention": (0.0, 0.0)})
    pruning = pruning_document(replace(without_curve, rounds=(LOSS.rounds[0], nothing_lost)))
    assert blocks(loss_section(pruning), Picture) == []


def test_without_rounds_there_is_no_section():
    assert loss_section(pruning_document(FINISHED)) is None


def test_a_loss_of_nothing_is_drawn_on_the_axis_of_logarithms():
    """Nought has no logarithm."""
    this = Curve("this model", ((0.1, 0.0),), joined=False, chosen=True)
    root = drawn(curve_picture([(0.1, 0.0), (0.2, 0.1)], [this], "attention"))
    ((_, _, points),) = lines(root)
    assert points[0][1] > points[1][1] + 100, "all the way down"
    assert "this model" in texts(root)


@pytest.mark.parametrize(("value", "shown"), [(0.0, "0"), (9e-7, "0"), (1e-6, "1e-06"), (0.0123, "0.012"), (3, "3")])
def test_two_digits_are_shown(value, shown):
    assert nats(value) == shown


@pytest.fixture
def deployment(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    write(tmp_path / "checkpoint" / "pruning.json", PRUNING)
    return tmp_path


def test_the_warning_is_read_before_all_else(deployment, null_results):
    write_results(deployment / "results.json", null_results.document)
    paths = write_folder_report(deployment, deployment / "results.json", deployment, None)
    warning = (
        "Removing 70 % of the attention does damage here: on 40 held-out calibration clips accuracy went from 95.0"
    )
    markdown = paths.markdown.read_text()
    assert markdown.splitlines()[4].startswith(f"**{warning}")
    assert "## Loss" in markdown
    page = Page(paths.html.read_text())
    assert page.open == []
    assert page.text.index(warning) < page.text.index("Latency")
    assert ("p", {"class": "warning"}) in page.tags


def test_a_loss_that_does_not_matter_warns_of_nothing(deployment, null_results):
    loss = replace(LOSS, finished=replace(FINISHED, divergence=0.01, slim_mistakes=2.0))
    write(deployment / "checkpoint" / "pruning.json", pruning_document(loss))
    write_results(deployment / "results.json", null_results.document)
    paths = write_folder_report(deployment, deployment / "results.json", deployment, None)
    assert "does damage" not in paths.markdown.read_text()


def test_a_folder_that_was_not_measured_yet_says_the_same(deployment):
    pruning, loss = pruning_sections(deployment)
    assert pruning.blocks[0].tone == "warning"
    assert pruning.blocks[0].text.startswith("Removing 70 % of the attention does damage here")
    assert loss == loss_section(PRUNING)
