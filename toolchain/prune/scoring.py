"""Two passes over the calibration clips: a new basis for every head, then what every width in it would lose.

The first pass collects second-order statistics of some of the clips, from which each head gets a basis in which few
channels do the work; the second, of all of them, the exact change of every head's attention at each width that may be
chosen, in that basis. Both are summed chunk by chunk, on any number of processes, and resumed where they were
interrupted.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from leanear.calibration import shards
from leanear.calibration.basis import BasisKind, SiteBasis, choose_bases, width_damages
from leanear.calibration.feed_forward import (
    FeedForwardBasis,
    feed_forward_basis,
    feed_forward_losses,
    feed_forward_squares,
    feed_forward_sums,
)
from leanear.calibration.losses import squares_of, width_grid, width_losses
from leanear.calibration.passes import Labels, pass_through_all
from leanear.calibration.shards import keep_tensors, kept_tensors
from leanear.calibration.sites import AttentionSite, FeedForwardSite
from leanear.calibration.statistics import (
    Statistics,
    merge_statistics,
    statistics_from_tensors,
    statistics_of,
    statistics_tensors,
)
from leanear.calibration.targets import before_the_end, positions
from leanear.data.examples import LabelledInputs
from leanear.families.family import Family
from leanear.plan import Prune
from leanear.progress import Report, quiet
from leanear.runtimes.backends.unneeded_memory import give_back_heap
from leanear.runtimes.files import sha256_json

SCORES_FILE = "scores.safetensors"
SCORES_VERSION = 3  # of what is kept: with another one, scores are made anew
BASIS_FOLDER, LOSSES_FOLDER = "statistics", "losses"
FEED_FORWARD_CLIPS = 64  # scored for feed-forward blocks, as far as they go those of which no basis is made
OTHER_SIGNS = 500_000_003  # so that no pass draws the signs of the other

Losses = Mapping[str, np.ndarray]
Bases = Mapping[str, SiteBasis | FeedForwardBasis]


@dataclass(frozen=True)
class Scoring:
    """How clips are scored.

    basis, labels: as in `choose_basis` and `pass_through_all`; finite: whether query/key widths are judged by the exact
    change of the attention, or by derivatives at the dense model; multiple: query/key widths are tried at its
    multiples; basis_clips: how many of the clips, the first ones, the basis is made from; chunk: clips that are added
    up at once; seed: of the random labels; prune: which blocks are scored.
    """

    basis: BasisKind = "fisher"
    labels: Labels = "projected"
    finite: bool = True
    multiple: int = 4
    basis_clips: int = 64
    chunk: int = 16
    seed: int = 0
    prune: Prune = "attention"


@dataclass(frozen=True)
class Scores:
    """Every block's new basis, and estimated losses, nats per target, by name.

    Of an attention block (H + 1, K + 1, V + 1): entry [h, k, v] is of head h keeping its first k query/key and v
    value/output channels, [h, 0, 0] of its removal, [H, 0, 0] of that of all heads together; infinite where a pair of
    widths is not offered. Of a feed-forward block (C + 1,), see `feed_forward_losses`. Blocks that are not to be pruned
    have neither basis nor losses.
    """

    bases: Bases
    losses: Losses


def score_widths(
    family: Family,
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
    sites: tuple[AttentionSite, ...] = (
        tuple(site for site in family.attention_sites(model) if site.query_key_widths)
        if scoring.prune != "feed-forward"
        else ()
    )
    feed_forward: tuple[FeedForwardSite, ...] = (
        tuple(site for site in family.feed_forward_sites(model) if site.width) if scoring.prune != "attention" else ()
    )
    grids = {site.name: width_grid(site, scoring.multiple) for site in sites}
    made_from = {**made_from, "scoring": sha256_json([SCORES_VERSION, dataclasses.asdict(scoring), len(clips)])}
    kept = kept_tensors(state / SCORES_FILE, made_from) if state is not None and shards.rank() == 0 else None
    found = torch.tensor([kept is not None])
    shards.broadcast([found])  # what the first process has need not be there for the others
    if not found:
        total = len(clips) + (min(len(clips), scoring.basis_clips) if scoring.finite else 0)
        work = _Work(family, model, sites, feed_forward, grids, scoring, made_from, state, clips_at_once, report, total)
        kept = _scored(work, clips)
    tensors = shards.shared(kept or {})
    if state is not None and shards.rank() == 0:
        if not found:
            keep_tensors(state / SCORES_FILE, tensors, made_from)
        for folder in (BASIS_FOLDER, LOSSES_FOLDER):
            for chunk in (state / folder).glob("chunk-*.safetensors"):
                chunk.unlink()
    bases = _bases(tensors)
    per_clip = positions(clips.targets) / len(clips)
    if not scoring.finite:
        return Scores(bases, infinitesimal_losses(sites, bases, per_clip))
    squares = {name: tensors[f"squares/{name}"] for name in _names(sites, feed_forward)}
    losses = {s.name: width_losses(s, grids[s.name], squares[s.name], len(clips), per_clip) for s in sites}
    judged = len(scored_rows(len(clips), scoring.basis_clips))
    losses |= {s.name: feed_forward_losses(squares[s.name], judged, per_clip) for s in feed_forward}
    return Scores({**bases, **bases_of(tensors, feed_forward)}, losses)


def _names(sites: Sequence[AttentionSite], feed_forward: Sequence[FeedForwardSite]) -> list[str]:
    return [*(site.name for site in sites), *(site.name for site in feed_forward)]


def scored_rows(clips: int, basis_clips: int) -> range:
    """The clips that feed-forward blocks are scored on: those after the basis' own, or the last."""
    start = max(0, min(basis_clips, clips - FEED_FORWARD_CLIPS))
    return range(start, min(start + FEED_FORWARD_CLIPS, clips))


