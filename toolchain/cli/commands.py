"""The `leanear` command: each sub-command reads its flags, calls one documented function, and prints what came back."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from leanear.benchmarks.formatting import NO_RATE_INTERVAL
from leanear.benchmarks.report.headline import headline_table
from leanear.benchmarks.report.report import ReportPaths
from leanear.benchmarks.results import Results
from leanear.cli.compare import compare
from leanear.cli.import_results import import_command
from leanear.cli.version import version_option
from leanear.cli.voice import narrated
from leanear.families.asked import Asked
from leanear.families.checkpoint import DEMO_MODEL
from leanear.progress import Narrator
from leanear.runtimes.audio.pipe_reader import STANDARD_INPUT, read_standard_input
from leanear.runtimes.audio.piped_audio import raw_audio
from leanear.runtimes.errors import BadInput, GateMissed, LeanearError
from leanear.runtimes.process.interrupts import (
    INTERRUPTED,
    TERMINATED,
    Terminated,
    end_by_sigterm,
    was_interrupted,
    was_terminated,
)
from leanear.runtimes.process.kept_work import forget_kept, what_is_kept
from leanear.runtimes.process.notes import no_notes
from leanear.runtimes.process.pipes import leave_closed_pipe
from leanear.runtimes.speech.decoding import TASKS
from leanear.runtimes.speech.encoder_windows import DEFAULT_WINDOW, check_window_choice
from leanear.runtimes.speech.prompts import hotwords_of
from leanear.runtimes.voice.speech_only import AUTO, CHOICES

if TYPE_CHECKING:
    from leanear.data.dataset import Data

MOST_THREADS = 1024
SCHEMES, SCORES, THRESHOLDS = ("channels", "heads"), ("fisher", "magnitude"), ("global", "local")
METHODS, RECOVERIES = ("rotated", "reference"), ("none", "lora", "full")
BASES = ("trained", "weights", "activations", "attention", "fisher")
LABELS = ("projected", "sampled", "observed")
POOLS, SITES = ("global", "by-kind"), ("all", "self-attention")
PRUNE = ("attention", "feed-forward", "all")
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "int8-bf16")
ROTATED_FLAGS = ("prune", "basis", "labels", "shots", "one_width_per_head", "pools")
REFERENCE_FLAGS = ("scheme", "score", "threshold", "schedule", "batch_size")
DATA_FLAGS = ("text_column", "label_column", "label_map", "ignore_unknown_labels")
SPEECH_FLAGS = ("pools", "sites")  # of models with more than one kind of attention
RECOVERY_MINUTES = 20.0
GOALS = ("sparsity", "macs", "latency_ms", "speedup", "rtf", "max_drop")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@version_option
def cli() -> None:
    """Prune the attention of an audio transformer (AST, Whisper), export it smaller, measure it, and report.

    \b
    Example:
      leanear deploy --target cpu
    """


cli.add_command(compare)
cli.add_command(import_command)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; its exit status. Errors that a user can act on become one line on standard error."""
    # Real AST settings have mel filters so narrow that a few are empty; transformers says so each time.
    warnings.filterwarnings("ignore", message="At least one mel filter")
    end_by_sigterm()
    forget_kept()
    stdout = sys.stdout
    try:
        cli.main(args=arguments, prog_name="leanear", standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 (what is no end of ours is raised again)
        return _status_of(_asked_for() or error, sys.stdout is stdout)
    ended = _asked_for()  # by a signal that a library swallowed
    return 0 if ended is None else _status_of(ended, True)


def _asked_for() -> BaseException | None:
    """The end that a signal asked for, whatever error has come of it."""
    if was_terminated():
        return Terminated(TERMINATED)
    return KeyboardInterrupt() if was_interrupted() else None


def _status_of(error: BaseException, own_stdout: bool) -> int:
    """The exit status that an end has, after its one line; own_stdout: click did not put another one in its place."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.ClickException):
        _complain(error.format_message())
        return 2
    if isinstance(error, LeanearError):
        _complain(str(error))
        return error.exit_status
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        _complain(f"interrupted{what_is_kept()}")
        return INTERRUPTED
    if isinstance(error, Terminated):
        _complain(f"terminated{what_is_kept()}")
        return TERMINATED
    if isinstance(error, SystemExit):  # click's own: shell completion, and a closed pipe
        return int(error.code or 0) if own_stdout else leave_closed_pipe()
    if isinstance(error, BrokenPipeError):
        return leave_closed_pipe()
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"{where}{error.strerror or error}")
        return 1
    raise error


def _complain(text: str) -> None:
    print(f"leanear: {' '.join(text.split())}", file=sys.stderr)


def _finite(_context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{parameter.opts[0]} is {value:g}; a finite number is wanted")
    return value


def _not_empty(_context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise click.BadParameter(f"{parameter.opts[0]} is empty")
    return value


def _options(*options: Any) -> Any:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def data_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--data with the flags that belong to it, of which the command gets one argument, `data`."""

    @functools.wraps(command)
    def with_data(*arguments: Any, data: str | None, **options: Any) -> Any:
        read_as = {name: options.pop(name) for name in DATA_FLAGS}
        return command(*arguments, data=_data(data, read_as), **options)

    return _options(
        click.option(
            "--data",
            metavar="DATA",
            callback=_not_empty,
            help="Folder of audio: for a classifier class sub-folders, or metadata.csv (or .jsonl) with"
            " file_name,label; for Whisper metadata.csv (or .jsonl) with file_name,text.",
        ),
        click.option(
            "--text-column",
            metavar="NAME",
            callback=_not_empty,
            help="Whisper: the transcripts' column.  [default: text, or else transcription, sentence or transcript]",
        ),
        click.option(
            "--label-column",
            metavar="NAME",
            callback=_not_empty,
            help="Classifier: the labels' column.  [default: label, or labels where clips may have several]",
        ),
        click.option(
            "--label-map",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Classifier: the model's names of the data's labels: CSV of the columns data,model, or a JSON object.",
        ),
        click.option(
            "--ignore-unknown-labels",
            is_flag=True,
            help="Classifier: leave out, and count, clips of labels that the model does not have.",
        ),
    )(with_data)


def _data(data: str | None, read_as: dict[str, Any]) -> Data | None:
    from leanear.data.dataset import DataFolder

    if data is not None:
        return DataFolder(Path(data), **read_as)
    given = next((name for name, value in read_as.items() if value not in (None, False)), None)
    if given is not None:
        raise BadInput(f"--{given.replace('_', '-')} is for --data, which is missing")
    return None


def asked_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--task and --language, of which the command gets one argument, `asked`."""

    @functools.wraps(command)
    def with_asked(*arguments: Any, task: str | None, language: str | None, **options: Any) -> Any:
        return command(*arguments, asked=Asked(task, language), **options)

    return _options(
        click.option(
            "--task",
            type=click.Choice(TASKS),
            help="Whisper: write down what is said, or translate it to English.  [default: the model's own]",
        ),
        click.option(
            "--language",
            callback=_not_empty,
            metavar="CODE",
            help="Whisper: a code such as en, or auto for what is heard.  [default: the model's own, or auto]",
        ),
    )(with_asked)


def _window(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    return None if value is None else check_window_choice(value)


def window_option(default: str) -> Callable[..., Any]:
    """--window, whose help says what it is by default."""
    return click.option(
        "--window",
        metavar="full|auto|SECONDS",
        callback=_window,
        help="Whisper: audio is heard in the model's full window, in the shortest of several that holds it (auto), or"
        f" in SECONDS; what a short window is not trusted with is heard again in full.  [default: {default}]",
    )


seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Seed of every random choice."
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, MOST_THREADS),
    default=lambda: len(os.sched_getaffinity(0)),
    show_default="all",
    help="Threads of one inference.",
)
sustained_option = click.option(
    "--sustained",
    "sustained_s",
    type=click.FloatRange(0.0, 86_400.0),
    callback=_finite,
    default=0.0,
    metavar="SECONDS",
    help="Then let each model work that long without a pause; first and last minute are compared.",
)
goal_options = _options(
    click.option(
        "--sparsity",
        type=float,
        callback=_finite,
        help="Goal: share to remove of the parameters of the blocks that --prune names.  [default: 0.5]",
    ),
    click.option(
        "--macs", type=float, callback=_finite, help="Goal: share of the model's multiply-accumulates to keep."
    ),
    click.option(
        "--latency-ms",
        type=float,
        callback=_finite,
        help="Goal: milliseconds of one inference on the target, timed here.",
    ),
    click.option(
        "--speedup",
        type=float,
        callback=_finite,
        help="Goal: dense over slim latency on the target, timed here, both in the precision and window that ship.",
    ),
    click.option(
        "--rtf", type=float, callback=_finite, help="Goal: seconds of computing per second of audio, timed here."
    ),
    click.option(
        "--clip-seconds",
        type=float,
        callback=_finite,
        help="Whisper, goals in time: one inference hears a clip so long.  [default: the model's window]",
    ),
    click.option(
        "--tokens",
        type=click.IntRange(min=2),
        help="Whisper, goals in time: and generates so many tokens.  [default: 200 a minute]",
    ),
    click.option(
        "--max-drop",
        type=click.FloatRange(min=0.0),
        callback=_finite,
        default=None,
        help="Goal where it is the only one: as small as possible while held-out calibration clips lose at most so many"
        " points of accuracy, or of mAP where clips have several labels (Whisper: gain so many of word error rate),"
        " found by search. In a report: the gate.",
    ),
)
recipe_options = _options(
    click.option(
        "--method",
        type=click.Choice(METHODS),
        default="rotated",
        show_default=True,
        help="Our own: a new basis per head, then any widths; or the variants of arXiv 2509.26207.",
    ),
    click.option(
        "--basis", type=click.Choice(BASES), help="rotated: what the new basis is made from.  [default: fisher]"
    ),
    click.option(
        "--labels",
        type=click.Choice(LABELS),
        help="rotated: whose gradients score: of random projections of the Fisher information, of labels sampled"
        " from the model, or of the clips' own labels.  [default: projected]",
    ),
    click.option("--shots", type=click.IntRange(1, 20), help="rotated: in how many parts, scored anew.  [default: 1]"),
    click.option(
        "--one-width-per-head/--two-widths-per-head",
        default=None,
        help="rotated: the query/key and the value/output width of a head are one, or two.  [default: as the target"
        " says]",
    ),
    click.option(
        "--prune",
        type=click.Choice(PRUNE),
        help="rotated: what becomes smaller, and what --sparsity is a share of: attention blocks, feed-forward blocks,"
        " or both in one budget.  [default: attention]",
    ),
    click.option(
        "--pools",
        type=click.Choice(POOLS),
        help="rotated, Whisper: one budget for all attention, or the same share of each kind (encoder self-, decoder"
        " self-, cross-attention).  [default: global]",
    ),
    click.option(
        "--sites",
        type=click.Choice(SITES),
        help="Whisper: prune all attention, or leave cross-attention alone, as the reference does.  [default: all]",
    ),
    click.option(
        "--compensate/--no-compensate",
        default=None,
        help="rotated: fit the output projections by least squares where that helps held-out clips.  [default:"
        " compensate]",
    ),
    click.option(
        "--scheme",
        type=click.Choice(SCHEMES),
        help="reference: remove channels of every head, or entire heads.  [default: channels]",
    ),
    click.option(
        "--score", type=click.Choice(SCORES), help="reference: what a channel is judged by.  [default: fisher]"
    ),
    click.option(
        "--threshold",
        type=click.Choice(THRESHOLDS),
        help="reference: compare channels across layers, or remove the same share in each.  [default: local]",
    ),
    click.option(
        "--schedule",
        type=click.Choice(("one-shot", "iterative")),
        help="reference: all at once, or 10 % of what remains at a time.  [default: one-shot]",
    ),
    click.option("--batch-size", type=click.IntRange(min=1), help="reference: clips per gradient.  [default: 16]"),
    click.option(
        "--recovery",
        type=click.Choice(RECOVERIES),
        default="none",
        show_default=True,
        help="Train afterwards: all weights, or low-rank updates that are merged. rotated: by distillation from the"
        " dense model; reference: lora on the labels after every step.",
    ),
    click.option(
        "--recovery-minutes",
        type=click.FloatRange(min=0.0, min_open=True),
        callback=_finite,
        help="rotated: recovery ends then at the latest, at the end of a pass over the clips.  [default: 20]",
    ),
    click.option(
        "--calibration-clips",
        type=click.IntRange(min=1),
        default=256,
        show_default=True,
        help="Clips to score, search and recover on, at most.",
    ),
)


@cli.command()
@click.argument("model", default=DEMO_MODEL, callback=_not_empty)
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
    callback=_finite,
    default=1.0,
    show_default=True,
    metavar="POINTS",
    help="The precision gate: points of accuracy or mAP (Whisper: of word error rate) that the slim model may lose to"
    " itself in fp32, on calibration clips of the gate's own.",
)
@click.option(
    "--no-fallback",
    "fallback",
    flag_value=False,
    default=True,
    help="Fail where the gate is missed, in place of the next slower precision.",
)
@window_option(f"{DEFAULT_WINDOW}; the dense model beside it, and all that is for TensorRT, has the full window")
@click.option("--word-timestamps", is_flag=True, help="Of a Whisper: the slim model can be asked for word timestamps.")
@data_option
@asked_option
@goal_options
@recipe_options
@click.option("--out", type=click.Path(path_type=Path), help="Deployment folder.  [default: deployments/MODEL/TARGET]")
@click.option(
    "--budget",
    "budget_s",
    type=click.FloatRange(min=1.0),
    callback=_finite,
    default=40.0,
    show_default=True,
    help="Seconds for latency samples.",
)
@sustained_option
@click.option(
    "--eval-clips",
    type=click.IntRange(min=1),
    help="Evaluate on so many clips at most, drawn at random.  [default: all of them]",
)
@click.option(
    "--host", "hosts", multiple=True, metavar="HOST", help="Measure on [user@]name over SSH; may be repeated."
)
@click.option(
    "--hosts",
    "hosts_file",
    type=click.Path(path_type=Path),
    help="A file of hosts, one a line: all at once, one report.",
)
@click.option(
    "--device-python", metavar="PATH", callback=_not_empty, help="The devices' Python.  [default: the target's]"
)
@click.option(
    "--device-folder",
    metavar="DIR",
    default="~/.leanear",
    show_default=True,
    callback=_not_empty,
    help="Where leanear keeps things on the devices.",
)
@seed_option
@narrated
@click.pass_obj
def deploy(
    narrator: Narrator,
    model: str,
    target: str,
    data: Data | None,
    out: Path | None,
    budget_s: float,
    **flags: Any,
) -> None:
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
    from leanear.deploy.delivering import commands, require_all
    from leanear.deploy.pipeline import deploy as deploy_model
    from leanear.deploy.precision_gate import PrecisionGate
    from leanear.prune.job import read_pruning
    from leanear.prune.notes import loss_warning

    job = _job(model, target, flags)
    deployment = deploy_model(
        model,
        data=data,
        job=job,
        out=out,
        max_drop=flags["max_drop"],
        budget_s=budget_s,
        devices=_devices(job.target, flags),
        sustained_s=flags["sustained_s"],
        gate=PrecisionGate(flags["precision_drop"], flags["fallback"]),
        window=flags["window"],
        eval_clips=flags["eval_clips"],
        word_timestamps=flags["word_timestamps"],
        command=_command(),
        narrator=narrator,
    )
    warning = loss_warning(read_pruning(deployment.folder / "checkpoint"))
    if warning is not None:
        click.echo(f"WARNING: {warning}")
    if deployment.results is not None:
        _print_headline(deployment.results)
    if deployment.bundle is not None and not deployment.outcomes:
        for line in commands(deployment.folder):
            click.echo(line)
    _print_report(deployment.report)
    require_all(deployment.outcomes)


def _devices(target: Any, flags: dict[str, Any]) -> Any:
    """The devices that flags name; None where the target is measured here."""
    from leanear.deploy.delivering import Devices
    from leanear.devices.hosts import read_hosts
    from leanear.devices.remote import RemoteOptions
    from leanear.devices.ssh import check_host, quoted_python

    named = tuple(check_host(host) for host in flags["hosts"])
    hosts = (*named, *(read_hosts(flags["hosts_file"]) if flags["hosts_file"] is not None else ()))
    if len(set(hosts)) < len(hosts):
        raise BadInput("--host: a device is named twice")
    if not hosts and not target.on_device:
        return None
    python = flags["device_python"] or target.python
    quoted_python(python)
    return Devices(hosts, RemoteOptions(python=python, folder=flags["device_folder"]))


def _job(model: str, target: str, flags: dict[str, Any]) -> Any:
    """How to prune, from the flags of one command; those of another method or family must not be there."""
    from leanear.prune.goal import choose_goal
    from leanear.prune.job import PruneJob
    from leanear.prune.widths import RotatedRecipe
    from leanear.recover.distillation import Distillation
    from leanear.reference.schedule import PruneRecipe
    from leanear.targets.target import read_target, require_timed_form, with_precision

    goal = choose_goal({kind: flags[kind] for kind in GOALS})
    device = with_precision(read_target(target), flags.get("precision") or flags.get("timed_precision"))
    if goal.needs_latency:
        require_timed_form(device, goal.flag)
    work = _work(goal, device, flags)
    reference = flags["method"] == "reference"
    own, others = (REFERENCE_FLAGS, ROTATED_FLAGS) if reference else (ROTATED_FLAGS, REFERENCE_FLAGS)
    for name in others:
        if flags[name] is not None:
            other = "rotated" if reference else "reference"
            raise BadInput(f"--{name.replace('_', '-')} belongs to --method {other}")
    _check_speech_flags(model, flags)
    given = {name: flags[name] for name in (*own, "sites") if flags[name] is not None}
    given |= {"calibration_clips": flags["calibration_clips"], "seed": flags["seed"]}
    if reference:
        if goal.kind != "sparsity":
            raise BadInput(
                f"--{goal.kind.replace('_', '-')} belongs to --method rotated; the reference has --sparsity alone"
            )
        if flags["recovery"] == "full" or flags["compensate"]:
            raise BadInput("--recovery full and --compensate belong to --method rotated")
        if flags["recovery_minutes"] is not None:
            raise BadInput("--recovery-minutes belongs to --method rotated")
        by_reference = PruneRecipe(sparsity=goal.value, recovery=flags["recovery"], **given)
        return PruneJob(goal, by_reference, device, asked=flags["asked"])
    given = {
        "one_width_per_head": device.one_width_per_head, "feed_forward_multiple": device.feed_forward_multiple, **given
    }  # fmt: skip
    multiples = (device.query_key_multiple, device.value_output_multiple)
    minutes = flags["recovery_minutes"]
    if flags["recovery"] == "none" and minutes is not None:
        raise BadInput("--recovery-minutes is of no use without --recovery full or lora")
    seconds = 60 * (RECOVERY_MINUTES if minutes is None else minutes)
    recovery = None if flags["recovery"] == "none" else Distillation(method=flags["recovery"], seconds=seconds)
    compensation = flags["compensate"] is not False
    recipe = RotatedRecipe(multiples=multiples, **given)
    return PruneJob(goal, recipe, device, compensation, recovery, flags["asked"], work)


def _work(goal: Any, device: Any, flags: dict[str, Any]) -> Any:
    """What one inference of a Whisper is for a goal in time; None without one, where no flag may speak of it."""
    from leanear.prune.speech_work import SpeechWork

    if not goal.needs_latency:
        for name in ("clip_seconds", "tokens", "timed_window", "timed_precision"):
            if flags.get(name) is not None:
                flag = name.removeprefix("timed_").replace("_", "-")
                raise BadInput(f"--{flag} belongs to --speedup, --latency-ms and --rtf")
        return None
    one_alone = device.graph_form == "tensorrt"
    window = flags.get("timed_window") or ("full" if one_alone else DEFAULT_WINDOW)
    return SpeechWork(flags["clip_seconds"], flags["tokens"], window)


def _check_speech_flags(model: str, flags: dict[str, Any]) -> None:
    """Raises BadInput where flags for several kinds of attention meet a model that has one."""
    from leanear.families.checkpoint import checkpoint_folder
    from leanear.families.tasks import task_of
    from leanear.runtimes.tasks import SPEECH_TASK

    given = [f"--{name}" for name in SPEECH_FLAGS if flags[name] is not None]
    if given and task_of(checkpoint_folder(model)) != SPEECH_TASK:
        raise BadInput(f"{given[0]} is for models with several kinds of attention, such as Whisper; {model} has one")


def _command() -> list[str]:
    return ["leanear", *sys.argv[1:]]


def _print_headline(results: Results) -> None:
    table = Table(box=None, pad_edge=False)
    header, rows = headline_table(results)
    for place, heading in enumerate(header):
        table.add_column(heading, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


def _print_report(paths: ReportPaths) -> None:
    """Where the report is; raises GateMissed where a gate was set and the loss is outside it."""
    click.echo(f"report: {paths.html}")
    click.echo(f"        {paths.markdown}")
    if paths.gate is None:
        return
    click.echo(f"gate:   {paths.gate.verdict}: {paths.gate.sentence}")
    if paths.gate.verdict != "PASS":
        raise GateMissed(f"gate: {paths.gate.verdict}: {paths.gate.sentence}")


@cli.command()
@click.argument("model", callback=_not_empty)
@data_option
@asked_option
@goal_options
@recipe_options
@click.option(
    "--target",
    default="cpu",
    show_default=True,
    help="For whose device: widths are multiples of what it likes, and milliseconds are its own.",
)
@click.option(
    "--precision",
    "timed_precision",
    type=click.Choice(PRECISIONS),
    help="Goals in time: what the model will compute in.  [default: the target's]",
)
@click.option(
    "--window",
    "timed_window",
    metavar="full|auto|SECONDS",
    callback=_window,
    help=f"Whisper, goals in time: the windows that its encoder will take.  [default: {DEFAULT_WINDOW}]",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the slim checkpoint.")
@click.option(
    "--keep-scores",
    "scores",
    type=click.Path(path_type=Path),
    help="rotated: folder in which the clips' scores stay: another goal with it needs no new pass over the clips.",
)
@seed_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@narrated
@click.pass_obj
def prune(
    narrator: Narrator,
    model: str,
    data: Data | None,
    target: str,
    out: Path,
    scores: Path | None,
    as_json: bool,
    **flags: Any,
) -> None:
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
    from leanear.benchmarks.formatting import PRUNED_PARTS
    from leanear.calibration.shards import processes
    from leanear.prune.job import prune_checkpoint
    from leanear.prune.notes import loss_warning, pruning_notes

    if flags["max_drop"] is not None and any(flags[kind] is not None for kind in GOALS if kind != "max_drop"):
        raise BadInput("--max-drop beside another goal is a gate, which only `leanear deploy` can judge")
    with processes() as rank, no_notes() if rank != 0 else contextlib.nullcontext():
        if rank != 0:
            narrator.hush()
        job = _job(model, target, flags)
        if scores is not None and flags["method"] == "reference":
            raise BadInput("--keep-scores belongs to --method rotated")
        result = prune_checkpoint(model, data=data, job=job, out=out, narrator=narrator, scores=scores)
    if rank != 0:
        return
    warning = loss_warning(result["pruning"])
    if warning is not None:
        click.echo(f"WARNING: {warning}", err=as_json)
    if as_json:
        click.echo(json.dumps({**result, "warning": warning}, allow_nan=False))
        return
    removed = f"{100 * result['sparsity']:.1f} % of the {PRUNED_PARTS[result['prune']]} parameters removed"
    click.echo(
        f"{result['out']}: {removed}; {result['parameters_dense']:,} -> {result['parameters']:,} parameters in all"
    )
    checks = (result["pruning"] or {}).get("latency_checks")
    medians = {"dense": checks[-1]["measured_dense_ms"], "slim": checks[-1]["measured_ms"]} if checks else {}
    for note in pruning_notes(result["pruning"], medians):
        click.echo(note)


@cli.command()
@click.argument("model", callback=_not_empty)
@data_option
@asked_option
@click.option("--target", help="Predict milliseconds too, from this target's blocks, timed here.")
@click.option(
    "--prune",
    type=click.Choice(PRUNE),
    default="attention",
    show_default=True,
    help="What would become smaller.",
)
@click.option(
    "--calibration-clips",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Clips to score and to measure on, at most.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the curve and the scores.")
@seed_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@narrated
@click.pass_obj
def explore(
    narrator: Narrator,
    model: str,
    data: Data | None,
    asked: Asked,
    target: str | None,
    prune: Any,
    calibration_clips: int,
    out: Path,
    seed: int,
    as_json: bool,
) -> None:
    """Show what pruning MODEL to any size would lose, before anything is pruned.

    The clips are scored once; losses are estimated from 10 to 90 % and measured at a few sizes on held-out clips.

    \b
    Examples:
      leanear explore demo-ast --out explored/
      leanear explore checkpoint/ --data clips/ --target cpu --out explored/
    """
    from leanear.prune import exploring
    from leanear.prune.widths import RotatedRecipe
    from leanear.targets.target import read_target

    device = read_target(target or "cpu")
    multiples = (device.query_key_multiple, device.value_output_multiple)
    recipe = RotatedRecipe(
        multiples=multiples,
        one_width_per_head=device.one_width_per_head,
        prune=prune,
        feed_forward_multiple=device.feed_forward_multiple,
        calibration_clips=calibration_clips,
        seed=seed,
    )
    document = exploring.explore(
        model,
        data=data,
        asked=asked,
        recipe=recipe,
        target=device,
        milliseconds=target is not None,
        out=out,
        narrator=narrator,
    )
    if as_json:
        click.echo(json.dumps(document, allow_nan=False))
        return
    header, rows = exploring.table_rows(document)
    table = Table(box=None, pad_edge=False)
    for heading in header:
        table.add_column(heading, justify="left" if heading == "removed" else "right")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
    click.echo(exploring.summary(document))
    click.echo(f"page:    {out / 'explore.html'}")
    click.echo(f"next:    {document['command']}")


@cli.command()
@click.argument("model", callback=_not_empty)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the artifact.")
@click.option(
    "--form",
    type=click.Choice(("portable", "onnxruntime", "openvino", "tensorrt")),
    default="portable",
    show_default=True,
    help="Plain ONNX operators for any runtime, or the form that a runtime is fastest with.",
)
@click.option(
    "--precision",
    type=click.Choice(("fp32", "fp16", "int8")),
    default="fp32",
    show_default=True,
    help="int8: products in 8 bits, in ranges taken from --data, proved on golden clips of it; fp16: for --form "
    "tensorrt, products in half precision.",
)
@window_option(f"{DEFAULT_WINDOW}; full for --form tensorrt")
@click.option("--word-timestamps", is_flag=True, help="Of a Whisper: its decoder gives what word times are taken from.")
@data_option
@asked_option
@seed_option
@narrated
@click.pass_obj
def export(
    narrator: Narrator,
    model: str,
    out: Path,
    form: str,
    precision: str,
    data: Data | None,
    asked: Asked,
    seed: int,
    window: str | None,
    word_timestamps: bool,
) -> None:
    """Export MODEL (dense or slim) to ONNX, waveform in, and prove that it computes the same.

    A classifier is one graph, from waveform to logits; a Whisper is two, encoder (front end included) and decoder, with
    its vocabulary and all that decoding has to know.

    The proof runs clips of DATA (or, without it, made-up sounds) through the checkpoint and the graph.

    \b
    Example:
      leanear export slim/ --form onnxruntime --out artifact/
    """
    from leanear.deploy.exporting import export_checkpoint

    parity = export_checkpoint(
        model,
        out=out,
        form=form,
        data=data,
        seed=seed,
        narrator=narrator,
        precision=precision,
        asked=asked,
        window=window,
        word_timestamps=word_timestamps,
    )
    click.echo(f"{out}: {parity.graph_bytes / 1e6:.2f} MB; {parity.sentence}")


@cli.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="A second artifact (the dense one), measured in turn with the first.",
)
@click.option("--runtime", type=click.Choice(("onnxruntime", "openvino")), default="onnxruntime", show_default=True)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="bf16 is offered by OpenVINO alone, int8 is for graphs of 8-bit products; --against is measured in it too if"
    " its graphs are of it.  [default: what the graphs are of]",
)
@window_option("ARTIFACT's own; --against is always heard in its own")
@threads_option
@click.option(
    "--budget",
    "budget_s",
    type=click.FloatRange(min=1.0),
    callback=_finite,
    default=40.0,
    show_default=True,
    help="Seconds for latency samples.",
)
@sustained_option
@data_option
@asked_option
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("results.json"), show_default=True, help="Results file."
)
@seed_option
@narrated
@click.pass_obj
def bench(
    narrator: Narrator,
    artifact: Path,
    against: Path | None,
    runtime: str,
    precision: str | None,
    window: str | None,
    threads: int,
    budget_s: float,
    sustained_s: float,
    data: Data | None,
    asked: Asked,
    out: Path,
    seed: int,
) -> None:
    """Measure ARTIFACT here: latency in fresh processes, memory in its own pass, accuracy or word errors of DATA.

    Of speech: the stages of a window of a fixed number of tokens, memory from window to window, and transcripts.

    \b
    Example:
      leanear bench deployments/demo-ast/cpu/slim --against deployments/demo-ast/cpu/dense --out results.json
    """
    from leanear.deploy.measuring import bench_artifacts

    results = bench_artifacts(
        artifact,
        against=against,
        runtime=runtime,
        precision=precision,
        threads=threads,
        budget_s=budget_s,
        sustained_s=sustained_s,
        window=window,
        data=data,
        asked=asked,
        out=out,
        seed=seed,
        command=_command(),
        narrator=narrator,
    )
    _print_headline(results)
    click.echo(f"results: {out}")


@cli.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for report.md and report.html.  [default: beside RESULTS]"
)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0.0),
    callback=_finite,
    default=None,
    help="Gate: points of accuracy, or mAP, that the pruned model may lose, or of word error rate that it may add.",
)
@click.option(
    "--comparison",
    type=click.Path(path_type=Path),
    help="A comparison.json of `leanear compare-methods`, to be shown in the report too.",
)
@narrated
def report(results: Path, out: Path | None, max_drop: float | None, comparison: Path | None) -> None:
    """Write the report of a deployment folder or a results file again.

    Word errors of transcripts that a device measured are counted here, and kept in the results file.

    \b
    Example:
      leanear report deployments/demo-ast/cpu
    """
    from leanear.deploy.measuring import write_deployment_report

    paths = write_deployment_report(results, out=out, max_drop=max_drop, comparison=comparison)
    _print_report(paths)


@cli.command(name="eval")
@click.argument("model_or_artifact", callback=_not_empty)
@data_option
@asked_option
@click.option("--split", type=click.Choice(("evaluation", "calibration")), default="evaluation", show_default=True)
@click.option(
    "--runtime",
    type=click.Choice(("onnxruntime", "openvino")),
    default="onnxruntime",
    show_default=True,
    help="For an artifact.",
)
@click.option("--precision", type=click.Choice(PRECISIONS), help="For an artifact.  [default: what its graphs are of]")
@threads_option
@click.option(
    "--calibration-clips",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="How many clips are kept out of the evaluation where DATA has no split folders.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Whisper: so many clips are decoded together, a row each; the words are those of one by one.",
)
@seed_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@narrated
@click.pass_obj
def evaluate(narrator: Narrator, model_or_artifact: str, data: Data | None, as_json: bool, **options: Any) -> None:
    """Accuracy, mAP, or word error rate of a checkpoint (in torch) or an artifact (on its runtime) on clips of DATA.

    mAP, with the mean area under the ROC curve and d', is what a model gets whose clips may have several labels.

    Speech is decoded greedily, without fallback, and compared after Whisper's own text normaliser.

    \b
    Examples:
      leanear eval demo-ast --json
      leanear eval demo-whisper
      leanear eval deployments/demo-ast/cpu/slim --data clips/ --json
    """
    from leanear.evaluate.evaluation import evaluate as evaluate_model

    result = evaluate_model(model_or_artifact, data=data, narrator=narrator, **options)
    if as_json:
        click.echo(json.dumps(result, allow_nan=False))
        return
    if "word_error_rate" in result:
        interval = result["word_error_rate_interval_95"]
        spread = NO_RATE_INTERVAL
        if interval is not None:
            spread = f"95 % interval {100 * interval[0]:.2f} to {100 * interval[1]:.2f}"
        kinds = ", ".join(
            f"{result[key]:,} {said}"
            for key, said in (("substitutions", "replaced"), ("deletions", "left out"), ("insertions", "put in"))
        )
        click.echo(
            f"word error rate {100 * result['word_error_rate']:.2f} % of {result['reference_words']:,} words in "
            f"{result['clips']} clips ({spread}): {kinds}"
        )
        click.echo(f"metric: {result['metric']}")
        return
    if "mean_ap" in result:
        click.echo(_ranking_text(result))
        return
    low, high = result["accuracy_interval_95"]
    click.echo(
        f"{100 * result['accuracy']:.2f} % of {result['clips']} clips right "
        f"(95 % interval {100 * low:.2f} to {100 * high:.2f}), cross-entropy {result['cross_entropy']:.4f}"
    )


def _ranking_text(result: dict[str, Any]) -> str:
    """What `eval` prints of a model whose clips may have several labels."""
    figures = []
    for key, name, scale, unit in (
        ("mean_ap", "mAP", 100, " %"),
        ("mean_auc", "mean area under ROC", 100, " %"),
        ("d_prime", "d'", 1, ""),
    ):
        ends = result[f"{key}_interval_95"]
        if result[key] is None:
            figures.append(f"{name} not finite")
            continue
        low, high = ("not finite" if end is None else f"{scale * end:.2f}" for end in ends)
        spread = NO_RATE_INTERVAL if ends == [None, None] else f"95 % interval {low} to {high}"
        figures.append(f"{name} {scale * result[key]:.2f}{unit} ({spread})")
    skipped = result["labels_skipped"]
    left_out = f" ({skipped} more that no clip has are left out)" if skipped else ""
    return (
        f"{', '.join(figures)}; means over {result['labels']} labels{left_out} on {result['clips']} clips,"
        f" cross-entropy {result['cross_entropy']:.4f} nats"
    )


@cli.command()
@click.argument("clips", nargs=-1, required=True, metavar="CLIP...", type=click.Path(path_type=Path))
@click.option(
    "--model",
    "model",
    default=DEMO_MODEL,
    show_default=True,
    help="A checkpoint folder, a Hub id, or an artifact folder.",
)
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many labels.")
@click.option(
    "--runtime",
    type=click.Choice(("onnxruntime", "openvino")),
    default="onnxruntime",
    show_default=True,
    help="For an artifact.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the labels as JSON.")
@narrated
def classify(clips: tuple[Path, ...], model: str, top: int, runtime: str, as_json: bool) -> None:
    """The labels that a model gives each CLIP, the likeliest first; CLIP is an audio file, or a folder of them.

    Of a model whose clips may have several labels, each label has a probability of its own: they need not add up to 1.

    \b
    Examples:
      leanear classify clip.wav
      leanear classify recordings/ clip.wav --model deployments/demo-ast/cpu/slim --json
    """
    from leanear.evaluate.evaluation import classify as classify_clips

    answers = classify_clips(clips, model, top=top, runtime=runtime)
    one = len(clips) == 1 and not clips[0].is_dir()
    if as_json:
        told = [
            [{"label": label, "probability": probability} for label, probability in ranked] for _, ranked in answers
        ]
        files = [{"file": str(clip), "labels": labels} for (clip, _), labels in zip(answers, told, strict=True)]
        click.echo(json.dumps(told[0] if one else files))
        return
    for clip, ranked in answers:
        if not one:
            click.echo(str(clip))
        for label, probability in ranked:
            click.echo(f"{100 * probability:6.2f} %  {label}")


@cli.command()
@click.argument("audio", nargs=-1, required=True, metavar="AUDIO...", type=click.Path(path_type=Path))
@click.option(
    "--model",
    default="demo-whisper",
    show_default=True,
    callback=_not_empty,
    help="A checkpoint folder, a Hub id, or an artifact folder.",
)
@asked_option
@click.option("--no-timestamps", is_flag=True, help="Decode without timestamps: windows, not sentences, have times.")
@click.option("--beams", type=click.IntRange(1, 100), default=1, show_default=True, help="1 is greedy.")
@click.option("--best-of", type=click.IntRange(1, 100), default=5, show_default=True, help="Samples of a second try.")
@click.option(
    "--temperatures",
    default="0,0.2,0.4,0.6,0.8,1",
    show_default=True,
    help="Tried in turn until a window is neither repetitive nor unlikely.",
)
@click.option("--condition", is_flag=True, help="Show the decoder what it said in the window before.")
@click.option("--prompt", default="", help="Text that the decoder is shown as if it had been said before.")
@click.option("--hotwords", metavar="A,B", help="Names and rare words that it is shown before every window.")
@click.option(
    "--vad",
    type=click.Choice(CHOICES),
    default=AUTO,
    show_default=True,
    help="Hear the stretches with speech alone; auto: of audio over 30 s. How much that is, is always said.",
)
@window_option(f"an artifact's own; {DEFAULT_WINDOW} for a checkpoint")
@click.option("--word-timestamps", is_flag=True, help="Each word has times of its own.")
@click.option("--max-line-width", type=int, help="Letters of a line of subtitles, which is cut between words.")
@click.option("--max-line-count", type=int, help="Lines of a subtitle of such lines.  [default: 2]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with everything known of each segment.")
@click.option("--srt", is_flag=True, help="SubRip subtitles.")
@click.option("--vtt", is_flag=True, help="WebVTT subtitles.")
@click.option("--words", is_flag=True, help="The text alone.")
@click.option("--out", type=click.Path(path_type=Path), help="Write there, whole or not at all.  [default: print]")
@click.option("--raw", is_flag=True, help="Standard input is PCM of 16 bits (little-endian) without a header.")
@click.option("--rate", type=int, metavar="HZ", help="Of --raw.  [default: 16000]")
@click.option("--channels", type=int, help="Of --raw.  [default: 1]")
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path),
    help="Write a file per recording there, in every form that is asked for (.txt, .json, .srt, .vtt).",
)
@click.option("--runtime", type=click.Choice(("onnxruntime", "openvino")), default="onnxruntime", show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), help="For an artifact.  [default: what its graphs are of]")
@threads_option
@seed_option
@narrated
@click.pass_obj
def transcribe(
    narrator: Narrator,
    audio: tuple[Path, ...],
    model: str,
    asked: Asked,
    no_timestamps: bool,
    condition: bool,
    hotwords: str | None,
    vad: str,
    window: str | None,
    temperatures: str,
    word_timestamps: bool,
    max_line_width: int | None,
    max_line_count: int | None,
    as_json: bool,
    srt: bool,
    vtt: bool,
    words: bool,
    raw: bool,
    rate: int | None,
    channels: int | None,
    out: Path | None,
    output_dir: Path | None,
    runtime: str,
    precision: str | None,
    threads: int,
    **flags: Any,
) -> None:
    """The words of AUDIO with their times, as they are found.

    AUDIO is WAV, FLAC, OGG, MP3 or AIFF of any length and sample rate, mono or stereo, a folder of such files, or - for
    standard input, which is WAV or raw PCM and is heard while it comes, window by window (--window).

    \b
    Examples:
      leanear transcribe talk.flac
      leanear transcribe talk.flac --model deployments/demo-whisper/cpu/slim --srt --out talk.srt
      leanear transcribe talk.flac --word-timestamps --vtt --max-line-width 42
      leanear transcribe talks/ interview.wav --srt --json --output-dir subtitles
      arecord -f S16_LE -r 16000 -c 1 | leanear transcribe -
    """
    is_piped = STANDARD_INPUT in audio
    raw_format = raw_audio(raw, is_piped, rate, channels)
    reader = read_standard_input() if is_piped else None
    from leanear.evaluate.transcribing import Piped, speech_listener, transcribe_files
    from leanear.runtimes.speech.cues import chosen_lines
    from leanear.runtimes.speech.decoding import DecodeOptions

    wanted = {"json": as_json, "srt": srt, "vtt": vtt, "words": words}
    forms = [name for name, is_wanted in wanted.items() if is_wanted] or ["plain"]
    lines = chosen_lines(forms, word_timestamps, max_line_width, max_line_count)
    options = DecodeOptions(
        timestamps=not no_timestamps,
        condition_on_previous=condition,
        hotwords=hotwords_of(hotwords),
        temperatures=_temperatures(temperatures),
        task=asked.task,
        language=asked.language,
        **flags,
    )
    piped = None if reader is None else Piped(reader, raw_format)
    opened = functools.partial(speech_listener, model, runtime, precision, threads, window, options, word_timestamps)
    transcribe_files(
        audio,
        forms,
        opened,
        options,
        narrator,
        out=out,
        output_dir=output_dir,
        piped=piped,
        vad=vad,
        word_timestamps=word_timestamps,
        lines=lines,
    )


def _temperatures(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise BadInput(f"--temperatures is {text!r}; numbers with commas between are wanted") from None


@cli.command()
@click.argument("names", nargs=-1, metavar="[TARGET]...")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@narrated
def targets(names: tuple[str, ...], as_json: bool) -> None:
    """The targets that `deploy` knows, or those named, and what this machine can do for each.

    TARGET is a name or the path of a .toml file.

    \b
    Examples:
      leanear targets
      leanear targets rtx own.toml --json
    """
    from leanear.targets.readiness import readiness
    from leanear.targets.target import read_target, target_names

    found = [read_target(name) for name in names or target_names()]
    if as_json:
        told = [{**readiness(target).as_json(), "description": target.description} for target in found]
        click.echo(json.dumps(told))
        return
    for target in found:
        click.echo(f"{target.name:12} {target.description}; {target.precision}; {readiness(target).text}")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@narrated
def doctor(as_json: bool) -> None:
    """What this machine has for leanear, what it lacks, and the command that would install it.

    \b
    Example:
      leanear doctor
    """
    from leanear.targets.doctor import examine

    findings = examine()
    if as_json:
        click.echo(json.dumps([{"name": f.name, "ok": f.ok, "text": f.text} for f in findings]))
    else:
        for finding in findings:
            click.echo(f"{'ok     ' if finding.ok else 'missing'} {finding.name:14} {finding.text}")
    if not all(finding.ok for finding in findings):
        raise click.exceptions.Exit(1)


@cli.command(name="compare-methods")
@click.argument("model", default=DEMO_MODEL, callback=_not_empty)
@data_option
@asked_option
@click.option(
    "--sparsity",
    "sparsities",
    default="0.3,0.5,0.7,0.8,0.9",
    show_default=True,
    help="Shares to remove of the parameters of what is pruned, with commas between.",
)
@click.option(
    "--prune",
    type=click.Choice(PRUNE),
    default="attention",
    show_default=True,
    help="What becomes smaller; other methods that know more than attention are few.",
)
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
@click.option(
    "--calibration-clips",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Clips that every seed draws, at most.",
)
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
    from leanear.studies.comparing import ComparisonRequest
    from leanear.studies.comparing import compare_methods as compare

    request = ComparisonRequest(
        sparsities=_numbers("--sparsity", sparsities),
        recovery_sparsities=_numbers("--recovery", recovery_sparsities),
        **options,
    )
    paths = compare(model, data=data, request=request, out=out, command=_command(), narrator=narrator)
    click.echo(paths.markdown.read_text(encoding="utf-8"))
    click.echo(f"comparison: {paths.html}")


def _numbers(flag: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise BadInput(f"{flag} is {text!r}; numbers with commas between are wanted") from None
    for value in values:
        if not 0.0 < value < 1.0:
            raise BadInput(f"{flag} has {value:g}; each must lie between 0 and 1")
    return values
