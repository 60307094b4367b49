"""The comparison of methods on MODEL and DATA, as a folder: rows, JSON, Markdown and one HTML page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leanear.accelerator import on_accelerator
from leanear.benchmarks.report.report import write_page
from leanear.data.clips import read_examples_for
from leanear.data.dataset import Data, Example, column_for
from leanear.data.examples import LabelledInputs, clips_to_score
from leanear.data.splits import read_splits
from leanear.families.asked import Asked
from leanear.families.checkpoint import (
    NOTHING_ASKED,
    checkpoint_folder,
    checkpoint_sha256,
    data_folder,
    load_checkpoint,
)
from leanear.families.family import Checkpoint
from leanear.families.registry import family_of, labels_of, task_of
from leanear.outputs import check_replaceable
from leanear.plan import Plan, Prune
from leanear.progress import Narrator, Report, counted, in_parts
from leanear.prune.pruning import RECOMPUTE_ABOVE_BYTES
from leanear.recover.distillation_options import Distillation
from leanear.reference.choose import SCHEMES
from leanear.runtimes.choose import graph_precision, require_runtime
from leanear.runtimes.clips import Clips, clips_sha256
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import write_text
from leanear.runtimes.records import write
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.tasks import SPEECH_TASK
from leanear.studies.comparison import (
    ANY_SEED,
    ROWS_FILE,
    Finished,
    Job,
    Outcome,
    compare_with,
    compute_rows,
    finished_rows,
    methods_table,
)
from leanear.studies.comparison_document import (
    COMPARISON_SCHEMA,
    Calibration,
    ComparisonDocument,
    Evaluation,
    MethodFacts,
    MethodsLatency,
    MethodsTable,
    read_comparison,
)
from leanear.studies.comparison_page import comparison_report
from leanear.studies.methods import (
    ACTIVATIONS_EQUAL,
    CLASSIFIER,
    CLOVER,
    DEFAULT,
    DEFAULT_AS_SMALL,
    DENSE,
    ENTIRE_HEADS,
    MASK_FISHER,
    SPEECH_MODEL,
    Bench,
    EqualWidths,
    Method,
    method_named,
    methods,
    methods_beyond_attention,
    recovered,
    ten_steps,
)
from leanear.studies.timing_methods import time_methods
from leanear.targets.target import Target, read_target

COMPARISON_FILE = "comparison.json"
POOL_SHARE = 1.5  # calibration clips to draw from, over those that a seed draws
STEPS_OF_OURS = 5  # how many times our updates the reference's full schedule gets


@dataclass(frozen=True)
class ComparisonRequest:
    """What is compared. Sparsities are shares of the parameters of what is pruned.

    seeds: how many calibration seeds the claim's methods (the default, the reference's variants, CLOVER, the activation
    basis) have; all others have the first alone; claim_only: leave the others out; recovery_sparsities: where models
    are trained as well, empty for nowhere; target: whose latency is measured, None for none; asked: of a Whisper.
    """

    sparsities: tuple[float, ...] = (0.3, 0.5, 0.7, 0.8, 0.9)
    seeds: int = 3
    claim_only: bool = False
    recovery_sparsities: tuple[float, ...] = ()
    target: str | None = None
    calibration_clips: int = 256
    seed: int = 0
    asked: Asked = NOTHING_ASKED
    prune: Prune = "attention"

    def __post_init__(self) -> None:
        if self.prune != "attention" and (self.recovery_sparsities or self.target is not None):
            raise BadInput(f"--prune {self.prune}: --recovery and --target are for attention alone in this version")


@dataclass(frozen=True)
class ComparisonPaths:
    """Where the comparison was written."""

    json: Path
    markdown: Path
    html: Path


def require_timed_precision(target: Target, flag: str) -> None:
    """Nothing, where graphs of float32, which are all that is timed before a model is exported, stand for the target.

    Raises:
        BadInput: the target's graphs have products of another type.
    """
    if graph_precision(target.precision) != "fp32":
        raise BadInput(
            f"{flag}: it is timed on graphs of float32, which say nothing of {target.precision}, the precision of "
            f"target {target.name}"
        )


def compare_methods(  # noqa: PLR0915
    model: str, *, data: Data | None, request: ComparisonRequest, out: Path, command: Sequence[str], narrator: Narrator
) -> ComparisonPaths:
    """The paths of comparison.json, .md and .html in `out`; rows that are there, of the same inputs, are taken over.

    Raises:
        LeanearError: the model, the data or the target is not usable, or `out` holds something else.
    """
    check_replaceable(out, ROWS_FILE)
    target = None if request.target is None else read_target(request.target)
    if target is not None:
        require_timed_precision(target, "--target")
        require_runtime(target.runtime, SessionOptions(target.threads, target.precision))
    source = checkpoint_folder(model)
    task = task_of(source)
    if target is not None and task == SPEECH_TASK:
        raise BadInput("--target: the latency of methods is measured of audio classifiers alone in this version")
    pool_clips = round(POOL_SHARE * request.calibration_clips)
    audio = data_folder(model, data)
    splits = read_splits(audio, pool_clips, request.seed, column_for(task), labels=labels_of(source))
    with narrator.step("reading the checkpoint and the clips") as report:
        checkpoint = load_checkpoint(source, request.asked)
        family, extractor = family_of(checkpoint), checkpoint.feature_extractor
        part = in_parts(report, {"calibration": len(splits.calibration), "evaluation": len(splits.evaluation)})

        def read(
            told: Report, examples: tuple[Example, ...], inputs: Callable[[Checkpoint, Clips, Report], LabelledInputs]
        ) -> tuple[Clips, LabelledInputs]:
            stage, window = in_parts(told, {"reading": 1, "inputs": 9}), family.window_samples(extractor)
            reading = counted(stage("reading"), "reading ")
            clips = read_examples_for(task, examples, checkpoint.labels, extractor.sampling_rate, reading, window)
            return clips, inputs(checkpoint, clips, stage("inputs"))

        calibration_audio, pool = read(part("calibration"), splits.calibration, family.calibration_inputs)
        evaluation_audio, evaluation = read(part("evaluation"), splits.evaluation, family.labelled_inputs)
    if not (out / ROWS_FILE).is_file():
        write_text(out / ROWS_FILE, "")  # by which the folder is known as a comparison's
    made_from = {
        "checkpoint": checkpoint_sha256(source),
        "calibration": clips_sha256(calibration_audio),
        "evaluation": clips_sha256(evaluation_audio),
        **request.asked.as_json(),
    }
    spare_memory = family.activation_bytes(checkpoint.model, pool.inputs) > RECOMPUTE_ABOVE_BYTES
    clips_at_once = 1 if spare_memory else None
    drawn_clips = min(request.calibration_clips, len(pool))

    def bench_of(seed: int) -> Bench:
        own_seed = request.seed if seed == ANY_SEED else seed
        return Bench(family, checkpoint, pool, drawn_clips, own_seed, clips_at_once, prune=request.prune)

    def rows_of(title: str, jobs: Sequence[Job]) -> tuple[Outcome, ...]:
        with narrator.step(f"{title}: {len(jobs)} rows") as told, on_accelerator(checkpoint.model):
            return compute_rows(
                jobs, bench_of, evaluation, out, made_from, batch_size=4 if spare_memory else 32, report=told
            )

    dense_plan = family.dense_plan(checkpoint.model)
    there = SPEECH_MODEL if len(dense_plan.shares) > 1 else CLASSIFIER
    known = methods(there) if request.prune == "attention" else methods_beyond_attention(request.prune, there)
    outcomes = rows_of("one shot", one_shot_jobs(request, known))
    rows = finished_rows(outcomes)
    equal_widths = {method.name for method in known if isinstance(method.recipe, EqualWidths)}
    ratios = compare_with(rows, DEFAULT, lambda name: name != DEFAULT_AS_SMALL)
    ratios += compare_with(rows, DEFAULT_AS_SMALL, equal_widths.__contains__)
    recovery: MethodsTable | None = None
    latency: MethodsLatency | None = None
    used = list(known)
    if request.recovery_sparsities:
        trained = recovery_methods(rows, request.recovery_sparsities, drawn_clips)
        jobs = recovery_jobs(request, trained)
        with_dense = (*(found for found in rows if found.row.method == DENSE), *rows_of("recovery", jobs))
        ours = recovered(method_named(DEFAULT), Distillation()).name
        recovery = methods_table(with_dense, compare_with(finished_rows(with_dense), ours))
        used += {method.name: method for chosen in trained.values() for method in chosen}.values()
    if target is not None:
        with narrator.step(f"latency on {target.name}") as told:
            timed = [(method_named(name), sparsity) for name, sparsity in latency_points(request.sparsities)]
            latency = time_methods(timed, bench_of(request.seed), target, out / "graphs", told)
    document = ComparisonDocument(
        schema=COMPARISON_SCHEMA,
        model=model,
        made_from=made_from,
        command=tuple(command),
        calibration=Calibration(len(pool), drawn_clips, request.seed, splits.origin),
        evaluation=Evaluation(len(evaluation)),
        metric=checkpoint.metric,
        prune=request.prune,
        bundle_sparsity=bundle_sparsity(dense_plan),
        default=DEFAULT,
        published=tuple(method.name for method in known if is_published(method)),
        drawn=tuple(drawn_names(rows)),
        methods=tuple(MethodFacts(method.name, method.group, method.about, method.drawn) for method in used),
        one_shot=methods_table(outcomes, ratios),
        recovery=recovery,
        latency=latency,
    )
    write(out / COMPARISON_FILE, document)
    pages = write_page(comparison_report(read_comparison(out / COMPARISON_FILE)), out, "comparison")
    return ComparisonPaths(out / COMPARISON_FILE, *pages)


def one_shot_jobs(request: ComparisonRequest, known: Sequence[Method]) -> tuple[Job, ...]:
    """Rows without training: seed by seed, so that what is computed once per seed is computed once."""
    jobs = []
    for place in range(request.seeds):
        seed = request.seed + place
        for method in known:
            in_claim = is_claimed(method)
            if (not in_claim and (place or request.claim_only)) or (not method.drawn and place):
                continue
            asked = (0.0,) if method.name == DENSE else request.sparsities
            jobs += [Job(method, sparsity, seed if method.drawn else ANY_SEED) for sparsity in asked]
    return tuple(sorted(jobs, key=lambda job: job.seed))


def is_claimed(method: Method) -> bool:
    """Whether the method is part of what is claimed of the default, so that it has rows for all seeds."""
    return method.group == "reference" or method.name in (DENSE, CLOVER, ACTIVATIONS_EQUAL, DEFAULT, DEFAULT_AS_SMALL)


def is_published(method: Method) -> bool:
    """Whether it is what others have published: the reference's eight variants and CLOVER."""
    return method.group == "reference" or method.name == CLOVER


