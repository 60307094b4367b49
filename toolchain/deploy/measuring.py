"""Reports of what was measured."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanear.benchmarks.analysis import analyse, medians_ms
from leanear.benchmarks.formatting import PRUNED_PARTS
from leanear.benchmarks.report.page import Paragraph, Section
from leanear.benchmarks.report.precision_section import precision_section, read_precision
from leanear.benchmarks.report.report import ReportPaths, write_report
from leanear.benchmarks.report.sections import Extra
from leanear.deploy.ahead import engine_sections
from leanear.deploy.benching import DEVICES_FILE, PRECISION_FILE, own_results
from leanear.evaluate.speech_evaluation import count_results_word_errors
from leanear.families.registry import read_spellings
from leanear.plan import plan_to_json, read_plan
from leanear.prune.document import read_pruning
from leanear.prune.notes import loss_section, loss_warning, pruning_notes
from leanear.runtimes.files import LOCK_FILE, only_here, read_json
from leanear.runtimes.records import read

DEPLOYMENT_FILE, DEPLOYMENT_SCHEMA = "deployment.json", "leanear-deployment-1"


@dataclass(frozen=True)
class DeploymentDocument:
    """`deployment.json`: what a deployment folder holds, and what it was made from.

    asked: what tells the request from others whose results would lie in the same folder.
    """

    schema: str
    title: str
    asked: dict[str, Any]
    provenance: dict[str, str]


def read_deployment(folder: Path) -> DeploymentDocument | None:
    """`deployment.json` of a folder; None where there is none.

    Raises:
        BadInput: it is not what it should be.
    """
    path = folder / DEPLOYMENT_FILE
    return read(DeploymentDocument, read_json(path, DEPLOYMENT_SCHEMA), path) if path.is_file() else None


def write_deployment_report(results: Path, *, out: Path | None, max_drop: float | None) -> ReportPaths:
    """Write report.md and report.html of a results file, or of a deployment folder's artifacts as they are now.

    Word errors of transcripts that came from a device are counted now, and kept in the results file.

    Raises:
        BadInput: there is no results file there, it is not one, or the folder's are all of other models, or another
            leanear is at work in it.
    """
    if not results.is_dir():
        count_results_word_errors(results, read_spellings(results.resolve().parent.parent))
        return write_report(results, out or results.parent, max_drop=max_drop)
    is_held = out is None and (results / LOCK_FILE).is_file()
    with only_here(results, ("report.md", "report.html")) if is_held else contextlib.nullcontext():
        if (results / DEVICES_FILE).is_file():
            from leanear.deploy.delivering import write_delivery_report

            return write_delivery_report(results, max_drop, out)
        return write_folder_report(results, own_results(results), out or results, max_drop)


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
