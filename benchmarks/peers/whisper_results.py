"""What the rounds of `whisper_speed` say: ratios with intervals, goals, floors, memory, and their tables."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

QUIET_SHARE = 0.04
CONFIDENCE = 0.95
FEWEST_ROUNDS = 6  # for an interval of that confidence
MIB = 2**20
SETTLED_SHARE = 0.2  # of the windows, after which memory must not grow
FLAT_BYTES = 4 * MIB


@dataclass(frozen=True)
class Goal:
    """A share of the peer's time that ours is to stay below; None: it is only shown."""

    ours: str
    peer: str
    at_most: float | None


GOALS = (
    Goal("ours fp32", "CTranslate2 float32", 0.85),
    Goal("ours fp32", "optimum fp32", 0.4),
    Goal("ours int8", "CTranslate2 int8_float32", 0.6),
    Goal("ours OpenVINO fp32", "CTranslate2 float32", None),
    Goal("ours OpenVINO fp32", "optimum fp32", None),
    Goal("ours fp32, 50 % pruned", "CTranslate2 float32", 0.85),
    Goal("ours fp32, 50 % pruned", "optimum fp32", 0.4),
    Goal("ours int8, 50 % pruned", "CTranslate2 int8_float32", 0.6),
    Goal("ours OpenVINO fp32, 50 % pruned", "CTranslate2 float32", None),
    Goal("ours OpenVINO fp32, 50 % pruned", "optimum fp32", None),
    Goal("ours fp32, 50 % pruned", "ours fp32", None),
    Goal("ours int8, 50 % pruned", "ours int8", None),
    Goal("ours OpenVINO fp32, 50 % pruned", "ours OpenVINO fp32", None),
)


@dataclass(frozen=True)
class Turn:
    """What an engine took in one round, in seconds.

    total_s: from waveform to tokens; front_end_s: the part of it before the encoder, where it can be told apart;
    encode_s: from waveform to encoder states, in a request of its own; others_share: of all cores, used by others.
    """

    total_s: float
    encode_s: float
    front_end_s: float | None
    others_share: float
    cpu_s: float


@dataclass(frozen=True)
class Ratio:
    """Ours over the peer's, a ratio per round: the median and an interval of it."""

    median: float
    low: float
    high: float
    rounds: int


