"""A deployment's last stages for targets that are elsewhere: the bundle, the devices, and one report of all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from leanear.benchmarks.device.bundled import BundleRun, read_bundle
from leanear.benchmarks.report.devices_report import DeviceEntry, compose_devices_report
from leanear.benchmarks.report.report import ReportPaths, write_page
from leanear.benchmarks.results import DeviceOutcome, read_results, why_foreign
from leanear.deploy.ahead import engine_sections
from leanear.deploy.benching import DEVICES_FILE
from leanear.deploy.measuring import precision_sections, pruning_sections, write_folder_report
from leanear.devices.bundle import write_bundle
from leanear.devices.bundle_readme import expected_time, to_type
from leanear.devices.hosts import deliver_to_all, host_folder_name
from leanear.devices.remote import RemoteOptions
from leanear.progress import Narrator
from leanear.runtimes.errors import BadInput, DeviceFailed
from leanear.runtimes.files import read_json
from leanear.runtimes.process.notes import named, note
from leanear.runtimes.records import read, write

BUNDLE_FOLDER = "bundle"
DEVICES_SCHEMA = "leanear-devices-1"
DEVICES_FOLDER = "devices"
BY_HAND = "measured by hand on the device, and brought home"


@dataclass(frozen=True)
class Devices:
    """Which devices, and how they are reached; no host: the bundle is made and what to type is said."""

    hosts: tuple[str, ...] = ()
    options: RemoteOptions = field(default_factory=RemoteOptions)


@dataclass(frozen=True)
class DevicesDocument:
    """`devices.json` of a deployment folder: the devices that it went to, or that its results came home from."""

    schema: str
    title: str
    target: str
    provenance: dict[str, str]
    outcomes: tuple[DeviceOutcome, ...]


@dataclass(frozen=True)
class Delivery:
    """What `deliver_deployment` leaves: the bundle, each device's outcome, and the report."""

    bundle: Path
    outcomes: tuple[DeviceOutcome, ...]
    report: ReportPaths


def deliver_deployment(
    folder: Path,
    *,
    title: str,
    target: str,
    run: BundleRun,
    devices: Devices,
    provenance: dict[str, str],
    max_drop: float | None,
    narrator: Narrator,
) -> Delivery:
    """Bundle a deployment folder's artifacts and evaluation clips, measure them on each device, and report.

    One device that was measured has the whole report; several, or one that was not, a report over all of them, and
    each that was measured its own in `devices/`; those that were measured before, with the same artifacts, stay.

    Raises:
        BadInput: a host is not usable.
    """
    artifacts = {role: folder / role for role in ("dense", "slim")}
    with narrator.step("bundling artifacts, clips and the runner"):
        bundle = write_bundle(
            folder / BUNDLE_FOLDER,
            name=title,
            target=target,
            slim=artifacts["slim"],
            dense=artifacts["dense"],
            clips=folder / "clips" / "evaluation.npz",
            run=run,
        )
    if not devices.hosts:
        with narrator.step("timing both models here, to say how long a device will take"):
            expected = expected_time(bundle, artifacts)
        narrator.say(f"  {expected}")
    outcomes = _deliver(bundle.folder, folder, devices, narrator)
    earlier = read_devices(folder).outcomes if (folder / DEVICES_FILE).is_file() else ()
    kept = [each for each in earlier if each.results is not None and each.host not in devices.hosts]
    every = (*outcomes, *_of_these_models(folder, kept))
    write(folder / DEVICES_FILE, DevicesDocument(DEVICES_SCHEMA, title, target, provenance, every))
    return Delivery(bundle.folder, outcomes, write_delivery_report(folder, max_drop))


def read_devices(folder: Path) -> DevicesDocument:
    """`devices.json` of a deployment folder.

    Raises:
        BadInput: it is missing, or is not what it should be.
    """
    return read(DevicesDocument, read_json(folder / DEVICES_FILE, DEVICES_SCHEMA), folder / DEVICES_FILE)


