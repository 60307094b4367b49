"""How much every attention channel and head matters, by the two scores of arXiv 2509.26207. Higher stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from leanear.calibration.curvature import Curvature
from leanear.calibration.sites import AttentionSite
from leanear.runtimes.errors import BadInput

FISHER_DAMPING = 1e-6  # per weight; the source's constant. It shifts all channels alike, so it ranks nothing.


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
