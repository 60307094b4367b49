"""A comparison of two results files for its readers: cells and sentences for a terminal, and a page like a report's."""

from __future__ import annotations

from typing import Any, Callable

from leanear.benchmarks.compare.compare import (
    EXCEEDED,
    KEPT,
    UNCERTAIN,
    Comparison,
    Judgement,
    judgement_sentence,
    loss_of_row,
)
from leanear.benchmarks.compare.compare_circumstances import Circumstance
from leanear.benchmarks.compare.compare_rows import BETTER, NOT_MEASURED, WORSE, Row, Side
from leanear.benchmarks.formatting import count, fact_name, fact_text, megabytes, milliseconds, runtime_text
from leanear.benchmarks.report.page import Block, Card, Paragraph, Report, Section, Table
from leanear.benchmarks.verdict import Verdict, points_moved, span_text

HEADER = ("", "A", "B", "change", "95% interval", "verdict")
SHORT_HASH = 12
MAIN = ("device", "runtime", "precision", "threads", "leanear", "model", "evaluation clips")
STATES = {EXCEEDED: "exceeded", UNCERTAIN: "beyond it, but that may be chance", KEPT: "kept"}
SURELY = {True: ", by the whole interval", False: ", by the point alone", None: ""}


def row_cells(row: Row, comparison: Comparison) -> tuple[str, ...]:
    """A row of the table under HEADER."""
    unit = row.what.unit
    values = tuple("not measured" if value is None else _value(unit, value) for value in (row.a, row.b))
    return (row.what.name, *values, _change(row), _interval(row), _verdict(row, comparison))


def side_sentence(side: Side) -> str:
    """Which measurement a side is."""
    document = side.content
    model = document.artifacts[side.role].model.get("source") or document.artifacts[side.role].folder
    runtime = f"{runtime_text(document.runtime)} {side.results.precisions[side.role]}"
    role = f"{side.role} of " if len(side.results.roles) > 1 else ""
    where, when = document.device_name, document.finished_utc[:16].replace("T", " ")
    return f"{side.name}: {side.results.path} ({role}{model}, {runtime}, {where}, {when})"


def said_of(comparison: Comparison) -> list[str]:
    """What the table cannot say, a sentence each: doubts, devices, differences, what is missing, and the bounds."""
    said = [f"not to be trusted: {doubt}" for doubt in comparison.all_doubts]
    if comparison.two_devices:
        said.append(f"two devices: {'; '.join(comparison.two_devices)}")
    said += [f"differs: {_difference(each)}" for each in comparison.circumstances if not each.same]
    same = [each.name for each in comparison.circumstances if each.same and each.name in MAIN and each.a is not None]
    if same:
        said.append(f"the same: {', '.join(same)}")
    said += [f"not measured: {row.what.name}: {row.note}" for row in comparison.rows if row.verdict == NOT_MEASURED]
    said += [
        f"bound: {judgement_sentence(judgement)}: {_state_text(judgement)}"
        for judgement in comparison.judgements
        if judgement.state != NOT_MEASURED
    ]
    return said


def _state_text(judgement: Judgement) -> str:
    """Whether a bound is kept, and whether by the whole interval; of what may be chance nothing more needs saying."""
    if judgement.state not in (KEPT, EXCEEDED):
        return STATES.get(judgement.state, judgement.state)
    return STATES[judgement.state] + SURELY[judgement.is_sure]


def verdict_sentence(comparison: Comparison, strict: bool) -> str:
    """How it ends, in one sentence."""
    failure = comparison.failure(strict)
    if failure is not None:
        return f"{failure}."
    missing = [row.what.name for row in comparison.unknown]
    untold = f" Not measured, so not judged: {', '.join(missing)}." if missing else ""
    doubt = " The timings are not to be trusted." if comparison.judged_doubts else ""
    return f"Nothing is worse in B than in A beyond its bound.{untold}{doubt}"


