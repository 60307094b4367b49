"""A report from results: its sections in the order in which they are read, whatever the page's format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable

from leanear.benchmarks.analysis import Analysis, analyse
from leanear.benchmarks.formatting import precisions_text, runtime_text, threads_text
from leanear.benchmarks.measure.engine_check import figures_text
from leanear.benchmarks.report.accuracy_section import accuracy_section, tags_section
from leanear.benchmarks.report.headline import headline_cards, headline_verdict, summary_sentences
from leanear.benchmarks.report.latency_section import latency_section
from leanear.benchmarks.report.origin_sections import (
    environment_section,
    method_section,
    missing_section,
    provenance_section,
)
from leanear.benchmarks.report.page import Block, Log, Paragraph, Report, Section, Table
from leanear.benchmarks.report.precision_section import PrecisionDocument, precision_section, precision_sentences
from leanear.benchmarks.report.size_sections import memory_section, size_section, widths_section
from leanear.benchmarks.report.speech_sections import recordings_section, stages_section, words_section
from leanear.benchmarks.report.state_section import state_section
from leanear.benchmarks.results import Results
from leanear.benchmarks.summary import Gate, judge_gate, judge_word_gate
from leanear.benchmarks.verdict import Verdict


@dataclass(frozen=True)
class Extra:
    """What a report may say beyond its results.

    title: of the page; provenance: name to text; notes: sentences that the reader should see first; warning: what must
    be read before all.
    """

    title: str = ""
    provenance: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warning: str = ""


NOTHING_MORE = Extra()


def compose_report(
    results: Results,
    *,
    plan: dict[str, Any] | None,
    max_drop: float | None,
    extra: Extra,
    precision: PrecisionDocument | None = None,
    loss: Section | None = None,
) -> Report:
    """The report of a results file.

    plan, precision: the content of plan.json and of precision.json; max_drop: the gate in points of accuracy, of mAP or
    of word error rate; loss: the section on what pruning was measured to cost.
    """
    analysis = analyse(results)
    gate = None if max_drop is None else _judge(analysis, max_drop)
    makers: list[Callable[[], Section | None]] = [
        lambda: _check_section(analysis) if results.is_wrong else None,
        lambda: None if precision is None else precision_section(precision),
        lambda: _quality_section(analysis, gate),
        lambda: recordings_section(analysis) if analysis.speech else None,
        lambda: loss,
        lambda: latency_section(analysis),
        lambda: stages_section(analysis) if analysis.speech else None,
        lambda: None if plan is None else widths_section(plan),
        lambda: size_section(analysis),
        lambda: memory_section(analysis),
        lambda: state_section(analysis.content),
        lambda: None if results.is_wrong else _check_section(analysis),
        lambda: environment_section(analysis),
        lambda: method_section(analysis, gate),
        lambda: missing_section(analysis),
        lambda: provenance_section(analysis, plan, extra.provenance),
    ]
    document = results.content
    chosen = [] if precision is None else precision_sentences(precision)
    source = str(document.artifacts["slim"].model.get("source") or document.artifacts["slim"].folder)
    cpu = document.device.get("cpu")
    machine = cpu if isinstance(cpu, str) else document.device_name
    return Report(
        title=extra.title or f"{source} on {runtime_text(document.runtime)}",
        subtitle=(
            f"{machine}, {threads_text(document.options.threads)}, {precisions_text(results.precisions)}, "
            f"measured {document.finished_utc[:10]}"
        ),
        summary=" ".join((*chosen, *summary_sentences(analysis), *extra.notes)),
        warning=extra.warning,
        verdict=_verdict(analysis, max_drop, extra.warning, precision),
        cards=headline_cards(analysis, max_drop),
        gate=gate,
        sections=tuple(section for section in (make() for make in makers) if section is not None),
    )


def _verdict(analysis: Analysis, max_drop: float | None, warning: str, precision: PrecisionDocument | None) -> Verdict:
    """The headline, which is never green under a warning or where another precision ships than was asked for."""
    verdict, text, fallen_back = headline_verdict(analysis, max_drop), "", False
    if precision is not None and precision.asked != precision.ships:
        text, fallen_back = f" It ships in {precision.ships}, not in {precision.asked}.", True
    tone = "" if verdict.tone == "good" and (warning or fallen_back) else verdict.tone
    return Verdict(f"{verdict.text}{text}", tone)


def _check_section(analysis: Analysis) -> Section:
    """What engines answered to golden clips where they ran."""
    check, blocks = analysis.content.check, list[Block]()
    if check.status == "failed":
        blocks.append(Paragraph(f"Failed, so nothing was measured: {check.reason}.", "warning"))
    elif check.status == "not measured":
        blocks.append(Paragraph(f"Not checked: {check.reason}."))
    else:
        blocks.append(
            Paragraph(
                "Before anything was measured, golden clips went through each engine on the device, and it answered "
                "what the checkpoint answers."
            )
        )
    rows = tuple((analysis.name(role), answer.verdict, figures_text(answer)) for role, answer in check.roles.items())
    if rows:
        blocks.append(Table("", ("", "verdict", "against the checkpoint"), rows))
    if check.log_tail:
        blocks.append(Log("\n".join(check.log_tail)))
    return Section("Check of the engines", tuple(blocks))


def _quality_section(analysis: Analysis, gate: Gate | None) -> Section:
    if analysis.speech is not None:
        return words_section(analysis, gate)
    if analysis.tags is not None:
        return tags_section(analysis, analysis.tags, gate)
    return accuracy_section(analysis, gate)


def _judge(analysis: Analysis, max_drop: float) -> Gate:
    reason = analysis.content.accuracy.reason
    if not analysis.paired:
        reason = "there is no dense artifact to compare with"
    if analysis.speech is not None:
        return judge_word_gate(analysis.speech.change, max_drop, reason or "word errors were not counted")
    return judge_gate(analysis.quality_change, max_drop, reason, analysis.metric)
