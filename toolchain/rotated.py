"""Prune in a new basis: rotate every head, estimate in nats what each width would lose, and share out one budget.

The steps are those of `prune_rotated`: statistics of the calibration clips in one backward pass, a basis per head in
which few channels do the work, the exact allocation of widths, and surgery. Several shots repeat them, each towards a
part of the way, with statistics of the model as it then is and no training in between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from calibration import shards
from calibration.basis import BASIS_KINDS, BasisKind, SiteBasis, choose_bases, width_damages
from calibration.kept import keep_tensors, kept_tensors
from calibration.sites import AttentionSite
from calibration.statistics import LABELS, Labels, Statistics, collect_statistics, merge_statistics
from runtimes.errors import BadInput
from runtimes.files import sha256_json
from toolchain.allocate import (
    Allocation,
    HeadOptions,
    allocate,
    entire_heads_allocation,
    equal_widths_allocation,
)
from toolchain.costs import Costs
from toolchain.examples import LabelledInputs
from toolchain.narration import Report, quiet
from toolchain.plan import ROTATED, SITES_CHOICES, HeadPlan, Plan, SitePlan, SitesChoice, compose, untouched
from toolchain.surgery import rotated_attention_state

Sharing = Literal["any widths", "equal widths", "entire heads"]
Pools = Literal["global", "by-kind"]
SHARINGS: tuple[Sharing, ...] = ("any widths", "equal widths", "entire heads")
POOLS: tuple[Pools, ...] = ("global", "by-kind")

BASES_FILE = "bases.safetensors"
CHUNKS_FOLDER = "statistics"
DAMAGE_DIGITS = 9  # float sums in another order must not decide between equal choices


@dataclass(frozen=True)
class RotatedRecipe:
    """How a model is pruned in a new basis; the defaults are what measured best.

    basis, labels: as in `choose_basis` and `collect_statistics`; sharing: "any widths" chooses both widths of every
    head and which heads stay, the others are what it is compared with; multiples: widths (query/key, value/output)
    are multiples of these; one_width_per_head: the two widths of a head are one; pools: whether the blocks of every
    kind (encoder, decoder, cross-attention) have a budget of their own, the same share of what they cost, or all blocks
    one; sites: which blocks are pruned, see `untouched`; shots: in how many parts; calibration_clips: at most; chunk:
    clips whose statistics are added up at once; seed: of the clips' order and of the random labels.
    """

    basis: BasisKind = "fisher"
    labels: Labels = "projected"
    sharing: Sharing = "any widths"
    multiples: tuple[int, int] = (4, 4)
    one_width_per_head: bool = False
    pools: Pools = "by-kind"
    sites: SitesChoice = "all"
    shots: int = 1
    calibration_clips: int = 256
    chunk: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("shots", "calibration_clips", "chunk"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}; it must be at least 1")
        choices: dict[str, Sequence[str]] = {
            "basis": BASIS_KINDS, "labels": LABELS, "sharing": SHARINGS, "pools": POOLS, "sites": SITES_CHOICES,
        }  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise BadInput(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        if self.one_width_per_head and len(set(self.multiples)) > 1:
            step, other = self.multiples
            raise BadInput(f"one width per head cannot be of multiples of {step} and of {other}")


@dataclass(frozen=True)
class Rotated:
    """A pruned model in eval mode, its plan, the estimated loss in nats, and its cost in the budget's unit."""

    model: nn.Module
    plan: Plan
    damage: float
    cost: float


