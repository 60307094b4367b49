"""How to prune, from the flags of a command."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from leanear.cli.options import GOALS
from leanear.prune.recipe import REFERENCE, Goal, Recipe, choose_goal, settings
from leanear.runtimes.errors import BadInput
from leanear.runtimes.speech.encoder_windows import DEFAULT_WINDOW
from leanear.targets.target import Target, read_target, require_timed_form, with_precision

if TYPE_CHECKING:  # torch: seconds to import
    from leanear.prune.job import PruneJob
    from leanear.prune.widths import RotatedRecipe
    from leanear.recover.distillation_options import Distillation
    from leanear.timing.speech_work import SpeechWork

SPEECH_KEYS = ("pools", "sites")  # of models with more than one kind of attention


def prune_job(model: str, target: str, flags: dict[str, Any], ships: bool) -> PruneJob:
    """How to prune, from the flags of one command; all that can be refused before torch is imported is.

    ships: whether the command exports the model too, in --precision and with --window.
    """
    given = {name: flags[name] for name, setting in settings(Recipe).items() if setting.option}
    for name, value in given.items():
        if not settings(Recipe)[name].allows(value):
            flag, wanted = name.replace("_", "-"), settings(Recipe)[name].wanted
            raise BadInput(f"--{flag} is {value!r}; {wanted} is wanted")
    recipe: Recipe = dataclasses.replace(flags["recipe"], **given)
    goal = choose_goal({kind: flags[kind] for kind in GOALS})
    if not ships and flags["max_drop"] is not None and goal.kind != "max_drop":
        raise BadInput("--max-drop beside another goal is a gate, which only `leanear deploy` can judge")
    device = with_precision(read_target(target), flags["precision"])
    if goal.needs_latency:
        require_timed_form(device, goal.flag)
    work = _work(goal, device, flags, ships)
    _check_speech(model, recipe, device, flags)
    _check_method(recipe, goal)
    from leanear.prune.job import PruneJob
    from leanear.reference.schedule import PruneRecipe

    settled = {"goal": goal, "target": device, "asked": flags["asked"], "recipe_file": recipe.given}
    if recipe.method == REFERENCE:
        shared: Any = {"recovery": recipe.recovery, "seed": flags["seed"], **_shared(recipe, PruneRecipe)}
        return PruneJob(recipe=PruneRecipe(sparsity=goal.value, **shared), **settled)
    rotated, training = _rotated(recipe, device, flags["seed"]), _training(recipe)
    return PruneJob(recipe=rotated, compensation=recipe.compensate, recovery=training, work=work, **settled)


def _check_method(recipe: Recipe, goal: Goal) -> None:
    """Raises BadInput where goal and options are not those of the recipe's method."""
    if recipe.method == REFERENCE:
        if goal.kind != "sparsity":
            raise BadInput(f"{goal.flag} is of method rotated; the reference has --sparsity alone")
        if recipe.prune != "attention" or recipe.recovery == "full":
            flag = "--recovery full" if recipe.recovery == "full" else f"--prune {recipe.prune}"
            raise BadInput(f"{flag} is of method rotated, and the method is reference")
    elif recipe.recovery == "none" and "distillation." in recipe.given:
        raise BadInput("--recipe: the table [distillation] is of no use without --recovery full or lora")


def _rotated(recipe: Recipe, device: Target, seed: int) -> RotatedRecipe:
    from leanear.prune.widths import RotatedRecipe

    shared = _shared(recipe, RotatedRecipe)
    if recipe.one_width_per_head is None:
        shared["one_width_per_head"] = device.one_width_per_head
    multiples = (device.query_key_multiple, device.value_output_multiple)
    return RotatedRecipe(
        multiples=multiples, feed_forward_multiple=device.feed_forward_multiple, seed=seed, **shared
    )  # fmt: skip


def _shared(recipe: Recipe, of: type) -> dict[str, Any]:
    """What the recipe says of the settings of one method."""
    names = {each.name for each in dataclasses.fields(of)} - {"recovery"}
    return {name: getattr(recipe, name) for name in settings(Recipe) if name in names}


def _training(recipe: Recipe) -> Distillation | None:
    from leanear.recover.distillation_options import Distillation

    if recipe.recovery == "none":
        return None
    details = dataclasses.asdict(recipe.distillation)
    return Distillation(method=recipe.recovery, seconds=60 * details.pop("minutes"), **details)


def _work(goal: Goal, device: Target, flags: dict[str, Any], ships: bool) -> SpeechWork | None:
    """What one inference of a Whisper is for a goal in time; None without one, where no flag may speak of it."""
    if not goal.needs_latency:
        for name in ("clip_seconds", "tokens", *(() if ships else ("window", "precision"))):
            if flags[name] is not None:
                raise BadInput(f"--{name.replace('_', '-')} belongs to --speedup, --latency-ms and --rtf")
        return None
    from leanear.timing.speech_work import SpeechWork

    own = "full" if device.graph_form == "tensorrt" else DEFAULT_WINDOW
    return SpeechWork(flags["clip_seconds"], flags["tokens"], flags["window"] or own)


def _check_speech(model: str, recipe: Recipe, device: Target, flags: dict[str, Any]) -> None:
    """Raises BadInput where options of Whisper, or keys for several kinds of attention, meet another model."""
    from leanear.deploy.export_choices import chosen_window
    from leanear.families.checkpoint import checkpoint_folder
    from leanear.families.registry import require_speech, task_of
    from leanear.runtimes.tasks import SPEECH_TASK

    task = task_of(checkpoint_folder(model))
    chosen_window(flags["window"], device.graph_form, task, model, flags.get("word_timestamps", False))
    require_speech(task, model, clip_seconds=flags["clip_seconds"], tokens=flags["tokens"])
    given = [name for name in SPEECH_KEYS if getattr(recipe, name) != settings(Recipe)[name].default]
    if given and task != SPEECH_TASK:
        raise BadInput(
            f"--recipe: {given[0]} is for models with several kinds of attention, such as Whisper; {model} has one"
        )
