"""The document pruning.json: how a slim model came about, as the stages of its pruning tell it."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from leanear.evaluate.measured_loss import MeasuredLoss
from leanear.families.checkpoint_files import PRUNING_FILE
from leanear.families.whisper import AlignmentHeads
from leanear.plan import Prune
from leanear.prune.closed_loop import Round
from leanear.prune.latency_goal import LatencyCheck
from leanear.prune.recipe import Goal
from leanear.prune.search import Trial
from leanear.recover.compensation import Compensated
from leanear.recover.kept_training import Distilled
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_json
from leanear.runtimes.records import read
from leanear.timing.model_timing import Timed

PRUNING_SCHEMA = "leanear-pruning-1"


@dataclass(frozen=True)
class Widths:
    """What widths of heads may be: multiples, of query/key and of value/output; whether the two are one.

    not_filled_up_by: the form of graph in which no head may be filled up to the width of others, None where any may.
    """

    multiples: tuple[int, int]
    one_per_head: bool
    not_filled_up_by: str | None


@dataclass(frozen=True)
class Cost:
    """What the goal is counted in, of the dense model and the slim one, and what it may be."""

    unit: str
    dense: float
    budget: float
    slim: float


@dataclass(frozen=True)
class CurvePoint:
    """What a model of another size would lose, estimated, nats per target."""

    sparsity: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What was lost: of the finished model; before, of method rotated, as estimated and round by round.

    shots: in how many parts it was pruned, if in several; rounds: of the last one; best: the one that was taken; curve,
    begins_at: of other budgets, and where a loss that matters begins, by the corrected estimates of the dense model.
    """

    estimated: float | None = None
    shots: int | None = None
    rounds: tuple[Round, ...] = ()
    best: int = 0
    curve: tuple[CurvePoint, ...] = ()
    begins_at: float | None = None
    finished: MeasuredLoss
    OMIT_NONE: ClassVar[tuple[str, ...]] = ("estimated", "shots", "begins_at")

    @property
    def measured(self) -> float | None:
        """What was measured of the round that was taken, before anything was fitted."""
        return self.rounds[self.best].measured if self.rounds else None


@dataclass(frozen=True, kw_only=True)
class PruningDocument:
    """pruning.json. metric: what mistakes count against; parameters_dense: of the dense model; sparsity: the plan's.

    by_kind: shares of attention parameters that are gone, by kind of block; feed_forward_by_kind: of channels; search:
    of a goal in points; latency_checks, timed: of one in milliseconds; compensation: of the plan that was taken;
    calibration_clips: with those held out; alignment_heads: of a Whisper.
    """

    schema: str = PRUNING_SCHEMA
    metric: str
    goal: Goal
    prune: Prune
    parameters_dense: int
    sparsity: float
    by_kind: dict[str, float]
    feed_forward_by_kind: dict[str, float] | None = None
    method: Literal["rotated", "reference"]
    widths: Widths | None = None
    latency_checks: tuple[LatencyCheck, ...] | None = None
    timed: Timed | None = None
    search: tuple[Trial, ...] | None = None
    compensation: Compensated | None = None
    cost: Cost | None = None
    loss: Loss
    recovery: Distilled | None = None
    calibration_clips: int
    alignment_heads: AlignmentHeads | None = None
    OMIT_NONE: ClassVar[tuple[str, ...]] = (
        "feed_forward_by_kind", "widths", "latency_checks", "timed", "search", "compensation", "cost", "recovery",
        "alignment_heads",
    )  # fmt: skip


def read_pruning(folder: Path) -> PruningDocument | None:
    """pruning.json of a slim checkpoint folder; None where there is none.

    Raises:
        BadInput: it is not what it should be.
    """
    path = folder / PRUNING_FILE
    if not path.is_file():
        return None
    pruning = read(PruningDocument, read_json(path, PRUNING_SCHEMA), path)
    for key, is_sound in _sound_values(pruning).items():
        if not is_sound:
            raise BadInput(f"{path}: {key} does not go with the rest of the file")
    return pruning


def _sound_values(pruning: PruningDocument) -> dict[str, bool]:
    """Whether the values by which others are looked up or divided can be: by key."""
    loss, recovery = pruning.loss, pruning.recovery
    best_epoch = 0 if recovery is None else recovery.best_epoch
    epochs = 1 if recovery is None else len(recovery.held_out_kls) or 1
    kinds, of_feed_forward = set(pruning.by_kind), set(pruning.feed_forward_by_kind or ())
    return {
        "sparsity": 0 <= pruning.sparsity <= 1,
        "by_kind": bool(kinds) and kinds <= {"encoder", "decoder", "cross"},
        "feed_forward_by_kind": not of_feed_forward or of_feed_forward == kinds - {"cross"},
        "loss.best": 0 <= loss.best < max(len(loss.rounds), 1),
        "loss.finished.counted": loss.finished.counted > 0,
        "recovery.best_epoch": 0 <= best_epoch < epochs,
    }
