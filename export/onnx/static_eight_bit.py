"""Products with weights in 8 bits, in ranges fixed beforehand.

A weight has a scale per column, what it is multiplied with one scale and one zero, fixed beforehand from what was
observed on real clips. x86 processors without VNNI add the products of two neighbours, unsigned times signed, in 16
bits, where 255 × (127 + 127) has no place and is cut off without a word. So no two neighbours of a weight's column are
together above 128, and what is multiplied with numbers that are not known beforehand is below 128 itself.
Norms, softmax, residuals, the front end and the classifier stay in float32.

Layer norms before such products are without scale and shift, which the weights behind take over: x -> norm(x) s + t,
multiplied with W and added to b, is norm(x) multiplied with diag(s) W and added to t W + b. What is left has no channel
that a large scale makes coarse for all others (arXiv 2209.13325), and OpenVINO norms and rounds in one pass where the
norm has three dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper

from leanear.export.onnx.eight_bit_weights import LARGEST, is_transposed, weight_of
from leanear.export.onnx.graph import CONTRIB_DOMAIN, Graph, Weight
from leanear.export.onnx.observed import Observed

SMALLEST_SCALE = 1e-3  # of the largest one: a channel below it hardly counts, and its range says nothing
STEPS = 255  # from the smallest to the largest unsigned integer of 8 bits
HALF_STEPS = 127  # the same where any two signed integers of 8 bits, multiplied with two such, stay within 16 bits
HALF_MIDDLE, HALF_LARGEST = 64, 63  # what stands for 0 there, and the largest magnitude around it


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
        is_read = norm.op_type == "LayerNormalization" and name in observed and all(map(is_static, readers))
        if is_read and graph.weights[norm.input[1]].make().any():  # nothing could be divided by a scale of zeros
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


def unsigned_range(seen: Observed) -> tuple[np.float32, np.uint8]:
    """Scale and zero of unsigned integers that hold everything seen, and 0 exactly."""
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    scale = np.float32((high - low) / STEPS) if high > low else np.float32(1.0)
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, STEPS))


def signed_scale(seen: Observed) -> np.float32:
    """Scale of signed integers around 0 that hold everything seen."""
    return np.float32(seen.magnitude / LARGEST) if seen.magnitude > 0 else np.float32(1.0)


def add_static_products(graph: Graph, observed: Mapping[str, Observed], form: str, kept: Callable[[str], bool]) -> None:
    """Replace the graph's products with weights by products of integers; `kept` says of a node's name that it stays.

    Form "onnxruntime" has its operator of integer products; the others have QuantizeLinear and DequantizeLinear before
    plain ones. Those of form "tensorrt" are of signed integers around 0, which TensorRT's kernels want, and what they
    add stays as it is.
    """
    add = _add_integer_product if form == "onnxruntime" else _add_dequantised_product

    def is_static(node: onnx.NodeProto) -> bool:
        return weight_of(graph, node) is not None and not kept(node.name) and node.input[0] in observed

    if form == "openvino":
        observed = {**observed, **add_plain_norms(graph, observed, is_static)}
    before, graph.nodes = graph.nodes, []
    quantised: dict[str, QuantisedTensor] = {}
    for node in before:
        if not is_static(node):
            graph.nodes.append(node)
            continue
        source, weight = node.input[0], weight_of(graph, node)
        assert weight is not None
        if source not in quantised:
            seen = observed[source]
            scale, zero = (signed_scale(seen), np.int8(0)) if form == "tensorrt" else unsigned_range(seen)
            made = [each for each in graph.nodes if source in each.output]
            reshaped = form == "openvino" and made and made[0].op_type == "Reshape"
            if reshaped and all(is_static(each) for each in before if source in each.input):
                quantised[source] = _add_integers_before(graph, made[0], scale, zero)
            else:
                quantised[source] = add_integers(graph, source, scale, zero)
        add(graph, node, weight, quantised[source])


def _add_integers_before(
    graph: Graph, reshape: onnx.NodeProto, scale: np.float32, zero: np.uint8 | np.int8
) -> QuantisedTensor:
    """Round before a Reshape, which OpenVINO then does in the pass that makes its source: norm or attention."""
    graph.nodes.remove(reshape)
    tensor = add_integers(graph, reshape.input[0], scale, zero)
    shaped = graph.node("Reshape", [tensor.integers, reshape.input[1]], f"{reshape.output[0]}.integers")
    return replace(tensor, source=reshape.output[0], integers=shaped)


@dataclass(frozen=True)
class QuantisedTensor:
    """Names of a tensor, of its integers, of their step and zero; the step itself; whether they are signed."""

    source: str
    integers: str
    step: str
    zero: str
    scale: np.float32
    is_signed: bool


def add_integers(graph: Graph, source: str, scale: np.float32, zero: np.uint8 | np.int8) -> QuantisedTensor:
    """Add QuantizeLinear of a whole tensor."""
    step, none = graph.constant(f"{source}.step", np.array(scale)), graph.constant(f"{source}.zero", np.array(zero))
    integers = graph.node("QuantizeLinear", [source, step, none], f"{source}.integers")
    return QuantisedTensor(source, integers, step, none, scale, isinstance(zero, np.int8))


def add_pair(graph: Graph, source: str, scale: np.float32, zero: np.uint8 | np.int8) -> str:
    """Add QuantizeLinear and DequantizeLinear of a whole tensor and return the result's name."""
    return _dequantised(graph, add_integers(graph, source, scale, zero))


