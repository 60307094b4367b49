"""The report's section on accuracy: labels of every evaluation clip by the artifact that ships."""

from __future__ import annotations

import numpy as np

from leanear.benchmarks.analysis import Analysis, correct_answers
from leanear.benchmarks.formatting import between, runtime_text, signed_points
from leanear.benchmarks.report.blocks import gate_paragraph, unmeasured
from leanear.benchmarks.report.page import Block, Section, Table
from leanear.benchmarks.report.pictures import picture_intervals
from leanear.benchmarks.summary import Gate, Interval, wilson_interval

WORST_LABELS = 6


def accuracy_section(analysis: Analysis, torch_counts: dict[str, tuple[int, int]], gate: Gate | None) -> Section:
    accuracy, document = analysis.document["accuracy"], analysis.document
    if accuracy["status"] != "ok":
        return Section("Accuracy", unmeasured(accuracy))
    runtime = runtime_text(document["runtime"])
    torch = {role: wilson_interval(*torch_counts[role]) for role in torch_counts}
    rows: list[tuple[str, str, Interval, tuple[int, int], float | None]] = [
        (f"{role} checkpoint, PyTorch", role, torch[role], torch_counts[role], None)
        for role in ("dense", "slim")
        if role in torch
    ]
    for role in analysis.results.roles:
        right = correct_answers(accuracy["roles"][role]["predicted_ids"], accuracy["label_ids"])
        entropy = float(np.mean(accuracy["roles"][role]["cross_entropy_nats"]))
        counts = (right, len(accuracy["label_ids"]))
        rows.append((f"{analysis.name(role)} artifact, {runtime}", role, analysis.accuracy[role], counts, entropy))
    table = tuple(
        (
            name,
            f"{counts[0]:,} of {counts[1]:,}",
            f"{share.estimate:.2%}",
            f"{share.low:.2%} to {share.high:.2%}",
            "not measured" if entropy is None else f"{entropy:.4f}",
        )
        for name, _, share, counts, entropy in rows
    )
    header = ("", "right", "accuracy", "95% interval (Wilson)", "cross-entropy, nats")
    picture_rows = [
        (name, role, 100 * share.estimate, 100 * share.low, 100 * share.high) for name, role, share, *_ in rows
    ]
    blocks: list[Block] = []
    if gate is not None:
        blocks.append(gate_paragraph(gate))
    blocks += [
        picture_intervals(picture_rows, "% of the clips"),
        Table(f"The artifact that ships, on {runtime}", header, table),
    ]
    if analysis.change is not None:
        blocks.append(_change_table(analysis))
        worst = _label_table(analysis)
        if worst is not None:
            blocks.append(worst)
    return Section("Accuracy", tuple(blocks))


def _change_table(analysis: Analysis) -> Table:
    change = analysis.change
    assert change is not None
    difference = change.change
    kl = analysis.document["accuracy"]["kl_dense_slim_nats"]
    rows = [
        (
            "accuracy, slim minus dense",
            f"{signed_points(difference.estimate)} ({between(difference)})",
        ),
        ("clips that only dense gets right", f"{change.only_dense_right:,}"),
        ("clips that only slim gets right", f"{change.only_slim_right:,}"),
        ("McNemar's exact test, two-sided p", f"{change.p_value:.3g}"),
        ("clips with the same answer", f"{change.agreement:.2%}"),
        ("mean KL(dense ‖ slim)", "not measured" if kl is None else f"{float(np.mean(kl)):.4f} nats"),
    ]
    return Table("Slim against dense, clip by clip (Tango's score interval)", ("", ""), tuple(rows))


def _label_table(analysis: Analysis) -> Table | None:
    """The labels that lost the most, so that an average hides nobody."""
    accuracy = analysis.document["accuracy"]
    truth = np.array(accuracy["label_ids"])
    right = {role: np.array(accuracy["roles"][role]["predicted_ids"]) == truth for role in ("dense", "slim")}
    lost = []
    for label in np.unique(truth):
        chosen = truth == label
        dense, slim = int(right["dense"][chosen].sum()), int(right["slim"][chosen].sum())
        lost.append((slim - dense, accuracy["labels"][label], int(chosen.sum()), dense, slim))
    worst = [entry for entry in sorted(lost) if entry[0] < 0][:WORST_LABELS]
    if not worst:
        return None
    rows = tuple(
        (name, str(clips), str(dense), str(slim), f"{change:+d}") for change, name, clips, dense, slim in worst
    )
    return Table(
        "Labels that lost the most",
        ("label", "clips", "dense right", "slim right", "change"),
        rows,
        folded=len(lost) > 2,
    )
