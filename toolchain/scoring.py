"""Two passes over the calibration clips: a new basis for every head, then what every width in it would lose.

The first pass collects second-order statistics of some of the clips, from which each head gets a basis in which few
channels do the work; the second, of all of them, the exact change of every head's attention at each width that may be
chosen, in that basis. Both are summed chunk by chunk, on any number of processes, and resumed where they were
interrupted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

from calibration import shards
from calibration.basis import BasisKind, SiteBasis, choose_bases, width_damages
from calibration.kept import keep_tensors, kept_tensors
from calibration.losses import collect_squares, empty_squares, width_grid, width_losses
from calibration.passes import Labels
from calibration.sites import AttentionSite
from calibration.statistics import (
    Statistics,
    collect_statistics,
    empty_statistics,
    merge_statistics,
    statistics_from_tensors,
    statistics_tensors,
)
from calibration.targets import positions
from runtimes.files import sha256_json
from toolchain.examples import LabelledInputs
from toolchain.narration import Report, quiet

SCORES_FILE = "scores.safetensors"
BASIS_FOLDER, LOSSES_FOLDER = "statistics", "losses"
OTHER_SIGNS = 500_000_003  # so that no pass draws the signs of the other

Losses = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Scoring:
    """How clips are scored.

    basis, labels: as in `choose_basis` and `pass_through`; finite: whether query/key widths are judged by the exact
    change of the attention, or by derivatives at the dense model; multiple: query/key widths are tried at its
    multiples; basis_clips: how many of the clips, the first ones, the basis is made from; chunk: clips that are added
    up at once; seed: of the random labels.
    """

    basis: BasisKind = "fisher"
    labels: Labels = "projected"
    finite: bool = True
    multiple: int = 4
    basis_clips: int = 64
    chunk: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Scores:
    """Every block's new basis, and the estimated losses of its heads, nats per target: (H, K + 1, V + 1) by name.

    Entry [h, k, v] is of head h keeping its first k query/key and v value/output channels, [h, 0, 0] of its removal;
    infinite where a pair of widths is not offered.
    """

    bases: Mapping[str, SiteBasis]
    losses: Losses


def score_widths(
    family: ModuleType,
    model: nn.Module,
    clips: LabelledInputs,
    scoring: Scoring,
    *,
    made_from: Mapping[str, str],
    state: Path | None = None,
    clips_at_once: int | None = None,
    report: Report = quiet,
) -> Scores:
    """Bases and losses of all blocks; on all processes the same.

    What is in `state` is used if it was made from the same inputs; when the scores are there, the chunks go.
    """
    sites: tuple[AttentionSite, ...] = family.attention_sites(model)
    grids = {site.name: width_grid(site, scoring.multiple) for site in sites}
    made_from = {**made_from, "scoring": sha256_json([dataclasses.asdict(scoring), len(clips)])}
    kept = kept_tensors(state / SCORES_FILE, made_from) if state is not None and shards.rank() == 0 else None
    found = torch.tensor([kept is not None])
    shards.broadcast([found])  # what the first process has need not be there for the others
    empty = _empty_tensors(sites, grids, len(clips), scoring)
    if not found:
        kept = _scored(family, model, sites, grids, clips, scoring, made_from, state, clips_at_once, report)
    tensors = kept if kept is not None else empty
    shards.broadcast([tensor for _, tensor in sorted(tensors.items())])
    if state is not None and shards.rank() == 0:
        keep_tensors(state / SCORES_FILE, tensors, made_from)
        for folder in (BASIS_FOLDER, LOSSES_FOLDER):
            for chunk in (state / folder).glob("chunk-*.safetensors"):
                chunk.unlink()
    bases = _bases(tensors)
    per_clip = positions(clips.targets) / len(clips)
    if not scoring.finite:
        return Scores(bases, infinitesimal_losses(sites, bases, per_clip))
    squares = {site.name: tensors[f"squares/{site.name}"] for site in sites}
    return Scores(
        bases,
        {s.name: width_losses(s, grids[s.name], squares[s.name], len(clips), per_clip) for s in sites},
    )


def infinitesimal_losses(
    sites: Sequence[AttentionSite], bases: Mapping[str, SiteBasis], targets_per_clip: float
) -> dict[str, np.ndarray]:
    """Losses by derivatives at the dense model alone, as `Scores` holds them, of all widths."""
    losses = {}
    for site in sites:
        basis = bases[site.name]
        shape = (len(site.query_key_widths), max(site.query_key_widths) + 1, max(site.value_output_widths) + 1)
        losses[site.name] = np.full(shape, np.inf)
        for head, (qk, vo) in enumerate(zip(site.query_key_widths, site.value_output_widths, strict=True)):
            damages = width_damages(basis.query_key[:, head, :qk].numpy(), basis.value_output[:, head, :vo].numpy())
            losses[site.name][head, : qk + 1, : vo + 1] = damages / targets_per_clip
    return losses


def _scored(
    family: ModuleType,
    model: nn.Module,
    sites: Sequence[AttentionSite],
    grids: Mapping[str, Sequence[int]],
    clips: LabelledInputs,
    scoring: Scoring,
    made_from: Mapping[str, str],
    state: Path | None,
    clips_at_once: int | None,
    report: Report,
) -> dict[str, torch.Tensor] | None:
    """The bases' tensors and the sums of squares, by name; None on processes other than the first."""
    based = clips[: scoring.basis_clips] if scoring.finite else clips
    total = len(based) + (len(clips) if scoring.finite else 0)

    def over(
        part: LabelledInputs, before: int, text: str, collect: Callable[..., shards.Tensors], folder: str, key: str
    ) -> list[shards.Tensors]:
        chunks = torch.arange(len(part)).split(scoring.chunk)

        def progress(done: int, _all: int) -> None:
            clips_done = min(done * scoring.chunk, len(part))
            report(f"{text} {clips_done}/{len(part)} clips", (before + clips_done) / total)

        def compute(number: int) -> shards.Tensors:
            seed = 1_000_003 * scoring.seed + number + (OTHER_SIGNS if folder == LOSSES_FOLDER else 0)
            generator = torch.Generator().manual_seed(seed)
            rows = chunks[number].split(clips_at_once or scoring.chunk)
            return collect([part[row] for row in rows], generator)

        return shards.gather(
            len(chunks), compute, lambda number: collect([], None, len(chunks[number])),
            folder=None if state is None else state / folder, made_from={**made_from, "sums": key}, progress=progress,
        )  # fmt: skip

    def statistics(
        batches: Sequence[LabelledInputs], generator: torch.Generator | None, empty: int = 0
    ) -> shards.Tensors:
        if not batches:
            return statistics_tensors(empty_statistics(sites, empty))
        parts = [
            collect_statistics(
                model, sites, batch.inputs, batch.targets, family.logits, labels=scoring.labels,
                attended_keys=scoring.basis in ("attention", "fisher"), generator=generator,
            )
            for batch in batches
        ]  # fmt: skip
        return statistics_tensors(merge_statistics(*parts))

    gathered = over(based, 0, "basis from", statistics, BASIS_FOLDER, "statistics")
    bases: Mapping[str, SiteBasis] = _bases(_empty_tensors(sites, grids, len(clips), scoring))
    if shards.rank() == 0:
        merged: Statistics = merge_statistics(*(statistics_from_tensors(tensors) for tensors in gathered))
        bases = choose_bases(sites, merged, scoring.basis)
    tensors = _basis_tensors(bases)
    shards.broadcast([tensor for _, tensor in sorted(tensors.items())])
    if not scoring.finite:
        return tensors if shards.rank() == 0 else None
    bases = _bases(tensors)

    def squares(
        batches: Sequence[LabelledInputs], generator: torch.Generator | None, _clips: int = 0
    ) -> shards.Tensors:
        sums = empty_squares(sites, grids)
        for batch in batches:
            found = collect_squares(
                model, sites, bases, grids, batch.inputs, batch.targets, family.logits,
                labels=scoring.labels, generator=generator,
            )  # fmt: skip
            sums = {name: total + found[name] for name, total in sums.items()}
        return sums

    gathered = over(clips, len(based), "scored", squares, LOSSES_FOLDER, sha256_json(grids))
    if shards.rank() != 0:
        return None
    sums = {f"squares/{s.name}": torch.stack([part[s.name] for part in gathered]).sum(dim=0) for s in sites}
    return {**tensors, **sums}


