"""What a model is pruned to: the recipe, the widths of least estimated loss within a budget, and the cut itself."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from torch import nn

from leanear.benchmarks.formatting import count
from leanear.calibration.basis import BasisKind, SiteBasis
from leanear.calibration.feed_forward import FeedForwardBasis
from leanear.calibration.passes import Labels
from leanear.calibration.sites import AttentionSite, FeedForwardSite
from leanear.families.family import Family
from leanear.families.slimming import (
    feed_forward_state,
    first_channels_state,
    kept_attention_state,
    rotated_attention_state,
)
from leanear.plan import FeedForwardPlan, Prune, SitePlan, SitesChoice, first_channels, untouched
from leanear.prune.allocation.allocate import Allocation, BlockOptions, HeadOptions, allocate
from leanear.prune.costs import Costs, FeedForwardCost
from leanear.prune.scoring import Bases, Losses, Scoring
from leanear.runtimes.errors import BadInput
from leanear.runtimes.records import Positive, check

Pools = Literal["global", "by-kind"]
POOLS: tuple[Pools, ...] = ("global", "by-kind")
LossKind = Literal["finite", "infinitesimal"]

DAMAGE_DIGITS = 9  # float sums in another order must not decide between equal choices
TIE = 0.01  # of the last digit
NO_DAMAGE = 1e-12  # nats


@dataclass(frozen=True)
class RotatedRecipe:
    """How a model is pruned in a new basis; the defaults are what measured best.

    basis, labels, basis_clips: as in `Scoring`.
    losses: "finite", by the exact change of the attention at every width, or "infinitesimal", by derivatives at the
        dense model alone, which a saturated softmax deceives.
    multiples: widths (query/key, value/output) are multiples of these, or whole. one_width_per_head: the two widths of
        a head are one.
    pools: whether the blocks of every kind (encoder, decoder, cross-attention) have a budget of their own, the same
        share of what they cost, or all blocks one. sites: which blocks are pruned, see `untouched`.
    prune: attention, feed-forward blocks, or both. feed_forward_multiple: hidden channels come in multiples of it.
    whole_blocks: whether all heads of a block may go, in a family that has that, or one always stays.
    shots: in how many parts, None: one, and two where what one loses matters; calibration_clips: at most; chunk: clips
        that are added up at once; seed: of the clips' order and of the random labels.
    """

    basis: BasisKind = "fisher"
    labels: Labels = "projected"
    losses: LossKind = "finite"
    multiples: tuple[int, int] = (4, 4)
    one_width_per_head: bool = False
    pools: Pools = "global"
    sites: SitesChoice = "all"
    prune: Prune = "attention"
    feed_forward_multiple: Positive = 16
    whole_blocks: bool = True
    shots: Positive | None = None
    calibration_clips: Positive = 256
    basis_clips: Positive = 64
    chunk: Positive = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, "recipe")
        if self.prune != "attention" and self.losses != "finite":
            raise BadInput(f"prune {self.prune}: feed-forward blocks have finite losses alone")
        if self.one_width_per_head and len(set(self.multiples)) > 1:
            step, other = self.multiples
            raise BadInput(f"one width per head cannot be of multiples of {step} and of {other}")

    @property
    def estimated(self) -> RotatedRecipe:
        """The same for plans that nobody measures: of whole blocks the estimates are too far off, so heads stay."""
        return dataclasses.replace(self, whole_blocks=False)

    @property
    def scoring(self) -> Scoring:
        """What of it says how clips are scored."""
        finite, clips = self.losses == "finite", self.basis_clips
        return Scoring(self.basis, self.labels, finite, self.multiples[0], clips, self.chunk, self.seed, self.prune)


def choose_widths(
    sites: Sequence[AttentionSite], losses: Losses, costs: Costs, budget: float, recipe: RotatedRecipe
) -> Allocation:
    """The widths of every head, (0, 0) where it goes, of least estimated loss within the budget of the whole model.

    Raises:
        BadInput: the budget is below what the smallest model costs.
    """
    check_budget(sites, costs, budget, recipe)
    costs = _without_decoder(costs, recipe)
    dense = [tuple(zip(site.query_key_widths, site.value_output_widths, strict=True)) for site in sites]
    whole = kept_whole_names(sites, recipe)
    kept_whole = [index for index, site in enumerate(sites) if site.name in whole]
    options = [
        [] if site.name in whole else _site_options(site, losses[site.name], head_cost, recipe)
        for site, head_cost in zip(sites, costs.heads, strict=True)
    ]
    removals = [
        _removal(losses[site.name]) if site.name not in whole and may_go(site, recipe) else math.inf for site in sites
    ]
    blocks = {
        block.name: _block_options(block, losses[block.name], recipe)
        for block in costs.feed_forward
        if block.name in losses  # a block that is gone has none
    }
    fixed = costs.fixed + sum(costs.block(index, dense[index]) for index in kept_whole)
    pools = _pools(sites, kept_whole, costs, recipe.pools)
    of_pools = [_dense_cost(pool, dense, costs) for pool in pools]
    widths, cost, damage = list(dense), fixed, 0.0
    feed_forward: dict[str, int] = {}
    for pool, dense_cost in zip(pools, of_pools, strict=True):
        share = dense_cost / sum(of_pools)
        of_pool = [blocks[name] for name in pool.feed_forward if name in blocks]
        chosen = _allocate_pool(pool.attention, options, removals, of_pool, (budget - fixed) * share, costs)
        for index, site_widths in zip(pool.attention, chosen.widths, strict=True):
            widths[index] = site_widths
        cost, damage, feed_forward = cost + chosen.cost, damage + chosen.damage, feed_forward | chosen.feed_forward
    allocation = Allocation(tuple(widths), cost, damage, feed_forward)
    return _widened(sites, allocation, costs)


def kept_whole_names(sites: Sequence[AttentionSite], recipe: RotatedRecipe) -> frozenset[str]:
    """The names of the attention blocks that are not pruned, those that have no head any more among them."""
    gone = {site.name for site in sites if recipe.prune == "feed-forward" or not site.query_key_widths}
    return untouched(sites, recipe.sites) | gone


def _without_decoder(costs: Costs, recipe: RotatedRecipe) -> Costs:
    """The costs where the decoder's feed-forward blocks are fixed, if they are not pruned."""
    pruned = tuple(block for block in costs.feed_forward if _is_pruned(block, recipe))
    kept = sum(block.of(block.width) for block in costs.feed_forward if block not in pruned)
    return dataclasses.replace(costs, fixed=costs.fixed + kept, feed_forward=pruned)


