"""An ONNX graph under construction, written weight by weight so that no second copy of the model is held."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import helper

from leanear.runtimes.choose import graph_forms
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import sha256_file
from leanear.runtimes.manifest import GraphFile, named_file

FORMS = graph_forms()
OPSET = 20
IR_VERSION = 9
CONTRIB_DOMAIN = "com.microsoft"
LARGEST_FILE_BYTES = 2**31 - 1  # what one protobuf message may hold
LARGE_BYTES = 2**16  # weights of at least so many bytes go to a file of data, where there is one
PAGE_BYTES = 4096

_ELEMENT_TYPES = {
    np.dtype(np.float32): onnx.TensorProto.FLOAT,
    np.dtype(np.float16): onnx.TensorProto.FLOAT16,
    np.dtype(np.int64): onnx.TensorProto.INT64,
    np.dtype(np.int32): onnx.TensorProto.INT32,
    np.dtype(np.int8): onnx.TensorProto.INT8,
    np.dtype(np.uint8): onnx.TensorProto.UINT8,
}
_LENGTH_DELIMITED = 2
_MODEL_GRAPH_FIELD = onnx.ModelProto.GRAPH_FIELD_NUMBER
_GRAPH_INITIALIZER_FIELD = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
_TENSOR_RAW_DATA_FIELD = onnx.TensorProto.RAW_DATA_FIELD_NUMBER


@dataclass(frozen=True)
class Weight:
    """A tensor that is computed only when it is written: `make()` gives `shape` of `dtype`.

    in_graph: whether the graph has it; in_data: whether it goes to the file of data, where there is one, though small.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]
    in_graph: bool = True
    in_data: bool = False

    @property
    def data_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True)
class ExportedGraph:
    """What was written: its form, the opset of its plain operators, how many nodes it has, what its products are of.

    data: the name of the file beside it that has weights too.
    """

    path: Path
    form: str
    opset: int
    nodes: int
    precision: str = "fp32"
    data: str | None = None


def graph_facts(exported: ExportedGraph) -> GraphFile:
    """What a manifest says of a graph, whose file is there now; its bytes are those of all its files."""
    path = exported.path
    data = None if exported.data is None else path.parent / exported.data
    return GraphFile(
        file=path.name,
        sha256=sha256_file(path),
        bytes=path.stat().st_size + (0 if data is None else data.stat().st_size),
        data=None if data is None else named_file(data),
        form=exported.form,
        opset=exported.opset,
        nodes=exported.nodes,
        precision=exported.precision,
    )


def model_sizes(model: Any, attention_blocks: Iterable[Any]) -> dict[str, int]:
    """What a manifest says of a torch model's size: parameters, those of its attention blocks, and bytes."""
    parameters = list(model.parameters())
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "attention_parameters": sum(
            parameter.numel() for block in attention_blocks for parameter in block.parameters()
        ),
        "checkpoint_bytes": sum(parameter.numel() * parameter.element_size() for parameter in parameters),
    }


