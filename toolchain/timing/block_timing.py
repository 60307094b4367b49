"""Times attention blocks and whole classifiers on this device, and keeps the latency table that is made of them."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from leanear.benchmarks.measure.processes import absolute, part_of, run_fresh
from leanear.benchmarks.measure.rounds import quiet_samples
from leanear.benchmarks.sensors.device import device_facts
from leanear.export.blocks import EXPORTER, KINDS, export_blocks
from leanear.families.ast import AstCheckpoint
from leanear.progress import Report, quiet
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.errors import BadInput, MeasurementFailed
from leanear.runtimes.files import sha256_json, write_json
from leanear.runtimes.precisions import graph_precision
from leanear.runtimes.process.kept_work import remember_kept
from leanear.runtimes.sessions import SessionOptions
from leanear.targets.target import Target
from leanear.timing.ast_timing import export_ast_to_time
from leanear.timing.latency_table import (
    Geometry,
    HasHeads,
    LatencyTable,
    ModelTiming,
    Probe,
    fit_parts,
    model_sites,
    read_geometry,
    read_table,
    table_to_json,
)

PROCESSES = 2  # timings of one process can all be off by how its memory happened to be laid out
ROUNDS = 6
SHARE_S = 55.0
STACK_MACS = 5_000_000_000  # of a stack of dense blocks: enough that starting it does not show
FEWEST_COPIES, MOST_COPIES = 4, 12
BUSY_SHARE = 0.1
WORKER = "leanear.benchmarks.measure.rounds"


def cache_folder() -> Path:
    """Where tables are kept: latency/ in $LEANEAR_CACHE, or in leanear/ of the user's cache folder."""
    own = os.environ.get("LEANEAR_CACHE")
    if own:
        return Path(own) / "latency"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leanear" / "latency"


def latency_table(
    checkpoint: AstCheckpoint,
    target: Target,
    *,
    cache: Path | None = None,
    fresh: bool = False,
    keep_busy: bool = False,
    report: Report = quiet,
) -> LatencyTable:
    """The table of this device for models of the checkpoint's dimensions: from the cache, or timed here (minutes).

    cache: a folder, `cache_folder()` if None. A file there that is damaged, or that was timed on another device,
    runtime, precision or form of the graph, is not used; `fresh` times again in any case. A table that was timed while
    other programs used the CPU is not kept, unless `keep_busy`.

    Raises:
        RuntimeUnavailable: the target's runtime does not work here.
        MeasurementFailed: the timing process ended without an answer.
    """
    geometry = read_geometry(checkpoint)
    key = table_key(geometry, target)
    path = table_path(key, cache)
    if not fresh and path.is_file():
        try:
            return read_table(path, key)
        except BadInput as error:
            report(f"measuring again: {error}", 0.0)
    table = measure_table(checkpoint, target, geometry, key, report)
    if table.others_share > BUSY_SHARE:
        report(f"other programs used {table.others_share:.0%} of the CPU meanwhile", 1.0)
    if keep_busy or table.others_share <= BUSY_SHARE:
        write_json(path, table_to_json(table))
        remember_kept(path)
    return table


def kept_table(checkpoint: AstCheckpoint, target: Target, cache: Path | None = None) -> LatencyTable | None:
    """The table that `latency_table` would take from the cache, or None where it would have to time."""
    key = table_key(read_geometry(checkpoint), target)
    try:
        return read_table(table_path(key, cache), key)
    except BadInput:
        return None


def table_path(key: dict[str, Any], cache: Path | None) -> Path:
    """The file of the table of just this key."""
    return (cache or cache_folder()) / f"{key['runtime']}-{sha256_json(key)[:20]}.json"


def table_key(geometry: Any, target: Target) -> dict[str, Any]:
    """All that a table depends on; a table is used for nothing else."""
    facts = device_facts()
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
    }


def measure_table(
    checkpoint: AstCheckpoint, target: Target, geometry: Geometry, key: dict[str, Any], report: Report = quiet
) -> LatencyTable:
    """The table, timed here and now: stacks of blocks and the checkpoint's own model take turns in fresh processes."""
    require_runtime(target.runtime, SessionOptions(target.threads, target.precision))
    probes = [(kind, widths) for kind in KINDS for widths in probe_widths(kind, geometry)]
    copies = stack_copies(geometry)
    sites = model_sites(checkpoint)
    with tempfile.TemporaryDirectory(prefix="leanear-blocks-") as name:
        graphs: list[dict[str, Any]] = []
        for number, (kind, widths) in enumerate(probes):
            report("building blocks", 0.1 * number / len(probes))
            path = Path(name) / f"{number}.onnx"
            export_blocks(
                kind, widths, geometry.tokens, geometry.model_width, copies, target.graph_form, path,
                graph_precision(target.precision),
            )  # fmt: skip
            graphs.append({"file": absolute(path), "labels": 1, "samples": geometry.model_width})
        path = Path(name) / "model.onnx"
        export_ast_to_time(checkpoint.model, checkpoint.feature_extractor, path, target)
        graphs.append({"file": absolute(path), "labels": geometry.labels, "samples": geometry.clip_samples})
        samples_ms, others_share = time_in_turn(graphs, target, report)
    block_ms = [np.quantile(samples, [0.25, 0.5, 0.75]) / copies for samples in samples_ms[:-1]]
    parts = {}
    for kind in KINDS:
        timed = [(widths, float(ms[1])) for (of, widths), ms in zip(probes, block_ms, strict=True) if of == kind]
        parts[kind] = fit_parts(kind, timed, geometry, target.graph_form)
    low, middle, high = (float(value) for value in np.quantile(samples_ms[-1], [0.25, 0.5, 0.75]))
    unfinished = LatencyTable(
        geometry=geometry,
        graph_form=target.graph_form,
        rest_ms=0.0,
        parts=parts,
        model=ModelTiming(sites, middle, low, high),
        probes=(),
        others_share=others_share,
        key=key,
    )
    fitted = [
        Probe(kind, tuple(widths), float(ms[1]), float(ms[0]), float(ms[2]), unfinished.site_ms(kind, widths))
        for (kind, widths), ms in zip(probes, block_ms, strict=True)
    ]
    blocks_ms = unfinished.model_ms(sites)
    if blocks_ms >= middle:
        raise MeasurementFailed(
            f"latency table: the attention blocks took {blocks_ms:.2f} ms and the whole model {middle:.2f} ms;"
            " measure again while nothing else runs"
        )
    return replace(unfinished, rest_ms=middle - blocks_ms, probes=tuple(fitted))


