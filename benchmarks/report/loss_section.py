"""The report's section on what pruning cost: estimated against measured, and the curve of size against loss."""

from __future__ import annotations

from typing import Any, Mapping

from leanear.benchmarks.formatting import PRUNED_PARTS
from leanear.benchmarks.report.page import Block, Paragraph, Section, Table
from leanear.benchmarks.report.pictures import Curve, Picture, picture_curves


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
            " on; the best round, and what was kept of compensation and recovery, were chosen on them. Estimates add up"
            " single heads; a block is measured by pruning it alone. Nothing was trained or fitted yet."
        ),
        Table("Rounds", ("", "estimated", "measured", ""), tuple(_round_rows(rounds, loss["best"]))),
    ]
    if loss.get("curve"):
        blocks.append(
            curve_picture(
                loss["curve"],
                [(pruning["sparsity"], rounds[loss["best"]]["measured"])],
                PRUNED_PARTS[pruning.get("prune", "attention")],
            )
        )
    chosen = rounds[loss["best"]]["blocks"]
    rows = tuple((block["name"], nats(block["estimated"]), nats(block["measured"])) for block in chosen)
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


def curve_picture(
    curve: list[dict[str, float]], measured: list[tuple[float, float]], parts: str = "attention"
) -> Picture:
    """Estimated loss by the share removed of the parameters of these parts, and some models' measured losses."""
    estimated = tuple((100 * point["sparsity"], max(point["loss"], 1e-6)) for point in curve)
    points = tuple((100 * sparsity, max(nats, 1e-6)) for sparsity, nats in measured)
    names = "this model, as measured" if len(points) == 1 else "measured"
    return picture_curves(
        [Curve("estimated", estimated), Curve(names, points, joined=len(points) > 1)],
        f"% of the {parts} parameters removed", "nats", "Size against loss", log=True,
    )  # fmt: skip


def nats(value: float) -> str:
    """A loss as a table shows it."""
    return f"{value:.2g}" if value >= 1e-6 else "0"


def _round_rows(rounds: list[dict[str, Any]], best: int) -> list[tuple[str, str, str, str]]:
    return [
        (
            f"round {number + 1}",
            nats(each["estimated"]),
            nats(each["measured"]),
            "this model" if number == best else "",
        )
        for number, each in enumerate(rounds)
    ]