class Graph:
    """Nodes and weights in the order in which they were added; a method that adds returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Weight] = {}

    def node(self, operator: str, inputs: Iterable[str], name: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and return the output's name, which is the node's name too."""
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, domain=domain, **attributes))
        return name

    def split(self, source: str, sizes: Iterable[int], axis: int, names: list[str]) -> list[str]:
        """Cut `source` along `axis` into parts of `sizes` and return the parts' names."""
        lengths = self.constant(f"{names[0]}.split", np.array(list(sizes), dtype=np.int64))
        self.nodes.append(helper.make_node("Split", [source, lengths], names, name=f"{names[0]}.cut", axis=axis))
        return names

    def split_by(self, source: str, lengths: str, axis: int, names: list[str]) -> list[str]:
        """The same with lengths that another node computes, int64 (parts,)."""
        self.nodes.append(helper.make_node("Split", [source, lengths], names, name=f"{names[0]}.cut", axis=axis))
        return names

    def slice(self, source: str, begin: int, end: int, axis: int, name: str) -> str:
        """Add a Slice of `source` along `axis`."""
        numbers = [self.constant(f"number.{number}", np.array([number], np.int64)) for number in (begin, end, axis)]
        return self.node("Slice", [source, *numbers], name)

    def has(self, name: str) -> bool:
        """Whether a node of that name was added."""
        return any(node.name == name for node in self.nodes)

    def reshape(self, source: str, shape: Iterable[int], name: str) -> str:
        """Add a Reshape to a constant shape."""
        dimensions = list(shape)
        target = self.constant("shape." + "x".join(str(size) for size in dimensions), np.array(dimensions, np.int64))
        return self.node("Reshape", [source, target], name)

    def constant(self, name: str, array: np.ndarray) -> str:
        """Add a small tensor; a name that is already there stands for the same tensor."""
        self.weights.setdefault(name, Weight(name, array.shape, array.dtype, lambda: array))
        return name

    def weight(self, name: str, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> str:
        """Add a float32 tensor that `make` computes when the file is written."""
        return self.add(Weight(name, shape, np.dtype(np.float32), make))

    def stored(self, name: str, shape: tuple[int, ...], make: Callable[[], np.ndarray], in_graph: bool) -> str:
        """Add a float32 tensor to the file of data, and to the graph as well if it is `in_graph`."""
        return self.add(Weight(name, shape, np.dtype(np.float32), make, in_graph, in_data=True))

    def add(self, weight: Weight) -> str:
        """Add a tensor of any type and return its name."""
        if weight.name in self.weights:
            raise ValueError(f"weight {weight.name!r} was added twice")
        self.weights[weight.name] = weight
        return weight.name

    def write(
        self,
        path: Path,
        inputs: list[onnx.ValueInfoProto],
        outputs: list[onnx.ValueInfoProto],
        name: str,
        data_file: str | None = None,
    ) -> dict[str, int]:
        """Write the graph as the ONNX file `path`; the same graph gives the same bytes.

        data_file: the plain name of a file beside it that large weights go to; where in it they begin is returned. A
        runtime maps that file into memory and gives it up weight by weight as it arranges them in its own way, while of
        weights inside the ONNX file it holds a copy until the last one is done.

        The encoding is what protobuf would write, with each tensor's length known in advance from its shape. So a
        weight is computed, written and dropped before the next one is.

        Raises:
            BadInput: the file would be larger than one protobuf message may be (2 GiB).
        """
        skeleton = helper.make_graph(self.nodes, name, inputs, outputs)
        domains = sorted({node.domain for node in self.nodes} | {""})
        opsets = [helper.make_opsetid(domain, OPSET if domain == "" else 1) for domain in domains]
        model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="leanear", opset_import=opsets)
        head = model.SerializeToString(deterministic=True)
        body = skeleton.SerializeToString(deterministic=True)
        offsets = {} if data_file is None else self._data_offsets()
        inside = [weight for weight in self.weights.values() if weight.in_graph]
        prefixes = [_tensor_prefix(weight, data_file, offsets.get(weight.name)) for weight in inside]
        graph_bytes = len(body) + sum(map(len, prefixes))
        graph_bytes += sum(weight.data_bytes for weight in inside if weight.name not in offsets)
        if len(head) + graph_bytes + 16 > LARGEST_FILE_BYTES:
            raise BadInput(f"{path}: the graph needs {graph_bytes} bytes; a single ONNX file holds less than 2 GiB")
        with open(path, "wb") as stream:
            stream.write(head)
            stream.write(_field(_MODEL_GRAPH_FIELD, graph_bytes))
            stream.write(body)
            for prefix, weight in zip(prefixes, inside, strict=True):
                stream.write(prefix)
                if weight.name not in offsets:
                    _write_data(stream, weight)
        if data_file is not None:
            with open(path.parent / data_file, "wb") as stream:
                for weight_name, offset in offsets.items():
                    stream.write(bytes(offset - stream.tell()))
                    _write_data(stream, self.weights[weight_name])
        return offsets

    def _data_offsets(self) -> dict[str, int]:
        """Where in a file of data each large weight begins: at the beginning of a page."""
        offsets, end = {}, 0
        for weight in self.weights.values():
            if weight.data_bytes >= LARGE_BYTES or weight.in_data:
                offsets[weight.name] = -(-end // PAGE_BYTES) * PAGE_BYTES
                end = offsets[weight.name] + weight.data_bytes
        return offsets


def _write_data(stream: BinaryIO, weight: Weight) -> None:
    array = weight.make()
    if array.shape != weight.shape or array.dtype != weight.dtype:
        raise ValueError(
            f"weight {weight.name!r}: promised {weight.shape} {weight.dtype}, made {array.shape} {array.dtype}"
        )
    stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _tensor_prefix(weight: Weight, data_file: str | None, offset: int | None) -> bytes:
    """All of an initializer's encoding that comes before its data, the length of the whole included.

    offset: where its data begins in `data_file`; then nothing follows.
    """
    tensor = onnx.TensorProto(dims=weight.shape, data_type=_ELEMENT_TYPES[weight.dtype], name=weight.name)
    if offset is not None:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", data_file), ("offset", offset), ("length", weight.data_bytes)):
            tensor.external_data.add(key=key, value=str(value))
        outside = tensor.SerializeToString(deterministic=True)
        return _field(_GRAPH_INITIALIZER_FIELD, len(outside)) + outside
    header = tensor.SerializeToString(deterministic=True) + _field(_TENSOR_RAW_DATA_FIELD, weight.data_bytes)
    return _field(_GRAPH_INITIALIZER_FIELD, len(header) + weight.data_bytes) + header


def _field(number: int, length: int) -> bytes:
    """Protobuf's key of a length-delimited field and its length."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(length)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
