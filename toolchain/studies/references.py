"""`python -m leanear.studies.references`: the pages of docs/ that are made from help, recipe and docstrings."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import click

import leanear
from leanear.cli.commands import cli
from leanear.prune.recipe import REFERENCE, ROTATED, TRAINING, Recipe, Setting, Training, settings

DOCS = Path(__file__).resolve().parents[2] / "docs"
WIDTH = 110
CLI_PREFACE = """# The command line

Made from `--help`; every command has it. Environment variables, shell completion, exit statuses and what is printed:
[running leanear](running.md).
"""
RECIPE_PREFACE = """# The recipe file

Made from the dataclass that checks it. `--recipe FILE` of `leanear deploy` and `leanear prune` names a TOML file that
says how the method works, where the defaults, which measured best, are not what you want:

```toml
shots = 3
basis = "activations"

[distillation]
minutes = 5
```

Every key may be left out. An unknown key, a wrong type or a value out of its limits is refused at once, by file and
key. The report quotes what the file sets, and `plan.json` records every value that the plan depends on. What changes
more often is an option: `--sparsity` and the other goals, `--prune`, `--recovery`, `--calibration-clips`, `--seed`.
"""


def cli_reference() -> str:
    """Markdown: the help of `leanear` and of every command."""
    parts = [CLI_PREFACE]
    settings = {**cli.context_settings, "max_content_width": WIDTH, "terminal_width": WIDTH}
    whole = click.Context(cli, info_name="leanear", **settings)
    parts.append(f"```\n{cli.get_help(whole).rstrip()}\n```\n")
    for name, command in sorted(cli.commands.items()):
        context = click.Context(command, info_name=name, parent=whole)
        parts.append(f"## leanear {name}\n\n```\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(parts)


def recipe_reference() -> str:
    """Markdown: every key of a recipe file, its default and its meaning."""
    keys = [each for each in settings(Recipe).values() if not each.option]
    tables = (
        ("Both methods", [each for each in keys if not each.of]),
        (f'method = "{ROTATED}"', [each for each in keys if each.of == ROTATED]),
        (f"[{TRAINING}], with `--recovery full` or `lora`", list(settings(Training).values())),
        (f'method = "{REFERENCE}"', [each for each in keys if each.of == REFERENCE]),
    )
    return "\n".join([RECIPE_PREFACE, *(_key_table(title, rows) for title, rows in tables)])


def _key_table(title: str, keys: list[Setting]) -> str:
    rows = [f"| `{each.name}` | {_default(each)} | {each.wanted} | {each.about} |" for each in keys]
    header = ["| key | default | value | meaning |", "| --- | --- | --- | --- |"]
    return "\n".join([f"## {title}", "", *header, *rows, ""])


def _default(setting: Setting) -> str:
    return setting.unset if setting.default is None else f"`{json.dumps(setting.default)}`"


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
    """Write the pages."""
    for name, page in (("cli", cli_reference()), ("python", python_reference()), ("recipe", recipe_reference())):
        (DOCS / f"{name}.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
