"""The report's section on how well classifiers answer: one label of every evaluation clip, or any number of them."""

from __future__ import annotations

import math
from collections import Counter
from typing import Callable, Sequence

import numpy as np

from leanear.benchmarks.analysis import Analysis, TagAnalysis, correct_answers
from leanear.benchmarks.formatting import NO_RATE_INTERVAL, runtime_text
from leanear.benchmarks.report.drawing.pictures import picture_intervals
from leanear.benchmarks.report.page import Block, Paragraph, Section, Table, figures, gate_paragraph, unmeasured
from leanear.benchmarks.summary import Gate, Interval
from leanear.benchmarks.tagging import MEAN_AP, TagQuality, differing_answers
from leanear.benchmarks.verdict import loss_of, loss_text, points_moved
from leanear.runtimes.process.notes import plural

MOST_ROWS = 12
WORST_LABELS = 6


def accuracy_section(analysis: Analysis, gate: Gate | None) -> Section:
    accuracy = analysis.content.accuracy
    if accuracy.status != "ok":
        return Section("Accuracy", unmeasured(accuracy))
    runtime = runtime_text(analysis.content.runtime)
    columns, picture_rows = [], []
    for role in analysis.results.roles:
        name, share = f"{analysis.name(role)} artifact", analysis.accuracy[role]
        right = correct_answers(accuracy.roles[role].predicted_ids, accuracy.label_ids)
        columns.append(
            (
                name,
                f"{right:,} of {len(accuracy.label_ids):,}",
                f"{share.estimate:.2%}",
                f"{share.low:.2%} to {share.high:.2%}",
                f"{float(np.mean(accuracy.roles[role].cross_entropy_nats)):.4f}",
            )
        )
        picture_rows.append((name, role, 100 * share.estimate, 100 * share.low, 100 * share.high))
    names = ("clips answered right", "accuracy", "95% interval (Wilson)", "cross-entropy, nats")
    blocks: list[Block] = []
    if gate is not None:
        blocks.append(gate_paragraph(gate))
    blocks += [
        picture_intervals(picture_rows, "% of the clips"),
        figures(f"The artifact that ships, on {runtime}", names, columns),
    ]
    if analysis.change is not None:
        blocks.append(_change_table(analysis))
        blocks += [table for table in (_label_table(analysis), _confusion_table(analysis)) if table is not None]
    return Section("Accuracy", tuple(blocks))


def _change_table(analysis: Analysis) -> Table:
    change = analysis.change
    assert change is not None
    difference = change.change
    kl = analysis.content.accuracy.kl_dense_slim_nats
    rows = [
        ("accuracy, slim against dense", loss_text(loss_of(difference, "accuracy"))),
        ("clips that only dense gets right", f"{change.only_dense_right:,}"),
        ("clips that only slim gets right", f"{change.only_slim_right:,}"),
        ("McNemar's exact test, two-sided p", f"{change.p_value:.3g}"),
        ("clips with the same answer", f"{change.agreement:.2%}"),
        ("mean KL(dense ‖ slim)", "not measured" if kl is None else f"{float(np.mean(kl)):.4f} nats"),
    ]
    return Table("Slim against dense, clip by clip (Tango's score interval)", ("", ""), tuple(rows))


def _label_table(analysis: Analysis) -> Table | None:
    """The labels whose accuracy moved, most lost first, so that an average hides nobody."""
    accuracy = analysis.content.accuracy
    truth = np.array(accuracy.label_ids)
    right = {role: np.array(accuracy.roles[role].predicted_ids) == truth for role in ("dense", "slim")}
    moved = []
    for label in np.unique(truth):
        chosen = truth == label
        dense, slim = (int(right[role][chosen].sum()) for role in ("dense", "slim"))
        if slim != dense:
            moved.append((slim - dense, accuracy.labels[label], int(chosen.sum()), dense, slim))
    rows = tuple(
        (f"“{name}”", f"{dense} → {slim} of {clips}", points_moved((dense - slim) / clips))
        for _, name, clips, dense, slim in sorted(moved)[:MOST_ROWS]
    )
    caption = (
        f"Labels that lost or gained, {_shown(rows, moved)} (the other {len(np.unique(truth)) - len(moved)} did not)"
    )
    return Table(caption, ("label", "clips answered right, dense → slim", "change"), rows) if rows else None


def _confusion_table(analysis: Analysis) -> Table | None:
    """Which wrong answers slim gives more often, or less often, than dense, those that it gives more often first."""
    accuracy = analysis.content.accuracy
    names = accuracy.labels
    dense, slim = (Counter(zip(accuracy.label_ids, accuracy.roles[role].predicted_ids)) for role in ("dense", "slim"))
    moved = sorted(
        (dense[pair] - slim[pair], names[pair[0]], names[pair[1]], pair)
        for pair in {*dense, *slim}
        if pair[0] != pair[1] and dense[pair] != slim[pair]
    )
    rows = tuple((f"“{true}” → “{said}”", f"{dense[pair]} → {slim[pair]}") for _, true, said, pair in moved[:MOST_ROWS])
    caption = f"Confusions that changed, {_shown(rows, moved)}"
    return Table(caption, ("label → answer", "clips, dense → slim"), rows) if rows else None


def _shown(rows: Sequence[object], moved: Sequence[object]) -> str:
    return f"{len(rows)} of {len(moved)}" if len(rows) < len(moved) else f"all {len(moved)}"


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
        blocks.append(_tags_change_table(analysis, tags, tags.change))
        worst = _tags_label_table(analysis, tags)
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


def _tags_change_table(analysis: Analysis, tags: TagAnalysis, change: Interval) -> Table:
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


def _tags_label_table(analysis: Analysis, tags: TagAnalysis) -> Table | None:
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
