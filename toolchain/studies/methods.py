"""Ways to prune a model, by name: the default, what it is compared with, its parts one by one, and negative controls.

Every way is a function of the calibration clips of one seed, a `Bench`, and of the sparsity that is asked for. What
several ways or sparsities need of the same clips (scores, statistics, bases) the bench computes once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn

from leanear.calibration.basis import BasisKind, SiteBasis, choose_basis
from leanear.calibration.passes import pass_through_all
from leanear.calibration.scores import SiteScores
from leanear.calibration.sites import AttentionSite, FeedForwardSite
from leanear.calibration.statistics import SiteStatistics, Statistics, merge_statistics, statistics_of
from leanear.calibration.targets import strata
from leanear.data.examples import HeldOut, LabelledInputs, divided
from leanear.families.family import Checkpoint, Family
from leanear.families.slimming import kept_rows
from leanear.plan import ROTATED, Plan, Prune, SitePlan, compose, untouched
from leanear.progress import Report, quiet
from leanear.prune.allocation.allocate import Allocation
from leanear.prune.allocation.frontier import ROUNDING
from leanear.prune.costs import Costs, parameter_costs
from leanear.prune.rotated import FITS_ALL_NATS, ClosedLoop, Rotated, in_one_or_two, prune_measured, prune_rotated
from leanear.prune.scoring import Bases, Scores, score_widths
from leanear.prune.widths import RotatedRecipe, choose_widths, cut, kept_channels
from leanear.recover.compensation import Compensated as Compensation
from leanear.recover.compensation import compensate_
from leanear.recover.distillation import distill_
from leanear.recover.distillation_options import Distillation
from leanear.recover.lora import LoraRecovery
from leanear.reference.choose import SCHEMES, THRESHOLDS, Scheme, Threshold, choose_sparsity
from leanear.reference.schedule import SCORES, PruneRecipe, Score, calibration_order, prune, score
from leanear.runtimes.errors import BadInput
from leanear.studies.closed_form import principal_basis, ridge_basis, ridge_feed_forward
from leanear.studies.comparison_document import DENSE
from leanear.studies.one_ranking import OneRanking, Ranking, correct_, make_ranking, model_of

Order = Literal["fisher", "singular value"]
Group = Literal["dense", "plain", "reference", "one basis, equal widths", "parts", "default", "control", "recovered"]

Needs = Literal["attention", "labels", "several kinds"]
CLASSIFIER: tuple[Needs, ...] = ("attention", "labels")
SPEECH_MODEL: tuple[Needs, ...] = ("attention", "several kinds")

DEFAULT = "default"
DEFAULT_RECIPE = RotatedRecipe()
WHOLE = 1024  # of widths: no head is wider, so its only multiple is all of it
DEFAULT_AS_SMALL = "default, as small as equal widths"
CLOVER = "CLOVER, equal widths"
ACTIVATIONS_EQUAL = "activation basis, equal widths"
OPEN_LOOP = "without closed loop and compensation"
UNCOMPENSATED = "without compensation"
MASK_FISHER = "per-sample mask Fisher"
ENTIRE_HEADS = "Fisher basis, entire heads"
RANKING_STEPS = 720  # from all of a ranking to nothing


@dataclass
class Bench:
    """A dense model, the calibration clips of one seed, and what has been computed from them so far.

    pool: all calibration clips; clips: how many of them a seed draws, shuffled and balanced over the labels;
    clips_at_once: how many are in memory together; prune: what becomes smaller.
    """

    family: Family
    checkpoint: Checkpoint
    pool: LabelledInputs
    clips: int
    seed: int
    clips_at_once: int | None = None
    report: Report = quiet
    prune: Prune = "attention"
    kept: dict[str, tuple[Any, float]] = field(default_factory=dict)
    reused_s: float = 0.0

    def shared(self, key: str, compute: Callable[[], Any]) -> Any:
        """What `compute` gives, once for every key; the seconds that it took are added to `reused_s` from then on."""
        if key in self.kept:
            self.reused_s += self.kept[key][1]
            return self.kept[key][0]
        started, reused_before = time.perf_counter(), self.reused_s
        value = compute()
        self.kept[key] = (value, time.perf_counter() - started + self.reused_s - reused_before)
        return value

    @property
    def order(self) -> torch.Tensor:
        """The numbers of the seed's clips within the pool, int64."""
        return self.pool.balanced_order(self.seed, self.clips)

    @property
    def plan(self) -> Plan:
        """The plan that keeps everything."""
        return dataclasses.replace(self.family.dense_plan(self.checkpoint.model), prune=self.prune)

    @property
    def costs(self) -> Costs:
        """Costs in parameters of what is pruned, in which sparsity is counted."""
        return parameter_costs(self.plan)


