"""`python -m leanear.studies.references`: docs/cli.md from every `--help`, docs/python.md from public docstrings."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import click

import leanear
from leanear.cli.commands import cli

DOCS = Path(__file__).resolve().parents[2] / "docs"
WIDTH = 110


def cli_reference() -> str:
    """Markdown: the help of `leanear` and of every command."""
    parts = ["# The command line\n\nMade from `--help`; every command has it.\n"]
    settings = {**cli.context_settings, "max_content_width": WIDTH, "terminal_width": WIDTH}
    whole = click.Context(cli, info_name="leanear", **settings)
    parts.append(f"```\n{cli.get_help(whole).rstrip()}\n```\n")
    for name, command in sorted(cli.commands.items()):
        context = click.Context(command, info_name=name, parent=whole)
        parts.append(f"## leanear {name}\n\n```\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(parts)


def python_reference() -> str:
    """Markdown: signatures and docstrings of what `import leanear` offers."""
    parts = [f"# Python\n\nMade from the docstrings.\n\n```\n{inspect.getdoc(leanear)}\n```\n"]
    for name in sorted(leanear.__all__):
        thing = getattr(leanear, name)
        parts.append(f"## leanear.{name}\n\n{_told(name, thing)}")
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            members = [(key, value) for key, value in vars(thing).items() if not key.startswith("_")]
            parts += [f"### {name}.{key}\n\n{_told(key, value)}" for key, value in members if _is_told(value)]
    return "\n".join(parts)


def _is_told(value: Any) -> bool:
    return isinstance(value, property) or inspect.isfunction(value)


def _told(name: str, thing: Any) -> str:
    of_property = isinstance(thing, property)
    signature = "" if of_property or _is_error(thing) else str(inspect.signature(thing, eval_str=False))
    return f"```\n{name}{signature.replace(chr(39), '')}\n\n{inspect.getdoc(thing)}\n```\n"


def _is_error(thing: Any) -> bool:
    return inspect.isclass(thing) and issubclass(thing, Exception)


def main() -> None:
    """Write both pages."""
    (DOCS / "cli.md").write_text(cli_reference(), encoding="utf-8")
    (DOCS / "python.md").write_text(python_reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
