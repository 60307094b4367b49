"""Recovery by distillation: a slim model learns on calibration clips to answer as its dense self does."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from leanear.data.examples import LabelledInputs
from leanear.progress import Report, quiet
from leanear.recover.distillation_options import Distillation
from leanear.recover.kept_training import STATE_FILE, Distilled
from leanear.recover.lora import with_lora
from leanear.recover.training import ComparedLayers, Logits, Work, train
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import sha256_json

LayersOf = Callable[[nn.Module], Sequence[nn.Module]]


def distill_(
    student: nn.Module,
    teacher: nn.Module,
    training: LabelledInputs,
    held_out: LabelledInputs,
    logits: Logits,
    options: Distillation,
    *,
    layers: LayersOf | None = None,
    decoder_layers: LayersOf | None = None,
    seed: int = 0,
    state: Path | None = None,
    made_from: Mapping[str, str] | None = None,
    report: Report = quiet,
) -> Distilled:
    """Train the student in place to answer as the teacher does, and keep its best state; what the training did.

    training: clips to train on; held_out: clips that decide when to stop and which state is kept; both on the CPU;
    logits(model, inputs): (B, C), or (B, L, C). layers(model): a model's transformer layers, of which each gives
    (B, T, D), with the same T and D in both models; decoder_layers(model): those of them whose T are the positions of
    the targets, (B, L), of which the ones after a clip's last target count for nothing. Both are asked for only if
    `hidden_weight` is above 0, decoder_layers only of targets (N, L). The student's structure, mode, requires_grad
    flags and device stay, and the teacher stays as it is.

    state: a folder from which an interrupted run goes on after its last finished epoch, to the same bytes unless it
    runs out of time; made_from: sha256 by kind of student, teacher and clips: what is in the folder of others, or of
    other options, is not used.

    Runs on the processes and the accelerators that `accelerate launch` or `torchrun` gave, or on one; all processes
    call it alike and end with the same student. Only the first reports and writes.

    Raises:
        BadInput: no clips to train on or none held out, or the processes do not see the same state.
    """
    from accelerate import Accelerator  # imports much; only recovery needs it

    _check(training, held_out, state, made_from)
    compared = (
        _layers(student, teacher, layers, decoder_layers, training) if options.hidden_weight else ComparedLayers()
    )
    # without this flag, several processes on CPUs would each train alone
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision="no")
    device = accelerator.device
    clips = [training.targets.tolist(), held_out.targets.tolist()]
    identity = sha256_json([dict(made_from or {}), dataclasses.asdict(options), seed, *clips])
    work = Work(
        accelerator, student, teacher, training, held_out, logits, compared, options, seed,
        report if accelerator.is_main_process else quiet,
    )  # fmt: skip
    random_devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=random_devices), _visiting(student, device), _visiting(teacher, device):
        torch.manual_seed(seed)
        teacher.eval()
        return _train(work, None if state is None else state / STATE_FILE, identity)


def _check(
    training: LabelledInputs, held_out: LabelledInputs, state: Path | None, made_from: Mapping[str, str] | None
) -> None:
    if state is not None and not made_from:
        raise ValueError("a state folder is of no use without made_from: it could be another model's")
    if not len(training) or not len(held_out):
        raise BadInput(
            f"distillation has {len(training)} clips to train on and {len(held_out)} held out; both need one"
        )


def _train(work: Work, state_path: Path | None, identity: str) -> Distilled:
    """Train all but embeddings and what is tied to them, or additions of low rank that are merged at the end.

    After an error the additions are taken away. The embeddings of words that the clips do not say have next to no
    gradient, of which Adam makes full steps.
    """
    student = work.student
    if work.options.method == "full":
        tables = {id(each.weight) for each in student.modules() if isinstance(each, nn.Embedding)}
        trained = {name: each for name, each in student.named_parameters() if id(each) not in tables}
        student.requires_grad_(False)  # but what is trained
        return train(work, trained, state_path, identity)
    adapted = with_lora(student, work.options.rank, work.options.alpha)
    try:
        trained = {name: each for name, each in student.named_parameters() if each.requires_grad}
        distilled = train(work, trained, state_path, identity)
    except BaseException:
        adapted.unload()
        raise
    adapted.merge_and_unload()
    return distilled


def _layers(
    student: nn.Module,
    teacher: nn.Module,
    layers: LayersOf | None,
    decoder_layers: LayersOf | None,
    clips: LabelledInputs,
) -> ComparedLayers:
    """The layers to compare, found before training wraps what is in them."""
    if layers is None:
        raise ValueError("hidden_weight is of no use without layers: there is nothing to compare")
    if decoder_layers is None and clips.targets.ndim > 1:
        raise ValueError("with targets at positions, decoder_layers must say where positions can be unused")
    of_decoder = () if decoder_layers is None else tuple(decoder_layers(student))
    compared = tuple(layers(student))
    numbers = frozenset(number for number, layer in enumerate(compared) if layer in of_decoder)
    return ComparedLayers(compared, tuple(layers(teacher)), numbers)


@contextlib.contextmanager
def _visiting(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model on `device`; afterwards back where it was, with its mode and its requires_grad flags."""
    training_mode = model.training
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    home = next(model.parameters()).device
    model.to(device)
    try:
        yield
    finally:
        model.to(home).train(training_mode)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(required[name])
            parameter.grad = None
