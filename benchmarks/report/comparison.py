"""A comparison of pruning methods as a page, or as sections of a deployment report, from its JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

from leanear.benchmarks.formatting import NO_RATE_INTERVAL, PRUNED_PARTS, WORD_ERROR_RATE, count
from leanear.benchmarks.report.drawing.pictures import Curve, picture_curves
from leanear.benchmarks.report.page import Block, Card, Paragraph, Report, Section, Table
from leanear.benchmarks.tagging import MEAN_AP
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_json

COMPARISON_SCHEMA = "leanear-comparison-2"
COMPARISON_KEYS = (
    "model",
    "made_from",
    "command",
    "calibration",
    "evaluation",
    "metric",
    "bundle_sparsity",
    "default",
    "published",
    "drawn",
    "methods",
    "one_shot",
    "recovery",
    "latency",
)
DENSE = "dense"
MEASURES = {"kl_divergence": "KL", "cross_entropy_change": "cross-entropy change", "excess_error": "excess error"}
NOT_MEASURABLE = "not measurable"
ACCURACY = "accuracy"
INTERVALS = {
    ACCURACY: "Accuracy has Wilson's 95% interval",
    MEAN_AP: "mAP has a 95% interval by bootstrap over what each clip adds to it",
    WORD_ERROR_RATE: (
        "Word errors are those of greedy transcripts; their rate has a 95% interval by bootstrap over clips"
    ),
}


def read_comparison(path: Path) -> dict[str, Any]:
    """The content of comparison.json.

    Raises:
        BadInput: the file is missing, or it is not a comparison.
    """
    document = read_json(Path(path), COMPARISON_SCHEMA, COMPARISON_KEYS)
    for key in ("rows", "error_rates", "ratios", "out_of_reach"):
        if not isinstance(document["one_shot"], dict) or key not in document["one_shot"]:
            raise BadInput(f"{path}: key 'one_shot' has no {key!r}")
    if not any(row["method"] == DENSE for row in document["one_shot"]["rows"]):
        raise BadInput(f"{path}: there is no row of the dense model")
    return document


def comparison_report(document: dict[str, Any]) -> Report:
    """The comparison as a report of its own."""
    evaluation, calibration = document["evaluation"], document["calibration"]
    return Report(
        title=f"Pruning methods on {document['model']}",
        subtitle=(
            f"{evaluation['clips']:,} evaluation clips; {calibration['clips']:,} calibration clips a seed, "
            f"drawn from {calibration['pool']:,}"
        ),
        summary=_summary(document),
        cards=_cards(document),
        gate=None,
        sections=comparison_sections(document),
        kind="Comparison of pruning methods",
        origin="Written by leanear from rows that keep every clip's figures.",
    )


def comparison_sections(document: dict[str, Any]) -> tuple[Section, ...]:
    """What the comparison shows, the least trained first."""
    sections = [_overview(document), _ratio_section(document, "one_shot", "The default against the others, one shot")]
    if document["latency"] is not None:
        sections.append(_latency_section(document))
    if document["recovery"] is not None:
        sections.append(_recovery_section(document))
        sections.append(_ratio_section(document, "recovery", "The default against the others, after recovery"))
    sections += [_every_row(document), _methods_section(document)]
    return tuple(sections)


# What the page says first


def _summary(document: dict[str, Any]) -> str:
    dense = _dense(document)
    metric = document["metric"]
    said = [f"The dense model has a {metric} of {_score(document, [dense]):.1f}%."]
    if metric == ACCURACY:
        said = [f"The dense model is right on {_score(document, [dense]):.1f}% of the clips."]
    for asked in _sparsities(document["one_shot"]):
        rows = [row for row in document["one_shot"]["rows"] if row["asked"] == asked]
        own = [row for row in rows if row["method"] == document["default"]]
        if own:
            keeps = "has" if metric == WORD_ERROR_RATE else "keeps"
            said.append(f"With {asked:.0%} of the attention removed the default {keeps} {_score(document, own):.1f}%.")
    return " ".join(said)


def _cards(document: dict[str, Any]) -> tuple[Card, ...]:
    """Per sparsity, how the default's divergence compares with that of the best of the published methods."""
    cards = []
    for asked in _sparsities(document["one_shot"]):
        found = [
            ratio
            for ratio in document["one_shot"]["ratios"]
            if ratio["asked"] == asked
            and ratio["measure"] == "kl_divergence"
            and ratio["theirs"] in document["published"]
            and ratio["ours"] == document["default"]
        ]
        if found:
            best = min(found, key=lambda ratio: ratio["their_mean"]["estimate"])
            detail = f"against {best['theirs']}, 95% interval {_span(best['ratio'])}"
            figure = NOT_MEASURABLE if best["ratio"] is None else f"{best['ratio']['estimate']:.2g}×"
            cards.append(Card(figure, f"KL at {asked:.0%}, default ÷ best published", detail))
    return tuple(cards[:4])


