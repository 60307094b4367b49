"""Bases of a head's channels in which few channels do the work, chosen without changing what the head computes.

For any invertible T, queries T q with keys T^-T k have the scores of q with k, and values T^-T v before output weights
W_o T^T have the outputs of v before W_o: no rotary embedding stands between. Given positive semi-definite S_l and S_r,
the balanced basis makes T S_l T^T and T^-T S_r T^-1 the same diagonal matrix, so that keeping the first r channels is
the best rank-r approximation P of the identity, by the error ||S_l^1/2 (I - P) S_r^1/2||_F, for every r at once
(balanced truncation, Moore 1981). What S_l and S_r are is the basis' kind; all algebra is d x d, in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from leanear.calibration.sites import AttentionSite
from leanear.calibration.statistics import SiteStatistics, Statistics
from leanear.runtimes.errors import BadInput

BasisKind = Literal["trained", "weights", "activations", "attention", "fisher"]
BASIS_KINDS: tuple[BasisKind, ...] = ("trained", "weights", "activations", "attention", "fisher")

RIDGE = 1e-6  # of the mean eigenvalue, so that directions that nothing uses have an inverse
SHRINKAGE = 0.5


@dataclass(frozen=True)
class SiteBasis:
    """A new basis of every head of one block, channels from the most to the least important; float64.

    query, key (H, K, K), with query^T key = I: the new channels of queries and keys, one per row, in the old ones;
    value, output (H, V, V), with output^T value = I: likewise of values (and contexts) and of output weights;
    context_mean (H, V): mean context in the old basis; query_key (N, H, K) and value_output (N, H, V): every clip's
    derivative of the objective by a mask on the new channel, contexts being centred. Heads that are narrower than the
    widest are filled up with zeros.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    output: torch.Tensor
    context_mean: torch.Tensor
    query_key: torch.Tensor
    value_output: torch.Tensor


def choose_basis(
    site: AttentionSite,
    statistics: SiteStatistics,
    kind: BasisKind = "fisher",
    *,
    shrinkage: float = SHRINKAGE,
    order: Literal["fisher", "singular value"] = "fisher",
) -> SiteBasis:
    """The block's basis, each head's channels sorted by `order`.

    kind, with S_l and S_r for queries and keys | for output weights and contexts:
      "trained": the channels as they are;
      "weights": W_q W_q^T (bias included), W_k W_k^T | W_o^T W_o, W_v W_v^T, no data (CLOVER, arXiv 2411.17426);
      "activations": E[q q^T], Cov(k) within clips | W_o^T W_o, Cov(u): the error of scores and of outputs;
      "attention": as "activations" with the covariance of keys under the attention weights: the softmax's divergence;
      "fisher": E[G G^T], E[G^T G] of the per-clip derivatives G, shrunk by `shrinkage` towards "attention", or towards
        "activations" where no attended keys were collected: the loss.
    order: "fisher": half the mean squared derivative by a channel's mask, nats; "singular value": of the truncation.
    """
    try:
        bases = [_head_basis(site, statistics, head, kind, shrinkage) for head in range(len(site.query_key_widths))]
    except torch.linalg.LinAlgError:
        raise BadInput(f"{site.name}: its statistics are not finite; are the checkpoint's weights sound?") from None
    qk, vo = statistics.query_gram.shape[-1], statistics.context_gram.shape[-1]
    query, key = (torch.stack([_padded(basis[place], qk) for basis in bases]) for place in (0, 1))
    output, value = (torch.stack([_padded(basis[place], vo) for basis in bases]) for place in (2, 3))
    mean = statistics.context_mean
    by_query_key, by_value_output = _derivatives(statistics, query, key, output, value)
    if order == "fisher":
        query_key_order = by_query_key.square().mean(dim=0).argsort(dim=-1, descending=True, stable=True)
        value_output_order = by_value_output.square().mean(dim=0).argsort(dim=-1, descending=True, stable=True)
        query, key = _rows(query, query_key_order), _rows(key, query_key_order)
        output, value = _rows(output, value_output_order), _rows(value, value_output_order)
        by_query_key = by_query_key.gather(-1, query_key_order.expand_as(by_query_key))
        by_value_output = by_value_output.gather(-1, value_output_order.expand_as(by_value_output))
    return SiteBasis(query, key, value, output, mean, by_query_key, by_value_output)


