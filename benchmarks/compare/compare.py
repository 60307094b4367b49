"""Two results files side by side, A before and B after: what changed, what is noise, what is worse."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

from leanear.benchmarks.compare.compare_circumstances import (
    Circumstance,
    circumstances,
    doubts,
    two_devices,
    unequal_machine,
)
from leanear.benchmarks.compare.compare_quality import quality_rows, same_clips
from leanear.benchmarks.compare.compare_rows import (
    NOT_MEASURED,
    WORSE,
    Figure,
    Quantity,
    Row,
    Side,
    Sides,
    counted_row,
    part_reason,
    positive,
    single_row,
)
from leanear.benchmarks.compare.compare_times import LATENCY, OVER_DENSE, over_dense_row, time_rows
from leanear.benchmarks.results import read_results, results_files
from leanear.benchmarks.results_document import Energy
from leanear.benchmarks.summary import Interval
from leanear.benchmarks.verdict import loss_text, points_of
from leanear.runtimes.errors import BadInput, LeanearError, MeasurementFailed, Regressed
from leanear.runtimes.files import sha256_json

COMPARE_SCHEMA = "leanear-compare-1"
MEMORY_FLOOR, ENERGY_FLOOR = 0.02, 0.05
KEPT, EXCEEDED, UNCERTAIN = "kept", "exceeded", "uncertain"
SLACK = 1e-9


@dataclass(frozen=True)
class Bounds:
    """How much worse B may be than A.

    max_slowdown_percent: of the median latency, or of what it is in units of dense's where `over_dense`; max_drop:
    points of accuracy lost, or of word error rate added; max_memory_percent: of peak memory; max_size_percent: of the
    graph files, None: they may be of any size.
    """

    max_slowdown_percent: float = 5.0
    max_drop: float = 0.5
    max_memory_percent: float = 10.0
    over_dense: bool = False
    max_size_percent: float | None = None


@dataclass(frozen=True)
class Judgement:
    """A row held against its bound. limit: the largest change that is kept, as the row's change is stated.

    state: "kept", "exceeded", "uncertain" (beyond it, but it may be chance), or "not measured".
    """

    row: Row
    limit: float
    state: str

    @property
    def is_sure(self) -> bool | None:
        """Whether the whole interval is on the change's side of the limit; None where there is no interval."""
        low, high, change = self.row.low, self.row.high, self.row.change
        if low is None or high is None or change is None:
            return None
        return len({_is_beyond(self.row, end, self.limit) for end in (low, change, high)}) == 1


@dataclass(frozen=True)
class Comparison:
    """All of a comparison.

    two_devices: what shows that they are two; doubts: sentences on why the timings are not to be trusted; unequal: the
    one that says that the machine was not equally fast, which latency over dense's does not suffer from, or "".
    """

    sides: Sides
    bounds: Bounds
    rows: tuple[Row, ...]
    judgements: tuple[Judgement, ...]
    circumstances: tuple[Circumstance, ...]
    two_devices: tuple[str, ...]
    doubts: tuple[str, ...]
    unequal: str
    paired_clips: bool

    @property
    def unknown(self) -> tuple[Row, ...]:
        """Rows that count as missing: a bound is set for them, or one side alone has them."""
        judged = {judgement.row.what.key for judgement in self.judgements}
        missing = [row for row in self.rows if row.verdict == NOT_MEASURED]
        return tuple(row for row in missing if row.what.key in judged or (row.a is None) != (row.b is None))

    @property
    def all_doubts(self) -> tuple[str, ...]:
        """Every reason not to trust timings."""
        return (*self.doubts, self.unequal) if self.unequal else self.doubts

    @property
    def judged_doubts(self) -> tuple[str, ...]:
        """Those that bear on the latency that is held against its bound."""
        return self.doubts if self.bounds.over_dense else self.all_doubts

    def trusts(self, row: Row) -> bool:
        """Whether nothing is known that disturbed the row."""
        return not (row.what.timed and (self.doubts if row.what.key == OVER_DENSE else self.all_doubts))

    def failure(self, strict: bool) -> LeanearError | None:
        """None, or Regressed, or, if strict, MeasurementFailed where something is missing or not to be trusted."""
        exceeded = [judgement for judgement in self.judgements if judgement.state == EXCEEDED]
        if exceeded:
            said = "; ".join(judgement_sentence(judgement) for judgement in exceeded)
            trusted = all(self.trusts(judgement.row) for judgement in exceeded)
            return Regressed(f"B is worse than A: {said}{'' if trusted else '; its timings are not to be trusted'}")
        if not strict:
            return None
        missing = [f"{row.what.name}: not measured ({row.note})" for row in self.unknown]
        doubts = [f"not to be trusted: {doubt}" for doubt in self.judged_doubts]
        return MeasurementFailed("; ".join([*missing, *doubts])) if missing or doubts else None


