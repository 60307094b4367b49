"""What commands print when a measurement or a report is done."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from leanear.benchmarks.report.headline import headline_table
from leanear.benchmarks.report.report import ReportPaths
from leanear.benchmarks.results import Results
from leanear.runtimes.errors import GateMissed

if TYPE_CHECKING:
    pass


def as_typed() -> list[str]:
    return ["leanear", *sys.argv[1:]]


def print_headline(results: Results) -> None:
    table = Table(box=None, pad_edge=False)
    header, rows = headline_table(results)
    for place, heading in enumerate(header):
        table.add_column(heading, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


def print_report(paths: ReportPaths) -> None:
    """Where the report is; raises GateMissed where a gate was set and the loss is outside it."""
    click.echo(f"report: {paths.html}")
    click.echo(f"        {paths.markdown}")
    if paths.gate is None:
        return
    click.echo(f"gate:   {paths.gate.verdict}: {paths.gate.sentence}")
    if paths.gate.verdict != "PASS":
        raise GateMissed(f"gate: {paths.gate.verdict}: {paths.gate.sentence}")