def infinitesimal_losses(
    sites: Sequence[AttentionSite], bases: Mapping[str, SiteBasis], targets_per_clip: float
) -> dict[str, np.ndarray]:
    """Losses by derivatives at the dense model alone, as `Scores` holds them, of all widths."""
    losses = {}
    for site in sites:
        basis = bases[site.name]
        shape = (len(site.query_key_widths) + 1, max(site.query_key_widths) + 1, max(site.value_output_widths) + 1)
        losses[site.name] = np.full(shape, np.inf)
        for head, (qk, vo) in enumerate(zip(site.query_key_widths, site.value_output_widths, strict=True)):
            damages = width_damages(basis.query_key[:, head, :qk].numpy(), basis.value_output[:, head, :vo].numpy())
            losses[site.name][head, : qk + 1, : vo + 1] = damages / targets_per_clip
        removals = basis.value_output.sum(dim=(1, 2)).numpy()
        losses[site.name][-1, 0, 0] = 0.5 * np.square(removals).mean() / targets_per_clip
    return losses


@dataclass(frozen=True)
class _Work:
    """What stays the same over both passes; see `score_widths`. total: clips of both."""

    family: Family
    model: nn.Module
    sites: Sequence[AttentionSite]
    feed_forward: Sequence[FeedForwardSite]
    grids: Mapping[str, Sequence[int]]
    scoring: Scoring
    made_from: Mapping[str, str]
    state: Path | None
    clips_at_once: int | None
    report: Report
    total: int


Named = Iterable[tuple[str, torch.Tensor]]
# clips, the number of the first, and what is told how many are done
Collect = Callable[[LabelledInputs, int, torch.Generator, Callable[[float], None]], Named]


def _scored(work: _Work, clips: LabelledInputs) -> dict[str, torch.Tensor] | None:
    """The bases' tensors and the sums of squares, by name; None on processes other than the first."""
    scoring = work.scoring
    based = clips[: scoring.basis_clips] if scoring.finite else clips
    tensors = dict(shards.shared(_based(work, based)))
    if not scoring.finite:
        return tensors if shards.rank() == 0 else None
    bases = (_bases(tensors), bases_of(tensors, work.feed_forward))
    rows = scored_rows(len(clips), scoring.basis_clips)
    gathered = _gathered(
        work, clips, "scored", LOSSES_FOLDER, len(based),
        lambda batch, first, generator, say: _squares(work, *bases, batch, first, rows, generator, say).items(),
        list,
    )  # fmt: skip
    if shards.rank() != 0:
        return None
    names = _names(work.sites, work.feed_forward)
    return tensors | {f"squares/{name}": torch.stack([part[name] for part in gathered]).sum(0) for name in names}


def _based(work: _Work, based: LabelledInputs) -> dict[str, torch.Tensor]:
    """The bases' tensors, by name, from these clips; none on processes other than the first."""
    sites = work.sites
    summed = [f"{kind}/{site.name}" for site in work.feed_forward for kind in ("gram", "felt")]
    state = work.state if summed and shards.rank() == 0 else None
    sums = shards.RunningSums(summed, None if state is None else state / BASIS_FOLDER / "sums")
    gathered = _gathered(
        work, based, "basis from", BASIS_FOLDER, 0,
        lambda batch, _first, generator, _say: _statistics(work, batch, generator),
        lambda parts: [_merged(parts)], summed, lambda tensors: sums.take(tensors.items()),
    )  # fmt: skip
    if shards.rank() != 0:
        return {}
    merged: Statistics = merge_statistics(*(statistics_from_tensors(part) for part in gathered)) if sites else {}
    tensors = _basis_tensors(choose_bases(sites, merged, work.scoring.basis))
    for site in work.feed_forward:
        work.report(f"order of the channels of {site.name}", len(based) / work.total)
        found = feed_forward_basis(site, sums.pop(f"gram/{site.name}"), sums.pop(f"felt/{site.name}"))
        tensors |= {f"{name}/{site.name}": value for name, value in vars(found).items()}
    return tensors


