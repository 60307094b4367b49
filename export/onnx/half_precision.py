"""A graph in half precision: the same operators on float16, as casts and float16 weights say in the graph itself.

A strongly typed runtime computes in the types that the graph has, so the graph decides what is rounded:
- products, convolutions, activations and residuals are in float16, and so are their weights;
- norms, softmax and what is added to scores before it stay in float32: there large numbers meet small ones;
- the front end stays in float32: powers of a spectrum leave the range of float16;
- integers stay what they are, and their steps are in float16;
- what was seen to come near to float16's end stays in float32, as does what reads it.
Inputs and outputs keep their types unless `half` names them.

Which tensors hold more than float16 does is seen while real clips run through a graph in float32. ONNX Runtime's CPU
provider does not show it: it computes in float32 what the graph says is float16, and most values between two nodes are
never rounded there.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from leanear.export.onnx.graph import Graph, Weight
from leanear.export.onnx.observed import session_of
from leanear.runtimes.errors import BadInput

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
KEPT_OPERATORS = ("LayerNormalization", "Softmax")
LARGEST_HALF = 65504.0
MOST_CLIPS = 8
HEADROOM = 2.0  # other clips are louder than those that were looked at
FRONT_END = "front_end."  # which stays in float32 whatever it holds


def add_half_precision(
    graph: Graph,
    inputs: Iterable[str],
    outputs: Iterable[str],
    *,
    half: Collection[str] = (),
    kept_inputs: Collection[str] = (),
    kept_prefix: str = "front_end.",
    too_large: Collection[str] = (),
) -> None:
    """Change the nodes and weights of `graph` in place, which was built in float32.

    inputs, outputs: names of the graph's float32 inputs and outputs; half: those of them that become float16;
    kept_inputs: inputs that are only added in float32, and the sums with them are too; kept_prefix: nodes of such names
    stay as they are; too_large: tensors that float16 does not hold.

    Raises:
        BadInput: one of `half` is too large.
    """
    lost = sorted(set(half) & set(too_large))
    if lost:
        raise BadInput(f"precision 'fp16': {lost[0]} holds more than float16 does, which ends at 65504")
    _Halving(graph, set(inputs), set(outputs), set(half), set(kept_inputs), kept_prefix, set(too_large)).run()


def has_half_precision(precision: str, form: str) -> bool:
    """Whether what is left of a graph in that precision is of float16: TensorRT's 8 bits stand among it."""
    return precision == "fp16" or (precision == "int8" and form == "tensorrt")


