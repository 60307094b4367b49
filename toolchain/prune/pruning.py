"""From a dense checkpoint and calibration clips to a slim checkpoint folder."""

import contextlib
import dataclasses
import importlib.metadata
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leanear.accelerator import on_accelerator
from leanear.calibration import shards
from leanear.data.clips import read_examples_for
from leanear.data.dataset import Data, Example, column_for, examples_identity
from leanear.data.examples import HeldOut, divided
from leanear.data.splits import read_splits
from leanear.evaluate.measured_loss import Judge
from leanear.families.asked import Asked
from leanear.families.checkpoint import checkpoint_folder, checkpoint_sha256, data_folder
from leanear.families.family import Checkpoint
from leanear.families.registry import family_of, labels_of, task_of
from leanear.outputs import check_replaceable, held, record_stage, recorded_inputs, stage_is_done
from leanear.plan import Plan, read_plan
from leanear.progress import Narrator, Report, counted, in_parts
from leanear.prune.document import Loss, PruningDocument, read_pruning
from leanear.prune.job import PruneJob, check_reachable, open_reachable
from leanear.prune.rotated import SHOT_FOLDER
from leanear.prune.scoring import BASIS_FOLDER, LOSSES_FOLDER, SCORES_FILE
from leanear.prune.stages import BEFORE_RECOVERY, Pruning, prune_in_stages
from leanear.reference.schedule import PruneRecipe, prune
from leanear.runtimes.clips import Clips as Audio
from leanear.runtimes.clips import clips_sha256
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import LOCK_FILE
from leanear.runtimes.process.notes import note, plural

RECOMPUTE_ABOVE_BYTES = 64 * 1024**2
STAGE = "checkpoint"


def prune_checkpoint(
    model: str, *, data: Data | None, job: PruneJob, out: Path, narrator: Narrator, scores: Path | None = None
) -> dict[str, Any]:
    """Prune MODEL on the calibration clips of DATA and write the slim checkpoint to `out`; the numbers, by stable keys.

    Where `out` was made from the same inputs already, nothing is done, and the numbers are those of then.
    scores: a folder in which the clips' scores stay, so that another goal takes them from there; by default they go.
    Under `torchrun` the processes share the scoring and the training; the first one writes.

    Raises:
        LeanearError: the model or the data is not usable, or `out` holds something that is no slim checkpoint.
    """
    check_replaceable(out, "plan.json")
    if scores is not None:
        check_scores_folder(scores, out)
    source, audio = checkpoint_folder(model), data_folder(model, data)
    task = task_of(source)
    splits = read_splits(audio, job.calibration_clips, job.recipe.seed, column_for(task), labels=labels_of(source))
    record = {
        "leanear": importlib.metadata.version("leanear"),
        "checkpoint": checkpoint_sha256(source),
        "calibration": examples_identity(splits.calibration),
        "job": job.as_json(),
    }
    if stage_is_done(out, STAGE, record) and (scores is None or (scores / SCORES_FILE).is_file()):
        narrator.say(f"  nothing to do: {out} was made before, from the same inputs")
    else:
        _prune(source, splits.calibration, job, out, scores, record, narrator)
    plan, pruning = read_plan(out / "plan.json"), read_pruning(out)
    assert pruning is not None, "written above, or before with the stage"
    return {
        "schema": "leanear-prune-1",
        "model": model,
        "out": str(out),
        **_parameters_told(pruning.parameters_dense, plan),
        "calibration_clips": pruning.calibration_clips,
        "checkpoint_sha256": checkpoint_sha256(out),
        "pruning": pruning,
    }


def _prune(
    source: Path,
    examples: Sequence[Example],
    job: PruneJob,
    out: Path,
    scores: Path | None,
    record: dict[str, Any],
    narrator: Narrator,
) -> None:
    """Prune the checkpoint in `source` on these clips, and record what it was made from."""
    checkpoint, state = open_reachable(source, job, narrator), scores or out.parent / f".{out.name}.state"
    with held(state) if shards.rank() == 0 else contextlib.nullcontext():
        changed = [key for key, value in recorded_inputs(out, STAGE).items() if record.get(key) != value]
        if changed:
            note(f"{out}: replaces a model of another request (another {', '.join(changed)}); --out FOLDER keeps both")
        with narrator.step(f"reading {plural(len(examples), 'calibration clip')}") as report:
            clips, made_from = read_calibration(checkpoint, source, job.asked, examples, report)
        with narrator.step(f"pruning: {job.text}") as report:
            write_slim_checkpoint(checkpoint, clips, job, made_from, out, state, report)
        if shards.rank() == 0:
            record_stage(out, STAGE, record, sorted(path for path in out.iterdir() if path.is_file()))
            if scores is None:
                shutil.rmtree(state, ignore_errors=True)


def read_calibration(
    checkpoint: Checkpoint, source: Path, asked: Asked, examples: Sequence[Example], report: Report
) -> tuple[Audio, dict[str, str]]:
    """The clips to calibrate on, and what is made from them and the checkpoint in `source`: sha256 by kind."""
    extractor, task = checkpoint.feature_extractor, task_of(source)
    window = family_of(checkpoint).window_samples(extractor)
    clips = read_examples_for(task, examples, checkpoint.labels, extractor.sampling_rate, counted(report), window)
    made_from = {"checkpoint": checkpoint_sha256(source), "calibration": clips_sha256(clips)}
    return clips, made_from | asked.as_json()


