"""Compensation without training: output projections that make up, by least squares, for what pruning took away.

Of an attention block, with contexts u (the rows that the slim output projection takes), residuals r (what the dense
block gives to the residual stream less what the slim one gives) and n tokens, the change of the weight W and bias b is

    Delta = argmin 1/n sum |r - mean r - Delta (u - mean u)|^2 + ridge * tr(Cov u) / C * |Delta|^2
          = Cov(r, u) (Cov(u) + ridge * tr(Cov u) / C * I)^-1         b += mean r - Delta mean u

so a block that loses nothing is not changed at all. Blocks are fitted in the model's order, each on contexts that come
from blocks already compensated, and a change stays only where clips that were not fitted say that it helps.
Dimension letters: B batch, T tokens, D model width, C the sum of the heads' value/output widths.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from calibration.sites import AttentionSite
from calibration.targets import before_the_end
from runtimes.errors import BadInput
from toolchain.distillation import kl_divergences
from toolchain.examples import Inputs
from toolchain.narration import Report, quiet

Logits = Callable[[nn.Module, Any], torch.Tensor]


@dataclass(frozen=True)
class BlockTrial:
    """One change of a block's output projection, and KL(dense || slim) in nats per held-out target with it."""

    ridge: float
    drift: float
    held_out_kl: float


@dataclass(frozen=True)
class CompensatedBlock:
    """What was tried on one block: every trial, and the one whose weights the block has now, or None: its old ones."""

    name: str
    trials: tuple[BlockTrial, ...]
    kept: BlockTrial | None


@dataclass(frozen=True)
class Compensated:
    """What a compensation did: its blocks, and KL(dense || slim) in nats per held-out target before and after all."""

    blocks: tuple[CompensatedBlock, ...]
    held_out_kl_before: float
    held_out_kl_after: float


@dataclass(frozen=True)
class ResidualSums:
    """Sums over tokens for the normal equations of one block, float64.

    tokens: how many; context_gram (C, C), context_sum (C,): of the slim block's contexts u; cross (D, C), residual_sum
    (D,): of r u^T and r, where r is dense less slim output; drift_cross (D, C), drift_sum (D,): the same of dense less
    slim residual stream where the block's output is added to it, zero if that was not asked for.
    """

    tokens: int
    context_gram: torch.Tensor
    context_sum: torch.Tensor
    cross: torch.Tensor
    residual_sum: torch.Tensor
    drift_cross: torch.Tensor
    drift_sum: torch.Tensor


def compensate_(
    slim: nn.Module,
    dense: nn.Module,
    slim_sites: Sequence[AttentionSite],
    dense_sites: Sequence[AttentionSite],
    inputs: Inputs,
    targets: torch.Tensor,
    logits: Logits,
    *,
    order: torch.Tensor,
    held_out: float = 0.2,
    ridge: Sequence[float] = (1e-3, 1e-2, 1e-1),
    drift: Sequence[float] = (0.0,),
    slim_streams: Sequence[nn.Module] = (),
    dense_streams: Sequence[nn.Module] = (),
    batch_size: int = 16,
    report: Report = quiet,
) -> Compensated:
    """Change the slim model's output projections in place so that it answers more like the dense one; what was done.

    slim_sites, dense_sites: the same blocks of both models, in the order in which they compute; inputs: (N, ...) as the
    models take them; targets: (N,), or (N, L) as in `calibration.targets`; logits(model, inputs): (B, C), or (B, L, C);
    order: clips to use, int64, stratified; held_out: the last share of them, never fitted, whose KL(dense || slim)
    chooses among the changes and refuses them all where none lowers it; ridge: pulls towards the weights as they are,
    each above 0; drift: how much of the difference that the residual streams have already is to be made up as well, for
    which slim_streams and dense_streams name, block by block, a module that takes the residual stream that the block's
    output is added to; batch_size: clips in memory together.

    Weights change nowhere else; both models keep their modes and requires_grad flags.

    Raises:
        BadInput: too few clips, or a setting out of range.
        ValueError: the sites or streams do not pair up, or a block has no output bias.
    """
    clips = _checked_clips(order, held_out, ridge, drift)
    _check_pairs(slim_sites, dense_sites)
    streams = _stream_pairs(len(slim_sites), drift, slim_streams, dense_streams)
    fitted, kept_back = clips
    with torch.no_grad(), _evaluated(slim), _evaluated(dense):
        wanted = _all_logits(dense, inputs, kept_back, logits, batch_size)

        def held_out_kl() -> float:
            answers = _all_logits(slim, inputs, kept_back, logits, batch_size)
            return float(kl_divergences(wanted, answers, targets[kept_back]).cpu().double().mean())

        before = best_kl = held_out_kl()
        blocks = []
        for index, (slim_site, dense_site) in enumerate(zip(slim_sites, dense_sites, strict=True)):
            report(
                f"compensating block {index + 1}/{len(slim_sites)}, held-out KL {best_kl:.4f} nats",
                index / len(slim_sites),
            )
            batch_sums = (
                residual_sums(
                    _pass_until_output(slim, slim_site, streams[index][0], inputs[rows], logits),
                    _pass_until_output(dense, dense_site, streams[index][1], inputs[rows], logits),
                    None if slim_site.kind == "encoder" else before_the_end(targets[rows]),
                )
                for rows in fitted.split(batch_size)
            )
            sums = functools.reduce(_added, batch_sums)
            block = _choose_change_(slim_site, sums, ridge, drift, best_kl, held_out_kl)
            best_kl = block.kept.held_out_kl if block.kept is not None else best_kl
            blocks.append(block)
        report(f"compensated, held-out KL {before:.4f} -> {best_kl:.4f} nats", 1.0)
    return Compensated(tuple(blocks), before, best_kl)


