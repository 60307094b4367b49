"""One ranking of heads and channels, from which any size is cut, as others make it: to be compared with, not used.

After SnapViT (Simoncini and others, arXiv 2510.17700), written from the paper's formulas and the settings that its
authors published, and only as good as that. Theirs, and so here: entire heads and feed-forward channels, as trained, in
two lists. What a structure is worth is the mean squared gradient of the rows by which it begins (a head's values, a
channel's first weights) of a loss without labels: the embeddings of two large crops of a clip, as targets, against
those of all its other crops, cross-entropy between softmaxes of unit vectors. It is multiplied by a factor of its block
(of every head, one of its own), and the factors are what exponential natural evolution strategies (Glasmachers and
others, GECCO 2010) find within 50 evaluations, starting from 1.2 in the first block down to 0.8 in the last. Their
fitness is how far the embeddings of models cut to several sizes point away from the dense model's, within its principal
components. A fifth of every block's heads and a twentieth of its channels always stay. A correction of the
second layers' weights, for what is lost of their inputs, is an option of theirs and here.

What had to be guessed. Their sizes are pairs of shares, of channels and of heads 0.15 fewer; a budget takes the first
such pair that is within it, and where attention or feed-forward blocks alone are pruned the other share is none. Crops
are of the features as of an image, by shares of both axes, or of a waveform in time alone. The embedding is what the
last linear layer takes, and a quarter of its width the number of components. One head always stays. Gradients are
squared clip by clip, as the paper writes it. They have 1,000 images for gradients and for fitness; the clips here are
fewer. The correction fits all kept columns at once to the dense model's inputs, instead of column by column to inputs
that earlier blocks have changed.

Dimension letters: N clips, V crops of one of them, D embedding, H heads, C channels of a block.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from leanear.calibration.sites import AttentionSite, FeedForwardSite
from leanear.families.family import Family
from leanear.plan import FeedForwardPlan, HeadPlan, Prune, SitePlan
from leanear.progress import Report

GLOBAL_CROPS, GLOBAL_AREA, LOCAL_AREA = 2, (0.25, 1.0), (0.05, 0.25)
ASPECT = 4 / 3  # of a crop to the whole, at most
HEADS_LEFT, CHANNELS_LEFT = 0.2, 0.05
FEWER_HEADS = 0.15
FITNESS_SHARES = (0.15, 0.35, 0.55, 0.65)
FIRST_FACTOR, LAST_FACTOR = 1.2, 0.8
COMPONENTS = 0.25  # of the embedding's width
DAMPING = 0.01  # of the mean square of the inputs


@dataclass(frozen=True)
class OneRanking:
    """How the ranking is made: so many clips for gradients, for fitness and for the correction; see the module."""

    corrected: bool
    clips: int = 64
    fitness_clips: int = 32
    local_crops: int = 10
    evaluations: int = 50


@dataclass(frozen=True)
class Ranking:
    """What structures are worth, float64: by attention block (H,), by feed-forward block (C,); the least go first."""

    heads: tuple[np.ndarray, ...]
    channels: tuple[np.ndarray, ...]

    def times(self, factors: np.ndarray) -> Ranking:
        """With one factor for each feed-forward block, then one for each head."""
        of_blocks = factors[: len(self.channels)]
        edges = np.cumsum([len(block) for block in self.heads])[:-1]
        of_heads = np.split(factors[len(self.channels) :], edges)
        heads = tuple(worth * factor for worth, factor in zip(self.heads, of_heads, strict=True))
        return Ranking(heads, tuple(worth * factor for worth, factor in zip(self.channels, of_blocks, strict=True)))

    def kept(self, share: float, prune: Prune) -> Kept:
        """What stays of a model that loses this share of its channels, or of its heads where they alone are pruned."""
        of_heads = {"attention": share, "feed-forward": 0.0, "all": max(0.0, share - FEWER_HEADS)}[prune]
        of_channels = 0.0 if prune == "attention" else share
        return Kept(_most(self.heads, of_heads, HEADS_LEFT), _most(self.channels, of_channels, CHANNELS_LEFT))


@dataclass(frozen=True)
class Kept:
    """Which structures stay, bool, in the shapes of a `Ranking`."""

    heads: tuple[np.ndarray, ...]
    channels: tuple[np.ndarray, ...]


def _most(worths: Sequence[np.ndarray], share: float, left: float) -> tuple[np.ndarray, ...]:
    """True but for this share of all, the least ones; of each block the best `left`, at least one, always stay."""
    if not worths:
        return ()
    guarded = []
    for worth in worths:
        safe = worth.copy()
        safe[np.argsort(-worth, kind="stable")[: max(1, int(left * len(worth)))]] = np.inf
        guarded.append(safe)
    every = np.concatenate(guarded)
    stays = np.isinf(every)
    stays[np.argsort(every, kind="stable")[int(share * len(every) + 1e-9) :]] = True
    return tuple(np.split(stays, np.cumsum([len(worth) for worth in worths])[:-1]))


def make_ranking(
    family: Family, model: nn.Module, inputs: Any, recipe: OneRanking, prune: Prune, *, seed: int, at_once: int,
    report: Report,
) -> Ranking:  # fmt: skip
    """The ranking of a classifier's heads and channels by clips (N, ...), so many of them, or of crops, at once.

    The model is left as it was.
    """
    own = torch.Generator().manual_seed(seed)
    local = local_ranking(family, model, inputs[: recipe.clips], recipe.local_crops, own, at_once, report)
    if prune == "attention":
        local = dataclasses.replace(local, channels=())
    away = Away(family, model, inputs[: recipe.fitness_clips], prune, at_once)
    tried = itertools.count(1)

    def fitness(factors: np.ndarray) -> float:
        number = next(tried)
        report(f"evaluation {number} of {recipe.evaluations}", 0.5 + number / recipe.evaluations / 2)
        return away.of(local.times(np.abs(factors)))

    start = starting_factors(local)
    best = natural_evolution(fitness, start, recipe.evaluations, np.random.default_rng(seed))
    return local.times(np.abs(best))


class Away:
    """How far the embeddings of clips (N, ...) by models cut by a ranking point away from the dense model's."""

    def __init__(self, family: Family, model: nn.Module, inputs: Any, prune: Prune, at_once: int) -> None:
        self._family, self._model, self._parts, self._prune = family, model, inputs.split(at_once), prune
        dense = self._embedded(model)
        self._centre, self._components = dense.mean(dim=0), principal_components(dense)
        self._dense = (dense - self._centre) @ self._components.mT

    def of(self, ranking: Ranking) -> float:
        """One less the cosine, mean over clips and over FITNESS_SHARES."""
        cosines = []
        for share in FITNESS_SHARES:
            slim, _, _ = model_of(self._family, self._model, ranking.kept(share, self._prune))
            found = (self._embedded(slim) - self._centre) @ self._components.mT
            cosines.append(float(nn.functional.cosine_similarity(found, self._dense, dim=1).mean()))
        return 1.0 - float(np.mean(cosines))

    @torch.no_grad()
    def _embedded(self, model: nn.Module) -> torch.Tensor:
        return torch.cat([embeddings(self._family, model, part).double().cpu() for part in self._parts])


