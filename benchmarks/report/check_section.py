"""The report's section on the check of the engines: what they answered to golden clips where they ran."""

from __future__ import annotations

from leanear.benchmarks.measure.engine_check import figures_text
from leanear.benchmarks.report.page import Block, Log, Paragraph, Section, Table
from leanear.benchmarks.results_document import ResultsDocument

TITLE = "Check of the engines"


def check_section(content: ResultsDocument) -> Section | None:
    """What came of the check; None of a results file from before there was one."""
    check = content.check
    if check is None:
        return None
    blocks: list[Block] = []
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
    rows = tuple((role, answer.verdict, figures_text(answer)) for role, answer in check.roles.items())
    if rows:
        blocks.append(Table("", ("", "verdict", "against the checkpoint"), rows))
    if check.log_tail:
        blocks.append(Log("\n".join(check.log_tail)))
    return Section(TITLE, tuple(blocks))
