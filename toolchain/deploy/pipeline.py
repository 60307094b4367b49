"""The whole job, from MODEL and DATA to a report; `deploy` reads as the table of stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanear.benchmarks.device.bundled import ALL_THREADS
from leanear.benchmarks.report.report import ReportPaths
from leanear.benchmarks.results import Results, read_results
from leanear.data.dataset import Data, column_for
from leanear.data.evaluation_clips import draw_evaluation
from leanear.data.splits import read_splits
from leanear.deploy.ahead import ENGINES_FILE, engines_stage, say_engines
from leanear.deploy.delivering import BUNDLE_FOLDER, Devices, deliver_deployment
from leanear.deploy.deployment_folder import claim, default_folder
from leanear.deploy.deployment_stages import (
    VERSION,
    bench_stage,
    clips_stage,
    export_stage,
    precision_text,
    prune_stage,
    was_pruned,
)
from leanear.deploy.measuring import ABOUT_FILE, ABOUT_SCHEMA, DEVICES_FILE, PRECISION_FILE, write_folder_report
from leanear.deploy.precision_gate import (
    PLAIN,
    TRIALS_FOLDER,
    Candidate,
    PrecisionGate,
    plain_precision,
    precision_stage,
    ships_by_record,
)
from leanear.devices.bundle import RunSettings
from leanear.devices.remote import RemoteOutcome
from leanear.evaluate.evaluation import data_folder
from leanear.families.asked import Asked
from leanear.families.checkpoint import checkpoint_folder, checkpoint_name, checkpoint_sha256, load_checkpoint
from leanear.families.tasks import labels_of, read_spellings, task_of
from leanear.outputs import check_deployment_folder, only_here
from leanear.progress import Narrator
from leanear.runtimes.backends.engines import import_library
from leanear.runtimes.choose import choose_runtime, require_runtime
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import write_json
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.encoder_windows import DEFAULT_WINDOW, FULL
from leanear.runtimes.tasks import SPEECH_TASK
from leanear.targets.target import Target
from leanear.timing.speech_work import SpeechWork

if TYPE_CHECKING:
    from leanear.prune.job import PruneJob

OWN_FOLDERS = ("checkpoint", "dense", "slim", f"{TRIALS_FOLDER}/*", BUNDLE_FOLDER)
OWN_NAMES = (*OWN_FOLDERS, ENGINES_FILE, PRECISION_FILE, "deployment.json", "report.md", "report.html")


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
    outcomes: tuple[RemoteOutcome, ...] = ()


def deploy(  # noqa: C901, PLR0912, PLR0913, PLR0915, the stages of a deployment
    model: str,
    *,
    data: Data | None,
    job: PruneJob,
    out: Path | None,
    max_drop: float | None,
    budget_s: float,
    command: Sequence[str],
    narrator: Narrator,
    devices: Devices | None = None,
    sustained_s: float = 0.0,
    gate: PrecisionGate | None = None,
    window: str | None = None,
    eval_clips: int | None = None,
    word_timestamps: bool = False,
) -> Deployment:
    """Prune `model`, export it dense and slim for the job's target, prove both, measure both, and write the report.

    The slim model ships in the target's precision, or in a slower one where `gate` finds that this costs too much; the
    dense one is measured in the runtime's plain precision, so that what a precision costs and saves is in the figures.

    model: MODEL as in `checkpoint_folder`; data: DATA, by default the demo's own clips; job: how it is pruned, and for
    which target; out: the deployment folder; max_drop: points of accuracy that may be lost, or of the word error rate
    that may be added; budget_s: seconds for latency samples; devices: where both are measured, None for this machine;
    sustained_s: seconds of work without a pause.
    gate: what the target's precision may cost, one point by default. window: which windows the slim Whisper's encoder
    takes, "full", "auto" or seconds; None: DEFAULT_WINDOW where the target's graphs take several; the dense one has the
    full window. eval_clips: how many clips are evaluated at most, None: all. word_timestamps: of a Whisper, the slim
    model is made for them.
    A stage whose inputs and outputs are unchanged is not run again.

    Raises:
        LeanearError: an input is not usable, an export is not equivalent, or a measurement failed.
    """
    device = job.target
    if devices is not None and job.goal.needs_latency:
        raise BadInput(
            f"--{job.goal.kind.replace('_', '-')}: the latency table is timed on this machine, which says nothing of "
            "another; use --sparsity, --macs or --max-drop for devices"
        )
    source = checkpoint_folder(model)
    audio = data_folder(model, data)
    task = task_of(source)
    if job.asked.as_json():
        load_checkpoint(source, job.asked)  # what it does not have is refused before any work
    window = _window(window, device, task, model)
    if task == SPEECH_TASK and job.goal.needs_latency:
        job = dataclasses.replace(job, work=dataclasses.replace(job.work or SpeechWork(), window=window))
    if word_timestamps:
        _require_word_timestamps(device, task, model)
    splits = read_splits(audio, job.calibration_clips, job.recipe.seed, column_for(task), labels=labels_of(source))
    splits = draw_evaluation(splits, eval_clips, job.recipe.seed)
    folder = out or default_folder(model, device.name)
    check_deployment_folder(folder, [source, audio.path])
    ahead = bool(device.compute_capabilities)
    not_here = ""
    if ahead:
        import_library(device.runtime)
        not_here = choose_runtime(device.runtime).available() or ""
        if devices is None and not_here:
            devices = Devices()  # what is built here is for another machine
    if devices is None:
        require_runtime(device.runtime, SessionOptions(threads=device.threads, precision=device.precision))
    if not was_pruned(folder, source, job):
        _refuse_out_of_reach(source, job, narrator)
    folder.mkdir(parents=True, exist_ok=True)
    if out is None:
        claim(folder, model)
    name = checkpoint_name(model) if out is not None else folder.parent.name
    narrator.say(f"{name} for {device.name} ({device.description}), in {folder}")
    with only_here(folder, OWN_NAMES):
        ran = [
            clips_stage(folder, source, splits, task, narrator),
            prune_stage(folder, source, job, narrator),
        ]
        gate = gate or PrecisionGate()
        ships, exported = _artifact_stages(
            folder, source, model, job.asked, device, gate, window, word_timestamps, narrator
        )
        asked, device = device.precision, dataclasses.replace(device, precision=ships)
        if job.goal.needs_latency and ships != asked:
            narrator.say(f"  {job.goal.text}: timed in {asked}, which does not ship; {ships} was not timed for it")
        plain = plain_precision(device.runtime, ships)
        ran.append(exported)
        if ahead:
            ran.append(engines_stage(folder, device, not_here, narrator))
            say_engines(folder, narrator)
        used = f"{len(splits.calibration)} to calibrate on, {len(splits.evaluation)} to evaluate on"
        about = {
            "schema": ABOUT_SCHEMA,
            "title": f"{name} for {device.name}",
            "provenance": {
                "model": model,
                "target": f"{device.name}: {device.description}",
                "precision": precision_text(asked, ships, plain),
                "audio": str(audio),
                "clips used": f"{used}; {splits.origin}",
                **job.asked.as_json(),
            },
        }
        write_json(folder / ABOUT_FILE, about)
        if devices is not None:
            threads = ALL_THREADS if device.all_threads else device.threads
            run = RunSettings(device.runtime, ships, threads, budget_s, sustained_s, plain)
            return _deliver(folder, device, devices, run, about, max_drop, narrator)
        (folder / DEVICES_FILE).unlink(missing_ok=True)
        results, measured = bench_stage(folder, source, device, plain, budget_s, sustained_s, command, narrator)
        if not (any(ran) or measured):
            narrator.say("  nothing to do: every stage was done before, from the same inputs")
        report = write_folder_report(folder, results.path, folder, max_drop)
    return Deployment(folder, results, report)


def _deliver(
    folder: Path,
    device: Target,
    devices: Devices,
    run: RunSettings,
    about: dict[str, Any],
    max_drop: float | None,
    narrator: Narrator,
) -> Deployment:
    """The deployment after its bundle was made and brought to the devices."""
    delivery = deliver_deployment(
        folder,
        title=about["title"],
        target=f"{device.name}: {device.description}",
        run=run,
        devices=devices,
        provenance=about["provenance"],
        max_drop=max_drop,
        narrator=narrator,
    )
    outcomes = delivery.outcomes
    path = outcomes[0].results_path if len(outcomes) == 1 and outcomes[0].ok else None
    return Deployment(folder, None if path is None else read_results(path), delivery.report, delivery.bundle, outcomes)


def _refuse_out_of_reach(source: Path, job: PruneJob, narrator: Narrator) -> None:
    from leanear.prune.job import open_reachable

    open_reachable(source, job, narrator)


def _window(window: str | None, device: Target, task: str, model: str) -> str:
    """Which windows the slim model's encoder takes.

    Raises:
        BadInput: some were asked for, and the model is a classifier or the target's graphs take the full one alone.
    """
    if window is not None and task != SPEECH_TASK:
        raise BadInput(f"--window {window}: it is for Whisper; {model} is a classifier")
    one_alone = device.graph_form == "tensorrt"
    if one_alone and window not in (None, FULL):
        raise BadInput(f"--window {window}: engines are built for one window, so {device.name} has the full one alone")
    return window or (FULL if one_alone or task != SPEECH_TASK else DEFAULT_WINDOW)


def _require_word_timestamps(device: Target, task: str, model: str) -> None:
    """Raises BadInput where there can be none, before anything is done."""
    if task != SPEECH_TASK:
        raise BadInput(f"--word-timestamps: it is for Whisper; {model} is a classifier")
    if device.graph_form == "tensorrt":
        raise BadInput(f"--word-timestamps: TensorRT's fused kernels give no attention, so {device.name} has none")


def _artifact_stages(
    folder: Path,
    source: Path,
    model: str,
    asked: Asked,
    device: Target,
    gate: PrecisionGate,
    window: str,
    word_timestamps: bool,
    narrator: Narrator,
) -> tuple[str, bool]:
    """dense/ and slim/; the precision that the slim one ships in, and whether anything had to be done.

    The dense artifact is of the plain precision that goes with what ships, which only the gate can say, and has the
    full window.
    """
    checkpoint, dense, form = folder / "checkpoint", folder / "dense", device.graph_form
    made_for: dict[str, Any] = {"window": window, "word_timestamps": word_timestamps}

    def export_trial(precision: str) -> Path:
        out = folder / TRIALS_FOLDER / precision
        what = f"slim in {precision}"
        export_stage(folder, out, what, checkpoint, model, form, precision, narrator, dense, **made_for)
        return out

    made_from = {
        "leanear": VERSION,
        "checkpoint": checkpoint_sha256(checkpoint),
        "form": device.graph_form,
        "window": window,
        **({"word_timestamps": True} if word_timestamps else {}),
    }
    candidate = Candidate(folder, device, made_from, export_trial, read_spellings(source))

    def export_dense(ships: str) -> bool:
        precision = plain_precision(device.runtime, ships)
        return export_stage(folder, dense, "dense", source, model, form, precision, narrator, asked=asked)

    ran = export_dense(ships_by_record(candidate, gate) or device.precision)
    if device.precision == PLAIN:
        (folder / PRECISION_FILE).unlink(missing_ok=True)
        out = folder / "slim"
        slim = export_stage(folder, out, "slim", checkpoint, model, form, PLAIN, narrator, dense, **made_for)
        return PLAIN, ran or slim
    ships, judged = precision_stage(candidate, gate, narrator)
    again = export_dense(ships)
    return ships, ran or judged or again
