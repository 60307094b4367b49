"""Choose widths, measure what they lose on held-out clips, and choose again where the estimate was wrong.

Estimates add the losses of single heads; what is measured is KL(dense || slim) of the finished model, and of every
block alone: pruned as planned while the rest of the model is whole. Where an estimate of the whole or of a block is off
by more than a factor of two, every block's estimates are multiplied by measured over estimated, all of them together by
what the whole loses beyond the sum of its blocks, and widths are chosen again. Losses are cliffs: a block that turned
out dear is given more width, turns out cheap, and would be cut again. So the second round takes the square root of the
blocks' ratios, the third the cube root of the next, and so on, and of the plans that were measured the best one stays,
or one as good whose estimates held.

Where hardly any attention stays, estimates of whole blocks' removal are the furthest off of all: there each block's is
measured, with the rest of the model whole, and offered at that loss.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from leanear.calibration import shards
from leanear.calibration.sites import AttentionSite
from leanear.data.examples import HeldOut, evaluated, losing
from leanear.families.family import Family
from leanear.plan import SitePlan
from leanear.progress import Report, counted, in_parts, quiet
from leanear.prune.allocation.allocate import Allocation
from leanear.prune.costs import Costs
from leanear.prune.scoring import Losses, Scores
from leanear.prune.widths import RotatedRecipe, choose_widths, cut, may_go
from leanear.runtimes.errors import BadInput

MOST_ROUNDS = 4  # the first plan, and three in which widths are chosen again
FACTOR = 2.0
ALIKE = 1.1  # divergences on a handful of held-out clips that differ by less do not tell plans apart
NOTHING_NATS = 1e-4  # per target: below, a model is its dense self for every purpose, whatever the ratio
BLOCK_CLIPS = 16  # held-out clips on which single blocks are measured, at most
LARGEST_CORRECTION = 1e4
HARDLY_ANY = 0.15  # of all heads' channels: blocks are down to a few


@dataclass(frozen=True)
class BlockLoss:
    """One block's loss in nats per target: as it was estimated, and as measured with the rest of the model whole."""

    name: str
    estimated: float
    measured: float


@dataclass(frozen=True)
class Round:
    """One choice of widths: its loss in nats per target, as estimated when it was chosen, and as measured.

    cost: in the budget's unit; blocks: block by block.
    """

    estimated: float
    measured: float
    cost: float
    blocks: tuple[BlockLoss, ...]

    @property
    def of_blocks(self) -> float:
        """What the blocks were measured to lose one by one, added up: the round's estimate once it is corrected."""
        return sum(each.measured for each in self.blocks)

    @property
    def agrees(self) -> bool:
        """Whether estimate and measurement, whole and of every block, are within a factor of two, or nothing."""
        return self.agrees_as_a_whole and all(_close(each.estimated, each.measured) for each in self.blocks)

    @property
    def agrees_as_a_whole(self) -> bool:
        """Whether that is so of the whole, whatever its blocks do."""
        return _close(self.estimated, self.measured)


@dataclass(frozen=True)
class Corrections:
    """Factors on the estimates: of every block by name, and of what the blocks lose together beyond their sum.

    removals: what the removal of whole blocks was measured to lose, in place of its estimate.
    """

    blocks: Mapping[str, float] = dataclasses.field(default_factory=dict)
    together: float = 1.0
    removals: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def applied(self, losses: Losses) -> dict[str, Any]:
        """The corrected losses."""
        tables = {name: table * self.blocks.get(name, 1.0) * self.together for name, table in losses.items()}
        for name, measured in self.removals.items():
            tables[name][-1, 0, 0] = measured * self.together
        return tables


@dataclass(frozen=True)
class Chosen:
    """The slim model in eval mode, what it keeps, its widths, the rounds, and which of them it is.

    corrections: those by which the estimates of its round would have been its measurements.
    """

    model: nn.Module
    kept: tuple[SitePlan, ...]
    allocation: Allocation
    rounds: tuple[Round, ...]
    best: int
    corrections: Corrections

    @property
    def round(self) -> Round:
        """The round of the model."""
        return self.rounds[self.best]