def _parameters_told(dense: int, plan: Plan) -> dict[str, Any]:
    """Parameters before and after, and the shares that are gone; dense: how many there were in all."""
    return {
        "sparsity": plan.sparsity,
        "sparsity_by_kind": {kind: share.sparsity for kind, share in plan.shares.items()},
        "attention_parameters_dense": plan.attention_parameters_dense,
        "attention_parameters": plan.attention_parameters_kept,
        "parameters_dense": dense,
        "feed_forward_parameters_dense": plan.feed_forward_parameters_dense,
        "feed_forward_parameters": plan.feed_forward_parameters_kept,
        "prune": plan.prune,
        "parameters": dense - plan.parameters_removed,
    }


def check_scores_folder(scores: Path, out: Path) -> None:
    """See that scores can be kept in `scores`: a folder of such, an empty one, or none yet.

    Raises:
        BadInput: it holds something else, or is where the checkpoint goes.
    """
    if scores.resolve() == out.resolve():
        raise BadInput(f"--keep-scores {scores}: the checkpoint goes there; name another folder")
    if scores.exists() and not scores.is_dir():
        raise BadInput(f"--keep-scores {scores}: not a folder")
    known = {SCORES_FILE, BASIS_FOLDER, LOSSES_FOLDER, LOCK_FILE, "search", "recovery"}
    names = [each.name for each in scores.iterdir()] if scores.is_dir() else []
    half_written = [name for name in names if name.startswith(".") and name.endswith(".part")]  # of a killed run
    shots = [name for name in names if name.startswith(SHOT_FOLDER)]
    strange = sorted({*names} - known - {*half_written, *shots})
    if strange:
        raise BadInput(
            f"--keep-scores {scores}: holds {strange[0]}, which is no part of kept scores; name another folder"
        )


def write_slim_checkpoint(
    checkpoint: Checkpoint,
    audio: Audio,
    job: PruneJob,
    made_from: dict[str, str],
    out: Path,
    state: Path,
    report: Report,
) -> Plan:
    """Prune the checkpoint on `audio`, write the slim folder `out`, and give back its plan.

    state: a folder for the dense model's bases or curvature and the last finished step, from which an interrupted run,
    or a later one with another goal, goes on.

    Raises:
        BadInput: the clips do not suit the model, or the goal cannot be reached.
    """
    family = family_of(checkpoint)
    check_reachable(checkpoint, job)
    part = in_parts(report, {"inputs": 1, "pruning": 18, "finished": 1})
    labelled = family.calibration_inputs(checkpoint, audio, part("inputs"))
    spare_memory = family.activation_bytes(checkpoint.model, labelled.inputs) > RECOMPUTE_ABOVE_BYTES
    clips_at_once = 1 if spare_memory else None
    every = labelled[labelled.balanced_order(job.recipe.seed, job.calibration_clips)]
    scored, held_out = divided(every)
    judge = Judge(family, checkpoint, HeldOut(checkpoint.model, held_out, family.logits))
    facts: dict[str, Any] = {"method": "reference"}
    if isinstance(job.recipe, PruneRecipe):
        pruned = prune(
            family, checkpoint, scored, job.recipe, made_from=made_from, state=state,
            clips_at_once=clips_at_once, recompute=spare_memory, report=part("pruning"),
        )  # fmt: skip
        model, plan = pruned.model, pruned.plan
    else:
        work = Pruning(checkpoint, judge, scored, every, job, made_from, state, clips_at_once, part("pruning"))
        try:
            model, plan, facts = prune_in_stages(work)
        except BadInput as error:
            raise BadInput(f"{job.goal.flag} {job.goal.value:g}: {error}") from None
    part("finished")("measuring the finished model on held-out clips", None)
    with on_accelerator(model, checkpoint.model):
        loss = facts["loss"] = Loss(finished=judge.loss(model), **facts.get("loss", {}))
    told = {"estimated": loss.estimated, "measured": loss.measured, "finished": loss.finished.divergence}
    plan = dataclasses.replace(plan, recipe={**job.as_json(), "loss_nats_per_target": told})
    if shards.rank() == 0:
        document = PruningDocument(
            metric=checkpoint.metric,
            goal=job.goal,
            prune=plan.prune,
            parameters_dense=sum(parameter.numel() for parameter in checkpoint.model.parameters()),
            sparsity=plan.sparsity,
            by_kind={kind: share.sparsity for kind, share in plan.shares.items()},
            feed_forward_by_kind=_removed_of(plan) if plan.prune != "attention" else None,
            calibration_clips=labelled.clips or len(every),
            **facts,
        )
        family.save_slim_checkpoint(model, checkpoint, plan, out, document)
        shutil.rmtree(state / BEFORE_RECOVERY, ignore_errors=True)  # as large as the model, and of no more use
    shards.wait()
    return plan


def _removed_of(plan: Plan) -> dict[str, float]:
    """The share of the feed-forward channels that is gone, by kind of block."""
    shares: dict[str, float] = {}
    for kind in dict.fromkeys(block.kind for block in plan.feed_forward):
        blocks = [block for block in plan.feed_forward if block.kind == kind]
        shares[kind] = 1 - sum(len(b.channels) for b in blocks) / sum(b.dense_width for b in blocks)
    return shares