# Sections


def _overview(document: dict[str, Any]) -> Section:
    table, metric = document["one_shot"], document["metric"]
    sparsities = _sparsities(table)
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
    names = [name for name in document["drawn"] if name in _names(table)]
    blocks.append(
        picture_curves(
            [Curve(name, _kl_points(table, name)) for name in names],
            f"{PRUNED_PARTS[document.get('prune', 'attention')]} parameters removed, %",
            "KL, nats",
            "Divergence from the dense model against sparsity",
            log=True,
        )
    )
    blocks.append(
        picture_curves(
            [Curve(name, _score_points(document, name)) for name in names],
            f"{PRUNED_PARTS[document.get('prune', 'attention')]} parameters removed, %",
            f"{metric}, %",
            f"{metric[:1].upper()}{metric[1:]} against sparsity",
            level=(DENSE, _score(document, [_dense(document)])),
        )
    )
    return Section("Quality against sparsity, one shot", tuple(blocks))


def _ratio_section(document: dict[str, Any], key: str, title: str) -> Section:
    ratios = document[key]["ratios"]
    blocks: list[Block] = [
        Paragraph(
            "A figure below 1 means that the method in the table's title does less damage than the one in the row. "
            "Ratios are of means over clips and seeds; intervals are 95%, from a bootstrap that draws the same clips "
            "and the same seeds for both. Where a competitor's own damage cannot be told from none there is no ratio."
        )
    ]
    measures = ("kl_divergence", "cross_entropy_change") if key == "one_shot" else tuple(MEASURES)
    for ours in dict.fromkeys(ratio["ours"] for ratio in ratios):
        for measure in measures:
            chosen = [ratio for ratio in ratios if ratio["ours"] == ours and ratio["measure"] == measure]
            sparsities = sorted({ratio["asked"] for ratio in chosen})
            cells = {(ratio["theirs"], ratio["asked"]): ratio for ratio in chosen}
            rows = tuple(
                (name, *(_ratio_cell(cells.get((name, asked))) for asked in sparsities))
                for name in dict.fromkeys(ratio["theirs"] for ratio in chosen)
            )
            header = ("against", *(f"{asked:.0%}" for asked in sparsities))
            blocks.append(Table(f"{MEASURES[measure]} of {ours} ÷ that of the method", header, rows))
    return Section(title, tuple(blocks))


