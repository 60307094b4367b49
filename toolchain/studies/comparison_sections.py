"""The sections of a comparison of pruning methods, from its JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from leanear.benchmarks.formatting import NO_RATE_INTERVAL, PRUNED_PARTS, WORD_ERROR_RATE, count
from leanear.benchmarks.report.drawing.pictures import Curve, picture_curves
from leanear.benchmarks.report.page import Block, Paragraph, Section, Table
from leanear.benchmarks.summary import Interval
from leanear.benchmarks.tagging import MEAN_AP
from leanear.studies.comparison_document import (
    ACCURACY,
    ANY_SEED,
    DENSE,
    ComparisonDocument,
    MethodsLatency,
    MethodsTable,
    Ratio,
    Row,
)

MEASURES = {"kl_divergence": "KL", "cross_entropy_change": "cross-entropy change", "excess_error": "excess error"}
ONE_SHOT_MEASURES = ("kl_divergence", "cross_entropy_change")
NOT_MEASURABLE = "not measurable"
INTERVALS = {
    ACCURACY: "Accuracy has Wilson's 95% interval",
    MEAN_AP: "mAP has a 95% interval by bootstrap over what each clip adds to it",
    WORD_ERROR_RATE: (
        "Word errors are those of greedy transcripts; their rate has a 95% interval by bootstrap over clips"
    ),
}


def comparison_sections(document: ComparisonDocument) -> tuple[Section, ...]:
    """What the comparison shows, the least trained first."""
    ratios = _ratio_section(document.one_shot, ONE_SHOT_MEASURES, "The default against the others, one shot")
    sections = [_overview(document), ratios]
    if document.latency is not None:
        sections.append(_latency_section(document, document.latency))
    if document.recovery is not None:
        sections.append(_recovery_section(document, document.recovery))
        title = "The default against the others, after recovery"
        sections.append(_ratio_section(document.recovery, tuple(MEASURES), title))
    sections += [_every_row(document), _methods_section(document)]
    return tuple(sections)


# Sections


def _overview(document: ComparisonDocument) -> Section:
    table, metric = document.one_shot, document.metric
    sparsities = sparsities_of(table)
    blocks: list[Block] = [
        Paragraph(
            "KL is the divergence of the pruned model's answer from the dense model's to the same question, a clip's "
            "label or the next token of its transcript, in nats, the mean over all of them and over calibration seeds; "
            "where there are several seeds, their range follows. "
            "Nothing was trained."
        ),
        Table(
            "KL to the dense model, nats, by the share of the attention's parameters that was asked to go",
            ("method", *(f"{asked:.0%}" for asked in sparsities)),
            tuple(
                (name, *(_kl_cell(document, table, name, asked) for asked in sparsities))
                for name in _names(table)
                if name != DENSE
            ),
        ),
        Paragraph(
            "* removes less, + removes more of the attention than the default by more than one channel of every head "
            "of one block."
        ),
    ]
    names = [name for name in document.drawn if name in _names(table)]
    blocks.append(
        picture_curves(
            [Curve(name, _kl_points(table, name)) for name in names],
            f"{PRUNED_PARTS[document.prune]} parameters removed, %",
            "KL, nats",
            "Divergence from the dense model against sparsity",
            log=True,
        )
    )
    blocks.append(
        picture_curves(
            [Curve(name, _score_points(document, name)) for name in names],
            f"{PRUNED_PARTS[document.prune]} parameters removed, %",
            f"{metric}, %",
            f"{metric[:1].upper()}{metric[1:]} against sparsity",
            level=(DENSE, score_of(document, [dense_row(document)])),
        )
    )
    return Section("Quality against sparsity, one shot", tuple(blocks))


def _ratio_section(table: MethodsTable, measures: Sequence[str], title: str) -> Section:
    ratios = table.ratios
    blocks: list[Block] = [
        Paragraph(
            "A figure below 1 means that the method in the table's title does less damage than the one in the row. "
            "Ratios are of means over clips and seeds; intervals are 95%, from a bootstrap that draws the same clips "
            "and the same seeds for both. Where a competitor's own damage cannot be told from none there is no ratio."
        )
    ]
    for ours in dict.fromkeys(ratio.ours for ratio in ratios):
        for measure in measures:
            chosen = [ratio for ratio in ratios if ratio.ours == ours and ratio.measure == measure]
            sparsities = sorted({ratio.asked for ratio in chosen})
            cells = {(ratio.theirs, ratio.asked): ratio for ratio in chosen}
            rows = tuple(
                (name, *(_ratio_cell(cells.get((name, asked))) for asked in sparsities))
                for name in dict.fromkeys(ratio.theirs for ratio in chosen)
            )
            header = ("against", *(f"{asked:.0%}" for asked in sparsities))
            blocks.append(Table(f"{MEASURES[measure]} of {ours} ÷ that of the method", header, rows))
    return Section(title, tuple(blocks))


def _latency_section(document: ComparisonDocument, latency: MethodsLatency) -> Section:
    dense_ms = next(row.median_ms for row in latency.rows if row.method == DENSE)
    names = [name for name in dict.fromkeys(row.method for row in latency.rows) if name != DENSE]
    quality = {
        (row.method, row.asked): row
        for row in document.one_shot.rows
        if row.seed in (document.calibration.seed, ANY_SEED)
    }
    rows, kl_curves, score_curves, metric = [], [], [], document.metric
    for name in names:
        kl_points, score_points = [], []
        for row in (row for row in latency.rows if row.method == name):
            found = quality.get((name, row.asked))
            kl = "-" if found is None else f"{found.kl_divergence:.4f}"
            score = "-" if found is None else f"{score_of(document, [found]):.1f}"
            span = f"{row.lower_quartile_ms:.2f} to {row.upper_quartile_ms:.2f}"
            faster = f"{dense_ms / row.median_ms:.2f}×"
            rows.append((name, f"{100 * row.sparsity:.1f}", f"{row.median_ms:.2f}", span, faster, kl, score))
            if found is not None:
                kl_points.append((row.median_ms, found.kl_divergence))
                score_points.append((row.median_ms, score_of(document, [found])))
        kl_curves.append(Curve(name, tuple(kl_points)))
        score_curves.append(Curve(name, tuple(score_points)))
    header = ("method", "removed, %", "median, ms", "quartiles, ms", "speed-up", "KL, nats", f"{metric}, %")
    said = (
        f"Measured on {latency.device} with {latency.runtime}, {latency.precision}, {latency.threads} "
        "threads: the exported graphs took turns in fresh processes, while other programs used "
        f"{latency.others_share:.0%} of all cores. The dense model takes {dense_ms:.2f} ms."
    )
    return Section(
        f"Quality against measured latency on {latency.target}",
        (
            Paragraph(said),
            Table("", header, tuple(rows)),
            picture_curves(
                kl_curves, "median latency, ms", "KL, nats", "Divergence from the dense model against latency", log=True
            ),
            picture_curves(
                score_curves, "median latency, ms", f"{metric}, %", f"{metric[:1].upper()}{metric[1:]} against latency",
                level=(DENSE, score_of(document, [dense_row(document)])),
            ),
        ),
    )  # fmt: skip


def _recovery_section(document: ComparisonDocument, recovery: MethodsTable) -> Section:
    said = (
        "The same calibration clips are trained on after pruning; evaluation clips are not. Updates are those made "
        "until held-out clips said that more would not help."
    )
    return Section("After recovery", (Paragraph(said), _rows_table(document, recovery, "", folded=False)))


def _every_row(document: ComparisonDocument) -> Section:
    table = document.one_shot
    blocks: list[Block] = []
    for asked in sparsities_of(table):
        rows = tuple(row for row in table.rows if row.method == DENSE or row.asked == asked)
        beyond = tuple(row for row in table.out_of_reach if row.asked == asked)
        at_this = replace(table, rows=rows, out_of_reach=beyond)
        blocks.append(_rows_table(document, at_this, f"All figures at {asked:.0%}", folded=True))
    return Section("All figures", tuple(blocks))


def _rows_table(document: ComparisonDocument, table: MethodsTable, caption: str, folded: bool) -> Table:
    header = (
        "method", "seeds", "removed, %", "KL, nats", "cross-entropy change", f"{document.metric}, % (95%)",
        "parameters", "MACs", "updates", "seconds", *(f"{kind}, % removed" for kind in _kinds(document)),
    )  # fmt: skip
    intervals = {(each.method, each.asked): each.rate for each in table.error_rates}
    lines = []
    places = dict.fromkeys((row.method, row.asked) for row in table.rows)
    for name, asked in places:
        rows = [row for row in table.rows if (row.method, row.asked) == (name, asked)]
        change = _mean(rows, "cross_entropy") - dense_row(document).cross_entropy
        low, high = _percentages(document, intervals[name, asked])
        spread = f"{low:.1f} to {high:.1f}" if low < high else NO_RATE_INTERVAL
        lines.append(
            (
                name,
                str(len(rows)),
                f"{100 * _mean(rows, 'sparsity'):.2f}",
                f"{_mean(rows, 'kl_divergence'):.5f}",
                f"{change:+.4f}",
                f"{score_of(document, rows):.1f} ({spread})",
                f"{_mean(rows, 'parameters'):,.0f}",
                count(_mean(rows, "macs")),
                f"{_mean(rows, 'updates'):.0f}",
                f"{_mean(rows, 'seconds'):.1f}",
                *(f"{100 * sum(row.by_kind[kind] for row in rows) / len(rows):.1f}" for kind in _kinds(document)),
            )
        )
    for row in {row.method: row for row in table.out_of_reach}.values():
        lines.append((row.method, "0", f"out of reach at {row.asked:.0%}", *[""] * (len(header) - 3)))
    return Table(caption, header, tuple(lines), folded=folded)


def _methods_section(document: ComparisonDocument) -> Section:
    rows = tuple((method.name, method.about) for method in document.methods)
    provenance = tuple((f"sha256 of {name}", value) for name, value in document.made_from.items())
    provenance += (("calibration clips", document.calibration.split), ("command", " ".join(document.command)))
    said = (
        f"{INTERVALS[document.metric]}, of the mean over seeds. MACs are of one inference after the "
        "audio front end. Seconds are those of pruning alone, on a machine that others may have used."
    )
    return Section(
        "The methods", (Table("", ("method", "what it does"), rows), Paragraph(said), Table("", ("", ""), provenance))
    )


# Cells and points


def dense_row(document: ComparisonDocument) -> Row:
    """The dense model's."""
    return next(row for row in document.one_shot.rows if row.method == DENSE)


