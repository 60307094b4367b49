"""`leanear compare-methods`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from leanear.cli.early import check_early
from leanear.cli.options import asked_option, data_option, not_empty, numbers, recipe_option, seed_option
from leanear.cli.printing import as_typed
from leanear.cli.sections import command
from leanear.cli.voice import narrated
from leanear.families.checkpoint import DEMO_MODEL
from leanear.progress import Narrator
from leanear.runtimes.errors import BadInput

if TYPE_CHECKING:
    from leanear.data.dataset import Data


@command(name="compare-methods")
@click.argument("model", default=DEMO_MODEL, callback=not_empty)
@data_option
@asked_option
@click.option(
    "--sparsity",
    "sparsities",
    default="0.3,0.5,0.7,0.8,0.9",
    show_default=True,
    help="Shares to remove of the parameters of what is pruned, with commas between.",
)
@recipe_option("prune")
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Calibration seeds of the default and what it is measured against; the other methods have one.",
)
@click.option("--claim-only", is_flag=True, help="Leave the other methods out.")
@click.option(
    "--recovery",
    "recovery_sparsities",
    is_flag=False,
    flag_value="0.7,0.8",
    default="",
    help="Train as well, at these sparsities.  [without a value: 0.7,0.8]",
)
@click.option("--target", help="Measure latency too, on this target (see `leanear targets`).")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("comparison"),
    show_default=True,
    help="Folder; finished rows are kept in it.",
)
@recipe_option("calibration_clips")
@seed_option
@narrated
@click.pass_obj
def compare_methods(
    narrator: Narrator,
    model: str,
    data: Data | None,
    sparsities: str,
    recovery_sparsities: str,
    out: Path,
    **options: Any,
) -> None:
    """Prune MODEL by every method side by side and tabulate what each costs, with intervals and pictures.

    Interrupted and run again, it goes on where it stopped.

    \b
    Examples:
      leanear compare-methods demo-ast --out comparison/
      leanear compare-methods demo-ast --recovery --target cpu
    """
    check_early(model, options["asked"], data, reads=("calibration", "evaluation"), drawn=options)
    from leanear.studies.comparing import ComparisonRequest
    from leanear.studies.comparing import compare_methods as compare

    request = ComparisonRequest(
        sparsities=_numbers("--sparsity", sparsities),
        recovery_sparsities=_numbers("--recovery", recovery_sparsities),
        **options,
    )
    paths = compare(model, data=data, request=request, out=out, command=as_typed(), narrator=narrator)
    click.echo(paths.markdown.read_text(encoding="utf-8"))
    click.echo(f"comparison: {paths.html}")


def _numbers(flag: str, text: str) -> tuple[float, ...]:
    values = numbers(flag, text)
    for value in values:
        if not 0.0 < value < 1.0:
            raise BadInput(f"{flag} has {value:g}; each must lie between 0 and 1")
    return values