def choose_bases(
    sites: Sequence[AttentionSite], statistics: Statistics, kind: BasisKind = "fisher"
) -> dict[str, SiteBasis]:
    """The bases of all blocks, by name; see `choose_basis`."""
    return {site.name: choose_basis(site, statistics[site.name], kind) for site in sites}


def balanced(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """T_l and T_r (d, d), one new channel per row, and the singular values (d,), descending; T_l^T T_r = I.

    left, right: S_l and S_r, positive semi-definite (d, d), float64. T_l S_l T_l^T = T_r S_r T_r^T = diag(values).
    """
    (left_axes, left_spreads), (right_axes, right_spreads) = _spreads(left), _spreads(right)
    u, values, v_transposed = torch.linalg.svd(left_spreads[:, None] * (left_axes.mT @ right_axes) * right_spreads)
    roots = values.sqrt()[:, None]
    return roots * (u.mT / left_spreads) @ left_axes.mT, roots * (v_transposed / right_spreads) @ right_axes.mT, values


def _spreads(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvectors, a column each, and the roots of their eigenvalues, all above zero.

    Not Cholesky's root: the covariance of what is all but constant is rounding, with eigenvalues below zero.
    """
    mean = matrix.diagonal().mean()
    ridge = RIDGE * mean if mean > 0 else torch.ones((), dtype=matrix.dtype)
    values, axes = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return axes, (values.clamp(min=0) + ridge).sqrt()


def _head_basis(
    site: AttentionSite, statistics: SiteStatistics, head: int, kind: BasisKind, shrinkage: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """query, key, output and value bases of one head, at its own widths."""
    qk, vo = site.query_key_widths[head], site.value_output_widths[head]
    if kind == "trained":
        eye_qk, eye_vo = torch.eye(qk, dtype=torch.float64), torch.eye(vo, dtype=torch.float64)
        return eye_qk, eye_qk, eye_vo, eye_vo
    scores, outputs = _metrics(site, statistics, head, kind, shrinkage)
    query, key, _ = balanced(*(metric[:qk, :qk] for metric in scores))
    output, value, _ = balanced(*(metric[:vo, :vo] for metric in outputs))
    return query, key, output, value


def _metrics(
    site: AttentionSite, statistics: SiteStatistics, head: int, kind: BasisKind, shrinkage: float
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """(S_l, S_r) of the scores and (S_l, S_r) of the outputs."""
    weights = _head_weights(site, head)
    output_gram = weights.output.mT @ weights.output
    if kind == "weights":
        query = torch.cat([weights.query, weights.query_bias[:, None]], dim=1)
        scores = (query @ query.mT, weights.key @ weights.key.mT)
        return scores, (output_gram, weights.value @ weights.value.mT)
    query_count, key_count = statistics.tokens
    attended = statistics.attended_key_gram[head] / query_count
    plain = statistics.key_gram[head] / key_count
    keys = attended if kind == "attention" or (kind == "fisher" and attended.any()) else plain
    vo = site.value_output_widths[head]
    scores = (statistics.query_gram[head] / query_count, keys)
    outputs = (output_gram, statistics.context_covariance[head][:vo, :vo])
    if kind != "fisher":
        return scores, outputs
    by_score = statistics.query_key[:, head].double()
    by_output = _centred_value_output(statistics, head)[:, :vo, :vo]
    return _shrunk(by_score, scores, shrinkage), _shrunk(by_output, outputs, shrinkage)


def _shrunk(
    derivatives: torch.Tensor, towards: tuple[torch.Tensor, torch.Tensor], shrinkage: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """E[G G^T] and E[G^T G] at trace 1, mixed with `towards` at trace 1."""
    left, right = (derivatives @ derivatives.mT).mean(dim=0), (derivatives.mT @ derivatives).mean(dim=0)
    return _mixed(left, towards[0], shrinkage), _mixed(right, towards[1], shrinkage)


def _mixed(own: torch.Tensor, other: torch.Tensor, share: float) -> torch.Tensor:
    return (1 - share) * _normalised(own) + share * _normalised(other)


def _normalised(matrix: torch.Tensor) -> torch.Tensor:
    trace = matrix.trace()
    return matrix / trace if trace > 0 else matrix


def _centred_value_output(statistics: SiteStatistics, head: int) -> torch.Tensor:
    """The per-clip derivatives of one head for contexts less their mean, (N, V, V), float64."""
    gradient = statistics.context_gradient[:, head].double()
    return statistics.value_output[:, head].double() - gradient[:, :, None] * statistics.context_mean[head]


def _derivatives(
    statistics: SiteStatistics, query: torch.Tensor, key: torch.Tensor, output: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Derivatives by masks on new channels: diag(T_l G T_r^T) of every clip, (N, H, K) and (N, H, V), float64."""
    by_query_key, by_value_output = [], []
    for head in range(len(query)):
        scores = statistics.query_key[:, head].double()
        outputs = _centred_value_output(statistics, head)
        by_query_key.append(((query[head] @ scores) * key[head]).sum(dim=-1))
        by_value_output.append(((output[head] @ outputs) * value[head]).sum(dim=-1))
    return torch.stack(by_query_key, dim=1), torch.stack(by_value_output, dim=1)


def _padded(matrix: torch.Tensor, width: int) -> torch.Tensor:
    missing = width - len(matrix)
    return torch.nn.functional.pad(matrix, (0, missing, 0, missing)) if missing else matrix


def _rows(matrices: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return matrices.gather(1, order[..., None].expand_as(matrices))


@dataclass(frozen=True)
class HeadWeights:
    """One head's weights, float64: query, key (K, D), value (V, D), output (D, V), query_bias (K,), value_bias (V,)."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    output: torch.Tensor
    query_bias: torch.Tensor
    value_bias: torch.Tensor


def _head_weights(site: AttentionSite, head: int) -> HeadWeights:
    qk, vo = list(site.query_key_widths), list(site.value_output_widths)

    def rows(linear: torch.nn.Linear, widths: list[int]) -> torch.Tensor:
        return linear.weight.detach().double().cpu().split(widths)[head]

    def bias(linear: torch.nn.Linear, widths: list[int]) -> torch.Tensor:
        if linear.bias is None:
            return torch.zeros(widths[head], dtype=torch.float64)
        return linear.bias.detach().double().cpu().split(widths)[head]

    return HeadWeights(
        query=rows(site.query, qk),
        key=rows(site.key, qk),
        value=rows(site.value, vo),
        output=site.output.weight.detach().double().cpu().split(vo, dim=1)[head],
        query_bias=bias(site.query, qk),
        value_bias=bias(site.value, vo),
    )


def head_weights(site: AttentionSite) -> tuple[HeadWeights, ...]:
    """The weights of every head of the block."""
    return tuple(_head_weights(site, head) for head in range(len(site.query_key_widths)))


def width_damages(query_key: np.ndarray, value_output: np.ndarray) -> np.ndarray:
    """Estimated loss, nats, (K + 1, V + 1): of a head that keeps its first k and v channels; [0, 0] of its removal.

    query_key (N, K), value_output (N, V): derivatives of every clip's objective by a mask on a channel. What is dropped
    together counts together: half the mean over clips of the squared sum of their derivatives, the second-order term of
    the loss where its curvature is the Fisher information. A head without values has no use for scores, and one without
    scores is not offered: the rest of row 0 and of column 0 is infinite.
    """
    clips = len(query_key)
    dropped_qk = np.concatenate([query_key[:, ::-1].cumsum(axis=1)[:, ::-1], np.zeros((clips, 1))], axis=1)
    dropped_vo = np.concatenate([value_output[:, ::-1].cumsum(axis=1)[:, ::-1], np.zeros((clips, 1))], axis=1)
    squares = np.square(dropped_qk).mean(axis=0)[:, None] + np.square(dropped_vo).mean(axis=0)[None, :]
    damages = 0.5 * squares + dropped_qk.T @ dropped_vo / clips
    removal = 0.5 * np.square(dropped_vo[:, 0]).mean()
    damages[0, :] = damages[:, 0] = np.inf
    damages[0, 0] = removal
    return damages
