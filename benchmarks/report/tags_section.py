"""The report's section on the answers of models whose clips may have several labels."""

from __future__ import annotations

import math
from typing import Callable

import numpy as np

from leanear.benchmarks.analysis import Analysis
from leanear.benchmarks.formatting import NO_RATE_INTERVAL, runtime_text
from leanear.benchmarks.report.blocks import gate_paragraph, unmeasured
from leanear.benchmarks.report.drawing.pictures import picture_intervals
from leanear.benchmarks.report.page import Block, Paragraph, Section, Table, figures
from leanear.benchmarks.summary import Gate, Interval
from leanear.benchmarks.tag_analysis import TagAnalysis
from leanear.benchmarks.tagging import MEAN_AP, TagQuality, differing_answers
from leanear.benchmarks.verdict import loss_of, loss_text, points_moved
from leanear.runtimes.process.notes import plural

WORST_LABELS = 6


def tags_section(analysis: Analysis, tags: TagAnalysis, gate: Gate | None) -> Section:
    """mAP, mean area and d' with intervals, dense against slim, and the labels that lost the most."""
    accuracy = analysis.content.accuracy
    if accuracy.status != "ok":
        return Section(MEAN_AP, unmeasured(accuracy))
    blocks: list[Block] = [] if gate is None else [gate_paragraph(gate)]
    runtime = runtime_text(analysis.content.runtime)
    found = [(f"{analysis.name(role)} artifact", role, quality) for role, quality in tags.quality.items()]
    shares = [
        (name, role, 100 * share.estimate, 100 * share.low, 100 * share.high)
        for name, role, share in ((name, role, quality.mean_ap) for name, role, quality in found)
    ]
    names = (MEAN_AP, "95% interval", "mean area under ROC", "95% interval", "d'", "95% interval", "entropy, nats")
    entropy = {role: float(np.mean(answers.cross_entropy_nats)) for role, answers in accuracy.roles.items()}
    columns = [(name, *_figures(quality), f"{entropy[role]:.4f}") for name, role, quality in found]
    blocks += [
        picture_intervals(shares, "% mAP", "mAP with 95% intervals"),
        figures(f"The artifact that ships, on {runtime}", names, columns),
        Paragraph(labels_sentence(found[0][2])),
    ]
    if tags.change is not None:
        blocks.append(_change_table(analysis, tags, tags.change))
        worst = _label_table(analysis, tags)
        if worst is not None:
            blocks.append(worst)
    return Section(MEAN_AP, tuple(blocks))


def labels_sentence(quality: TagQuality) -> str:
    """Over how many labels the means are, and what became of the others."""
    said = f"The means are over {plural(quality.labels, 'label')}"
    if quality.skipped:
        said += f"; {quality.skipped:,} others are left out, for none of the {quality.clips:,} clips has them"
    return f"{said}. Intervals are of {quality.draws:,} draws of clips."


def d_prime_text(value: float) -> str:
    """d' as a number; endless where an area is 1."""
    return "not known" if math.isnan(value) else "endless" if math.isinf(value) else f"{value:.3f}"


def _figures(quality: TagQuality) -> tuple[str, ...]:
    cells = []
    for interval, text in ((quality.mean_ap, _share), (quality.mean_auc, _share), (quality.d_prime, d_prime_text)):
        cells += [text(interval.estimate), _span(interval, text)]
    return tuple(cells)


def _span(interval: Interval, text: Callable[[float], str]) -> str:
    if math.isnan(interval.estimate):
        return text(interval.estimate)
    return f"{text(interval.low)} to {text(interval.high)}" if interval.has_spread else NO_RATE_INTERVAL


def _share(value: float) -> str:
    return "not known" if math.isnan(value) else f"{value:.2%}"


def _change_table(analysis: Analysis, tags: TagAnalysis, change: Interval) -> Table:
    kl = analysis.content.accuracy.kl_dense_slim_nats
    differing = differing_answers(tags.logits["dense"], tags.logits["slim"])
    fell = tags.average_precisions("slim") - tags.average_precisions("dense")
    rows = [
        (f"{MEAN_AP}, slim against dense", loss_text(loss_of(change, MEAN_AP))),
        ("labels that slim ranks worse than dense", f"{int((fell < 0).sum()):,}"),
        ("labels that slim ranks better than dense", f"{int((fell > 0).sum()):,}"),
        ("clips with other labels at a probability of half or more", f"{differing:,} of {len(tags.truth):,}"),
        (
            "mean KL(dense ‖ slim), summed over labels",
            "not measured" if kl is None else f"{float(np.mean(kl)):.4f} nats",
        ),
    ]
    return Table("Slim against dense, clip by clip", ("", ""), tuple(rows))


def _label_table(analysis: Analysis, tags: TagAnalysis) -> Table | None:
    """The labels that lost the most, so that an average hides nobody."""
    dense, slim = (tags.average_precisions(role) for role in ("dense", "slim"))
    names, clips = analysis.content.accuracy.labels, tags.truth.sum(axis=0)
    lost = sorted((float(slim[label] - dense[label]), names[label], label) for label in np.flatnonzero(clips))
    worst = [entry for entry in lost if entry[0] < 0][:WORST_LABELS]
    if not worst:
        return None
    rows = tuple(
        (name, f"{int(clips[label]):,}", f"{dense[label]:.2%}", f"{slim[label]:.2%}", points_moved(-change))
        for change, name, label in worst
    )
    header = ("label", "clips", "dense, average precision", "slim, average precision", "change")
    return Table("Labels that lost the most", header, rows, folded=len(lost) > 2)
