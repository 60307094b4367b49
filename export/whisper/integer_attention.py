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

from leanear.export.onnx.eight_bit_weights import LARGEST
from leanear.export.onnx.graph import Graph
from leanear.export.onnx.observed import Observed
from leanear.export.onnx.static_eight_bit import HALF_LARGEST, HALF_MIDDLE, HALF_STEPS

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
    return CrossUnits(*(None if seen is None else _units(seen) for seen in found))


def _units(seen: Observed) -> np.ndarray:
    largest = np.maximum(np.abs(seen.lows), np.abs(seen.highs)).astype(np.float32)
    return np.where(largest > 0, largest, np.float32(1.0)) / np.float32(LARGEST)


def in_units(weight: np.ndarray, units: np.ndarray | None) -> np.ndarray:
    """A weight (D, columns) whose products count in their columns' units, where they have any."""
    return weight if units is None else weight / units


def add_rounded(graph: Graph, source: str) -> str:
    """Signed integers of (T, columns) whose columns count in their units already."""
    one, zero = graph.constant("unit", np.array(1.0, np.float32)), graph.constant("unit.zero", np.array(0, np.int8))
    return graph.node("QuantizeLinear", [source, one, zero], f"{source}.integers")


def add_scores(graph: Graph, query: str, key: str, name: str) -> str:
    """Scores (W, H, R N / W, T) of queries (W, H, R N / W, K), in the keys' units, and keys (W, H, K, T).

    A row of zeros is not a number when it is divided by its largest, with which what comes of it is multiplied again.
    """
    size = graph.node("Abs", [query], f"{name}.query.size")
    largest = graph.node("ReduceMax", [size, _axis(graph)], f"{name}.query.largest")
    share = graph.node("Div", [query, largest], f"{name}.query.share")
    step = graph.constant("query.63rd", np.array(1 / HALF_LARGEST, np.float32))
    middle = graph.constant("query.middle", np.array(HALF_MIDDLE, np.uint8))
    integers = graph.node("QuantizeLinear", [share, step, middle], f"{name}.query.integers")
    product = _product(graph, [integers, key, middle], f"{name}.scores.integers")
    return graph.node("Mul", [product, largest], f"{name}.scores")


def add_attended(graph: Graph, scores: str, value: str, name: str) -> str:
    """Means (W, H, R N / W, V) of values (W, H, T, V) by the softmax of scores (W, H, R N / W, T), 127 times."""
    weights = graph.node("Softmax", [scores], f"{name}.weights", axis=-1)
    largest = graph.node("ReduceMax", [weights, _axis(graph)], f"{name}.weights.largest")
    share = graph.node("Div", [weights, largest], f"{name}.weights.share")
    step = graph.constant("weights.127th", np.array(1 / HALF_STEPS, np.float32))
    none = graph.constant("weights.zero", np.array(0, np.uint8))
    integers = graph.node("QuantizeLinear", [share, step, none], f"{name}.weights.integers")
    product = _product(graph, [integers, value], f"{name}.attended.integers")
    return graph.node("Mul", [product, largest], f"{name}.attended")


def _axis(graph: Graph) -> str:
    return graph.constant("scores.axis", np.array([-1], dtype=np.int64))


def _product(graph: Graph, inputs: list[str], name: str) -> str:
    """Faster, of one row, than ONNX Runtime's own operator that gives float32 at once."""
    product = graph.node("MatMulInteger", inputs, name)
    return graph.node("Cast", [product], f"{name}.float", to=TensorProto.FLOAT)
