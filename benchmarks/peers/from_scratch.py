"""Trains the demo AST from nothing at a plan's widths: does pruning beat starting small?

    python -m leanear.benchmarks.peers.from_scratch --work build/demo-ast/work --plan plan.json --extra-steps 600 --out
    DIR

WORK is what `python -m leanear.studies.demo.make` leaves behind: the speech, the extractor, the dense model's schedule.
The slim model gets that schedule, stretched to the dense model's steps plus the extra ones (what recovery takes), and
the same clips, optimisers, patch dropping and averaging. Nothing is written to WORK. PLAN is a plan.json, or
{"query_key_widths": [[...] per layer], "value_output_widths": [[...] per layer]} with one width per kept head.
Ctrl-C and SIGTERM stop the training; the same command continues it. `DIR/result.json` is the result, on the shipped
evaluation clips. This runs on the workstation alone.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from transformers import ASTFeatureExtractor

from leanear.benchmarks.measure.accuracy import cross_entropy_nats, kl_divergence_nats
from leanear.benchmarks.summary import mcnemar_p_value, wilson_interval
from leanear.demo import demo_clips_folder, demo_model_folder
from leanear.families.ast import AstModel, attention_sites, features, load_checkpoint
from leanear.families.modeling_slim_ast import SlimASTConfig, SlimASTForAudioClassification
from leanear.plan import PLAN_SCHEMA, read_plan
from leanear.runtimes.errors import BadInput, LeanearError
from leanear.runtimes.files import read_json, read_object, replaced_file, sha256_file, sha256_json, write_json
from leanear.studies.demo.make import Job, _dev_clips, _extractor, _scene
from leanear.studies.demo.packaging import read_clips
from leanear.studies.demo.training import Schedule, initialise, new_config, new_model, train

CLAIM_SCHEMA = "leanear-from-scratch-claim-1"
RESULT_SCHEMA = "leanear-from-scratch-1"
WORK_FILES = ("speech-train.npz", "speech-dev.npz", "extractor/preprocessor_config.json", "schedule.json")
SAVE_EVERY_STEPS = 25  # a stop loses at most these; nothing else depends on it
SAY_EVERY_STEPS = 20  # where there is no terminal to draw a bar on
BATCH_CLIPS = 64


@dataclass(frozen=True)
class Widths:
    """The width of every kept head, layer by layer."""

    query_key: tuple[tuple[int, ...], ...]
    value_output: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Heard:
    """A model's logits for the evaluation clips, float32 (N, labels), and the clips' label ids (N,)."""

    logits: np.ndarray
    label_ids: np.ndarray


def read_widths(path: Path) -> Widths:
    """The widths in a plan.json or in a bare JSON object of widths.

    Raises:
        BadInput: the file is missing or malformed, or its layers and head widths are not the demo AST's.
    """
    value = read_object(path)
    if value.get("schema") == PLAN_SCHEMA:
        sites = read_plan(path).sites
        widths = Widths(
            tuple(site.query_key_widths for site in sites), tuple(site.value_output_widths for site in sites)
        )
    else:
        try:
            widths = Widths(
                tuple(tuple(layer) for layer in value["query_key_widths"]),
                tuple(tuple(layer) for layer in value["value_output_widths"]),
            )
        except (KeyError, TypeError) as error:
            raise BadInput(f"{path}: neither a plan nor query_key_widths and value_output_widths ({error})") from None
    _check(widths, path)
    return widths


def _check(widths: Widths, path: Path) -> None:
    config = new_config()
    for kind, layers in (("query_key_widths", widths.query_key), ("value_output_widths", widths.value_output)):
        if len(layers) != config.num_hidden_layers:
            raise BadInput(f"{path}: {kind} has {len(layers)} layers, the demo AST has {config.num_hidden_layers}")
        for number, layer in enumerate(layers):
            if not 1 <= len(layer) <= config.num_attention_heads:
                raise BadInput(f"{path}: {kind} of layer {number} names {len(layer)} heads")
            if not all(isinstance(width, int) and width >= 1 for width in layer):
                raise BadInput(f"{path}: {kind} of layer {number} must be whole numbers from 1")
    if [len(layer) for layer in widths.query_key] != [len(layer) for layer in widths.value_output]:
        raise BadInput(f"{path}: query_key_widths and value_output_widths differ in their numbers of heads")


def new_slim_model(widths: Widths, seed: int) -> SlimASTForAudioClassification:
    """An untrained demo AST with these widths; its softmax scale is the dense demo AST's."""
    dense = new_config()
    head_width = dense.hidden_size // dense.num_attention_heads
    settings = {key: value for key, value in dense.to_diff_dict().items() if key != "model_type"}
    config = SlimASTConfig(
        query_key_widths=widths.query_key,
        value_output_widths=widths.value_output,
        attention_scaling=head_width**-0.5,
        **settings,
    )
    torch.manual_seed(seed)
    model = SlimASTForAudioClassification(config)
    initialise(model)
    return model