def _gathered(
    work: _Work,
    clips: LabelledInputs,
    text: str,
    folder: str,
    before: int,
    collect: Collect,
    fold: Callable[[list[shards.Tensors]], list[shards.Tensors]],
    summed: Sequence[str] = (),
    taken: Callable[[shards.Tensors], shards.Tensors] = lambda tensors: tensors,
) -> list[shards.Tensors]:
    """One pass, chunk by chunk; before: clips of the other pass that are done; taken: see `shards.gather`.

    fold: joins what batches gave, as far as that need not wait; summed: names of what is added up clip by clip.
    """
    scoring = work.scoring
    chunks = torch.arange(len(clips)).split(scoring.chunk)

    def say(clips_done: float) -> None:
        work.report(f"{text} {int(clips_done)}/{len(clips)} clips", (before + clips_done) / work.total)

    def progress(done: int, _all: int) -> None:
        say(min(done * scoring.chunk, len(clips)))

    def compute(number: int) -> shards.Tensors:
        seed = 1_000_003 * scoring.seed + number + (OTHER_SIGNS if folder == LOSSES_FOLDER else 0)
        generator = torch.Generator().manual_seed(seed)
        parts, sums = list[shards.Tensors](), shards.RunningSums(summed)
        for row in chunks[number].split(work.clips_at_once or scoring.chunk):
            say(int(row[0]))
            parts = fold([*parts, sums.take(collect(clips[row].trimmed(), int(row[0]), generator, say))])
            if work.feed_forward:  # whose Grams and hidden activations leave the heap in pieces
                give_back_heap()
        return {**(parts[0] if len(parts) == 1 else _added(parts)), **{name: sums.pop(name) for name in summed}}

    return shards.gather(
        len(chunks), compute, folder=None if work.state is None else work.state / folder, made_from=work.made_from,
        progress=progress, taken=taken,
    )  # fmt: skip


def _statistics(work: _Work, batch: LabelledInputs, generator: torch.Generator) -> Named:
    attended_keys = work.scoring.basis in ("attention", "fisher")
    passed = pass_through_all(
        work.model, work.sites, work.feed_forward, batch.inputs, batch.targets, work.family.logits,
        labels=work.scoring.labels, generator=generator,
    )  # fmt: skip
    yield from statistics_tensors(statistics_of(passed.attention, work.sites, batch.targets, attended_keys)).items()
    yield from feed_forward_sums(work.feed_forward, passed.feed_forward, before_the_end(batch.targets))


def _squares(
    work: _Work,
    bases: Mapping[str, SiteBasis],
    feed_forward: Mapping[str, FeedForwardBasis],
    batch: LabelledInputs,
    first: int,
    rows: range,
    generator: torch.Generator,
    say: Callable[[float], None],
) -> shards.Tensors:
    """Of every block, of which `say` is told; of feed-forward ones from clips of `rows`; first: of the batch."""
    judged = [number for number in range(len(batch)) if first + number in rows]
    blocks = work.feed_forward if judged else ()
    nothing = {site.name: torch.zeros(site.width + 1, dtype=torch.float64) for site in work.feed_forward}
    if not (work.sites or blocks):
        return nothing
    passed = pass_through_all(
        work.model, work.sites, blocks, batch.inputs, batch.targets, work.family.logits,
        labels=work.scoring.labels, query_gradients=False, generator=generator,
    )  # fmt: skip
    found: dict[str, torch.Tensor] = {}
    for number, (block, site) in enumerate(zip(passed.attention, work.sites, strict=True)):
        say(first + len(batch) * number / len(work.sites))
        found |= squares_of([block], [site], bases, work.grids, batch.targets)
    of_clips = [each.of_clips(judged) for each in passed.feed_forward]
    return {**found, **nothing, **feed_forward_squares(blocks, feed_forward, of_clips)}


def _merged(parts: Sequence[shards.Tensors]) -> shards.Tensors:
    """The statistics of several batches as of one; none where no attention is scored."""
    return statistics_tensors(merge_statistics(*map(statistics_from_tensors, parts))) if parts[0] else {}


def _added(parts: Sequence[shards.Tensors]) -> shards.Tensors:
    return {name: torch.stack([part[name] for part in parts]).sum(dim=0) for name in parts[0]}


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


def bases_of(tensors: Mapping[str, torch.Tensor], sites: Sequence[FeedForwardSite]) -> dict[str, FeedForwardBasis]:
    """The blocks' bases, of which every tensor is called by its field and its block."""
    fields = [field.name for field in dataclasses.fields(FeedForwardBasis)]
    return {s.name: FeedForwardBasis(**{field: tensors[f"{field}/{s.name}"] for field in fields}) for s in sites}
