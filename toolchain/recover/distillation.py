"""Recovery by distillation: a slim model learns on calibration clips to answer as its dense self does."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from leanear.calibration.likelihood import kl_divergences, negative_log_likelihoods
from leanear.calibration.targets import kind_of, positions
from leanear.data.examples import Inputs, LabelledInputs
from leanear.progress import Report, quiet
from leanear.recover.hidden_states import hidden_sum, outputs_of
from leanear.recover.kept_training import (
    MOMENTS,
    STATE_FILE,
    Distilled,
    check_same_state,
    copy_into,
    read_state,
    restore_moments,
    write_state,
)
from leanear.recover.lora import masked, with_lora
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import sha256_json

Logits = Callable[[nn.Module, Any], torch.Tensor]
LayersOf = Callable[[nn.Module], Sequence[nn.Module]]
Method = Literal["lora", "full"]
METHODS: tuple[Method, ...] = ("lora", "full")
LEARNING_RATES: dict[Method, float] = {"lora": 1e-3, "full": 3e-5}
RATE_AFTER_FAILURE = 0.3  # of the learning rate, after an epoch that made nothing better
FEWEST_EPOCHS, FEWEST_UPDATES = 10, 100  # that are planned where no number of epochs is given

LARGEST_GRADIENT_NORM = 1.0
MOST_KEPT_BYTES = 512 * 1024**2  # of the dense model's answers; above, it answers every batch anew

ALL_EPOCHS = "all epochs are done"
ALL_STEPS = "max_steps updates are done"
NO_BETTER = "the held-out KL no longer falls"
OUT_OF_TIME = "the time budget is spent"
DIVERGED = "the loss is not finite any more"


@dataclass(frozen=True)
class Distillation:
    """How a slim model is trained to answer as the dense one.

    The defaults come from short runs on Whisper tiny.en and on a real AST, see docs/real-models.md. What suits one
    model destroys another: after an epoch that does not lower the held-out KL, training goes back to the best state
    and on at 0.3 of the rate.

    method: "full" trains every parameter, "lora" updates alpha/rank * B A of every linear layer's weight, which are
    merged; learning_rate: None takes the method's own; epochs: passes over the training clips, at most; None takes as
    many as make 100 updates, and 10 at least, so that a few clips are heard often enough; batch_size: clips per update,
    of all processes together; temperature, label_weight, hidden_weight: the loss is label_weight * cross-entropy of the
    observed labels + (1 - label_weight) * temperature^2 KL(dense || slim), both softened by the temperature, and the
    mean over all targets, + hidden_weight * the mean of `hidden_differences` over transformer layers and clips;
    patience: training stops after so many epochs that do not lower the held-out clips' KL at temperature 1, which
    decides which epoch's state is kept, the first of them that before any training; warm_up: share of the updates in
    which the rate rises linearly, before half a cosine takes it to 0; frequency_mask_bins, time_mask_frames: widest
    band and span of the features that is blanked per training clip, for both models alike; max_steps: updates, at most;
    seconds: wall-clock time, without interruptions, after which the epoch under way is the last. The rate falls as
    planned for all updates, so that it is still above 0 where training runs out of time.
    """

    method: Method = "full"
    rank: int = 16
    alpha: float = 16.0
    learning_rate: float | None = None
    epochs: int | None = None
    batch_size: int = 4
    temperature: float = 2.0
    label_weight: float = 0.0
    hidden_weight: float = 1.0
    patience: int = 3
    warm_up: float = 0.05
    frequency_mask_bins: int = 0
    time_mask_frames: int = 0
    max_steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise BadInput(f"distillation method is {self.method!r}; it must be one of {', '.join(METHODS)}")
        for name in ("rank", "epochs", "batch_size", "patience", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"distillation {name} is {value}; it must be at least 1")
        for name in ("frequency_mask_bins", "time_mask_frames"):
            if getattr(self, name) < 0:
                raise BadInput(f"distillation {name} is {getattr(self, name)}; it must be at least 0")
        for name in ("alpha", "learning_rate", "temperature", "seconds"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < math.inf:
                raise BadInput(f"distillation {name} is {value:g}; it must be above 0")
        for name in ("label_weight", "warm_up"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise BadInput(f"distillation {name} is {getattr(self, name):g}; it must lie between 0 and 1")
        if not 0.0 <= self.hidden_weight < math.inf:
            raise BadInput(f"distillation hidden_weight is {self.hidden_weight:g}; it must be at least 0")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up, the method's own unless one was given."""
        return LEARNING_RATES[self.method] if self.learning_rate is None else self.learning_rate

    @property
    def masks(self) -> bool:
        """Whether training clips are blanked in part."""
        return self.frequency_mask_bins > 0 or self.time_mask_frames > 0

    def updates_per_epoch(self, clips: int) -> int:
        """Updates of one pass over so many training clips."""
        return math.ceil(clips / self.batch_size)

    def epochs_planned(self, clips: int) -> int:
        """Passes over so many training clips, at most."""
        if self.epochs is not None:
            return self.epochs
        return max(FEWEST_EPOCHS, math.ceil(FEWEST_UPDATES / self.updates_per_epoch(clips)))

    def updates_planned(self, clips: int) -> int:
        """Updates on so many training clips, at most."""
        planned = self.epochs_planned(clips) * self.updates_per_epoch(clips)
        return planned if self.max_steps is None else min(planned, self.max_steps)


