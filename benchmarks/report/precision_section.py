"""What a report says of the precision that ships: what was asked for, what its gate measured, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional, Tuple

from leanear.benchmarks.formatting import WORD_ERROR_RATE, runtime_text, threads_text
from leanear.benchmarks.report.page import Block, Paragraph, Section, Table
from leanear.benchmarks.summary import Interval, how_surely
from leanear.benchmarks.verdict import loss_of, loss_text
from leanear.runtimes.files import read_json
from leanear.runtimes.records import read

PRECISION_SCHEMA = "leanear-precision-1"
Outcome = Literal["PASS", "FAIL", "NOT GATED"]
PASSED: Outcome = "PASS"
FAILED: Outcome = "FAIL"
NOT_GATED: Outcome = "NOT GATED"


@dataclass(frozen=True)
class Change:
    """A change of the metric, a share, with its paired 95% interval; no ends where none could be resampled."""

    estimate: float
    low: Optional[float]
    high: Optional[float]

    @property
    def interval(self) -> Interval:
        """The same; without a spread where there is no interval."""
        return Interval(self.estimate, *(self.estimate if end is None else end for end in (self.low, self.high)))


@dataclass(frozen=True)
class Compared:
    """The metric of two sets of answers, its change, and how many of them differ."""

    reference: float
    measured: float
    change: Change
    differing: int


@dataclass(frozen=True)
class Trial:
    """One precision at its gate. reason: why it was not judged by its answers, which then were not compared."""

    precision: str
    verdict: Outcome
    reason: str = ""
    reference: Optional[float] = None
    measured: Optional[float] = None
    change: Optional[Change] = None
    differing: Optional[int] = None


@dataclass(frozen=True)
class GateFacts:
    """Where the gate was held, and on how many clips of its own; quantiser_clips: those of the quantiser."""

    runtime: str
    threads: int
    device: str
    clips: int
    quantiser_clips: int
    note: str


@dataclass(frozen=True)
class PrecisionDocument:
    """precision.json: what was asked for, what ships, and each precision that was tried, in turn."""

    schema: str
    asked: str
    ships: str
    drop_points: float
    metric: str
    gate: GateFacts
    trials: Tuple[Trial, ...]
    slim_manifest_sha256: str


def read_precision(path: Path) -> PrecisionDocument:
    """A deployment's precision.json.

    Raises:
        BadInput: it is missing, or is not what it should be.
    """
    return read(PrecisionDocument, read_json(path, PRECISION_SCHEMA), path)


def precision_sentences(document: PrecisionDocument) -> list[str]:
    """What was asked for, what each gate measured, and what ships."""
    asked, ships = document.asked, document.ships
    if asked == ships:
        said = [f"The slim model ships in {ships}, as it was asked for."]
    else:
        said = [f"The slim model ships in {ships}, not in {asked} as it was asked for, because of the precision gate."]
    return [*said, *(trial_sentence(document, trial) for trial in document.trials)]


def trial_sentence(document: PrecisionDocument, trial: Trial) -> str:
    """One precision at its gate."""
    if trial.verdict == NOT_GATED:
        return f"{trial.precision} was not gated: {trial.reason}."
    if trial.change is None:
        return f"{trial.precision} failed before its gate: {trial.reason}."
    passed = "passed" if trial.verdict == PASSED else "missed"
    clips = f"{document.gate.clips:,} calibration clips"
    differing = trial.differing
    answers = f"the answer is another one on {differing:,} of them" if differing else "no answer is another one"
    loss = loss_of(trial.change.interval, document.metric)
    measured = f"{loss_text(loss, f'{document.metric} against fp32')} on {clips}, where {_limit(document)}"
    return f"{trial.precision} {passed} its gate: {measured}; {how_surely(loss, document.drop_points)}; {answers}."


def precision_section(document: PrecisionDocument) -> Section:
    """The gate's table, and what was compared with what."""
    asked, ships, metric = document.asked, document.ships, document.metric
    blocks: list[Block] = [
        Paragraph(f"Asked for: {asked}. Ships: {ships}.", "" if asked == ships else "warning"),
        *(Paragraph(f"{trial.precision}: {trial.reason}.", "warning") for trial in document.trials if trial.reason),
    ]
    rows = tuple(_trial_row(trial, metric) for trial in document.trials)
    header = ("precision", f"{metric}, fp32", f"{metric}, in this", "lost", "other answers", "verdict")
    blocks.append(Table("The slim model in each precision that was tried", header, rows))
    if document.gate.clips:
        blocks.append(Paragraph(_gate_text(document)))
    return Section("Precision", tuple(blocks))


def _trial_row(trial: Trial, metric: str) -> tuple[str, ...]:
    if trial.change is None:
        return (trial.precision, *("not measured",) * 4, trial.verdict)
    moved = loss_text(loss_of(trial.change.interval, metric))
    shares = (f"{trial.reference:.2%}", f"{trial.measured:.2%}")
    return (trial.precision, *shares, moved, f"{trial.differing:,}", trial.verdict)


def _gate_text(document: PrecisionDocument) -> str:
    gate = document.gate
    where = f"{runtime_text(gate.runtime)}, {threads_text(gate.threads)}, on {gate.device}"
    note = f" {gate.note}" if gate.note else ""
    interval = "Tango's score interval of paired shares" if document.metric == "accuracy" else "a bootstrap over clips"
    return (
        f"The gate runs the slim model in each precision and in fp32 ({where}) on {gate.clips:,} calibration clips, "
        f"of which none is among the {gate.quantiser_clips:,} that products in 8 bits may be calibrated on, nor "
        f"among the evaluation clips. The point estimate decides: {_limit(document)}. The interval is {interval}.{note}"
    )


def _limit(document: PrecisionDocument) -> str:
    points = "point" if document.drop_points == 1 else "points"
    moved = "added" if document.metric == WORD_ERROR_RATE else "lost"
    return f"at most {document.drop_points:g} {points} may be {moved}"
