"""The whole job, from MODEL and DATA to a report; `deploy` reads as the table of stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanear.benchmarks.device.bundled import ALL_THREADS, BundleRun
from leanear.benchmarks.report.report import ReportPaths
from leanear.benchmarks.results import DeviceOutcome, Results, read_results
from leanear.data.dataset import Data, DataFolder, column_for
from leanear.data.splits import Splits, draw_evaluation, read_splits
from leanear.deploy.ahead import ENGINES_FILE, engines_stage, say_engines
from leanear.deploy.benching import DEVICES_FILE, PRECISION_FILE
from leanear.deploy.delivering import BUNDLE_FOLDER, DEVICES_FOLDER, Devices, deliver_deployment
from leanear.deploy.deployment_stages import (
    VERSION,
    bench_stage,
    clips_stage,
    export_stage,
    precision_text,
    prune_stage,
    was_pruned,
)
from leanear.deploy.export_choices import chosen_window
from leanear.deploy.measuring import (
    DEPLOYMENT_FILE,
    DEPLOYMENT_SCHEMA,
    DeploymentDocument,
    read_deployment,
    write_folder_report,
)
from leanear.deploy.precision_gate import (
    PLAIN,
    TRIALS_FOLDER,
    Candidate,
    PrecisionGate,
    plain_precision,
    precision_stage,
    ships_by_record,
)
from leanear.families.checkpoint import (
    checkpoint_folder,
    checkpoint_name,
    checkpoint_sha256,
    data_folder,
    load_checkpoint,
)
from leanear.families.registry import labels_of, read_spellings, task_of
from leanear.outputs import check_deployment_folder
from leanear.progress import Narrator
from leanear.runtimes.backends.engines import import_library
from leanear.runtimes.choose import choose_runtime, require_runtime
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import only_here
from leanear.runtimes.process.notes import note
from leanear.runtimes.records import write
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.tasks import SPEECH_TASK
from leanear.targets.target import Target
from leanear.timing.speech_work import SpeechWork

if TYPE_CHECKING:
    from leanear.prune.job import PruneJob
import hashlib

from leanear.families.checkpoint import DEMO_MODELS
from leanear.runtimes.files import write_text

DEPLOYMENTS = Path("deployments")
OWNER_FILE = ".leanear-model"  # in a model's folder: which model that is
LETTERS = 8
OWN_FILES = (ENGINES_FILE, PRECISION_FILE, DEPLOYMENT_FILE, DEVICES_FILE, "report.md", "report.html")
HOLDERS = ("clips", "calibration", "results", "results/*", f"{DEVICES_FOLDER}/*", TRIALS_FOLDER, ".stages")
OWN_NAMES = ("checkpoint", "dense", "slim", BUNDLE_FOLDER, *OWN_FILES, *(f"{each}/*" for each in HOLDERS))


def default_folder(model: str, target: str) -> Path:
    """deployments/NAME/TARGET, or, where NAME is another model's folder, deployments/NAME-HASH/TARGET."""
    name = checkpoint_name(model)
    if _owner(DEPLOYMENTS / name) not in ("", _identity(model)):
        name = f"{name}-{hashlib.sha256(_identity(model).encode()).hexdigest()[:LETTERS]}"
    return DEPLOYMENTS / name / target


def claim(folder: Path, model: str) -> None:
    """Write down that `folder`, a `default_folder`, and all beside it are of MODEL."""
    if not _owner(folder.parent):
        write_text(folder.parent / OWNER_FILE, _identity(model) + "\n")


def _identity(model: str) -> str:
    """The checkpoint's own folder, or the name by which everybody has the same."""
    return model if model in DEMO_MODELS or not Path(model).is_dir() else str(Path(model).resolve())


def _owner(folder: Path) -> str:
    """Which model's a folder is, "" where nothing says so."""
    path = folder / OWNER_FILE
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


@dataclass(frozen=True)
class Deployment:
    """What `deploy` leaves: a folder (clips, calibration, checkpoint, dense, slim, results) and the report in it.

    results: of this machine, or of the one device that was measured; None where there are several, or none. bundle,
    outcomes: for devices.
    """

    folder: Path
    results: Results | None
    report: ReportPaths
    bundle: Path | None = None
    outcomes: tuple[DeviceOutcome, ...] = ()


@dataclass(frozen=True)
class Request:
    """What is deployed, where to, and how it is measured.

    model: MODEL as in `checkpoint_folder`; data: DATA, by default the demo's own clips; job: how it is pruned, and for
        which target; out: the deployment folder, None: the default one.
    max_drop: points of accuracy that may be lost, or of the word error rate that may be added.
    budget_s: seconds for latency samples; sustained_s: seconds of work without a pause.
    command: as it was typed, for the report.
    devices: where both models are measured, None for this machine.
    gate: what the target's precision may cost.
    window: which windows the slim Whisper's encoder takes, "full", "auto" or seconds; None: DEFAULT_WINDOW where the
        target's graphs take several; the dense one has the full window.
    eval_clips: how many clips are evaluated at most, None: all.
    word_timestamps: of a Whisper, the slim model is made for them.
    """

    model: str
    data: Data | None
    job: PruneJob
    out: Path | None
    max_drop: float | None
    budget_s: float
    command: Sequence[str]
    devices: Devices | None = None
    sustained_s: float = 0.0
    gate: PrecisionGate = field(default_factory=PrecisionGate)
    window: str | None = None
    eval_clips: int | None = None
    word_timestamps: bool = False