def starting_factors(ranking: Ranking) -> np.ndarray:
    """Factors in the order of `Ranking.times`, falling from the first block to the last."""
    falling = np.linspace(FIRST_FACTOR, LAST_FACTOR, len(ranking.heads))
    of_blocks = np.linspace(FIRST_FACTOR, LAST_FACTOR, len(ranking.channels))
    return np.concatenate([of_blocks, np.repeat(falling, [len(block) for block in ranking.heads])])


def embeddings(family: Family, model: nn.Module, inputs: Any) -> torch.Tensor:
    """(N, D): what the last linear layer of a classifier takes."""
    taken: list[torch.Tensor] = []
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with last.register_forward_pre_hook(lambda _module, given: taken.append(given[0])):
        family.logits(model, inputs)
    return taken[0]


def principal_components(embedded: torch.Tensor) -> torch.Tensor:
    """The first components (k, D) of embeddings (N, D), orthonormal; k is at most N - 1."""
    components = torch.linalg.svd(embedded - embedded.mean(dim=0), full_matrices=False).Vh
    return components[: max(1, min(int(COMPONENTS * embedded.shape[1]), len(embedded) - 1))]


def local_ranking(
    family: Family, model: nn.Module, inputs: torch.Tensor, local_crops: int, generator: torch.Generator, at_once: int,
    report: Report,
) -> Ranking:  # fmt: skip
    """Mean squared gradients of the loss without labels, by clips (N, ...) and by the weights of every structure."""
    sites, blocks = family.attention_sites(model), family.feed_forward_sites(model)
    weights = [*(site.value.weight for site in sites), *(block.first.weight for block in blocks)]
    sums = [torch.zeros_like(weight) for weight in weights]
    areas = [GLOBAL_AREA] * GLOBAL_CROPS + [LOCAL_AREA] * local_crops
    for number, clip in enumerate(inputs):
        crops = torch.stack([random_crop(clip, area, generator) for area in areas])
        for total, gradient in zip(sums, _gradients(family, model, crops, weights, at_once), strict=True):
            total += gradient.square()
        report(f"gradients of {number + 1}/{len(inputs)} clips", (number + 1) / len(inputs) / 2)
    rows = [(total / len(inputs)).mean(dim=1).double().cpu() for total in sums]
    heads = [
        np.array([float(head.mean()) for head in of_rows.split(list(site.value_output_widths))])
        for site, of_rows in zip(sites, rows, strict=False)
    ]
    return Ranking(tuple(heads), tuple(of_rows.numpy() for of_rows in rows[len(sites) :]))