def _is_pruned(block: FeedForwardCost | FeedForwardSite, recipe: RotatedRecipe) -> bool:
    return recipe.prune != "attention" and (recipe.sites != "encoder" or block.kind == "encoder")


def may_go(site: AttentionSite, recipe: RotatedRecipe) -> bool:
    """Whether the block, which is pruned, may lose all its heads."""
    return site.may_go and recipe.whole_blocks and bool(site.query_key_widths)


def check_budget(sites: Sequence[AttentionSite], costs: Costs, budget: float, recipe: RotatedRecipe) -> None:
    """Nothing, where some model is within the budget.

    Raises:
        BadInput: the budget is below what the smallest model costs, which the text states.
    """
    least = least_cost(sites, costs, recipe)
    if budget < least * (1 - 1e-9):
        fewer = 100 * (1 - least / costs.dense)
        told = count if costs.dense >= 1e6 else "{:.4g}".format
        raise BadInput(
            f"{told(budget)} {costs.unit} are out of reach: {narrowest_name(sites, recipe)} has"
            f" {told(least)}, {fewer:.1f} % less than the dense one's {told(costs.dense)}"
        )


def least_cost(sites: Sequence[AttentionSite], costs: Costs, recipe: RotatedRecipe) -> float:
    """What the narrowest model costs: one head, or none, in every block that is pruned, no feed-forward channel."""
    whole, least = kept_whole_names(sites, recipe), _without_decoder(costs, recipe).fixed
    for index, site in enumerate(sites):
        dense = tuple(zip(site.query_key_widths, site.value_output_widths, strict=True))
        if site.name in whole:
            least += costs.block(index, dense)
        elif not may_go(site, recipe):
            least += min(costs.block(index, (_width_pairs(*pair, recipe)[0],)) for pair in dense)
    return least