def _checked_clips(
    order: torch.Tensor, held_out: float, ridge: Sequence[float], drift: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips to fit, and clips to hold out."""
    if not 0.0 < held_out < 1.0:
        raise BadInput(f"compensation held_out is {held_out:g}; it must lie between 0 and 1")
    if not ridge or not all(value > 0.0 for value in ridge):
        raise BadInput(f"compensation ridge is {tuple(ridge)}; it must be one or more numbers above 0")
    if not drift:
        raise BadInput("compensation drift is empty; it must be one or more numbers, 0 for no drift")
    held_out_clips = round(held_out * len(order))
    if not 0 < held_out_clips < len(order):
        raise BadInput(f"{len(order)} clips are too few to hold out {held_out:g} of them (held_out)")
    return order[:-held_out_clips], order[-held_out_clips:]


def _check_pairs(slim_sites: Sequence[AttentionSite], dense_sites: Sequence[AttentionSite]) -> None:
    if [site.name for site in slim_sites] != [site.name for site in dense_sites]:
        raise ValueError("the slim and the dense model have different attention blocks")
    for site in slim_sites:
        if site.output.bias is None:
            raise ValueError(f"{site.name} has no output bias")


def _stream_pairs(
    blocks: int, drift: Sequence[float], slim_streams: Sequence[nn.Module], dense_streams: Sequence[nn.Module]
) -> list[tuple[nn.Module | None, nn.Module | None]]:
    if not any(drift):
        return [(None, None)] * blocks
    if not len(slim_streams) == len(dense_streams) == blocks:
        raise ValueError("drift needs one stream module per block of either model")
    return list(zip(slim_streams, dense_streams, strict=True))


@contextlib.contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _all_logits(model: nn.Module, inputs: Inputs, clips: torch.Tensor, logits: Logits, batch_size: int) -> torch.Tensor:
    device = next(model.parameters()).device
    return torch.cat([logits(model, inputs[rows].to(device)) for rows in clips.split(batch_size)])


@dataclass(frozen=True)
class BlockPass:
    """What one batch gave at one block: context (B, T, C), output (B, T, D) and the residual stream (B, T, D) or None.

    output is that of the output projection.
    """

    context: torch.Tensor
    output: torch.Tensor
    stream: torch.Tensor | None


class _OutputReached(Exception):
    """Ends a forward pass of which nothing later is needed."""


def _pass_until_output(
    model: nn.Module, site: AttentionSite, stream: nn.Module | None, inputs: Inputs, logits: Logits
) -> BlockPass:
    """Run the model up to the block's output projection and not further."""
    streams: list[torch.Tensor] = []
    reached: list[BlockPass] = []

    def keep_stream(_module: nn.Module, arguments: tuple) -> None:
        streams.append(arguments[0])

    def keep_and_stop(_module: nn.Module, arguments: tuple, output: torch.Tensor) -> None:
        reached.append(BlockPass(arguments[0], output, streams[-1] if streams else None))
        raise _OutputReached

    hooks = [site.output.register_forward_hook(keep_and_stop)]
    if stream is not None:
        hooks.append(stream.register_forward_pre_hook(keep_stream))
    try:
        with contextlib.suppress(_OutputReached):
            logits(model, inputs.to(site.output.weight.device))
    finally:
        for hook in hooks:
            hook.remove()
    return reached[0]


def residual_sums(slim: BlockPass, dense: BlockPass, used: torch.Tensor | None = None) -> ResidualSums:
    """The sums over the tokens of one batch; of the dense block only its output and stream are used.

    used: (B, T), the tokens that count, or None for all.
    """

    def tokens(states: torch.Tensor) -> torch.Tensor:
        return states.flatten(0, 1) if used is None else states[used.to(states.device)]

    context = tokens(slim.context).double()
    residual = tokens(dense.output).to(context) - tokens(slim.output).double()
    cross = residual.mT @ context
    drift_cross, drift_sum = torch.zeros_like(cross), torch.zeros_like(residual[0])
    if slim.stream is not None and dense.stream is not None:
        drift = tokens(dense.stream).to(context) - tokens(slim.stream).double()
        drift_cross, drift_sum = drift.mT @ context, drift.sum(dim=0)
    return ResidualSums(
        tokens=len(context),
        context_gram=context.mT @ context,
        context_sum=context.sum(dim=0),
        cross=cross,
        residual_sum=residual.sum(dim=0),
        drift_cross=drift_cross,
        drift_sum=drift_sum,
    )


def _added(first: ResidualSums, second: ResidualSums) -> ResidualSums:
    return ResidualSums(**{name: getattr(first, name) + value for name, value in vars(second).items()})


def least_squares_change(sums: ResidualSums, ridge: float, drift: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What to add to the output weight, (D, C), and to its bias, (D,), float64: the minimiser at the top of this file.

    drift: how much of the residual stream's difference is added to r.
    """
    context_mean = sums.context_sum / sums.tokens
    residual_mean = (sums.residual_sum + drift * sums.drift_sum) / sums.tokens
    covariance = sums.context_gram / sums.tokens - torch.outer(context_mean, context_mean)
    cross = (sums.cross + drift * sums.drift_cross) / sums.tokens - torch.outer(residual_mean, context_mean)
    width = len(covariance)
    # contexts that never vary, or none at all, leave the weight as it is whatever the ridge
    scale = float(covariance.trace()) / width if width else 0.0
    penalty = ridge * (scale if scale > 0.0 else 1.0)
    regularised = covariance + penalty * torch.eye(width, dtype=covariance.dtype, device=covariance.device)
    change = torch.linalg.solve(regularised, cross.mT).mT
    return change, residual_mean - change @ context_mean


def _choose_change_(
    site: AttentionSite,
    sums: ResidualSums,
    ridge: Sequence[float],
    drift: Sequence[float],
    kl_now: float,
    held_out_kl: Callable[[], float],
) -> CompensatedBlock:
    """Try every change of the block's output projection and leave it with the best, or as it was."""
    weight, bias = site.output.weight, site.output.bias
    best_weight, best_bias = weight.detach().clone(), bias.detach().clone()
    old_weight, old_bias = best_weight.double(), best_bias.double()
    kept = None
    trials = []
    try:
        for some_drift, some_ridge in itertools.product(drift, ridge):
            weight_change, bias_change = least_squares_change(sums, some_ridge, some_drift)
            weight.copy_(old_weight + weight_change)
            bias.copy_(old_bias + bias_change)
            trial = BlockTrial(some_ridge, some_drift, held_out_kl())
            trials.append(trial)
            if trial.held_out_kl < (kept.held_out_kl if kept is not None else kl_now):
                kept, best_weight, best_bias = trial, weight.detach().clone(), bias.detach().clone()
    finally:  # an interrupted trial leaves nothing behind
        weight.copy_(best_weight)
        bias.copy_(best_bias)
    return CompensatedBlock(site.name, tuple(trials), kept)
