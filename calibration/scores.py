"""How much every attention channel and head matters, by the two scores of arXiv 2509.26207. Higher stays.

The one is the diagonal empirical Fisher information of the attention projections, F_p = (1/M) sum over M batches of
(d batch-mean loss / d p)^2, with the observed labels. Kept is the undamped sum over batches, already added up over the
model width D to one number per channel, so that sums of shards can be merged.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from leanear.calibration.passes import only_these_learn
from leanear.calibration.sites import AttentionSite
from leanear.calibration.targets import positions
from leanear.runtimes.errors import BadInput

PROJECTIONS = ("query", "key", "value", "output")

BatchLoss = Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]
Progress = Callable[[int, int], None]
FISHER_DAMPING = 1e-6  # per weight; the source's constant. It shifts all channels alike, so it ranks nothing.


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


@dataclass(frozen=True)
class SiteScores:
    """Scores of one attention block, float64.

    query_key: per head an array (K_h,); value_output: per head an array (V_h,); head: (H,).
    """

    query_key: tuple[np.ndarray, ...]
    value_output: tuple[np.ndarray, ...]
    head: np.ndarray


def score_magnitude(sites: Sequence[AttentionSite]) -> tuple[SiteScores, ...]:
    """L1 norms of weights: of a channel the mean over its two vectors, of a head the mean over its four matrices.

    A query/key channel is a row of the query weight and a row of the key weight; a value/output channel is a row of the
    value weight and a column of the output weight. Biases are not counted.
    """
    return tuple(_magnitude_site_scores(site) for site in sites)


def _magnitude_site_scores(site: AttentionSite) -> SiteScores:
    return _site_scores(
        site,
        _l1_norms(site.query.weight, dim=1),
        _l1_norms(site.key.weight, dim=1),
        _l1_norms(site.value.weight, dim=1),
        _l1_norms(site.output.weight, dim=0),
        channel=lambda one, other: (one + other) / 2,
        head=lambda four: sum(four) / 4,
    )


def _l1_norms(weight: torch.Tensor, dim: int) -> torch.Tensor:
    return weight.detach().double().abs().sum(dim=dim)


def score_fisher(
    sites: Sequence[AttentionSite], curvature: Curvature, damping: float = FISHER_DAMPING
) -> tuple[SiteScores, ...]:
    """Sums of the diagonal Fisher information, mean over batches plus `damping` per weight.

    A channel's score adds up its two vectors of D weights each, a head's score its four matrices. Biases are not
    counted.

    Raises:
        BadInput: the curvature was collected from a model with other attention blocks or widths.
    """
    return tuple(_fisher_site_scores(site, curvature, damping) for site in sites)


def _fisher_site_scores(site: AttentionSite, curvature: Curvature, damping: float) -> SiteScores:
    sums = curvature.sites.get(site.name)
    if sums is None:
        raise BadInput(f"the curvature lacks {site.name}: it was collected from another model")
    if len(sums.query) != site.query.out_features or len(sums.value) != site.value.out_features:
        raise BadInput(f"the curvature of {site.name} has other widths: it was collected from another model")
    damped = damping * site.query.in_features
    return _site_scores(
        site,
        sums.query / curvature.batches + damped,
        sums.key / curvature.batches + damped,
        sums.value / curvature.batches + damped,
        sums.output / curvature.batches + damped,
        channel=lambda one, other: one + other,
        head=sum,
    )


def _site_scores(
    site: AttentionSite,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    *,
    channel: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    head: Callable[[list[float]], float],
) -> SiteScores:
    """Scores from one number per channel and projection, (sum K,) or (sum V,) each."""
    query_key, value_output = list(site.query_key_widths), list(site.value_output_widths)
    splits = (query.split(query_key), key.split(query_key), value.split(value_output), output.split(value_output))
    return SiteScores(
        query_key=tuple(part.cpu().numpy() for part in channel(query, key).split(query_key)),
        value_output=tuple(part.cpu().numpy() for part in channel(value, output).split(value_output)),
        head=np.array([head([float(part.sum()) for part in parts]) for parts in zip(*splits, strict=True)]),
    )
