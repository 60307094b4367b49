"""What a pruning is asked for: goal, method, recipe, recovery; and whether some model meets it."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from leanear.benchmarks.formatting import PRUNED_PARTS
from leanear.families.asked import Asked
from leanear.families.checkpoint import NOTHING_ASKED, load_checkpoint
from leanear.families.family import Checkpoint, Family
from leanear.families.registry import family_of
from leanear.plan import Plan, Prune
from leanear.progress import Narrator
from leanear.prune.costs import Costs, mac_costs, parameter_costs, unfilled_blocks, without_filled
from leanear.prune.latency_goal import refuse_out_of_reach
from leanear.prune.recipe import Goal
from leanear.prune.widths import RotatedRecipe, check_budget
from leanear.recover.distillation_options import Distillation
from leanear.reference.schedule import PruneRecipe, check_sparsity
from leanear.runtimes.errors import BadInput
from leanear.targets.target import FORM_COLUMNS, Target, check_one_width
from leanear.timing.model_timing import timing_of
from leanear.timing.speech_work import SpeechWork


@dataclass(frozen=True)
class PruneJob:
    """All that says how a checkpoint is pruned: the goal, the recipe of either method, and what follows.

    compensation: fit the output projections to the dense model's, where held-out clips say that it helps; recovery:
    train by distillation at the end; target: for whose device milliseconds are meant; asked: of a Whisper, what it is
    calibrated for and does by itself from then on; work: of a Whisper, what takes the milliseconds of such a goal;
    recipe_file: what a recipe file sets, as a report quotes it. The reference's recipe holds its own recovery, and its
    only goal is a sparsity.
    """

    goal: Goal
    recipe: RotatedRecipe | PruneRecipe
    target: Target
    compensation: bool = False
    recovery: Distillation | None = None
    asked: Asked = NOTHING_ASKED
    work: SpeechWork | None = None
    recipe_file: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.recipe, PruneRecipe) and (
            self.goal.kind != "sparsity" or self.compensation or self.recovery
        ):
            raise BadInput("method reference knows a sparsity alone as its goal, and recovery lora")
        if self.one_width_per_head:
            check_one_width(self.target, f"target {self.target.name}")

    @property
    def prune(self) -> Prune:
        """What becomes smaller."""
        return self.recipe.prune if isinstance(self.recipe, RotatedRecipe) else "attention"

    @property
    def text(self) -> str:
        """The goal in a few words, with what becomes smaller where that is not attention alone."""
        if self.prune == "attention":
            return self.goal.text
        parts = PRUNED_PARTS[self.prune]
        if self.goal.kind == "sparsity":
            return f"{100 * self.goal.value:g} % of the {parts} parameters removed"
        return f"{self.goal.text}, {parts} pruned"

    @property
    def calibration_clips(self) -> int:
        """Clips that are read to calibrate on, at most."""
        return self.recipe.calibration_clips

    @property
    def one_width_per_head(self) -> bool:
        """Whether query/key and value/output width of every head are one."""
        return isinstance(self.recipe, RotatedRecipe) and self.recipe.one_width_per_head

    @property
    def filled_by(self) -> str | None:
        """The form of the graph in which no head may be filled up to the width of others, None where any may."""
        return filled_by(self.target) if self.one_width_per_head else None

    def as_json(self) -> dict[str, Any]:
        """The job as plan.json holds it, on one level; of the target only what the plan depends on."""
        facts = {
            "method": "reference" if isinstance(self.recipe, PruneRecipe) else "rotated",
            "goal": self.text,
            **dataclasses.asdict(self.recipe),
            "compensation": self.compensation,
            "distillation": self.recovery is not None,
            **self.asked.as_json(),
        }
        if self.filled_by is not None:
            facts["not_filled_up_by"] = self.filled_by
        if self.goal.kind == "macs":
            facts["macs_of_form"] = self.target.graph_form
        if self.recovery is not None:
            facts |= {f"distillation_{key}": value for key, value in dataclasses.asdict(self.recovery).items()}
        if self.goal.needs_latency:
            facts |= {f"target_{key}": value for key, value in dataclasses.asdict(self.target).items()}
            if self.work is not None:
                facts |= {f"work_{key}": value for key, value in dataclasses.asdict(self.work).items()}
        return json.loads(json.dumps(facts))


def open_reachable(source: Path, job: PruneJob, narrator: Narrator) -> Any:
    """The checkpoint in `source`, of which some model meets the job's goal as far as arithmetic or one timing tell.

    Raises:
        LeanearError: the checkpoint is not usable, or no model meets the goal.
    """
    with narrator.step("reading the checkpoint"):
        checkpoint = load_checkpoint(source, job.asked)
    check_reachable(checkpoint, job)
    if job.goal.needs_latency:
        with narrator.step(f"whether {job.goal.text} can be reached", if_reported=True) as report:
            timing = timing_of(checkpoint, job.target, job.work)
            refuse_out_of_reach(checkpoint, job.goal, job.target, cast(RotatedRecipe, job.recipe), timing, report)
    return checkpoint


def check_reachable(checkpoint: Checkpoint, job: PruneJob) -> None:
    """See that some model meets a goal of parameters or MACs, before any clip is read.

    Raises:
        BadInput: none does.
    """
    family = family_of(checkpoint)
    if isinstance(job.recipe, PruneRecipe):
        check_sparsity(family, checkpoint.model, job.recipe)
        return
    if job.goal.kind not in ("sparsity", "macs"):
        return
    costs, budget = costs_and_budget(family, checkpoint, job)
    try:
        check_budget(family.attention_sites(checkpoint.model), costs, budget, job.recipe)
    except BadInput as error:
        raise BadInput(f"{job.goal.flag} {job.goal.value:g}: {error}") from None


def dense_plan(family: Family, checkpoint: Checkpoint, job: PruneJob) -> Plan:
    """The plan that keeps everything, of what the job prunes."""
    return dataclasses.replace(family.dense_plan(checkpoint.model), prune=cast(RotatedRecipe, job.recipe).prune)


def costs_and_budget(family: Family, checkpoint: Checkpoint, job: PruneJob) -> tuple[Costs, float]:
    """Parameters, or MACs of the target's form of graph, and what the whole model may have of them."""
    model, plan, goal, form = checkpoint.model, dense_plan(family, checkpoint, job), job.goal, job.target.graph_form
    if goal.kind == "sparsity":
        costs = parameter_costs(plan)
        return costs, (1 - goal.value) * costs.dense
    costs = mac_costs(plan, family.macs(checkpoint, model, form))
    return costs, goal.value * costs.dense


def filled_by(target: Target) -> str | None:
    """The target's form of graph, if it fills narrower heads up."""
    return target.graph_form if target.graph_form in FORM_COLUMNS else None


def as_held(costs: Costs, family: Family, model: Any, form: str | None) -> Costs:
    """The costs of blocks as a graph of this form holds them, without those that it would fill up; None fills none."""
    return costs if form is None else without_filled(costs, unfilled_blocks(family, model, form))