def prune_rotated(
    family: ModuleType,
    model: nn.Module,
    clips: LabelledInputs,
    costs: Costs,
    budget: float,
    recipe: RotatedRecipe,
    *,
    made_from: Mapping[str, str] | None = None,
    state: Path | None = None,
    clips_at_once: int | None = None,
    report: Report = quiet,
) -> Rotated:
    """A smaller model whose cost is within the budget; `model` itself, which is dense, is not changed.

    family: a module of `toolchain.families`; budget: in the unit of `costs`, of the whole model; made_from: sha256 by
    kind, written into the plan; state: a folder for the dense model's statistics and bases, from which an interrupted
    run, or one with another budget, goes on; clips_at_once: how many clips are in memory together.
    Under `torchrun` every process calls this alike, and all end with the same model.

    Raises:
        BadInput: the model is slim already, or the budget cannot be met.
    """
    if state is not None and not made_from:
        raise ValueError("a state folder is of no use without made_from: it could be another model's")
    plan = dataclasses.replace(family.dense_plan(model), made_from=dict(made_from or {}), basis=ROTATED + recipe.basis)
    damage, cost = 0.0, costs.dense
    for shot in range(1, recipe.shots + 1):
        told = report if recipe.shots == 1 else _about_shot(report, shot, recipe.shots)
        bases = rotate(
            family, model, clips, recipe, state=state if shot == 1 else None, made_from=made_from or {},
            clips_at_once=clips_at_once, report=told,
        )  # fmt: skip
        part = costs.dense * (budget / costs.dense) ** (shot / recipe.shots)
        allocation = choose_widths(family.attention_sites(model), bases, costs, part, recipe)
        model, kept = cut(family, model, bases, allocation)
        plan = dataclasses.replace(plan, sites=compose(plan.sites, kept))
        damage, cost = damage + allocation.damage, allocation.cost
    return Rotated(model, plan, damage, cost)


def _about_shot(report: Report, shot: int, shots: int) -> Report:
    def about_shot(text: str, fraction: float | None = None) -> None:
        report(f"shot {shot} of {shots}, {text}", fraction)

    return about_shot


def rotate(
    family: ModuleType,
    model: nn.Module,
    clips: LabelledInputs,
    recipe: RotatedRecipe,
    *,
    made_from: Mapping[str, str],
    state: Path | None = None,
    clips_at_once: int | None = None,
    report: Report = quiet,
) -> dict[str, SiteBasis]:
    """The new basis of every block, with the clips' derivatives by its channels; on all processes the same.

    What is in `state` is used if it was made from the same inputs; when the bases are there, the statistics go.
    """
    sites: tuple[AttentionSite, ...] = family.attention_sites(model)
    made_from = {**made_from, "scoring": sha256_json([recipe.labels, recipe.chunk, recipe.seed, len(clips)])}
    bases = read_bases(state / BASES_FILE, {**made_from, "basis": recipe.basis}) if state is not None else None
    found = torch.tensor([bases is not None])
    shards.broadcast([found])  # what the first process has need not be there for the others
    if not found:
        statistics = _statistics(family, model, sites, clips, recipe, made_from, state, clips_at_once, report)
        if shards.rank() == 0:
            bases = choose_bases(sites, statistics, recipe.basis)
    if shards.rank() != 0:
        bases = _empty_bases(sites, len(clips))
    assert bases is not None
    shards.broadcast([tensor for _, tensor in sorted(_tensors(bases).items())])
    if state is not None and shards.rank() == 0:
        write_bases(state / BASES_FILE, bases, {**made_from, "basis": recipe.basis})
        for chunk in (state / CHUNKS_FOLDER).glob("chunk-*.safetensors"):
            chunk.unlink()
    return bases


def _statistics(
    family: ModuleType,
    model: nn.Module,
    sites: Sequence[AttentionSite],
    clips: LabelledInputs,
    recipe: RotatedRecipe,
    made_from: Mapping[str, str],
    state: Path | None,
    clips_at_once: int | None,
    report: Report,
) -> Statistics:
    chunks = torch.arange(len(clips)).split(recipe.chunk)

    def compute(number: int) -> Statistics:
        generator = torch.Generator().manual_seed(1_000_003 * recipe.seed + number)
        gathered: list[Statistics] = []
        for part in chunks[number].split(clips_at_once or recipe.chunk):
            found = collect_statistics(
                model, sites, clips.inputs[part], clips.targets[part], family.logits,
                labels=recipe.labels, attended_keys=recipe.basis == "attention", generator=generator,
            )  # fmt: skip
            gathered.append(found)
        return merge_statistics(*gathered)

    def progress(done: int, total: int) -> None:
        clips_done = min(done * recipe.chunk, len(clips))
        report(f"scored {clips_done}/{len(clips)} clips", done / total)

    folder = None if state is None else state / CHUNKS_FOLDER
    return shards.gather_statistics(sites, chunks, compute, folder=folder, made_from=made_from, progress=progress)