def comparison_page(comparison: Comparison, strict: bool) -> Report:
    """The comparison as a report's page."""
    a, b = comparison.sides
    doubts = tuple(Paragraph(f"Not to be trusted: {doubt}.", "warning") for doubt in comparison.all_doubts)
    table = Table("", HEADER, tuple(row_cells(row, comparison) for row in comparison.rows))
    notes = Table("How it was compared", ("", ""), tuple((row.what.name, row.note) for row in comparison.rows))
    bounds = tuple(
        (judgement.row.what.name, judgement_sentence(judgement), _state_text(judgement))
        for judgement in comparison.judgements
    )
    blocks: list[Block] = [*doubts, table, *_process_table(comparison), notes]
    circumstances = tuple(
        (fact_name(each.name), *_texts(each), "the same" if each.same else "differs")
        for each in comparison.circumstances
    )
    devices = "Two devices" if comparison.two_devices else "One device, or two of a kind"
    return Report(
        title="B against A",
        subtitle="A is before, B is after",
        verdict=_headline(comparison, strict),
        summary=" ".join(f"{side_sentence(side)}." for side in (a, b)),
        cards=tuple(_card(judgement.row, comparison) for judgement in comparison.judgements),
        gate=None,
        sections=(
            Section("What changed", tuple(blocks)),
            Section("Bounds", (Table("", ("", "", ""), bounds),)),
            Section("Circumstances", (Paragraph(f"{devices}."), Table("", ("", "A", "B", ""), circumstances))),
        ),
        kind="Comparison",
        origin="Written by leanear from two results files, which keep every raw sample.",
    )


def _headline(comparison: Comparison, strict: bool) -> Verdict:
    tone = "" if comparison.judged_doubts or comparison.unknown else "good"
    worse = comparison.failure(strict) is not None and not comparison.judged_doubts
    return Verdict(verdict_sentence(comparison, strict), "bad" if worse else tone)


def _process_table(comparison: Comparison) -> list[Block]:
    rows = []
    for row in comparison.rows:
        if row.by_process is not None:
            rows.append((row.what.name, *(", ".join(f"{median:.2f}" for median in side) for side in row.by_process)))
    return [Table("Each process's own median, ms", ("", "A", "B"), tuple(rows))] if rows else []


def _card(row: Row, comparison: Comparison) -> Card:
    tone = {BETTER: "good", WORSE: "bad"}.get(row.verdict, "") if comparison.trusts(row) else ""
    return Card(_change(row), row.what.name, _verdict(row, comparison), tone)


def _value(unit: str, value: float) -> str:
    texts: dict[str, Callable[[float], str]] = {
        "ms": milliseconds,
        "bytes": megabytes,
        "count": count,
        "share": lambda share: f"{share:.2%}",
        "ratio": lambda ratio: f"{ratio:.4f}",
        "J": lambda joules: f"{1000 * joules:.3g} mJ",
    }
    return texts[unit](value)


def _change(row: Row) -> str:
    if row.change is None:
        return "-"
    return f"{row.change:.3f}×" if row.what.relative else points_moved(loss_of_row(row).estimate)


def _interval(row: Row) -> str:
    if row.low is None or row.high is None:
        return "-"
    return f"{row.low:.3f} to {row.high:.3f}" if row.what.relative else span_text(loss_of_row(row))


def _verdict(row: Row, comparison: Comparison) -> str:
    doubtful = row.verdict != NOT_MEASURED and not comparison.trusts(row)
    return f"{row.verdict}, not trusted" if doubtful else row.verdict


def _difference(each: Circumstance) -> str:
    a, b = _texts(each)
    return f"{fact_name(each.name)}: {a} in A, {b} in B"


def _texts(each: Circumstance) -> tuple[str, str]:
    """What both say; of two objects only what differs between them."""
    a, b = each.a, each.b
    if isinstance(a, dict) and isinstance(b, dict) and a != b and "status" not in (*a, *b):
        keys = [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
        a, b = ({key: side[key] for key in keys if key in side} for side in (a, b))
    return _text(each.name, a), _text(each.name, b)


def _text(name: str, value: Any) -> str:
    if value is None:
        return "not said"
    text = fact_text(name, value)
    return ", ".join(_short(part) for part in text.split(", "))


def _short(text: str) -> str:
    """A hash by its beginning, anything else whole."""
    words = [word[:SHORT_HASH] if len(word) == 64 and word.isalnum() else word for word in text.split(" ")]
    return " ".join(words)