def _of_these_models(folder: Path, outcomes: Sequence[DeviceOutcome]) -> tuple[DeviceOutcome, ...]:
    """The outcomes without those whose results are not of the artifacts that the deployment has, which are noted."""
    at = {each.host: folder / each.results for each in outcomes if each.results is not None}
    foreign = {host: why for host, path in at.items() if (why := why_foreign(path, folder))}
    if foreign:
        note(f"left out of the report on devices: {named([f'{host} ({why})' for host, why in foreign.items()])}")
    return tuple(each for each in outcomes if each.host not in foreign)


def write_delivery_report(folder: Path, max_drop: float | None, out: Path | None = None) -> ReportPaths:
    """The report of the devices that `devices.json` of a deployment folder tells of, in `out` (None: in the folder).

    Raises:
        BadInput: that file or one that it names is not what it should be, or all devices measured other models.
    """
    document, out = read_devices(folder), out or folder
    outcomes = _of_these_models(folder, document.outcomes)
    if document.outcomes and not outcomes:
        raise BadInput(f"{folder}: no device measured the models that are there now; `leanear deploy --host` does")
    if len(outcomes) == 1 and outcomes[0].status == "ok" and outcomes[0].results is not None:
        notes = [f"{outcomes[0].host}: {said}." for said in outcomes[0].notes]
        return write_folder_report(folder, folder / outcomes[0].results, out, max_drop, notes=notes)
    entries = [_entry(folder, outcome, out, max_drop) for outcome in outcomes]
    said = {"target": document.target, **document.provenance}
    by_hand_commands = () if outcomes else commands(folder)
    more = (*pruning_sections(folder), *precision_sections(folder), *engine_sections(folder))
    report = compose_devices_report(document.title, document.target, entries, said, by_hand_commands, more)
    return ReportPaths(*write_page(report, out, "report"), report.gate)


def commands(folder: Path) -> tuple[str, ...]:
    """How a deployment's bundle gets to a device, the three commands to type there, and how the results come home."""
    return to_type(read_bundle(folder / BUNDLE_FOLDER), folder)


def require_all(outcomes: Sequence[DeviceOutcome]) -> None:
    """Nothing, when every device was measured.

    Raises:
        DeviceFailed: one was not; the text has each one's status and reason.
    """
    failed = [outcome for outcome in outcomes if outcome.status != "ok"]
    if failed:
        raise DeviceFailed("; ".join(f"{outcome.host}: {outcome.status}: {outcome.reason}" for outcome in failed))


def _deliver(bundle: Path, folder: Path, devices: Devices, narrator: Narrator) -> tuple[DeviceOutcome, ...]:
    if not devices.hosts:
        return ()
    with narrator.side_by_side(devices.hosts) as (report_of, said):

        def done(outcome: DeviceOutcome) -> None:
            said(outcome.host, "measured" if outcome.status == "ok" else f"{outcome.status}: {outcome.reason}")
            for note in outcome.notes:
                narrator.say(f"  {outcome.host}: {note}")

        outcomes = deliver_to_all(devices.hosts, bundle, folder / "results", devices.options, report_of, done)
    paths = [each.results and Path(each.results).relative_to(folder).as_posix() for each in outcomes]
    return tuple(replace(each, results=path) for each, path in zip(outcomes, paths, strict=True))


def _entry(folder: Path, outcome: DeviceOutcome, to: Path, max_drop: float | None) -> DeviceEntry:
    """What the report over all says of one device; its own report is written too, where it has results."""
    if outcome.results is None:
        return DeviceEntry(**vars(outcome))
    out = to / DEVICES_FOLDER / host_folder_name(outcome.host)
    notes = [f"{note}." for note in outcome.notes]
    paths = write_folder_report(folder, folder / outcome.results, out, max_drop, notes=notes)
    report, measured = paths.html.relative_to(to).as_posix(), read_results(folder / outcome.results)
    return DeviceEntry(**vars(outcome), measured=measured, report=report, gate=paths.gate)