def choose_widths(
    sites: Sequence[AttentionSite],
    bases: Mapping[str, SiteBasis],
    costs: Costs,
    budget: float,
    recipe: RotatedRecipe,
) -> Allocation:
    """The widths of every head, (0, 0) where it goes, of least estimated loss within the budget of the whole model.

    Raises:
        BadInput: the budget is below what the smallest model costs.
    """
    options = [
        _site_options(site, bases[site.name], head_cost, recipe)
        for site, head_cost in zip(sites, costs.heads, strict=True)
    ]
    dense = [tuple(zip(site.query_key_widths, site.value_output_widths, strict=True)) for site in sites]
    whole = untouched(sites, recipe.sites)
    kept_whole = [index for index, site in enumerate(sites) if site.name in whole]
    fixed = costs.fixed + sum(costs.block(index, dense[index]) for index in kept_whole)
    pools = _pools(sites, kept_whole, recipe.pools)
    least = fixed + sum(_least_cost(options[index], index, costs) for pool in pools for index in pool)
    if budget < least * (1 - 1e-9):
        fewer = 100 * (1 - least / costs.dense)
        raise BadInput(
            f"{budget:.6g} {costs.unit} are out of reach: the narrowest model, one head per block, has {least:.6g},"
            f" {fewer:.1f} % less than the dense one's {costs.dense:.6g}"
        )
    of_pools = [sum(costs.block(index, dense[index]) for index in pool) for pool in pools]
    widths, cost, damage = list(dense), fixed, 0.0
    for pool, dense_cost in zip(pools, of_pools, strict=True):
        share = dense_cost / sum(of_pools)
        chosen = _allocate_pool(pool, options, (budget - fixed) * share, costs, recipe)
        for index, site_widths in zip(pool, chosen.widths, strict=True):
            widths[index] = site_widths
        cost, damage = cost + chosen.cost, damage + chosen.damage
    allocation = Allocation(tuple(widths), cost, damage)
    return _widened(sites, allocation, costs) if recipe.sharing == "any widths" else allocation


def _pools(sites: Sequence[AttentionSite], kept_whole: Sequence[int], pools: Pools) -> list[list[int]]:
    """The numbers of the blocks that share a budget, pool by pool; those that are kept whole are in none."""
    prunable = [index for index in range(len(sites)) if index not in kept_whole]
    if pools == "global":
        return [prunable]
    kinds = dict.fromkeys(sites[index].kind for index in prunable)
    return [[index for index in prunable if sites[index].kind == kind] for kind in kinds]


def _allocate_pool(
    pool: Sequence[int], options: Sequence[Sequence[HeadOptions]], budget: float, costs: Costs, recipe: RotatedRecipe
) -> Allocation:
    """The widths of the heads of some blocks, by the recipe's way of sharing."""
    ways = {"any widths": allocate, "equal widths": equal_widths_allocation, "entire heads": entire_heads_allocation}
    return ways[recipe.sharing](
        [options[index] for index in pool],
        budget,
        tied=None if costs.tied is None else [costs.tied[index] for index in pool],
        ragged=None if costs.ragged is None else [costs.ragged[index] for index in pool],
    )


def _least_cost(heads: Sequence[HeadOptions], index: int, costs: Costs) -> float:
    """The cost of a block that keeps one head of the narrowest widths."""
    if costs.ragged is None:
        return min(float(head.costs[1:].min()) for head in heads)
    narrowest = [(int(head.query_key_widths[1]), int(head.value_output_widths[1])) for head in heads]
    return min(costs.ragged[index]((pair,)) for pair in narrowest)


