"""`leanear prune` and `leanear explore`."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from leanear.cli.early import check_early
from leanear.cli.job import prune_job
from leanear.cli.options import (
    asked_option,
    data_option,
    goal_options,
    not_empty,
    recipe_option,
    recipe_options,
    seed_option,
    window,
)
from leanear.cli.sections import PRUNING, command
from leanear.cli.voice import narrated
from leanear.families.asked import Asked
from leanear.outputs import check_explorable
from leanear.progress import Narrator
from leanear.prune.recipe import REFERENCE
from leanear.runtimes import records
from leanear.runtimes.choose import PRECISIONS
from leanear.runtimes.errors import BadInput
from leanear.runtimes.process.notes import no_notes
from leanear.runtimes.speech.encoder_windows import DEFAULT_WINDOW
from leanear.targets.target import read_target

if TYPE_CHECKING:
    from leanear.data.dataset import Data


@command(sections=PRUNING)
@click.argument("model", callback=not_empty)
@data_option
@asked_option
@goal_options
@recipe_options
@click.option(
    "--target",
    default="cpu",
    show_default=True,
    help="Target whose width multiples and latency are used (see `leanear targets`), or a .toml file.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Goals in time: what the model will compute in.  [default: the target's]",
)
@click.option(
    "--window",
    metavar="full|auto|SECONDS",
    callback=window,
    help=f"Whisper, goals in time: the windows that its encoder will take.  [default: {DEFAULT_WINDOW}]",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the slim checkpoint.")
@click.option(
    "--keep-scores",
    type=click.Path(path_type=Path),
    help="Folder in which the clips' scores stay: another goal with it needs no new pass over the clips.",
)
@seed_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@narrated
@click.pass_obj
def prune(narrator: Narrator, model: str, data: Data | None, target: str, out: Path, **flags: Any) -> None:
    """Prune MODEL to a smaller checkpoint that transformers opens: its attention, feed-forward blocks, or both.

    Started by torchrun, the processes share the scoring and the training, to the same plan.

    \b
    Examples:
      leanear prune demo-ast --sparsity 0.7 --out slim/
      leanear prune demo-ast --prune all --macs 0.5 --keep-scores scores/ --out slim/
      leanear prune demo-ast --max-drop 0.5 --recovery full --out slim/
      leanear prune demo-whisper --speedup 1.2 --clip-seconds 4 --tokens 12 --out slim/
      .venv/bin/torchrun --nproc-per-node 2 --no-python .venv/bin/leanear prune demo-ast --out slim/
    """
    keep_scores, as_json = flags["keep_scores"], flags["as_json"]
    if keep_scores is not None and flags["recipe"].method == REFERENCE:
        raise BadInput("--keep-scores is of method rotated, and the method is reference")
    reads, window = ("calibration",), flags["window"]
    check_early(model, flags["asked"], data, window=window, out=out, marker="plan.json", reads=reads, drawn=flags)
    job = prune_job(model, target, flags, ships=False)
    from leanear.benchmarks.formatting import PRUNED_PARTS
    from leanear.calibration.shards import processes
    from leanear.prune.notes import loss_warning, pruning_notes
    from leanear.prune.pruning import prune_checkpoint

    with processes() as rank, no_notes() if rank != 0 else contextlib.nullcontext():
        if rank != 0:
            narrator.hush()
        result = prune_checkpoint(model, data=data, job=job, out=out, narrator=narrator, scores=keep_scores)
    if rank != 0:
        return
    warning = loss_warning(result["pruning"])
    if warning is not None:
        click.echo(f"WARNING: {warning}", err=as_json)
    if as_json:
        click.echo(json.dumps(records.as_json({**result, "warning": warning}), allow_nan=False))
        return
    removed = f"{100 * result['sparsity']:.1f} % of the {PRUNED_PARTS[result['prune']]} parameters removed"
    click.echo(
        f"{result['out']}: {removed}; {result['parameters_dense']:,} -> {result['parameters']:,} parameters in all"
    )
    checks = result["pruning"].latency_checks
    medians = {"dense": checks[-1].measured_dense_ms, "slim": checks[-1].measured_ms} if checks else {}
    for note in pruning_notes(result["pruning"], medians):
        click.echo(note)


@command(sections=PRUNING)
@click.argument("model", callback=not_empty)
@data_option
@asked_option
@click.option("--target", help="Also predict latency on this target, from its blocks timed here.")
@recipe_option("prune")
@recipe_option("calibration_clips")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the curve and the scores.")
@seed_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@narrated
@click.pass_obj
def explore(narrator: Narrator, model: str, data: Data | None, asked: Asked, out: Path, **recipe: Any) -> None:
    """Show what pruning MODEL to any size would lose, before anything is pruned.

    The clips are scored once; losses are estimated from 10 to 90 % and measured at a few sizes on held-out clips.

    \b
    Examples:
      leanear explore demo-ast --out explored/
      leanear explore checkpoint/ --data clips/ --target cpu --out explored/
    """
    target, as_json = recipe.pop("target"), recipe.pop("as_json")
    check_explorable(out)
    check_early(model, asked, data, reads=("calibration",), drawn=recipe)
    device = read_target(target or "cpu")
    from leanear.prune import exploring
    from leanear.prune.widths import RotatedRecipe

    rotated = RotatedRecipe(
        multiples=(device.query_key_multiple, device.value_output_multiple),
        one_width_per_head=device.one_width_per_head,
        feed_forward_multiple=device.feed_forward_multiple,
        **recipe,
    )
    told: dict[str, Any] = {"milliseconds": target is not None, "out": out, "narrator": narrator}
    found = exploring.explore(
        model, data=data, asked=asked, recipe=rotated, target=device, named=target or "cpu", **told
    )
    if as_json:
        click.echo(json.dumps(records.as_json(found), allow_nan=False))
        return
    header, rows = exploring.table_rows(found)
    table = Table(box=None, pad_edge=False)
    for heading in header:
        table.add_column(heading, justify="left" if heading == "removed" else "right")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
    click.echo(exploring.summary(found))
    click.echo(f"page:    {out / 'explore.html'}")
    click.echo(f"next:    {found.command}")
