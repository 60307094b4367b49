"""What feed-forward blocks of some hidden channels cost on this device and runtime, as a table.

A block costs so much for being there (layer norm, activation, residual, starting), and as much again for each of its
channels; both are a least-squares fit of blocks of several widths. A block without channels is gone and costs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from leanear.runtimes.records import Amount, Count
from leanear.timing.table_file import Kept, fit_nonnegative

EIGHTHS = (6, 5.5, 4, 2, 1)  # of all channels: widths that are timed, in whole vectors where blocks have so many
VECTOR_CHANNELS = 16


@dataclass(frozen=True)
class FeedForwardParts:
    """Milliseconds of a feed-forward block: of its being there, and of each of its channels."""

    block_ms: Amount
    channel_ms: Amount


@dataclass(frozen=True)
class FeedForwardProbe:
    """Blocks of one width as they were timed, beside what the parts say; of a Whisper, a stage with all such blocks."""

    kind: str
    width: Count
    measured_ms: Amount
    fitted_ms: Amount


@dataclass(frozen=True)
class FeedForwardTable(Kept):
    """Milliseconds of a model's feed-forward blocks on one device, runtime, precision and number of threads.

    dense_ms: the whole dense model, timed in turn with them; blocks: the kind of each, in the order of the model's
    feed-forward sites; parts: by kind; others_share: of all cores, what other programs used while it was timed.
    """

    SCHEMA: ClassVar[str] = "leanear-feed-forward-latency-table-1"

    dense_ms: Amount
    blocks: tuple[str, ...]
    parts: dict[str, FeedForwardParts]
    probes: tuple[FeedForwardProbe, ...]
    others_share: Amount
    key: dict[str, Any]

    @property
    def fault(self) -> str | None:
        """What is wrong with the table, in a few words."""
        unknown = sorted(set(self.blocks) - set(self.parts))
        return f"blocks are of the kind {unknown[0]}, of which there are no parts" if unknown else None

    def parts_beside(self, dense_ms: float) -> list[FeedForwardParts]:
        """Every block's parts, where the dense model takes so long: two timings of a device differ by its state."""
        ratio = dense_ms / self.dense_ms
        beside = {kind: FeedForwardParts(of.block_ms * ratio, of.channel_ms * ratio) for kind, of in self.parts.items()}
        return [beside[kind] for kind in self.blocks]


def probe_widths(full: int) -> list[int]:
    """Channels of the blocks that are timed, all of them first, none twice."""
    whole = (VECTOR_CHANNELS * round(full * eighths / 8 / VECTOR_CHANNELS) for eighths in EIGHTHS)
    fewer = (width or max(1, round(full * eighths / 8)) for width, eighths in zip(whole, EIGHTHS, strict=True))
    return list(dict.fromkeys([full, *fewer]))


def fit_feed_forward(
    kind: str, timed: Sequence[tuple[int, float]], blocks: int = 1, has_rest: bool = False
) -> tuple[FeedForwardParts, list[FeedForwardProbe]]:
    """The parts whose sums are nearest to what was timed, none of them negative, and what they say of each.

    timed: channels, and the milliseconds of so many `blocks` of them, with a rest that is always the same or without.
    """
    rows = [{"block_ms": blocks * (width > 0), "channel_ms": blocks * width, "rest": has_rest} for width, _ in timed]
    found = fit_nonnegative(rows, [milliseconds for _, milliseconds in timed])
    said = [sum(found[name] * often for name, often in row.items()) for row in rows]
    probes = [FeedForwardProbe(kind, *each, fitted) for each, fitted in zip(timed, said, strict=True)]
    return FeedForwardParts(found["block_ms"], found["channel_ms"]), probes