def _site_options(site: AttentionSite, basis: SiteBasis, cost: Any, recipe: RotatedRecipe) -> list[HeadOptions]:
    heads = []
    for head, (qk, vo) in enumerate(zip(site.query_key_widths, site.value_output_widths, strict=True)):
        damages = width_damages(basis.query_key[:, head, :qk].numpy(), basis.value_output[:, head, :vo].numpy())
        pairs = _width_pairs(qk, vo, recipe)
        widths = np.array([(0, 0), *pairs])
        heads.append(
            HeadOptions(
                query_key_widths=widths[:, 0],
                value_output_widths=widths[:, 1],
                costs=np.array([0.0, *(cost(k, v) for k, v in pairs)]),
                damages=_rounded(damages[widths[:, 0], widths[:, 1]]),
            )
        )
    return heads


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


def _rounded(damages: np.ndarray) -> np.ndarray:
    """To the digits that mean something, relative to the largest: sums of floats differ by the order of adding."""
    scale = 10.0 ** (DAMAGE_DIGITS - 1 - np.ceil(np.log10(max(float(np.abs(damages).max()), 1e-300))))
    return np.round(damages * scale) / scale


def _widened(sites: Sequence[AttentionSite], allocation: Allocation, costs: Costs) -> Allocation:
    """With every width that costs nothing more in its block."""
    if costs.widened is None:
        return allocation
    widths = []
    for site, heads, widen in zip(sites, allocation.widths, costs.widened, strict=True):
        kept = [index for index, pair in enumerate(heads) if pair != (0, 0)]
        wider = dict(zip(kept, widen(tuple(heads[index] for index in kept)), strict=True))
        most = list(zip(site.query_key_widths, site.value_output_widths, strict=True))
        widths.append(
            tuple(
                (min(wider[index][0], most[index][0]), min(wider[index][1], most[index][1])) if index in wider else pair
                for index, pair in enumerate(heads)
            )
        )
    return dataclasses.replace(allocation, widths=tuple(widths))


def cut(
    family: ModuleType, model: nn.Module, bases: Mapping[str, SiteBasis], allocation: Allocation
) -> tuple[nn.Module, tuple[SitePlan, ...]]:
    """The model of these widths in the new bases, and what it keeps, counted within `model`."""
    sites = family.attention_sites(model)
    kept = tuple(
        SitePlan(
            name=site.name,
            kind=site.kind,
            dense_heads=len(site.query_key_widths),
            heads=tuple(
                HeadPlan(head, tuple(range(k)), tuple(range(v))) for head, (k, v) in enumerate(widths) if k and v
            ),
        )
        for site, widths in zip(sites, allocation.widths, strict=True)
    )
    states = [
        rotated_attention_state(site, bases[site.name], site_plan) for site, site_plan in zip(sites, kept, strict=True)
    ]
    return family.slim_model(model, kept, states), kept


def _tensors(bases: Mapping[str, SiteBasis]) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{field.name}": getattr(basis, field.name)
        for name, basis in bases.items()
        for field in dataclasses.fields(SiteBasis)
    }


def _empty_bases(sites: Sequence[AttentionSite], clips: int) -> dict[str, SiteBasis]:
    empty = {}
    for site in sites:
        heads, qk, vo = len(site.query_key_widths), max(site.query_key_widths), max(site.value_output_widths)
        shapes = [(heads, qk, qk)] * 2 + [(heads, vo, vo)] * 2 + [(heads, vo), (clips, heads, qk), (clips, heads, vo)]
        empty[site.name] = SiteBasis(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))
    return empty


def write_bases(path: Path, bases: Mapping[str, SiteBasis], made_from: Mapping[str, str]) -> None:
    """Write bases.safetensors, whole or not at all."""
    keep_tensors(path, _tensors(bases), made_from)


def read_bases(path: Path, made_from: Mapping[str, str]) -> dict[str, SiteBasis] | None:
    """The bases in `path` if the file is there, undamaged, and made from just these inputs."""
    tensors = kept_tensors(path, made_from)
    if tensors is None:
        return None
    fields = [field.name for field in dataclasses.fields(SiteBasis)]
    names = sorted({key.rpartition("/")[0] for key in tensors})
    return {name: SiteBasis(**{field: tensors[f"{name}/{field}"] for field in fields}) for name in names}
