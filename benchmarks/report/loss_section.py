"""The report's section on what pruning cost: estimated against measured, and the curve of size against loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Mapping, Sequence

from leanear.benchmarks.formatting import PRUNED_PARTS, block_title
from leanear.benchmarks.report.drawing.pictures import Curve, picture_curves
from leanear.benchmarks.report.drawing.plotting import Picture
from leanear.benchmarks.report.page import Block, Paragraph, Section, Table

LEAST_NATS = 1e-6  # what less is drawn as, and called 0


def loss_section(pruning: Mapping[str, Any]) -> Section | None:
    """From the content of pruning.json; None where it holds no measured loss."""
    loss = pruning.get("loss", {})
    rounds = loss.get("rounds")
    if not rounds:
        return None
    blocks: list[Block] = [
        Paragraph(
            "A loss is the Kullback-Leibler divergence of the slim model's answers from the dense model's, in nats per"
            " target (a label, or a token of a transcript), on calibration clips that were neither scored nor fitted"
            " on; the best round, and what was kept of compensation and recovery, were chosen on them. What follows is"
            " from before compensation and recovery. Estimates add up single heads; a block is measured by pruning it"
            " alone."
        ),
        Table("Rounds", ("", "estimated", "its blocks, one by one", "measured", ""), tuple(_round_rows(rounds, loss["best"]))),
    ]
    if loss.get("curve"):
        measured = ((pruning["sparsity"], rounds[loss["best"]]["measured"]),)
        chosen = Curve("this model, measured before compensation", measured, joined=False, chosen=True)
        blocks.append(curve_picture(loss["curve"], [chosen], PRUNED_PARTS[pruning.get("prune", "attention")]))
    chosen = rounds[loss["best"]]["blocks"]
    rows = tuple((block_title(block["name"]), nats(block["estimated"]), nats(block["measured"])) for block in chosen)
    blocks.append(Table("Block by block", ("", "estimated", "measured"), rows, folded=True))
    points = tuple((max(b["estimated"], 1e-7), max(b["measured"], 1e-7)) for b in chosen if b["estimated"] > 0)
    if points:
        low, high = min(min(pair) for pair in points), max(max(pair) for pair in points)
        curves = [Curve("equal", ((low, low), (high, high))), Curve("blocks", points, joined=False)]
        blocks.append(
            picture_curves(
                curves, "estimated, nats", "measured, nats", "Estimate and measurement of every block",
                log=True, log_x=True,
            )
        )  # fmt: skip
    return Section("Loss", tuple(blocks))


def curve_picture(curve: list[dict[str, float]], others: Sequence[Curve], parts: str = "attention") -> Picture:
    """Loss by the share removed of these parts, estimated, times what measurements said of the estimates; and other
    points, measured or chosen: (share, nats)."""
    points = tuple((point["sparsity"], point["loss"]) for point in curve)
    estimated = Curve("estimated, corrected by measurements", points)
    drawn = [
        replace(each, points=tuple((100 * share, max(loss, LEAST_NATS)) for share, loss in each.points))
        for each in (estimated, *others)
    ]
    return picture_curves(drawn, f"% of the {parts} parameters removed", "nats", "Size against loss", log=True)


def nats(value: float) -> str:
    """A loss as a table shows it."""
    return f"{value:.2g}" if value >= LEAST_NATS else "0"


def blocks_nats(round_: Mapping[str, Any]) -> float:
    """What a round's blocks were measured to lose one by one, added up: its estimate once it is corrected."""
    return sum(block["measured"] for block in round_["blocks"])


def _round_rows(rounds: list[dict[str, Any]], best: int) -> list[tuple[str, ...]]:
    return [
        (
            f"round {number + 1}",
            nats(each["estimated"]),
            nats(blocks_nats(each)),
            nats(each["measured"]),
            "this model" if number == best else "",
        )
        for number, each in enumerate(rounds)
    ]
