"""Weights in 8 bits in place of those in float32 of a graph that was built already, for a step that reads them once.

A step of a decoder multiplies a row or a few with every weight, and takes as long as reading them does. Two ways:
- in blocks, by an operator of ONNX Runtime's own, which multiplies integers by integers: a scale for every 128 (or
  fewer) values of a column, and of a row of what it is multiplied with;
- in columns, by DequantizeLinear, which a runtime does as it multiplies: a scale for every column.

Norms, softmax, attention between tokens and the front end are left in float32.
"""

from dataclasses import replace

import numpy as np
import onnx
from onnx import helper

from leanear.export.onnx.graph import CONTRIB_DOMAIN, Graph, Weight

LARGEST = 127
BLOCKS = (128, 64, 32, 16)
BLOCK_WASTE = 0.1  # the share of a column that filling up its last block may add before smaller blocks are taken
BLOCK_ZERO = 128  # what stands for 0 in an unsigned integer
INTEGER_PRODUCTS = 4  # MatMulNBits' accuracy level that multiplies integers
SMALLEST_WEIGHT = 4096  # values; smaller products cost no time worth an error


def add_block_products(graph: Graph) -> None:
    """Replace the graph's products with weights by products with weights in blocks."""
    replaced: dict[str, list[Weight]] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        weight = weight_of(graph, node)
        nodes += [node] if weight is None else _by_blocks(graph, node, weight, replaced)
    graph.nodes = nodes
    graph.weights = {
        after.name: after for before in graph.weights.values() for after in replaced.get(before.name, [before])
    }


def add_eight_bit_weights(graph: Graph) -> None:
    """Replace the weights of the graph's products, each stored column by column, with a scale of its own for each."""
    before, graph.nodes = graph.nodes, []
    for node in before:
        weight = weight_of(graph, node)
        if weight is None:
            graph.nodes.append(node)
            continue
        inputs = [node.input[0], _add_columns(graph, node, weight), *node.input[2:]]
        graph.nodes.append(helper.make_node("Gemm", inputs, list(node.output), name=node.name, transB=1))


def _add_columns(graph: Graph, node: onnx.NodeProto, weight: Weight) -> str:
    """Add a weight's dequantised columns, float32 (columns, rows), and return their name."""
    shape, name = weight.shape if is_transposed(node) else weight.shape[::-1], weight.name
    columns, length = shape

    def by_column() -> np.ndarray:
        return weight.make() if is_transposed(node) else weight.make().T

    def scales() -> np.ndarray:
        return block_scales(by_column(), length)[:, 0]

    def integers() -> np.ndarray:
        return block_integers(by_column(), length)[:, 0]

    graph.weights[name] = replace(weight, shape=shape, dtype=np.dtype(np.uint8), make=integers)
    parts = [
        name,
        graph.add(replace(weight, name=f"{name}.scales", shape=(columns,), make=scales)),
        graph.constant(f"{columns}.zeros", np.full(columns, BLOCK_ZERO, np.uint8)),
    ]
    return graph.node("DequantizeLinear", parts, f"{name}.dequantised", axis=0)


def weight_of(graph: Graph, node: onnx.NodeProto) -> Weight | None:
    """The matrix that a product multiplies with from the right, None if it is no such product."""
    if node.op_type not in ("Gemm", "MatMul"):
        return None
    weight = graph.weights.get(node.input[1])
    if weight is None or len(weight.shape) != 2 or int(np.prod(weight.shape)) < SMALLEST_WEIGHT:
        return None
    return weight


def is_transposed(node: onnx.NodeProto) -> bool:
    """Whether a Gemm takes its weight transposed."""
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _by_blocks(
    graph: Graph, node: onnx.NodeProto, weight: Weight, replaced: dict[str, list[Weight]]
) -> list[onnx.NodeProto]:
    columns, rows = weight.shape if is_transposed(node) else weight.shape[::-1]
    block = block_length(rows)
    blocks = -(-rows // block)

    def by_column() -> np.ndarray:
        return weight.make() if is_transposed(node) else weight.make().T

    scales = f"{weight.name}.scales"
    replaced[weight.name] = [
        replace(
            weight,
            shape=(columns, blocks, block),
            dtype=np.dtype(np.uint8),
            make=lambda: block_integers(by_column(), block),
        ),
        replace(weight, name=scales, shape=(columns, blocks), make=lambda: block_scales(by_column(), block)),
    ]
    attributes = {
        "K": rows, "N": columns, "bits": 8, "block_size": block, "accuracy_level": INTEGER_PRODUCTS,
    }  # fmt: skip
    return _with_bias(graph, node, "MatMulNBits", [node.input[0], weight.name, scales, "", ""], 6, attributes)


def block_length(rows: int) -> int:
    """How many values of a column share a scale."""
    return next((block for block in BLOCKS if -(-rows // block) * block <= (1 + BLOCK_WASTE) * rows), BLOCKS[-1])


def _in_blocks(by_column: np.ndarray, block: int) -> np.ndarray:
    columns, rows = by_column.shape
    filled = np.pad(by_column, ((0, 0), (0, -rows % block)))
    return filled.reshape(columns, -1, block)


def block_scales(by_column: np.ndarray, block: int) -> np.ndarray:
    """What a block's integers less BLOCK_ZERO are multiplied with, float32 (columns, blocks)."""
    largest = np.abs(_in_blocks(by_column, block)).max(axis=2)
    return np.where(largest > 0, largest, 1.0).astype(np.float32) / np.float32(LARGEST)


def block_integers(by_column: np.ndarray, block: int) -> np.ndarray:
    """The columns in units of their blocks' scales, BLOCK_ZERO for 0: uint8 (columns, blocks, block)."""
    parts = _in_blocks(by_column, block) / block_scales(by_column, block)[:, :, None]
    return (np.rint(parts) + BLOCK_ZERO).astype(np.uint8)


def _with_bias(
    graph: Graph, node: onnx.NodeProto, operator: str, inputs: list[str], places: int, attributes: dict[str, int]
) -> list[onnx.NodeProto]:
    """The operator, its last place for a bias; what else a Gemm adds is added behind it."""
    added, result = node.input[2] if len(node.input) > 2 else "", node.output[0]
    name = result
    if added in graph.weights:
        inputs = [*inputs, *[""] * (places - 1 - len(inputs)), added]
    elif added:
        name = f"{result}.product"
    while inputs[-1] == "":
        inputs.pop()
    nodes = [helper.make_node(operator, inputs, [name], name=name, domain=CONTRIB_DOMAIN, **attributes)]
    if name != result:
        nodes.append(helper.make_node("Add", [name, added], [result], name=result))
    return nodes