@dataclass(frozen=True)
class Made:
    """A model in eval mode, the plan that it has carried out on the dense one, and the training updates it took."""

    model: nn.Module
    plan: Plan
    updates: int = 0


@dataclass(frozen=True)
class Method:
    """A way to prune.

    make(bench, sparsity, recipe): the model, which has lost at least `sparsity` of its attention parameters; recipe: of
    what it consists, a frozen dataclass or several; about: one line for the reader; drawn: whether the clips of a seed,
    or its random numbers, change what it makes; needs: what it makes no sense without.
    """

    name: str
    group: Group
    make: Callable[[Bench, float, Any], Made]
    recipe: Any
    about: str
    drawn: bool = True
    needs: Needs = "attention"


@dataclass(frozen=True)
class EqualWidths:
    """The same widths in every head, value/output one wider than query/key or as wide: the widest within the sparsity.

    means: whether the mean of what is dropped goes into the output bias, for which the contexts of clips are needed.
    """

    basis: BasisKind
    order: Order
    means: bool = True


@dataclass(frozen=True)
class ClosedForm:
    """The same widths in every head, as `EqualWidths`, of a basis that others use; see `studies.closed_form`."""

    kind: Literal["principal", "ridge"]


@dataclass(frozen=True)
class RidgeEverywhere:
    """The same share of every head and of every feed-forward block; see `studies.closed_form`."""


@dataclass(frozen=True)
class Control:
    """The default with one thing wrong.

    fault: "wrong scale": the softmax's scale is recomputed from each head's kept width; "one label": all calibration
    clips are of one label; "few clips": as few clips as that, but of all labels; "shuffled heads": every head's
    losses are taken for those of another one when widths are chosen.
    """

    fault: Literal["wrong scale", "one label", "few clips", "shuffled heads"]
    recipe: RotatedRecipe


@dataclass(frozen=True)
class OwnScale:
    """The reference with the temperature that its source gives a reloaded model."""

    recipe: PruneRecipe


@dataclass(frozen=True)
class RandomChannels:
    """Channels drawn at random, the same share of every head."""


@dataclass(frozen=True)
class Compensated:
    """The reference's recipe, after which output projections are fitted to the dense model's branch outputs."""

    recipe: PruneRecipe


@dataclass(frozen=True)
class Recovered:
    """What a method makes, after which it is distilled from its dense self on the same calibration clips."""

    recipe: Any
    options: Distillation


def methods(there: Collection[Needs] = CLASSIFIER) -> tuple[Method, ...]:
    """All methods that are compared of a model that has what is `there`, the dense model first."""
    return tuple(method for method in _all_methods() if method.needs in there)


