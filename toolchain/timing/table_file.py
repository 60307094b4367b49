"""Latency tables: how costs are fitted, and the file of a table: its key, which says what was timed, and its fields.

The simplest is that of feed-forward blocks. A block costs so much for being there (layer norm, activation, residual,
starting), and as much again for each of its channels; both are a least-squares fit of blocks of several widths. A block
without channels is gone and costs nothing.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from leanear.benchmarks.analysis import disturbed
from leanear.benchmarks.sensors.device import device_facts
from leanear.export.blocks import EXPORTER
from leanear.progress import Report, quiet
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_json, sha256_json, write_json
from leanear.runtimes.process.interrupts import remember_kept
from leanear.runtimes.records import Amount, Count, as_json, read
from leanear.targets.target import Target

IN_KEY = ("geometry", "graph_form")  # fields of a table that its file has in the key
EIGHTHS = (6, 5.5, 4, 2, 1)  # of all channels: widths that are timed, in whole vectors where blocks have so many
VECTOR_CHANNELS = 16


class Kept:
    """A table: its key, what other programs used of all cores while it was timed, and what is wrong with it, in words.

    Its class is a frozen dataclass.
    """

    SCHEMA: ClassVar[str]
    key: dict[str, Any]
    others_share: float

    @property
    def fault(self) -> str | None:
        return None


AnyTable = TypeVar("AnyTable", bound=Kept)


@dataclass(frozen=True)
class TableSource(Generic[AnyTable]):
    """The table of one key: from a file of the cache, or timed here (minutes).

    record: the table's class; measure: times it now. cache: a folder, `cache_folder()` if None.
    """

    record: type[AnyTable]
    key: dict[str, Any]
    measure: Callable[[Report], AnyTable]

    def kept(self, cache: Path | None = None) -> AnyTable | None:
        """The table that `get` would take from the cache, or None where it would have to time."""
        try:
            return read_table(self.record, table_path(self.key, cache), self.key)
        except BadInput:
            return None

    def get(self, *, cache: Path | None = None, keep_busy: bool = False, report: Report = quiet) -> AnyTable:
        """The table, kept or timed.

        A file that is damaged, or that was timed for another key, is not used. A table that was timed while other
        programs used the CPU is not kept, unless `keep_busy`.

        Raises:
            RuntimeUnavailable: the target's runtime does not work here.
            MeasurementFailed: a timing process ended without an answer.
        """
        path = table_path(self.key, cache)
        if path.is_file():
            try:
                return read_table(self.record, path, self.key)
            except BadInput as error:
                report(f"measuring again: {error}", 0.0)
        table = self.measure(report)
        if doubt := disturbed(0.0, table.others_share, "meanwhile"):
            report(doubt, 1.0)
        if keep_busy or not doubt:
            write_json(path, table_document(table))
            remember_kept(path)
        return table


def cache_folder() -> Path:
    """Where tables are kept: latency/ in $LEANEAR_CACHE, or in leanear/ of the user's cache folder."""
    own = os.environ.get("LEANEAR_CACHE")
    if own:
        return Path(own) / "latency"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leanear" / "latency"


def table_path(key: dict[str, Any], cache: Path | None) -> Path:
    """The file of the table of just this key."""
    return (cache or cache_folder()) / f"{key['runtime']}-{sha256_json(key)[:20]}.json"


def table_key(geometry: Any, target: Target, blocks: str = "attention") -> dict[str, Any]:
    """All that a table of these blocks depends on; a table is used for nothing else."""
    facts, others = device_facts(), {} if blocks == "attention" else {"blocks": blocks}
    return {
        "cpu": facts["cpu"],
        "instructions": facts["instructions"],
        "cores_usable": facts["cores_usable"],
        "runtime": target.runtime,
        "runtime_version": facts["libraries"].get(target.runtime, "none"),
        "precision": target.precision,
        "threads": target.threads,
        "graph_form": target.graph_form,
        "exporter": EXPORTER,
        "geometry": asdict(geometry),
        **others,
    }


def table_document(table: Kept) -> dict[str, Any]:
    """The table as its file holds it."""
    own = {name: value for name, value in as_json(table).items() if name not in (*IN_KEY, "key")}
    return {"schema": table.SCHEMA, "key": table.key, **own}