def _names(table: MethodsTable) -> list[str]:
    return list(dict.fromkeys(row.method for row in table.rows))


def sparsities_of(table: MethodsTable) -> list[float]:
    """What was asked of the pruned models."""
    return sorted({row.asked for row in table.rows if row.method != DENSE})


def _mean(rows: Sequence[Row], key: str) -> float:
    return sum(float(getattr(row, key)) for row in rows) / len(rows)


def _kinds(document: ComparisonDocument) -> list[str]:
    """The kinds of attention, where there are several."""
    kinds = list(dense_row(document).by_kind)
    return kinds if len(kinds) > 1 else []


def score_of(document: ComparisonDocument, rows: Sequence[Row]) -> float:
    """Accuracy, mAP, or the rate of errors, in per cent."""
    rate = 100 * _mean(rows, "errors") / rows[0].counted
    return rate if document.metric == WORD_ERROR_RATE else 100 - rate


def _percentages(document: ComparisonDocument, rate: Interval) -> tuple[float, float]:
    """The interval of an error rate as one of the metric."""
    low, high = 100 * rate.low, 100 * rate.high
    return (low, high) if document.metric == WORD_ERROR_RATE else (100 - high, 100 - low)


def _of(table: MethodsTable, name: str, asked: float) -> list[Row]:
    return [row for row in table.rows if (row.method, row.asked) == (name, asked)]


