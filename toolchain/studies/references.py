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
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.transcript import Segment
from leanear.runtimes.speech.words import Word
from leanear.studies.file_reference import file_reference

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
PYTHON_PREFACE = """# Python

Made from the docstrings. What a file holds is an object here: `Model.plan`, `Model.pruning` and a results file have
the keys of [the files](files.md), so `slim.pruning.loss.finished.divergence` is the measured loss in nats, and
`measured.results.document["latency"]` the raw samples. `Files` (`Artifact.files`, `Session.files`) is
`leanear.runtimes.artifact.Artifact`: `folder`, `task`, `labels`, `manifest`. `Prune` is "attention", "feed-forward"
or "all", `Recovery` "full" or "lora"; `PathLike` is a text or an `os.PathLike`. `Model.asked` is the task and the
language that `load` was given.
"""
EVALUATION_KEYS = """## What evaluate gives back

A dictionary, as `leanear eval --json` prints it.

- Always: `schema` ("leanear-evaluation-1"), `model`, `kind` ("checkpoint" or "artifact"), `task`, `runtime`,
  `precision`, `data`, `split`, `clips` (how many), `silent_clips` (those of them that are all zeros).
- One label a clip: `accuracy` (a share), `accuracy_interval_95` (Wilson's), `correct`, `cross_entropy` (nats a clip).
- Several labels a clip: `mean_ap`, `mean_auc`, `d_prime`, each with `_interval_95` ([several
  labels](several-labels.md)), `labels` that count, `labels_skipped` (no clip has them), `draws` of the bootstrap,
  `cross_entropy`.
- Whisper: `word_error_rate` (a share), `word_error_rate_interval_95` (bootstrap over clips; `None` where no draw
  differs), `metric` (the normaliser), `reference_words`, `substitutions`, `deletions`, `insertions`, `windows` decoded,
  `second_tries` (windows heard again), `loops` (transcripts that repeat themselves), `batch`, `seconds`
  (time taken), `audio_s`, `asked` (task and language).
"""
GIVEN = (Segment, Word, DecodeOptions)  # what transcribe gives and takes


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
    parts = [f"{PYTHON_PREFACE}\n```\n{inspect.getdoc(leanear)}\n```\n"]
    for name in sorted(leanear.__all__):
        thing = getattr(leanear, name)
        parts.append(f"## leanear.{name}\n\n{_told(name, thing)}")
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            named = [(key, value) for key, value in vars(thing).items() if not key.startswith("_")]
            members = [each for each in named if isinstance(each[1], property) or inspect.isfunction(each[1])]
            parts += [f"### {name}.{key}\n\n{_told(key, value)}" for key, value in members]
    parts += [f"## {given.__module__}.{given.__name__}\n\n{_told(given.__name__, given)}" for given in GIVEN]
    return "\n".join([*parts, EVALUATION_KEYS])


def _told(name: str, thing: Any) -> str:
    has_none = isinstance(thing, property) or (inspect.isclass(thing) and issubclass(thing, Exception))
    signature = "" if has_none else str(inspect.signature(thing, eval_str=False))
    return f"```\n{name}{signature.replace(chr(39), '')}\n\n{inspect.getdoc(thing)}\n```\n"


def main() -> None:
    """Write the pages."""
    made = {"cli": cli_reference, "files": file_reference, "python": python_reference, "recipe": recipe_reference}
    for name, make in made.items():
        (DOCS / f"{name}.md").write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