def read_table(record: type[AnyTable], path: Path, key: dict[str, Any] | None = None) -> AnyTable:
    """The table in `path`, which must have been timed for `key` where one is given.

    Raises:
        BadInput: the file is missing, malformed, or for something else.
    """
    document = read_json(path, record.SCHEMA, ("key",))
    del document["schema"]
    found = document["key"]
    if key is not None and found != json.loads(json.dumps(key)):
        raise BadInput(f"{path}: key 'key' is another device, runtime, model or work than asked for")
    wanted = {field.name for field in fields(record)}.intersection(IN_KEY)  # type: ignore[arg-type]
    timed = {name: found[name] for name in wanted if name in found} if isinstance(found, dict) else {}
    table = read(record, {**document, **timed}, path)
    if table.fault:
        raise BadInput(f"{path}: {table.fault}")
    return table


def fit_nonnegative(rows: Sequence[Mapping[str, float]], milliseconds: Sequence[float]) -> dict[str, float]:
    """What every part costs, so that the rows' sums are nearest to `milliseconds`: least squares of relative errors.

    rows: how often every part is in what was timed; all have the same parts.
    """
    names, timed = list(rows[0]), np.array(milliseconds)
    matrix = np.array([[row[name] for name in names] for row in rows], dtype=np.float64) / timed[:, None]
    used = [column for column in range(len(names)) if matrix[:, column].any()]
    while True:
        scale = np.abs(matrix[:, used]).max(axis=0)
        solution = np.linalg.lstsq(matrix[:, used] / scale, np.ones(len(timed)), rcond=None)[0] / scale
        if (solution >= 0).all():
            break
        # A cost below zero is noise: the part that is furthest below, by its share of a row, is not there.
        used.remove(used[int(np.argmin(solution * scale))])
    found = dict.fromkeys(names, 0.0)
    return found | {names[column]: float(value) for column, value in zip(used, solution, strict=True)}


@dataclass(frozen=True)
class FeedForwardParts:
    """Milliseconds of a feed-forward block: of its being there, and of each of its channels."""

    block_ms: Amount
    channel_ms: Amount


@dataclass(frozen=True)
class FeedForwardProbe:
    """Blocks of one width as they were timed, beside what the parts say; of a Whisper, a stage with all such blocks."""

    kind: str
    width: Count
    measured_ms: Amount
    fitted_ms: Amount


@dataclass(frozen=True)
class FeedForwardTable(Kept):
    """Milliseconds of a model's feed-forward blocks on one device, runtime, precision and number of threads.

    dense_ms: the whole dense model, timed in turn with them; blocks: the kind of each, in the order of the model's
    feed-forward sites; parts: by kind; others_share: of all cores, what other programs used while it was timed.
    """

    SCHEMA: ClassVar[str] = "leanear-feed-forward-latency-table-1"

    dense_ms: Amount
    blocks: tuple[str, ...]
    parts: dict[str, FeedForwardParts]
    probes: tuple[FeedForwardProbe, ...]
    others_share: Amount
    key: dict[str, Any]

    @property
    def fault(self) -> str | None:
        """What is wrong with the table, in a few words."""
        unknown = sorted(set(self.blocks) - set(self.parts))
        return f"blocks are of the kind {unknown[0]}, of which there are no parts" if unknown else None

    def parts_beside(self, dense_ms: float) -> list[FeedForwardParts]:
        """Every block's parts, where the dense model takes so long: two timings of a device differ by its state."""
        ratio = dense_ms / self.dense_ms
        beside = {kind: FeedForwardParts(of.block_ms * ratio, of.channel_ms * ratio) for kind, of in self.parts.items()}
        return [beside[kind] for kind in self.blocks]


def probe_widths(full: int) -> list[int]:
    """Channels of the blocks that are timed, all of them first, none twice."""
    whole = (VECTOR_CHANNELS * round(full * eighths / 8 / VECTOR_CHANNELS) for eighths in EIGHTHS)
    fewer = (width or max(1, round(full * eighths / 8)) for width, eighths in zip(whole, EIGHTHS, strict=True))
    return list(dict.fromkeys([full, *fewer]))


def fit_feed_forward(
    kind: str, timed: Sequence[tuple[int, float]], blocks: int = 1, has_rest: bool = False
) -> tuple[FeedForwardParts, list[FeedForwardProbe]]:
    """The parts whose sums are nearest to what was timed, none of them negative, and what they say of each.

    timed: channels, and the milliseconds of so many `blocks` of them, with a rest that is always the same or without.
    """
    rows = [{"block_ms": blocks * (width > 0), "channel_ms": blocks * width, "rest": has_rest} for width, _ in timed]
    found = fit_nonnegative(rows, [milliseconds for _, milliseconds in timed])
    said = [sum(found[name] * often for name, often in row.items()) for row in rows]
    probes = [FeedForwardProbe(kind, *each, fitted) for each, fitted in zip(timed, said, strict=True)]
    return FeedForwardParts(found["block_ms"], found["channel_ms"]), probes
