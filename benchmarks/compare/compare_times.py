"""The rows on time of a comparison of two results files, and what the dense model of both says of the machine."""

from __future__ import annotations

import math
from typing import Any, Callable, List, Sequence

import numpy as np

from leanear.benchmarks.analysis import all_samples
from leanear.benchmarks.compare.compare_rows import (
    Figure,
    Processes,
    Quantity,
    Row,
    Side,
    Sides,
    both_known,
    measured_row,
    missing_row,
    part_reason,
    ratio_of_medians,
    ratio_of_slim_to_dense,
)
from leanear.benchmarks.inference import STAGES
from leanear.benchmarks.results_document import Role
from leanear.benchmarks.summary import NO_CHANGE, SAMPLES_NEEDED
from leanear.runtimes.errors import BadInput
from leanear.runtimes.process.notes import plural

START_FLOOR = 0.10  # start-up depends on what of the files is still in memory
LATENCY, OVER_DENSE = "latency", "latency_over_dense"
OVER_DENSE_WHAT = Quantity(OVER_DENSE, "latency over dense's", "ratio", timed=True)
COLD = ("import_ms", "load_ms", "first_inference_ms")

SamplesOf = Callable[[Side], Processes]


def time_rows(sides: Sides) -> list[Row]:
    """Latency, the stages of a window of speech, and the way to the first answer.

    Raises:
        BadInput: a time in one of the files is no time.
    """
    rows = [latency_row(sides)]
    if not why_no_control(sides):
        rows.append(over_dense_row(sides))
    if sides[0].results.is_speech:
        rows += [
            _row(Quantity("encoder", "of it, encoder", "ms", timed=True), sides, _stage(STAGES[0])),
            _row(Quantity("first_token", "of it, first token", "ms", timed=True), sides, _stage(STAGES[1])),
            _row(Quantity("each_token", "of it, each later token", "ms", timed=True), sides, _each_token),
        ]
    for stage in dict.fromkeys(stage for side in sides for stage in side.results.gpu_ms(side.role)):
        what = Quantity(f"gpu_{stage}", f"of it, GPU, {stage.replace('_', ' ')}", "ms", timed=True)
        rows.append(_row(what, sides, _gpu(stage)))
    start_up = Quantity("start_up", "start-up: import, load, first answer", "ms", timed=True)
    load = Quantity("load", "of it, load", "ms", timed=True)
    rows.append(_row(start_up, sides, _cold(COLD), START_FLOOR, least=1))
    rows.append(_row(load, sides, _cold(("load_ms",)), START_FLOOR, least=1))
    return rows


def latency_row(sides: Sides) -> Row:
    """The median of one inference, or of one window of speech."""
    tokens = sides[0].content.latency.settings.tokens
    name = "latency, median" if tokens is None else f"window of {tokens} tokens, median"
    return _row(Quantity(LATENCY, name, "ms", timed=True), sides, steady_samples)


def control_row(sides: Sides) -> Row:
    """The same of the dense models, of use where they are one: what changes is the machine's doing."""
    return latency_row((_as_dense(sides[0]), _as_dense(sides[1])))


def over_dense_row(sides: Sides) -> Row:
    """Latency in units of the dense model's of the same run: a machine that is slower today does not count."""
    pairs = [(_as_dense(side), side) for side in sides]
    reason = why_no_control(sides)
    if reason:
        return missing_row(OVER_DENSE_WHAT, (Figure(None), Figure(None)), reason)
    values = [_quotient(*(_median(steady_samples, each) for each in pair)) for pair in pairs]
    if not both_known(values):
        return missing_row(OVER_DENSE_WHAT, values)
    before, after = ((steady_samples(dense), steady_samples(slim)) for dense, slim in pairs)
    note = "the dense graph is the same in both, so what the machine did to both models alike is taken out"
    return measured_row(OVER_DENSE_WHAT, values, ratio_of_slim_to_dense(before, after), NO_CHANGE, note)


def why_no_control(sides: Sides) -> str:
    """Why the dense models cannot show how fast the machine was in each run; nothing where they can."""
    for side in sides:
        if side.role == "dense":
            return "the dense models themselves are compared"
        if "dense" not in side.results.roles:
            return f"{side.name}: no dense model was measured beside the slim one"
        if side.content.latency.status != "ok":
            return f"{side.name}: {part_reason(side.content.latency)}"
    facts: dict[str, Callable[[Side], Any]] = {
        "dense graphs": lambda side: graph_hashes(side, "dense"),
        "devices": lambda side: (side.content.device_name, side.content.device.get("board")),
        "runtimes": lambda side: runtime_version(side, "dense"),
        "threads": lambda side: side.content.options.threads,
        "dense precisions": lambda side: side.results.precisions["dense"],
    }
    for what, fact in facts.items():
        if fact(sides[0]) != fact(sides[1]):
            return f"the {what} of A and B differ"
    return _other_work(sides)


