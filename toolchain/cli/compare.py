"""`leanear compare`: flags, and a comparison as a table, JSON or a page."""

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from leanear.benchmarks.compare.compare import Bounds, Comparison, document_of
from leanear.benchmarks.compare.compare import compare as compare_results
from leanear.benchmarks.compare.compare_page import (
    HEADER,
    comparison_page,
    row_cells,
    said_of,
    side_sentence,
    verdict_sentence,
)
from leanear.benchmarks.report.report import render_html, render_markdown
from leanear.benchmarks.results import ROLES
from leanear.cli.options import finite
from leanear.cli.sections import command
from leanear.cli.voice import narrated
from leanear.outputs import check_file
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import write_text

RENDERERS = {".md": render_markdown, ".html": render_html}
BOUNDS = ("max_slowdown", "max_drop", "max_memory", "over_dense", "max_size")  # in the order of `Bounds`


def _bound(flag: str, default: float, text: str) -> Any:
    return click.option(
        flag, type=click.FloatRange(min=0.0), callback=finite, default=default, show_default=True, help=text
    )


@command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--side", type=click.Choice(ROLES), default="slim", show_default=True, help="Which model of each is compared."
)
@_bound("--max-slowdown", 5.0, "Per cent of latency; exceeded where the whole 95% interval of B / A is beyond it.")
@_bound(
    "--max-drop",
    0.5,
    "Points of accuracy or mAP lost, or of word error rate added; exceeded where the change is beyond it and no noise.",
)
@_bound("--max-memory", 10.0, "Per cent of peak memory, of which there is one measurement on each side.")
@click.option(
    "--max-size",
    type=click.FloatRange(min=0.0),
    callback=finite,
    default=None,
    metavar="PERCENT",
    help="Per cent by which the graph files may grow.  [default: they may be of any size]",
)
@click.option(
    "--over-dense",
    is_flag=True,
    help="Judge latency in units of the dense model's of the same run, for a machine that is not always equally fast;"
    " the dense graph has to be the same in both.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Fail as well (status 5) where something is not measured on one side or for a bound, or timings are not to be"
    " trusted.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write a page as well: FILE.md or FILE.html.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
@narrated
def compare(a: Path, b: Path, side: str, strict: bool, out: Path | None, as_json: bool, **flags: Any) -> None:
    """What changed from A (before) to B (after), what of it is noise, and whether B is worse beyond a bound.

    A and B are results files, or deployment folders with one results file each; of one device or of two. A verdict is
    better, worse or noise: where the 95% interval holds no change, or latency differs by less than 2 %, start-up by
    less than 10 %, memory by less than 2 %. Answers are compared clip by clip where the clips are the same.

    Exit status 8 where B is worse beyond a bound.

    \b
    Examples:
      leanear compare deployments/before deployments/after
      leanear compare old.json new.json --max-slowdown 3 --max-drop 0.2 --json
      leanear compare deployments/pi/results/pi-4/*.json deployments/pi/results/pi-5/*.json --out pis.html
    """
    if out is not None:
        if out.suffix not in RENDERERS:
            raise BadInput(f"--out {out}: a name that ends in .md or .html is wanted")
        check_file(out)
    comparison = compare_results(a, b, side, Bounds(*(flags[name] for name in BOUNDS)))
    if out is not None:
        write_text(out, RENDERERS[out.suffix](comparison_page(comparison, strict)))
    if as_json:
        click.echo(json.dumps(document_of(comparison, strict), indent=1, allow_nan=False))
    else:
        _print(comparison, strict)
    failure = comparison.failure(strict)
    if failure is not None:
        raise failure


def _print(comparison: Comparison, strict: bool) -> None:
    for side in comparison.sides:
        click.echo(side_sentence(side))
    table = Table(box=None, pad_edge=False)
    table.add_column(HEADER[0])
    for heading in HEADER[1:]:
        table.add_column(heading, justify="right")
    for row in comparison.rows:
        table.add_row(*row_cells(row, comparison))
    Console(highlight=False, markup=False).print(table)
    for sentence in said_of(comparison):
        click.echo(sentence)
    if comparison.failure(strict) is None:
        click.echo(verdict_sentence(comparison, strict))
