"""The pictures of a report: each function says in words what is seen, and how matplotlib draws it at any width."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Sequence, Tuple

import numpy as np

from leanear.benchmarks.report.drawing.plotting import Canvas, Picture, colour

HISTOGRAM_BINS = 72
HISTOGRAM_UPPER_PERCENTILE = 99.0
LANE_PX, ROW_PX, AXIS_PX, CURVES_PX = 96, 30, 44, 290
LEAST_LOG = 1e-12  # what 0 is drawn as on a logarithmic axis
LINES = ("slim", "bad", "query-key", "value-output", "s1", "dense")
STACKS = ("s0", "s1", "query-key", "s3", "s4", "s5")


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
    low, high = low - margin, high + margin
    said = [_lane_said(name, samples, medians_ms[name]) for name, samples in samples_ms.items()]

    def draw(canvas: Canvas) -> None:
        lanes = canvas.axes(len(samples_ms) * LANE_PX + AXIS_PX, len(samples_ms))
        for lane, (name, samples) in zip(np.atleast_1d(lanes), samples_ms.items()):
            counts, edges = np.histogram(samples[samples <= high], bins=HISTOGRAM_BINS, range=(low, high))
            lane.stairs(counts, edges, fill=True, color=colour(name))
            median = medians_ms[name]
            if median is not None:
                lane.axvline(median, color=colour("ink"), linewidth=2)
            lane.set_title(name if median is None else f"{name}: median {median:.2f} ms")
            beyond = int((samples > high).sum())
            if beyond:
                lane.set_title(f"{beyond} slower →", loc="right", fontweight="normal", color=colour("soft"))
            lane.set_yticks([])
            lane.spines["left"].set_visible(False)
            lane.set_xlim(low, high)
        _x_axis(canvas, lane, "ms per inference")

    return Picture("Latency distributions", f"{'; '.join(said)}.", draw)


def _lane_said(name: str, samples: np.ndarray, median: float | None) -> str:
    if median is None:
        return f"{name}: {samples.size} samples from {samples.min():.2f} to {samples.max():.2f} ms"
    return f"{name}: median {median:.2f} ms of {samples.size} samples"


def picture_processes(processes: Sequence[tuple[str, np.ndarray]]) -> Picture:
    """One row per process in the order of running: a dot at its median, a line from 10th to 90th percentile."""
    spans = [tuple(float(ms) for ms in np.percentile(samples, (10, 50, 90))) for _, samples in processes]
    said = ", ".join(f"{name} {median:.2f}" for (name, _), (_, median, _) in zip(processes, spans))

    def draw(canvas: Canvas) -> None:
        names = [f"{number} {name}" for number, (name, _) in enumerate(processes, 1)]
        axes = _rows(canvas, names, 22)
        for place, ((name, _), (least, median, most)) in enumerate(zip(processes, spans)):
            _whisker(axes, place, name, median, least, most)
        axes.margins(x=0.06)
        _x_axis(canvas, axes, "ms")

    return Picture("Median latency of every process in ms, in the order in which they ran", f"{said}.", draw)


Groups = Sequence[Tuple[str, Sequence[Tuple[str, Sequence[WidthCell]]]]]
Box = Tuple[float, float, float, float]  # x, y, width, height


def picture_widths(groups: Groups, dense_width: int) -> Picture:
    """A row per layer, a cell per head: two bars, the share of query/key and of value/output channels that is kept.

    groups: a title (or none) and its layers, each a name and its heads.
    """
    titled = [(title, [cell for _, cells in members for cell in cells]) for title, members in groups if title]
    said = [f"{title}: {_channels_kept(cells, dense_width):.0%} of the channels" for title, cells in titled]
    every = [cell for _, members in groups for _, cells in members for cell in cells]
    said.append(
        f"{sum(cell.kept for cell in every)} of {len(every)} heads are kept; the table below lists their widths"
    )

    def draw(canvas: Canvas) -> None:
        _draw_widths(canvas, groups, dense_width)

    return Picture("Channels kept in every layer and head", f"{'; '.join(said)}.", draw)


def _draw_widths(canvas: Canvas, groups: Groups, dense_width: int) -> None:
    axes = canvas.axes(sum(len(members) + bool(title) for title, members in groups) * ROW_PX + 26)
    heads = max(len(cells) for _, members in groups for _, cells in members)
    numbered, named = canvas.count(14, 5) >= heads, canvas.count(10, 4) >= heads
    boxes: dict[str, list[Box]] = {}
    names, kept, row = [], [], 0
    for title, members in groups:
        if title:
            axes.text(0, row + 0.75, title, fontweight="bold")
            row += 1
        for name, cells in members:
            for head, widths in enumerate(cells):
                _width_cell(axes, boxes, head, row, widths, dense_width, numbered)
            names.append(name.replace("layer ", "") if canvas.narrow else name)
            kept.append((row + 0.5, f"{_channels_kept(cells, dense_width):.0%}"))
            row += 1
    shapes = [_draw_boxes(axes, boxes.get(name, []), name) for name in ("track", "query-key", "value-output")]
    _draw_boxes(axes, boxes.get("removed", []), "soft", filled=False)
    axes.set(xlim=(0, heads), ylim=(row, 0))
    axes.set_xticks([head + 0.45 for head in range(heads)], [f"{'head ' * named}{head}" for head in range(heads)])
    axes.xaxis.tick_top()
    axes.set_yticks([y for y, _ in kept], names)
    right = axes.secondary_yaxis("right")
    right.set_yticks([y for y, _ in kept], [text for _, text in kept])
    for each in (axes, right):
        each.tick_params(length=0, labelcolor=colour("ink"))
        each.spines[:].set_visible(False)
    canvas.legend([*shapes[1:], shapes[0]], ["query/key channels", "value/output channels", "not kept"])


def _channels_kept(cells: Sequence[WidthCell], dense_width: int) -> float:
    kept = sum(widths.query_key + widths.value_output for widths in cells)
    return kept / (2 * dense_width * len(cells))


def _width_cell(
    axes: Any, boxes: dict[str, list[Box]], head: int, row: float, widths: WidthCell, dense_width: int, numbers: bool
) -> None:
    """Add a head's boxes to `boxes`, and write its widths where there is room."""
    if not widths.kept:
        boxes.setdefault("removed", []).append((head, row + 0.1, 0.9, 0.76))
        axes.text(head + 0.45, row + 0.48, "×", ha="center", va="center_baseline", color=colour("soft"))
        return
    for name, kept, y in (("query-key", widths.query_key, 0.1), ("value-output", widths.value_output, 0.5)):
        boxes.setdefault("track", []).append((head, row + y, 0.9, 0.36))
        boxes.setdefault(name, []).append((head, row + y, 0.9 * kept / dense_width, 0.36))
        if numbers:
            axes.text(head + 0.88, row + y + 0.18, str(kept), ha="right", va="center_baseline", fontsize=9)