def _latency_section(document: dict[str, Any]) -> Section:
    latency = document["latency"]
    dense_ms = next(row["median_ms"] for row in latency["rows"] if row["method"] == DENSE)
    names = [name for name in dict.fromkeys(row["method"] for row in latency["rows"]) if name != DENSE]
    quality = {
        (row["method"], row["asked"]): row
        for row in document["one_shot"]["rows"]
        if row["seed"] in (document["calibration"]["seed"], ANY_SEED)
    }
    rows, kl_curves, score_curves, metric = [], [], [], document["metric"]
    for name in names:
        kl_points, score_points = [], []
        for row in (row for row in latency["rows"] if row["method"] == name):
            found = quality.get((name, row["asked"]))
            kl = "-" if found is None else f"{found['kl_divergence']:.4f}"
            score = "-" if found is None else f"{_score(document, [found]):.1f}"
            span = f"{row['lower_quartile_ms']:.2f} to {row['upper_quartile_ms']:.2f}"
            faster = f"{dense_ms / row['median_ms']:.2f}×"
            rows.append((name, f"{100 * row['sparsity']:.1f}", f"{row['median_ms']:.2f}", span, faster, kl, score))
            if found is not None:
                kl_points.append((row["median_ms"], found["kl_divergence"]))
                score_points.append((row["median_ms"], _score(document, [found])))
        kl_curves.append(Curve(name, tuple(kl_points)))
        score_curves.append(Curve(name, tuple(score_points)))
    header = ("method", "removed, %", "median, ms", "quartiles, ms", "speed-up", "KL, nats", f"{metric}, %")
    said = (
        f"Measured on {latency['device']} with {latency['runtime']}, {latency['precision']}, {latency['threads']} "
        "threads: the exported graphs took turns in fresh processes, while other programs used "
        f"{latency['others_share']:.0%} of all cores. The dense model takes {dense_ms:.2f} ms."
    )
    return Section(
        f"Quality against measured latency on {latency['target']}",
        (
            Paragraph(said),
            Table("", header, tuple(rows)),
            picture_curves(
                kl_curves, "median latency, ms", "KL, nats", "Divergence from the dense model against latency", log=True
            ),
            picture_curves(
                score_curves, "median latency, ms", f"{metric}, %", f"{metric[:1].upper()}{metric[1:]} against latency",
                level=(DENSE, _score(document, [_dense(document)])),
            ),
        ),
    )  # fmt: skip


def _recovery_section(document: dict[str, Any]) -> Section:
    said = (
        "The same calibration clips are trained on after pruning; evaluation clips are not. Updates are those made "
        "until held-out clips said that more would not help."
    )
    return Section("After recovery", (Paragraph(said), _rows_table(document, document["recovery"], "", folded=False)))


def _every_row(document: dict[str, Any]) -> Section:
    table = document["one_shot"]
    blocks: list[Block] = []
    for asked in _sparsities(table):
        rows = {**table, "rows": [row for row in table["rows"] if row["method"] == DENSE or row["asked"] == asked]}
        rows["out_of_reach"] = [row for row in table["out_of_reach"] if row["asked"] == asked]
        blocks.append(_rows_table(document, rows, f"All figures at {asked:.0%}", folded=True))
    return Section("All figures", tuple(blocks))


def _rows_table(document: dict[str, Any], table: dict[str, Any], caption: str, folded: bool) -> Table:
    header = (
        "method", "seeds", "removed, %", "KL, nats", "cross-entropy change", f"{document['metric']}, % (95%)",
        "parameters", "MACs", "updates", "seconds", *(f"{kind}, % removed" for kind in _kinds(document)),
    )  # fmt: skip
    intervals = {(each["method"], each["asked"]): each["rate"] for each in table["error_rates"]}
    lines = []
    places = dict.fromkeys((row["method"], row["asked"]) for row in table["rows"])
    for name, asked in places:
        rows = [row for row in table["rows"] if (row["method"], row["asked"]) == (name, asked)]
        change = _mean(rows, "cross_entropy") - _dense(document)["cross_entropy"]
        low, high = _percentages(document, intervals[name, asked])
        spread = f"{low:.1f} to {high:.1f}" if low < high else NO_RATE_INTERVAL
        lines.append(
            (
                name,
                str(len(rows)),
                f"{100 * _mean(rows, 'sparsity'):.2f}",
                f"{_mean(rows, 'kl_divergence'):.5f}",
                f"{change:+.4f}",
                f"{_score(document, rows):.1f} ({spread})",
                f"{_mean(rows, 'parameters'):,.0f}",
                count(_mean(rows, "macs")),
                f"{_mean(rows, 'updates'):.0f}",
                f"{_mean(rows, 'seconds'):.1f}",
                *(f"{100 * sum(row['by_kind'][kind] for row in rows) / len(rows):.1f}" for kind in _kinds(document)),
            )
        )
    for row in {row["method"]: row for row in table["out_of_reach"]}.values():
        lines.append((row["method"], "0", f"out of reach at {row['asked']:.0%}", *[""] * (len(header) - 3)))
    return Table(caption, header, tuple(lines), folded=folded)


