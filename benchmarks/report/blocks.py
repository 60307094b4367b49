"""Blocks that several sections of a report are made of."""

from __future__ import annotations

from typing import Sequence

from leanear.benchmarks.analysis import Analysis
from leanear.benchmarks.report.page import Block, Log, Paragraph, Table
from leanear.benchmarks.results_document import Part
from leanear.benchmarks.summary import Gate


def unmeasured(part: Part) -> tuple[Block, ...]:
    """Why a part of the results has no figures, and the end of its log."""
    said = f"{part.status.capitalize()}: {part.reason}."
    blocks: list[Block] = [Paragraph(said, "warning")]
    if part.log_tail:
        blocks.append(Log("\n".join(part.log_tail)))
    return tuple(blocks)


def comparison_table(analysis: Analysis, caption: str, rows: Sequence[tuple[str, str, str, str]]) -> Table:
    """The rows of `comparison_row` as a table, or its one column of values where there is nothing to compare with."""
    if analysis.paired:
        return Table(caption, ("", "dense", "slim", "slim ÷ dense"), tuple(rows))
    return Table(caption, ("", "model"), tuple((row[0], row[2]) for row in rows))


def gate_paragraph(gate: Gate) -> Paragraph:
    """The gate's verdict and the sentence that says why."""
    tone = "" if gate.verdict == "PASS" else "warning"
    return Paragraph(f"Gate: {gate.verdict}. {gate.sentence[0].upper()}{gate.sentence[1:]}.", tone)