def _basis_tensors(bases: Mapping[str, SiteBasis]) -> dict[str, torch.Tensor]:
    return {
        f"{field.name}/{name}": getattr(basis, field.name)
        for name, basis in bases.items()
        for field in dataclasses.fields(SiteBasis)
    }


def _bases(tensors: Mapping[str, torch.Tensor]) -> dict[str, SiteBasis]:
    fields = [field.name for field in dataclasses.fields(SiteBasis)]
    names = sorted({key.partition("/")[2] for key in tensors if key.startswith("context_mean/")})
    return {name: SiteBasis(**{field: tensors[f"{field}/{name}"] for field in fields}) for name in names}


def _empty_tensors(
    sites: Sequence[AttentionSite], grids: Mapping[str, Sequence[int]], clips: int, scoring: Scoring
) -> dict[str, torch.Tensor]:
    """Zeros in the shapes of what scoring gives."""
    based = min(clips, scoring.basis_clips) if scoring.finite else clips
    bases = {}
    for site in sites:
        heads, qk, vo = len(site.query_key_widths), max(site.query_key_widths), max(site.value_output_widths)
        shapes = [(heads, qk, qk)] * 2 + [(heads, vo, vo)] * 2 + [(heads, vo), (based, heads, qk), (based, heads, vo)]
        bases[site.name] = SiteBasis(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))
    squares = {f"squares/{name}": sums for name, sums in empty_squares(sites, grids).items()}
    return {**_basis_tensors(bases), **(squares if scoring.finite else {})}
