"""`leanear import`: flags, and what came home."""

from __future__ import annotations

from pathlib import Path

import click

from leanear.cli.options import not_empty
from leanear.cli.printing import print_report
from leanear.cli.sections import command
from leanear.cli.voice import narrated


@command(name="import")
@click.argument("results", nargs=-1, required=True, metavar="RESULTS...", type=click.Path(path_type=Path))
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="The deployment folder.  [default: the one in deployments/ whose model was measured]",
)
@click.option(
    "--name", metavar="NAME", callback=not_empty, help="What to call the device.  [default: as its results name it]"
)
@click.option("--max-drop", type=click.FloatRange(min=0.0), default=None, help="The report's gate, in points.")
@narrated
def import_command(results: tuple[Path, ...], into: Path | None, name: str | None, max_drop: float | None) -> None:
    """Take in RESULTS that `leanear.pyz bench` left on a device, files or folders, and write the report of all devices.

    \b
    Examples:
      leanear import results/
      leanear import usb-stick/results/ --into deployments/demo-ast/raspberrypi --name kitchen
    """
    from leanear.deploy.bringing_home import import_results
    from leanear.deploy.delivering import require_all

    home = import_results(results, into=into, name=name, max_drop=max_drop)
    for each in home.outcomes:
        click.echo(f"{each.host}: {'measured' if each.status == 'ok' else each.status}, into {home.folder}")
    print_report(home.report)
    require_all(home.outcomes)
