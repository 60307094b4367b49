"""How to prune, from the flags of a command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leanear.cli.options import (
    GOALS,
)
from leanear.runtimes.errors import BadInput
from leanear.runtimes.speech.encoder_windows import DEFAULT_WINDOW

if TYPE_CHECKING:
    pass


ROTATED_FLAGS = ("prune", "basis", "labels", "shots", "one_width_per_head", "pools")


REFERENCE_FLAGS = ("scheme", "score", "threshold", "schedule", "batch_size")


SPEECH_FLAGS = ("pools", "sites")  # of models with more than one kind of attention


RECOVERY_MINUTES = 20.0


def prune_job(model: str, target: str, flags: dict[str, Any]) -> Any:
    """How to prune, from the flags of one command; those of another method or family must not be there."""
    from leanear.prune.goal import choose_goal
    from leanear.prune.job import PruneJob
    from leanear.prune.widths import RotatedRecipe
    from leanear.recover.distillation_options import Distillation
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
    from leanear.timing.speech_work import SpeechWork

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
