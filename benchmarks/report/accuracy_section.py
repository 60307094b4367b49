"""The report's section on accuracy: labels of every evaluation clip by the artifact that ships."""

from __future__ import annotations

from collections import Counter
from typing import Sequence

import numpy as np

from leanear.benchmarks.analysis import Analysis, correct_answers
from leanear.benchmarks.formatting import runtime_text
from leanear.benchmarks.report.blocks import gate_paragraph, unmeasured
from leanear.benchmarks.report.drawing.pictures import picture_intervals
from leanear.benchmarks.report.page import Block, Section, Table, figures
from leanear.benchmarks.summary import Gate
from leanear.benchmarks.verdict import loss_of, loss_text, points_moved

MOST_ROWS = 12


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