def narrowest_name(sites: Sequence[AttentionSite], recipe: RotatedRecipe) -> str:
    """What the narrowest model is called, with what it keeps of attention where that is pruned."""
    whole = kept_whole_names(sites, recipe)
    losing = {may_go(site, recipe) for site in sites if site.name not in whole}
    kept = {1: "no head" if True in losing else "one head per block", 2: "one head per block that must have one"}
    where = f" where {recipe.sites} is pruned" if recipe.sites != "all" else ""
    return f"the narrowest model, {kept[len(losing)]}{where}," if losing else "the narrowest model"


def narrowest_model(family: Family, model: nn.Module, recipe: RotatedRecipe) -> nn.Module:
    """The smallest model that there is to prune to, with some of the dense one's weights: to be timed, not used."""
    sites, blocks = family.attention_sites(model), family.feed_forward_sites(model)
    whole = kept_whole_names(sites, recipe)
    none = {block.name: first_channels_state(block, 0) for block in blocks if _is_pruned(block, recipe)}
    return family.slim_model(model, tuple(_narrowest(site, site.name in whole, recipe) for site in sites), None, none)


def _narrowest(site: AttentionSite, whole: bool, recipe: RotatedRecipe) -> SitePlan:
    pairs = list(zip(site.query_key_widths, site.value_output_widths, strict=True))
    kept = pairs if whole else [] if may_go(site, recipe) else [_width_pairs(*pairs[0], recipe)[0]]
    return first_channels(site, kept)


@dataclass(frozen=True)
class _Pool:
    """Blocks that share a budget: the numbers of attention blocks, and the names of feed-forward blocks."""

    attention: list[int]
    feed_forward: list[str]


def _pools(sites: Sequence[AttentionSite], kept_whole: Sequence[int], costs: Costs, pools: Pools) -> list[_Pool]:
    """Pool by pool; blocks that are kept whole are in none."""
    prunable = [index for index in range(len(sites)) if index not in kept_whole]
    if pools == "global":
        return [_Pool(prunable, [block.name for block in costs.feed_forward])]
    kinds = dict.fromkeys(sites[index].kind for index in prunable)
    others = dict.fromkeys(block.kind for block in costs.feed_forward)
    return [
        *(_Pool([index for index in prunable if sites[index].kind == kind], []) for kind in kinds),
        *(_Pool([], [block.name for block in costs.feed_forward if block.kind == kind]) for kind in others),
    ]


def _dense_cost(pool: _Pool, dense: Sequence[Any], costs: Costs) -> float:
    attention = sum(costs.block(index, dense[index]) for index in pool.attention)
    return attention + sum(block.of(block.width) for block in costs.feed_forward if block.name in pool.feed_forward)


def _allocate_pool(
    pool: Sequence[int],
    options: Sequence[Sequence[HeadOptions]],
    removals: Sequence[float],
    blocks: Sequence[BlockOptions],
    budget: float,
    costs: Costs,
) -> Allocation:
    """The widths of the heads and channels of some blocks."""
    ragged = None if costs.ragged is None else [costs.ragged[index] for index in pool]
    tied = None if ragged is None else [lambda count, *pair, of=each: of((pair,) * count) for each in ragged]
    return allocate(
        [options[index] for index in pool], budget, tied=tied, ragged=ragged, blocks=blocks,
        removals=[removals[index] for index in pool],
    )  # fmt: skip


def _block_options(block: FeedForwardCost, losses: np.ndarray, recipe: RotatedRecipe) -> BlockOptions:
    widths = np.array([0, *multiples(len(losses) - 1, recipe.feed_forward_multiple)])
    costs = np.array([*map(block.of, widths)])
    return BlockOptions(block.name, widths, costs, _rounded(losses[widths], costs))


def _site_options(site: AttentionSite, losses: np.ndarray, cost: Any, recipe: RotatedRecipe) -> list[HeadOptions]:
    heads = []
    for head, (qk, vo) in enumerate(zip(site.query_key_widths, site.value_output_widths, strict=True)):
        pairs = _width_pairs(qk, vo, recipe)
        query_key, value_output = np.array([(0, 0), *pairs]).T
        costs = np.array([0.0, *(cost(k, v) for k, v in pairs)])
        damages = _rounded(losses[head, query_key, value_output], costs)
        heads.append(HeadOptions(query_key, value_output, costs, damages))
    return heads