@dataclass(frozen=True)
class _Prepared:
    """What a request comes to, its inputs read and nothing written.

    source: the checkpoint's folder; job: with the work that its goal times; not_here: why the target's engines, built
    here, cannot run here; devices: as of the request, or of nobody where they cannot.
    """

    source: Path
    audio: DataFolder
    task: str
    job: PruneJob
    window: str
    splits: Splits
    folder: Path
    not_here: str
    devices: Devices | None

    @property
    def target(self) -> Target:
        return self.job.target


def deploy(request: Request, narrator: Narrator) -> Deployment:
    """Prune a model, export it dense and slim for the job's target, prove both, measure both, and write the report.

    The slim model ships in the target's precision, or in a slower one where the gate finds that this costs too much;
    the dense one is measured in the runtime's plain precision, so that what a precision costs and saves is in the
    figures. A stage whose inputs and outputs are unchanged is not run again.

    Raises:
        LeanearError: an input is not usable, an export is not equivalent, or a measurement failed.
    """
    ready = _prepare(request)
    folder, job = ready.folder, ready.job
    if not was_pruned(folder, ready.source, job):
        from leanear.prune.job import open_reachable

        open_reachable(ready.source, job, narrator)
    name = _take_folder(request, ready, narrator)
    _note_replaced(folder, _asked(request, ready))
    with only_here(folder, OWN_NAMES):
        ran = [
            clips_stage(folder, ready.source, ready.splits, ready.task, narrator),
            prune_stage(folder, ready.source, job, narrator),
        ]
        ships, exported = _artifact_stages(request, ready, narrator)
        device = dataclasses.replace(ready.target, precision=ships)
        if job.goal.needs_latency and ships != ready.target.precision:
            asked = ready.target.precision
            narrator.say(f"  {job.goal.text}: timed in {asked}, which does not ship; {ships} was not timed for it")
        ran.append(exported)
        if ready.target.compute_capabilities:
            ran.append(engines_stage(folder, device, ready.not_here, narrator))
            say_engines(folder, narrator)
        about = _about(request, ready, name, ships)
        write(folder / DEPLOYMENT_FILE, about)
        if ready.devices is not None:
            return _deliver(request, folder, device, ready.devices, about, narrator)
        return _measure_here(request, ready, device, any(ran), narrator)


def _prepare(request: Request) -> _Prepared:
    """The request with its inputs read; raises where one of them is not usable."""
    model, job = request.model, request.job
    target = job.target
    if request.devices is not None and job.goal.needs_latency:
        raise BadInput(
            f"{job.goal.flag}: the latency table is timed on this machine, which says nothing of another; use"
            " --sparsity, --macs or --max-drop for devices"
        )
    source = checkpoint_folder(model)
    audio = data_folder(model, request.data)
    task = task_of(source)
    window = chosen_window(request.window, target.graph_form, task, model, request.word_timestamps)
    if task == SPEECH_TASK and job.goal.needs_latency:
        job = dataclasses.replace(job, work=dataclasses.replace(job.work or SpeechWork(), window=window))
    splits = read_splits(audio, job.calibration_clips, job.recipe.seed, column_for(task), labels=labels_of(source))
    splits = draw_evaluation(splits, request.eval_clips, job.recipe.seed)
    folder = request.out or default_folder(model, target.name)
    check_deployment_folder(folder, [source, audio.path])
    not_here, devices = _where_measured(target, request.devices)
    if job.asked.as_json():
        load_checkpoint(source, job.asked)  # what it does not have is refused before any work
    return _Prepared(source, audio, task, job, window, splits, folder, not_here, devices)


def _where_measured(target: Target, devices: Devices | None) -> tuple[str, Devices | None]:
    """Why engines that are built here cannot run here, "" where they can, and the devices; None for this machine."""
    not_here = ""
    if target.compute_capabilities:
        import_library(target.runtime)
        not_here = choose_runtime(target.runtime).available() or ""
        if devices is None and not_here:
            devices = Devices()  # what is built here is for another machine
    if devices is None:
        require_runtime(target.runtime, SessionOptions(threads=target.threads, precision=target.precision))
    return not_here, devices


def _take_folder(request: Request, ready: _Prepared, narrator: Narrator) -> str:
    """Make the folder the model's; the model's name in it."""
    folder, target = ready.folder, ready.target
    folder.mkdir(parents=True, exist_ok=True)
    if request.out is None:
        claim(folder, request.model)
    name = checkpoint_name(request.model) if request.out is not None else folder.parent.name
    narrator.say(f"{name} for {target.name} ({target.description}), in {folder}")
    return name


