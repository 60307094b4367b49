"""comparison.json: what `leanear compare-methods` found, as the dataclasses that it is written from and read into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from leanear.benchmarks.formatting import WORD_ERROR_RATE
from leanear.benchmarks.summary import Interval
from leanear.benchmarks.tagging import MEAN_AP
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_json
from leanear.runtimes.records import read

COMPARISON_SCHEMA = "leanear-comparison-2"
DENSE = "dense"
ACCURACY = "accuracy"
Measure = Literal["kl_divergence", "cross_entropy_change", "excess_error"]
ANY_SEED = -1
"""The seed of rows of methods that ignore it."""


@dataclass(frozen=True)
class Row:
    """What a method made of the calibration clips of a seed, and how well it answers the evaluation clips.

    asked: the sparsity that was asked for; sparsity: what was removed of the attention parameters; parameters, macs: of
    the whole model, MACs of one inference as its family counts them; by_kind: the share that was removed of the
    attention of every kind; errors: of `counted` labels or words, or what lacks of a mean average precision of 1;
    cross_entropy, kl_divergence: means in nats; updates: of training; seconds: of pruning alone, all that it needs.
    """

    method: str
    asked: float
    seed: int
    sparsity: float
    attention_parameters: int
    parameters: int
    macs: int
    by_kind: dict[str, float]
    clips: int
    counted: float
    errors: float
    cross_entropy: float
    kl_divergence: float
    updates: int
    seconds: float


@dataclass(frozen=True)
class OutOfReach:
    """A method that cannot remove that much of this model, and why."""

    method: str
    asked: float
    seed: int
    reason: str


@dataclass(frozen=True)
class ErrorRate:
    """The errors of a method at a sparsity over what is counted, the mean over seeds, with its 95 % interval."""

    method: str
    asked: float
    rate: Interval


@dataclass(frozen=True)
class Ratio:
    """The damage of the method `ours` over that of the competitor `theirs`, both at the same sparsity asked for.

    measure: what of them is compared; our_mean, their_mean: over clips and seeds, with intervals; ratio: of the means,
    with a paired interval, or None where `theirs` cannot be told from no damage; seeds: that both have.
    """

    ours: str
    theirs: str
    asked: float
    measure: Measure
    our_mean: Interval
    their_mean: Interval
    ratio: Interval | None
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class MethodsTable:
    """All rows, in one shot or trained, and what follows from them."""

    error_rates: tuple[ErrorRate, ...]
    rows: tuple[Row, ...]
    out_of_reach: tuple[OutOfReach, ...]
    ratios: tuple[Ratio, ...]


@dataclass(frozen=True)
class TimedRow:
    """The latency of a method's model at a sparsity, ms."""

    method: str
    asked: float
    seed: int
    sparsity: float
    median_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float
    samples: int


@dataclass(frozen=True)
class MethodsLatency:
    """Latencies on a target; others_share: of all cores, that other programs used meanwhile."""

    target: str
    runtime: str
    precision: str
    threads: int
    others_share: float
    device: str
    rows: tuple[TimedRow, ...]


@dataclass(frozen=True)
class Calibration:
    """The calibration clips: how many there are, how many of them each seed draws, and where they come from."""

    pool: int
    clips: int
    seed: int
    split: str


@dataclass(frozen=True)
class Evaluation:
    clips: int


@dataclass(frozen=True)
class MethodFacts:
    """drawn: whether the method depends on which clips were drawn."""

    name: str
    group: str
    about: str
    drawn: bool


@dataclass(frozen=True)
class ComparisonDocument:
    """The whole of it. bundle_sparsity: of one channel of every head of a block; published, drawn: names of methods."""

    schema: str
    model: str
    made_from: dict[str, str]
    command: tuple[str, ...]
    calibration: Calibration
    evaluation: Evaluation
    metric: Annotated[str, (ACCURACY, MEAN_AP, WORD_ERROR_RATE)]
    prune: Literal["attention", "feed-forward", "all"]
    bundle_sparsity: float
    default: str
    published: tuple[str, ...]
    drawn: tuple[str, ...]
    methods: tuple[MethodFacts, ...]
    one_shot: MethodsTable
    recovery: MethodsTable | None
    latency: MethodsLatency | None


def read_comparison(path: Path) -> ComparisonDocument:
    """A comparison.json.

    Raises:
        BadInput: it is missing, or is not what it should be.
    """
    document = read(ComparisonDocument, read_json(path, COMPARISON_SCHEMA), path)
    if not any(row.method == DENSE for row in document.one_shot.rows):
        raise BadInput(f"{path}: there is no row of the dense model")
    return document