def read_schedule(work: Path, extra_steps: int, total_steps: int | None) -> Schedule:
    """The dense model's schedule in WORK, over its steps and `extra_steps`, or over `total_steps` where given."""
    values = json.loads((work / "schedule.json").read_text(encoding="utf-8"))
    try:
        schedule = Schedule(**values)
    except TypeError as error:
        raise BadInput(f"{work}/schedule.json: not a schedule of the demo's training ({error})") from None
    return replace(schedule, steps=total_steps or schedule.steps + extra_steps, save_every=SAVE_EVERY_STEPS)


def listen(model: AstModel, extractor: ASTFeatureExtractor) -> Heard:
    """What the model makes of the shipped evaluation clips, through transformers' own extractor."""
    waves, label_ids = read_clips(demo_clips_folder() / "evaluation")
    with torch.inference_mode():
        parts = [
            model(features(extractor, waves[start : start + BATCH_CLIPS])).logits
            for start in range(0, len(waves), BATCH_CLIPS)
        ]
    return Heard(torch.cat(parts).numpy(), label_ids)


def describe(model: AstModel, heard: Heard, dense: Heard) -> dict[str, object]:
    """Size and quality of a model as result.json holds them; standard errors are over clips."""
    right = heard.logits.argmax(axis=1) == heard.label_ids
    dense_right = dense.logits.argmax(axis=1) == dense.label_ids
    accuracy = wilson_interval(int(right.sum()), len(right))
    losses, dense_losses = (cross_entropy_nats(one.logits, one.label_ids) for one in (heard, dense))
    divergences = kl_divergence_nats(dense.logits, heard.logits)
    only_dense, only_this = int((dense_right & ~right).sum()), int((right & ~dense_right).sum())
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "attention_parameters": _attention_parameters(model),
        "clips": len(right),
        "correct": int(right.sum()),
        "accuracy": accuracy.estimate,
        "accuracy_interval_95": [accuracy.low, accuracy.high],
        "only_dense_correct": only_dense,
        "only_this_correct": only_this,
        "mcnemar_p_value": mcnemar_p_value(only_dense, only_this),
        "cross_entropy_nats": float(losses.mean()),
        "cross_entropy_standard_error_nats": _standard_error(losses),
        "cross_entropy_change_nats": float((losses - dense_losses).mean()),
        "cross_entropy_change_standard_error_nats": _standard_error(losses - dense_losses),
        "kl_to_dense_nats": float(divergences.mean()),
        "kl_to_dense_standard_error_nats": _standard_error(divergences),
    }


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


def _attention_parameters(model: AstModel) -> int:
    """Weights and biases that pruning could remove: all of the attention blocks' but the output biases."""
    sites = attention_sites(model)
    return sum(site.parameters - site.output.bias.numel() for site in sites)


def _claim(out: Path, widths: Widths, schedule: Schedule) -> None:
    """Writes down what the state in `out` belongs to, or refuses to continue another plan's or schedule's."""
    path = out / "claim.json"
    asked = {"schema": CLAIM_SCHEMA, "widths": _lists(widths), "schedule": asdict(schedule)}
    if path.exists():
        if read_json(path, CLAIM_SCHEMA) != asked:
            raise BadInput(f"{path}: begun with another plan or number of steps; choose another --out")
        return
    write_json(path, asked)


def _lists(widths: Widths) -> dict[str, list[list[int]]]:
    return {
        "query_key_widths": [list(layer) for layer in widths.query_key],
        "value_output_widths": [list(layer) for layer in widths.value_output],
    }


