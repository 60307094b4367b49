"""How far a slim model's hidden states are from the dense model's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from leanear.calibration.targets import before_the_end


@contextlib.contextmanager
def outputs_of(layers: Sequence[nn.Module]) -> Iterator[dict[int, torch.Tensor]]:
    """What the layers give in the next pass, by number; a layer that the training passes over gives nothing."""
    outputs: dict[int, torch.Tensor] = {}

    def keep(number: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_layer: nn.Module, _given: Any, output: Any) -> None:
            outputs[number] = output if isinstance(output, torch.Tensor) else output[0]

        return hook

    with contextlib.ExitStack() as hooks:
        for number, layer in enumerate(layers):
            hooks.enter_context(layer.register_forward_hook(keep(number)))
        yield outputs


def hidden_sum(
    dense_outputs: Mapping[int, torch.Tensor],
    slim_outputs: Mapping[int, torch.Tensor],
    targets: torch.Tensor,
    of_decoder: frozenset[int],
) -> torch.Tensor:
    """The mean of `hidden_differences` over layers, summed over the clips of a part of a batch."""
    used = before_the_end(targets)
    differences = [
        hidden_differences(dense_outputs[number], slim, used if number in of_decoder else None).sum()
        for number, slim in slim_outputs.items()
    ]
    return torch.stack(differences).mean()


def hidden_differences(dense: torch.Tensor, slim: torch.Tensor, used: torch.Tensor | None = None) -> torch.Tensor:
    """|slim - dense|^2 / |dense|^2 of every clip, (B,), over the used of a layer's outputs (B, T, D).

    used: (B, T), whether an output counts, or None for all. The gradient is that of the slim outputs alone.
    """
    dense, slim = dense.detach().float(), slim.float()
    squares = dense.square().sum(dim=2)  # (B, T)
    differences = functional.mse_loss(slim, dense, reduction="none").sum(dim=2)
    if used is not None:
        squares, differences = (each.masked_fill(~used, 0.0) for each in (squares, differences))
    # a clip without any used output has no difference either
    return differences.sum(dim=1) / squares.sum(dim=1).clamp_min(torch.finfo(squares.dtype).tiny)
