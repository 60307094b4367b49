"""What was lost, in words: a loss is a loss, whether accuracy falls or word errors rise, and may be undecided."""

from __future__ import annotations

from dataclasses import dataclass

from leanear.benchmarks.formatting import WORD_ERROR_RATE
from leanear.benchmarks.summary import ROUNDING, Interval, no_interval
from leanear.runtimes.process.notes import plural

DECIDABLE_POINTS = 1.0  # without a gate, a loss that may be larger than this is undecided
RULE_OF_THREE = 3.0  # what none of n showed is at most 3/n of all, at 95%: Hanley, JAMA 249 (1983) 1743


@dataclass(frozen=True)
class Verdict:
    """What a reader is told first. tone: "good", "bad", or "" where it is neither or not to be trusted."""

    text: str
    tone: str = ""


def loss_of(change: Interval, metric: str) -> Interval:
    """What a change of the metric loses: of accuracy or mAP its fall, of the word error rate its rise."""
    return change if metric == WORD_ERROR_RATE else Interval(-change.estimate, -change.high, -change.low)


def loss_text(loss: Interval, of: str = "") -> str:
    """A loss, a share, in points with its 95% interval: "a loss of 0.4 points (0.1 to 0.8)"; of: of what."""
    span = span_text(loss) if loss.has_spread else no_interval(loss.estimate)
    moved = "0 points" if loss.has_spread and points(loss.estimate) == "0" else _moved(loss.estimate)
    return f"{moved}{of and f' of {of}'} ({span})"


def span_text(loss: Interval) -> str:
    """From where to where a loss may be, in points."""
    if loss.low >= 0:
        return f"{points(loss.low)} to {points(loss.high)}"
    if loss.high <= 0:
        return f"{points(-loss.high)} to {points(-loss.low)}"
    return f"a gain of {points(-loss.low)} to a loss of {points(loss.high)}"


def points_moved(loss: float) -> str:
    """A loss, a share, as few words as a table has room for."""
    if points(loss) == "0":
        return "0 points"
    return f"{points(abs(loss))} points {'lost' if loss > 0 else 'gained'}"


def points(share: float) -> str:
    """A share in points, with two decimals at most."""
    text = f"{100 * share:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def quality_verdict(loss: Interval, clips: int, limit_points: float | None) -> Verdict:
    """What is to be said of a loss, a share, that was measured on so many clips; limit_points: of the gate, if any.

    It is decided where the whole 95% interval is on one side of the gate, or, without one, of DECIDABLE_POINTS. Where
    no clip differs, the rule of three stands for the interval that resampling does not give.
    """
    if not loss.has_spread:
        unseen = min(RULE_OF_THREE / clips, 1.0)
        loss = Interval(loss.estimate, loss.estimate - unseen, loss.estimate + unseen)
    gate = "" if limit_points is None else f"the gate of {points_of(limit_points)}"
    allowed = (DECIDABLE_POINTS if limit_points is None else limit_points) / 100 + ROUNDING
    if loss.high < 0 or (loss.high <= allowed and (gate or loss.low <= 0)):
        said = loss_text(loss)
        if loss.low <= 0 <= loss.high:
            none = f"no loss measured (95%: {span_text(loss)} points)"
            said = none if points(loss.estimate) == "0" else f"{said}, which may be chance"
        return Verdict(f"{said}, within {gate}" if gate else said, "good")
    if loss.low > (allowed if gate else 0):
        return Verdict(f"{loss_text(loss)}, beyond {gate}" if gate else loss_text(loss), "bad")
    alone = ""
    if gate:
        alone = f", which by itself {'keeps' if loss.estimate <= allowed else 'misses'} {gate}"
    if points(loss.estimate) == "0":
        return Verdict(
            f"not decided: no loss on {plural(clips, 'clip')}, too few to rule out {_moved(loss.high)}"
            + (f" ({gate.replace('gate of', 'gate is')})" if gate else "")
        )
    return Verdict(f"not decided: too few clips ({clips:,}); measured: {loss_text(loss)}{alone}")


def points_of(number: float) -> str:
    """So many points."""
    return f"{number:g} point" if number == 1 else f"{number:g} points"


def _moved(loss: float) -> str:
    if points(loss) == "0":
        return "no change"
    return f"a {'loss' if loss > 0 else 'gain'} of {points_of(float(points(abs(loss))))}"