def compare(a: Path, b: Path, role: str = "slim", bounds: Bounds | None = None) -> Comparison:
    """The comparison of two results files, or of the one results file in each of two deployment folders.

    role: which model of each is meant, "slim" or "dense".

    Raises:
        BadInput: a file or folder is not what it should be, has no such model, or they are of two kinds of model.
    """
    bounds = bounds or Bounds()
    sides = (read_side("A", Path(a), role), read_side("B", Path(b), role))
    _require_comparable(sides)
    rows = [*time_rows(sides), _memory_row(sides), *_size_rows(sides), *quality_rows(sides), *_energy_rows(sides)]
    if bounds.over_dense and all(row.what.key != OVER_DENSE for row in rows):
        rows.insert(1, over_dense_row(sides))
    return Comparison(
        sides=sides,
        bounds=bounds,
        rows=tuple(rows),
        judgements=tuple(_judgements(rows, bounds)),
        circumstances=tuple(circumstances(sides)),
        two_devices=two_devices(sides),
        doubts=tuple(doubts(sides)),
        unequal=unequal_machine(sides),
        paired_clips=same_clips(sides),
    )


def read_side(name: str, path: Path, role: str) -> Side:
    """One side, from a results file or the folder that holds one.

    Raises:
        BadInput: there is none, there are several, it is not one, or it has no model of `role`.
    """
    if path.is_dir():
        found = results_files(path)
        if not found:
            raise BadInput(f"{path}: no results/*.json in it; `leanear deploy` or `leanear bench` makes them")
        if len(found) > 1:
            raise BadInput(f"{path}: several results in it; name one of {', '.join(str(file) for file in found)}")
        path = found[0]
    results = read_results(path)
    if role not in results.roles:
        raise BadInput(f"{path}: it has no {role} model, only {' and '.join(results.roles)}")
    return Side(name, results, role)


def judgement_sentence(judgement: Judgement) -> str:
    """The row, what was measured, and what its bound allows."""
    row, limit = judgement.row, judgement.limit
    if row.change is None:
        return f"{row.what.name}: not measured ({row.note})"
    if not row.what.relative:
        return f"{row.what.name}: {loss_text(loss_of_row(row))}, at most {points_of(100 * abs(limit))} may be lost"
    between = "" if row.low is None else f" (95% {row.low:.3f} to {row.high:.3f})"
    return f"{row.what.name} {row.change:.3f}×{between}, at most {limit:.3f}× allowed"


def loss_of_row(row: Row) -> Interval:
    """What a row of shares loses from A to B: accuracy and mAP by falling, word errors by rising."""
    assert row.change is not None
    low, high = (row.change if end is None else end for end in (row.low, row.high))
    return Interval(row.change, low, high) if row.what.lower_is_better else Interval(-row.change, -high, -low)


def document_of(comparison: Comparison, strict: bool) -> dict[str, Any]:
    """All of a comparison as JSON of the schema "leanear-compare-1"; shares and changes are no percentages."""
    failure, bounds = comparison.failure(strict), comparison.bounds
    judged = {judgement.row.what.key: judgement for judgement in comparison.judgements}
    return {
        "schema": COMPARE_SCHEMA,
        **{side.name.lower(): _side_json(side) for side in comparison.sides},
        "bounds": {
            "max_slowdown_percent": bounds.max_slowdown_percent,
            "max_drop_points": bounds.max_drop,
            "max_memory_percent": bounds.max_memory_percent,
            "over_dense": bounds.over_dense,
            "max_size_percent": bounds.max_size_percent,
        },
        "rows": [_row_json(row, judged.get(row.what.key), comparison) for row in comparison.rows],
        "circumstances": [
            {"name": each.name, "a": each.a, "b": each.b, "same": each.same} for each in comparison.circumstances
        ],
        "two_devices": list(comparison.two_devices),
        "same_clips": comparison.paired_clips,
        "not_trusted": list(comparison.all_doubts),
        "exceeded": [key for key, judgement in judged.items() if judgement.state == EXCEEDED],
        "not_measured": [row.what.key for row in comparison.unknown],
        "strict": strict,
        "exit_status": 0 if failure is None else failure.exit_status,
        "reason": "" if failure is None else str(failure),
    }


def _side_json(side: Side) -> dict[str, Any]:
    return {
        "path": str(side.results.path),
        "side": side.role,
        "task": side.content.task,
        "model": side.content.artifacts[side.role].model.get("source"),
        "device": side.content.device_name,
        "finished_utc": side.content.finished_utc,
        "content_sha256": sha256_json(side.results.document),
    }