def train_slim(job: Job, widths: Widths, advance: Callable[[int, str], None]) -> SlimASTForAudioClassification:
    """The trained model, in eval mode; its weights stay in `job.out`, and a second call only reads them."""
    model = new_slim_model(widths, job.schedule.seed)
    final = job.out / "model.safetensors"
    if not final.exists():
        scene, dev, state = _scene(job, "train"), _dev_clips(job), job.out / "training.safetensors"
        averaged = train(model, _extractor(job), scene, dev, job.schedule, state, advance)
        with replaced_file(final) as partial:
            save_file(averaged.state_dict(), partial)
    model.load_state_dict(load_file(final))
    return model.eval()


def run(job: Job, plan: Path, console: Console) -> dict[str, object]:
    """What result.json holds.

    Raises:
        BadInput: WORK or PLAN is not usable, or `job.out` holds another plan's or schedule's training.
    """
    widths = read_widths(plan)
    job.out.mkdir(parents=True, exist_ok=True)
    _claim(job.out, widths, job.schedule)
    torch.set_num_threads(job.threads)
    columns = (TextColumn("training {task.description}", markup=False), BarColumn(bar_width=30), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=job.schedule.steps)
        say = _sayer(job.schedule.steps, console)

        def advance(done: int, note: str) -> None:
            bar.update(task, completed=done, description=note)
            say(done, note)

        model = train_slim(job, widths, advance)
    console.print("evaluating", markup=False)
    checkpoint = load_checkpoint(demo_model_folder())
    heard = listen(model, _extractor(job))
    dense = listen(checkpoint.model, checkpoint.feature_extractor)
    with replaced_file(job.out / "logits.npz") as partial, partial.open("wb") as stream:
        np.savez(stream, from_scratch=heard.logits, dense=dense.logits, label_ids=heard.label_ids)
    result = {
        "schema": RESULT_SCHEMA,
        "plan": str(plan),
        "widths": _lists(widths),
        "sparsity": 1 - _attention_parameters(model) / _attention_parameters(new_model(job.schedule.seed)),
        "schedule": asdict(job.schedule),
        "made_from": {
            "widths": sha256_json(_lists(widths)),
            "speech-train.npz": sha256_file(job.work / "speech-train.npz"),
            "dense": sha256_file(demo_model_folder() / "model.safetensors"),
        },
        "from_scratch": describe(model, heard, dense),
        "dense": describe(checkpoint.model, dense, dense),
    }
    write_json(job.out / "result.json", result)
    return result


def _sayer(steps: int, console: Console) -> Callable[[int, str], None]:
    """A function that prints a line every few steps where no bar can be drawn."""
    last_step, last_s = -1, 0.0

    def say(done: int, note: str) -> None:
        nonlocal last_step, last_s
        if console.is_terminal or (done % SAY_EVERY_STEPS and last_step >= 0):
            return
        now = time.monotonic()
        rate = f", {(now - last_s) / (done - last_step):.2f} s per step" if last_step >= 0 else ""
        console.print(f"step {done} of {steps}{rate}{', ' + note if note else ''}", markup=False)
        last_step, last_s = done, now

    return say


def _terminate(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM unwinds the stack as ctrl-C does, so that no temporary file stays."""
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """The exit status of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m leanear.benchmarks.peers.from_scratch", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="the folder work/ of `python -m leanear.studies.demo.make`"
    )
    parser.add_argument("--plan", type=Path, required=True, help="plan.json, or JSON with the two lists of widths")
    parser.add_argument("--extra-steps", type=int, default=0, help="steps beyond the dense model's own; default: 0")
    parser.add_argument("--steps", type=int, help="all steps, in place of the dense model's and the extra ones")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        missing = [name for name in WORK_FILES if not (options.work / name).is_file()]
        if missing:
            raise BadInput(f"{options.work}: {missing[0]} is missing; `python -m leanear.studies.demo.make` makes it")
        schedule = read_schedule(options.work, options.extra_steps, options.steps)
        result = run(Job(options.out, options.work, schedule, options.threads), options.plan, console)
    except LeanearError as error:
        console.print(f"error: {error}", markup=False)
        return error.exit_status
    except KeyboardInterrupt:
        console.print("stopped; the same command continues from here", markup=False)
        return 130
    print(json.dumps({"from_scratch": result["from_scratch"], "dense": result["dense"]}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
