"""The epochs of a distillation: update by update, with the best state on held-out clips kept."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leanear.accelerator import has_bfloat16
from leanear.calibration.targets import kl_divergences, negative_log_likelihoods, positions
from leanear.data.examples import Inputs, LabelledInputs
from leanear.progress import Report
from leanear.recover.distillation_options import Distillation
from leanear.recover.hidden_states import hidden_sum, outputs_of
from leanear.recover.kept_training import (
    MOMENTS,
    Distilled,
    check_same_state,
    copy_into,
    read_state,
    restore_moments,
    write_state,
)
from leanear.recover.variations import varied

Logits = Callable[[nn.Module, Any], torch.Tensor]
WORSE = 1.1  # times the least held-out KL: an epoch that ends above is taken back
RATE_AFTER_WORSE = 0.3  # of the learning rate, from then on
LARGEST_GRADIENT_NORM = 1.0
ALL_EPOCHS = "all epochs are done"
ALL_STEPS = "max_steps updates are done"
NO_BETTER = "the held-out KL no longer falls"
OUT_OF_TIME = "the time budget is spent"
DIVERGED = "the loss is not finite any more"  # of an epoch that is not in what is told of the training


@dataclass(frozen=True)
class ComparedLayers:
    """The transformer layers whose outputs are compared, if any, and which of them a sequence's decoder has."""

    student: tuple[nn.Module, ...] = ()
    teacher: tuple[nn.Module, ...] = ()
    of_decoder: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Work:
    """All that stays the same during a distillation."""

    accelerator: Any
    student: nn.Module
    teacher: nn.Module
    training: LabelledInputs
    held_out: LabelledInputs
    logits: Logits
    layers: ComparedLayers
    options: Distillation
    seed: int
    report: Report

    @property
    def updates_planned(self) -> int:
        """Updates on the training clips, at most."""
        return self.options.updates_planned(len(self.training))


def train(work: Work, trained: dict[str, nn.Parameter], state_path: Path | None, identity: str) -> Distilled:
    """Train the parameters `trained`, epoch by epoch, and leave them in their best state."""
    for parameter in trained.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.values(), lr=work.options.peak_learning_rate, weight_decay=0.0)
    best = {name: parameter.detach().clone() for name, parameter in trained.items()}
    kept = read_state(state_path, identity, work.accelerator.device)
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
        if kept is None:
            before = _held_out_kl(work)
            held_out_kls, stopped = ((before,), "") if math.isfinite(before) else ((), DIVERGED)
            done = Distilled(held_out_kls=held_out_kls, stopped=stopped, updates_planned=work.updates_planned)
        while not done.stopped:
            done = _train_epoch(work, trained, optimizer, done)
            own_s = torch.tensor(time.monotonic() - began_s, device=work.accelerator.device)
            seconds = float(work.accelerator.reduce(own_s, "max"))  # all processes must end after the same epoch
            done = done if done.stopped else _within_time(work.options.seconds, done, seconds)
            if done.best_epoch == len(done.training_losses) and done.stopped != DIVERGED:
                best = {name: parameter.detach().clone() for name, parameter in trained.items()}
            elif _worse(done, len(done.training_losses)):
                _begin_again_(trained, best, optimizer)
            if state_path is not None and work.accelerator.is_main_process:
                write_state(state_path, identity, done, seconds, trained, best, optimizer)
    copy_into(trained, best)
    work.accelerator.wait_for_everyone()
    return done


def _within_time(budget_s: float | None, done: Distilled, seconds: float) -> Distilled:
    """The training so far, at its end where its time is spent.

    After the first epoch no more are planned than have begun when the time is spent, at that epoch's pace: so the rate
    has fallen to 0 by then.
    """
    if budget_s is None:
        return done
    if len(done.training_losses) == 1:
        fitting = math.ceil(budget_s / seconds) * done.updates
        done = dataclasses.replace(done, updates_planned=min(done.updates_planned, fitting))
    spent = seconds >= budget_s or done.updates >= done.updates_planned
    return dataclasses.replace(done, stopped=OUT_OF_TIME) if spent else done