def _methods_section(document: dict[str, Any]) -> Section:
    rows = tuple((method["name"], method["about"]) for method in document["methods"])
    provenance = tuple((f"sha256 of {name}", value) for name, value in document["made_from"].items())
    provenance += (("calibration clips", document["calibration"]["split"]), ("command", " ".join(document["command"])))
    said = (
        f"{INTERVALS[document['metric']]}, of the mean over seeds. MACs are of one inference after the "
        "audio front end. Seconds are those of pruning alone, on a machine that others may have used."
    )
    return Section(
        "The methods", (Table("", ("method", "what it does"), rows), Paragraph(said), Table("", ("", ""), provenance))
    )


# Cells and points

ANY_SEED = -1
"""The seed of rows that hold for every seed."""


def _dense(document: dict[str, Any]) -> dict[str, Any]:
    return next(row for row in document["one_shot"]["rows"] if row["method"] == DENSE)


def _names(table: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in table["rows"]))


def _sparsities(table: dict[str, Any]) -> list[float]:
    return sorted({row["asked"] for row in table["rows"] if row["method"] != DENSE})


def _mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def _kinds(document: dict[str, Any]) -> list[str]:
    """The kinds of attention, where there are several."""
    kinds = list(_dense(document)["by_kind"])
    return kinds if len(kinds) > 1 else []


def _score(document: dict[str, Any], rows: Sequence[dict[str, Any]]) -> float:
    """Accuracy, mAP, or the rate of errors, in per cent."""
    rate = 100 * _mean(rows, "errors") / rows[0]["counted"]
    return rate if document["metric"] == WORD_ERROR_RATE else 100 - rate


def _percentages(document: dict[str, Any], rate: dict[str, float]) -> tuple[float, float]:
    """The interval of an error rate as one of the metric."""
    low, high = 100 * rate["low"], 100 * rate["high"]
    return (low, high) if document["metric"] == WORD_ERROR_RATE else (100 - high, 100 - low)


def _of(table: dict[str, Any], name: str, asked: float) -> list[dict[str, Any]]:
    return [row for row in table["rows"] if (row["method"], row["asked"]) == (name, asked)]


def _kl_cell(document: dict[str, Any], table: dict[str, Any], name: str, asked: float) -> str:
    rows = _of(table, name, asked)
    if not rows:
        unreachable = any((row["method"], row["asked"]) == (name, asked) for row in table["out_of_reach"])
        return "out of reach" if unreachable else "-"
    values = [row["kl_divergence"] for row in rows]
    text = f"{_mean(rows, 'kl_divergence'):.3g}" + _mark(document, table, rows, asked)
    return text if len(rows) == 1 else f"{text} ({min(values):.3g} to {max(values):.3g})"


def _mark(document: dict[str, Any], table: dict[str, Any], rows: Sequence[dict[str, Any]], asked: float) -> str:
    own = _of(table, document["default"], asked)
    if not own:
        return ""
    more = _mean(rows, "sparsity") - _mean(own, "sparsity")
    if abs(more) <= document["bundle_sparsity"] * (1 + 1e-9):
        return ""
    return " +" if more > 0 else " *"


def _ratio_cell(ratio: dict[str, Any] | None) -> str:
    if ratio is None:
        return "-"
    if ratio["ratio"] is None:
        return NOT_MEASURABLE
    return f"{ratio['ratio']['estimate']:.3g} ({_span(ratio['ratio'])})"


def _span(interval: dict[str, float] | None) -> str:
    return "-" if interval is None else f"{interval['low']:.2g} to {interval['high']:.2g}"


def _kl_points(table: dict[str, Any], name: str) -> tuple[tuple[float, float], ...]:
    found = (_of(table, name, asked) for asked in _sparsities(table))
    return tuple((100 * _mean(rows, "sparsity"), _mean(rows, "kl_divergence")) for rows in found if rows)


def _score_points(document: dict[str, Any], name: str) -> tuple[tuple[float, float], ...]:
    table = document["one_shot"]
    found = (_of(table, name, asked) for asked in _sparsities(table))
    return tuple((100 * _mean(rows, "sparsity"), _score(document, rows)) for rows in found if rows)