def _row_json(row: Row, judgement: Judgement | None, comparison: Comparison) -> dict[str, Any]:
    return {
        "key": row.what.key,
        "name": row.what.name,
        "unit": row.what.unit,
        "lower_is_better": row.what.lower_is_better,
        "a": row.a,
        "b": row.b,
        "change": None
        if row.change is None
        else {"is": "b/a" if row.what.relative else "b-a", "estimate": row.change, "low": row.low, "high": row.high},
        "floor": row.floor,
        "verdict": row.verdict,
        "trusted": comparison.trusts(row),
        "note": row.note,
        "by_process": None if row.by_process is None else dict(zip("ab", map(list, row.by_process))),
        "bound": None
        if judgement is None
        else {"limit": judgement.limit, "state": judgement.state, "whole_interval": judgement.is_sure},
    }


def _require_comparable(sides: Sides) -> None:
    kinds = []
    for side in sides:
        artifact = side.content.artifacts[side.role]
        kinds.append((artifact.family, artifact.task))
    if kinds[0] != kinds[1]:
        said = [f"{side.results.path} is of {family} ({task})" for side, (family, task) in zip(sides, kinds)]
        raise BadInput(f"{said[0]}, {said[1]}: they cannot be compared")


# --- rows of figures of which each side has one ---


def _memory_row(sides: Sides) -> Row:
    values = []
    for side in sides:
        part = side.content.memory
        known = side.role in part.roles
        values.append(
            positive(part.roles[side.role].peak_rss_bytes, "the file says 0")
            if known
            else Figure(None, part_reason(part))
        )
    return single_row(Quantity("peak_memory", "peak memory", "bytes"), values, MEMORY_FLOOR)


def _size_rows(sides: Sides) -> list[Row]:
    sizes = []
    for side in sides:
        graphs = side.content.artifacts[side.role].graphs.values()
        sizes.append(positive(sum(graph.bytes for graph in graphs), "the manifest does not say"))
    rows = [counted_row(Quantity("graph_bytes", "graph files", "bytes"), sizes)]
    for key, name in (("parameters", "parameters"), ("macs", "MACs")):
        models = [side.content.artifacts[side.role].model for side in sides]
        counts = [positive(model.get(key), "the manifest does not say") for model in models]
        rows.append(counted_row(Quantity(key, name, "count"), counts))
    return rows


def _energy_rows(sides: Sides) -> list[Row]:
    """Energy per inference, where at least one side has it."""
    values = []
    for side in sides:
        part = side.content.sustained
        energy = part.roles[side.role].energy_per_inference if side.role in part.roles else None
        if isinstance(energy, Energy):
            values.append(positive(energy.joules, "the file says 0"))
        else:
            values.append(Figure(None, (energy and energy.reason) or part.reason or "not in the file"))
    if all(figure.value is None for figure in values):
        return []
    return [single_row(Quantity("energy", "energy per inference", "J", timed=True), values, ENERGY_FLOOR)]


# --- bounds ---


def _judgements(rows: Sequence[Row], bounds: Bounds) -> list[Judgement]:
    """Each bound's row held against it.

    Latency is beyond its bound where the whole interval is; accuracy and word errors where the change itself is and is
    no noise, as in the report's gate; memory, of which there is one measurement, where the change is.
    """
    judged = OVER_DENSE if bounds.over_dense else LATENCY
    found = []
    for row in rows:
        drop = bounds.max_drop / 100 if row.what.lower_is_better else -bounds.max_drop / 100
        limits = {
            judged: 1 + bounds.max_slowdown_percent / 100,
            "peak_memory": 1 + bounds.max_memory_percent / 100,
            "accuracy": drop,
            "mean_average_precision": drop,
            "word_error_rate": drop,
        }
        if bounds.max_size_percent is not None:
            limits["graph_bytes"] = 1 + bounds.max_size_percent / 100
        if row.what.key in limits:
            limit = limits[row.what.key]
            found.append(Judgement(row, limit, _state(row, limit, whole_interval=row.what.key == judged)))
    return found


def _state(row: Row, limit: float, whole_interval: bool) -> str:
    if row.change is None:
        return NOT_MEASURED
    if not _is_beyond(row, row.change, limit):
        return KEPT
    sure = row.verdict == WORSE and not (whole_interval and row.low is not None and row.low <= limit)
    return EXCEEDED if sure else UNCERTAIN


def _is_beyond(row: Row, change: float, limit: float) -> bool:
    return change > limit + SLACK if row.what.lower_is_better else change < limit - SLACK
