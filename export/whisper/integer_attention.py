"""Attention to encoded windows whose keys and values are 8-bit integers.

A step reads all keys and values of its windows to multiply each number once, so it takes as long as reading them does,
and integers are a quarter of what float32 is. Every column of keys and of values has a unit, fixed from what was
observed, which weights take over: those that make keys and values are divided by it, those that make queries, and those
behind the values, multiplied with it. Of a query and of a row of attention weights the largest is the unit, head by
head.

Dimension letters: W encoded windows, R rows, N tokens, H heads, T encoder positions, K per-head query/key width, V
per-head value/output width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from leanear.export.onnx.graph import Graph
from leanear.export.onnx.observed import Observed
from leanear.export.onnx.static_eight_bit import HALF_LARGEST, HALF_MIDDLE, HALF_STEPS, add_integers, column_scales

INTEGER_FORM = "onnxruntime"


@dataclass(frozen=True)
class CrossUnits:
    """The units of a block's keys, float32 (H K,), and values, (H V,); None of what is in float32."""

    keys: np.ndarray | None = None
    values: np.ndarray | None = None

    def of_queries(self) -> np.ndarray | None:
        """What queries' weights are multiplied with, column by column."""
        return None if self.keys is None else self.keys / np.float32(HALF_LARGEST)

    def of_attended(self) -> np.ndarray | None:
        """What weights behind the attended values are multiplied with, row by row."""
        return None if self.values is None else self.values / np.float32(HALF_STEPS)


def cross_units(observed: Mapping[str, Observed] | None, form: str, name: str) -> CrossUnits:
    """The units of the block called `name`, of what was observed of it where the form has integers."""
    if observed is None or form != INTEGER_FORM:
        return CrossUnits()
    found = [observed.get(f"{name}.{part}") for part in ("key", "value")]
    # of two rows, the lowest and the highest
    ends = [None if seen is None else np.stack([seen.lows, seen.highs]) for seen in found]
    return CrossUnits(*(None if each is None else column_scales(each, in_pairs=False) for each in ends))


def in_units(weight: np.ndarray, units: np.ndarray | None) -> np.ndarray:
    """A weight (D, columns) whose products count in their columns' units, where they have any."""
    return weight if units is None else weight / units


def add_scores(graph: Graph, query: str, key: str, name: str) -> str:
    """Scores (W, H, R N / W, T) of queries (W, H, R N / W, K), in the keys' units, and keys (W, H, K, T).

    A row of zeros is not a number when it is divided by its largest, with which what comes of it is multiplied again.
    """
    size = graph.node("Abs", [query], f"{name}.query.size")
    largest = graph.node("ReduceMax", [size, _axis(graph)], f"{name}.query.largest")
    share = graph.node("Div", [query, largest], f"{name}.query.share")
    rounded = add_integers(graph, share, np.float32(1 / HALF_LARGEST), np.uint8(HALF_MIDDLE))
    product = _product(graph, [rounded.integers, key, rounded.zero], f"{name}.scores.integers")
    return graph.node("Mul", [product, largest], f"{name}.scores")


def add_attended(graph: Graph, scores: str, value: str, name: str) -> str:
    """Means (W, H, R N / W, V) of values (W, H, T, V) by the softmax of scores (W, H, R N / W, T), 127 times."""
    weights = graph.node("Softmax", [scores], f"{name}.weights", axis=-1)
    largest = graph.node("ReduceMax", [weights, _axis(graph)], f"{name}.weights.largest")
    share = graph.node("Div", [weights, largest], f"{name}.weights.share")
    rounded = add_integers(graph, share, np.float32(1 / HALF_STEPS), np.uint8(0))
    product = _product(graph, [rounded.integers, value], f"{name}.attended.integers")
    return graph.node("Mul", [product, largest], f"{name}.attended")


def _axis(graph: Graph) -> str:
    return graph.constant("scores.axis", np.array([-1], dtype=np.int64))


def _product(graph: Graph, inputs: list[str], name: str) -> str:
    """Faster, of one row, than ONNX Runtime's own operator that gives float32 at once."""
    product = graph.node("MatMulInteger", inputs, name)
    return graph.node("Cast", [product], f"{name}.float", to=TensorProto.FLOAT)
