"""One report over several devices, those included that were slow, lacked something, or did not answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

from leanear.benchmarks.analysis import Analysis, analyse, medians_ms, memory_bytes
from leanear.benchmarks.formatting import megabytes, milliseconds
from leanear.benchmarks.report.drawing.pictures import Curve, picture_curves
from leanear.benchmarks.report.headline import time_change
from leanear.benchmarks.report.page import Block, Card, Log, Paragraph, Report, Section, Table
from leanear.benchmarks.results import DeviceOutcome, Results
from leanear.benchmarks.sensors.device import is_measured
from leanear.benchmarks.summary import Gate
from leanear.benchmarks.verdict import Verdict, loss_text

FACTS = (
    ("board", "board"),
    ("soc", "SoC"),
    ("cpu", "CPU"),
    ("architecture", "architecture"),
    ("cores_usable", "cores"),
    ("memory_bytes", "memory"),
    ("system", "system"),
    ("kernel", "kernel"),
    ("l4t", "L4T"),
    ("jetpack", "JetPack"),
    ("cuda", "CUDA"),
    ("tensorrt", "TensorRT"),
    ("power_mode", "power mode"),
    ("governor", "governor"),
    ("python", "Python"),
)
MOST_CARDS = 4
FAR_APART = 10  # slowest over fastest latency from which on they share a logarithmic axis


@dataclass(frozen=True)
class DeviceEntry(DeviceOutcome):
    """The same, and its results; report: where its own report lies, "" if it has none; gate: of that report."""

    measured: Results | None = None
    report: str = ""
    gate: Gate | None = None


def compose_devices_report(
    title: str,
    target: str,
    entries: Sequence[DeviceEntry],
    provenance: dict[str, str],
    by_hand: Sequence[str] = (),
    more: Sequence[Section] = (),
) -> Report:
    """The report of several devices, of one that gave no results, or of none.

    by_hand: the commands to type on a device, where none was reached by leanear; more: further sections.
    """
    measured = {entry.host: analyse(entry.measured) for entry in entries if entry.measured is not None}
    well = sum(entry.status == "ok" for entry in entries)
    subtitle = f"{target}; " + (f"{well} of {len(entries)} devices measured" if entries else "no device measured")
    sections = [
        _devices_section(entries, measured),
        _troubles_section(entries),
        _by_hand_section(by_hand, bool(entries)),
        *more,
        _facts_section(entries),
        Section("Provenance", (Table("", ("", ""), tuple(provenance.items())),)),
    ]
    return Report(
        title=title,
        subtitle=subtitle,
        summary=" ".join(_sentences(entries, measured)),
        verdict=_verdict(entries, measured),
        cards=tuple(_card(entry, measured.get(entry.host)) for entry in entries[:MOST_CARDS]),
        gate=_gate(entries),
        sections=tuple(section for section in sections if section is not None and section.blocks),
        kind="Devices report",
        origin="Written by leanear from the results files of the devices, which keep every raw sample.",
    )


def _verdict(entries: Sequence[DeviceEntry], measured: dict[str, Analysis]) -> Verdict:
    """How many devices were measured, on how many of them slim is faster, and how many keep the gate."""
    well = [measured[entry.host] for entry in entries if entry.status == "ok" and entry.host in measured]
    if not well:
        said = f"None of the {len(entries)} devices was measured." if entries else "No device measured yet."
        return Verdict(said, "bad" if entries else "")
    verdicts = [
        "not to be trusted" if analysis.untrusted else analysis.speed.verdict
        for analysis in well
        if analysis.speed is not None
    ]
    faster = verdicts.count("faster")
    found = ", ".join(f"{verdict} on {verdicts.count(verdict)}" for verdict in dict.fromkeys(verdicts))
    said = f"{len(well)} of {len(entries)} devices measured{found and f'; speed: {found}'}"
    gates = [entry.gate for entry in entries if entry.gate is not None]
    passed = sum(gate.verdict == "PASS" for gate in gates)
    if gates:
        said += f"; the gate is kept on {passed}, missed or not judged on {len(gates) - passed}"
    every = len(well) == len(entries) and faster == len(entries)
    tone = "bad" if passed < len(gates) or len(well) < len(entries) else "good" if every else ""
    return Verdict(f"{said}.", tone)


def _sentences(entries: Sequence[DeviceEntry], measured: dict[str, Analysis]) -> list[str]:
    if not entries:
        return ["No device was named, so nothing was measured on one; the bundle is ready to be copied."]
    said = []
    for entry in entries:
        analysis = measured.get(entry.host)
        if entry.status != "ok" or analysis is None:
            said.append(f"{entry.host}: not measured, {entry.status}.")
        elif analysis.speed is None:
            said.append(f"{entry.host}: {_median(analysis, 'slim')} at the median.")
        else:
            ratio = analysis.speed.ratio
            quality = "" if analysis.loss is None else f"; {analysis.metric}: {loss_text(analysis.loss)}"
            said.append(
                f"{entry.host}: slim is {ratio.estimate:.2f} times as fast as dense "
                f"(95% {ratio.low:.2f} to {ratio.high:.2f}){_doubt(analysis)}{quality}."
            )
    return said


def _card(entry: DeviceEntry, analysis: Analysis | None) -> Card:
    if entry.status != "ok" or analysis is None:
        return Card("not measured", entry.host, entry.status, "bad")
    if analysis.speed is None:
        return Card(_median(analysis, "slim"), entry.host, "median latency")
    ratio = analysis.speed.ratio
    tone = "" if analysis.untrusted else {"faster": "good", "slower": "bad"}.get(analysis.speed.verdict, "")
    measured = f"{ratio.estimate:.2f}×"
    return Card(
        "not trusted" if analysis.untrusted else measured,
        entry.host,
        f"{measured} as fast as dense (95% {ratio.low:.2f} to {ratio.high:.2f}){_doubt(analysis)}",
        tone,
    )


def _median(analysis: Analysis, role: str) -> str:
    return milliseconds(medians_ms(analysis).get(role)) + _emulated(analysis)


def _doubt(analysis: Analysis) -> str:
    return f", not to be trusted: {analysis.untrusted}" if analysis.untrusted else ""


def _emulated(analysis: Analysis) -> str:
    return " (emulated)" if analysis.emulated else ""


def _devices_section(entries: Sequence[DeviceEntry], measured: dict[str, Analysis]) -> Section | None:
    if not entries:
        return None
    quality = " or ".join(sorted({analysis.metric for analysis in measured.values()})) or "quality"
    header = (
        "device",
        "status",
        "dense",
        "slim",
        "slim / dense",
        *(f"{quality}, {role}" for role in ("dense", "slim")),
        "peak memory, slim",
    )
    rows: list[tuple[str, ...]] = []
    for entry in entries:
        analysis = measured.get(entry.host)
        if analysis is None:
            rows.append((entry.host, entry.status, *("not measured",) * 6))
            continue
        qualities = analysis.qualities
        rows.append(
            (
                entry.host,
                entry.status,
                _median(analysis, "dense"),
                _median(analysis, "slim"),
                time_change(analysis),
                *(
                    f"{qualities[role].estimate:.2%}" if role in qualities else "not measured"
                    for role in ("dense", "slim")
                ),
                megabytes(memory_bytes(analysis, "peak_rss_bytes").get("slim")),
            )
        )
    blocks: list[Block] = [Table("Median latency, quality and memory of each device", header, tuple(rows))]
    blocks += _picture(entries, measured)
    blocks += [
        Paragraph(f"{host}: the device is emulated: {analysis.emulated}.", "warning")
        for host, analysis in measured.items()
        if analysis.emulated
    ]
    blocks += [Paragraph(f"{entry.host}: {note}.", "warning") for entry in entries for note in entry.notes]
    blocks += [Paragraph(f"{entry.host}: all of it in {entry.report}.") for entry in entries if entry.report]
    return Section("Devices", tuple(blocks))


def _picture(entries: Sequence[DeviceEntry], measured: dict[str, Analysis]) -> list[Block]:
    """Quality against latency: for each device a line from dense to slim."""
    curves, names = [], set()
    for entry in entries:
        analysis = measured.get(entry.host)
        if analysis is None:
            continue
        medians, qualities = medians_ms(analysis), analysis.qualities
        known = [(role, median) for role in qualities if (median := medians.get(role)) is not None]
        if known:
            points = tuple((median, 100 * qualities[role].estimate) for role, median in known)
            curves.append(Curve(entry.host + _emulated(analysis), points, tuple(role for role, _ in known)))
            names.add(analysis.metric)
    if not curves:
        return []
    (name, *others) = sorted(names)
    if others:
        return [Paragraph("The devices were judged by different measures, so there is no common picture.")]
    title = f"{name[:1].upper()}{name[1:]} against latency, dense (hollow) and slim of each device"
    every = [median for curve in curves for median, _ in curve.points]
    far_apart = max(every) > FAR_APART * min(every) > 0
    return [picture_curves(curves, "median latency, ms", f"{name}, %", title, log_x=far_apart)]


def _troubles_section(entries: Sequence[DeviceEntry]) -> Section | None:
    blocks: list[Block] = []
    for entry in entries:
        if entry.status != "ok":
            blocks.append(Paragraph(f"{entry.host}: {entry.status}: {entry.reason}", "warning"))
            if entry.log_tail:
                blocks.append(Log("\n".join(entry.log_tail)))
    return Section("What was not measured, and why", tuple(blocks)) if blocks else None


def _by_hand_section(commands: Sequence[str], reached: bool) -> Section | None:
    if not commands:
        return None
    text = "The same by hand, on a device that the bundle folder was copied to" if reached else "By hand"
    return Section(text, (Log("\n".join(commands)),))


def _facts_section(entries: Sequence[DeviceEntry]) -> Section | None:
    known = [(entry, facts) for entry in entries if (facts := _facts(entry)) is not None]
    if not known:
        return None
    rows = []
    for key, name in FACTS:
        cells = [_fact_text(key, facts.get(key)) for _, facts in known]
        if any(cells):
            rows.append((name, *(cell or "-" for cell in cells)))
    for library in sorted({name for _, facts in known for name in facts.get("libraries", {})}):
        rows.append((library, *(str(facts.get("libraries", {}).get(library, "-")) for _, facts in known)))
    blocks: list[Block] = [Table("", ("", *(entry.host for entry, _ in known)), tuple(rows))]
    for entry in entries:
        if entry.doctor is not None and entry.status != "ok":
            findings = [
                (str(finding["name"]), {True: "ok", False: "missing"}.get(finding["ok"], "-"), str(finding["text"]))
                for finding in entry.doctor["findings"]
            ]
            blocks.append(Table(f"What the doctor of {entry.host} found", ("", "", ""), tuple(findings)))
    return Section("The devices' own facts", tuple(blocks))


def _facts(entry: DeviceEntry) -> dict[str, Any] | None:
    if entry.measured is not None:
        return dict(entry.measured.content.device)
    return None if entry.doctor is None else dict(entry.doctor["device"])


def _fact_text(key: str, value: Any) -> str:
    if value is None or not is_measured(value):
        return ""
    return megabytes(value) if key == "memory_bytes" and isinstance(value, (int, float)) else str(value)


def _gate(entries: Sequence[DeviceEntry]) -> Gate | None:
    """The gate of the device that passed it least; None where none was set or measured."""
    gates = [entry.gate for entry in entries if entry.gate is not None]
    failed = [gate for gate in gates if gate.verdict != "PASS"]
    return failed[0] if failed else gates[0] if gates else None