def _removal(losses: np.ndarray) -> float:
    """Damage of a block without heads, (H + 1, K + 1, V + 1) for each and for all: no cheaper than none of each."""
    damage = float(losses[-1, 0, 0])
    return damage + (len(losses) - 1) * TIE * _digit(damage)


def _width_pairs(query_key: int, value_output: int, recipe: RotatedRecipe) -> list[tuple[int, int]]:
    """What a head of these widths may keep, the narrowest first."""
    if recipe.one_width_per_head:
        step = recipe.multiples[0]
        return [
            *((width, width) for width in range(step, min(query_key, value_output), step)),
            (query_key, value_output),
        ]
    step, other = recipe.multiples
    return [(k, v) for k in multiples(query_key, step) for v in multiples(value_output, other)]


def multiples(width: int, multiple: int) -> list[int]:
    """The multiples below the width, and the width itself."""
    return [*range(multiple, width, multiple), width]


def _rounded(damages: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """To the digits that mean something, relative to the largest: sums of floats differ by the order of adding.

    Of equal ones the cheaper is worse by less than such a digit, so that a budget is used up: where few clips tell of
    few directions, most of a model seems to do nothing.
    """
    digit = _digit(float(np.abs(damages).max()))
    return digit * (np.round(damages / digit) + TIE * (1 - costs / max(costs.max(), 1e-300)))


def _digit(damage: float) -> float:
    """The last digit of a damage that means something."""
    return float(10.0 ** (np.ceil(np.log10(max(damage, NO_DAMAGE))) + 1 - DAMAGE_DIGITS))


def _widened(sites: Sequence[AttentionSite], allocation: Allocation, costs: Costs) -> Allocation:
    """With every width that costs nothing more in its block."""
    if costs.widened is None:
        return allocation
    widths = []
    for site, heads, widen in zip(sites, allocation.widths, costs.widened, strict=True):
        kept = [index for index, pair in enumerate(heads) if pair != (0, 0)]
        wider = dict(zip(kept, widen(tuple(heads[index] for index in kept)), strict=True)) if kept else {}
        most = list(zip(site.query_key_widths, site.value_output_widths, strict=True))
        widths.append(
            tuple(
                (min(wider[index][0], most[index][0]), min(wider[index][1], most[index][1])) if index in wider else pair
                for index, pair in enumerate(heads)
            )
        )
    return dataclasses.replace(allocation, widths=tuple(widths))


def cut(
    family: Family, model: nn.Module, bases: Bases, allocation: Allocation
) -> tuple[nn.Module, tuple[SitePlan, ...]]:
    """The model of these widths in the new bases, and what it keeps of attention, counted within `model`.

    Blocks without a basis stay as they are.
    """
    sites = family.attention_sites(model)
    kept = tuple(itertools.starmap(first_channels, zip(sites, allocation.widths, strict=True)))
    states = [
        rotated_attention_state(site, cast(SiteBasis, bases[site.name]), plan)
        if site.name in bases else kept_attention_state(site, plan)
        for site, plan in zip(sites, kept, strict=True)
    ]  # fmt: skip
    narrowed = {
        site.name: feed_forward_state(site, cast(FeedForwardBasis, bases[site.name]), width)
        for site, width in _narrowed(family, model, allocation)
    }
    return family.slim_model(model, kept, states, narrowed), kept


def kept_channels(
    family: Family, model: nn.Module, bases: Bases, allocation: Allocation
) -> tuple[FeedForwardPlan, ...]:
    """What the model of these widths keeps of the feed-forward blocks, counted within `model`."""
    widths = {site.name: width for site, width in _narrowed(family, model, allocation)}
    return tuple(
        FeedForwardPlan(
            site.name,
            site.width,
            tuple(sorted(cast(FeedForwardBasis, bases[site.name]).order[: widths[site.name]].tolist()))
            if site.name in widths
            else tuple(range(site.width)),
            site.kind,
        )
        for site in family.feed_forward_sites(model)
    )


def _narrowed(family: Family, model: nn.Module, allocation: Allocation) -> list[tuple[FeedForwardSite, int]]:
    """The feed-forward blocks that become narrower, and to which width."""
    if not allocation.feed_forward:
        return []
    widths = allocation.feed_forward
    return [
        (site, widths[site.name])
        for site in family.feed_forward_sites(model)
        if widths.get(site.name, site.width) < site.width
    ]
