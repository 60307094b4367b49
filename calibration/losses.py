"""What a head's width costs, in nats: the exact change of its attention, linear only from the context onwards.

Of a head whose queries and keys keep the first k channels of a new basis, the attention a' = softmax(scale q' k'^T) is
computed as it will be, and with it the change of the context, sum_j (a'_ij - a_ij) v_j. Only what the rest of the model
makes of a context is taken as linear: with the gradient g_i of a clip's objective by the context u_i, and values that
keep the first v channels, dropped contexts standing at their mean, the objective changes by

    sum_i g_i . (P_v (u'_i - u_i) - (1 - P_v) (u_i - mean u))

and half the mean of its square over clips is the loss, the objective being such that squares are Fisher information.
A derivative by a mask on a query/key channel (`width_damages` in `leanear.calibration.basis`) agrees where little is
cut. Where a softmax is saturated it is all but zero for every channel, and the loss of cutting enough of them is not.

Dimension letters: B batch, T tokens, R rows, H heads, K query/key width, V value/output width, G widths on the grid.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from leanear.calibration.basis import SiteBasis
from leanear.calibration.passes import BlockPass, by_head
from leanear.calibration.sites import AttentionSite
from leanear.calibration.targets import before_the_end

# Queries whose gradient is small say next to nothing: of Whisper tiny.en's 1,500 frames the quarter with the largest
# gradients holds 97 % of their squares (speech in windows of 30 s), and the attention of all the others is left out.
ROW_SHARE = 0.25
ROWS_AT_LEAST = 256


def width_grid(site: AttentionSite, multiple: int) -> tuple[int, ...]:
    """The query/key widths at which the block's heads are tried, ascending: multiples, and every head's own width."""
    widths = site.query_key_widths
    return tuple(sorted({*range(multiple, max(widths), multiple), *widths}))


def squares_of(
    passed: Sequence[BlockPass],
    sites: Sequence[AttentionSite],
    bases: Mapping[str, SiteBasis],
    grids: Mapping[str, Sequence[int]],
    targets: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Squared changes of the objective, summed over the clips of a batch: by block (H + 1, G, V + 1), float64.

    passed: of both passes, query gradients not being needed; grids: the query/key widths of each block, ascending, the
    widest last; entry [h, g, v] is of head h with grids[g] query/key and v value/output channels, v = 0 being its
    removal, [H, g, v] of all heads together. Sums of several batches add.
    """
    used = before_the_end(targets)
    counts = [None] * len(targets) if used is None else used.sum(dim=1).tolist()
    sums = {}
    with torch.no_grad():
        for site, block in zip(sites, passed, strict=True):
            clips = [
                _clip_changes(site, bases[site.name], grids[site.name], block, clip, count)
                for clip, count in enumerate(counts)
            ]
            sums[site.name] = torch.stack(clips).square().sum(dim=0).cpu()
    return sums


def _clip_changes(
    site: AttentionSite, basis: SiteBasis, grid: Sequence[int], block: BlockPass, clip: int, count: int | None
) -> torch.Tensor:
    """One clip's change, (H + 1, G, V + 1), float64, by head and of all; count: its decoder's tokens, None: all are."""
    asking = None if site.kind == "encoder" else count
    answering = count if site.kind == "decoder" else None

    def heads(states: torch.Tensor, widths: Sequence[int], tokens: int | None) -> torch.Tensor:
        return by_head(states[clip : clip + 1, :tokens], widths)[0]

    def rotated(states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return states @ rows.to(states).mT

    qk, vo = site.query_key_widths, site.value_output_widths
    context = heads(block.contexts, vo, asking)
    gradient = rotated(heads(block.context_gradients, vo, asking), basis.output)
    centred = rotated(context - basis.context_mean.to(context)[:, None], basis.value)
    dropped = (gradient * centred).sum(dim=1).double()
    query = rotated(heads(block.queries, qk, asking), basis.query) * site.scaling
    key = rotated(heads(block.keys, qk, answering), basis.key)
    value = rotated(heads(block.values, vo, answering), basis.value)
    context = rotated(context, basis.value)
    if not site.causal:  # there a query's place says which keys it sees
        query, gradient, context = _telling_rows(query, gradient, context)
    kept = _attention_changes(query, key, value, context, gradient, grid, site.causal)
    kept_sums = nn.functional.pad(kept.cumsum(dim=-1), (1, 0))
    dropped_sums = nn.functional.pad(dropped.flip(-1).cumsum(dim=-1).flip(-1), (0, 1))
    changes = kept_sums - dropped_sums[:, None]
    return torch.cat([changes, changes.sum(dim=0, keepdim=True)])


def _telling_rows(
    query: torch.Tensor, gradient: torch.Tensor, context: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of every head the rows (H, R, width) with the largest gradients, all of them where they are few."""
    tokens = query.shape[1]
    rows = max(ROWS_AT_LEAST, round(ROW_SHARE * tokens))
    if tokens <= rows:
        return query, gradient, context
    telling = gradient.square().sum(dim=-1).topk(rows, dim=-1).indices[..., None]

    def pick(states: torch.Tensor) -> torch.Tensor:
        return states.gather(1, telling.expand(-1, -1, states.shape[-1]))

    return pick(query), pick(gradient), pick(context)


def _attention_changes(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    context: torch.Tensor,
    gradient: torch.Tensor,
    grid: Sequence[int],
    causal: bool,
) -> torch.Tensor:
    """What the attention's change does to the objective through each value channel, (H, G, V), float64.

    query (H, R, K), scaled, key (H, T', K), value (H, T', V), context and gradient (H, R, V). Scores grow channel by
    channel from one width of the grid to the next; the last is the attention as it is, which changes nothing.
    """
    changes = torch.zeros(len(query), len(grid), value.shape[-1], dtype=torch.float64, device=query.device)
    scores = query.new_zeros(len(query), query.shape[1], key.shape[1])
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).triu(1) if causal else None
    before = 0
    for place, width in enumerate(grid[:-1]):
        scores.baddbmm_(query[..., before:width], key[..., before:width].mT)
        attention = (scores if later is None else scores.masked_fill(later, float("-inf"))).softmax(dim=-1)
        changes[:, place] = (gradient * (attention @ value - context)).sum(dim=1).double()
        before = width
    return changes


def width_losses(
    site: AttentionSite, grid: Sequence[int], squares: torch.Tensor, clips: int, targets_per_clip: float
) -> np.ndarray:
    """Estimated losses, nats per target, (H + 1, K + 1, V + 1), of heads by pairs of widths; infinite off the grid.

    squares: as from `squares_of`, summed over `clips` clips, which have so many targets each on average, labels or
    tokens. [h, 0, 0] is the loss of removing head h; the rest of its row 0 and column 0 is infinite, since a head
    without values has no use for scores, and one without scores is not offered. [H, 0, 0] is the loss of removing all
    heads, which is not the sum of theirs; the rest of [H] is infinite.
    """
    means = squares.numpy() / (2 * clips * targets_per_clip)
    losses = np.full((len(means), max(site.query_key_widths) + 1, means.shape[-1]), np.inf)
    losses[:-1, list(grid), 1:] = means[:-1, :, 1:]
    losses[:, 0, 0] = means[:, -1, 0]
    return losses
