"""The device's state while it was measured: heat, clocks, power, whether it was held back, what lasting work does."""

from __future__ import annotations

from typing import Union

from leanear.benchmarks.report.drawing.pictures import Curve, picture_curves
from leanear.benchmarks.report.page import Block, Paragraph, Section, Table, figures
from leanear.benchmarks.results_document import Energy, ResultsDocument, Sensors, Sustained, Throttling, Unknown

UNITS = {
    "temperature_c": ("temperature", "°C", 1.0),
    "clock_mhz": ("clock", "MHz", 1.0),
    "power_w": ("power", "W", 1.0),
    "memory_available_bytes": ("free memory", "MB", 1e-6),
    "cooling_state": ("held back by the kernel", "", 1.0),
    "throttle_count": ("times held back", "", 1.0),
}
DRAWN = ("temperature_c", "clock_mhz", "power_w")
LEAST_DRAWN = 4
MOST_CURVES = 8


def state_section(content: ResultsDocument) -> Section | None:
    """What the sensors showed; None for results without anything of it."""
    blocks: list[Block] = []
    sensors, sustained = content.latency.sensors, content.sustained
    blocks += _held_back(sensors.throttling)
    blocks += _sensor_table(sensors)
    blocks += _pictures(sensors)
    if sustained.status == "ok":
        blocks += _sustained(sustained)
    return Section("Heat, clocks and power", tuple(blocks)) if blocks else None


def state_missing(content: ResultsDocument) -> list[tuple[str, str]]:
    """What of the state was not measured, and why."""
    rows = []
    sensors, sustained = content.latency.sensors, content.sustained
    rows += [(UNITS[kind][0], sensors.not_measured[kind]) for kind in DRAWN if kind in sensors.not_measured]
    if sensors.throttling.verdict == "not measured":
        rows.append(("throttling", "; ".join(sensors.throttling.reasons)))
    if sustained.status != "ok":
        what = "energy per inference" if sustained.status == "not measured" else "work without a pause"
        rows.append((what, sustained.reason))
    for role, part in sustained.roles.items():
        if isinstance(part.energy_per_inference, Unknown):
            of = "" if len(sustained.roles) == 1 else f", {role}"
            rows.append((f"energy per inference{of}", part.energy_per_inference.reason))
    return rows


def _held_back(throttling: Throttling) -> list[Block]:
    if throttling.verdict == "throttled":
        said = "; ".join(throttling.reasons)
        return [Paragraph(f"The device was held back while latency was measured: {said}.", "warning")]
    if throttling.verdict == "no sign of it":
        looked_at = ", ".join(throttling.looked_at)
        return [
            Paragraph(f"No sign that the device was held back while latency was measured (looked at: {looked_at}).")
        ]
    return []


def _sensor_table(sensors: Sensors) -> list[Block]:
    rows = []
    for kind, readings in sensors.series.items():
        if kind not in UNITS:
            continue
        what, unit, factor = UNITS[kind]
        for name, values in readings.items():
            known = sorted(factor * value for value in values if value is not None)
            if known:
                figures = (_figure(known[0], unit), _figure(known[len(known) // 2], unit), _figure(known[-1], unit))
                rows.append((f"{what}, {name}", *figures, sensors.sources[kind][name]))
    if not rows:
        return []
    cost = sensors.sampling_cpu_s / max(sensors.seconds[-1], 1e-9) if sensors.seconds else 0.0
    caption = (
        f"Sensors while latency was measured, every {sensors.interval_s:g} s ({len(sensors.seconds)} readings; "
        f"reading them took {cost:.2%} of one core)"
    )
    return [Table(caption, ("", "least", "median", "most", "read from"), tuple(rows))]


def _figure(value: float, unit: str) -> str:
    return f"{value:,.2f} {unit}".strip() if unit == "W" else f"{value:,.0f} {unit}".strip()


def _pictures(sensors: Sensors) -> list[Block]:
    blocks: list[Block] = []
    for kind in DRAWN:
        what, unit, factor = UNITS[kind]
        curves = []
        for name, values in sensors.series.get(kind, {}).items():
            points = [(second, factor * value) for second, value in zip(sensors.seconds, values) if value is not None]
            if len(points) >= LEAST_DRAWN:
                curves.append(Curve(name, tuple(points)))
        if curves:
            title = f"{what.capitalize()} while latency was measured"
            blocks.append(picture_curves(curves[:MOST_CURVES], "seconds", unit, title))
    return blocks


def _sustained(sustained: Sustained) -> list[Block]:
    alone = len(sustained.roles) == 1
    named = {"model" if alone else role: part for role, part in sustained.roles.items()}
    columns = []
    for name, part in named.items():
        work = part.work
        medians = (f"{stretch.median_ms:.2f} ms" for stretch in (work.first, work.last))
        energy = _energy(part.energy_per_inference)
        columns.append((name, f"{work.inferences:,}", *medians, part.verdict.text, part.throttling.verdict, energy))
    length = f"{next(iter(named.values())).work.window_s:g} s"
    rows = (
        "inferences",
        f"median, first {length}",
        f"median, last {length}",
        "with time",
        "held back",
        "energy per inference",
    )
    blocks: list[Block] = [figures(f"Work without a pause for {sustained.seconds:g} s", rows, columns)]
    energies = [part.energy_per_inference for part in named.values()]
    sensors = sorted({energy.sensor for energy in energies if isinstance(energy, Energy)})
    if sensors:
        blocks.append(
            Paragraph(
                f"Energy by {' and '.join(sensors)}: a sensor on the board, not an analyser. Above idle: less what the "
                "device drew in the seconds before, at rest, for as long."
            )
        )
    curves = [
        Curve(name, tuple((10.0 * (place + 1), median) for place, median in enumerate(part.work.median_ms_by_tenth)))
        for name, part in named.items()
    ]
    if all(len(curve.points) > 1 for curve in curves):
        blocks.append(picture_curves(curves, "% of the work done", "ms", "Median latency as the work goes on"))
    return blocks


def _energy(energy: Union[Energy, Unknown]) -> str:
    if isinstance(energy, Unknown):
        return "not measured"
    above = energy.above_idle_joules
    said = f"{_joules(energy.joules)}"
    return said + (f" ({_joules(above)} above idle)" if not isinstance(above, Unknown) else "")


def _joules(value: float) -> str:
    return f"{value:.3g} J" if abs(value) >= 1 else f"{1000 * value:.3g} mJ"