def _all_methods() -> tuple[Method, ...]:
    return (
        Method(DENSE, "dense", _dense, None, "the model as it is", drawn=False),
        Method("random channels", "plain", _random, RandomChannels(), "channels at random, equally many per head"),
        *(reference_method(*which) for which in ((s, k, t) for s in SCHEMES for k in SCORES for t in THRESHOLDS)),
        Method(
            CLOVER, "one basis, equal widths", _equal_widths, EqualWidths("weights", "singular value", means=False),
            "singular vectors of the weights' products, no data (arXiv 2411.17426)", drawn=False,
        ),
        Method(
            ACTIVATIONS_EQUAL, "one basis, equal widths", _equal_widths, EqualWidths("activations", "singular value"),
            "balanced basis of the activations, means folded into the bias",
        ),
        Method(
            "principal components, equal widths", "one basis, equal widths", _closed_form, ClosedForm("principal"),
            "queries and keys, and contexts, on their principal components (after LiteASR, arXiv 2502.20583)",
        ),
        Method(
            "ridge on kept channels, equal widths", "one basis, equal widths", _closed_form, ClosedForm("ridge"),
            "channels of the highest energy, the rest by ridge regression on them (after CORP, arXiv 2602.05243)",
        ),
        Method(
            "activation basis by Fisher score, equal widths",
            "one basis, equal widths",
            _equal_widths,
            EqualWidths("activations", "fisher"),
            "the same, with the channels of the highest per-clip scores kept",
        ),
        Method(
            "Fisher basis, equal widths", "one basis, equal widths", _equal_widths, EqualWidths("fisher", "fisher"),
            "the default's basis and scores, without its allocation",
        ),
        *_one_ranking_methods("entire heads"),
        _rotated(
            MASK_FISHER, RotatedRecipe(basis="trained", losses="infinitesimal"),
            "channels as trained, per-clip scores, one budget over heads and both kinds",
        ),
        _rotated(
            "activation basis, mask Fisher", RotatedRecipe(basis="activations", losses="infinitesimal"),
            "balanced basis, per-clip scores, one budget",
        ),
        _rotated("weight basis, any widths", RotatedRecipe(basis="weights"), "CLOVER's basis, one budget"),
        _rotated("activation basis, any widths", RotatedRecipe(basis="activations"), "balanced basis, one budget"),
        _rotated("attention basis, any widths", RotatedRecipe(basis="attention"), "keys as they are attended to"),
        _rotated(ENTIRE_HEADS, RotatedRecipe(multiples=(WHOLE, WHOLE), whole_blocks=False), "heads stay whole or go"),
        _rotated("observed labels", RotatedRecipe(labels="observed"), "scores from the clips' own labels"),
        _rotated("sampled labels", RotatedRecipe(labels="sampled"), "scores from labels drawn from the prediction"),
        _rotated(
            "a budget for each kind", RotatedRecipe(pools="by-kind"),
            "encoder, decoder and cross-attention lose the same share each", needs="several kinds",
        ),
        _rotated(
            "self-attention alone", RotatedRecipe(sites="self-attention"), "cross-attention stays whole",
            needs="several kinds",
        ),
        Method(
            "reference: channels, fisher, local, its own scale", "parts", _own_scale,
            OwnScale(reference_recipe("channels", "fisher", "local")),
            "the same with the softmax's scale recomputed from the kept widths, as its source does on reload",
        ),
        *(
            Method(
                f"reference: {scheme}, fisher, global, self-attention alone", "parts", _reference,
                dataclasses.replace(reference_recipe(scheme, "fisher", "global"), sites="self-attention"),
                f"{scheme} by batch fisher, global threshold, cross-attention whole (arXiv 2509.26207's choice)",
                needs="several kinds",
            )
            for scheme in SCHEMES
        ),
        _rotated(OPEN_LOOP, DEFAULT_RECIPE, "the default's first plan, not measured and chosen again"),
        Method(
            "two shots", "parts", _shots, RotatedRecipe(shots=2),
            "half of the way at a time, compensated and scored anew between, whatever one shot loses",
        ),
        Method(
            UNCOMPENSATED, "parts", _measured, DEFAULT_RECIPE,
            "the default with its output projections as they were",
        ),
        Method(
            "reference, compensated", "parts", _compensated,
            Compensated(reference_recipe("channels", "fisher", "local")),
            "channels by Fisher, local, then output projections by least squares",
        ),
        Method(DEFAULT, "default", _default, DEFAULT_RECIPE, "what `leanear prune` does when told nothing"),
        Method(
            DEFAULT_AS_SMALL, "default", _default_as_small, DEFAULT_RECIPE,
            "the default at the sparsity that equal widths come to, which is a little higher",
        ),
        Method(
            "wrong scale", "control", _wrong_scale, Control("wrong scale", DEFAULT_RECIPE),
            "the default, with the softmax's scale recomputed from the kept widths",
        ),
        Method(
            "one label's clips", "control", _other_clips, Control("one label", DEFAULT_RECIPE),
            "the default, calibrated on the clips of one label", needs="labels",
        ),
        Method(
            "as few clips, all labels", "control", _other_clips, Control("few clips", DEFAULT_RECIPE),
            "the default, calibrated on as few clips of all labels", needs="labels",
        ),
        Method(
            "infinitesimal losses", "control", _by_recipe, RotatedRecipe(losses="infinitesimal"),
            "the default, with query/key widths judged by derivatives at the dense model alone",
        ),
        Method(
            "scores of other heads", "control", _shuffled_heads, Control("shuffled heads", DEFAULT_RECIPE),
            "the default, with the losses shuffled between heads",
        ),
    )  # fmt: skip


def _one_ranking_methods(what: str) -> tuple[Method, ...]:
    about = f"{what} by one ranking for all sizes, without labels (after SnapViT, arXiv 2510.17700)"
    return (
        Method("one ranking", "parts", _one_ranking, OneRanking(corrected=False), about, needs="labels"),
        Method(
            "one ranking, corrected", "parts", _one_ranking, OneRanking(corrected=True),
            "the same, the outputs' weights fitted to what is kept of their inputs", needs="labels",
        ),
    )  # fmt: skip


