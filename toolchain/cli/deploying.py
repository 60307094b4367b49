"""`leanear deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from leanear.benchmarks.report.headline import headline_text
from leanear.cli.early import check_early
from leanear.cli.job import prune_job
from leanear.cli.options import (
    asked_option,
    budget_option,
    data_option,
    finite,
    goal_options,
    not_empty,
    recipe_options,
    seed_option,
    sustained_option,
    window_option,
)
from leanear.cli.printing import as_typed, print_report
from leanear.cli.sections import PRUNING, Host, command
from leanear.cli.voice import narrated
from leanear.families.checkpoint import DEMO_MODEL
from leanear.progress import Narrator
from leanear.runtimes.choose import PRECISIONS
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import LOCK_FILE
from leanear.runtimes.speech.encoder_windows import DEFAULT_WINDOW

if TYPE_CHECKING:
    from leanear.data.dataset import Data

MEASURED_AS_ASKED = ("max_drop", "budget_s", "sustained_s", "window", "eval_clips", "word_timestamps")  # of `Request`


@command(sections=PRUNING)
@click.argument("model", default=DEMO_MODEL, callback=not_empty)
@click.option(
    "--target",
    default="cpu",
    show_default=True,
    help="A target's name (see `leanear targets`) or the path of a .toml file.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="What the slim model computes in, if its gate lets it; the dense one beside it stays in fp32 (TensorRT: fp16)."
    "  [default: the target's]",
)
@click.option(
    "--precision-drop",
    type=click.FloatRange(min=0.0),
    callback=finite,
    default=1.0,
    show_default=True,
    metavar="POINTS",
    help="The precision gate: points of accuracy or mAP (Whisper: of word error rate) that the slim model may lose to"
    " itself in fp32, on calibration clips of the gate's own.",
)
@click.option(
    "--no-fallback", is_flag=True, help="Fail where the gate is missed, in place of the next slower precision."
)
@window_option(f"{DEFAULT_WINDOW}; the dense model beside it, and all that is for TensorRT, has the full window")
@click.option("--word-timestamps", is_flag=True, help="Of a Whisper: the slim model can be asked for word timestamps.")
@data_option
@asked_option
@goal_options
@recipe_options
@click.option("--out", type=click.Path(path_type=Path), help="Deployment folder.  [default: deployments/MODEL/TARGET]")
@budget_option
@sustained_option
@click.option(
    "--eval-clips",
    type=click.IntRange(min=1),
    help="Evaluate on so many clips at most, drawn at random.  [default: all of them]",
)
@click.option(
    "--host",
    "hosts",
    type=Host(),
    multiple=True,
    metavar="HOST",
    help="Measure on [user@]name over SSH; may be repeated.",
)
@click.option(
    "--hosts",
    "hosts_file",
    type=click.Path(path_type=Path),
    help="A file of hosts, one a line: all at once, one report.",
)
@click.option(
    "--device-python", metavar="PATH", callback=not_empty, help="The devices' Python.  [default: the target's]"
)
@click.option(
    "--device-folder",
    metavar="DIR",
    default="~/.leanear",
    show_default=True,
    callback=not_empty,
    help="Where leanear keeps things on the devices.",
)
@seed_option
@narrated
@click.pass_obj
def deploy(narrator: Narrator, model: str, target: str, data: Data | None, out: Path | None, **flags: Any) -> None:
    """Prune MODEL, export it dense and slim, measure both here or on devices, and write the report.

    MODEL is a checkpoint folder or a Hub id of an Audio Spectrogram Transformer or a Whisper, or demo-ast (the default)
    or demo-whisper, which bring their own audio.
    Interrupted and run again, it goes on where it stopped.

    \b
    Examples:
      leanear deploy --target openvino
      leanear deploy --target openvino --speedup 1.3
      leanear deploy demo-whisper --target cpu --precision int8
      leanear deploy --target raspberrypi --host pi@raspberrypi.local
      leanear deploy MIT/ast-finetuned-speech-commands-v2 --data clips/ --sparsity 0.5 --max-drop 1
    """
    reads, window = ("calibration", "evaluation"), flags["window"]
    check_early(model, flags["asked"], data, window=window, out=out, marker=LOCK_FILE, reads=reads, drawn=flags)
    hosts = _hosts(flags)
    job = prune_job(model, target, flags, ships=True)
    from leanear.deploy.delivering import commands, require_all
    from leanear.deploy.pipeline import Request
    from leanear.deploy.pipeline import deploy as deploy_model
    from leanear.deploy.precision_gate import PrecisionGate
    from leanear.prune.document import read_pruning
    from leanear.prune.notes import loss_warning

    request = Request(
        model=model,
        data=data,
        job=job,
        out=out,
        command=as_typed(),
        devices=_devices(job.target, hosts, flags),
        gate=PrecisionGate(flags["precision_drop"], not flags["no_fallback"]),
        **{name: flags[name] for name in MEASURED_AS_ASKED},
    )
    deployment = deploy_model(request, narrator)
    warning = loss_warning(read_pruning(deployment.folder / "checkpoint"))
    if warning is not None:
        click.echo(f"WARNING: {warning}")
    if deployment.results is not None:
        click.echo(headline_text(deployment.results, request.max_drop))
    if deployment.bundle is not None and not deployment.outcomes:
        for line in commands(deployment.folder):
            click.echo(line)
    print_report(deployment.report)
    require_all(deployment.outcomes)


def _hosts(flags: dict[str, Any]) -> tuple[str, ...]:
    """The hosts that flags name, some of which have an address."""
    from leanear.devices.hosts import check_names, read_hosts
    from leanear.devices.ssh import check_host, quoted_python

    if flags["device_python"] is not None:
        quoted_python(flags["device_python"])
    named = tuple(check_host(host) for host in flags["hosts"])
    hosts = (*named, *(read_hosts(flags["hosts_file"]) if flags["hosts_file"] is not None else ()))
    if len(set(hosts)) < len(hosts):
        raise BadInput("--host: a device is named twice")
    check_names(hosts)
    return hosts


def _devices(target: Any, hosts: tuple[str, ...], flags: dict[str, Any]) -> Any:
    """The devices, and how they are reached; None where the target is measured here."""
    from leanear.deploy.delivering import Devices
    from leanear.devices.remote import RemoteOptions
    from leanear.devices.ssh import quoted_python

    if not hosts and not target.on_device:
        return None
    python = flags["device_python"] or target.python
    quoted_python(python)
    return Devices(hosts, RemoteOptions(python=python, folder=flags["device_folder"]))
