"""A training under way, kept in a file so that the same command goes on from there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from leanear.runtimes import records
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import replaced_file
from leanear.runtimes.process.interrupts import remember_kept

STATE_FILE = "distillation.safetensors"
STATE_SCHEMA = "leanear-distillation-2"
METADATA_KEY = "leanear"  # one key, because safetensors does not keep the order of several
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # torch's names of what AdamW keeps of every parameter


@dataclass(frozen=True)
class Distilled:
    """What a distillation did.

    updates: made in all; training_losses: mean of every epoch; held_out_kls: KL(dense || slim) in nats per target of
    the held-out clips, before training and after every epoch; best_epoch: after which epoch the state was taken that
    the model has now, 0 for the one before training; stopped: why training ended.
    """

    updates: int = 0
    training_losses: tuple[float, ...] = ()
    held_out_kls: tuple[float, ...] = ()
    best_epoch: int = 0
    stopped: str = ""


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
    description = {
        "schema": STATE_SCHEMA, "identity": identity, "done": dataclasses.asdict(done), "seconds": seconds,
    }  # fmt: skip
    with replaced_file(path) as part:
        try:
            save_file(
                {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
                part,
                metadata={METADATA_KEY: json.dumps(description, sort_keys=True)},
            )
        except SafetensorError as error:  # it has no errno of its own: a full disk, most often
            raise OSError(0, str(error), str(path)) from None
        remember_kept(path)  # before it is there: an interruption can come in between


def read_state(
    path: Path | None, identity: str, expected: Mapping[str, torch.Tensor], device: torch.device
) -> _Kept | None:
    """What an earlier run left, or None where there is no whole state of these inputs."""
    if path is None or not path.is_file():
        return None
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as stream:
            description = json.loads((stream.metadata() or {}).get(METADATA_KEY, "{}"))
            if (description.get("schema"), description.get("identity")) != (STATE_SCHEMA, identity):
                return None
            for key in stream.keys():  # noqa: SIM118 - not a dict, it has no iterator
                kind, name = key.split("/", 1)
                # torch keeps AdamW's step on the CPU
                tensors.setdefault(kind, {})[name] = stream.get_tensor(key).to("cpu" if kind == "step" else device)
    except (SafetensorError, json.JSONDecodeError):
        return None  # damaged: the training is done again
    done = records.read(Distilled, description["done"], path)
    kinds = {"best"} if done.stopped else {"best", "trained", *MOMENTS}
    whole = tensors.keys() == kinds and all(tensors[kind].keys() == expected.keys() for kind in kinds)
    if not whole or any(tensors["best"][name].shape != value.shape for name, value in expected.items()):
        return None
    remember_kept(path)
    return _Kept(done, description["seconds"], tensors)


def check_same_state(accelerator: Any, kept: _Kept | None, path: Path | None) -> None:
    """Processes that go on after different epochs would wait for each other for ever."""
    epochs = -1 if kept is None else len(kept.done.training_losses)
    found = accelerator.gather(torch.tensor([epochs], device=accelerator.device)).tolist()
    if len(set(found)) > 1:
        raise BadInput(f"{path}: the processes do not see the same state; its folder must be on a disk that they share")
