"""What commands print when a measurement or a report is done."""

import sys

import click

from leanear.benchmarks.report.report import ReportPaths
from leanear.cli.sections import as_flags
from leanear.runtimes.errors import GateMissed


def as_typed() -> list[str]:
    """The command under way; what the environment set is in it as flags."""
    return ["leanear", *sys.argv[1:], *as_flags(click.get_current_context())]


def print_report(paths: ReportPaths) -> None:
    """Where the report is; raises GateMissed where a gate was set and the loss is outside it."""
    click.echo(f"report: {paths.html}")
    click.echo(f"        {paths.markdown}")
    if paths.gate is None:
        return
    click.echo(f"gate:   {paths.gate.verdict}: {paths.gate.sentence}")
    if paths.gate.verdict != "PASS":
        raise GateMissed(f"gate: {paths.gate.verdict}: {paths.gate.sentence}")