def _begin_again_(
    trained: Mapping[str, nn.Parameter], best: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """Go back to the best state, and forget what the optimizer knows of the way that led away from it."""
    copy_into(trained, best)
    for parameter in trained.values():
        for moment in MOMENTS:
            if moment in optimizer.state[parameter]:
                optimizer.state[parameter][moment].zero_()


def _worse(done: Distilled, epoch: int) -> bool:
    """Whether this epoch led away from the best before it; a rate that is high yet often leads nowhere for a while."""
    kls = done.held_out_kls
    return epoch > 0 and kls[epoch] > WORSE * min(kls[:epoch])


def _train_epoch(
    work: Work, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, done: Distilled
) -> Distilled:
    """One more pass over the training clips, and what is known after it. Its draws depend on seed and epoch alone."""
    options, accelerator = work.options, work.accelerator
    epoch, planned = len(done.training_losses) + 1, done.updates_planned
    draws = torch.Generator().manual_seed(work.seed * 1_000_003 + epoch)
    # dropout, if the model has any, differs between processes; what `draws` gives does not
    torch.manual_seed((work.seed * 1_000_003 + epoch) * 4_099 + accelerator.process_index)
    work.student.train()
    updates, loss_sum, clips = done.updates, 0.0, 0
    so_far = f"held-out KL {done.held_out_kls[-1]:.4f} nats"
    batches = torch.randperm(len(work.training), generator=draws).split(options.batch_size)
    peak = options.peak_learning_rate * RATE_AFTER_WORSE ** sum(_worse(done, each) for each in range(1, epoch))
    for rows in batches[: planned - updates]:
        batch = work.training[rows].trimmed()
        heard = varied(batch.inputs, options.frequency_warp, options.time_warp, draws)
        optimizer.param_groups[0]["lr"] = peak * _rate_share(options.warm_up, updates, planned)
        loss = _mean_loss_gradients(work, trained, heard, batch.targets)
        torch.nn.utils.clip_grad_norm_(trained.values(), LARGEST_GRADIENT_NORM)
        if math.isfinite(loss):
            optimizer.step()
        updates, loss_sum, clips = updates + 1, loss_sum + loss * len(rows), clips + len(rows)
        work.report(f"recovery, update {updates}/{planned}, {so_far}", updates / planned)
    after = _held_out_kl(work)
    if not math.isfinite(loss_sum + after):
        return dataclasses.replace(done, updates=updates, stopped=DIVERGED)
    held_out_kls = (*done.held_out_kls, after)
    best_epoch = epoch if held_out_kls[-1] < held_out_kls[done.best_epoch] else done.best_epoch
    stopped = ""
    if updates >= work.updates_planned:
        stopped = ALL_STEPS if updates == options.max_steps else ALL_EPOCHS
    elif epoch - best_epoch >= options.patience:
        stopped = NO_BETTER
    losses = (*done.training_losses, loss_sum / clips)
    return Distilled(updates, losses, held_out_kls, best_epoch, stopped, planned)


def _rate_share(warm_up_share: float, updates: int, planned: int) -> float:
    """Share of the learning rate for the next update: a linear rise, then half a cosine to 0."""
    warm_up = round(warm_up_share * planned)
    if updates < warm_up:
        return (updates + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (updates - warm_up) / (planned - warm_up)))


def _mean_loss_gradients(
    work: Work, trained: Mapping[str, nn.Parameter], heard: Inputs, all_targets: torch.Tensor
) -> float:
    """The mean loss of a batch shared out among the processes; leaves its gradients in the parameters of each.

    The gradients are summed here, not by DistributedDataParallel: so a last batch that does not divide evenly keeps
    its exact mean, and a block that keeps no head, whose parameters get no gradient, is no error.
    """
    accelerator = work.accelerator
    mine = _share(accelerator, torch.arange(len(heard)))
    for parameter in trained.values():
        parameter.grad = torch.zeros_like(parameter)
    loss = torch.zeros((), device=accelerator.device)
    if len(mine):
        part = heard[mine].to(accelerator.device)
        targets = all_targets[mine].to(accelerator.device)
        faster = work.options.bfloat16 and has_bfloat16(accelerator.device)
        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=faster):
            with torch.no_grad(), outputs_of(work.layers.teacher) as dense_outputs:
                dense_logits = work.logits(work.teacher, part).float()
            with outputs_of(work.layers.student) as slim_outputs:
                slim_logits = work.logits(work.student, part).float()
        loss = _loss_sum(slim_logits, dense_logits, targets, work.options) / positions(all_targets)
        if slim_outputs:
            hidden = hidden_sum(dense_outputs, slim_outputs, targets, work.layers.of_decoder)
            loss = loss + work.options.hidden_weight * hidden / len(heard)
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
def _held_out_kl(work: Work) -> float:
    """The mean KL(dense || slim) at the targets of the held-out clips, nats, the same on all processes."""
    targets, device = work.held_out.targets, work.accelerator.device
    total = torch.zeros((), dtype=torch.float64)
    work.student.eval()
    for rows in _share(work.accelerator, torch.arange(len(targets))).split(work.options.batch_size):
        if len(rows):
            clips = work.held_out[rows]
            dense, slim = (work.logits(model, clips.inputs.to(device)) for model in (work.teacher, work.student))
            total += kl_divergences(dense, slim, clips.targets.to(device)).cpu().double().sum()
    return float(work.accelerator.reduce(total.to(device), "sum")) / positions(targets)
