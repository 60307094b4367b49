"""Layer norms before products of integers without scale and shift, which the weights behind take over.

x -> norm(x) s + t, multiplied with W and added to b, is norm(x) multiplied with diag(s) W and added to t W + b. What is
left has no channel that a large scale makes coarse for all others (arXiv 2209.13325), and OpenVINO norms and rounds in
one pass where the norm has three dimensions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from leanear.export.onnx.eight_bit_weights import is_transposed, weight_of
from leanear.export.onnx.graph import Graph
from leanear.export.onnx.observed import Observed

SMALLEST_SCALE = 1e-3  # of the largest one: a channel below it hardly counts, and its range says nothing


def add_plain_norms(
    graph: Graph, observed: Mapping[str, Observed], is_static: Callable[[onnx.NodeProto], bool]
) -> dict[str, Observed]:
    """Take scale and shift from norms that nothing but products in 8 bits reads, which then have three dimensions.

    is_static: says of a node that it is such a product, where its source was observed. What the norms' results hold
    now, of these norms alone.
    """
    before, graph.nodes, plain = graph.nodes, [], {}
    for norm in before:
        name = norm.output[0]
        readers = [node for node in before if name in node.input]
        if norm.op_type == "LayerNormalization" and name in observed and all(map(is_static, readers)):
            plain[name] = _add_plain(graph, norm, readers, observed[name])
        else:
            graph.nodes.append(norm)
    return plain


def _add_plain(graph: Graph, norm: onnx.NodeProto, products: Sequence[onnx.NodeProto], seen: Observed) -> Observed:
    scale, shift = (graph.weights.pop(name).make() for name in norm.input[1:])
    width, name = len(scale), norm.output[0]
    for product in products:
        _take_over(graph, product, scale, shift)
    norm.input[0] = graph.reshape(norm.input[0], (1, -1, width), f"{name}.batch")
    norm.input[1] = graph.constant(f"{width}.ones", np.ones(width, np.float32))
    norm.input[2] = graph.constant(f"{width}.none", np.zeros(width, np.float32))
    norm.name = norm.output[0] = f"{name}.of_batch"
    graph.nodes.append(norm)
    graph.reshape(norm.output[0], (-1, width), name)
    counted = np.abs(scale) > SMALLEST_SCALE * np.abs(scale).max()
    ends = np.stack([seen.lows, seen.highs])[:, counted] - shift[counted]
    ends /= scale[counted]
    return Observed(ends.min(axis=0), ends.max(axis=0))


def _take_over(graph: Graph, product: onnx.NodeProto, scale: np.ndarray, shift: np.ndarray) -> None:
    weight = weight_of(graph, product)
    assert weight is not None
    transposed = is_transposed(product)
    bias = graph.weights.get(product.input[2]) if len(product.input) > 2 else None
    columns = weight.shape[0 if transposed else 1]

    def shifted() -> np.ndarray:
        rows = weight.make().T if transposed else weight.make()
        passed = shift.astype(np.float64) @ rows
        return (passed if bias is None else passed + bias.make()).astype(np.float32)

    graph.weights[weight.name] = replace(weight, make=lambda: weight.make() * (scale if transposed else scale[:, None]))
    name = f"{product.name}.shifted" if bias is None else bias.name
    graph.weights[name] = replace(weight, name=name, shape=(columns,), make=shifted)
    if bias is None:
        product.op_type = "Gemm"
        product.input.append(name)