def _asked(request: Request, ready: _Prepared) -> dict[str, Any]:
    """What tells a request from others whose results would lie in the same folder."""
    told = {"model": request.model, "audio": str(ready.audio), "evaluation clips": len(ready.splits.evaluation)}
    return {**told, **ready.job.as_json(), "precision": ready.target.precision, "window": ready.window}


def _note_replaced(folder: Path, asked: dict[str, Any]) -> None:
    """Say that the results of another request are in the folder, which are going to be replaced."""
    about = read_deployment(folder)
    before = {} if about is None else about.asked
    changed = [f"{key}: {before[key]}" for key in before if key in asked and before[key] != asked[key]]
    if changed:
        note(f"{folder}: replaces the results of another request ({'; '.join(changed)}); --out FOLDER keeps both")


def _about(request: Request, ready: _Prepared, name: str, ships: str) -> DeploymentDocument:
    """deployment.json."""
    target, job, splits = ready.target, ready.job, ready.splits
    plain = plain_precision(target.runtime, ships)
    used = f"{len(splits.calibration)} to calibrate on, {len(splits.evaluation)} to evaluate on"
    provenance = {
        "model": request.model,
        "target": f"{target.name}: {target.description}",
        "precision": precision_text(target.precision, ships, plain),
        "audio": str(ready.audio),
        "clips used": f"{used}; {splits.origin}",
        **({"recipe file": job.recipe_file} if job.recipe_file else {}),
        **job.asked.as_json(),
    }
    return DeploymentDocument(DEPLOYMENT_SCHEMA, f"{name} for {target.name}", _asked(request, ready), provenance)


def _measure_here(request: Request, ready: _Prepared, device: Target, ran: bool, narrator: Narrator) -> Deployment:
    """The deployment after both models were measured on this machine."""
    folder, plain = ready.folder, plain_precision(device.runtime, device.precision)
    if (folder / DEVICES_FILE).is_file():
        note(f"{folder}: the report is of this machine from now on; what devices measured stays in results/")
        (folder / DEVICES_FILE).unlink()
    results, measured = bench_stage(
        folder, ready.source, device, plain, request.budget_s, request.sustained_s, request.command, narrator
    )
    if not (ran or measured):
        narrator.say("  nothing to do: every stage was done before, from the same inputs")
    return Deployment(folder, results, write_folder_report(folder, results.path, folder, request.max_drop))


def _deliver(
    request: Request, folder: Path, device: Target, devices: Devices, about: DeploymentDocument, narrator: Narrator
) -> Deployment:
    """The deployment after its bundle was made and brought to the devices."""
    delivery = deliver_deployment(
        folder,
        title=about.title,
        target=f"{device.name}: {device.description}",
        run=BundleRun(
            device.runtime,
            device.precision,
            plain_precision(device.runtime, device.precision),
            ALL_THREADS if device.all_threads else device.threads,
            request.budget_s,
            request.sustained_s,
        ),
        devices=devices,
        provenance=about.provenance,
        max_drop=request.max_drop,
        narrator=narrator,
    )
    outcomes = delivery.outcomes
    path = outcomes[0].results if len(outcomes) == 1 and outcomes[0].status == "ok" else None
    results = None if path is None else read_results(folder / path)
    return Deployment(folder, results, delivery.report, delivery.bundle, outcomes)


def _artifact_stages(request: Request, ready: _Prepared, narrator: Narrator) -> tuple[str, bool]:
    """dense/ and slim/; the precision that the slim one ships in, and whether anything had to be done.

    The dense artifact is of the plain precision that goes with what ships, which only the gate can say, and has the
    full window.
    """
    folder, source, target, model = ready.folder, ready.source, ready.target, request.model
    checkpoint, dense, form = folder / "checkpoint", folder / "dense", target.graph_form
    made_for: dict[str, Any] = {"window": ready.window, "word_timestamps": request.word_timestamps}

    def export_dense(ships: str) -> bool:
        precision = plain_precision(target.runtime, ships)
        return export_stage(
            folder, dense, "dense", source, model, form, precision, narrator, asked=ready.job.asked
        )  # fmt: skip

    def export_slim(out: Path, what: str, precision: str) -> bool:
        return export_stage(folder, out, what, checkpoint, model, form, precision, narrator, dense, **made_for)

    def export_trial(precision: str) -> Path:
        out = folder / TRIALS_FOLDER / precision
        export_slim(out, f"slim in {precision}", precision)
        return out

    made_from = {
        "leanear": VERSION,
        "checkpoint": checkpoint_sha256(checkpoint),
        "form": form,
        "window": ready.window,
        **({"word_timestamps": True} if request.word_timestamps else {}),
    }
    candidate = Candidate(folder, target, made_from, export_trial, read_spellings(source))
    ran = export_dense(ships_by_record(candidate, request.gate) or target.precision)
    if target.precision == PLAIN:
        (folder / PRECISION_FILE).unlink(missing_ok=True)
        return PLAIN, export_slim(folder / "slim", "slim", PLAIN) or ran
    ships, judged = precision_stage(candidate, request.gate, narrator)
    again = export_dense(ships)
    return ships, ran or judged or again
