"""--quiet and --verbose, which every command has: how much it says while it works."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import click

from leanear.cli.sections import environment_sentence
from leanear.progress import Narrator
from leanear.runtimes.errors import BadInput
from leanear.runtimes.process.notes import no_notes, note


def narrated(command: Callable[..., Any]) -> Callable[..., Any]:
    """-q and -v; the command finds the narrator that they choose in its context, as `click.pass_obj` gives it.

    While the command works that narrator speaks of it, so that no command is silent for long.
    """

    @click.option("-q", "--quiet", is_flag=True, help="Print only results and errors.")
    @click.option("-v", "--verbose", is_flag=True, help="Print every progress report on its own line.")
    @functools.wraps(command)
    def with_narrator(*arguments: Any, quiet: bool, verbose: bool, **options: Any) -> Any:
        if quiet and verbose:
            raise BadInput("--quiet and --verbose are opposites; choose one")
        context = click.get_current_context()
        context.obj = Narrator("quiet" if quiet else "verbose" if verbose else "normal")
        with context.obj.whole(context.command_path), no_notes() if quiet else contextlib.nullcontext():
            if said := environment_sentence(context):
                note(said)
            return command(*arguments, **options)

    return with_narrator
