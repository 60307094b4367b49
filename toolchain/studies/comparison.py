"""Methods on one model, side by side: what each keeps, what that costs in quality, and how the default compares."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from leanear.benchmarks.summary import Interval, wilson_interval
from leanear.data.examples import LabelledInputs
from leanear.progress import Report, quiet
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import replaced_file, sha256_json, write_text
from leanear.runtimes.process.interrupts import remember_kept
from leanear.studies.comparison_document import (
    ANY_SEED,
    DENSE,
    ErrorRate,
    Measure,
    MethodsTable,
    OutOfReach,
    Ratio,
    Row,
)
from leanear.studies.methods import DEFAULT, Bench, Method
from leanear.studies.quality import Answers, judge_answers, predict

ROWS_FILE, ANSWERS_FOLDER = "rows.jsonl", "answers"
RESAMPLES = 2000
MEASURES: tuple[Measure, ...] = ("kl_divergence", "cross_entropy_change", "excess_error")


@dataclass(frozen=True)
class Job:
    """One row to be: a method at a sparsity, on the calibration clips of a seed."""

    method: Method
    sparsity: float
    seed: int


@dataclass(frozen=True)
class Finished:
    """A row with the figures of every evaluation clip."""

    row: Row
    answers: Answers


Outcome = Finished | OutOfReach


def identity(job: Job, made_from: Mapping[str, str], clips: int) -> str:
    """Hex sha256 of all that a row depends on: the job, its recipe, and the sha256 of model and clips."""
    recipe = None if job.method.recipe is None else dataclasses.asdict(job.method.recipe)
    kind = type(job.method.recipe).__name__
    return sha256_json([job.method.name, kind, recipe, job.sparsity, job.seed, clips, dict(made_from)])


def compute_rows(
    jobs: Sequence[Job],
    bench_of: Callable[[int], Bench],
    evaluation: LabelledInputs,
    folder: Path | None,
    made_from: Mapping[str, str],
    *,
    batch_size: int = 32,
    report: Report = quiet,
) -> tuple[Outcome, ...]:
    """The jobs' outcomes, in their order. Evaluation clips are only ever evaluated on.

    bench_of(seed): the calibration clips of that seed, called once for each run of jobs of one seed; folder: where rows
    are kept as soon as they are finished, and taken from if they are of the same recipe and made_from (sha256 by kind).
    """
    kept = read_rows(folder)
    dense_logits: torch.Tensor | None = None
    bench: Bench | None = None
    bench_seed: int | None = None
    outcomes: list[Outcome] = []
    for number, job in enumerate(jobs):

        def told(text: str, fraction: float | None = None, number: int = number, job: Job = job) -> None:
            done = (number + min(fraction or 0.0, 0.99)) / len(jobs)
            where = f"{number + 1}/{len(jobs)} {job.method.name}, {100 * job.sparsity:g} %, seed {job.seed}"
            report(f"{where}: {text}", done)

        if bench is None or bench_seed != job.seed:
            bench, bench_seed = bench_of(job.seed), job.seed
        bench.report = told
        key = identity(job, made_from, bench.clips)
        if key not in kept:
            if dense_logits is None:
                dense_logits = predict(bench.checkpoint.model, evaluation.inputs, bench.family.logits, told, batch_size)
            kept[key] = _compute(job, bench, evaluation, dense_logits, batch_size, told)
            if folder is not None:
                _write_row(folder, key, kept)
        outcomes.append(kept[key])
    return tuple(outcomes)


def _compute(
    job: Job, bench: Bench, evaluation: LabelledInputs, dense_logits: torch.Tensor, batch_size: int, report: Report
) -> Outcome:
    started, reused_before_s = time.perf_counter(), bench.reused_s
    try:
        made = job.method.make(bench, job.sparsity, job.method.recipe)
    except BadInput as error:
        return OutOfReach(job.method.name, job.sparsity, job.seed, str(error))
    seconds = time.perf_counter() - started + bench.reused_s - reused_before_s
    logits = dense_logits
    if made.model is not bench.checkpoint.model:
        logits = predict(made.model, evaluation.inputs, bench.family.logits, report, batch_size)
    report("counting mistakes", None)
    mistakes = bench.family.mistakes(bench.checkpoint, made.model, evaluation, logits)
    answers = judge_answers(logits, dense_logits, evaluation.targets, mistakes)
    row = Row(
        method=job.method.name,
        asked=job.sparsity,
        seed=job.seed,
        sparsity=made.plan.sparsity,
        attention_parameters=made.plan.attention_parameters_kept,
        parameters=sum(parameter.numel() for parameter in made.model.parameters()),
        macs=bench.family.macs(bench.checkpoint, made.model).total,
        by_kind={kind: share.sparsity for kind, share in made.plan.shares.items()},
        clips=len(evaluation),
        counted=float(answers.counted.sum()),
        errors=float(answers.errors.sum()),
        cross_entropy=float(answers.cross_entropy.mean()),
        kl_divergence=float(answers.kl_divergence.mean()),
        updates=made.updates,
        seconds=seconds,
    )
    return Finished(row, answers)


# Rows in files


def _answers_path(folder: Path, key: str) -> Path:
    return folder / ANSWERS_FOLDER / f"{key[:24]}.npz"


def _write_row(folder: Path, key: str, kept: Mapping[str, Outcome]) -> None:
    """Write the outcome called `key` with its clips' figures, and all lines anew."""
    found = kept[key]
    if isinstance(found, Finished):
        with replaced_file(_answers_path(folder, key)) as part, open(part, "wb") as stream:
            np.savez(stream, **dataclasses.asdict(found.answers))
    rows = {name: outcome.row if isinstance(outcome, Finished) else outcome for name, outcome in kept.items()}
    lines = [json.dumps({"identity": name, **dataclasses.asdict(row)}) for name, row in rows.items()]
    write_text(folder / ROWS_FILE, "".join(line + "\n" for line in lines))
    remember_kept(folder / ROWS_FILE)


