"""Pictures for the report as inline SVG: no script, no font, colours from the page's light or dark theme."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any, Sequence

import numpy as np

WIDTH = 760
LEFT = 92
RIGHT = 24
TICK_LABEL = 18
HISTOGRAM_BINS = 72
HISTOGRAM_UPPER_PERCENTILE = 99.0
COLOURS = 6  # of lines, in the page's style


@dataclass(frozen=True)
class Picture:
    """An SVG element, its title, and the sentence that says the same to those who do not see it."""

    svg: str
    title: str
    description: str


@dataclass(frozen=True)
class WidthCell:
    """A head: whether it is kept, and how many of its dense channels query/key and value/output keep."""

    kept: bool
    query_key: int
    value_output: int


def picture_latency(samples_ms: dict[str, np.ndarray], medians_ms: dict[str, float | None]) -> Picture:
    """A histogram lane per artifact over one axis in ms, its median marked.

    samples_ms: name to all samples. The slowest hundredth of them all may lie beyond the axis; they are counted.
    """
    pooled = np.concatenate(list(samples_ms.values()))
    low, high = float(pooled.min()), float(np.percentile(pooled, HISTOGRAM_UPPER_PERCENTILE))
    margin = max((high - low) * 0.03, 1e-3)
    axis = _Axis(low - margin, high + margin, LEFT, WIDTH - RIGHT)
    lane, gap, top = 96, 34, 28
    parts, said = [], []
    for place, (name, samples) in enumerate(samples_ms.items()):
        base = top + (place + 1) * lane + place * gap
        parts.append(_text(LEFT - 12, base - 6, name, "role", anchor="end"))
        parts.append(_histogram(samples, axis, base, lane, f"fill-{name}"))
        beyond = int((samples > axis.high).sum())
        if beyond:
            parts.append(
                _text(WIDTH - RIGHT, base - lane - 14, f"{beyond} slower, beyond the axis →", "note", anchor="end")
            )
        parts.append(_line(LEFT, base, WIDTH - RIGHT, base, "axis"))
        median = medians_ms[name]
        if median is not None:
            x = axis.place(median)
            parts.append(_line(x, base - lane - 2, x, base, f"median stroke-{name}"))
            anchor = "start" if x < WIDTH * 0.72 else "end"
            shift = 6 if anchor == "start" else -6
            parts.append(_text(x + shift, base - lane + 6, f"median {median:.2f} ms", "value", anchor=anchor))
            said.append(f"{name}: median {median:.2f} ms of {samples.size} samples")
        else:
            said.append(f"{name}: {samples.size} samples from {samples.min():.2f} to {samples.max():.2f} ms")
    bottom = top + len(samples_ms) * lane + (len(samples_ms) - 1) * gap
    parts.append(_ticks(axis, bottom, "ms per inference"))
    return _picture(parts, bottom + 44, "Latency distributions", "; ".join(said))


def _histogram(samples: np.ndarray, axis: _Axis, base: float, height: float, css: str) -> str:
    counts, edges = np.histogram(samples[samples <= axis.high], bins=HISTOGRAM_BINS, range=(axis.low, axis.high))
    tallest = max(int(counts.max()), 1)
    bars = []
    for count, start, end in zip(counts, edges[:-1], edges[1:]):
        if count:
            x, width = axis.place(start), axis.place(end) - axis.place(start)
            tall = (height - 14) * count / tallest
            bars.append(_rectangle(x + 0.5, base - tall, max(width - 1, 0.5), tall, css))
    return "".join(bars)


def picture_processes(processes: Sequence[tuple[str, np.ndarray]]) -> Picture:
    """One column per process in the order of running: a dot at its median, a line from 10th to 90th percentile."""
    spans = [np.percentile(samples, (10, 50, 90)) for _, samples in processes]
    low, high = min(float(span[0]) for span in spans), max(float(span[2]) for span in spans)
    margin = max((high - low) * 0.15, high * 0.01)
    axis = _Axis(low - margin, high + margin, 170, 24)
    step = (WIDTH - LEFT - RIGHT) / len(processes)
    parts = [_horizontal_grid(axis)]
    for place, ((name, _), span) in enumerate(zip(processes, spans)):
        x = LEFT + (place + 0.5) * step
        parts.append(_line(x, axis.place(span[0]), x, axis.place(span[2]), f"whisker stroke-{name}"))
        parts.append(f'<circle cx="{x:.1f}" cy="{axis.place(span[1]):.1f}" r="6" class="fill-{name}"/>')
        parts.append(_text(x, 192, name, "role", anchor="middle"))
        parts.append(_text(x, 207, f"process {place + 1}", "note", anchor="middle"))
    said = ", ".join(f"{name} {span[1]:.2f}" for (name, _), span in zip(processes, spans))
    return _picture(parts, 216, "Median latency of every process in ms, in the order in which they ran", said)


def picture_widths(
    groups: Sequence[tuple[str, Sequence[tuple[str, Sequence[WidthCell]]]]], dense_width: int
) -> Picture:
    """A row per layer, a cell per head: two bars, the share of query/key and of value/output channels that is kept.

    groups: a title (or none) and its layers, each a name and its heads.
    """
    layers = [layer for _, members in groups for layer in members]
    heads = max(len(cells) for _, cells in layers)
    left, right, top = 62, 74, 30
    cell = (WIDTH - left - right) / heads
    row, bar, heading = 34, 11, 26
    gap = min(8.0, cell * 0.14)
    parts = [
        _text(left + (head + 0.5) * cell, 18, f"head {head}" if cell > 44 else str(head), "note", anchor="middle")
        for head in range(heads)
    ]
    parts.append(_text(WIDTH - right + 8, 18, "kept", "note"))
    y, said = float(top), []
    for title, members in groups:
        if title:
            parts.append(_text(left, y + 14, title, "role"))
            y += heading
        for name, cells in members:
            parts.append(_text(left - 12, y + 16, name, "role", anchor="end"))
            for head, widths in enumerate(cells):
                x = left + head * cell + gap / 2
                parts.append(_width_cell(widths, x, y, cell - gap, bar, dense_width))
            parts.append(_text(WIDTH - right + 8, y + 16, f"{_channels_kept(cells, dense_width):.0%}", "value"))
            y += row
        if title:
            every = [widths for _, cells in members for widths in cells]
            said.append(f"{title}: {_channels_kept(every, dense_width):.0%} of the channels")
    legend, bottom = _legend(
        [("query/key channels", "query-key"), ("value/output channels", "value-output"), ("not kept", "track")], y + 4
    )
    parts.append(legend)
    heads_kept = sum(widths.kept for _, cells in layers for widths in cells)
    said.append(
        f"{heads_kept} of {sum(len(cells) for _, cells in layers)} heads are kept; the table below lists their widths"
    )
    return _picture(parts, bottom, "Channels kept in every layer and head", "; ".join(said))


def _channels_kept(cells: Sequence[WidthCell], dense_width: int) -> float:
    kept = sum(widths.query_key + widths.value_output for widths in cells)
    return kept / (2 * dense_width * len(cells))


def _width_cell(widths: WidthCell, x: float, y: float, width: float, bar: float, dense_width: int) -> str:
    if not widths.kept:
        box = _rectangle(x, y, width, 2 * bar + 2, "removed")
        return box + _text(x + width / 2, y + bar + 5, "removed" if width > 46 else "×", "note", anchor="middle")
    parts = []
    for offset, kept, css in ((0.0, widths.query_key, "query-key"), (bar + 2, widths.value_output, "value-output")):
        parts.append(_rectangle(x, y + offset, width, bar, "track"))
        parts.append(_rectangle(x, y + offset, width * kept / dense_width, bar, css))
        if width > 30:
            parts.append(_text(x + width - 3, y + offset + bar - 2, str(kept), "width", anchor="end"))
    return "".join(parts)


def picture_ratios(bars: Sequence[tuple[str, float, str]]) -> Picture:
    """Horizontal bars from 0, a line at 1 (no change). bars: what is said, ratio, "promised" or "measured"."""
    left, row, top = 214, 34, 10
    axis = _Axis(0.0, max(1.0, *(ratio for _, ratio, _ in bars)) * 1.12, left, WIDTH - RIGHT)
    parts = []
    for place, (name, ratio, css) in enumerate(bars):
        y = top + place * row
        parts.append(_text(left - 12, y + 16, name, "role", anchor="end"))
        parts.append(_rectangle(left, y, axis.place(ratio) - left, 22, css))
        parts.append(_text(axis.place(ratio) + 6, y + 16, f"{ratio:.2f}×", "value"))
    bottom = top + len(bars) * row
    parts.append(_line(axis.place(1.0), 2, axis.place(1.0), bottom, "one"))
    parts.append(_ticks(axis, bottom, "dense ÷ slim (1 = no change)"))
    said = "; ".join(f"{name} {ratio:.2f} times" for name, ratio, _ in bars)
    return _picture(parts, bottom + 44, "What the operation count promises and what was measured", said)


def picture_stacks(
    stacks: Sequence[tuple[str, Sequence[tuple[str, float]]]], unit: str, divisor: float, title: str
) -> Picture:
    """A stacked bar per artifact on one axis from 0. stacks: name, then (kind, amount) in an order common to all."""
    row, top = 40, 8
    longest = max(sum(amount for _, amount in stack) for _, stack in stacks)
    axis = _Axis(0.0, longest, LEFT, WIDTH - RIGHT - 80)
    parts = []
    for place, (name, stack) in enumerate(stacks):
        y, reached = top + place * row, 0.0
        parts.append(_text(LEFT - 12, y + 18, name, "role", anchor="end"))
        for number, (kind, amount) in enumerate(stack):
            x, end = axis.place(reached), axis.place(reached + amount)
            if amount > 0:
                bar = _rectangle(x, y, max(end - x - 1, 0.5), 26, f"stack-{number}")
                said = html.escape(f"{kind}: {amount / divisor:,.1f} {unit}")
                parts.append(f"<g><title>{said}</title>{bar}</g>")
            reached += amount
        parts.append(_text(axis.place(reached) + 6, y + 18, f"{reached / divisor:,.1f} {unit}", "value"))
    kinds = {kind for _, stack in stacks for kind, amount in stack if amount > 0}
    entries = [(kind, f"stack-{number}") for number, (kind, _) in enumerate(stacks[0][1]) if kind in kinds]
    legend, bottom = _legend(entries, top + len(stacks) * row)
    parts.append(legend)
    described = "; ".join(
        f"{name} {sum(amount for _, amount in stack) / divisor:,.1f} {unit}, of which "
        + ", ".join(f"{kind} {amount / divisor:,.1f}" for kind, amount in stack)
        for name, stack in stacks
    )
    return _picture(parts, bottom, title, described)


def picture_intervals(
    rows: Sequence[tuple[str, str, float, float, float]], unit: str, title: str = "Accuracy with 95% intervals"
) -> Picture:
    """A dot with its 95% interval per row on one axis. rows: name, role for the colour, estimate, low, high."""
    low, high = min(row[3] for row in rows), max(row[4] for row in rows)
    margin = max((high - low) * 0.08, 1e-6)
    left, height, top = 214, 34, 10
    axis = _Axis(low - margin, high + margin, left, WIDTH - RIGHT - 70)
    parts = []
    for place, (name, role, estimate, least, most) in enumerate(rows):
        y = top + place * height + 14
        parts.append(_text(left - 12, y + 4, name, "role", anchor="end"))
        parts.append(_line(axis.place(least), y, axis.place(most), y, f"whisker stroke-{role}"))
        parts.append(f'<circle cx="{axis.place(estimate):.1f}" cy="{y:.1f}" r="6.5" class="fill-{role}"/>')
        parts.append(_text(WIDTH - RIGHT, y + 4, f"{estimate:.2f}%", "value", anchor="end"))
    bottom = top + len(rows) * height
    parts.append(_ticks(axis, bottom, unit))
    said = "; ".join(f"{name} {estimate:.2f} ({least:.2f} to {most:.2f})" for name, _, estimate, least, most in rows)
    return _picture(parts, bottom + 44, title, said)


@dataclass(frozen=True)
class Curve:
    """A named line through (x, y), in the order of x, or points that nothing joins.

    labels: what each point is called beside it; none: nothing.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    labels: tuple[str, ...] = ()
    joined: bool = True


