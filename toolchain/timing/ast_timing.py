"""Classifiers exported to be timed, in the precision that will ship."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from leanear.export.ast.graph import export_ast, observe_ast
from leanear.runtimes.precisions import graph_precision
from leanear.targets.target import Target

NOISE_S = 1


def export_ast_to_time(model: Any, extractor: Any, out: Path, target: Target) -> None:
    """Write the graph of a classifier for a target, in the graph precision of the target's.

    Integers get ranges from noise: how long they are multiplied does not depend on them.
    """
    precision, observed = graph_precision(target.precision), None
    if precision == "int8":
        noise = 0.1 * np.random.default_rng(0).standard_normal(NOISE_S * extractor.sampling_rate)
        observed = observe_ast(model, extractor, target.graph_form, [noise.astype(np.float32)])
    export_ast(model, extractor, out, target.graph_form, precision=precision, observed=observed)