def _gradients(
    family: Family, model: nn.Module, crops: torch.Tensor, weights: Sequence[torch.Tensor], at_once: int
) -> list[torch.Tensor]:
    """Of one clip's loss by the weights; crops (V, ...)."""
    with torch.no_grad():
        targets = embeddings(family, model, crops[:GLOBAL_CROPS])
    sums = [torch.zeros_like(weight) for weight in weights]
    for first in range(0, len(crops), at_once):
        with torch.enable_grad():
            loss = crossed_entropy(targets, embeddings(family, model, crops[first : first + at_once]), first)
        for total, gradient in zip(sums, torch.autograd.grad(loss, weights), strict=True):
            total += gradient
    return sums


def crossed_entropy(targets: torch.Tensor, embedded: torch.Tensor, first: int = 0) -> torch.Tensor:
    """Of the first crops of a clip as targets (P, D) with other ones (V, D), of which the first has this number."""
    wanted, found = (nn.functional.normalize(each, dim=-1) for each in (targets, embedded))
    crossed = -wanted.softmax(dim=-1) @ found.log_softmax(dim=-1).mT
    numbers = torch.arange(first, first + len(embedded), device=crossed.device)
    return crossed[numbers != torch.arange(len(targets), device=crossed.device)[:, None]].sum()


def random_crop(clip: torch.Tensor, area: tuple[float, float], generator: torch.Generator) -> torch.Tensor:
    """A part of features (frames, mels) or of a waveform (samples,), a random share of it, stretched to its size."""
    low, high = area
    share = low + (high - low) * float(torch.rand((), generator=generator))
    ratio = ASPECT ** (2 * float(torch.rand((), generator=generator)) - 1)
    sides = [share] if clip.dim() == 1 else [math.sqrt(share * ratio), math.sqrt(share / ratio)]
    part = clip
    for dim, side in enumerate(sides):
        length = max(1, round(min(side, 1.0) * clip.shape[dim]))
        start = int(torch.randint(clip.shape[dim] - length + 1, (), generator=generator))
        part = part.narrow(dim, start, length)
    mode = "linear" if clip.dim() == 1 else "bilinear"
    return nn.functional.interpolate(part[None, None], size=tuple(clip.shape), mode=mode)[0, 0]


