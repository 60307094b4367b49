"""What a page of a report is made of, before it is put into a format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from leanear.benchmarks.report.pictures import Picture
from leanear.benchmarks.summary import Gate


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


@dataclass(frozen=True)
class Log:
    """The end of a failed process's log."""

    text: str


Block = Union[Paragraph, Table, Picture, Log]


@dataclass(frozen=True)
class Section:
    """A titled part of the report."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Card:
    """One headline figure. tone: "good", "bad", "flat" or ""."""

    figure: str
    what: str
    detail: str
    tone: str = ""


@dataclass(frozen=True)
class Report:
    """A whole report before it is put into a format.

    gate: its verdict, or None where no gate was set; warning: what is read before all else, or nothing; kind: what sort
    of report it is; origin: what it was written from.
    """

    title: str
    subtitle: str
    summary: str
    cards: tuple[Card, ...]
    gate: Gate | None
    sections: tuple[Section, ...]
    warning: str = ""
    kind: str = "Deployment report"
    origin: str = "Written by leanear from a results file that keeps every raw sample."
