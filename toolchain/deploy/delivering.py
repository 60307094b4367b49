"""A deployment's last stages for targets that are elsewhere: the bundle, the devices, and one report of all of them.

Results that were measured by hand on a device come home by `leanear import` into the deployment that they are of.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from leanear.benchmarks.device.bundled import BundleRun, read_bundle
from leanear.benchmarks.report.devices_report import DeviceEntry, compose_devices_report
from leanear.benchmarks.report.report import ReportPaths, write_page
from leanear.benchmarks.results import DeviceOutcome, Results, brought_files, read_results, why_foreign
from leanear.deploy.ahead import engine_sections
from leanear.deploy.benching import DEVICES_FILE
from leanear.deploy.measuring import precision_sections, pruning_sections, write_folder_report
from leanear.devices.bundle import write_bundle
from leanear.devices.bundle_readme import expected_time, to_type
from leanear.devices.hosts import deliver_to_all, host_folder_name
from leanear.devices.remote import RemoteOptions
from leanear.devices.ssh import plain, results_status
from leanear.progress import Narrator
from leanear.runtimes.errors import BadInput, DeviceFailed
from leanear.runtimes.files import only_here, read_json, replaced_file, sha256_file
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


@dataclass(frozen=True)
class Homecoming:
    """What was imported, into which deployment folder, and the report of it."""

    folder: Path
    outcomes: tuple[DeviceOutcome, ...]
    report: ReportPaths


def import_results(
    brought: Sequence[Path], *, into: Path | None, name: str | None, max_drop: float | None
) -> Homecoming:
    """Results files, or folders with some, copied into their deployment, and its report written again.

    into: the deployment folder; None: the one under deployments/ whose artifacts were measured; name: what the device
    is to be called, None: as its results name it. A device of that name that was measured before is replaced.

    Raises:
        BadInput: no results, or of other artifacts, or several of one name; another leanear is at work in the folder.
    """
    found = [read_results(path) for given in brought for path in brought_files(given)]
    names = [name or results.content.device_name for results in found]
    if len(set(names)) < len(names):
        raise BadInput(f"{brought[0]}: several results of {names[0]}; import one at a time, each with a --name")
    folder = into or _deployment_of(found[0])
    if not (folder / DEVICES_FILE).is_file():
        raise BadInput(f"{folder}: no deployment for devices that are measured elsewhere (it has no {DEVICES_FILE})")
    with only_here(folder, (DEVICES_FILE, "report.md", "report.html")):
        document = read_devices(folder)
        for results in found:
            if why := why_foreign(results.path, folder):
                raise BadInput(f"{why}; it does not belong there")
        outcomes = [outcome for outcome in document.outcomes if outcome.host not in names]
        imported = [_placed(results, device, folder) for results, device in zip(found, names, strict=True)]
        write(folder / DEVICES_FILE, replace(document, outcomes=(*outcomes, *imported)))
        return Homecoming(folder, tuple(imported), write_delivery_report(folder, max_drop))


def _deployment_of(results: Results) -> Path:
    """The deployment under deployments/ whose slim artifact was measured."""
    wanted = results.content.artifacts["slim"].manifest_sha256
    for manifest in sorted(Path("deployments").glob("*/*/slim/manifest.json")):
        if sha256_file(manifest) == wanted:
            return manifest.parent.parent
    raise BadInput(f"{results.path}: no folder in deployments/ has the model that was measured; name it with --into")


def _placed(results: Results, device: str, folder: Path) -> DeviceOutcome:
    """The outcome that devices.json has of one device, whose results are in the deployment folder now."""
    out = folder / "results" / host_folder_name(device) / results.path.name
    with replaced_file(out) as part:
        part.write_bytes(results.path.read_bytes())
    status, reason = results_status(results)
    return DeviceOutcome(device, status, plain(reason), (BY_HAND,), results=out.relative_to(folder).as_posix())