def picture_curves(
    curves: Sequence[Curve],
    x_title: str,
    y_title: str,
    title: str,
    *,
    log: bool = False,
    log_x: bool = False,
    level: tuple[str, float] | None = None,
) -> Picture:
    """Lines with a dot at every point over one pair of axes. log, log_x: powers of ten up y, along x; level: a named y.

    From the seventh on, lines are dashed and the colours come again.
    """
    curves = [_in_order(curve) for curve in curves if curve.points]
    along, up = (_log10 if log_x else float), (_log10 if log else float)
    every_x = [along(x) for curve in curves for x, _ in curve.points]
    scaled = [up(y) for curve in curves for _, y in curve.points]
    if level is not None:
        scaled.append(level[1])
    top, bottom = 14, 290
    x_axis = _spread(every_x, LEFT, WIDTH - RIGHT)
    y_axis = _spread(scaled, bottom, top)
    parts = [_value_grid(y_axis, log)]
    if level is not None:
        y = y_axis.place(level[1])
        parts.append(_line(LEFT, y, WIDTH - RIGHT, y, "one"))
        parts.append(_text(LEFT + 4, y - 4, level[0], "note"))
    for number, curve in enumerate(curves):
        colour, dashed = number % COLOURS, " dashed" if number >= COLOURS else ""
        places = [(x_axis.place(along(x)), y_axis.place(up(y))) for x, y in curve.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="fill-{colour}"/>' for x, y in places)
        line = f'<polyline points="{path}" class="curve{dashed} stroke-{colour}"/>' if curve.joined else ""
        parts.append(f"<g><title>{html.escape(curve.name)}</title>{line}{dots}</g>")
        for (x, y), label in zip(places, curve.labels):
            if not label:
                continue
            start = x < WIDTH - RIGHT - 60
            parts.append(_text(x + (7 if start else -7), y - 6, label, "note", anchor="start" if start else "end"))
    parts.append(_line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis"))
    parts.append(_log_ticks(x_axis, bottom, x_title) if log_x else _ticks(x_axis, bottom, x_title))
    parts.append(_text(LEFT - 84, top, y_title, "note"))
    dashes = [" (dashed)" if number >= COLOURS else "" for number in range(len(curves))]
    names = [(c.name + dashes[number], f"fill-{number % COLOURS}") for number, c in enumerate(curves)]
    legend, end = _legend(names, bottom + 44)
    parts.append(legend)
    said = "; ".join(f"{curve.name}: {_points_said(curve)}" for curve in curves)
    return _picture(parts, end, title, f"{y_title} by {x_title}: {said}")


def _in_order(curve: Curve) -> Curve:
    """The curve with its points, and their labels, in the order of x."""
    labels = curve.labels or ("",) * len(curve.points)
    ordered = sorted(zip(curve.points, labels))
    return Curve(curve.name, tuple(point for point, _ in ordered), tuple(label for _, label in ordered), curve.joined)


def _points_said(curve: Curve) -> str:
    said = [f"{y:.3g} at {x:.4g}" for x, y in curve.points]
    return ", ".join(f"{label} {text}".strip() for label, text in zip(curve.labels, said))


def _log10(value: float) -> float:
    return math.log10(max(value, 1e-12))


def _spread(values: Sequence[float], start: float, end: float) -> _Axis:
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or max(abs(high) * 0.05, 1e-6)
    return _Axis(low - margin, high + margin, start, end)


def _value_grid(axis: _Axis, log: bool) -> str:
    """Lines across at round values; where the axis is logarithmic, at powers of ten, or near them if there are few."""
    ticks = axis.ticks(5)
    if log:
        powers = [float(power) for power in range(math.ceil(axis.low), math.floor(axis.high) + 1)]
        ticks = powers if len(powers) > 1 else ticks
    digits = _digits(ticks)
    parts = []
    for tick in ticks:
        y = axis.place(tick)
        parts.append(_line(LEFT - 4, y, WIDTH - RIGHT, y, "grid"))
        label = f"{10**tick:.2g}" if log else f"{tick:,.{digits}f}"
        parts.append(_text(LEFT - 12, y + 4, label, "tick", anchor="end"))
    return "".join(parts)


@dataclass(frozen=True)
class _Axis:
    """Values from low to high placed from start to end, in units of the picture."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        return self.start + (self.end - self.start) * (float(value) - self.low) / (self.high - self.low)

    def ticks(self, wanted: int = 6) -> list[float]:
        """Round values between low and high, about `wanted` of them."""
        rough = (self.high - self.low) / wanted
        magnitude = 10 ** math.floor(math.log10(rough))
        step = next(magnitude * factor for factor in (1, 2, 2.5, 5, 10) if magnitude * factor >= rough)
        first = math.ceil(self.low / step)
        return [step * number for number in range(first, math.floor(self.high / step) + 1)]


def _ticks(axis: _Axis, y: float, title: str) -> str:
    ticks = axis.ticks()
    digits = _digits(ticks)
    parts = []
    for tick in ticks:
        x = axis.place(tick)
        parts.append(_line(x, y, x, y + 5, "axis"))
        parts.append(_text(x, y + TICK_LABEL, f"{tick:,.{digits}f}", "tick", anchor="middle"))
    parts.append(_text((axis.start + axis.end) / 2, y + 36, title, "note", anchor="middle"))
    return "".join(parts)


def _log_ticks(axis: _Axis, y: float, title: str) -> str:
    """Ticks of an axis of logarithms, at 1, 2 and 5 times powers of ten."""
    powers = range(math.floor(axis.low), math.floor(axis.high) + 1)
    values = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    parts = []
    for value in values:
        if axis.low <= math.log10(value) <= axis.high:
            x = axis.place(math.log10(value))
            parts.append(_line(x, y, x, y + 5, "axis"))
            parts.append(_text(x, y + TICK_LABEL, f"{value:g}", "tick", anchor="middle"))
    parts.append(_text((axis.start + axis.end) / 2, y + 36, title, "note", anchor="middle"))
    return "".join(parts)


def _horizontal_grid(axis: _Axis) -> str:
    ticks = axis.ticks(4)
    digits = _digits(ticks)
    parts = []
    for tick in ticks:
        y = axis.place(tick)
        parts.append(_line(LEFT - 4, y, WIDTH - RIGHT, y, "grid"))
        parts.append(_text(LEFT - 12, y + 4, f"{tick:,.{digits}f} ms", "tick", anchor="end"))
    return "".join(parts)


def _digits(ticks: Sequence[float]) -> int:
    if len(ticks) < 2:
        return 2
    return max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9)) + (1 if _is_quarter(ticks[1] - ticks[0]) else 0)


def _is_quarter(step: float) -> bool:
    return abs(step / 10 ** math.floor(math.log10(step) + 1e-9) - 2.5) < 1e-6


def _legend(entries: Sequence[tuple[str, str]], y: float) -> tuple[str, float]:
    """Coloured squares with their names, in as many lines as they need, and where the last line ends."""
    parts, x = [], float(LEFT)
    for name, css in entries:
        width = 30 + 6.8 * len(name)
        if x + width > WIDTH - RIGHT and x > LEFT:
            x, y = float(LEFT), y + 20
        parts.append(_rectangle(x, y + 2, 12, 12, css))
        parts.append(_text(x + 17, y + 12, name, "note"))
        x += width
    return "".join(parts), y + 22


def _picture(parts: list[str], height: float, title: str, description: str) -> Picture:
    said = html.escape(f"{title}. {description}.", quote=True)
    svg = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{said}">{"".join(parts)}</svg>'
    return Picture(svg, title, f"{description}.")


def _rectangle(x: float, y: float, width: float, height: float, css: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2" class="{css}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def _text(x: float, y: float, text: Any, css: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{html.escape(str(text))}</text>'
