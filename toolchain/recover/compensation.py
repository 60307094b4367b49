"""Compensation without training: output projections that make up, by least squares, for what pruning took away.

Of a block, with contexts u (the rows that the slim output projection takes: of a feed-forward block, its hidden
channels), residuals r (what the dense model's blocks have given to the residual stream up to and with this one, less
what the slim model's have) and n tokens, the change of the weight W and bias b is

    Delta = argmin 1/n sum |r - mean r - Delta (u - mean u)|^2 + ridge * tr(Cov u) / C * |Delta|^2
          = Cov(r, u) (Cov(u) + ridge * tr(Cov u) / C * I)^-1         b += mean r - Delta mean u

so a model that loses nothing is not changed at all. Blocks are fitted one after the other, as a pass goes through them,
on contexts as the slim model computes them behind those fitted already: fitted all at once, each makes up for what the
others' changes have made up for as well, which made Whisper's encoder worse. Of several ridges each block takes the one
that leaves the smallest residual on held-out clips, or no change if none leaves less than there is; the change stays if
it lowers the held-out KL(dense || slim). A pass ends at the block that it is for.
Dimension letters: B batch, T tokens, D model width, C the sum of the heads' value/output widths.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from leanear.calibration import shards
from leanear.calibration.targets import before_the_end
from leanear.data.examples import HeldOut, Inputs, LabelledInputs, evaluated, losing, trimmed
from leanear.families.family import Family
from leanear.progress import Report, quiet
from leanear.recover.block_passes import Clips, Pair, at_block, logits
from leanear.runtimes.errors import BadInput

TOKENS_PER_COLUMN = 64  # of contexts to fit on, where not all clips have room in memory as a layer finds them


@dataclass(frozen=True)
class CompensatedBlock:
    """One block's change.

    ridge: the one chosen, or None if no change lowers the residual; residual_share_before, residual_share_after: the
    squared residual of the held-out tokens over the square of what the dense blocks have given, without the fitted
    change and with it; kept: whether the block has it now, or its old weights.
    """

    name: str
    ridge: float | None
    residual_share_before: float
    residual_share_after: float
    kept: bool


@dataclass(frozen=True)
class Compensated:
    """What a compensation did: its blocks, and KL(dense || slim) in nats per held-out target before and after all."""

    blocks: tuple[CompensatedBlock, ...]
    held_out_kl_before: float
    held_out_kl_after: float


@dataclass(frozen=True)
class BlockSums:
    """Sums over the tokens of one block, float64, of v = (u, 1), contexts with a one after them, and residuals r.

    gram (C + 1, C + 1): of v v^T; cross (D, C + 1): of r v^T; residual_square, stream_square: of |r|^2 and of what the
    dense blocks have given, squared. A change is (D, C + 1), too: what to add to the weight and, last, to the bias.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    residual_square: torch.Tensor
    stream_square: torch.Tensor

    @classmethod
    def empty(cls, output: nn.Linear) -> BlockSums:
        """Of no tokens, on the device of the projection."""
        zeros = functools.partial(torch.zeros, dtype=torch.float64, device=output.weight.device)
        contexts = output.in_features + 1
        return cls(zeros(contexts, contexts), zeros(output.out_features, contexts), zeros(()), zeros(()))

    def add_(self, context: torch.Tensor, slim: torch.Tensor, dense: torch.Tensor) -> None:
        """Add tokens: contexts (tokens, C) and what both models' blocks have given up to there (tokens, D)."""
        context = functional.pad(context, (0, 1), value=1.0)
        residual = dense - slim
        self.gram.add_(context.mT @ context)  # products in float32 take a quarter of the time
        self.cross.add_(residual.mT @ context)
        self.residual_square.add_(residual.double().square().sum())
        self.stream_square.add_(dense.double().square().sum())

    def cpu(self) -> BlockSums:
        """The same on the CPU."""
        return BlockSums(**{name: value.cpu() for name, value in vars(self).items()})

    def residual_share(self, change: torch.Tensor) -> float:
        """The sum of |r - change v|^2 over that of what the dense blocks have given."""
        left = self.residual_square - 2 * (change * self.cross).sum() + (change @ self.gram * change).sum()
        return max(float(left), 0.0) / max(float(self.stream_square), torch.finfo(torch.float64).tiny)


