"""Latency of pruned models on a target, measured: exported to its form, and timed in turn with the dense one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from leanear.benchmarks.measure.processes import absolute
from leanear.benchmarks.sensors.device import device_facts, device_name
from leanear.export.ast.graph import export_ast
from leanear.progress import Report
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import replaced_folder
from leanear.studies.comparison_document import MethodsLatency, TimedRow
from leanear.studies.methods import Bench, Method
from leanear.targets.target import Target
from leanear.timing.block_timing import time_in_turn
from leanear.timing.latency_table import read_geometry

BUILDING = 0.3  # of the progress bar


def time_methods(
    points: Sequence[tuple[Method, float]], bench: Bench, target: Target, graphs: Path, report: Report
) -> MethodsLatency:
    """Median latency and quartiles in ms of every method at its sparsity, with the target and device.

    graphs: a folder that the exported graphs are put in, and left in. What a method cannot reach has no row.

    Raises:
        MeasurementFailed: a timing process ended without an answer.
    """
    exported: list[tuple[str, float, int, float]] = []
    with replaced_folder(graphs) as folder:
        for number, (method, asked) in enumerate(points):
            report(f"exporting {method.name} at {100 * asked:g} %", BUILDING * number / len(points))
            try:
                made = method.make(bench, asked, method.recipe)
            except BadInput:
                continue  # the comparison's rows say why
            path = folder / f"{len(exported)}.onnx"
            export_ast(made.model, bench.checkpoint.feature_extractor, path, target.graph_form)
            exported.append((method.name, asked, bench.seed, made.plan.sparsity))
    geometry = read_geometry(bench.checkpoint)
    requests = [
        {"file": absolute(graphs / f"{n}.onnx"), "labels": geometry.labels, "samples": geometry.clip_samples}
        for n in range(len(exported))
    ]

    def timing(text: str, done: float | None = None) -> None:
        report(text, BUILDING + (1 - BUILDING) * (done or 0.0))

    samples_ms, others_share = time_in_turn(requests, target, timing)
    rows = tuple(TimedRow(*one, *_quartiles(samples)) for one, samples in zip(exported, samples_ms, strict=True))
    where = (target.name, target.runtime, target.precision, target.threads)
    return MethodsLatency(*where, others_share, device_name(device_facts()), rows)


def _quartiles(samples_ms: Sequence[float]) -> tuple[float, float, float, int]:
    """Median, lower and upper quartile, and how many samples they are of."""
    low, middle, high = (float(value) for value in np.quantile(np.array(samples_ms), [0.25, 0.5, 0.75]))
    return middle, low, high, len(samples_ms)
