"""A comparison of pruning methods as a page of its own: what it says first, and its sections."""

from __future__ import annotations

from leanear.benchmarks.formatting import WORD_ERROR_RATE
from leanear.benchmarks.report.page import Card, Report
from leanear.studies.comparison_document import ACCURACY, ComparisonDocument
from leanear.studies.comparison_sections import (
    NOT_MEASURABLE,
    comparison_sections,
    dense_row,
    score_of,
    span_of,
    sparsities_of,
)


def comparison_report(document: ComparisonDocument) -> Report:
    """The comparison as a report of its own."""
    evaluation, calibration = document.evaluation, document.calibration
    return Report(
        title=f"Pruning methods on {document.model}",
        subtitle=(
            f"{evaluation.clips:,} evaluation clips; {calibration.clips:,} calibration clips a seed, "
            f"drawn from {calibration.pool:,}"
        ),
        summary=_summary(document),
        cards=_cards(document),
        gate=None,
        sections=comparison_sections(document),
        kind="Comparison of pruning methods",
        origin="Written by leanear from rows that keep every clip's figures.",
    )


def _summary(document: ComparisonDocument) -> str:
    dense = dense_row(document)
    metric = document.metric
    said = [f"The dense model has a {metric} of {score_of(document, [dense]):.1f}%."]
    if metric == ACCURACY:
        said = [f"The dense model is right on {score_of(document, [dense]):.1f}% of the clips."]
    for asked in sparsities_of(document.one_shot):
        rows = [row for row in document.one_shot.rows if row.asked == asked]
        own = [row for row in rows if row.method == document.default]
        if own:
            keeps = "has" if metric == WORD_ERROR_RATE else "keeps"
            said.append(
                f"With {asked:.0%} of the attention removed the default {keeps} {score_of(document, own):.1f}%."
            )
    return " ".join(said)


def _cards(document: ComparisonDocument) -> tuple[Card, ...]:
    """Per sparsity, how the default's divergence compares with that of the best of the published methods."""
    cards = []
    for asked in sparsities_of(document.one_shot):
        found = [
            ratio
            for ratio in document.one_shot.ratios
            if ratio.asked == asked
            and ratio.measure == "kl_divergence"
            and ratio.theirs in document.published
            and ratio.ours == document.default
        ]
        if found:
            best = min(found, key=lambda ratio: ratio.their_mean.estimate)
            detail = f"against {best.theirs}, 95% interval {span_of(best.ratio)}"
            figure = NOT_MEASURABLE if best.ratio is None else f"{best.ratio.estimate:.2g}×"
            cards.append(Card(figure, f"KL at {asked:.0%}, default ÷ best published", detail))
    return tuple(cards[:4])
