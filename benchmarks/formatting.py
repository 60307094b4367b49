"""Figures as words: units, signs, and what is said where there is no figure."""

from __future__ import annotations

import re
from typing import Any, Sequence

import numpy as np

from leanear.benchmarks.sensors.device import is_measured
from leanear.benchmarks.summary import Interval, LatencySummary
from leanear.runtimes.choose import MODULES, choose_runtime

MEGA = 1e6
SYSTEM_FOLDERS = "sys|proc|dev|usr|etc|lib|run|boot"
ABSOLUTE_PATH = re.compile(rf"(?<![\w./~…-])/(?!(?:{SYSTEM_FOLDERS})/)(?:[^/\s'\"`|<>]+/)+([^/\s'\"`|<>]+)")
NO_RATE_INTERVAL = "every resample has this rate, which is no interval"
PRUNED_PARTS = {"attention": "attention", "feed-forward": "feed-forward", "all": "attention and feed-forward"}
BLOCK_WORDS = {"self_attn": "self-attention", "encoder_attn": "cross-attention", "feed_forward": "feed-forward"}
WORD_ERROR_RATE = "word error rate"  # the metric that rises where something is lost


def percentile(summary: LatencySummary, percent: int) -> str:
    """A percentile in ms, or "n/a (n=..)" where the samples are too few for it."""
    value = summary.percentiles_ms[percent]
    return f"n/a (n={summary.n})" if value is None else f"{value:.2f}"


def median_and_span(values: Sequence[float]) -> str:
    """The median, and the least and the most."""
    return f"{np.median(values):,.1f} ({min(values):,.1f} to {max(values):,.1f})"


def milliseconds(value: float | None) -> str:
    """`value` ms with its unit, or "not measured"."""
    return "not measured" if value is None else f"{value:.2f} ms"


def megabytes(value: float | None) -> str:
    """`value` bytes in MB (10^6), or "not measured"."""
    return "not measured" if value is None else f"{value / MEGA:,.1f} MB"


def kilobytes(value: float | None) -> str:
    """`value` bytes in kB (10^3), or "not measured"."""
    return "not measured" if value is None else f"{value / 1e3:,.1f} kB"


def factor(value: float | None) -> str:
    """A quotient to four places, or "not measured"."""
    return "not measured" if value is None else f"{value:.4f}"


def per_second(value: float | None) -> str:
    """A rate to one place, or "not measured"."""
    return "not measured" if value is None else f"{value:,.1f}"


def count(value: float | None) -> str:
    """A number of things, in millions (M) or thousands of millions (G) from there on."""
    if value is None:
        return "not measured"
    if value >= 1e9:
        return f"{value / 1e9:,.2f} G"
    return f"{value / 1e6:,.2f} M" if value >= 1e5 else f"{value:,.0f}"


def signed(share: float) -> str:
    """A change of a share in points, with its sign."""
    text = f"{100 * share:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "−")


def without_folders(text: str) -> str:
    """`text` with the last part alone of absolute paths, for their folders are this machine's; /sys and such stay."""
    return ABSOLUTE_PATH.sub(r"…/\1", text)


def rate_between(rate: Interval, digits: int = 1) -> str:
    """The interval of a share in per cent, or why there is none."""
    if not rate.has_spread:
        return NO_RATE_INTERVAL
    return f"95% between {rate.low:.{digits}%} and {rate.high:.{digits}%}"


def duration(seconds: float) -> str:
    """A stretch of time in its two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, left_s = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {left_s} s"
    return f"{minutes // 60} h {minutes % 60} min"


def threads_text(threads: int) -> str:
    """So many threads."""
    return "1 thread" if threads == 1 else f"{threads} threads"


def precisions_text(precisions: dict[str, str]) -> str:
    """In what each role was measured: said once where all were in the same."""
    if len(set(precisions.values())) == 1:
        return next(iter(precisions.values()))
    return ", ".join(f"{role} in {precision}" for role, precision in precisions.items())


def runtime_text(name: str) -> str:
    """A runtime's own name; the name in the results where this version knows no such runtime."""
    return choose_runtime(name).TITLE if name in MODULES else name


def fact_name(name: str) -> str:
    """A fact's key as words, without the unit that its value shows."""
    for suffix in ("_bytes", "_khz", "_c", "_share"):
        name = name[: -len(suffix)] if name.endswith(suffix) else name
    return name.replace("_", " ").replace("1 min", "over 1 minute")


def block_title(name: str) -> str:
    """A block's name in the model, such as "encoder.layers.3.self_attn", as words."""
    *place, what = name.split(".")
    return f"{' '.join(place).replace('layers', 'layer')}, {BLOCK_WORDS.get(what, what)}"


def reason_of(value: Any) -> str:
    """Why a fact was not measured, of an object in JSON or of an `Unknown`."""
    return str(value.get("reason", "no reason is given") if isinstance(value, dict) else value.reason)


def fact_text(name: str, value: Any) -> str:
    """A fact's value with its unit, or why it was not measured."""
    if not is_measured(value):
        return f"not measured ({reason_of(value)})"
    if name.endswith("_bytes") and isinstance(value, (int, float)):
        return f"{value / 1e9:,.2f} GB"
    if name.endswith("_khz") and isinstance(value, (int, float)):
        return f"{value / 1e3:,.0f} MHz"
    if name.endswith("_c") and isinstance(value, dict):
        return ", ".join(f"{sensor} {reading:.1f} °C" for sensor, reading in value.items())
    if name.endswith("_share") and isinstance(value, (int, float)):
        return f"{value:.1%}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1 else f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{fact_name(key)} {fact_text(key, item)}" for key, item in value.items() if item is not None)
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    return str(value)


def parity_text(parity: dict[str, Any] | None) -> str:
    """What a manifest's parity figures prove, in a sentence."""
    if not parity:
        return "not proved"
    if "relative_difference" not in parity or "bound" not in parity:
        return ", ".join(f"{key} {value}" for key, value in parity.items())
    close = f"logits within {parity['relative_difference']:.2g} of their scale (bound {parity['bound']:g})"
    if parity.get("noise") is not None:
        close = f"8 bits move the logits by {parity['noise']:.2g} of their spread (bound {parity['bound']:g})"
    clips = parity.get("clips", "?")
    if parity.get("divergence") is not None:
        return (
            f"8 bits cost {parity['divergence']:.2g} nats a token (bound {parity['bound']:g}) and change"
            f" {parity['changed_words']} of {parity['words']} words of {clips} golden clips"
            + (f"; left in float32: {', '.join(parity['left_in_float32'])}" if parity.get("left_in_float32") else "")
        )
    if parity.get("tokens") is not None:
        return (
            f"{close}, {parity.get('same_tokens', '?')} of {parity['tokens']} tokens the same on {clips} golden clips"
        )
    return f"{close}, same first label on {parity.get('same_top1', '?')} of {clips} golden clips"
