"""What others do in closed form at one width for all heads, as bases of this project: to be compared with, not used.

Both are written from their papers' descriptions, and are only as good as that. Dimension letters: H heads, K query/key
width, V value/output width; k and v: what is kept of them.
"""

from __future__ import annotations

import torch

from leanear.calibration.basis import SiteBasis, head_weights
from leanear.calibration.feed_forward import FeedForwardBasis
from leanear.calibration.sites import AttentionSite, FeedForwardSite
from leanear.calibration.statistics import SiteStatistics

RIDGE = 1e-3  # of the mean eigenvalue


def principal_basis(statistics: SiteStatistics) -> SiteBasis:
    """Principal components of what the projections give, folded into their weights (after LiteASR, arXiv 2502.20583).

    Queries and keys of a head share the components of both; contexts have their own. Orthonormal, largest first.
    """
    queries, keys = statistics.tokens
    scores = statistics.query_gram / queries + statistics.key_gram / keys
    query = torch.linalg.eigh(scores).eigenvectors.flip(-1).mT
    value = torch.linalg.eigh(statistics.context_covariance).eigenvectors.flip(-1).mT
    return _basis(statistics, query, query, value, value)


def ridge_basis(site: AttentionSite, statistics: SiteStatistics, widths: tuple[int, int]) -> SiteBasis:
    """Channels of the highest energy, and ridge regression of the rest on them (after CORP, arXiv 2602.05243).

    widths: k and v, at which the regressions are made; only the first k and v rows of the basis mean anything. Scores
    q k^T are fitted by q_S M k_S^T, contexts by those of the kept channels.
    """
    queries, keys = statistics.tokens
    query_gram, key_gram = statistics.query_gram / queries, statistics.key_gram / keys
    covariance, weights = statistics.context_covariance, head_weights(site)
    rows = [torch.zeros_like(query_gram), torch.zeros_like(key_gram), torch.zeros_like(covariance)]
    query, key, value, output = (*rows, torch.zeros_like(covariance))
    for head, weight in enumerate(weights):
        energy = query_gram[head].diagonal() * key_gram[head].diagonal()
        kept = energy.argsort(descending=True, stable=True)[: widths[0]]
        by_query = torch.linalg.solve(_regular(query_gram[head], kept), query_gram[head][kept])
        by_key = torch.linalg.solve(_regular(key_gram[head], kept), key_gram[head][kept])
        query[head, : len(kept), kept] = (by_query @ by_key.mT).mT
        key[head, torch.arange(len(kept)), kept] = 1.0
        spread = covariance[head].diagonal() * weight.output.square().sum(dim=0)
        kept = spread.argsort(descending=True, stable=True)[: widths[1]]
        value[head, torch.arange(len(kept)), kept] = 1.0
        output[head, : len(kept)] = torch.linalg.solve(_regular(covariance[head], kept), covariance[head][kept])
    return _basis(statistics, query, key, value, output)


def ridge_feed_forward(site: FeedForwardSite, gram: torch.Tensor, width: int) -> FeedForwardBasis:
    """The same of a feed-forward block: so many channels of the highest energy times weight, the rest by ridge.

    gram (C + 1, C + 1): sum of v v^T, v the hidden channels with a one after them. The basis has this width alone.
    """
    moments = gram / gram[-1, -1]
    mean, weight = moments[-1, :-1], site.second.weight.detach().double().cpu()
    covariance = moments[:-1, :-1] - torch.outer(mean, mean)
    energy = moments.diagonal()[:-1] * weight.square().sum(dim=0)
    order = energy.argsort(descending=True, stable=True)
    kept = order[:width]
    fitted = torch.linalg.solve(_regular(covariance, kept), covariance[kept])  # (k, C)
    fitted[:, kept] = torch.eye(width, dtype=fitted.dtype)
    return FeedForwardBasis(order, mean[order], weight @ mean, torch.eye(width), weight @ fitted.mT)


def _regular(gram: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    part = gram[kept][:, kept]
    return part + RIDGE * part.diagonal().mean() * torch.eye(len(kept), dtype=part.dtype)


def _basis(
    statistics: SiteStatistics, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, output: torch.Tensor
) -> SiteBasis:
    """A basis without derivatives: nothing is scored by it."""
    none = torch.zeros(0, *query.shape[:2], dtype=torch.float64), torch.zeros(0, *value.shape[:2], dtype=torch.float64)
    return SiteBasis(query, key, value, output, statistics.context_mean, *none)