def read_rows(folder: Path | None) -> dict[str, Outcome]:
    """The outcomes in `folder` by identity; those that cannot be read are left out."""
    if folder is None or not (folder / ROWS_FILE).is_file():
        return {}
    found: dict[str, Outcome] = {}
    for line in (folder / ROWS_FILE).read_text(encoding="utf-8").splitlines():
        try:
            value = json.loads(line)
            key = value.pop("identity")
            if "reason" in value:
                found[key] = OutOfReach(**value)
                continue
            with np.load(_answers_path(folder, key), allow_pickle=False) as arrays:
                answers = Answers(**{field.name: arrays[field.name] for field in dataclasses.fields(Answers)})
            found[key] = Finished(Row(**value), answers)
            remember_kept(folder / ROWS_FILE)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, OSError, ValueError, BadZipFile):
            continue  # cut short, or of another version: the row is computed again
    return found


# The default against the others


def damages(finished: Finished, dense: Finished, measure: str) -> np.ndarray:
    """What a model lost on every clip (N,), by one of MEASURES; the mean is what is compared."""
    if measure == "kl_divergence":
        return finished.answers.kl_divergence
    if measure == "cross_entropy_change":
        return finished.answers.cross_entropy - dense.answers.cross_entropy
    # so scaled that the mean over clips is the change of the error rate
    return (finished.answers.errors - dense.answers.errors) / finished.answers.counted.mean()