def compensate_(
    family: Family,
    slim: nn.Module,
    dense: nn.Module,
    fitted: LabelledInputs,
    held_out: LabelledInputs,
    *,
    ridge: Sequence[float] = (1e-3, 1e-2, 1e-1),
    every_block: bool = False,
    encoder_alone: bool = False,
    batch_size: int = 16,
    report: Report = quiet,
) -> Compensated:
    """Change the slim model's output projections in place so that it answers more like the dense one; what was done.

    Attention blocks are changed, and feed-forward blocks that became narrower. fitted: clips to fit on; held_out:
    others, which choose the ridges and refuse the changes that do not lower their KL(dense || slim); ridge: pulls
    towards the weights as they are, each above 0; every_block: feed-forward blocks of full width, too, make up for what
    others lost; encoder_alone: a decoder stays as it is; batch_size: clips in memory. Both models are on one device.

    Weights change nowhere else; both models keep their modes and requires_grad flags. When interrupted, the slim model
    keeps the weights that it came with.

    Raises:
        BadInput: too few clips, or a setting out of range.
        ValueError: the models have different blocks, or one has no output bias.
    """
    _check_settings(fitted, held_out, ridge)
    pairs = _fitted_pairs(family, slim, dense, every_block, encoder_alone)
    judge = HeldOut(dense, held_out, functools.partial(logits, family), batch_size)
    every, judged = (Clips(each.inputs, each.inputs, each.targets) for each in (fitted, held_out))
    least_tokens = TOKENS_PER_COLUMN * (1 + max((pair[0].output.in_features for pair in pairs.values()), default=0))
    clips = every
    done: dict[str, CompensatedBlock] = {}
    with torch.no_grad(), evaluated(slim), evaluated(dense), _as_they_were_if_interrupted(pairs):
        before = kl = losing(shards.same(judge.kl(slim)))
        for number, (name, pair) in enumerate(_in_order(family, slim, pairs, fitted.inputs[:1])):
            report(f"compensation, block {number + 1} of {len(pairs)}, held-out KL {kl:.4f} nats", number / len(pairs))
            if pair[0].kind != "encoder" and len(clips.targets) < len(every.targets):
                clips = every  # a text has few tokens: of a decoder every clip counts
            clips = clips.up_to(family, pair, (slim, dense), batch_size, least_tokens)
            judged = judged.up_to(family, pair, (slim, dense), batch_size)
            sums, by_held_out = (_sums(family, (slim, dense), pair, each, batch_size) for each in (clips, judged))
            fit = _fit(sums, by_held_out, ridge)
            after = kl
            if fit.ridge is not None:
                old = _change_(pair[0].output, fit.change)
                judge_here = judge.of(judged.slim) if judge.knows_all_answers else judge
                after = shards.same(judge_here.kl(slim))  # processes that keep different changes would train apart
                if not after < kl:
                    _put_back_(pair[0].output, old)
            done[name] = CompensatedBlock(name, fit.ridge, fit.share_before, fit.share_after, after < kl)
            kl = min(kl, after)
    report(f"compensated, held-out KL {before:.4f} -> {kl:.4f} nats", 1.0)
    return Compensated(tuple(done[name] for name in pairs), before, kl)


def _fitted_pairs(family: Family, slim: Any, dense: Any, every_block: bool, encoder_alone: bool) -> dict[str, Pair]:
    """By name, the blocks of both models that are fitted; blocks that are gone are left out."""
    attention = zip(family.attention_sites(slim), family.attention_sites(dense), strict=True)
    blocks = zip(family.feed_forward_sites(slim), family.feed_forward_sites(dense), strict=True)
    pairs: list[Pair] = [pair for pair in attention if pair[0].query_key_widths]
    pairs += [(narrow, wide) for narrow, wide in blocks if narrow.width and (every_block or narrow.width < wide.width)]
    pairs = [pair for pair in pairs if not encoder_alone or pair[0].kind == "encoder"]
    for narrow, _ in pairs:
        if narrow.output.bias is None:
            raise ValueError(f"{narrow.name} has no output bias")
    return {pair[0].name: pair for pair in pairs}


def _check_settings(fitted: LabelledInputs, held_out: LabelledInputs, ridge: Sequence[float]) -> None:
    if not ridge or not all(value > 0.0 for value in ridge):
        raise BadInput(f"compensation ridge is {tuple(ridge)}; it must be one or more numbers above 0")
    if not len(fitted) or not len(held_out):
        raise BadInput(
            f"{len(fitted) + len(held_out)} clips are too few for compensation: it fits on {len(fitted)} and holds out"
            f" {len(held_out)}, and needs at least one of either"
        )


def _in_order(family: Family, slim: nn.Module, pairs: Mapping[str, Pair], clip: Inputs) -> list[tuple[str, Pair]]:
    """The blocks as a pass goes through them."""
    order: list[str] = []
    with contextlib.ExitStack() as hooks:
        for name, (site, _) in pairs.items():
            hooks.callback(site.output.register_forward_hook(lambda *_, name=name: order.append(name)).remove)
        family.logits(slim, clip)
    return [(name, pairs[name]) for name in order]


# Fitting


def _sums(family: Family, models: tuple[nn.Module, nn.Module], pair: Pair, clips: Clips, batch_size: int) -> BlockSums:
    """A block's sums, on the CPU; the models go through each clip up to that block."""
    sums = BlockSums.empty(pair[0].output)
    for rows in torch.arange(len(clips.targets)).split(batch_size):
        (of_slim, targets), (of_dense, _) = (
            trimmed(inputs[rows], clips.targets[rows]) for inputs in (clips.slim, clips.dense)
        )
        (context, slim), (_, dense) = (
            at_block(family, model, site, inputs)
            for model, site, inputs in zip(models, pair, (of_slim, of_dense), strict=True)
        )
        states = [each.flatten(0, 1) for each in (context, slim, dense)]
        used = before_the_end(targets)
        if used is not None and pair[0].kind != "encoder":
            # as numbers, from the CPU: a mask on a GPU would wait for it
            decoded = torch.nonzero(used.flatten())[:, 0].to(slim.device)
            states = [each[decoded] for each in states]
        sums.add_(*states)
    return sums.cpu()


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


def _change_(output: nn.Linear, change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the change to weight and bias; what they were."""
    old = output.weight.clone(), output.bias.clone()
    change = change.to(output.weight.device)
    output.weight.copy_(output.weight.double() + change[:, :-1])
    output.bias.copy_(output.bias.double() + change[:, -1])
    return old


def _put_back_(output: nn.Linear, old: tuple[torch.Tensor, torch.Tensor]) -> None:
    for parameter, value in zip((output.weight, output.bias), old, strict=True):
        parameter.copy_(value)


@contextlib.contextmanager
def _as_they_were_if_interrupted(pairs: Mapping[str, Pair]) -> Iterator[None]:
    with contextlib.ExitStack() as undo:
        for slim, _ in pairs.values():
            undo.callback(_put_back_, slim.output, (slim.output.weight.clone(), slim.output.bias.clone()))
        yield
        undo.pop_all()
