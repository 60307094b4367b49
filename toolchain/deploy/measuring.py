"""Benchmarks and reports of artifacts that are there already."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from leanear.benchmarks.analysis import analyse, medians_ms
from leanear.benchmarks.formatting import PRUNED_PARTS
from leanear.benchmarks.measure.measure import benchmark
from leanear.benchmarks.report.page import Paragraph, Section
from leanear.benchmarks.report.precision_section import precision_section, read_precision
from leanear.benchmarks.report.report import ReportPaths, write_report
from leanear.benchmarks.report.sections import Extra
from leanear.benchmarks.results import Results, read_results, results_files, why_foreign
from leanear.data.clips import read_examples_for
from leanear.data.dataset import Data, as_folder, column_for
from leanear.data.splits import read_splits
from leanear.deploy.ahead import engine_sections
from leanear.evaluate.speech_evaluation import count_results_word_errors
from leanear.families.asked import Asked
from leanear.families.checkpoint import NOTHING_ASKED
from leanear.families.registry import read_spellings
from leanear.plan import plan_to_json, read_plan
from leanear.progress import Narrator, counted
from leanear.prune.document import read_pruning
from leanear.prune.notes import loss_section, loss_warning, pruning_notes
from leanear.runtimes.artifact import Artifact, read_artifact
from leanear.runtimes.choose import graph_precision
from leanear.runtimes.clips import clips_in_16_bits, write_clips
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_json
from leanear.runtimes.records import read
from leanear.runtimes.sessions import SessionOptions, own_precision

DEPLOYMENT_FILE, DEPLOYMENT_SCHEMA = "deployment.json", "leanear-deployment-1"
DEVICES_FILE, PRECISION_FILE = "devices.json", "precision.json"
CALIBRATION_CLIPS = 256  # what `deploy` keeps out of the evaluation where DATA has no split folders


@dataclass(frozen=True)
class DeploymentDocument:
    """`deployment.json`: what a deployment folder holds, and what it was made from.

    asked: what tells the request from others whose results would lie in the same folder; none in older files.
    """

    schema: str
    title: str
    asked: dict[str, Any]
    provenance: dict[str, str]
    MAY_LACK: ClassVar[dict[str, Any]] = {"asked": {}}


def read_deployment(folder: Path) -> DeploymentDocument | None:
    """`deployment.json` of a folder; None where there is none.

    Raises:
        BadInput: it is not what it should be.
    """
    path = folder / DEPLOYMENT_FILE
    return read(DeploymentDocument, read_json(path, DEPLOYMENT_SCHEMA), path) if path.is_file() else None


def bench_artifacts(  # noqa: PLR0913, what every stage is given
    artifact: Path,
    *,
    against: Path | None,
    runtime: str,
    precision: str | None,
    threads: int,
    budget_s: float,
    sustained_s: float = 0.0,
    window: str | None = None,
    data: Data | None,
    out: Path,
    seed: int,
    command: Sequence[str],
    narrator: Narrator,
    asked: Asked = NOTHING_ASKED,
) -> Results:
    """Results of `artifact`, in turn with `against` where it is given, written to `out`; accuracy only with DATA.

    precision: of `artifact`, and of `against` where its graphs are of it; None, or where they are not: what the graphs
    of each are of. Of speech, transcripts with their word errors stand for the accuracy. asked: of a Whisper, where
    its clips are to be transcribed otherwise than by itself; window: of `artifact`, "full", "auto" or seconds, None:
    its own, as `against` has.

    Raises:
        LeanearError: an artifact, the data or the runtime is not usable, or a measurement failed.
    """
    slim = read_artifact(artifact)
    chosen = precision or own_precision(slim, runtime)
    dense = None if against is None else _precision_beside(read_artifact(against), runtime, precision)
    said = chosen if dense in (None, chosen) else f"{dense} against {chosen}"
    with tempfile.TemporaryDirectory(prefix="leanear-clips-") as name:
        clips_path = None
        if data is not None:
            folder = as_folder(data)
            splits = read_splits(folder, CALIBRATION_CLIPS, seed, column_for(slim.task), labels=slim.labels)
            clips_path = Path(name) / "evaluation.npz"
            with narrator.step(f"reading {len(splits.evaluation)} evaluation clips") as report:
                told = counted(report)
                clips = read_examples_for(slim.task, splits.evaluation, slim.labels, slim.sample_rate_hz, told)
                write_clips(clips_path, clips_in_16_bits(clips)[0])
        with narrator.step(f"measuring on {runtime}, {said}, {threads} threads") as report:
            benchmark(
                against,
                artifact,
                clips_path,
                runtime,
                SessionOptions(threads=threads, precision=chosen),
                out,
                dense_precision=dense,
                budget_s=budget_s,
                sustained_s=sustained_s,
                window=window,
                command=command,
                progress=report,
                asked=asked.as_json(),
            )
    return count_results_word_errors(out, read_spellings(artifact))


def _precision_beside(artifact: Artifact, runtime: str, asked: str | None) -> str:
    """The precision that was asked for of another artifact, where this one's graphs are of it; else this one's own."""
    same = asked is not None and artifact.precisions == {graph_precision(asked)}
    return asked if asked is not None and same else own_precision(artifact, runtime)


def write_deployment_report(results: Path, *, out: Path | None, max_drop: float | None) -> ReportPaths:
    """Write report.md and report.html of a results file, or of a deployment folder's artifacts as they are now.

    Word errors of transcripts that came from a device are counted now, and kept in the results file.

    Raises:
        BadInput: there is no results file there, it is not one, or the folder's are all of other models.
    """
    if not results.is_dir():
        count_results_word_errors(results, read_spellings(results.resolve().parent.parent))
        return write_report(results, out or results.parent, max_drop=max_drop)
    if (results / DEVICES_FILE).is_file():
        from leanear.deploy.delivering import write_delivery_report

        return write_delivery_report(results, max_drop, out)
    return write_folder_report(results, _own_results(results), out or results, max_drop)


def _own_results(folder: Path) -> Path:
    """Of the results of the folder's artifacts those in what ships, of these those of this machine, the newest."""
    found = {path: why_foreign(path, folder) for path in results_files(folder)}
    own = [path for path, why in found.items() if not why]
    if not own:
        why = next(iter(found.values()), f"{folder}: no results/*.json in it")
        raise BadInput(f"{why}; `leanear deploy` or `leanear bench` measures the models that are there")
    ships = read_precision(folder / PRECISION_FILE).ships if (folder / PRECISION_FILE).is_file() else "fp32"
    shipped = [path for path in own if read_results(path).precisions["slim"] == ships]
    return max(shipped or own, key=lambda path: (path.parent == folder / "results", path.stat().st_mtime_ns))


