"""The report's section on what pruning cost: estimated against measured, and the curve of size against loss."""

from collections.abc import Sequence
from dataclasses import replace

from leanear.benchmarks.formatting import PRUNED_PARTS, block_title
from leanear.benchmarks.report.drawing.pictures import Curve, picture_curves
from leanear.benchmarks.report.drawing.plotting import Picture
from leanear.benchmarks.report.page import Block, Paragraph, Section, Table
from leanear.prune.closed_loop import Round
from leanear.prune.document import PruningDocument

LEAST_NATS = 1e-6  # what less is drawn as, and called 0


def loss_section(pruning: PruningDocument) -> Section | None:
    """From pruning.json; None where nothing was measured before compensation."""
    loss = pruning.loss
    if not loss.rounds:
        return None
    best = loss.rounds[loss.best]
    blocks: list[Block] = [
        Paragraph(
            "A loss is the Kullback-Leibler divergence of the slim model's answers from the dense model's, in nats per"
            " target (a label, or a token of a transcript), on calibration clips that were neither scored nor fitted"
            " on; the best round, and what was kept of compensation and recovery, were chosen on them. What follows is"
            " from before compensation and recovery. Estimates add up single heads; a block is measured by pruning it"
            " alone."
        ),
        Table(
            "Rounds",
            ("", "estimated", "its blocks, one by one", "measured", ""),
            tuple(_round_rows(loss.rounds, loss.best)),
        ),
    ]
    if loss.curve:
        measured = ((pruning.sparsity, best.measured),)
        chosen = Curve("this model, measured before compensation", measured, joined=False, chosen=True)
        curve = [(point.sparsity, point.loss) for point in loss.curve]
        blocks.append(curve_picture(curve, [chosen], PRUNED_PARTS[pruning.prune]))
    rows = tuple((block_title(block.name), nats(block.estimated), nats(block.measured)) for block in best.blocks)
    blocks.append(Table("Block by block", ("", "estimated", "measured"), rows, folded=True))
    points = tuple((max(b.estimated, 1e-7), max(b.measured, 1e-7)) for b in best.blocks if b.estimated > 0)
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


def curve_picture(curve: Sequence[tuple[float, float]], others: Sequence[Curve], parts: str) -> Picture:
    """Loss by the share removed of these parts, (share, nats), estimated, times what measurements said of the
    estimates; and other points, measured or chosen."""
    estimated = Curve("estimated, corrected by measurements", tuple(curve))
    drawn = [
        replace(each, points=tuple((100 * share, max(loss, LEAST_NATS)) for share, loss in each.points))
        for each in (estimated, *others)
    ]
    return picture_curves(drawn, f"% of the {parts} parameters removed", "nats", "Size against loss", log=True)


def nats(value: float) -> str:
    """A loss as a table shows it."""
    return f"{value:.2g}" if value >= LEAST_NATS else "0"


def _round_rows(rounds: Sequence[Round], best: int) -> list[tuple[str, ...]]:
    return [
        (
            f"round {number + 1}",
            nats(each.estimated),
            nats(each.of_blocks),
            nats(each.measured),
            "this model" if number == best else "",
        )
        for number, each in enumerate(rounds)
    ]
