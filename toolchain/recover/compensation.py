"""Compensation without training: output projections that make up, by least squares, for what pruning took away.

Of a block, with contexts u (the rows that the slim output projection takes: of a feed-forward block, its hidden
channels), residuals r (what the dense
block gives to the residual stream less what the slim one gives) and n tokens, the change of the weight W and bias b is

    Delta = argmin 1/n sum |r - mean r - Delta (u - mean u)|^2 + ridge * tr(Cov u) / C * |Delta|^2
          = Cov(r, u) (Cov(u) + ridge * tr(Cov u) / C * I)^-1         b += mean r - Delta mean u

so a block that loses nothing is not changed at all. One pass over the clips sums up what all blocks need, on contexts
as the slim model computes them. Of several ridges each block takes the one that leaves the smallest residual on held-
out clips, which their own sums say without asking a model again, or no change if none leaves less than there is. Then
the changes stay where they lower the held-out KL(dense || slim), found by halving groups of blocks.
Dimension letters: B batch, T tokens, D model width, C the sum of the heads' value/output widths.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from leanear.calibration.sites import AttentionSite, FeedForwardSite
from leanear.calibration.targets import before_the_end
from leanear.data.examples import LabelledInputs
from leanear.data.held_out import HeldOut, evaluated
from leanear.families.family import Family
from leanear.progress import Report, in_parts, quiet
from leanear.runtimes.errors import BadInput

Logits = Callable[[nn.Module, Any], torch.Tensor]
Site = AttentionSite | FeedForwardSite  # whose output projection is fitted
TRIALS_SHARE = 8  # how often the held-out clips are answered, about, to choose what is kept
Projection = tuple[torch.Tensor, torch.Tensor]  # weight (D, C) and bias (D,)


@dataclass(frozen=True)
class CompensatedBlock:
    """One block's change.

    ridge: the one chosen, or None if no change lowers the residual;
    residual_share_before, residual_share_after: the squared residual of the held-out tokens over the squared dense
    output, as pruned, and with the fitted change on the contexts that it was fitted on; kept: whether the block has a
    change now, or its old weights.
    """

    name: str
    ridge: float | None
    residual_share_before: float
    residual_share_after: float
    kept: bool


@dataclass(frozen=True)
class Compensated:
    """What a compensation did: its blocks, and KL(dense || slim) in nats per held-out target before and after all.

    evaluations: how often the slim model answered the held-out clips for that, the time before any change included.
    """

    blocks: tuple[CompensatedBlock, ...]
    held_out_kl_before: float
    held_out_kl_after: float
    evaluations: int


@dataclass(frozen=True)
class BlockSums:
    """Sums over the tokens of one block, float64, of v = (u, 1), contexts with a one after them, and residuals r.

    gram (C + 1, C + 1): of v v^T; cross (D, C + 1): of r v^T; residual_square, output_square: of |r|^2 and of the
    squared dense output. A change is (D, C + 1), too: what to add to the weight and, last, to the bias.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    residual_square: torch.Tensor
    output_square: torch.Tensor

    @classmethod
    def empty(cls, output: nn.Linear) -> BlockSums:
        """Of no tokens, on the device of the projection."""
        zeros = functools.partial(torch.zeros, dtype=torch.float64, device=output.weight.device)
        contexts = output.in_features + 1
        return cls(zeros(contexts, contexts), zeros(output.out_features, contexts), zeros(()), zeros(()))

    def add_(self, context: torch.Tensor, slim_output: torch.Tensor, dense_output: torch.Tensor) -> None:
        """Add tokens: contexts (tokens, C) and both models' outputs (tokens, D)."""
        context = functional.pad(context.double(), (0, 1), value=1.0)
        output = dense_output.double()
        residual = output - slim_output.double()
        self.gram.addmm_(context.mT, context)
        self.cross.addmm_(residual.mT, context)
        self.residual_square.add_(residual.square().sum())
        self.output_square.add_(output.square().sum())

    def cpu(self) -> BlockSums:
        """The same on the CPU."""
        return BlockSums(**{name: value.cpu() for name, value in vars(self).items()})

    def residual_share(self, change: torch.Tensor) -> float:
        """The sum of |r - change v|^2 over that of the squared dense output."""
        left = self.residual_square - 2 * (change * self.cross).sum() + (change @ self.gram * change).sum()
        return max(float(left), 0.0) / max(float(self.output_square), torch.finfo(torch.float64).tiny)