@dataclass(frozen=True)
class _Layers:
    """The transformer layers whose outputs are compared, if any, and which of them a sequence's decoder has."""

    student: tuple[nn.Module, ...] = ()
    teacher: tuple[nn.Module, ...] = ()
    of_decoder: frozenset[int] = frozenset()


@dataclass(frozen=True)
class _Work:
    """All that stays the same during a distillation."""

    accelerator: Any
    student: nn.Module
    teacher: nn.Module
    training: LabelledInputs
    held_out: LabelledInputs
    logits: Logits
    layers: _Layers
    options: Distillation
    seed: int
    report: Report

    @property
    def updates_planned(self) -> int:
        return self.options.updates_planned(len(self.training))


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

    if state is not None and not made_from:
        raise ValueError("a state folder is of no use without made_from: it could be another model's")
    if not len(training) or not len(held_out):
        raise BadInput(
            f"distillation has {len(training)} clips to train on and {len(held_out)} held out; both need one"
        )
    compared = _layers(student, teacher, layers, decoder_layers, training) if options.hidden_weight else _Layers()
    # without this flag, several processes on CPUs would each train alone
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision="no")
    device = accelerator.device
    clips = [training.targets.tolist(), held_out.targets.tolist()]
    identity = sha256_json([dict(made_from or {}), dataclasses.asdict(options), seed, *clips])
    work = _Work(
        accelerator, student, teacher, training, held_out, logits, compared, options, seed,
        report if accelerator.is_main_process else quiet,
    )  # fmt: skip
    state_path = None if state is None else state / STATE_FILE
    random_devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=random_devices), _visiting(student, device), _visiting(teacher, device):
        torch.manual_seed(seed)
        teacher.eval()
        if options.method == "full":
            return _distill(work, dict(student.named_parameters()), state_path, identity)
        adapted = with_lora(student, options.rank, options.alpha)
        try:
            distilled = _distill(work, _learning(student), state_path, identity)
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
) -> _Layers:
    """The layers to compare, found before training wraps what is in them."""
    if layers is None:
        raise ValueError("hidden_weight is of no use without layers: there is nothing to compare")
    if decoder_layers is None and clips.targets.ndim > 1:
        raise ValueError("with targets at positions, decoder_layers must say where positions can be unused")
    of_decoder = () if decoder_layers is None else tuple(decoder_layers(student))
    compared = tuple(layers(student))
    numbers = frozenset(number for number, layer in enumerate(compared) if layer in of_decoder)
    return _Layers(compared, tuple(layers(teacher)), numbers)


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