def _kl_cell(document: ComparisonDocument, table: MethodsTable, name: str, asked: float) -> str:
    rows = _of(table, name, asked)
    if not rows:
        unreachable = any((row.method, row.asked) == (name, asked) for row in table.out_of_reach)
        return "out of reach" if unreachable else "-"
    values = [row.kl_divergence for row in rows]
    text = f"{_mean(rows, 'kl_divergence'):.3g}" + _mark(document, table, rows, asked)
    return text if len(rows) == 1 else f"{text} ({min(values):.3g} to {max(values):.3g})"


def _mark(document: ComparisonDocument, table: MethodsTable, rows: Sequence[Row], asked: float) -> str:
    own = _of(table, document.default, asked)
    if not own:
        return ""
    more = _mean(rows, "sparsity") - _mean(own, "sparsity")
    if abs(more) <= document.bundle_sparsity * (1 + 1e-9):
        return ""
    return " +" if more > 0 else " *"


def _ratio_cell(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    if ratio.ratio is None:
        return NOT_MEASURABLE
    return f"{ratio.ratio.estimate:.3g} ({span_of(ratio.ratio)})"


def span_of(interval: Interval | None) -> str:
    """An interval's ends as a cell shows them."""
    return "-" if interval is None else f"{interval.low:.2g} to {interval.high:.2g}"


def _kl_points(table: MethodsTable, name: str) -> tuple[tuple[float, float], ...]:
    found = (_of(table, name, asked) for asked in sparsities_of(table))
    return tuple((100 * _mean(rows, "sparsity"), _mean(rows, "kl_divergence")) for rows in found if rows)


def _score_points(document: ComparisonDocument, name: str) -> tuple[tuple[float, float], ...]:
    table = document.one_shot
    found = (_of(table, name, asked) for asked in sparsities_of(table))
    return tuple((100 * _mean(rows, "sparsity"), score_of(document, rows)) for rows in found if rows)