@functools.lru_cache(maxsize=2)
def _draws(seeds: int, clips: int, seed: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """The share that every seed (R, S) and every clip (R, N) has in each of R draws with replacement."""
    generator = np.random.default_rng(seed)
    of_seeds, of_clips = np.empty((resamples, seeds)), np.empty((resamples, clips))
    for number in range(resamples):
        of_clips[number] = np.bincount(generator.integers(clips, size=clips), minlength=clips) / clips
        of_seeds[number] = np.bincount(generator.integers(seeds, size=seeds), minlength=seeds) / seeds
    return of_seeds, of_clips


def paired_ratio(
    ours: np.ndarray, theirs: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[Interval, Interval, Interval | None]:
    """The means of `ours` and of `theirs`, and the ratio of the means, each with a 95 % bootstrap interval.

    ours, theirs: damage (S, N) of S calibration seeds on N clips. Clips are resampled, and seeds with them where there
    are several, the same ones for both. The ratio is None where the interval of the denominator reaches down to 0.
    """
    of_seeds, of_clips = _draws(*ours.shape, seed, resamples)
    drawn = np.stack([(of_seeds @ values * of_clips).sum(axis=1) for values in (ours, theirs)], axis=1)
    lows, highs = np.percentile(drawn, (2.5, 97.5), axis=0)
    our_mean, their_mean = (
        Interval(float(values.mean()), float(low), float(high))
        for values, low, high in zip((ours, theirs), lows, highs, strict=True)
    )
    if their_mean.low <= 0:
        return our_mean, their_mean, None
    # a few draws may have no damage to divide by; they count as the largest ratios of all
    finite = drawn[drawn[:, 1] > 0]
    ratios = np.concatenate([finite[:, 0] / finite[:, 1], np.full(resamples - len(finite), np.inf)])
    low, high = np.percentile(ratios, (2.5, 97.5), method="nearest")
    if not np.isfinite(high):
        return our_mean, their_mean, None
    return our_mean, their_mean, Interval(our_mean.estimate / their_mean.estimate, float(low), float(high))


def compare_with(
    rows: Sequence[Finished], ours: str = DEFAULT, against: Callable[[str], bool] = lambda _name: True
) -> tuple[Ratio, ...]:
    """The damage of the method named `ours` over that of every other whose name `against` accepts, by sparsity.

    Only seeds that both have are compared; what does not depend on the seed stands for all of them.
    """
    (dense,) = (found for found in rows if found.row.method == DENSE)
    by_place: dict[tuple[str, float], dict[int, Finished]] = {}
    for found in rows:
        by_place.setdefault((found.row.method, found.row.asked), {})[found.row.seed] = found
    ratios = []
    for (name, asked), theirs in by_place.items():
        if name in (ours, DENSE) or not against(name) or (ours, asked) not in by_place:
            continue
        own = by_place[ours, asked]
        pairs = list(_pairs(own, theirs))
        for measure in MEASURES:
            ours_lost = np.stack([damages(found, dense, measure) for found, _ in pairs])
            theirs_lost = np.stack([damages(found, dense, measure) for _, found in pairs])
            ratio = paired_ratio(ours_lost, theirs_lost)
            ratios.append(Ratio(ours, name, asked, measure, *ratio, _seeds(own, theirs)))
    return tuple(ratios)


def _seeds(ours: Mapping[int, Finished], theirs: Mapping[int, Finished]) -> tuple[int, ...]:
    """The seeds of the comparison; a method that ignores the seed has the row of one, marked as seed -1."""
    if ANY_SEED in theirs:
        return tuple(sorted(ours))
    return tuple(sorted(set(ours) & set(theirs)))


def _pairs(ours: Mapping[int, Finished], theirs: Mapping[int, Finished]) -> Iterator[tuple[Finished, Finished]]:
    for seed in _seeds(ours, theirs):
        yield ours[seed], theirs[ANY_SEED] if ANY_SEED in theirs else theirs[seed]


def finished_rows(outcomes: Sequence[Outcome]) -> tuple[Finished, ...]:
    """Those that have figures."""
    return tuple(outcome for outcome in outcomes if isinstance(outcome, Finished))


def error_rates(rows: Sequence[Finished], seed: int = 0, resamples: int = RESAMPLES) -> tuple[ErrorRate, ...]:
    """Error rates with intervals: Wilson's where every clip is right or wrong, else a bootstrap over clips."""
    by_place: dict[tuple[str, float], list[Answers]] = {}
    for found in rows:
        by_place.setdefault((found.row.method, found.row.asked), []).append(found.answers)
    return tuple(ErrorRate(*place, _error_rate(answers, seed, resamples)) for place, answers in by_place.items())


def _error_rate(answers: Sequence[Answers], seed: int, resamples: int) -> Interval:
    errors, counted = np.mean([each.errors for each in answers], axis=0), answers[0].counted
    rate = float(errors.sum() / counted.sum())
    if (counted == 1).all():
        wilson = wilson_interval(round(float(errors.sum())), len(errors))
        return Interval(rate, wilson.low, wilson.high)
    drawn = np.random.default_rng(seed).integers(len(errors), size=(resamples, len(errors)))
    low, high = np.percentile(errors[drawn].sum(axis=1) / counted[drawn].sum(axis=1), (2.5, 97.5))
    return Interval(rate, float(low), float(high))


def methods_table(outcomes: Sequence[Outcome], ratios: Sequence[Ratio]) -> MethodsTable:
    """Rows, error rates with intervals, what is out of reach, and ratios."""
    finished = finished_rows(outcomes)
    beyond = tuple(found for found in outcomes if isinstance(found, OutOfReach))
    return MethodsTable(error_rates(finished), tuple(found.row for found in finished), beyond, tuple(ratios))