def natural_evolution(
    fitness: Callable[[np.ndarray], float], start: np.ndarray, evaluations: int, generator: np.random.Generator
) -> np.ndarray:
    """The best of so many points: exponential natural evolution strategies, minimising, at their published settings.

    start (d,): the mean of the first normal distribution, whose covariance is the identity; it is not evaluated.
    """
    size = len(start)
    population = 4 + int(3 * math.log(size))
    rate = 0.6 * (3 + math.log(size)) / (size * math.sqrt(size))
    ranks = np.maximum(0.0, math.log(population / 2 + 1) - np.log(np.arange(1, population + 1)))
    utilities = ranks / ranks.sum() - 1 / population
    mean, axes, best, least = start, np.eye(size), start, math.inf
    for first in range(0, evaluations, population):
        noise = generator.standard_normal((min(population, evaluations - first), size))
        points = mean + noise @ axes.T
        values = np.array([fitness(point) for point in points])
        if values.min() < least:
            best, least = points[values.argmin()], float(values.min())
        if len(noise) == population:
            ordered = noise[np.argsort(values, kind="stable")]
            mean = mean + axes @ (utilities @ ordered)
            natural = torch.from_numpy(0.5 * rate * (ordered.T * utilities) @ ordered)  # the utilities' sum is 0
            axes = axes @ torch.linalg.matrix_exp(natural).numpy()
    return best


def model_of(
    family: Family, model: nn.Module, kept: Kept
) -> tuple[nn.Module, tuple[SitePlan, ...], tuple[FeedForwardPlan, ...]]:
    """The model of what is kept, its weights as they were, and what that is; without channels, all of them stay."""
    sites, blocks = family.attention_sites(model), family.feed_forward_sites(model)
    plans = tuple(_site_plan(site, stays) for site, stays in zip(sites, kept.heads, strict=True))
    masks = kept.channels or tuple(np.ones(block.width, dtype=bool) for block in blocks)
    narrow = tuple(
        FeedForwardPlan(block.name, block.width, tuple(np.flatnonzero(stays).tolist()), block.kind)
        for block, stays in zip(blocks, masks, strict=True)
    )
    states = {
        block.name: _channels_state(block, plan.channels)
        for block, plan in zip(blocks, narrow, strict=True)
        if len(plan.channels) < block.width
    }
    return family.slim_model(model, plans, None, states), plans, narrow


def _site_plan(site: AttentionSite, stays: np.ndarray) -> SitePlan:
    widths = zip(site.query_key_widths, site.value_output_widths, strict=True)
    heads = tuple(HeadPlan(head, tuple(range(k)), tuple(range(v))) for head, (k, v) in enumerate(widths) if stays[head])
    return SitePlan(site.name, len(stays), heads, site.kind)


def _channels_state(site: FeedForwardSite, channels: Sequence[int]) -> dict[str, torch.Tensor]:
    rows = torch.tensor(channels, device=site.first.weight.device)
    state = {
        "first.weight": site.first.weight[rows], "first.bias": site.first.bias[rows],
        "second.weight": site.second.weight[:, rows], "second.bias": site.second.bias,
    }  # fmt: skip
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def correct_(slim: nn.Linear, dense: nn.Linear, gram: torch.Tensor, columns: torch.Tensor) -> None:
    """Give the kept columns of a layer what they can make up for of the others, in place.

    gram (C, C), float64: mean of x x^T, x the dense layer's inputs; columns: those that slim has, in its order. The
    weights differ least from the dense ones by gram with DAMPING on its diagonal.
    """
    damped = gram + DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    fitted = torch.linalg.solve(damped[columns][:, columns], damped[columns])
    with torch.no_grad():
        slim.weight.copy_(dense.weight.double().cpu() @ fitted.mT)