def _learning(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _distill(work: _Work, trained: dict[str, nn.Parameter], state_path: Path | None, identity: str) -> Distilled:
    """Train the parameters `trained`, epoch by epoch, and leave them in their best state."""
    for parameter in trained.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.values(), lr=work.options.peak_learning_rate, weight_decay=0.0)
    best = {name: parameter.detach().clone() for name, parameter in trained.items()}
    kept = read_state(state_path, identity, best, work.accelerator.device)
    check_same_state(work.accelerator, kept, state_path)
    began_s = time.monotonic() - (0.0 if kept is None else kept.seconds)
    done = Distilled()
    if kept is not None:
        done, best = kept.done, kept.tensors["best"]
        if done.stopped:
            work.report("recovery was finished before", None)
        else:
            work.report(f"recovery goes on after epoch {len(done.training_losses)}", None)
            copy_into(trained, kept.tensors["trained"])
            restore_moments(optimizer, trained, kept.tensors)
    if not done.stopped:
        held_out_logits = None
        if _bytes_of_logits(work, work.held_out) <= MOST_KEPT_BYTES:
            held_out_logits = _all_logits(work, work.teacher, work.held_out)
        # With masks, what the teacher hears changes. The outputs of its layers are larger than most memories: what
        # computes them anew gives the logits as well.
        anew = work.options.masks or work.layers.teacher or _bytes_of_logits(work, work.training) > MOST_KEPT_BYTES
        training_logits = None if anew else _all_logits(work, work.teacher, work.training)
        if kept is None:
            done = dataclasses.replace(done, held_out_kls=(_held_out_kl(work, held_out_logits),))
        while not done.stopped:
            done = _train_epoch(work, trained, optimizer, training_logits, held_out_logits, done)
            seconds = _longest(work.accelerator, time.monotonic() - began_s)
            if not done.stopped and work.options.seconds is not None and seconds >= work.options.seconds:
                done = dataclasses.replace(done, stopped=OUT_OF_TIME)
            if done.best_epoch == len(done.training_losses):
                best = {name: parameter.detach().clone() for name, parameter in trained.items()}
            else:
                _begin_again_(trained, best, optimizer)
            if state_path is not None and work.accelerator.is_main_process:
                write_state(state_path, identity, done, seconds, trained, best, optimizer)
    copy_into(trained, best)
    work.accelerator.wait_for_everyone()
    return done


