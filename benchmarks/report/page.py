"""What a page of a report is made of, before it is put into a format, and blocks that several sections have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence, Union

from leanear.benchmarks.analysis import Analysis
from leanear.benchmarks.report.drawing.plotting import Picture
from leanear.benchmarks.results_document import Part
from leanear.benchmarks.summary import Gate
from leanear.benchmarks.verdict import Verdict

MOST_COLUMNS, MOST_LETTERS, LONGEST_LINE = 4, 60, 24


@dataclass(frozen=True)
class Paragraph:
    """Plain text. tone: "" or "warning"."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; the first column names the row. folded: shown on demand where the format can."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False

    @property
    def wordy(self) -> bool:
        """Whether its cells hold sentences and not figures, so that they read better aligned to the left."""
        return len(self.header) == 2 or any(len(cell) > 44 for row in self.rows for cell in row[1:])

    @property
    def has_many_columns(self) -> bool:
        """Whether it has more columns than a telephone is wide enough for, so that its rows become paragraphs there."""
        longest = [max(len(row[place]) for row in (self.header, *self.rows)) for place in range(len(self.header))]
        letters = sum(min(length, LONGEST_LINE) for length in longest)
        return len(self.header) > 2 and (letters > MOST_LETTERS or len(self.header) > MOST_COLUMNS)


def figures(caption: str, rows: Sequence[str], columns: Sequence[tuple[str, ...]]) -> Table:
    """A table with a column for each of a few things with many figures; columns: the name, and what `rows` name."""
    header = ("", *(column[0] for column in columns))
    body = tuple((name, *(column[place] for column in columns)) for place, name in enumerate(rows, 1))
    return Table(caption, header, body)


@dataclass(frozen=True)
class Log:
    """Lines as they are: the end of a failed process's log, or commands."""

    text: str


Block = Union[Paragraph, Table, Picture, Log]


@dataclass(frozen=True)
class Section:
    """A titled part of the report."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Card:
    """One headline figure. tone: "good", "bad", or "" (grey) where it is neither or not to be trusted."""

    figure: str
    what: str
    detail: str
    tone: str = ""


@dataclass(frozen=True)
class Report:
    """A whole report before it is put into a format.

    gate: its verdict, or None where no gate was set; verdict: what is read first, in words; warning: what is read
    even before it; kind: what sort of report it is; origin: what it was written from.
    """

    title: str
    subtitle: str
    summary: str
    cards: tuple[Card, ...]
    gate: Gate | None
    sections: tuple[Section, ...]
    verdict: Verdict | None = None
    warning: str = ""
    kind: str = "Deployment report"
    origin: str = "Written by leanear from a results file that keeps every raw sample."


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
