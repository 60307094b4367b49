"""Options that several commands share."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from leanear.families.asked import Asked
from leanear.prune.recipe import Recipe, read_recipe, settings
from leanear.runtimes.choose import cpu_runtimes
from leanear.runtimes.errors import BadInput
from leanear.runtimes.sessions import MOST_THREADS
from leanear.runtimes.speech.encoder_windows import check_window_choice
from leanear.runtimes.tasks import SPOKEN_TASKS

if TYPE_CHECKING:
    from leanear.data.dataset import Data


DATA_FLAGS = ("text_column", "label_column", "label_map", "ignore_unknown_labels")
GOALS = ("sparsity", "macs", "latency_ms", "speedup", "rtf", "max_drop")


def finite(_context: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value:g} is not a finite number")
    return value


def not_empty(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise click.BadParameter("it is empty")
    return value


def numbers(flag: str, text: str) -> tuple[float, ...]:
    """The numbers in a text with commas between them; raises BadInput where there is anything else."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise BadInput(f"{flag} is {text!r}; expected comma-separated numbers") from None


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
            callback=not_empty,
            help="Folder of audio: for a classifier class sub-folders, or metadata.csv (or .jsonl) with"
            " file_name,label; for Whisper metadata.csv (or .jsonl) with file_name,text.",
        ),
        click.option(
            "--text-column",
            metavar="NAME",
            callback=not_empty,
            help="Whisper: the transcripts' column.  [default: text, or else transcription, sentence or transcript]",
        ),
        click.option(
            "--label-column",
            metavar="NAME",
            callback=not_empty,
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
            type=click.Choice(SPOKEN_TASKS),
            help="Whisper: write down what is said, or translate it to English.  [default: the model's own]",
        ),
        click.option(
            "--language",
            callback=not_empty,
            metavar="CODE",
            help="Whisper: a code such as en, or auto for what is heard.  [default: the model's own, or auto]",
        ),
    )(with_asked)


def window(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    return None if value is None else check_window_choice(value)


def window_option(default: str) -> Callable[..., Any]:
    """--window, whose help says what it is by default."""
    return click.option(
        "--window",
        metavar="full|auto|SECONDS",
        callback=window,
        help="Whisper: audio is heard in the model's full window, in the shortest of several that holds it (auto), or"
        f" in SECONDS; what a short window is not trusted with is heard again in full.  [default: {default}]",
    )


seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Random seed."
)

threads_option = click.option(
    "--threads",
    type=click.IntRange(1, MOST_THREADS),
    default=lambda: len(os.sched_getaffinity(0)),
    show_default="all",
    help="Threads of one inference.",
)

budget_option = click.option(
    "--budget",
    "budget_s",
    type=click.FloatRange(min=1.0),
    callback=finite,
    default=40.0,
    show_default=True,
    help="Seconds for latency samples.",
)

runtime_option = click.option(
    "--runtime", type=click.Choice(cpu_runtimes()), default="onnxruntime", show_default=True, help="For an artifact."
)

sustained_option = click.option(
    "--sustained",
    "sustained_s",
    type=click.FloatRange(0.0, 86_400.0),
    callback=finite,
    default=0.0,
    metavar="SECONDS",
    help="Then let each model work that long without a pause; first and last minute are compared.",
)


def _number(flag: str, about: str) -> Any:
    return click.option(flag, type=float, callback=finite, help=about)


goal_options = _options(
    _number("--sparsity", "Share to remove of the parameters of the blocks that --prune names.  [default: 0.5]"),
    _number("--macs", "Share of the model's multiply-accumulates to keep."),
    _number("--latency-ms", "Milliseconds of one inference on the target, timed here."),
    _number(
        "--speedup", "Dense over slim latency on the target, timed here, both in the precision and window that ship."
    ),
    _number("--rtf", "Seconds of computing per second of audio, timed here."),
    _number("--clip-seconds", "Whisper, goals in time: seconds of audio per inference.  [default: the model's window]"),
    click.option(
        "--tokens",
        type=click.IntRange(min=2),
        help="Whisper, goals in time: tokens that it generates.  [default: 200 a minute]",
    ),
    click.option(
        "--max-drop",
        type=click.FloatRange(min=0.0),
        callback=finite,
        default=None,
        help="As small as possible while held-out calibration clips lose at most this many points of accuracy, or of"
        " mAP where clips have several labels (Whisper: gain this many of word error rate), found by search. Together"
        " with another goal: the report's gate.",
    ),
)


def recipe_option(name: str) -> Any:
    """The option of a field of `Recipe`, with the field's choices, limits, default and meaning."""
    setting = settings(Recipe)[name]
    kind = click.Choice(setting.choices) if setting.choices else click.IntRange(min=int(setting.least or 0))
    flag = "--" + name.replace("_", "-")
    return click.option(flag, type=kind, default=setting.default, show_default=True, help=setting.about)


recipe_options = _options(
    recipe_option("prune"),
    recipe_option("recovery"),
    recipe_option("calibration_clips"),
    click.option(
        "--recipe",
        type=click.Path(path_type=Path),
        metavar="FILE",
        callback=lambda _context, _parameter, path: Recipe() if path is None else read_recipe(path),
        help="How the method works, as TOML: basis, pruning rounds, the reference method, training, and more (see"
        " docs/recipe.md).  [default: what measured best]",
    ),
)
