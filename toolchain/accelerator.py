"""The workstation's GPU, where torch finds one: scoring, measuring and training run there, all else on the CPU."""

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import nn


def accelerator() -> torch.device:
    """The device of this process: under `torchrun` each its own GPU, the CPU where there is none."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return torch.device("cpu")
    return torch.device(found.type, int(os.environ.get("LOCAL_RANK", "0")) % torch.accelerator.device_count())


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16, so that training on it is faster so."""
    if device.type == "cpu":
        found = torch.cpu.get_capabilities()
        return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@contextlib.contextmanager
def on_accelerator(*models: nn.Module) -> Iterator[None]:
    """The models on the accelerator within the block, and after it where they were."""
    homes = [next(model.parameters()).device for model in models]
    try:
        for model in models:
            model.to(accelerator())
        yield
    finally:
        for model, home in zip(models, homes, strict=True):
            model.to(home)
