"""The diagonal empirical Fisher information of the attention projections, summed to one number per channel.

F_p = (1/M) sum over M batches of (d batch-mean loss / d p)^2, with the observed labels (arXiv 2509.26207). Kept is the
undamped sum over batches, already added up over the model width D, so that sums of shards can be merged.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from leanear.calibration.passes import only_these_learn
from leanear.calibration.sites import AttentionSite
from leanear.calibration.targets import positions

PROJECTIONS = ("query", "key", "value", "output")

BatchLoss = Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]
Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class SiteCurvature:
    """Squared gradients of one attention block, summed over batches and over the model width; float64.

    query, key: (sum K,), one per row of the weight; value: (sum V,), per row; output: (sum V,), per column.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    output: torch.Tensor


@dataclass(frozen=True)
class Curvature:
    """Undamped sums for every attention block of one model, by the block's name, and what they were summed over.

    batches: how many squared gradients were added.
    """

    sites: Mapping[str, SiteCurvature]
    batches: int


def collect_curvature(
    model: nn.Module,
    sites: Sequence[AttentionSite],
    inputs: Any,
    targets: torch.Tensor,
    batch_loss: BatchLoss,
    *,
    order: torch.Tensor | None = None,
    batch_size: int = 16,
    clips_at_once: int | None = None,
    recomputed_layers: Sequence[nn.Module] = (),
    progress: Progress = _silent,
) -> Curvature:
    """Sums of squared batch gradients over as many whole batches as the clips make.

    inputs: (N, ...) as the model takes them; targets: as in `leanear.calibration.targets`; batch_loss(model,
    inputs, targets): the mean loss over all positions that have a target.
    order: which clips and in which order, int64; all of them as they come if None. batch_size: clips whose mean loss is
    differentiated and squared, or all if there are fewer; clips_at_once: how many of them are in
    memory together, which changes nothing but memory and time; recomputed_layers: layers whose activations are computed
    again in the backward pass instead of kept; progress: called with clips done and in all.

    The model is left as it was: weights, training mode and requires_grad.
    """
    order = torch.arange(len(inputs)) if order is None else order
    batch_size = min(batch_size, len(order))
    batches = len(order) // batch_size
    weights = [[getattr(site, name).weight for name in PROJECTIONS] for site in sites]
    every_weight = [weight for site_weights in weights for weight in site_weights]
    sums = [
        [
            torch.zeros(_channels(weight, name), dtype=torch.float64)
            for name, weight in zip(PROJECTIONS, four, strict=True)
        ]
        for four in weights
    ]
    with only_these_learn(model, every_weight), recomputed_activations(recomputed_layers):
        for batch in range(batches):
            first = batch * batch_size
            in_batch = positions(targets[order[first : first + batch_size]])
            for start in range(first, first + batch_size, clips_at_once or batch_size):
                end = min(start + (clips_at_once or batch_size), first + batch_size)
                clips = order[start:end]
                loss = batch_loss(model, inputs[clips], targets[clips])
                (loss * (positions(targets[clips]) / in_batch)).backward()
                progress(end, batches * batch_size)
            for site_weights, site_sums in zip(weights, sums, strict=True):
                _add_squared_gradients(site_weights, site_sums)
    named = {site.name: SiteCurvature(*site_sums) for site, site_sums in zip(sites, sums, strict=True)}
    return Curvature(named, batches)


def _channels(weight: torch.Tensor, projection: str) -> int:
    return weight.shape[1] if projection == "output" else weight.shape[0]


def _add_squared_gradients(weights: Sequence[torch.Tensor], sums: Sequence[torch.Tensor]) -> None:
    for name, weight, total in zip(PROJECTIONS, weights, sums, strict=True):
        gradient, weight.grad = weight.grad, None
        if gradient is None:
            raise ValueError(f"the loss does not depend on a {name} projection")
        total += gradient.double().square().sum(dim=0 if name == "output" else 1).cpu()


@contextlib.contextmanager
def recomputed_activations(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block, the layers keep only their inputs and run forward again when gradients pass through them."""
    originals = [layer.forward for layer in layers]
    try:
        for layer, original in zip(layers, originals, strict=True):
            layer.forward = functools.partial(checkpoint, original, use_reentrant=False)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def curvature_tensors(curvature: Curvature) -> dict[str, torch.Tensor]:
    """Every tensor by the name "<block>/<projection>", and "batches", int64 (1,)."""
    sums = {
        f"{name}/{projection}": getattr(site, projection)
        for name, site in curvature.sites.items()
        for projection in PROJECTIONS
    }
    return {**sums, "batches": torch.tensor([curvature.batches])}


def curvature_from_tensors(tensors: Mapping[str, torch.Tensor]) -> Curvature:
    """The curvature that `curvature_tensors` took apart."""
    names = dict.fromkeys(key.rpartition("/")[0] for key in tensors if "/" in key)
    sites = {name: SiteCurvature(*(tensors[f"{name}/{projection}"] for projection in PROJECTIONS)) for name in names}
    return Curvature(sites, int(tensors["batches"]))
