"""pruning.json made up by hand, as the dataclass that it is read into."""

from __future__ import annotations

from typing import Any

from leanear.evaluate.measured_loss import MeasuredLoss
from leanear.prune.closed_loop import BlockLoss, Round
from leanear.prune.document import Loss, PruningDocument
from leanear.prune.recipe import Goal
from leanear.recover.compensation import Compensated, CompensatedBlock
from leanear.recover.kept_training import Distilled

NOTHING_LOST = MeasuredLoss(50, None, 5.0, 5.0, 100.0, None, None, 100.0)


def pruning_document(loss: Loss | MeasuredLoss = NOTHING_LOST, **changes: Any) -> PruningDocument:
    """Half of a classifier's attention removed; loss: also that of the finished model alone."""
    facts: dict[str, Any] = {
        "metric": "accuracy", "goal": Goal("sparsity", 0.5), "prune": "attention", "parameters_dense": 1000,
        "sparsity": 0.5, "by_kind": {"encoder": 0.5}, "method": "rotated", "calibration_clips": 256,
        "loss": loss if isinstance(loss, Loss) else Loss(finished=loss),
    }  # fmt: skip
    return PruningDocument(**{**facts, **changes})


def round_of(estimated: float, measured: float, blocks: dict[str, tuple[float, float]] | None = None) -> Round:
    """One round at some cost; blocks: estimated and measured, by name."""
    return Round(estimated, measured, 30.0, tuple(BlockLoss(name, *pair) for name, pair in (blocks or {}).items()))


def compensated(*kept: bool) -> Compensated:
    """A compensation of blocks whose change was kept or not."""
    blocks = tuple(CompensatedBlock(f"layers.{n}.attention", 0.1, 0.5, 0.4, each) for n, each in enumerate(kept))
    return Compensated(blocks, 0.3, 0.2)


def distilled(updates: int = 1, kls: tuple[float, ...] = (), best: int = 0) -> Distilled:
    """A recovery that went through these divergences of held-out clips."""
    return Distilled(updates, kls[1:], kls, best, "no more epochs")
