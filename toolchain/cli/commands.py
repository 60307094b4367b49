"""The `leanear` command: each sub-command reads its flags, calls one documented function, and prints what came back."""

import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, version

import click

from leanear.cli.about import doctor, targets
from leanear.cli.compare import compare
from leanear.cli.deploying import deploy
from leanear.cli.listening import classify, transcribe
from leanear.cli.measuring import bench, evaluate, export, import_command, report
from leanear.cli.pruning import explore, prune
from leanear.cli.sections import variable_of
from leanear.runtimes.errors import LeanearError
from leanear.runtimes.process.interrupts import (
    INTERRUPTED,
    TERMINATED,
    Terminated,
    end_by_sigterm,
    forget_kept,
    was_interrupted,
    was_terminated,
    what_is_kept,
)
from leanear.runtimes.process.notes import leave_closed_pipe

STANDS_ON = ("torch", "transformers", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")


def versions() -> str:
    """What --version prints: leanear's own and those of what it stands on, where it is installed."""
    found = []
    for name in STANDS_ON:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"leanear {version('leanear')} ({', '.join(found)})"


def print_versions(context: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    """The callback of the option."""
    if asked and not context.resilient_parsing:
        click.echo(versions())
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=print_versions,
    help="Show leanear's version and those of the runtimes.",
)
def cli() -> None:
    """Prune an audio transformer (AST, Whisper), export it smaller, measure it, and report.

    Every option may be set by an environment variable, LEANEAR_COMMAND_OPTION, such as LEANEAR_DEPLOY_TARGET.

    \b
    Example:
      leanear deploy --target cpu
    """


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; its exit status. Errors that a user can act on become one line on standard error."""
    end_by_sigterm()
    forget_kept()
    stdout = sys.stdout
    try:
        status = cli.main(args=arguments, prog_name="leanear", standalone_mode=False)  # click gives that of an Exit
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 (what is no end of ours is raised again)
        return _status_of(_asked_for() or error, sys.stdout is stdout)
    ended = _asked_for()  # by a signal that a library swallowed
    return (status or 0) if ended is None else _status_of(ended, True)


def _asked_for() -> BaseException | None:
    """The end that a signal asked for, whatever error has come of it."""
    if was_terminated():
        return Terminated(TERMINATED)
    return KeyboardInterrupt() if was_interrupted() else None


def _status_of(error: BaseException, own_stdout: bool) -> int:
    """The exit status that an end has, after its one line; own_stdout: click did not put another one in its place."""
    if isinstance(error, click.NoSuchOption) and error.option_name == "--target":
        error = click.UsageError("No such option '--target'; what runs an artifact has --runtime and --precision")
    if isinstance(error, click.ClickException):
        _complain(f"{error.format_message().rstrip('.')}{variable_of(error)}")
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


for _each in (
    bench,
    classify,
    compare,
    deploy,
    doctor,
    evaluate,
    explore,
    export,
    import_command,
    prune,
    report,
    targets,
    transcribe,
):
    cli.add_command(_each)
if importlib.util.find_spec("leanear.studies"):  # what measures leanear itself is in a source tree alone
    from leanear.studies.command import compare_methods

    cli.add_command(compare_methods)
