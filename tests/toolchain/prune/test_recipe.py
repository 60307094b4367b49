"""Recipe files: what is refused, with file and key, and that a recipe's defaults and limits are those of the method."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from leanear.prune.recipe import Recipe, Setting, Training, read_recipe, settings
from leanear.prune.widths import RotatedRecipe
from leanear.recover.distillation_options import Distillation
from leanear.reference.schedule import PruneRecipe
from leanear.runtimes.errors import BadInput

EVERY_KEY = """
sites = "self-attention"
basis = "weights"
labels = "sampled"
shots = 3
one_width_per_head = true
pools = "by-kind"
compensate = false

[distillation]
minutes = 5
learning_rate = 1e-4
epochs = 2
max_steps = 9
batch_size = 8
rank = 4
alpha = 8
temperature = 1.5
label_weight = 0.5
hidden_weight = 0
patience = 1
warm_up = 0.1
frequency_warp = 0.1
time_warp = 0.2
bfloat16 = false
"""
OF_THE_REFERENCE = """
method = "reference"
scheme = "heads"
score = "magnitude"
threshold = "global"
schedule = "iterative"
step = 0.2
max_steps = 5
batch_size = 4
"""


def written(folder: Path, text: str) -> Path:
    (folder / "recipe.toml").write_text(text)
    return folder / "recipe.toml"


@pytest.mark.parametrize("text", [EVERY_KEY, OF_THE_REFERENCE])
def test_a_recipe_holds_what_its_file_says(tmp_path, text):
    recipe = read_recipe(written(tmp_path, text))
    document = tomllib.loads(text)
    training = document.pop("distillation", {})
    assert {name: getattr(recipe, name) for name in document} == document
    assert {name: getattr(recipe.distillation, name) for name in training} == training
    assert recipe != Recipe()
    for name in (*document, *(f"distillation.{key}" for key in training)):
        assert f"{name} = " in recipe.given


def test_a_recipe_may_begin_with_the_mark_that_editors_write(tmp_path):
    (tmp_path / "recipe.toml").write_text(EVERY_KEY, encoding="utf-8-sig")
    assert read_recipe(tmp_path / "recipe.toml") == read_recipe(written(tmp_path, EVERY_KEY))


def test_the_texts_above_hold_every_key(tmp_path):
    first, second = tomllib.loads(EVERY_KEY), tomllib.loads(OF_THE_REFERENCE)
    assert set(first.pop("distillation")) == set(settings(Training))
    keys = {name for name, setting in settings(Recipe).items() if not setting.option}
    assert {*first, *second} == keys


def test_nothing_said_is_the_default(tmp_path):
    assert read_recipe(written(tmp_path, "# nothing\n")) == Recipe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shot = 2", "unknown key 'shot'; did you mean 'shots'?"),
        ("colour = 2", "unknown key 'colour'; docs/recipe.md lists the keys"),
        ("given = 'x'", "unknown key 'given'"),
        ("[distillation]\nminute = 2", "unknown key 'distillation.minute'"),
        ("[distilation]\nminutes = 2", "unknown key 'distilation'; did you mean 'distillation'?"),
        ("distillation = 2", "distillation is 2; the table [distillation] is wanted"),
        ('shots = "2"', 'shots is "2"; a whole number from 1 to 20 is wanted'),
        ("shots = 2.0", "shots is 2.0; a whole number"),
        ("shots = true", "shots is true; a whole number"),
        ("shots = 0", "shots is 0; a whole number from 1 to 20"),
        ("shots = 21", "shots is 21;"),
        ("compensate = 1", "compensate is 1; true or false is wanted"),
        ('compensate = "no"', "true or false is wanted"),
        ('basis = "upright"', 'basis is "upright"; "trained" or "weights" or'),
        ("basis = ['fisher']", 'basis is ["fisher"]'),
        ('method = "fastest"', '"rotated" or "reference" is wanted'),
        ("one_width_per_head = 2026-01-01", "one_width_per_head is "),
        ('prune = "all"', "prune is no key of a recipe; say --prune"),
        ("calibration_clips = 8", "say --calibration-clips"),
        ("[distillation]\nminutes = 0", "distillation.minutes is 0; a number above 0"),
        ("[distillation]\nminutes = inf", "distillation.minutes is Infinity"),
        ("[distillation]\nlabel_weight = 1.5", "a number from 0 to 1"),
        ("[distillation]\nrank = 0", "distillation.rank is 0; a whole number of at least 1"),
        ('method = "reference"\nstep = 1', "step is 1; a number between 0 and 1"),
        ("scheme = 'heads'", "scheme is of method reference, and the method is rotated"),
        ("batch_size = 4", "batch_size is of method reference"),
        ("method = 'reference'\nbasis = 'fisher'", "basis is of method rotated, and the method is reference"),
        ("method = 'reference'\n[distillation]\nminutes = 1", "distillation is of method rotated"),
        ("shots = 1\nshots = 2", "not TOML"),
        ("shots", "not TOML"),
    ],
)
def test_what_makes_no_sense_is_one_line_with_file_and_key(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(BadInput) as refused:
        read_recipe(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert message in str(refused.value)
    assert "\n" not in message


def test_it_is_refused_before_torch_is_imported(tmp_path):
    path = written(tmp_path, "shot = 2")
    program = (
        "import sys\nfrom leanear.cli.commands import run\n"
        f"status = run(['deploy', '--recipe', {str(path)!r}])\nprint(status, 'torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert ended.stdout.split() == ["2", "False"]
    assert ended.stderr.count("\n") == 1


def choices_of(of: type, name: str) -> tuple[Any, ...]:
    return tuple(each for each in get_args(get_type_hints(of)[name]) if isinstance(each, str))


@pytest.mark.parametrize(
    ("of", "known", "beside"),
    [
        (RotatedRecipe, settings(Recipe), {"multiples", "feed_forward_multiple", "losses", "basis_clips",
                                           "chunk", "seed", "whole_blocks"}),
        (PruneRecipe, settings(Recipe), {"sparsity", "recovery_options", "seed"}),
        (Distillation, settings(Training), {"method", "seconds"}),
    ],
)  # fmt: skip
def test_defaults_and_choices_are_those_of_the_method(of, known, beside):
    """Written twice because these import torch; beside: what a recipe does not say."""
    for each in dataclasses.fields(of):
        if each.name in beside:
            continue
        setting: Setting = known[each.name]
        assert setting.default == (None if each.name == "one_width_per_head" else each.default), each.name
        choices = choices_of(of, each.name)
        assert choices == setting.choices or (each.name == "recovery" and set(choices) < set(setting.choices))


def limits(setting: Setting) -> list[float]:
    """Values at and next to the limits."""
    step = 1 if setting.kind is int else 1e-3
    ends = [end for end in (setting.above, setting.below, setting.least, setting.most) if end is not None]
    return [value for end in ends for value in (end - step, end, end + step)]


@pytest.mark.parametrize("name", [name for name, each in settings(Training).items() if each.kind in (int, float)])
def test_limits_are_those_of_training(name):
    setting = settings(Training)[name]
    given = "seconds" if name == "minutes" else name
    for value in limits(setting):
        try:
            Distillation(**{given: setting.kind(value)})
            is_taken = True
        except BadInput:
            is_taken = False
        assert setting.allows(setting.kind(value)) == is_taken, value