def methods_beyond_attention(prune: Prune, there: Collection[Needs] = CLASSIFIER) -> tuple[Method, ...]:
    """The methods where feed-forward blocks become smaller too, or alone, of a model that has what is `there`.

    The dense model is the first.
    """
    recipe = RotatedRecipe(prune=prune)
    ridge = (
        Method(
            "ridge on kept channels, equal shares", "one basis, equal widths", ridge_everywhere, RidgeEverywhere(),
            "the same share of every head and feed-forward block, by energy, the rest by ridge (after CORP,"
            " arXiv 2602.05243)",
        ),
    )  # fmt: skip
    every = (
        Method(DENSE, "dense", _dense, None, "the model as it is", drawn=False),
        *(ridge if prune == "all" else ()),
        *_one_ranking_methods("entire heads and channels" if prune == "all" else "channels"),
        Method(OPEN_LOOP, "parts", _by_recipe, recipe, "the default's first plan, not measured and chosen again"),
        Method(UNCOMPENSATED, "parts", _measured, recipe, "the default with its output projections as they were"),
        Method(DEFAULT, "default", _default, recipe, f"what `leanear prune --prune {prune}` does"),
    )
    return tuple(method for method in every if method.needs in there)


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        KeyError: there is none.
    """
    return {method.name: method for method in _all_methods()}[name]


def reference_recipe(scheme: Scheme, kind: Score, threshold: Threshold) -> PruneRecipe:
    """One of the eight variants of arXiv 2509.26207, one shot; the sparsity is put in when it is known."""
    return PruneRecipe(sparsity=0.5, scheme=scheme, score=kind, threshold=threshold)


def reference_method(scheme: Scheme, kind: Score, threshold: Threshold) -> Method:
    """One of the eight variants of arXiv 2509.26207 in one shot."""
    return Method(
        name=f"reference: {scheme}, {kind}, {threshold}",
        group="reference",
        make=_reference,
        recipe=reference_recipe(scheme, kind, threshold),
        about=f"{scheme} by {'batch ' if kind == 'fisher' else ''}{kind}, {threshold} threshold (arXiv 2509.26207)",
        drawn=kind == "fisher",
    )


def _rotated(name: str, recipe: RotatedRecipe, about: str, needs: Needs = "attention") -> Method:
    return Method(name, "parts", _by_recipe, recipe, about, needs=needs)


def recovered(method: Method, options: Distillation) -> Method:
    """The method, followed by distillation of what it made."""

    def make(bench: Bench, sparsity: float, recipe: Recovered) -> Made:
        made = method.make(bench, sparsity, recipe.recipe)
        distilled = distill_(
            made.model, bench.checkpoint.model, *divided(bench.pool[bench.order]), bench.family.logits,
            recipe.options, layers=bench.family.encoder_layers, decoder_layers=bench.family.decoder_layers,
            seed=bench.seed, report=bench.report,
        )  # fmt: skip
        return dataclasses.replace(made, updates=made.updates + distilled.updates)

    return Method(
        f"{method.name}, recovered", "recovered", make, Recovered(method.recipe, options),
        f"{method.about}; then distilled", drawn=True,
    )  # fmt: skip


def ten_steps(scheme: Scheme, threshold: Threshold, sparsity: float, updates: int, clips: int) -> Method:
    """The reference's full schedule by Fisher information: up to ten steps, each with LoRA, `updates` in all or more.

    Where heads are so narrow that rounding makes the steps larger, there are fewer of them, and fewer updates.
    """
    options, schedule = LoraRecovery(), PruneRecipe(sparsity=sparsity)
    steps = min(schedule.max_steps, math.ceil(math.log1p(-sparsity) / math.log1p(-schedule.step)))
    epochs = math.ceil(updates / (steps * math.ceil(clips / options.batch_size)))
    recipe = dataclasses.replace(
        reference_recipe(scheme, "fisher", threshold),
        schedule="iterative", recovery="lora", recovery_options=dataclasses.replace(options, epochs=epochs),
    )  # fmt: skip
    return Method(
        f"reference: {scheme}, fisher, {threshold}, ten steps", "recovered", _scheduled, recipe,
        f"ten per cent of what remains at a time, {epochs} epochs of LoRA after every step",
    )  # fmt: skip


# The ways


def _dense(bench: Bench, _sparsity: float, _recipe: None) -> Made:
    return Made(bench.checkpoint.model, bench.plan)


def _random(bench: Bench, sparsity: float, _recipe: RandomChannels) -> Made:
    generator = np.random.default_rng(bench.seed)
    scores = [
        SiteScores(
            tuple(generator.random(width) for width in site.query_key_widths),
            tuple(generator.random(width) for width in site.value_output_widths),
            generator.random(len(site.query_key_widths)),
        )
        for site in bench.family.attention_sites(bench.checkpoint.model)
    ]
    return _keeping(bench, choose_sparsity(bench.plan, scores, "channels", "local", sparsity))


def _reference(bench: Bench, sparsity: float, recipe: PruneRecipe) -> Made:
    recipe = dataclasses.replace(recipe, calibration_clips=bench.clips, seed=bench.seed)
    scores = bench.shared(
        f"scores {recipe.score}",
        lambda: score(
            bench.family, bench.checkpoint.model, bench.pool, recipe.score,
            order=calibration_order(bench.pool, recipe), batch_size=recipe.batch_size,
            clips_at_once=bench.clips_at_once, recompute=bench.clips_at_once is not None, report=bench.report,
        ),
    )  # fmt: skip
    return _keeping(bench, _chosen(bench, scores, recipe, sparsity))


def _chosen(bench: Bench, scores: Any, recipe: PruneRecipe, sparsity: float) -> tuple[SitePlan, ...]:
    whole = untouched(bench.plan.sites, recipe.sites)
    return choose_sparsity(bench.plan, scores, recipe.scheme, recipe.threshold, sparsity, whole)


def _keeping(bench: Bench, kept: Any) -> Made:
    plan = bench.plan
    model = bench.family.slim_model(bench.checkpoint.model, kept)
    return Made(model, dataclasses.replace(plan, sites=compose(plan.sites, kept)))


def _scheduled(bench: Bench, sparsity: float, recipe: PruneRecipe) -> Made:
    recipe = dataclasses.replace(recipe, sparsity=sparsity, calibration_clips=bench.clips, seed=bench.seed)
    updates = 0

    def counted(text: str, fraction: float | None = None) -> None:
        nonlocal updates
        updates += ", update " in text
        bench.report(text, fraction)

    pruned = prune(bench.family, bench.checkpoint, bench.pool, recipe, report=counted)
    return Made(pruned.model, pruned.plan, updates)


def _by_recipe(bench: Bench, sparsity: float, recipe: RotatedRecipe) -> Made:
    sites = bench.family.attention_sites(bench.checkpoint.model)
    scores = _scores(bench, recipe)
    budget = (1 - sparsity) * bench.costs.dense
    return _cut(bench, scores.bases, choose_widths(sites, scores.losses, bench.costs, budget, recipe), recipe.basis)


def _cut(bench: Bench, bases: Bases, allocation: Allocation, basis: str) -> Made:
    model, kept = cut(bench.family, bench.checkpoint.model, bases, allocation)
    channels = kept_channels(bench.family, bench.checkpoint.model, bases, allocation)
    return Made(model, dataclasses.replace(bench.plan, sites=kept, basis=ROTATED + basis, feed_forward=channels))


def _default(bench: Bench, sparsity: float, recipe: RotatedRecipe) -> Made:
    """As `leanear prune`: the measured plan, compensated."""
    pruned = in_one_or_two(
        lambda shots: _pruned(bench, sparsity, recipe) if shots == 1 else _in_shots(bench, sparsity, recipe, shots)
    )
    _compensate_(bench, pruned.model, every_block=pruned.loses(FITS_ALL_NATS))
    return Made(pruned.model, pruned.plan)


def _measured(bench: Bench, sparsity: float, recipe: RotatedRecipe) -> Made:
    """What most of the clips chose is measured on the last fifth, and chosen again."""
    pruned = _pruned(bench, sparsity, recipe)
    return Made(pruned.model, pruned.plan)


def _pruned(bench: Bench, sparsity: float, recipe: RotatedRecipe) -> Rotated:
    plan = dataclasses.replace(bench.plan, basis=ROTATED + recipe.basis)
    return prune_measured(
        bench.family, bench.checkpoint.model, plan, _scores(bench, recipe), bench.costs,
        (1 - sparsity) * bench.costs.dense, recipe, _held_out(bench), report=bench.report,
    )  # fmt: skip


def _in_shots(bench: Bench, sparsity: float, recipe: RotatedRecipe, shots: int) -> Rotated:
    scored, _ = divided(bench.pool[bench.order])
    recipe = dataclasses.replace(recipe, calibration_clips=bench.clips, seed=bench.seed, shots=shots)
    compensate = functools.partial(_compensate_, bench)
    loop = ClosedLoop(_held_out(bench), compensate=compensate, scores=_scores(bench, recipe))
    return prune_rotated(
        bench.family, bench.checkpoint.model, scored, bench.costs, (1 - sparsity) * bench.costs.dense, recipe,
        loop=loop, clips_at_once=bench.clips_at_once, report=bench.report,
    )  # fmt: skip


def _held_out(bench: Bench) -> HeldOut:
    def made() -> HeldOut:
        return HeldOut(bench.checkpoint.model, divided(bench.pool[bench.order])[1], bench.family.logits)

    return cast(HeldOut, bench.shared("held out", made))


def _default_as_small(bench: Bench, sparsity: float, recipe: RotatedRecipe) -> Made:
    sites = bench.family.attention_sites(bench.checkpoint.model)
    cost = widest_equal_widths(sites, bench.costs, sparsity).cost
    return _default(bench, 1 - cost / bench.costs.dense, recipe)


def _shots(bench: Bench, sparsity: float, recipe: RotatedRecipe) -> Made:
    """In as many shots as the recipe says, whatever one loses."""
    pruned = _in_shots(bench, sparsity, recipe, recipe.shots or 1)
    _compensate_(bench, pruned.model, every_block=pruned.loses(FITS_ALL_NATS))
    return Made(pruned.model, pruned.plan)


def _equal_widths(bench: Bench, sparsity: float, recipe: EqualWidths) -> Made:
    sites = bench.family.attention_sites(bench.checkpoint.model)
    if recipe.means:
        bases = _all_bases(sites, bench.shared("statistics", lambda: _statistics(bench)), recipe.basis, recipe.order)
    else:
        nothing = {site.name: _no_statistics(site) for site in sites}
        bases = _all_bases(sites, nothing, recipe.basis, recipe.order)
    return _cut(bench, bases, widest_equal_widths(sites, bench.costs, sparsity), recipe.basis)


def _no_statistics(site: AttentionSite) -> SiteStatistics:
    """All zeros, of one token each."""
    heads, qk, vo = len(site.query_key_widths), max(site.query_key_widths), max(site.value_output_widths)
    return SiteStatistics(
        tokens=torch.ones(2, dtype=torch.float64),
        query_gram=torch.zeros(heads, qk, qk, dtype=torch.float64),
        key_gram=torch.zeros(heads, qk, qk, dtype=torch.float64),
        attended_key_gram=torch.zeros(heads, qk, qk, dtype=torch.float64),
        context_gram=torch.zeros(heads, vo, vo, dtype=torch.float64),
        context_sum=torch.zeros(heads, vo, dtype=torch.float64),
        query_key=torch.zeros(1, heads, qk, qk),
        value_output=torch.zeros(1, heads, vo, vo),
        context_gradient=torch.zeros(1, heads, vo),
    )


def _closed_form(bench: Bench, sparsity: float, recipe: ClosedForm) -> Made:
    sites = bench.family.attention_sites(bench.checkpoint.model)
    statistics = bench.shared("statistics", lambda: _statistics(bench))
    widths = widest_equal_widths(sites, bench.costs, sparsity)
    bases = {}
    for site, heads in zip(sites, widths.widths, strict=True):
        found = statistics[site.name]
        bases[site.name] = principal_basis(found) if recipe.kind == "principal" else ridge_basis(site, found, heads[0])
    return _cut(bench, bases, widths, recipe.kind)


def ridge_everywhere(bench: Bench, sparsity: float, _recipe: RidgeEverywhere) -> Made:
    """The largest share, of as many steps as a head has channels, that is within the sparsity."""
    family, dense = bench.family, bench.checkpoint.model
    sites, blocks = family.attention_sites(dense), family.feed_forward_sites(dense)
    statistics = bench.shared("statistics", lambda: _statistics(bench))
    hidden = {block.name: block.second for block in blocks}
    grams = bench.shared("hidden Grams", lambda: _input_grams(bench, hidden, bench.pool[bench.order].inputs))
    (steps,) = {width for site in sites for width in (*site.query_key_widths, *site.value_output_widths)}
    for step in range(steps - 1, 0, -1):
        pairs = [((step, step),) * len(site.query_key_widths) for site in sites]
        channels = {block.name: block.width * step // steps for block in blocks}
        if bench.costs.of(pairs, channels) <= (1 - sparsity) * bench.costs.dense * (1 + ROUNDING):
            break
    bases: dict[str, Any] = {site.name: ridge_basis(site, statistics[site.name], (step, step)) for site in sites}
    bases |= {block.name: ridge_feed_forward(block, grams[block.name], channels[block.name]) for block in blocks}
    return _cut(bench, bases, Allocation(tuple(pairs), math.nan, math.nan, channels), "ridge")


def _one_ranking(bench: Bench, sparsity: float, recipe: OneRanking) -> Made:
    """The largest model of the ranking's RANKING_STEPS that is within the sparsity."""
    family, dense, plan = bench.family, bench.checkpoint.model, bench.plan
    inputs = bench.pool[bench.order].inputs
    plain = dataclasses.replace(recipe, corrected=False)
    ranking: Ranking = bench.shared(
        f"{plain}",
        lambda: make_ranking(
            family, dense, inputs, recipe, bench.prune, seed=bench.seed,
            at_once=bench.clips_at_once or RotatedRecipe().chunk, report=bench.report,
        ),
    )  # fmt: skip
    costs = bench.costs
    budget = (1 - sparsity) * costs.dense * (1 + ROUNDING)
    for step in range(RANKING_STEPS + 1):
        kept = ranking.kept(step / RANKING_STEPS, bench.prune)
        heads = [(plan.dense_head_width,) * 2] * max(map(len, kept.heads))
        pairs = [tuple(heads[: stays.sum()]) for stays in kept.heads]
        blocks = zip(plan.feed_forward, kept.channels, strict=False)  # none are in a ranking of heads alone
        if costs.of(pairs, {block.name: int(stays.sum()) for block, stays in blocks}) <= budget:
            break
    else:
        raise BadInput("out of reach: a fifth of a block's heads and a twentieth of its channels, one at least, stay")
    model, sites, narrow = model_of(family, dense, kept)
    if recipe.corrected:
        _correct_outputs_(bench, model, sites, narrow, inputs[: recipe.clips])
    return Made(model, dataclasses.replace(plan, sites=sites, feed_forward=narrow))


