"""Times blocks of classifiers and whole classifiers on this device, and makes the latency tables of them."""

import functools
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from leanear.benchmarks.measure.processes import absolute, part_of, run_fresh
from leanear.benchmarks.measure.rounds import quiet_samples
from leanear.export.ast.graph import READ_TOKENS, export_ast, observe_ast
from leanear.export.blocks import KINDS, export_blocks
from leanear.families.ast import AstCheckpoint
from leanear.progress import Report, quiet
from leanear.runtimes.choose import graph_precision, require_runtime
from leanear.runtimes.errors import MeasurementFailed
from leanear.runtimes.sessions import SessionOptions
from leanear.targets.target import Target
from leanear.timing.latency_table import (
    HasHeads,
    LatencyTable,
    ModelTiming,
    Probe,
    fit_parts,
    model_sites,
    read_geometry,
    site_kind,
)
from leanear.timing.table_file import FeedForwardTable, TableSource, fit_feed_forward, table_key
from leanear.timing.table_file import probe_widths as channels_to_probe

PROCESSES = 2  # timings of one process can all be off by how its memory happened to be laid out
ROUNDS = 6
SHARE_S, FEED_FORWARD_SHARE_S = 55.0, 30.0
STACK_MACS = 5_000_000_000  # of a stack of dense blocks: enough that starting it does not show
FEWEST_COPIES, MOST_COPIES = 4, 12
WORKER = "leanear.benchmarks.measure.rounds"


@dataclass(frozen=True)
class Stack:
    """Copies of one block that are timed together: its kind and widths as `export_blocks` has them."""

    kind: str
    widths: list[tuple[int, int]] | int
    tokens: int
    copies: int


def latency_table(checkpoint: AstCheckpoint, target: Target) -> TableSource[LatencyTable]:
    """The table of this device for models of the checkpoint's dimensions."""
    key = table_key(read_geometry(checkpoint), target)
    return TableSource(LatencyTable, key, functools.partial(measure_table, checkpoint, target, key))


def feed_forward_table(checkpoint: AstCheckpoint, target: Target) -> TableSource[FeedForwardTable]:
    """The same of feed-forward blocks: only where these are pruned, as it takes a minute more."""
    key = table_key(read_geometry(checkpoint), target, "feed-forward")
    return TableSource(FeedForwardTable, key, functools.partial(measure_feed_forward, checkpoint, target, key))


def measure_table(
    checkpoint: AstCheckpoint, target: Target, key: dict[str, Any], report: Report = quiet
) -> LatencyTable:
    """The table, timed here and now."""
    geometry = read_geometry(checkpoint)
    probes = [(kind, widths) for kind in KINDS for widths in probe_widths(kind, geometry)]
    columns = geometry.heads * geometry.head_width
    copies = _copies(geometry.tokens * columns * (4 * geometry.model_width + 2 * geometry.tokens))
    stacks = [Stack(kind, widths, geometry.tokens, copies) for kind, widths in probes]
    (*block_ms, (low, middle, high)), others_share = time_stacks(checkpoint, target, stacks, SHARE_S, report)
    parts = {}
    for kind in KINDS:
        timed = [(widths, ms[1]) for (of, widths), ms in zip(probes, block_ms, strict=True) if of == kind]
        parts[kind] = fit_parts(kind, timed, geometry, target.graph_form)
    sites = model_sites(checkpoint)
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
        Probe(kind, tuple(widths), ms[1], ms[0], ms[2], unfinished.site_ms(kind, widths))
        for (kind, widths), ms in zip(probes, block_ms, strict=True)
    ]
    blocks_ms = unfinished.model_ms(sites)
    if blocks_ms >= middle:
        raise MeasurementFailed(
            f"latency table: the attention blocks took {blocks_ms:.2f} ms and the whole model {middle:.2f} ms;"
            " measure again while nothing else runs"
        )
    return replace(unfinished, rest_ms=middle - blocks_ms, probes=tuple(fitted))


def measure_feed_forward(
    checkpoint: AstCheckpoint, target: Target, key: dict[str, Any], report: Report = quiet
) -> FeedForwardTable:
    """The table of feed-forward blocks, timed here and now; the last one is computed for the tokens that are read."""
    geometry = read_geometry(checkpoint)
    full, blocks = geometry.feed_forward_width, tuple(site_kind(n, geometry.layers) for n in range(geometry.layers))
    tokens = {"ordinary": geometry.tokens, "last": READ_TOKENS}
    probes = [(kind, width) for kind in tokens for width in channels_to_probe(full)]
    stacks = [
        Stack("feed-forward", width, tokens[kind], _copies(2 * tokens[kind] * geometry.model_width * full))
        for kind, width in probes
    ]
    (*block_ms, (_, dense_ms, _)), share = time_stacks(checkpoint, target, stacks, FEED_FORWARD_SHARE_S, report)
    timed = list(zip(probes, block_ms, strict=True))
    fits = {kind: fit_feed_forward(kind, [(w, ms[1]) for (of, w), ms in timed if of == kind]) for kind in tokens}
    parts = {kind: found for kind, (found, _) in fits.items()}
    said = tuple(probe for _, of_kind in fits.values() for probe in of_kind)
    return FeedForwardTable(dense_ms, blocks, parts, said, share, key)


