"""What a report says of the precision that ships: what was asked for, what its gate measured, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leanear.benchmarks.formatting import WORD_ERROR_RATE, runtime_text, threads_text
from leanear.benchmarks.report.page import Block, Paragraph, Section, Table
from leanear.benchmarks.summary import Interval, how_surely
from leanear.benchmarks.verdict import loss_of, loss_text
from leanear.runtimes.files import read_json

PRECISION_SCHEMA = "leanear-precision-1"
PRECISION_KEYS = ("asked", "ships", "drop_points", "metric", "gate", "trials", "slim_manifest_sha256")
PASSED, FAILED, NOT_GATED = "PASS", "FAIL", "NOT GATED"


def read_precision(path: Path) -> dict[str, Any]:
    """The content of a deployment's precision.json.

    Raises:
        BadInput: it is missing, is not JSON, or lacks a key.
    """
    return read_json(path, PRECISION_SCHEMA, PRECISION_KEYS)


def precision_sentences(document: dict[str, Any]) -> list[str]:
    """What was asked for, what each gate measured, and what ships."""
    asked, ships = document["asked"], document["ships"]
    if asked == ships:
        said = [f"The slim model ships in {ships}, as it was asked for."]
    else:
        said = [f"The slim model ships in {ships}, not in {asked} as it was asked for, because of the precision gate."]
    return [*said, *(trial_sentence(document, trial) for trial in document["trials"])]


def trial_sentence(document: dict[str, Any], trial: dict[str, Any]) -> str:
    """One precision at its gate."""
    precision, verdict = trial["precision"], trial["verdict"]
    if verdict == NOT_GATED:
        return f"{precision} was not gated: {trial['reason']}."
    if trial["change"] is None:
        return f"{precision} failed before its gate: {trial['reason']}."
    passed = "passed" if verdict == PASSED else "missed"
    clips = f"{document['gate']['clips']:,} calibration clips"
    differing = trial["differing"]
    answers = f"the answer is another one on {differing:,} of them" if differing else "no answer is another one"
    measured = f"{change_text(document, trial)} on {clips}, where {_limit(document)}"
    surely = how_surely(loss_of(read_change(trial), document["metric"]), document["drop_points"])
    return f"{precision} {passed} its gate: {measured}; {surely}; {answers}."


def change_text(document: dict[str, Any], trial: dict[str, Any]) -> str:
    """What of the metric is lost from float32, with its paired interval."""
    metric = document["metric"]
    return loss_text(loss_of(read_change(trial), metric), f"{metric} against fp32")


def read_change(trial: dict[str, Any]) -> Interval:
    """A trial's change of the metric, a share; without an interval where the file has none."""
    change = trial["change"]
    estimate = change["estimate"]
    low, high = (estimate if change[end] is None else change[end] for end in ("low", "high"))
    return Interval(estimate, low, high)


def precision_section(document: dict[str, Any]) -> Section:
    """The gate's table, and what was compared with what."""
    asked, ships = document["asked"], document["ships"]
    blocks: list[Block] = [
        Paragraph(f"Asked for: {asked}. Ships: {ships}.", "" if asked == ships else "warning"),
        *(
            Paragraph(f"{trial['precision']}: {trial['reason']}.", "warning")
            for trial in document["trials"]
            if trial["reason"]
        ),
    ]
    rows = tuple(_trial_row(trial, document["metric"]) for trial in document["trials"])
    header = (
        "precision",
        f"{document['metric']}, fp32",
        f"{document['metric']}, in this",
        "lost",
        "other answers",
        "verdict",
    )
    blocks.append(Table("The slim model in each precision that was tried", header, rows))
    if document["gate"]["clips"]:
        blocks.append(Paragraph(_gate_text(document)))
    return Section("Precision", tuple(blocks))


def _trial_row(trial: dict[str, Any], metric: str) -> tuple[str, ...]:
    change = trial["change"]
    if change is None:
        return (trial["precision"], *("not measured",) * 4, trial["verdict"])
    moved = loss_text(loss_of(read_change(trial), metric))
    shares = (f"{trial['reference']:.2%}", f"{trial['measured']:.2%}")
    return (trial["precision"], *shares, moved, f"{trial['differing']:,}", trial["verdict"])


def _gate_text(document: dict[str, Any]) -> str:
    gate = document["gate"]
    where = f"{runtime_text(gate['runtime'])}, {threads_text(gate['threads'])}, on {gate['device']}"
    note = f" {gate['note']}" if gate["note"] else ""
    return (
        f"The gate runs the slim model in each precision and in fp32 ({where}) on {gate['clips']:,} calibration clips, "
        f"of which none is among the {gate['quantiser_clips']:,} that products in 8 bits may be calibrated on, nor "
        f"among the evaluation clips. The point estimate decides: {_limit(document)}. {_interval_text(document)}{note}"
    )


def _interval_text(document: dict[str, Any]) -> str:
    if document["metric"] == "accuracy":
        return "The interval is Tango's score interval of paired shares."
    return "The interval is a bootstrap over clips."


def _limit(document: dict[str, Any]) -> str:
    points = "point" if document["drop_points"] == 1 else "points"
    moved = "added" if document["metric"] == WORD_ERROR_RATE else "lost"
    return f"at most {document['drop_points']:g} {points} may be {moved}"
