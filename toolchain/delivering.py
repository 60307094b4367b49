"""A deployment's last stages for targets that are elsewhere: the bundle, the devices, and one report of all of them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from benchmarks.devices_report import DeviceEntry, write_devices_report
from benchmarks.report import ReportPaths
from benchmarks.results import read_results
from runtimes.errors import DeviceFailed
from toolchain.bundle import RunSettings, by_hand, write_bundle
from toolchain.hosts import deliver_to_all, host_folder_name
from toolchain.measuring import write_folder_report
from toolchain.narration import Narrator, Report
from toolchain.remote import RemoteOptions, RemoteOutcome

BUNDLE_FOLDER = "bundle"
DEVICES_FOLDER = "devices"


@dataclass(frozen=True)
class Devices:
    """Which devices, and how they are reached; no host: the bundle is made and what to type is said."""

    hosts: tuple[str, ...] = ()
    options: RemoteOptions = field(default_factory=RemoteOptions)


@dataclass(frozen=True)
class Delivery:
    """What `deliver_deployment` leaves: the bundle, each device's outcome, and the report."""

    bundle: Path
    outcomes: tuple[RemoteOutcome, ...]
    report: ReportPaths


def deliver_deployment(
    folder: Path,
    *,
    title: str,
    target: str,
    run: RunSettings,
    devices: Devices,
    provenance: dict[str, str],
    max_drop: float | None,
    narrator: Narrator,
) -> Delivery:
    """Bundle a deployment folder's artifacts and evaluation clips, measure them on each device, and report.

    One device that was measured has the whole report; several, or one that was not, a report over all of them, and
    each that was measured its own in `devices/`.

    Raises:
        BadInput: a host is not usable.
    """
    with narrator.step("bundling artifacts, clips and the runner"):
        bundle = write_bundle(
            folder / BUNDLE_FOLDER,
            name=title,
            target=target,
            slim=folder / "slim",
            dense=folder / "dense",
            clips=folder / "clips" / "evaluation.npz",
            run=run,
        )
    outcomes = _deliver(bundle.folder, folder / "results", devices, narrator)
    if len(outcomes) == 1 and outcomes[0].ok:
        (outcome,) = outcomes
        assert outcome.results_path is not None
        for note in outcome.notes:
            narrator.say(f"  {outcome.host}: {note}")
        return Delivery(bundle.folder, outcomes, write_folder_report(folder, outcome.results_path, folder, max_drop))
    entries = [_entry(folder, outcome, max_drop) for outcome in outcomes]
    said = {"target": target, **provenance}
    report = write_devices_report(folder, title, target, entries, said, () if outcomes else commands(bundle.folder))
    return Delivery(bundle.folder, outcomes, report)


def commands(bundle: Path) -> tuple[str, ...]:
    """How to bring the bundle to a device, and the three commands to type there."""
    return (f"copy the folder {bundle} to the device, and there, in that folder:", *by_hand())


def require_all(outcomes: Sequence[RemoteOutcome]) -> None:
    """Nothing, when every device was measured.

    Raises:
        DeviceFailed: one was not; the text has each one's status and reason.
    """
    failed = [outcome for outcome in outcomes if not outcome.ok]
    if failed:
        raise DeviceFailed("; ".join(f"{outcome.host}: {outcome.status}: {outcome.reason}" for outcome in failed))


def _deliver(bundle: Path, results: Path, devices: Devices, narrator: Narrator) -> tuple[RemoteOutcome, ...]:
    if not devices.hosts:
        return ()
    with _bars(devices.hosts, narrator) as report_of:

        def done(outcome: RemoteOutcome) -> None:
            said = "measured" if outcome.ok else f"{outcome.status}: {outcome.reason}"
            narrator.say(f"  {outcome.host}: {said}")

        return deliver_to_all(devices.hosts, bundle, results, devices.options, report_of, done)


def _entry(folder: Path, outcome: RemoteOutcome, max_drop: float | None) -> DeviceEntry:
    results, report, gate = None, "", None
    if outcome.results_path is not None:
        out = folder / DEVICES_FOLDER / host_folder_name(outcome.host)
        paths = write_folder_report(folder, outcome.results_path, out, max_drop)
        results, report, gate = read_results(outcome.results_path), str(paths.html.relative_to(folder)), paths.gate
    return DeviceEntry(
        host=outcome.host,
        status=outcome.status,
        reason=outcome.reason,
        notes=outcome.notes,
        log_tail=outcome.log_tail,
        results=results,
        doctor=outcome.doctor,
        report=report,
        gate=gate,
    )


@contextlib.contextmanager
def _bars(hosts: Sequence[str], narrator: Narrator) -> Iterator[Callable[[str], Report]]:
    """A Report for each host, each with a bar of its own; none is drawn while ssh may be asking for a password."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
    )
    bars = Progress(*columns, console=narrator.console, transient=True, disable=not narrator.console.is_terminal)
    tasks: dict[str, TaskID] = {host: bars.add_task(host, total=1.0) for host in hosts}
    drawing = threading.Lock()
    drawn = False

    def report_of(host: str) -> Report:
        def report(text: str, fraction: float | None = None) -> None:
            nonlocal drawn
            with drawing:
                if not drawn and (len(hosts) > 1 or text != "connecting"):
                    bars.start()
                    drawn = True
            bars.update(tasks[host], description=f"{host}: {text}", completed=fraction or 0.0)

        return report

    for host in hosts:
        narrator.say(f"  {host} ...")
    try:
        yield report_of
    finally:
        bars.stop()