def choose_measured(
    family: Family,
    model: nn.Module,
    scores: Scores,
    costs: Costs,
    budget: float,
    recipe: RotatedRecipe,
    held_out: HeldOut,
    *,
    corrections: Corrections | None = None,
    report: Report = quiet,
) -> Chosen:
    """The model within the budget whose measured loss is the least of `MOST_ROUNDS` at most.

    model: may be slim already, and then has lost something before. held_out: clips that were not scored; corrections:
    what an earlier call learned of the same scores.

    Raises:
        BadInput: the budget cannot be met.
    """
    sites = family.attention_sites(model)
    corrections = corrections or Corrections()
    before = losing(shards.same(held_out.kl(model))) if model is not held_out.dense else 0.0
    few = held_out if len(held_out) <= BLOCK_CLIPS else held_out.first(BLOCK_CLIPS)
    alone = SingleBlocks(family, model, scores, few)
    rounds: list[Round] = []
    in_force: list[Corrections] = []
    made: list[tuple[nn.Module, tuple[SitePlan, ...], Allocation]] = []
    shares = {"all": len(held_out), "blocks": len(few) * len(scores.losses)}  # of a round's time, about
    part = in_parts(report, {f"{what} {number}": shares[what] for number in range(MOST_ROUNDS) for what in shares})
    for number in range(MOST_ROUNDS):
        plans = _with_and_without_blocks(sites, corrections.applied(scores.losses), costs, budget, recipe)
        if not corrections.removals and _keeps_hardly_any(sites, plans[0]):
            corrections = dataclasses.replace(corrections, removals=alone.removals(recipe))
            plans = _with_and_without_blocks(sites, corrections.applied(scores.losses), costs, budget, recipe)
        tried = [(*cut(family, model, scores.bases, each), each) for each in plans]
        told = counted(part(f"all {number}"), f"round {number + 1}: held-out clip ")
        divergences = [losing(shards.same(held_out.kl(each[0], told))) for each in tried]
        measured = min(divergences)
        slim, kept, allocation = tried[divergences.index(measured)]
        estimated = before + allocation.damage
        said = f"round {number + 1}: measured {measured:.4f} nats, estimated {estimated:.4f}; block by block"
        told = counted(part(f"blocks {number}"), f"{said}, ")
        blocks = alone.measure(corrections, allocation, slim, told)
        rounds.append(Round(estimated, measured, allocation.cost, blocks))
        in_force.append(corrections)
        made.append((slim, kept, allocation))
        if rounds[-1].agrees:
            break
        corrections = _corrected(corrections, rounds[-1], before, 1 / (len(rounds) + 1))
    best = least(rounds, [each.measured for each in rounds])
    report(f"measured {rounds[best].measured:.4f} nats on {len(held_out)} held-out clips", 1.0)
    learned = _corrected(in_force[best], rounds[best], before, 1.0)
    return Chosen(*made[best], tuple(rounds), best, learned)


def _with_and_without_blocks(
    sites: Sequence[AttentionSite], losses: Losses, costs: Costs, budget: float, recipe: RotatedRecipe
) -> list[Allocation]:
    """The plan, and where it has attention blocks without heads, the one that keeps a head in each, if there is one.

    Where so much goes, estimates are the furthest from what is measured, and those of whole blocks most of all.
    """
    plan = choose_widths(sites, losses, costs, budget, recipe)
    if all(any(pair != (0, 0) for pair in heads) for heads in plan.widths):
        return [plan]
    try:
        return [plan, choose_widths(sites, losses, costs, budget, recipe.estimated)]
    except BadInput:  # narrower than one head per block
        return [plan]


def _keeps_hardly_any(sites: Sequence[AttentionSite], plan: Allocation) -> bool:
    dense = sum(sum(site.query_key_widths) + sum(site.value_output_widths) for site in sites)
    return sum(sum(pair) for heads in plan.widths for pair in heads) < HARDLY_ANY * dense


def least(rounds: Sequence[Round], divergences: Sequence[float]) -> int:
    """Which round loses the least: by these divergences, and of those alike, one whose estimates held."""
    alike = ALIKE * min(losing(each) for each in divergences)

    def order(number: int) -> tuple[bool, float]:
        loss = losing(divergences[number])
        return (loss > alike or not rounds[number].agrees, loss)

    return min(range(len(rounds)), key=order)


def _close(estimated: float, measured: float) -> bool:
    if max(estimated, measured) <= NOTHING_NATS:
        return True
    return max(estimated, measured) <= FACTOR * max(min(estimated, measured), NOTHING_NATS / FACTOR)


def _corrected(in_force: Corrections, found: Round, before: float, power: float) -> Corrections:
    """Corrections by which this round's estimates would have been its measurements, or, below 1, are nearer to them.

    before: what was lost already.
    """
    factors = dict(in_force.blocks)
    for block in found.blocks:
        if max(block.estimated, block.measured) > NOTHING_NATS and block.estimated > 0:
            ratio = _bounded(max(block.measured, 0.0) / block.estimated)
            factors[block.name] = factors.get(block.name, 1.0) * ratio**power
    alone = sum(
        block.estimated * factors.get(block.name, 1.0) / in_force.blocks.get(block.name, 1.0) for block in found.blocks
    )
    together = _bounded((found.measured - before) / alone) if alone > 0 else in_force.together
    return dataclasses.replace(in_force, blocks=factors, together=together)


def _bounded(ratio: float) -> float:
    """A correction makes no loss nothing, and none that is infinite, of a width not offered, no number."""
    return min(max(losing(ratio), 1 / LARGEST_CORRECTION), LARGEST_CORRECTION)