def _begin_again_(
    trained: Mapping[str, nn.Parameter], best: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """Go back to the best state, and forget what the optimizer knows of the way that led away from it."""
    copy_into(trained, best)
    for parameter in trained.values():
        for moment in MOMENTS:
            if moment in optimizer.state[parameter]:
                optimizer.state[parameter][moment].zero_()


def _failures(done: Distilled) -> int:
    """How many epochs did not lower the held-out KL below all before."""
    kls = done.held_out_kls
    return sum(not kls[epoch] < min(kls[:epoch]) for epoch in range(1, len(kls)))


def _longest(accelerator: Any, seconds: float) -> float:
    """The longest time of any process: they must end after the same epoch."""
    return float(accelerator.reduce(torch.tensor(seconds, device=accelerator.device), "max"))


def _train_epoch(
    work: _Work,
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    training_logits: torch.Tensor | None,
    held_out_logits: torch.Tensor | None,
    done: Distilled,
) -> Distilled:
    """One more pass over the training clips, and what is known after it. Its draws depend on seed and epoch alone."""
    options, accelerator = work.options, work.accelerator
    epoch = len(done.training_losses) + 1
    draws = torch.Generator().manual_seed(work.seed * 1_000_003 + epoch)
    # dropout, if the model has any, differs between processes; what `draws` gives does not
    torch.manual_seed((work.seed * 1_000_003 + epoch) * 4_099 + accelerator.process_index)
    work.student.train()
    updates, loss_sum, clips = done.updates, 0.0, 0
    so_far = f"held-out KL {done.held_out_kls[-1]:.4f} nats"
    batches = torch.randperm(len(work.training), generator=draws).split(options.batch_size)
    peak = options.peak_learning_rate * RATE_AFTER_FAILURE ** _failures(done)
    for rows in batches[: work.updates_planned - updates]:
        blanked = masked(work.training.inputs[rows], options.frequency_mask_bins, options.time_mask_frames, draws)
        optimizer.param_groups[0]["lr"] = peak * _rate_share(work, updates)
        loss = _mean_loss_gradients(work, trained, rows, blanked, training_logits)
        torch.nn.utils.clip_grad_norm_(trained.values(), LARGEST_GRADIENT_NORM)
        if math.isfinite(loss):
            optimizer.step()
        updates, loss_sum, clips = updates + 1, loss_sum + loss * len(rows), clips + len(rows)
        work.report(f"recovery, update {updates}/{work.updates_planned}, {so_far}", updates / work.updates_planned)
    held_out_kls = (*done.held_out_kls, _held_out_kl(work, held_out_logits))
    best_epoch = epoch if held_out_kls[-1] < held_out_kls[done.best_epoch] else done.best_epoch
    stopped = ""
    if not math.isfinite(loss_sum):
        stopped = DIVERGED
    elif updates >= work.updates_planned:
        stopped = ALL_STEPS if updates == options.max_steps else ALL_EPOCHS
    elif epoch - best_epoch >= options.patience:
        stopped = NO_BETTER
    return Distilled(updates, (*done.training_losses, loss_sum / clips), held_out_kls, best_epoch, stopped)


def _rate_share(work: _Work, updates: int) -> float:
    """Share of the learning rate for the next update: a linear rise, then half a cosine to 0."""
    warm_up = round(work.options.warm_up * work.updates_planned)
    if updates < warm_up:
        return (updates + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (updates - warm_up) / (work.updates_planned - warm_up)))


def _mean_loss_gradients(
    work: _Work,
    trained: Mapping[str, nn.Parameter],
    rows: torch.Tensor,
    blanked: Inputs,
    training_logits: torch.Tensor | None,
) -> float:
    """The mean loss of a batch shared out among the processes; leaves its gradients in the parameters of each.

    The gradients are summed here, not by DistributedDataParallel: so a last batch that does not divide evenly keeps
    its exact mean, and a block that keeps no head, whose parameters get no gradient, is no error.
    """
    accelerator = work.accelerator
    mine = _share(accelerator, torch.arange(len(rows)))
    all_targets = work.training.targets[rows]
    for parameter in trained.values():
        parameter.grad = torch.zeros_like(parameter)
    loss = torch.zeros((), device=accelerator.device)
    if len(mine):
        part = blanked[mine].to(accelerator.device)
        targets = all_targets[mine].to(accelerator.device)
        dense_outputs: dict[int, torch.Tensor] = {}
        if training_logits is None:
            with torch.no_grad(), outputs_of(work.layers.teacher) as dense_outputs:
                dense_logits = work.logits(work.teacher, part)
        else:
            dense_logits = training_logits[rows[mine].to(accelerator.device)]
        with outputs_of(work.layers.student) as slim_outputs:
            slim_logits = work.logits(work.student, part)
        loss = _loss_sum(slim_logits, dense_logits, targets, work.options) / positions(all_targets)
        if slim_outputs:
            hidden = hidden_sum(dense_outputs, slim_outputs, targets, work.layers.of_decoder)
            loss = loss + work.options.hidden_weight * hidden / len(rows)
        accelerator.backward(loss)
    if accelerator.num_processes > 1:
        gradients = torch.cat([parameter.grad.flatten() for parameter in trained.values()])  # type: ignore[union-attr]
        summed = accelerator.reduce(gradients, "sum").split([parameter.numel() for parameter in trained.values()])
        for parameter, gradient in zip(trained.values(), summed, strict=True):
            parameter.grad = gradient.view_as(parameter)
    return float(accelerator.reduce(loss.detach(), "sum"))