def median_interval(values: list[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The narrowest pair of order statistics between which the median lies with at least `confidence`.

    No law of the values is assumed. Fewer than FEWEST_ROUNDS values cannot promise it: they give their extremes.
    """
    ordered, count = sorted(values), len(values)
    outside, rank = 0.0, 0
    while rank < count // 2:
        beyond = outside + 2 * comb(count, rank) / 2**count
        if beyond > 1 - confidence:
            break
        outside, rank = beyond, rank + 1
    place = max(rank - 1, 0)
    return ordered[place], ordered[count - 1 - place]


def ratio_of(ours: list[float], peers: list[float]) -> Ratio:
    """Pairs of the same rounds."""
    ratios = [first / second for first, second in zip(ours, peers, strict=True)]
    low, high = median_interval(ratios)
    return Ratio(statistics.median(ratios), low, high, len(ratios))


def others_share(turns: dict[str, list[Turn]]) -> float:
    """The share of all cores that others used in the median turn."""
    return statistics.median(turn.others_share for found in turns.values() for turn in found)


def front_end_free(turns: list[Turn]) -> list[float]:
    """Seconds without the front end, of a peer, which has it apart."""
    return [turn.total_s - (turn.front_end_s or 0.0) for turn in turns]


def verdict(ratio: Ratio, goal: Goal) -> str:
    """Whether the goal is met: by the whole interval, by the median alone, or not."""
    if goal.at_most is None:
        return ""
    if ratio.rounds < FEWEST_ROUNDS:
        return "too few rounds"
    if ratio.high <= goal.at_most:
        return "met"
    return "met by the median" if ratio.median <= goal.at_most else "missed"


def agreement(tokens: list[int], others: list[int]) -> int:
    """How many tokens are the same before the first one that is not."""
    pairs = zip(tokens, others, strict=True)
    return next((place for place, (first, second) in enumerate(pairs) if first != second), len(tokens))


def growth_bytes(resident: list[int]) -> float:
    """By how much a straight line through the windows after the first fifth rises from their first to their last."""
    settled = np.array(resident[int(len(resident) * SETTLED_SHARE) :], dtype=np.float64)
    if len(settled) < 2:
        return 0.0
    return float(np.polyfit(np.arange(len(settled)), settled, 1)[0] * (len(settled) - 1))


def bytes_per_token(config: dict[str, Any], tokens: int) -> dict[str, int]:
    """Bytes of float32 that a step must read at least once: decoder weights, vocabulary, cross and self cache.

    The self-attention's cache is that of a step in the middle of `tokens`.
    """
    width, inner = config["d_model"], config["decoder_ffn_dim"]
    layers, positions = config["decoder_layers"], config["max_source_positions"]
    return {
        "weights": 4 * layers * (4 * width**2 + 2 * width**2 + 2 * width * inner),
        "vocabulary": 4 * config["vocab_size"] * width,
        "cross_cache": 4 * layers * 2 * positions * width,
        "self_cache": 4 * layers * 2 * (tokens // 2) * width,
    }


def encoder_operations(config: dict[str, Any]) -> int:
    """Floating-point operations of the encoder and of cross-attention's keys and values, a multiply-add being two."""
    width, inner, positions = config["d_model"], config["encoder_ffn_dim"], config["max_source_positions"]
    convolutions = 3 * 2 * positions * config["num_mel_bins"] * width + 3 * positions * width**2
    layer = positions * (4 * width**2 + 2 * width * inner) + 2 * positions**2 * width
    crossed = config["decoder_layers"] * 2 * positions * width**2
    return 2 * (convolutions + config["encoder_layers"] * layer + crossed)


def show_speed(console: Console, turns: dict[str, list[Turn]], tokens: dict[str, dict[str, Any]], count: int) -> None:
    table = Table(title="medians of the rounds, ms")
    for column in (
        "engine",
        "total",
        "fastest",
        "front end",
        "with encoder",
        "per token",
        "tokens/s",
        "core-s",
        "same tokens",
    ):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for name, found in turns.items():
        total = statistics.median(turn.total_s for turn in found)
        encode = statistics.median(turn.encode_s for turn in found)
        per_token = statistics.median((turn.total_s - turn.encode_s) / count for turn in found)
        fronts = [turn.front_end_s for turn in found if turn.front_end_s is not None]
        same = tokens.get(name)
        table.add_row(
            name,
            f"{1e3 * total:.0f}",
            f"{1e3 * min(turn.total_s for turn in found):.0f}",
            f"{1e3 * statistics.median(fronts):.0f}" if fronts else "in encoder",
            f"{1e3 * encode:.0f}",
            f"{1e3 * per_token:.2f}",
            f"{1 / per_token:.0f}",
            f"{statistics.median(turn.cpu_s for turn in found):.2f}",
            f"{same['same_tokens']} of {same['of']}" if same else "",
        )
    console.print(table)


def compare(turns: dict[str, list[Turn]]) -> list[dict[str, Any]]:
    """Every goal whose two engines were measured."""
    rows = []
    for goal in GOALS:
        if goal.ours not in turns or goal.peer not in turns:
            continue
        ours, peer = turns[goal.ours], turns[goal.peer]
        ratio = ratio_of([turn.total_s for turn in ours], [turn.total_s for turn in peer])
        strict = ratio_of([turn.total_s for turn in ours], front_end_free(peer))
        quiet = [max(a.others_share, b.others_share) <= QUIET_SHARE for a, b in zip(ours, peer, strict=True)]
        rows.append(
            {
                "ours": goal.ours,
                "peer": goal.peer,
                "at_most": goal.at_most,
                "ratio": vars(ratio),
                "ratio_without_the_peers_front_end": vars(strict),
                "verdict": verdict(ratio, goal),
                "quiet_rounds": sum(quiet),
            }
        )
    return rows


def show_ratios(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table(title="ours / peer, round by round: median (interval of 95 %)")
    for column in ("ours", "peer", "ratio", "at most", "", "peer without its front end", "quiet rounds"):
        table.add_column(column)
    for row in rows:
        ratio, strict = row["ratio"], row["ratio_without_the_peers_front_end"]
        table.add_row(
            row["ours"],
            row["peer"],
            f"{ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})",
            "" if row["at_most"] is None else f"{row['at_most']:g}",
            row["verdict"],
            f"{strict['median']:.3f}",
            f"{row['quiet_rounds']} of {ratio['rounds']}",
        )
    console.print(table)


def show_memory(console: Console, memory: dict[str, dict[str, Any]]) -> None:
    table = Table(title="memory of a process that transcribes, MB (10⁶ bytes)")
    for column in ("engine", "weights", "loaded", "peak, one window", "peak, long audio", "peak, with retries",
                   "weights + 150", "", "growth over the audio"):  # fmt: skip
        table.add_column(column)
    for name, found in memory.items():
        peak, limit, growth = found["long_peak_bytes"], found["limit_bytes"], found["growth_bytes"]
        flat = "flat" if growth <= FLAT_BYTES else "grows"
        table.add_row(
            name,
            f"{found['weight_bytes'] / 1e6:.0f}",
            f"{found['loaded_bytes'] / 1e6:.0f}",
            f"{found['first_peak_bytes'] / 1e6:.0f}",
            f"{peak / 1e6:.0f}",
            f"{found['fallback_peak_bytes'] / 1e6:.0f}",
            f"{limit / 1e6:.0f}",
            "met" if peak <= limit else "missed",
            f"{growth / 1e6:+.1f} in {found['audio_s'] / 60:g} min ({flat})",
        )
    console.print(table)


def show_floor(console: Console, floor: dict[str, Any]) -> None:
    megabytes = sum(floor["bytes_per_token"].values()) / 1e6
    console.print(
        f"floor in float32: a token reads {megabytes:.0f} MB, at {floor['reading_gb_per_s']['best']:.1f} GB/s "
        f"{floor['token_ms']:.2f} ms; the encoder's {floor['encoder_gflop']:.1f} GFLOP at "
        f"{floor['multiplying_gflop_per_s']['best']:.0f} GFLOP/s {floor['encoder_ms']:.0f} ms"
    )
