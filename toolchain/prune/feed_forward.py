"""What scoring keeps of feed-forward blocks: on which clips they are scored, large sums, and tensors by name."""

import dataclasses
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
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
    """Sums of the tensors of these names over chunks, which do not stay in memory: they are large.

    folder: where the sums are from one chunk to the next; None: in memory.
    """

    def __init__(self, names: Iterable[str], folder: Path | None = None) -> None:
        self._names, self._folder, self._sums = set(names), folder, dict[str, torch.Tensor]()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
            folder.mkdir(parents=True)

    def take(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> shards.Tensors:
        """Add what is to be added as it comes; the others."""
        others = {}
        for name, tensor in tensors:
            if name not in self._names:
                others[name] = tensor
                continue
            so_far = self._taken_out(name)
            total = tensor if so_far is None else so_far.add_(tensor)
            if self._folder is None:
                self._sums[name] = total
            else:
                np.save(self._file(name), total.numpy())
        return others

    def pop(self, name: str) -> torch.Tensor:
        """The sum, which is not kept any longer."""
        found = self._taken_out(name)
        assert found is not None, name
        if self._folder is not None and not any(self._folder.iterdir()):
            self._folder.rmdir()
        return found

    def _taken_out(self, name: str) -> torch.Tensor | None:
        if self._folder is None or not self._file(name).exists():
            return self._sums.pop(name, None)
        found = torch.from_numpy(np.load(self._file(name), allow_pickle=False))
        self._file(name).unlink()
        return found

    def _file(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{name.replace('/', '-')}.npy"


def empty_squares_of(sites: Sequence[FeedForwardSite]) -> dict[str, torch.Tensor]:
    """All zeros in the shapes of what `feed_forward_squares` gives."""
    return {site.name: torch.zeros(site.width + 1, dtype=torch.float64) for site in sites}


def bases_of(tensors: Mapping[str, torch.Tensor], sites: Sequence[FeedForwardSite]) -> dict[str, FeedForwardBasis]:
    """The blocks' bases, of which every tensor is called by its field and its block."""
    fields = [field.name for field in dataclasses.fields(FeedForwardBasis)]
    return {s.name: FeedForwardBasis(**{field: tensors[f"{field}/{s.name}"] for field in fields}) for s in sites}
