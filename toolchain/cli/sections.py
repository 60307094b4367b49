"""A command whose help groups its options, each of which an environment variable may set, too."""

import functools
import os
import shlex
from collections.abc import Mapping
from typing import Any

import click
from click.core import ParameterSource

Sections = Mapping[str, tuple[str, ...]]

OTHERS = "Options"
PRUNING: Sections = {  # headings, and the names of the parameters below them, in every command that has them
    "Model and data": (
        "data",
        "text_column",
        "label_column",
        "label_map",
        "ignore_unknown_labels",
        "task",
        "language",
        "calibration_clips",
        "eval_clips",
    ),
    "Goal (one of them; half of the parameters by default)": (
        "sparsity",
        "macs",
        "latency_ms",
        "speedup",
        "rtf",
        "max_drop",
        "clip_seconds",
        "tokens",
    ),
    "Method": ("prune", "recovery", "recipe", "seed"),
    "Target": ("target", "precision", "precision_drop", "no_fallback", "window", "word_timestamps"),
    "Devices": ("hosts", "hosts_file", "device_python", "device_folder"),
    "Measuring": ("budget_s", "sustained_s"),
    "Output": ("out", "keep_scores", "as_json", "quiet", "verbose"),
}
LISTENING: Sections = {
    "Model": ("model", "task", "language", "window", "runtime", "precision", "threads", "batch"),
    "Decoding": (
        "beam_size",
        "best_of",
        "temperatures",
        "condition",
        "prompt",
        "hotwords",
        "vad",
        "no_timestamps",
        "word_timestamps",
        "seed",
    ),
    "Standard input": ("raw", "rate", "channels"),
    "Output": ("output_formats", "out", "output_dir", "max_line_width", "max_line_count", "quiet", "verbose"),
}


class Command(click.Command):
    """`leanear NAME`; LEANEAR_NAME_OPTION in the environment stands for --option, in every command alike.

    sections: headings of its help, with the names of the parameters below them; None for a command of few options.
    """

    def __init__(self, *arguments: Any, sections: Sections | None = None, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.sections = sections
        for parameter in self.params:
            if parameter.nargs == 1:
                word = parameter.name if isinstance(parameter, click.Argument) else max(parameter.opts, key=len)
                words = ("leanear", self.name or "", word.strip("-"))
                parameter.envvar = "_".join(words).replace("-", "_").upper()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options section by section, those of no section last."""
        if self.sections is None:
            super().format_options(ctx, formatter)
            return
        heading_of = {name: heading for heading, names in self.sections.items() for name in names}
        rows: dict[str, list[tuple[str, str]]] = {heading: [] for heading in (*self.sections, OTHERS)}
        for parameter in self.get_params(ctx):
            record = None if isinstance(parameter, click.Argument) else parameter.get_help_record(ctx)
            if record is not None:
                rows[heading_of.get(parameter.name or "", OTHERS)].append(record)
        for heading, records in rows.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


command = functools.partial(click.command, cls=Command)


class Host(click.ParamType):
    """A device of --host; the environment variable names one, whatever it holds."""

    name = "host"

    def split_envvar_value(self, rv: str) -> list[str]:
        """The one host."""
        return [rv]


def set_by_environment(context: click.Context) -> list[tuple[click.Parameter, str, str]]:
    """The parameters that environment variables set, the variables, and their values."""
    found = []
    for parameter in context.command.params:
        variable = parameter.envvar
        if isinstance(variable, str) and parameter.name is not None:
            value = parameter.resolve_envvar_value(context)
            if value and context.get_parameter_source(parameter.name) is ParameterSource.ENVIRONMENT:
                found.append((parameter, variable, value))
    return found


def environment_sentence(context: click.Context) -> str:
    """What the environment sets, in one line, but for what was typed to make; "" where that is nothing."""
    typed = os.environ.get("LEANEAR_TYPED", "").split()
    found = [(variable, value) for _, variable, value in set_by_environment(context) if variable not in typed]
    said = [f"{variable}={shlex.quote(value)}" for variable, value in found]
    return f"set by the environment: {' '.join(said)}" if said else ""


def variable_of(error: click.ClickException) -> str:
    """Where a value that makes no sense comes from, as words, if that is the environment."""
    if isinstance(error, click.BadParameter) and error.ctx is not None and error.param is not None:
        for parameter, variable, _ in set_by_environment(error.ctx):
            if parameter is error.param:
                return f" (set by {variable})"
    return ""


def as_flags(context: click.Context) -> list[str]:
    """What the environment sets as it could be typed behind the rest."""
    flags: list[str] = []
    arguments: list[str] = []
    for parameter, _, value in set_by_environment(context):
        if isinstance(parameter, click.Argument):
            arguments += ["--", value]
        elif not isinstance(parameter, click.Option) or not parameter.is_flag:
            flags += [max(parameter.opts, key=len), value]
        elif context.params[str(parameter.name)]:
            flags.append(parameter.opts[0])
    return flags + arguments
