"""`leanear import`: results that were measured by hand on a device come home into the deployment that they are of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from leanear.benchmarks.report.report import ReportPaths
from leanear.benchmarks.results import DeviceOutcome, Results, brought_files, read_results, why_foreign
from leanear.deploy.benching import DEVICES_FILE
from leanear.deploy.delivering import BY_HAND, read_devices, write_delivery_report
from leanear.devices.hosts import host_folder_name
from leanear.devices.statuses import plain, results_status
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import only_here, replaced_file, sha256_file
from leanear.runtimes.records import write


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