@dataclass(frozen=True)
class _Models:
    """Both models, their blocks in pairs, and how they are asked."""

    slim: nn.Module
    dense: nn.Module
    sites: tuple[tuple[Site, Site], ...]
    logits: Logits


def compensate_(
    slim: nn.Module,
    dense: nn.Module,
    slim_sites: Sequence[Site],
    dense_sites: Sequence[Site],
    fitted: LabelledInputs,
    held_out: LabelledInputs,
    logits: Logits,
    *,
    ridge: Sequence[float] = (1e-3, 1e-2, 1e-1),
    batch_size: int = 16,
    report: Report = quiet,
) -> Compensated:
    """Change the slim model's output projections in place so that it answers more like the dense one; what was done.

    slim_sites, dense_sites: the same blocks of both models; fitted: clips to fit on; held_out: others, which choose the
    ridges and refuse the changes that do not lower their KL(dense || slim); logits(model, inputs): (B, classes), or
    (B, L, classes); ridge: pulls towards the weights as they are, each above 0; batch_size: clips in
    memory together. Both models must be on the same device.

    Weights change nowhere else; both models keep their modes and requires_grad flags. When interrupted, the slim model
    keeps the weights that it came with.

    Raises:
        BadInput: too few clips, or a setting out of range.
        ValueError: the sites do not pair up, or a block has no output bias.
    """
    _check_settings(fitted, held_out, ridge)
    _check_pairs(slim_sites, dense_sites)
    models = _Models(slim, dense, tuple(zip(slim_sites, dense_sites, strict=True)), logits)
    judge = HeldOut(dense, held_out, logits, batch_size)
    outputs = [site.output for site in slim_sites]
    pruned = changed = _projections(outputs)
    kept: frozenset[int] = frozenset()

    def kl_with(blocks: frozenset[int]) -> float:
        _set_(outputs, pruned, changed, blocks)
        return judge.kl(slim)

    with torch.no_grad(), evaluated(slim), evaluated(dense):
        try:
            part = in_parts(report, {"fit": len(fitted), "judge": len(held_out), "keep": TRIALS_SHARE * len(held_out)})
            sums = _sums(models, fitted, batch_size, "compensation, fitting on clip", part("fit"))
            judged = _sums(models, held_out, batch_size, "compensation, judging on held-out clip", part("judge"))
            fits = [_fit(*both, ridge) for both in zip(sums, judged, strict=True)]
            _add_(outputs, [fit.change for fit in fits])
            changed = _projections(outputs)
            kinds = {index: site.kind for index, site in enumerate(slim_sites) if fits[index].ridge is not None}
            kept, before, after, evaluations = _kept_blocks(kinds, kl_with, part("keep"))
        finally:
            _set_(outputs, pruned, changed, kept)
    report(f"compensated, held-out KL {before:.4f} -> {after:.4f} nats", 1.0)
    blocks = (
        CompensatedBlock(site.name, fit.ridge, fit.share_before, fit.share_after, index in kept)
        for index, (site, fit) in enumerate(zip(slim_sites, fits, strict=True))
    )
    return Compensated(tuple(blocks), before, after, evaluations)


def fitted_sites(family: Family, slim: Any, dense: Any) -> tuple[list[Site], list[Site]]:
    """The blocks of slim and dense that compensation fits: attention, and feed-forward blocks that became narrower.

    Blocks that are gone are left out.
    """
    attention = zip(family.attention_sites(slim), family.attention_sites(dense), strict=True)
    blocks = zip(family.feed_forward_sites(slim), family.feed_forward_sites(dense), strict=True)
    fitted: list[tuple[Site, Site]] = [pair for pair in attention if pair[0].query_key_widths]
    fitted += [(narrow, wide) for narrow, wide in blocks if 0 < narrow.width < wide.width]
    return [slim_site for slim_site, _ in fitted], [dense_site for _, dense_site in fitted]