def _correct_outputs_(bench: Bench, slim: nn.Module, sites: Any, narrow: Any, inputs: Any) -> None:
    """Fit, in place, what reads contexts and hidden channels that are gone."""
    family, dense = bench.family, bench.checkpoint.model
    attention, blocks = family.attention_sites(dense), family.feed_forward_sites(dense)
    wide: list[AttentionSite | FeedForwardSite] = [*attention, *blocks]
    thin: list[AttentionSite | FeedForwardSite] = [*family.attention_sites(slim), *family.feed_forward_sites(slim)]
    linears = {site.name: site.output for site in wide}
    grams = bench.shared("output Grams", lambda: _input_grams(bench, linears, inputs))
    of_heads = zip(sites, attention, strict=True)
    columns = [kept_rows(plan, site.value_output_widths, "value_output") for plan, site in of_heads]
    columns += [torch.tensor(plan.channels, dtype=torch.int64) for plan in narrow]
    for site, kept in zip(thin, columns, strict=True):
        gram = grams[site.name]
        if len(kept) < len(gram) - 1:
            correct_(site.output, linears[site.name], gram[:-1, :-1] / gram[-1, -1], kept)


def widest_equal_widths(sites: Any, costs: Costs, sparsity: float) -> Allocation:
    """All heads kept, all at the widest widths within the sparsity, value/output at most one wider; at least (1, 1)."""
    most = min(width for site in sites for width in (*site.query_key_widths, *site.value_output_widths))
    for channels in range(2 * most, 1, -1):
        pair = (channels // 2, channels - channels // 2)
        widths = tuple((pair,) * len(site.query_key_widths) for site in sites)
        cost = costs.of(widths)
        if cost <= (1 - sparsity) * costs.dense * (1 + ROUNDING) or channels == 2:
            return Allocation(widths, cost, math.nan)
    raise AssertionError("two channels always end the search")


def _compensated(bench: Bench, sparsity: float, recipe: Compensated) -> Made:
    made = _reference(bench, sparsity, recipe.recipe)
    _compensate_(bench, made.model)
    return made


def _compensate_(
    bench: Bench, model: nn.Module, report: Report | None = None, *, every_block: bool = False
) -> Compensation:
    return compensate_(
        bench.family, model, bench.checkpoint.model, *divided(bench.pool[bench.order]),
        every_block=every_block, batch_size=bench.clips_at_once or 16, report=report or bench.report,
    )  # fmt: skip


# Negative controls


def _wrong_scale(bench: Bench, sparsity: float, recipe: Control) -> Made:
    made = _default(bench, sparsity, recipe.recipe)
    _scale_by_width_(bench, made.model)
    return made


def _own_scale(bench: Bench, sparsity: float, recipe: OwnScale) -> Made:
    made = _reference(bench, sparsity, recipe.recipe)
    _scale_by_width_(bench, made.model)
    return made


def _scale_by_width_(bench: Bench, model: Any) -> None:
    """Recompute the softmax's scale, in place, from what every head keeps."""
    for site in bench.family.attention_sites(model):
        # the same as multiplying this head's scores by 1/sqrt(its width), where the trained model's scale belongs
        factors = [1 / (math.sqrt(width) * site.scaling) for width in site.query_key_widths]
        rows = torch.repeat_interleave(torch.tensor(factors), torch.tensor(site.query_key_widths))
        with torch.no_grad():
            rows = rows.to(site.query.weight)
            site.query.weight.mul_(rows[:, None])
            if site.query.bias is not None:
                site.query.bias.mul_(rows)


def _other_clips(bench: Bench, sparsity: float, recipe: Control) -> Made:
    own = strata(bench.pool.targets)
    labels = own[bench.order].unique()
    of_one = torch.nonzero(own == labels[bench.seed % len(labels)]).flatten()
    chosen = of_one if recipe.fault == "one label" else bench.order[: len(of_one)]
    kept = bench.pool[chosen]
    other = bench.shared(
        f"bench of {recipe.fault}",
        lambda: dataclasses.replace(bench, pool=kept, clips=len(chosen), kept={}, reused_s=0.0),
    )
    before_s = other.reused_s
    made = _default(other, sparsity, recipe.recipe)
    bench.reused_s += other.reused_s - before_s
    return made


def _shuffled_heads(bench: Bench, sparsity: float, recipe: Control) -> Made:
    sites = bench.family.attention_sites(bench.checkpoint.model)
    scores = _scores(bench, recipe.recipe)
    heads = [(site.name, head) for site in sites for head in range(len(site.query_key_widths))]
    shuffled = iter(np.random.default_rng(bench.seed).permutation(len(heads)))
    wrong = {
        site.name: np.stack(
            [*(scores.losses[name][head] for name, head in (heads[next(shuffled)] for _ in losses[:-1])), losses[-1]]
        )
        for site in sites
        for losses in (scores.losses[site.name],)
    }
    budget = (1 - sparsity) * bench.costs.dense
    chosen = choose_widths(sites, wrong, bench.costs, budget, recipe.recipe)
    return _cut(bench, scores.bases, chosen, recipe.recipe.basis)


# What is shared


def _scores(bench: Bench, recipe: RotatedRecipe) -> Scores:
    """Of the clips that `leanear prune` scores."""
    clips, _ = divided(bench.pool[bench.order])
    scoring = dataclasses.replace(recipe.scoring, seed=bench.seed)
    return bench.shared(
        f"scores {scoring}",
        lambda: score_widths(
            bench.family, bench.checkpoint.model, clips, scoring, made_from={},
            clips_at_once=bench.clips_at_once, report=bench.report,
        ),
    )  # fmt: skip


def _all_bases(sites: Any, statistics: Statistics, kind: BasisKind, order: Order) -> dict[str, SiteBasis]:
    return {site.name: choose_basis(site, statistics[site.name], kind, order=order) for site in sites}


def _input_grams(bench: Bench, linears: Mapping[str, nn.Linear], inputs: Any) -> dict[str, torch.Tensor]:
    """By name (C + 1, C + 1): sums over the clips' tokens of v v^T, v what a linear layer takes and a one after it."""
    sizes = {name: linear.in_features + 1 for name, linear in linears.items()}
    grams = {name: torch.zeros(size, size, dtype=torch.float64) for name, size in sizes.items()}

    def add(name: str, _module: nn.Module, given: tuple[torch.Tensor]) -> None:
        taken = nn.functional.pad(given[0].flatten(0, 1), (0, 1), value=1.0)
        grams[name] += (taken.mT @ taken).double().cpu()

    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, linear in linears.items():
            hooks.enter_context(linear.register_forward_pre_hook(functools.partial(add, name)))
        for rows in torch.arange(len(inputs)).split(bench.clips_at_once or RotatedRecipe().chunk):
            bench.family.logits(bench.checkpoint.model, inputs[rows])
    return grams


def _statistics(bench: Bench) -> Statistics:
    """Second-order statistics of all of the seed's clips."""
    sites = bench.family.attention_sites(bench.checkpoint.model)
    clips = bench.pool[bench.order]
    generator = torch.Generator().manual_seed(bench.seed)
    parts = []
    for rows in torch.arange(len(clips)).split(bench.clips_at_once or RotatedRecipe().chunk):
        part = clips[rows]
        passed = pass_through_all(
            bench.checkpoint.model, sites, (), part.inputs, part.targets, bench.family.logits, generator=generator
        )
        parts.append(statistics_of(passed.attention, sites, part.targets, attended_keys=True))
        bench.report(f"statistics of {int(rows[-1]) + 1}/{len(clips)} clips", (int(rows[-1]) + 1) / len(clips))
    return merge_statistics(*parts)
