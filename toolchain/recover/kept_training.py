"""A training under way, kept in a file so that the same command goes on from there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leanear.calibration.shards import keep_tensors, kept_and_told
from leanear.runtimes import records
from leanear.runtimes.errors import BadInput

STATE_FILE = "distillation.safetensors"
STATE_SCHEMA = "leanear-distillation-4"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # torch's names of what AdamW keeps of every parameter


@dataclass(frozen=True)
class Distilled:
    """What a distillation did.

    updates: made in all; training_losses: mean of every epoch; held_out_kls: KL(dense || slim) in nats per target of
    the held-out clips, before training and after every epoch; best_epoch: after which epoch the state was taken that
    the model has now, 0 for the one before training; stopped: why training ended; updates_planned: over which the rate
    fell, fewer where time was short.
    """

    updates: int = 0
    training_losses: tuple[float, ...] = ()
    held_out_kls: tuple[float, ...] = ()
    best_epoch: int = 0
    stopped: str = ""
    updates_planned: int = 0


@dataclass(frozen=True)
class _Kept:
    """What an earlier run left: what it did, in how many seconds, and its tensors by kind and name."""

    done: Distilled
    seconds: float
    tensors: dict[str, dict[str, torch.Tensor]]


def copy_into(parameters: Mapping[str, nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


def restore_moments(
    optimizer: torch.optim.Optimizer,
    trained: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
) -> None:
    states = {number: {moment: tensors[moment][name] for moment in MOMENTS} for number, name in enumerate(trained)}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def write_state(
    path: Path,
    identity: str,
    done: Distilled,
    seconds: float,
    trained: Mapping[str, nn.Parameter],
    best: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write what a later run needs, whole or not at all: of a finished training its best state alone."""
    tensors = {f"best/{name}": value for name, value in best.items()}
    if not done.stopped:
        for name, parameter in trained.items():
            tensors[f"trained/{name}"] = parameter.detach()
            tensors |= {f"{moment}/{name}": optimizer.state[parameter][moment] for moment in MOMENTS}
    told = {"done": dataclasses.asdict(done), "seconds": seconds}
    keep_tensors(path, tensors, {"schema": STATE_SCHEMA, "identity": identity}, told)


def read_state(path: Path | None, identity: str, device: torch.device) -> _Kept | None:
    """What an earlier run left, or None where there is no whole state of these inputs."""
    found = None if path is None else kept_and_told(path, {"schema": STATE_SCHEMA, "identity": identity})
    if found is None:
        return None
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in found[0].items():
        kind, name = key.split("/", 1)
        # torch keeps AdamW's step on the CPU
        tensors.setdefault(kind, {})[name] = tensor.to("cpu" if kind == "step" else device)
    return _Kept(records.read(Distilled, found[1]["done"], path), found[1]["seconds"], tensors)


def check_same_state(accelerator: Any, kept: _Kept | None, path: Path | None) -> None:
    """Processes that go on after different epochs would wait for each other for ever."""
    epochs = -1 if kept is None else len(kept.done.training_losses)
    found = accelerator.gather(torch.tensor([epochs], device=accelerator.device)).tolist()
    if len(set(found)) > 1:
        raise BadInput(f"{path}: the processes do not see the same state; its folder must be on a disk that they share")