def time_stacks(
    checkpoint: AstCheckpoint, target: Target, stacks: Sequence[Stack], share_s: float, report: Report
) -> tuple[list[list[float]], float]:
    """Milliseconds of one block of every stack and, last, of the checkpoint's own model: quartiles.

    All take turns in fresh processes; the share of all cores that others used is told, too.
    """
    require_runtime(target.runtime, SessionOptions(target.threads, target.precision))
    geometry = read_geometry(checkpoint)
    with tempfile.TemporaryDirectory(prefix="leanear-blocks-") as name:
        graphs: list[dict[str, Any]] = []
        for number, of in enumerate(stacks):
            report("building blocks", 0.1 * number / len(stacks))
            path = Path(name) / f"{number}.onnx"
            export_blocks(
                of.kind, of.widths, of.tokens, geometry.model_width, of.copies, target.graph_form, path,
                graph_precision(target.precision),
            )  # fmt: skip
            graphs.append({"file": absolute(path), "labels": 1, "samples": geometry.model_width})
        path = Path(name) / "model.onnx"
        export_ast_to_time(checkpoint.model, checkpoint.feature_extractor, path, target)
        graphs.append({"file": absolute(path), "labels": geometry.labels, "samples": geometry.clip_samples})
        samples_ms, others_share = time_in_turn(graphs, target, report, share_s)
    copies = [*(of.copies for of in stacks), 1]
    quartiles = [
        (np.quantile(samples, [0.25, 0.5, 0.75]) / of).tolist() for samples, of in zip(samples_ms, copies, strict=True)
    ]
    return quartiles, others_share


def export_ast_to_time(model: Any, extractor: Any, out: Path, target: Target) -> None:
    """Write the graph of a classifier for a target, in the graph precision of the target's.

    Integers get ranges from noise: how long they are multiplied does not depend on them.
    """
    precision, observed = graph_precision(target.precision), None
    if precision == "int8":
        noise = 0.1 * np.random.default_rng(0).standard_normal(extractor.sampling_rate)
        observed = observe_ast(model, extractor, target.graph_form, [noise.astype(np.float32)])
    export_ast(model, extractor, out, target.graph_form, precision=precision, observed=observed)


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


@dataclass(frozen=True)
class InTurn:
    """Milliseconds of the dense model and of a slim one, which took turns; doubt: why not to trust them, or ""."""

    dense_ms: float
    slim_ms: float
    doubt: str = ""


def _copies(macs: int) -> int:
    """How many dense blocks of so many multiply-accumulates are timed at a time."""
    return min(max(FEWEST_COPIES, -(-STACK_MACS // macs)), MOST_COPIES)


def probe_widths(kind: str, geometry: HasHeads) -> list[list[tuple[int, int]]]:
    """Widths of the blocks that are timed: equal ones, fewer heads, several groups and ragged ones, none twice."""
    heads, half, equal = geometry.heads, geometry.heads // 2, functools.partial(equal_widths, geometry)
    if kind == "last":
        wanted = [equal(heads, *each) for each in ((8, 8), (2, 8), (8, 2), (2, 2))] + [equal(heads // 4, 8, 8)]
    else:
        eighths = [
            (8, 8), (6, 8), (4, 8), (2, 8), (8, 6), (8, 4), (8, 2), (4, 4), (2, 2), (6, 4.5), (4, 2.5), (3, 6.5),
        ]  # fmt: skip
        wanted = [
            *(equal(heads, *each) for each in eighths), equal(half, 8, 8), equal(heads // 4, 8, 8), equal(half, 4, 4),
            equal(half, 8, 8) + equal(heads - half, 2, 2), equal(half, 4, 8) + equal(heads - half, 4, 2),
            *(ragged_widths(geometry, seed) for seed in range(4)),
        ]  # fmt: skip
    return [list(widths) for widths in dict.fromkeys(map(tuple, wanted)) if len(widths) <= heads]


def equal_widths(geometry: HasHeads, count: int, query_key: float, value_output: float) -> list[tuple[int, int]]:
    """So many heads, at least one, of the same two widths, in eighths of the dense ones."""
    keys, values = (max(1, round(geometry.head_width * eighths / 8)) for eighths in (query_key, value_output))
    return [(keys, values)] * max(1, count)


def ragged_widths(geometry: HasHeads, seed: int) -> list[tuple[int, int]]:
    """Drawn widths of all heads, in eighths of the dense ones."""
    generator = np.random.default_rng(seed)
    steps = generator.integers(1, 9, (geometry.heads, 2))
    return [
        (max(1, geometry.head_width * int(key) // 8), max(1, geometry.head_width * int(value) // 8))
        for key, value in steps
    ]
