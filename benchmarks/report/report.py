"""The report of a results file: Markdown, and one HTML page that needs nothing but itself."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

from leanear.benchmarks.formatting import without_folders
from leanear.benchmarks.report.drawing.plotting import Picture, svgs
from leanear.benchmarks.report.page import Block, Log, Paragraph, Report, Section, Table
from leanear.benchmarks.report.precision_section import PrecisionDocument, read_precision
from leanear.benchmarks.report.sections import NOTHING_MORE, Extra, compose_report
from leanear.benchmarks.results import Results, read_results
from leanear.benchmarks.summary import Gate
from leanear.runtimes.errors import RuntimeUnavailable
from leanear.runtimes.files import write_text

TEMPLATE = Path(__file__).with_name("report.html.jinja")
BEFORE_UNIT = re.compile(r"(?<=\d) (?=(?:ms|s|MB|kB|M|G|MHz|W|J|mJ|°C)(?!\w))")


@dataclass(frozen=True)
class ReportPaths:
    """Where the report lies, and the verdict of its gate (None where no gate was set)."""

    markdown: Path
    html: Path
    gate: Gate | None


def write_report(
    results_path: Path,
    out_folder: Path,
    *,
    plan: dict[str, Any] | None = None,
    precision_path: Path | None = None,
    max_drop: float | None = None,
    extra: Extra = NOTHING_MORE,
    loss: Section | None = None,
    more: Sequence[Section] = (),
) -> ReportPaths:
    """The paths of `report.md` and `report.html`, written into `out_folder` from a results file.

    plan: as plan.json has it, for the picture of what was kept. precision_path: the deployment's precision.json, which
    is left out where it is of another slim artifact. max_drop: the accuracy gate in points. loss: the section on what
    pruning was measured to cost; more: sections that come last.
    The same files give the same report, byte for byte.

    Raises:
        BadInput: a file is not what it should be.
        RuntimeUnavailable: jinja2 or matplotlib, which the HTML page needs, is not installed.
    """
    results = read_results(Path(results_path))
    precision = None if precision_path is None else _precision_of(results, Path(precision_path))
    report = compose_report(results, plan=plan, max_drop=max_drop, extra=extra, precision=precision, loss=loss)
    report = dataclasses.replace(report, sections=(*report.sections, *more))
    return ReportPaths(*write_page(report, Path(out_folder), "report"), report.gate)


def _precision_of(results: Results, path: Path) -> PrecisionDocument | None:
    """precision.json, if the slim artifact that it tells of is the one that was measured, in what ships."""
    document = read_precision(path)
    same = document.slim_manifest_sha256 == results.content.artifacts["slim"].manifest_sha256
    return document if same and document.ships == results.precisions["slim"] else None


def write_page(report: Report, folder: Path, name: str) -> tuple[Path, Path]:
    """The paths of a report's NAME.md and NAME.html in `folder`.

    Raises:
        RuntimeUnavailable: jinja2 or matplotlib, which the HTML page needs, is not installed.
    """
    markdown, html = folder / f"{name}.md", folder / f"{name}.html"
    page = render_html(report)
    write_text(markdown, render_markdown(report))
    write_text(html, page)
    return markdown, html


def render_html(report: Report) -> str:
    """The report as one HTML page: style and pictures inside, no script, nothing loaded from elsewhere.

    Raises:
        RuntimeUnavailable: jinja2, or matplotlib where there are pictures, is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise RuntimeUnavailable(f"the HTML report needs jinja2 ({error}); try: pip install jinja2") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE.name).render(report=report, kind=_kind, svgs=svgs)


def _shown(value: object) -> object:
    """What a page shows of a value: text without this machine's folders, whose units stay beside their numbers."""
    return BEFORE_UNIT.sub("\u00a0", without_folders(value)) if type(value) is str else value


def _kind(block: Block) -> str:
    return type(block).__name__.lower()


def render_markdown(report: Report) -> str:
    """The report as Markdown; pictures become the sentences that describe them."""
    lines = [f"# {_plain(report.title)}", "", _plain(report.subtitle), ""]
    verdict = "" if report.verdict is None else report.verdict.text
    for said in filter(None, (report.warning, verdict)):
        lines += [f"**{_plain(said)}**", ""]
    if report.cards:
        cards = tuple((card.what, card.figure, card.detail) for card in report.cards)
        lines += _markdown_table(Table("", ("", "figure", "detail"), cards))
    lines += [_plain(report.summary), ""] if report.summary else []
    for section in report.sections:
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            lines += _markdown_block(block)
    return "\n".join(lines).rstrip() + "\n"


def _markdown_block(block: Block) -> list[str]:
    if isinstance(block, Paragraph):
        return [("**" + _plain(block.text) + "**" if block.tone else _plain(block.text)), ""]
    if isinstance(block, Table):
        return _markdown_table(block)
    if isinstance(block, Picture):
        return [f"*{_plain(block.title)}: {_plain(block.description)}*", ""]
    assert isinstance(block, Log)
    return [*(f"    {line}" for line in without_folders(block.text).splitlines()), ""]


def _markdown_table(table: Table) -> list[str]:
    lines = [f"{_plain(table.caption)}:", ""] if table.caption else []
    lines.append(_markdown_row(table.header))
    lines.append("|" + " --- |" * len(table.header))
    lines += [_markdown_row(row) for row in table.rows]
    return [*lines, ""]


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell) for cell in cells) + " |"


def _plain(text: str) -> str:
    """`text` as Markdown shows it literally: no character of it starts a tag, a cell, emphasis or code."""
    text = without_folders(text)
    for mark in "\\`*_<>[]|":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())