def _draw_boxes(axes: Any, boxes: Sequence[Box], name: str, filled: bool = True) -> Any:
    """All boxes of one colour as one shape, which keeps a page small."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    corners = [[(x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y)] for x, y, w, h in boxes]
    paths = [Path(np.array(each, dtype=float), closed=True) for each in corners]
    style = {"facecolor": colour(name), "linewidth": 0} if filled else {"fill": False, "linestyle": (0, (3, 3))}
    shape = PathPatch(Path.make_compound_path(*paths), edgecolor=colour(name), **style)
    axes.add_patch(shape)
    return shape


def picture_ratios(bars: Sequence[tuple[str, float, str]]) -> Picture:
    """Horizontal bars from 0, a line at 1 (no change). bars: what is said, ratio, the role whose colour it has."""
    said = "; ".join(f"{name} {ratio:.2f} times" for name, ratio, _ in bars)

    def draw(canvas: Canvas) -> None:
        axes = _rows(canvas, [name for name, _, _ in bars], ROW_PX)
        for place, (_, ratio, name) in enumerate(bars):
            axes.barh(place, ratio, 0.7, color=colour(name))
            _beside(axes, ratio, place, f"{ratio:.2f}×")
        axes.axvline(1.0, color=colour("ink"), linestyle=(0, (4, 3)))
        axes.set_xlim(0, max(1.0, *(ratio for _, ratio, _ in bars)) * 1.2)
        _x_axis(canvas, axes, "dense ÷ slim (1 = no change)")

    return Picture("What the operation count promises and what was measured", f"{said}.", draw)


def picture_stacks(
    stacks: Sequence[tuple[str, Sequence[tuple[str, float]]]], unit: str, divisor: float, title: str
) -> Picture:
    """A stacked bar per artifact on one axis from 0. stacks: name, then (kind, amount) in an order common to all."""
    said = "; ".join(
        f"{name} {sum(amount for _, amount in stack) / divisor:,.1f} {unit}, of which "
        + ", ".join(f"{kind} {amount / divisor:,.1f}" for kind, amount in stack)
        for name, stack in stacks
    )

    def draw(canvas: Canvas) -> None:
        axes = _rows(canvas, [name for name, _ in stacks], ROW_PX)
        entries: dict[str, Any] = {}
        for place, (_, stack) in enumerate(stacks):
            reached = 0.0
            for number, (kind, amount) in enumerate(stack):
                (bar,) = axes.barh(
                    place, amount / divisor, 0.8, reached, color=colour(STACKS[number]), edgecolor=colour("sheet")
                )
                canvas.tell(bar, f"{kind}: {amount / divisor:,.1f} {unit}")
                reached += amount / divisor
                if amount > 0:
                    entries.setdefault(kind, bar)
            _beside(axes, reached, place, f"{reached:,.1f} {unit}")
        axes.margins(x=0)
        axes.set_xlim(0, axes.get_xlim()[1] * canvas.count(115, 130) / 100)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        canvas.legend(list(entries.values()), list(entries))

    return Picture(title, f"{said}.", draw)


def picture_intervals(
    rows: Sequence[tuple[str, str, float, float, float]], unit: str, title: str = "Accuracy with 95% intervals"
) -> Picture:
    """A dot with its 95% interval per row on one axis. rows: name, role for the colour, estimate, low, high."""
    said = "; ".join(f"{name} {estimate:.2f} ({least:.2f} to {most:.2f})" for name, _, estimate, least, most in rows)

    def draw(canvas: Canvas) -> None:
        axes = _rows(canvas, [name for name, *_ in rows], canvas.count(ROW_PX, 52))
        for place, (_, role, estimate, least, most) in enumerate(rows):
            _whisker(axes, place, role, estimate, least, most)
        right = axes.secondary_yaxis("right")
        right.set_yticks(range(len(rows)), [f"{estimate:.2f}%" for _, _, estimate, _, _ in rows])
        right.tick_params(length=0, labelcolor=colour("ink"))
        right.spines[:].set_visible(False)
        axes.margins(x=0.06)
        _x_axis(canvas, axes, unit)

    return Picture(title, f"{said}.", draw)


@dataclass(frozen=True)
class Curve:
    """A named line through (x, y), in the order of x, or points that nothing joins.

    labels: what each point is called; one called "dense" is drawn hollow. chosen: one point, marked.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    labels: tuple[str, ...] = ()
    joined: bool = True
    chosen: bool = False


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
    curves = [_in_order(curve, LEAST_LOG if log else -math.inf) for curve in curves if curve.points]
    said = "; ".join(f"{curve.name}: {_points_said(curve)}" for curve in curves)

    def draw(canvas: Canvas) -> None:
        axes = canvas.axes(CURVES_PX)
        axes.set_title(y_title, fontweight="normal", color=colour("soft"))
        handles = [_curve(axes, curve, number) for number, curve in enumerate(curves)]
        names = [_name_said(curve, number) for number, curve in enumerate(curves)]
        if level is not None:
            handles.append(axes.axhline(level[1], color=colour("ink"), linestyle=(0, (4, 3))))
            names.append(level[0])
        for name in [name for name, logarithmic in (("x", log_x), ("y", log)) if logarithmic]:
            _logarithmic(axes, name)
        axes.grid(axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        _x_axis(canvas, axes, x_title, log_x)
        canvas.legend(handles, names)

    return Picture(title, f"{y_title} by {x_title}: {said}.", draw)


def _curve(axes: Any, curve: Curve, number: int) -> Any:
    """The line or the points of one curve; its handle for the legend."""
    own = colour(LINES[number % len(LINES)])
    xs, ys = zip(*curve.points)
    if curve.chosen:
        return axes.plot(xs, ys, "D", markersize=11, markerfacecolor="none", markeredgewidth=2.5, color=own)[0]
    style = "none" if not curve.joined else "--" if number >= len(LINES) else "-"
    faces = [colour("sheet") if label == "dense" else own for label in curve.labels]
    (line,) = axes.plot(xs, ys, linestyle=style, color=own, linewidth=2)
    axes.scatter(xs, ys, 42, faces, edgecolors=own, linewidths=1.5, zorder=3, clip_on=False)
    return line if curve.joined else axes.scatter([], [], 42, own)


def _name_said(curve: Curve, number: int) -> str:
    dashed = " (dashed)" if curve.joined and number >= len(LINES) else ""
    return f"{curve.name}{dashed}"


def _in_order(curve: Curve, least: float) -> Curve:
    """The curve with its points, and their labels, in the order of x; no y is under `least`."""
    labels = curve.labels or ("",) * len(curve.points)
    ordered = sorted(zip(curve.points, labels))
    names = tuple(label for _, label in ordered)
    return Curve(curve.name, tuple((x, max(y, least)) for (x, y), _ in ordered), names, curve.joined, curve.chosen)


def _points_said(curve: Curve) -> str:
    said = [f"{y:.3g} at {x:.4g}" for x, y in curve.points]
    return ", ".join(f"{label} {text}".strip() for label, text in zip(curve.labels, said))


def _rows(canvas: Canvas, names: Sequence[str], row_px: float) -> Any:
    """Axes with a name for every row, the first on top."""
    axes = canvas.axes(len(names) * row_px + AXIS_PX)
    axes.set_yticks(range(len(names)), [canvas.wrapped(name) for name in names])
    axes.tick_params(axis="y", length=0, labelcolor=colour("ink"))
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    return axes


def _whisker(axes: Any, row: int, role: str, estimate: float, least: float, most: float) -> None:
    axes.plot([least, most], [row, row], color=colour(role), linewidth=3)
    axes.plot([estimate], [row], "o", color=colour(role), markersize=10)


def _beside(axes: Any, x: float, row: int, text: str) -> None:
    axes.annotate(text, (x, row), (6, 0), textcoords="offset points", va="center_baseline", fontweight="bold")


def _x_axis(canvas: Canvas, axes: Any, title: str, logarithmic: bool = False) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(title)
    if not logarithmic:
        axes.xaxis.set_major_locator(MaxNLocator(canvas.count(8, 4)))
        axes.ticklabel_format(axis="x", useOffset=False, style="plain")


def _logarithmic(axes: Any, name: str) -> None:
    """A logarithmic axis with plain numbers: powers of ten, and 2 and 5 times them where there are few of these."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set(**{f"{name}scale": "log"})
    axis = {"x": axes.xaxis, "y": axes.yaxis}[name]
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    axis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
