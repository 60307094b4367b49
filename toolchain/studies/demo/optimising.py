"""What both demos' trainings share: a running average of the weights, and everything kept on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import Module

from leanear.runtimes.files import replaced_file


@dataclass(frozen=True)
class State:
    """Everything that a resumed training needs besides the step."""

    modules: dict[str, Module]
    optimizers: dict[str, torch.optim.Optimizer]


@torch.no_grad()
def average_into(averaged: Module, model: Module, decay: float, step: int) -> None:
    """Moves the running average towards the model's weights; the first steps count for more, so none lingers."""
    decay = min(decay, (1 + step) / (10 + step))
    for slow, fast in zip(averaged.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


def save_state(file: Path, state: State, step: int) -> None:
    """Writes all weights and moments with the number of steps that they have behind them."""
    tensors: dict[str, torch.Tensor] = {}
    for part, module in state.modules.items():
        tensors |= {f"{part}.{name}": value.detach() for name, value in module.named_parameters()}
    for part, optimizer in state.optimizers.items():
        for number, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{part}.{number}.{name}": value for name, value in moments.items()}
    with replaced_file(file) as partial:
        save_file(tensors, partial, metadata={"step": str(step)})


@torch.no_grad()
def restore_state(file: Path, state: State) -> int:
    """The step that `file` was written after; everything in `state` is set to that step."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    with safe_open(file, framework="pt") as tensors:
        step = int(tensors.metadata()["step"])
        for key in tensors.keys():  # noqa: SIM118 - not a dict, it has no iterator
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = tensors.get_tensor(key)
    for part, module in state.modules.items():
        for name, weight in module.named_parameters():
            weight.copy_(parts[part][name])
    for part, optimizer in state.optimizers.items():
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in parts[part].items():
            number, _, name = key.partition(".")
            moments.setdefault(int(number), {})[name] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    return step