class _Halving:
    """The types of the tensors so far, and the nodes as they become."""

    def __init__(
        self,
        graph: Graph,
        inputs: set[str],
        outputs: set[str],
        half: set[str],
        kept_inputs: set[str],
        prefix: str,
        too_large: set[str],
    ) -> None:
        self._graph, self._outputs, self._half, self._prefix = graph, outputs, half, prefix
        self._kept_inputs, self._too_large = kept_inputs, too_large
        self._types = {name: HALF if name in half else FLOAT for name in inputs}
        self._nodes: list[onnx.NodeProto] = []
        self._cast: dict[tuple[str, int], str] = {}
        self._halved: set[str] = set()
        self._kept: set[str] = set()

    def run(self) -> None:
        for node in self._graph.nodes:
            self._add(node)
        both = self._halved & self._kept
        weights: dict[str, Weight] = {}
        for name, weight in self._graph.weights.items():
            if name in self._halved:
                changed = _halved(weight, name if name not in both else f"{name}.half")
                weights[changed.name] = changed
            if name not in self._halved or name in both:
                weights[name] = weight
        if both:
            for node in self._nodes:
                if node.op_type != "Cast" and any(self._types.get(name) == HALF for name in node.output):
                    node.input[:] = [f"{name}.half" if name in both else name for name in node.input]
        self._graph.nodes, self._graph.weights = self._nodes, weights

    def _add(self, node: onnx.NodeProto) -> None:
        is_float = any(self._type_of(name) is not None for name in node.input) and node.op_type != "Shape"
        if not is_float:
            self._nodes.append(node)
            return
        kept = (
            node.name.startswith(self._prefix)
            or node.op_type in KEPT_OPERATORS
            or any(name in self._kept_inputs for name in node.input)
            or any(name in self._too_large for name in (*node.input, *node.output))
        )
        wanted = FLOAT if kept else HALF
        after = onnx.NodeProto()
        after.CopyFrom(node)
        after.input[:] = [self._as(name, wanted) for name in node.input]
        names = list(node.output)
        for place, name in enumerate(names):
            if name in self._outputs and wanted != (HALF if name in self._half else FLOAT):
                after.output[place] = f"{name}.{_ending(wanted)}"
                self._types[after.output[place]] = wanted
        self._nodes.append(after)
        if node.op_type == "QuantizeLinear":
            return
        for before, name in zip(names, after.output, strict=True):
            self._types[name] = wanted
            if name != before:
                target = FLOAT if wanted == HALF else HALF
                self._nodes.append(helper.make_node("Cast", [name], [before], name=f"{before}.cast", to=target))
                self._types[before] = target
                self._cast[before, wanted] = name

    def _type_of(self, name: str) -> int | None:
        """FLOAT or HALF of a tensor, None of one that is neither."""
        if name in self._types:
            return self._types[name]
        weight = self._graph.weights.get(name)
        return FLOAT if weight is not None and weight.dtype == np.float32 else None

    def _as(self, name: str, wanted: int) -> str:
        """The name of the tensor in the wanted type, by a cast where it has another."""
        found = self._type_of(name)
        if found is None:
            return name
        if name not in self._types:
            (self._halved if wanted == HALF else self._kept).add(name)
            return name
        if found == wanted:
            return name
        if (name, wanted) not in self._cast:
            result = f"{name}.{_ending(wanted)}"
            self._nodes.append(helper.make_node("Cast", [name], [result], name=result, to=wanted))
            self._types[result] = wanted
            self._cast[name, wanted] = result
        return self._cast[name, wanted]


def _ending(kind: int) -> str:
    return "half" if kind == HALF else "float"


def _halved(weight: Weight, name: str) -> Weight:
    def make() -> np.ndarray:
        values = weight.make()
        largest = float(np.abs(values).max(initial=0.0))
        if not largest <= LARGEST_HALF:
            raise BadInput(f"precision 'fp16': {weight.name} has a weight of {largest:.3g}; float16 ends at 65504")
        return values.astype(np.float16)

    return replace(weight, name=name, dtype=np.dtype(np.float16), make=make)


def too_large_for_half(path: Path, feeds: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """The largest magnitude of every float32 tensor of the ONNX file `path` that comes near to float16's end.

    feeds: inputs of real clips, of which the first MOST_CLIPS are run.
    """
    import onnx
    from onnx import TensorProto, helper

    model = onnx.shape_inference.infer_shapes(onnx.load(str(path), load_external_data=False))
    floats = [
        value.name
        for value in (*model.graph.value_info, *model.graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and not value.name.startswith(FRONT_END)
    ]
    for number, name in enumerate(floats):  # a number each, so that no tensor has to be kept for it
        model.graph.node.append(helper.make_node("Abs", [name], [f"magnitude.{number}"]))
        model.graph.node.append(
            helper.make_node("ReduceMax", [f"magnitude.{number}"], [f"largest.{number}"], keepdims=0)
        )
    kept = [f"largest.{number}" for number in range(len(floats))]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in kept)
    session = session_of(model, path.parent)
    del model
    largest = np.zeros(len(floats))
    for number, feed in enumerate(feeds):
        if number == MOST_CLIPS:
            break
        largest = np.maximum(largest, session.run(kept, dict(feed)))
    return {name: float(seen) for name, seen in zip(floats, largest, strict=True) if HEADROOM * seen > LARGEST_HALF}