def _check_settings(fitted: LabelledInputs, held_out: LabelledInputs, ridge: Sequence[float]) -> None:
    if not ridge or not all(value > 0.0 for value in ridge):
        raise BadInput(f"compensation ridge is {tuple(ridge)}; it must be one or more numbers above 0")
    if not len(fitted) or not len(held_out):
        raise BadInput(
            f"{len(fitted) + len(held_out)} clips are too few for compensation: it fits on {len(fitted)} and holds out"
            f" {len(held_out)}, and needs at least one of either"
        )


def _check_pairs(slim_sites: Sequence[Site], dense_sites: Sequence[Site]) -> None:
    if [site.name for site in slim_sites] != [site.name for site in dense_sites]:
        raise ValueError("the slim and the dense model have different attention blocks")
    for site in slim_sites:
        if site.output.bias is None:
            raise ValueError(f"{site.name} has no output bias")


def _batches(clips: LabelledInputs, batch_size: int) -> Iterator[LabelledInputs]:
    for start in range(0, len(clips), batch_size):
        yield clips[start : start + batch_size]


# Fitting


def _sums(models: _Models, clips: LabelledInputs, batch_size: int, text: str, report: Report) -> list[BlockSums]:
    """Every block's sums over all clips, on the CPU: each model answers every clip once."""
    sums = [BlockSums.empty(slim_site.output) for slim_site, _ in models.sites]
    done = 0
    for batch in _batches(clips, batch_size):
        _add_batch_(models, batch, sums)
        done += len(batch)
        report(f"{text} {done}/{len(clips)}", done / len(clips))
    return [each.cpu() for each in sums]


def _add_batch_(models: _Models, batch: LabelledInputs, sums: Sequence[BlockSums]) -> None:
    """Add a batch to all blocks' sums; only the dense outputs (B, T, D) wait in memory for their contexts."""
    used = before_the_end(batch.targets)
    # as numbers, from the CPU: a mask on a GPU would wait for it at every block
    decoded = None if used is None else torch.nonzero(used.flatten())[:, 0].to(next(models.slim.parameters()).device)
    dense_outputs: dict[str, torch.Tensor] = {}

    def keep(site: Site, _module: nn.Module, _arguments: tuple, output: torch.Tensor) -> None:
        dense_outputs[site.name] = output

    def add(site: Site, block: BlockSums, _module: nn.Module, arguments: tuple, output: torch.Tensor) -> None:
        states = [each.flatten(0, 1) for each in (arguments[0], output, dense_outputs.pop(site.name))]
        if decoded is not None and site.kind != "encoder":
            states = [each[decoded] for each in states]
        block.add_(*states)

    hooks = []
    try:
        for (slim_site, dense_site), block in zip(models.sites, sums, strict=True):
            hooks.append(dense_site.output.register_forward_hook(functools.partial(keep, dense_site)))
            hooks.append(slim_site.output.register_forward_hook(functools.partial(add, slim_site, block)))
        for model in (models.dense, models.slim):
            models.logits(model, batch.inputs)
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class _Fit:
    """A block's change (D, C + 1), float64, its ridge, and the held-out residual's share without and with it.

    ridge: None if the change is zero, because none lowers the residual.
    """

    change: torch.Tensor
    ridge: float | None
    share_before: float
    share_after: float


def _fit(fitted: BlockSums, held_out: BlockSums, ridge: Sequence[float]) -> _Fit:
    """The change of the ridge that leaves the least of the held-out residual."""
    nothing = torch.zeros_like(held_out.cross)
    before = held_out.residual_share(nothing)
    best = _Fit(nothing, None, before, before)
    for each in ridge:
        change = least_squares_change(fitted, each)
        after = held_out.residual_share(change)
        if after < best.share_after:
            best = _Fit(change, each, before, after)
    return best