def time_in_turn(
    graphs: Sequence[dict[str, Any]], target: Target, report: Report = quiet, share_s: float = SHARE_S
) -> tuple[list[list[float]], float]:
    """Milliseconds of every graph from several processes' rounds, and the share of all cores that others used.

    Samples that other programs disturbed are left out where enough remain; see benchmarks/measure/rounds.py.

    Raises:
        MeasurementFailed: a process ended without an answer.
    """
    request = {
        "graphs": list(graphs),
        "runtime": target.runtime,
        "threads": target.threads,
        "precision": target.precision,
        "rounds": ROUNDS,
        "share_s": share_s,
    }
    samples_ms: list[list[float]] = [[] for _ in graphs]
    others_share: list[list[float]] = [[] for _ in graphs]
    for number in range(PROCESSES):
        start = 0.1 + 0.9 * number / PROCESSES
        outcome = run_fresh(WORKER, request, part_of(report, start, start + 0.9 / PROCESSES, "timing blocks: "))
        if outcome.answer is None:
            raise MeasurementFailed(f"latency table on {target.runtime}: {outcome.reason}")
        for number, samples in enumerate(outcome.answer["samples_ms"]):
            samples_ms[number] += samples
            others_share[number] += outcome.answer["others_share"][number]
    kept = [quiet_samples(samples, shares) for samples, shares in zip(samples_ms, others_share, strict=True)]
    return kept, statistics.median(share for shares in others_share for share in shares)


def stack_copies(geometry: Geometry) -> int:
    """How many blocks are timed at a time."""
    columns = geometry.heads * geometry.head_width
    macs = geometry.tokens * columns * (4 * geometry.model_width + 2 * geometry.tokens)
    return min(max(FEWEST_COPIES, -(-STACK_MACS // macs)), MOST_COPIES)


def probe_widths(kind: str, geometry: HasHeads) -> list[list[tuple[int, int]]]:
    """Widths of the blocks that are timed: equal ones, fewer heads, several groups and ragged ones, none twice."""
    heads, full = geometry.heads, geometry.head_width

    def share(eighths: float) -> int:
        return max(1, round(full * eighths / 8))

    def equal(count: int, query_key: float, value_output: float) -> list[tuple[int, int]]:
        return [(share(query_key), share(value_output))] * max(1, count)

    if kind == "last":
        wanted = [
            equal(heads, 8, 8),
            equal(heads, 2, 8),
            equal(heads, 8, 2),
            equal(heads, 2, 2),
            equal(heads // 4, 8, 8),
        ]
    else:
        wanted = [
            equal(heads, 8, 8),
            equal(heads, 6, 8),
            equal(heads, 4, 8),
            equal(heads, 2, 8),
            equal(heads, 8, 6),
            equal(heads, 8, 4),
            equal(heads, 8, 2),
            equal(heads, 4, 4),
            equal(heads, 2, 2),
            equal(heads, 6, 4.5),
            equal(heads, 4, 2.5),
            equal(heads, 3, 6.5),
            equal(heads // 2, 8, 8),
            equal(heads // 4, 8, 8),
            equal(heads // 2, 4, 4),
            equal(heads // 2, 8, 8) + equal(heads - heads // 2, 2, 2),
            equal(heads // 2, 4, 8) + equal(heads - heads // 2, 4, 2),
            *(ragged_widths(geometry, seed) for seed in range(4)),
        ]
    distinct: list[list[tuple[int, int]]] = []
    for widths in wanted:
        if len(widths) <= heads and widths not in distinct:
            distinct.append(widths)
    return distinct


def ragged_widths(geometry: HasHeads, seed: int) -> list[tuple[int, int]]:
    """Drawn widths of all heads, in eighths of the dense ones."""
    generator = np.random.default_rng(seed)
    steps = generator.integers(1, 9, (geometry.heads, 2))
    return [
        (max(1, geometry.head_width * int(key) // 8), max(1, geometry.head_width * int(value) // 8))
        for key, value in steps
    ]