class SingleBlocks:
    """Measures one block at a time, pruned while the rest of the model is whole, on held-out clips."""

    def __init__(self, family: Family, model: nn.Module, scores: Scores, held_out: HeldOut) -> None:
        self._family, self._losses, self._held_out = family, scores.losses, held_out
        self._sites: Sequence[AttentionSite] = family.attention_sites(model)
        self._dense = [tuple(zip(s.query_key_widths, s.value_output_widths, strict=True)) for s in self._sites]
        self._cut = functools.partial(cut, family, model, scores.bases)
        self._whole, _ = self._cut(Allocation(tuple(self._dense), 0.0, 0.0))
        self._nothing = shards.same(held_out.kl(self._whole))  # of the whole model in the new basis: rounding alone

    def removals(self, recipe: RotatedRecipe) -> dict[str, float]:
        """What each block's removal loses that may go."""
        gone = [may_go(site, recipe) for site in self._sites]
        widths = [((0, 0),) * len(dense) if goes else dense for goes, dense in zip(gone, self._dense, strict=True)]
        without, _ = self._cut(Allocation(tuple(widths), 0.0, 0.0))
        sites = zip(self._family.attention_sites(self._whole), self._family.attention_sites(without), strict=True)
        losses = {}
        for goes, (wide, none) in zip(gone, sites, strict=True):
            if goes:
                with _in_place_of(self._whole, wide.module, none.module):
                    losses[wide.name] = self._measured(wide.kind)
        return losses

    def measure(
        self,
        corrections: Corrections,
        allocation: Allocation,
        slim: nn.Module,
        told: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> tuple[BlockLoss, ...]:
        """Every block's loss, as estimated without what blocks lose together, and as measured; slim: as allocated.

        told: takes after every block how many of how many are done.
        """
        found: list[BlockLoss] = []
        of_both = self._attention(corrections, allocation, slim), self._feed_forward(corrections, allocation, slim)
        for loss in itertools.chain(*of_both):
            found.append(loss)
            told(len(found), len(self._losses))
        return tuple(found)

    def _attention(self, corrections: Corrections, allocation: Allocation, slim: nn.Module) -> Iterator[BlockLoss]:
        pairs = zip(self._sites, allocation.widths, self._dense, strict=True)
        modules = zip(self._family.attention_sites(self._whole), self._family.attention_sites(slim), strict=True)
        for (site, widths, dense), (wide, narrow) in zip(pairs, modules, strict=True):
            if widths == dense:
                yield BlockLoss(site.name, 0.0, 0.0)
                continue
            if site.name in corrections.removals and not any(pair != (0, 0) for pair in widths):
                yield BlockLoss(site.name, *(corrections.removals[site.name],) * 2)
                continue
            estimated = corrections.blocks.get(site.name, 1.0) * block_loss(self._losses, site, widths)
            with _in_place_of(self._whole, wide.module, narrow.module):
                measured = self._measured(site.kind)
            yield BlockLoss(site.name, estimated, measured)

    def _feed_forward(self, corrections: Corrections, allocation: Allocation, slim: nn.Module) -> Iterator[BlockLoss]:
        sites = (self._family.feed_forward_sites(model) for model in (self._whole, slim))
        for wide, narrow in zip(*sites, strict=True) if allocation.feed_forward else ():
            if narrow.width == wide.width:
                yield BlockLoss(wide.name, 0.0, 0.0)
                continue
            estimated = corrections.blocks.get(wide.name, 1.0) * float(self._losses[wide.name][narrow.width])
            with (
                _in_place_of(self._whole, wide.first, narrow.first),
                _in_place_of(self._whole, wide.second, narrow.second),
            ):
                measured = self._measured(wide.kind)
            yield BlockLoss(wide.name, estimated, measured)

    def _measured(self, kind: str) -> float:
        """What the model as it now is loses, a block of an encoder or a decoder being changed."""
        clips = self._held_out if kind == "encoder" else self._encoded
        return max(losing(shards.same(clips.kl(self._whole))) - self._nothing, 0.0)

    @functools.cached_property
    def _encoded(self) -> HeldOut:
        """The clips as the encoder leaves them, where only a decoder's block changes."""
        with evaluated(self._whole):
            inputs = self._family.encoded(self._whole, self._held_out.clips.inputs, self._held_out.batch_size)
        return self._held_out.of(inputs)


def block_loss(losses: Losses, site: AttentionSite, widths: Sequence[tuple[int, int]]) -> float:
    """The summed estimates of a block's heads at these widths, or that of all their removal, nats per target.

    A query/key width to which a target fills heads up may not have been tried: the next narrower one stands for it.
    """
    if not any(pair != (0, 0) for pair in widths):
        return float(losses[site.name][-1, 0, 0])
    tried = (losses[site.name][head, : k + 1, v] for head, (k, v) in enumerate(widths))
    return float(sum(column[np.isfinite(column)][-1] for column in tried))


@contextlib.contextmanager
def _in_place_of(model: nn.Module, old: nn.Module, new: nn.Module) -> Iterator[None]:
    """Within the block, `new` stands where `old` is in the model."""
    name = next(name for name, module in model.named_modules() if module is old)
    parent, _, attribute = name.rpartition(".")
    holder = model.get_submodule(parent)
    setattr(holder, attribute, new)
    try:
        yield
    finally:
        setattr(holder, attribute, old)