def _loss_sum(
    slim_logits: torch.Tensor, dense_logits: torch.Tensor, targets: torch.Tensor, options: Distillation
) -> torch.Tensor:
    """The loss that `Distillation` defines, summed over the clips' targets; logits are (B, C) or (B, L, C)."""
    temperature = options.temperature
    divergences = kl_divergences(dense_logits / temperature, slim_logits / temperature, targets)
    softened = temperature**2 * divergences.sum()
    if not options.label_weight:
        return softened
    labelled = negative_log_likelihoods(slim_logits, targets).sum()
    return options.label_weight * labelled + (1 - options.label_weight) * softened


def _share(accelerator: Any, clips: torch.Tensor) -> torch.Tensor:
    """This process's part of the clips: in one piece, and as large as the others' give or take one."""
    return torch.tensor_split(clips, accelerator.num_processes)[accelerator.process_index]


@torch.no_grad()
def _bytes_of_logits(work: _Work, clips: LabelledInputs) -> int:
    """What the logits of all these clips take."""
    if kind_of(clips.targets) != "sequence":
        return 0  # one row each: never much
    work.teacher.eval()
    one = work.logits(work.teacher, clips.inputs[:1].to(work.accelerator.device))
    return len(clips) * one.numel() * one.element_size()


@torch.no_grad()
def _logits_of(work: _Work, model: nn.Module, clips: LabelledInputs) -> torch.Tensor:
    model.eval()
    batches = torch.arange(len(clips)).split(work.options.batch_size)
    parts = [work.logits(model, clips.inputs[rows].to(work.accelerator.device)) for rows in batches if len(rows)]
    shape = (0, 1, 1) if kind_of(clips.targets) == "sequence" else (0, 1)
    return torch.cat(parts) if parts else torch.zeros(shape, device=work.accelerator.device)


def _all_logits(work: _Work, model: nn.Module, clips: LabelledInputs) -> torch.Tensor:
    """The model's logits of the clips, (clips, ...), the same on all processes, each of which computes a part."""
    accelerator = work.accelerator
    mine = _share(accelerator, torch.arange(len(clips)))
    own = _logits_of(work, model, clips[mine])
    if accelerator.num_processes == 1:
        return own
    sizes = accelerator.reduce(torch.tensor(own.shape[1:], device=accelerator.device), "max").tolist()
    everything = torch.zeros(len(clips), *sizes, device=accelerator.device)
    if len(own):
        everything[mine.to(accelerator.device)] = own
    return accelerator.reduce(everything, "sum")


def _held_out_kl(work: _Work, held_out_logits: torch.Tensor | None) -> float:
    """The mean KL(dense || slim) at the targets of the held-out clips, nats, the same on all processes.

    held_out_logits: the dense model's, or None to ask it batch by batch.
    """
    targets = work.held_out.targets
    if held_out_logits is not None:
        slim_logits = _all_logits(work, work.student, work.held_out)
        return float(kl_divergences(held_out_logits, slim_logits, targets).cpu().double().mean())
    total = torch.zeros((), dtype=torch.float64)
    for rows in _share(work.accelerator, torch.arange(len(targets))).split(work.options.batch_size):
        if len(rows):
            clips = work.held_out[rows]
            dense, slim = (_logits_of(work, model, clips) for model in (work.teacher, work.student))
            total += kl_divergences(dense, slim, clips.targets).cpu().double().sum()
    total = work.accelerator.reduce(total.to(work.accelerator.device), "sum")
    return float(total) / positions(targets)
