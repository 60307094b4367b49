"""What scoring keeps of feed-forward blocks: on which clips they are scored, large sums, and tensors by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import torch

from leanear.calibration import shards
from leanear.calibration.feed_forward import FeedForwardBasis
from leanear.calibration.sites import FeedForwardSite

FEED_FORWARD_CLIPS = 64  # scored for feed-forward blocks, as far as they go those of which no basis is made


def scored_rows(clips: int, basis_clips: int) -> range:
    """The clips that feed-forward blocks are scored on: those after the basis' own, or the last."""
    start = max(0, min(basis_clips, clips - FEED_FORWARD_CLIPS))
    return range(start, min(start + FEED_FORWARD_CLIPS, clips))


class RunningSums:
    """Sums of the tensors of these names over chunks, which do not stay in memory: they are large."""

    def __init__(self, names: Iterable[str]) -> None:
        self._sums: dict[str, torch.Tensor | None] = dict.fromkeys(names)

    def take(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> shards.Tensors:
        """Add what is to be added as it comes; the others."""
        others = {}
        for name, tensor in tensors:
            if name in self._sums:
                so_far = self._sums[name]
                self._sums[name] = tensor if so_far is None else so_far.add_(tensor)
            else:
                others[name] = tensor
        return others

    def pop(self, name: str) -> torch.Tensor:
        """The sum, which is not kept any longer."""
        found = self._sums.pop(name)
        assert found is not None, name
        return found


def empty_squares_of(sites: Sequence[FeedForwardSite]) -> dict[str, torch.Tensor]:
    """All zeros in the shapes of what `feed_forward_squares` gives."""
    return {site.name: torch.zeros(site.width + 1, dtype=torch.float64) for site in sites}


def bases_of(tensors: Mapping[str, torch.Tensor], sites: Sequence[FeedForwardSite]) -> dict[str, FeedForwardBasis]:
    """The blocks' bases, of which every tensor is called by its field and its block."""
    fields = [field.name for field in dataclasses.fields(FeedForwardBasis)]
    return {s.name: FeedForwardBasis(**{field: tensors[f"{field}/{s.name}"] for field in fields}) for s in sites}


def empty_basis(site: FeedForwardSite) -> FeedForwardBasis:
    """Zeros in the shapes of the block's basis."""
    channels, outputs = site.width, site.second.out_features
    return FeedForwardBasis(
        order=torch.zeros(channels, dtype=torch.int64),
        mean=torch.zeros(channels, dtype=torch.float64),
        constant=torch.zeros(outputs, dtype=torch.float64),
        innovations=torch.zeros(channels, channels),
        output=torch.zeros(outputs, channels),
    )