def graph_hashes(side: Side, role: Role) -> dict[str, list[str]]:
    """sha256 of each graph of `role`, and of the data beside it, by the graph's own role."""
    found = {}
    for name, graph in side.content.artifacts[role].graphs.items():
        found[name] = [graph.sha256, *(() if graph.data is None else (graph.data.sha256,))]
    return found


def runtime_version(side: Side, role: Role) -> str:
    """The runtime's name and, as far as it is known, its version."""
    runtime = side.content.runtime
    session = side.content.latency.session.get(role, {})
    version = session.get("version") or side.content.device.get("libraries", {}).get(runtime)
    return f"{runtime} {version}" if version else runtime


def steady_samples(side: Side) -> Processes:
    """Steady-state samples of each process, ms."""
    return [times(side, "latency.repeats.samples_ms", process) for process in side.results.samples_ms(side.role)]


def times(side: Side, where: str, values: Sequence[float]) -> List[float]:
    """`values`.

    Raises:
        BadInput: one of them is not a time greater than 0.
    """
    for value in values:
        if not (math.isfinite(value) and value > 0):
            raise BadInput(f"{side.results.path}: {where}: {value:g} is not a time greater than 0")
    return list(values)


def _as_dense(side: Side) -> Side:
    return Side(side.name, side.results, "dense")


def _row(
    what: Quantity, sides: Sides, samples_of: SamplesOf, floor: float = NO_CHANGE, least: int = SAMPLES_NEEDED[50]
) -> Row:
    """A median over the samples of several processes, if they are at least so many."""
    values, other = [_median(samples_of, side, least) for side in sides], _other_work(sides)
    if other or not both_known(values):
        return missing_row(what, values, other)
    before, after = (samples_of(side) for side in sides)
    each = tuple(tuple(float(np.median(process)) for process in side) for side in (before, after))
    note = f"{_counted(before)}, and {_counted(after)}; processes and samples resampled"
    return measured_row(what, values, ratio_of_medians(before, after), floor, note, each)


def _counted(processes: Processes) -> str:
    return f"{plural(sum(map(len, processes)), 'sample')} of {len(processes)} processes"


def _stage(stage: str) -> SamplesOf:
    where = f"latency.repeats.stages_ms.{stage}"
    return lambda side: [times(side, where, process) for process in side.results.stages_ms(side.role, stage)]


def _gpu(stage: str) -> SamplesOf:
    where = f"latency.repeats.gpu_ms.{stage}"
    return lambda side: [
        times(side, where, repeat.gpu_ms[stage])
        for repeat in side.results.repeats(side.role)
        if repeat.gpu_ms and repeat.gpu_ms.get(stage)
    ]


def _each_token(side: Side) -> Processes:
    later = max((side.content.latency.settings.tokens or 1) - 1, 1)
    return [[sample / later for sample in process] for process in _stage(STAGES[2])(side)]


def _cold(keys: Sequence[str]) -> SamplesOf:
    """One sample of each process: the sum of what it took once."""
    where = f"latency.repeats.{' + '.join(keys)}"
    return lambda side: [
        times(side, where, [sum(getattr(repeat, key) for key in keys)]) for repeat in side.results.repeats(side.role)
    ]


def _median(samples_of: SamplesOf, side: Side, least: int = SAMPLES_NEEDED[50]) -> Figure:
    part = side.content.latency
    if part.status != "ok":
        return Figure(None, part_reason(part))
    flat = all_samples(samples_of(side))
    if not flat:
        return Figure(None, "not in the file")
    if len(flat) < least:
        return Figure(None, f"{len(flat)} samples are too few for a median, which takes {least}")
    return Figure(float(np.median(flat)))


def _quotient(dense: Figure, slim: Figure) -> Figure:
    if dense.value is None or slim.value is None:
        return Figure(None, slim.reason or dense.reason)
    return Figure(slim.value / dense.value)


def _other_work(sides: Sides) -> str:
    """Why the times of the two are of different work; nothing where they are of the same, or were not taken."""
    one, other = (side.content.latency for side in sides)
    if one.status != "ok" or other.status != "ok":
        return ""
    if one.settings.tokens != other.settings.tokens:
        return f"not comparable: windows of {one.settings.tokens} and of {other.settings.tokens} tokens"
    if one.input.audio_s != other.input.audio_s:
        return f"not comparable: {one.input.audio_s:g} and {other.input.audio_s:g} s of audio at a time"
    return ""
