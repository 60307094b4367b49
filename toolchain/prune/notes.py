"""What a report says of how the slim model came about: goal, search, recovery, and what pruning cost."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from leanear.benchmarks.formatting import PRUNED_PARTS, WORD_ERROR_RATE, block_title
from leanear.benchmarks.report.drawing.pictures import Curve, picture_curves
from leanear.benchmarks.report.drawing.plotting import Picture
from leanear.benchmarks.report.page import Block, Paragraph, Section, Table
from leanear.benchmarks.summary import Interval, how_surely
from leanear.benchmarks.verdict import quality_verdict
from leanear.evaluate.measured_loss import MeasuredLoss
from leanear.prune.closed_loop import Round
from leanear.prune.document import Cost, PruningDocument, Widths
from leanear.prune.latency_goal import LatencyCheck
from leanear.prune.search import Trial
from leanear.runtimes.process.notes import plural
from leanear.timing.model_timing import Timed

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


def held_out_text(number: int, metric: str) -> str:
    """So many held-out clips; most of what a Whisper is calibrated on are windows that several were joined to."""
    return plural(number, "held-out calibration " + ("window" if metric == WORD_ERROR_RATE else "clip"))


def pruning_notes(pruning: PruningDocument | None, medians_ms: Mapping[str, float | None]) -> list[str]:
    """Sentences from pruning.json; medians_ms: measured latency by "dense" and "slim", where it was measured."""
    if pruning is None:
        return []
    notes = []
    if len(pruning.by_kind) > 1:
        notes.append(_kinds_sentence(pruning.by_kind))
    if pruning.feed_forward_by_kind:
        notes.append(_feed_forward_sentence(pruning.feed_forward_by_kind, pruning.by_kind))
    measured = loss_sentence(pruning)
    if measured is not None:
        notes.append(measured)
    if pruning.widths is not None and pruning.widths.one_per_head:
        notes.append(_one_width_sentence(pruning.widths))
    if pruning.search:
        notes.append(_search_sentence(pruning, pruning.search))
    if pruning.cost is not None and pruning.cost.unit == "ms" and (pruning.timed is None or not pruning.timed.tokens):
        notes.append(_latency_sentence(pruning.cost, medians_ms))
    if pruning.latency_checks and pruning.timed is not None:
        notes.append(_checked_sentence(pruning.latency_checks, pruning.timed))
    recovery = pruning.recovery
    if recovery is not None and recovery.held_out_kls:
        held_out = held_out_text(pruning.loss.finished.clips, pruning.metric)
        before, after = recovery.held_out_kls[0], recovery.held_out_kls[recovery.best_epoch]
        if recovery.best_epoch == 0:
            notes.append(
                f"Recovery made nothing better and was taken back: {recovery.updates} updates did not bring"
                f" the divergence from the dense model on {held_out} below {before:.4f} nats."
                f" It ended because {recovery.stopped}."
            )
            return notes
        notes.append(
            f"Recovery took {recovery.updates} updates and ended because {recovery.stopped}; the divergence from the"
            f" dense model on {held_out} went from {before:.4f} to {after:.4f} nats."
        )
    return notes


def loss_warning(pruning: PruningDocument | None) -> str | None:
    """In plain words what the finished model has lost, where that matters; None where it does not."""
    if pruning is None or not pruning.loss.finished.matters:
        return None
    finished, begins = pruning.loss.finished, pruning.loss.begins_at
    parts = PRUNED_PARTS[pruning.prune] + ("" if pruning.prune == "attention" else " parameters")
    removed = f"Removing {100 * pruning.sparsity:.0f} % of the {parts} does damage here"
    if finished.divergence is None:
        return f"{removed}: the pruned model's answers are not numbers. Do not use it."
    said = (
        f"{removed}: on {held_out_text(finished.clips, pruning.metric)} {_rate_moved(pruning)},"
        f" and the model's answers diverge from the dense model's by {finished.divergence:.3g} nats"
    )
    if begins is None:
        return f"{said}."
    if finished.standard_error_points is None:
        return f"{said}. So few clips cannot tell where that begins: give more."
    if begins <= 0:
        return f"{said}. By the corrected estimates no share is free of that."
    fitted = "" if pruning.recovery is not None else ", or fit it again with --recovery full"
    if begins >= pruning.sparsity:
        return f"{said}. The corrected estimates did not tell: keep more of the model{fitted}."
    better = fitted or ", or keep more of the model"
    return (
        f"{said}. By the corrected estimates such a loss begins at about {100 * begins:.0f} %: stay below"
        f" --sparsity {begins:.2f}{better}."
    )


def loss_sentence(pruning: PruningDocument) -> str | None:
    """What was measured of the finished model; and before, what was estimated, and how the closed loop got there."""
    loss, rounds = pruning.loss, pruning.loss.rounds
    finished = loss.finished
    if finished.divergence is None:
        return None
    said = (
        f"Measured on {held_out_text(finished.clips, pruning.metric)}{_after(pruning)}: {nats(finished.divergence)}"
        f" nats from the dense model's answers; {_rate_moved(pruning)}{_uncertain(finished)}."
    )
    if not rounds:
        return said
    chosen, first = rounds[loss.best], rounds[0]
    said += f" {'Before that, the' if _after(pruning) else 'The'} plan's estimate was {nats(chosen.estimated)} nats,"
    said += f" and {nats(chosen.measured)} were measured"
    one_by_one = f"; its blocks, cut one by one, lose {nats(chosen.of_blocks)} together."
    said += "." if chosen.agrees_as_a_whole else one_by_one
    if loss.shots is not None:
        said += f" It was pruned in {loss.shots} shots, of which this was the last."
    if len(rounds) > 1 and chosen.measured > min(each.measured for each in rounds):
        fitted = "" if pruning.compensation is None else "compensated, "
        said += f" Round {loss.best + 1} of {len(rounds)} stays: {fitted}it loses the least, or as little as any, with"
        said += " estimates that held."
    elif len(rounds) > 1 and not loss.best:
        said += f" Widths were chosen again {len(rounds) - 1}\u00d7, which made nothing better."
    elif len(rounds) > 1:
        said += (
            f" It is round {loss.best + 1} of {len(rounds)}: the first plan, estimated at"
            f" {nats(first.estimated)}, measured {nats(first.measured)}, so blocks were measured one by one and"
            " widths chosen again."
        )
    return said


def _after(pruning: PruningDocument) -> str:
    """What the finished model went through that was measured before."""
    kept = pruning.compensation is not None and any(block.kept for block in pruning.compensation.blocks)
    trained = pruning.recovery is not None and pruning.recovery.best_epoch
    done = [*(["compensation"] if kept else []), *(["recovery"] if trained else [])]
    return f", after {' and '.join(done)}" if done else ""


def _uncertain(finished: MeasuredLoss) -> str:
    if finished.standard_error_points is None:
        return "; so few clips decide nothing, give more"
    loss = _shares(finished.points, finished.low_points, finished.high_points)
    return f", {quality_verdict(loss, finished.clips, None).text}"


def _shares(points: float, low: float | None, high: float | None) -> Interval:
    """An interval in points, as one of shares; one that is none has no spread."""
    return Interval(*(points / 100 if end is None else end / 100 for end in (points, low, high)))


def _rate_moved(pruning: PruningDocument) -> str:
    metric, finished = pruning.metric, pruning.loss.finished
    before, after = (100 * wrong / finished.counted for wrong in (finished.dense_mistakes, finished.slim_mistakes))
    name, ends = f"the {metric}", (f"{before:.1f}", f"{after:.1f}")
    if metric != WORD_ERROR_RATE:
        name, ends = metric, (f"{100 - before:.1f}", f"{100 - after:.1f}")
    return f"{name} stayed at {ends[0]} %" if len(set(ends)) == 1 else f"{name} went from {ends[0]} to {ends[1]} %"


def _kinds_sentence(by_kind: Mapping[str, float]) -> str:
    names = {"encoder": "the encoder's self-attention", "decoder": "the decoder's", "cross": "cross-attention"}
    said = ", ".join(f"{100 * share:.1f} % of {names[kind]}" for kind, share in by_kind.items())
    return f"Removed are {said}."


def _feed_forward_sentence(shares: Mapping[str, float], attention: Mapping[str, float]) -> str:
    """Of which blocks how much went: of a model with one kind of attention, of attention too."""
    names = {"encoder": "the encoder's feed-forward channels", "decoder": "the decoder's"}
    if len(shares) == 1:
        (share,), (of_attention,) = shares.values(), attention.values()
        return f"Removed are {100 * of_attention:.1f} % of attention and {100 * share:.1f} % of feed-forward channels."
    return f"Removed are {', '.join(f'{100 * share:.1f} % of {names[kind]}' for kind, share in shares.items())}."


def _one_width_sentence(widths: Widths) -> str:
    said = f"Query/key and value/output width of a head are one, a multiple of {widths.multiples[0]}"
    if widths.not_filled_up_by is None:
        return f"{said}."
    return (
        f"{said}, and the graph of form {widths.not_filled_up_by} fills no head up, so that parameters and MACs are"
        " those that the target has."
    )


def _search_sentence(pruning: PruningDocument, search: Sequence[Trial]) -> str:
    trials = sorted(search, key=lambda trial: trial.sparsity)
    moved, sign = ("rose", 1) if pruning.metric == WORD_ERROR_RATE else ("fell", -1)
    tried = "; ".join(
        f"{100 * trial.sparsity:.0f} %: {sign * trial.drop_points + 0.0:+.2f}, expected"
        f" {sign * trial.expected_drop_points:+.2f} ± {trial.standard_error_points:.2f}"
        for trial in trials
    )
    return (
        f"The sparsity of {100 * pruning.sparsity:.1f} % is the largest tried whose {pruning.metric} on"
        f" {held_out_text(trials[0].clips, pruning.metric)} {moved} by at most {pruning.goal.value:g} points, as"
        f" counted and as expected (sparsity: change in points: {tried}).{_chosen_sentence(pruning.goal.value, trials)}"
    )


def _chosen_sentence(goal_points: float, trials: Sequence[Trial]) -> str:
    """How surely the drop of the sparsity that was chosen is within the goal, as counted."""
    chosen = next((trial for trial in reversed(trials) if trial.within), None)
    if chosen is None:
        return ""
    surely = how_surely(_shares(chosen.drop_points, chosen.low_points, chosen.high_points), goal_points)
    return f" As counted at {100 * chosen.sparsity:.0f} %, {surely}."


def _checked_sentence(checks: Sequence[LatencyCheck], timed: Timed) -> str:
    """The finished model's time beside the prediction, and what was timed; before anything was fitted or trained."""
    check, tried = checks[-1], len(checks)
    heard = f"{timed.audio_s:g} s of audio"
    if timed.tokens is not None:
        heard += f" in a window of {timed.window_s:g} s and {timed.tokens} tokens"
    dense, slim = check.measured_dense_ms, check.measured_ms
    ratio, predicted = dense / slim, check.predicted_dense_ms / check.predicted_ms
    return (
        f"Timed when it was pruned, {heard}, in {timed.precision}: predicted {check.predicted_dense_ms:.4g} ms"
        f" dense and {check.predicted_ms:.4g} ms slim, measured {dense:.4g} and {slim:.4g} ms in turn"
        f" ({100 * (check.predicted_ms / slim - 1):+.1f} %); {ratio:.3f}\u00d7 as fast"
        f" ({100 * (predicted / ratio - 1):+.1f} %), real-time factor {slim / 1000 / timed.audio_s:.4g}. The goal"
        f" was {'met' if check.met else 'NOT met'}, by plan {tried} of {tried}."
        + (f" These times are not to be trusted: {check.doubt}." if check.doubt else "")
    )


def _latency_sentence(cost: Cost, medians_ms: Mapping[str, float | None]) -> str:
    predicted = f"The latency table predicted {cost.dense:.4g} ms dense and {cost.slim:.4g} ms slim"
    predicted += f", {cost.dense / cost.slim:.3f}×"
    dense, slim = medians_ms.get("dense"), medians_ms.get("slim")
    if not dense or not slim:
        return predicted + "; the latency was not measured."
    off = 100 * ((dense / slim) / (cost.dense / cost.slim) - 1)
    return (
        predicted
        + f"; measured were {dense:.4g} ms and {slim:.4g} ms, {dense / slim:.3f}× ({off:+.1f} % of the ratio)."
    )