def _dequantised(graph: Graph, tensor: QuantisedTensor) -> str:
    name = f"{tensor.source}.dequantised"
    if graph.has(name):
        return name
    return graph.node("DequantizeLinear", [tensor.integers, tensor.step, tensor.zero], name)


def _add_integer_product(graph: Graph, node: onnx.NodeProto, weight: Weight, source: QuantisedTensor) -> None:
    right = _add_weight_integers(graph, node, weight, source)
    inputs = [source.integers, source.step, source.zero, *right]
    added, result = node.input[2] if len(node.input) > 2 else "", node.output[0]
    name = result
    if added in graph.weights:
        inputs.append(_add_bias_integers(graph, node, weight, source))
    elif added:
        name = f"{result}.product"
    graph.node("QGemm", inputs, name, domain=CONTRIB_DOMAIN)
    if name != result:
        graph.node("Add", [name, added], result)


def _add_dequantised_product(graph: Graph, node: onnx.NodeProto, weight: Weight, source: QuantisedTensor) -> None:
    right = _add_weight_integers(graph, node, weight, source)
    inputs = [_dequantised(graph, source), graph.node("DequantizeLinear", right, weight.name, axis=1)]
    if len(node.input) > 2:
        bias = node.input[2]
        if bias in graph.weights and not source.is_signed:
            _add_dequantised_bias(graph, node, weight, source)
        inputs.append(bias)
    graph.nodes.append(helper.make_node(node.op_type, inputs, list(node.output), name=node.name))


def _matrix(node: onnx.NodeProto, weight: Weight) -> np.ndarray:
    return weight.make().T if is_transposed(node) else weight.make()


def _add_weight_integers(graph: Graph, node: onnx.NodeProto, weight: Weight, source: QuantisedTensor) -> list[str]:
    """Names of a weight's integers (rows, columns), of their steps and of their zeros (columns,)."""
    shape = weight.shape[::-1] if is_transposed(node) else weight.shape
    columns, name = shape[1], weight.name
    graph.weights.pop(name, None)

    def integers() -> np.ndarray:
        return column_integers(_matrix(node, weight), not source.is_signed)

    def steps() -> np.ndarray:
        return column_scales(_matrix(node, weight), not source.is_signed)

    return [
        graph.add(Weight(f"{name}.integers", shape, np.dtype(np.int8), integers)),
        graph.add(Weight(f"{name}.steps", (columns,), np.dtype(np.float32), steps)),
        graph.add(Weight(f"{name}.zeros", (columns,), np.dtype(np.int8), lambda: np.zeros(columns, np.int8))),
    ]


def _bias_units(node: onnx.NodeProto, weight: Weight, source: QuantisedTensor) -> np.ndarray:
    """The product's own units, column by column, which its bias is counted in and added in."""
    return (source.scale * column_scales(_matrix(node, weight), not source.is_signed)).astype(np.float32)


def _add_bias_integers(graph: Graph, node: onnx.NodeProto, weight: Weight, source: QuantisedTensor) -> str:
    """Take the product's bias out of the graph, and add it as integers in the product's units."""
    bias = graph.weights.pop(node.input[2])

    def integers() -> np.ndarray:
        units = _bias_units(node, weight, source)
        return np.rint(bias.make().astype(np.float64) / units).clip(-(2**31), 2**31 - 1).astype(np.int32)

    return graph.add(Weight(f"{bias.name}.integers", bias.shape, np.dtype(np.int32), integers))


def _add_dequantised_bias(graph: Graph, node: onnx.NodeProto, weight: Weight, source: QuantisedTensor) -> None:
    """The bias as a DequantizeLinear of its integers, under the name that it had."""
    name, shape = node.input[2], graph.weights[node.input[2]].shape
    inputs = [
        _add_bias_integers(graph, node, weight, source),
        graph.add(Weight(f"{name}.units", shape, np.dtype(np.float32), lambda: _bias_units(node, weight, source))),
        graph.add(Weight(f"{name}.zeros", shape, np.dtype(np.int32), lambda: np.zeros(shape, np.int32))),
    ]
    graph.node("DequantizeLinear", inputs, name, axis=0)


def column_scales(matrix: np.ndarray, in_pairs: bool = True) -> np.ndarray:
    """What a column's integers are multiplied with, float32 (columns,); in_pairs: rows 0 and 1, 2 and 3, ... as well.

    Two numbers of unlike signs are no danger, and their sum is below the larger one.
    """
    largest = np.abs(matrix).max(axis=0)
    if in_pairs and len(matrix) > 1:
        even, odd = matrix[0::2], matrix[1::2]
        largest = np.maximum(largest, np.abs(even[: len(odd)] + odd).max(axis=0))
    return np.where(largest > 0, largest, 1.0).astype(np.float32) / np.float32(LARGEST)


def column_integers(matrix: np.ndarray, in_pairs: bool = True) -> np.ndarray:
    """The matrix in units of its columns' scales: int8 (rows, columns)."""
    return np.rint(matrix / column_scales(matrix, in_pairs)).astype(np.int8)