def drawn_names(rows: Sequence[Finished]) -> list[str]:
    """The methods in the pictures: the default, the best of the reference's channels and heads, and three between.

    Best is the lowest geometric mean of KL over all rows.
    """
    logs: dict[str, list[float]] = {}
    for found in rows:
        logs.setdefault(found.row.method, []).append(float(np.log(max(found.row.kl_divergence, 1e-12))))
    best = []
    for scheme in SCHEMES:
        names = [m.name for m in methods() if m.group == "reference" and m.recipe.scheme == scheme and m.name in logs]
        if names:
            best.append(min(names, key=lambda name: np.mean(logs[name])))
    return [name for name in (DEFAULT, *best, MASK_FISHER, CLOVER, ACTIVATIONS_EQUAL) if name in logs]


def recovery_methods(
    rows: Sequence[Finished], sparsities: Sequence[float], clips: int
) -> dict[float, tuple[Method, ...]]:
    """By sparsity: the default, the reference's best variant of channels and of heads in one shot, and ten steps of it.

    Best is the lowest mean KL in `rows` at that sparsity.
    """
    options = Distillation()
    updates = options.updates_planned(clips_to_score(clips))
    chosen = {}
    for sparsity in sparsities:
        best = [
            min(
                (m for m in methods() if m.group == "reference" and m.recipe.scheme == scheme),
                key=lambda method: _mean_kl(rows, method.name, sparsity),
            )
            for scheme in ("channels", "heads")
        ]
        full = [ten_steps(m.recipe.scheme, m.recipe.threshold, sparsity, STEPS_OF_OURS * updates, clips) for m in best]
        chosen[sparsity] = (*(recovered(method, options) for method in (method_named(DEFAULT), *best)), *full)
    return chosen


def _mean_kl(rows: Sequence[Finished], name: str, sparsity: float) -> float:
    values = [found.row.kl_divergence for found in rows if (found.row.method, found.row.asked) == (name, sparsity)]
    return float(np.mean(values)) if values else float("inf")


def recovery_jobs(request: ComparisonRequest, trained: dict[float, tuple[Method, ...]]) -> tuple[Job, ...]:
    """Rows with training, seed by seed."""
    seeds = range(request.seed, request.seed + request.seeds)
    return tuple(Job(m, sparsity, seed) for seed in seeds for sparsity, chosen in trained.items() for m in chosen)


def latency_points(sparsities: Sequence[float]) -> list[tuple[str, float]]:
    """What is exported and timed."""
    names = (DEFAULT, ACTIVATIONS_EQUAL, ENTIRE_HEADS)
    return [(DENSE, 0.0), *((name, sparsity) for name in names for sparsity in sparsities)]


def bundle_sparsity(plan: Plan) -> float:
    """The share of the attention parameters that one channel of every head of one block has."""
    return 1 / (2 * plan.dense_head_width * len(plan.sites))