def precision_sections(folder: Path) -> tuple[Section, ...]:
    """What a report of a deployment folder says of the precision that ships, nothing where there was no gate."""
    path = folder / PRECISION_FILE
    return (precision_section(read_precision(path)),) if path.is_file() else ()


def pruning_sections(folder: Path) -> tuple[Section, ...]:
    """What a report of a deployment folder that has no results says of how the slim model came about."""
    pruning = read_pruning(folder / "checkpoint")
    if pruning is None:
        return ()
    removed = f"{100 * pruning.sparsity:.1f} % of the {PRUNED_PARTS[pruning.prune]} parameters are removed."
    warning = loss_warning(pruning)
    said = (*([Paragraph(warning, "warning")] if warning else []), Paragraph(removed))
    notes = (Paragraph(note) for note in pruning_notes(pruning, {}))
    loss = loss_section(pruning)
    return (Section("Pruning", (*said, *notes)), *(() if loss is None else (loss,)))


def write_folder_report(
    folder: Path, results: Path, out: Path, max_drop: float | None, notes: Sequence[str] = ()
) -> ReportPaths:
    """The report of one of a deployment folder's results, with its plan and what deployment.json says of its origin.

    notes: sentences that come before those on pruning.
    """
    plan_path, precision_path = folder / "checkpoint" / "plan.json", folder / PRECISION_FILE
    pruning, about = read_pruning(folder / "checkpoint"), read_deployment(folder)
    measured = count_results_word_errors(results, read_spellings(folder))
    return write_report(
        results,
        out,
        plan=plan_to_json(read_plan(plan_path)) if plan_path.is_file() else None,
        precision_path=precision_path if precision_path.is_file() else None,
        max_drop=max_drop,
        extra=Extra(
            title="" if about is None else about.title,
            provenance={} if about is None else about.provenance,
            notes=(*notes, *pruning_notes(pruning, medians_ms(analyse(measured)))),
            warning=loss_warning(pruning) or "",
        ),
        loss=None if pruning is None else loss_section(pruning),
        more=engine_sections(folder),
    )