def least_squares_change(sums: BlockSums, ridge: float) -> torch.Tensor:
    """What to add to the output weight and, in the last column, to its bias, (D, C + 1), float64.

    It is the minimiser at the top of this file.
    """
    tokens = sums.gram[-1, -1]
    context_mean, residual_mean = sums.gram[-1, :-1] / tokens, sums.cross[:, -1] / tokens
    covariance = sums.gram[:-1, :-1] / tokens - torch.outer(context_mean, context_mean)
    cross = sums.cross[:, :-1] / tokens - torch.outer(residual_mean, context_mean)
    width = len(covariance)
    # contexts that never vary, or none at all, leave the weight as it is whatever the ridge
    scale = float(covariance.trace()) / width if width else 0.0
    penalty = ridge * (scale if scale > 0.0 else 1.0)
    change = torch.linalg.solve(covariance + penalty * torch.eye(width, dtype=covariance.dtype), cross.mT).mT
    return torch.cat([change, (residual_mean - change @ context_mean)[:, None]], dim=1)


def _projections(outputs: Sequence[nn.Linear]) -> list[Projection]:
    return [(output.weight.detach().clone(), output.bias.detach().clone()) for output in outputs]


def _add_(outputs: Sequence[nn.Linear], changes: Sequence[torch.Tensor]) -> None:
    for output, change in zip(outputs, changes, strict=True):
        change = change.to(output.weight.device)
        output.weight.copy_(output.weight.double() + change[:, :-1])
        output.bias.copy_(output.bias.double() + change[:, -1])


def _set_(
    outputs: Sequence[nn.Linear], pruned: Sequence[Projection], changed: Sequence[Projection], blocks: frozenset[int]
) -> None:
    """Give the blocks of these numbers their changed weights, and all others those as pruned."""
    for index, output in enumerate(outputs):
        weight, bias = (changed if index in blocks else pruned)[index]
        output.weight.copy_(weight)
        output.bias.copy_(bias)


# Keeping


def _kept_blocks(
    kinds: Mapping[int, str], kl_with: Callable[[frozenset[int]], float], report: Report
) -> tuple[frozenset[int], float, float, int]:
    """The numbers of the blocks whose change stays, the held-out KL without and with those changes, and evaluations.

    kinds: by number, of the blocks that have a change; kl_with(blocks): the held-out KL if only these have it.

    The better of no change and all changes is where the search starts. Then groups of blocks are turned the other way:
    first each kind, or either half where there is one kind only. A group for which that lowers the KL stays so; of the
    others, that one is halved next for which it raised the KL least per block. So a single block that should differ
    from the others, where those help alike, is found in two evaluations per halving; few more are allowed.
    """
    most = 2 * math.ceil(math.log2(max(len(kinds), 1))) + 4
    everything = frozenset(kinds)
    report(f"compensation, trial 1 of at most {most - 1}", 0.0)
    before, with_all = kl_with(frozenset()), kl_with(everything)
    kept, kl = (everything, with_all) if with_all < before else (frozenset[int](), before)
    evaluations = 2
    groups = [(0.0, group) for group in _kinds(kinds)]  # in order, so a heap already
    while groups and evaluations < most:
        report(
            f"compensation, trial {evaluations} of at most {most - 1}, held-out KL {kl:.4f} nats", evaluations / most
        )
        _, group = heapq.heappop(groups)
        trial = kept.symmetric_difference(group)
        trial_kl = kl_with(trial)
        evaluations += 1
        if trial_kl < kl:
            kept, kl = trial, trial_kl
        else:
            for half in _halves(group):
                heapq.heappush(groups, ((trial_kl - kl) / len(group), half))
    return kept, before, kl, evaluations


def _kinds(kinds: Mapping[int, str]) -> list[tuple[int, ...]]:
    """The blocks' numbers, of each kind together, or in halves where there is only one kind."""
    groups = [tuple(index for index in kinds if kinds[index] == kind) for kind in dict.fromkeys(kinds.values())]
    return _halves(groups[0]) if len(groups) == 1 else groups


def _halves(group: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Two groups, or none of a single block."""
    middle = len(group) // 2
    return [group[:middle], group[middle:]] if middle else []
