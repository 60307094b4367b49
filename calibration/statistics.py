"""What calibration clips say of every attention head, in one backward pass per clip and to the activations alone.

Of head h, with queries q_i, keys k_j, contexts u_i = sum_j a_ij v_j (the rows that the output projection takes) and an
objective L per clip: the Gram matrices of q, k and u; and, per clip, the two matrices

    query_key    = sum_i q_i (dL/dq_i)^T        value_output = sum_i (dL/du_i) u_i^T

which hold the exact derivative of L by every entry of a matrix put between queries and keys, or between contexts and
output weights, where now there is the identity. Their diagonals are the derivatives by masks on channels; a change of
basis T, T' makes them T query_key T'^T, so that channels of any basis are scored with no further backward pass.

Gram matrices are sums over tokens, and what is per clip is kept per clip: statistics of other clips can be added.
Where a clip has a target at every position of a sequence, L is the sum over its positions: with random signs, or
labels, drawn for every position on its own, its squared derivatives are in expectation the sum of the positions' Fisher
information. Tokens that only fill up a shorter sequence are in no sum.
Dimension letters: N clips, B batch, T tokens, H heads, K query/key width, V value/output width, C classes. Where the
heads of a block differ in width, K and V are the widest and the rest is zero.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch

from leanear.calibration.passes import BlockPass, by_head
from leanear.calibration.sites import AttentionSite
from leanear.calibration.targets import before_the_end
from leanear.runtimes.errors import BadInput

SUMS = ("tokens", "query_gram", "key_gram", "attended_key_gram", "context_gram", "context_sum")
PER_CLIP = ("query_key", "value_output", "context_gradient")


@dataclass(frozen=True)
class SiteStatistics:
    """Statistics of one attention block.

    Sums, float64: query_gram (H, K, K): q q^T over queries; key_gram (H, K, K): of keys, centred within each clip,
    because the softmax does not see what all keys share; attended_key_gram (H, K, K): the covariance of the keys under
    each query's attention weights, over queries, or all zero if it was not asked for; context_gram (H, V, V) and
    context_sum (H, V) over queries. tokens: float64 (2,), how many queries and how many keys.
    Per clip, float32: query_key (N, H, K, K), value_output (N, H, V, V), context_gradient (N, H, V): sum of dL/du.
    """

    tokens: torch.Tensor
    query_gram: torch.Tensor
    key_gram: torch.Tensor
    attended_key_gram: torch.Tensor
    context_gram: torch.Tensor
    context_sum: torch.Tensor
    query_key: torch.Tensor
    value_output: torch.Tensor
    context_gradient: torch.Tensor

    @property
    def context_mean(self) -> torch.Tensor:
        """Mean of the contexts over all clips and queries: (H, V)."""
        return self.context_sum / self.tokens[0]

    @property
    def context_covariance(self) -> torch.Tensor:
        """Covariance of the contexts over all clips and queries: (H, V, V)."""
        mean = self.context_mean
        return self.context_gram / self.tokens[0] - mean[:, :, None] * mean[:, None, :]


Statistics = Mapping[str, SiteStatistics]


def merge_statistics(*parts: Statistics) -> dict[str, SiteStatistics]:
    """The statistics of all parts together: sums add, from the first part to the last, what is per clip follows on.

    Raises:
        BadInput: they are of different attention blocks or widths.
    """
    merged = {}
    for name, first in parts[0].items():
        if any(part.keys() != parts[0].keys() for part in parts):
            raise BadInput("statistics of different attention blocks cannot be merged")
        sites = [part[name] for part in parts]
        shapes = {(site.query_gram.shape, site.context_gram.shape) for site in sites}
        if len(shapes) > 1:
            raise BadInput(f"statistics cannot be merged: {name} has different widths in them")
        merged[name] = SiteStatistics(
            **{key: sum((getattr(site, key) for site in sites[1:]), getattr(first, key)) for key in SUMS},
            **{key: torch.cat([getattr(site, key) for site in sites]) for key in PER_CLIP},
        )
    return merged


def statistics_tensors(statistics: Statistics) -> dict[str, torch.Tensor]:
    """Every tensor by the name "<block>/<field>", in a fixed order."""
    return {
        f"{name}/{field.name}": getattr(site, field.name)
        for name, site in statistics.items()
        for field in fields(SiteStatistics)
    }


def statistics_from_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, SiteStatistics]:
    """The statistics that `statistics_tensors` took apart.

    Raises:
        KeyError: a tensor is missing.
    """
    names = list(dict.fromkeys(key.rpartition("/")[0] for key in tensors))
    return {
        name: SiteStatistics(**{field.name: tensors[f"{name}/{field.name}"] for field in fields(SiteStatistics)})
        for name in names
    }


def statistics_of(
    passed: Sequence[BlockPass], sites: Sequence[AttentionSite], targets: torch.Tensor, attended_keys: bool
) -> dict[str, SiteStatistics]:
    """The statistics of one batch of clips of which both passes are done."""
    with torch.no_grad():
        used = before_the_end(targets.to(passed[0].queries.device) if passed else targets)
        return {
            site.name: _site_statistics(
                site,
                block,
                attended_keys,
                asking=None if site.kind == "encoder" else used,
                answering=used if site.kind == "decoder" else None,
            )
            for site, block in zip(sites, passed, strict=True)
        }


def _site_statistics(
    site: AttentionSite,
    block: BlockPass,
    attended_keys: bool,
    *,
    asking: torch.Tensor | None,
    answering: torch.Tensor | None,
) -> SiteStatistics:
    """asking (B, T), answering (B, T'): which queries and which keys are in the sums, or None for all."""
    assert block.query_gradients is not None
    query, query_gradient, key = (
        by_head(states, site.query_key_widths) for states in (block.queries, block.query_gradients, block.keys)
    )
    context, context_gradient = (
        by_head(states, site.value_output_widths) for states in (block.contexts, block.context_gradients)
    )
    queries, keys = (
        part.shape[0] * part.shape[2] if mask is None else int(mask.sum())
        for part, mask in ((query, asking), (key, answering))
    )
    query, context = _only(query, asking), _only(context, asking)
    attended = torch.zeros(key.shape[1], *2 * key.shape[-1:])
    if attended_keys:
        attended = _attended_key_gram(query, key, site, asking)
    centred = _only(key - _clip_mean(key, answering), answering)
    return SiteStatistics(
        tokens=torch.tensor([queries, keys], dtype=torch.float64),
        query_gram=_summed(query.mT @ query),
        key_gram=_summed(centred.mT @ centred),
        attended_key_gram=attended.double().cpu(),
        context_gram=_summed(context.mT @ context),
        context_sum=_summed(context.sum(dim=2)),
        query_key=(query.mT @ query_gradient).cpu(),
        value_output=(context_gradient.mT @ context).cpu(),
        context_gradient=context_gradient.sum(dim=2).cpu(),
    )


def _only(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """States (B, H, T, width), zero where the mask (B, T) is not set."""
    return states if mask is None else states * mask[:, None, :, None]


def _clip_mean(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The mean (B, H, 1, width) of states (B, H, T, width) over the tokens of each clip that the mask (B, T) has."""
    if mask is None:
        return states.mean(dim=2, keepdim=True)
    return _only(states, mask).sum(dim=2, keepdim=True) / mask.sum(dim=1)[:, None, None, None]


def _summed(per_clip: torch.Tensor) -> torch.Tensor:
    return per_clip.double().sum(dim=0).cpu()


def _attended_key_gram(
    query: torch.Tensor, key: torch.Tensor, site: AttentionSite, asking: torch.Tensor | None
) -> torch.Tensor:
    """sum_i Var_{j ~ a_i}(k_j) over queries and clips, (H, K, K): sum_j (sum_i a_ij) k_j k_j^T - sum_i m_i m_i^T."""
    scores = (query @ key.mT) * site.scaling
    if site.causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    weights = _only(scores.softmax(-1), asking)
    means = weights @ key
    received = weights.sum(dim=2)[..., None]
    return ((key * received).mT @ key - means.mT @ means).double().sum(dim=0)
