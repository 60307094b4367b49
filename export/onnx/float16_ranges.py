"""Which tensors of a graph hold more than float16 does, seen while real clips run through it in float32.

ONNX Runtime's CPU provider does not show it: it computes in float32 what the graph says is float16, and most values
between two nodes are never rounded there.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from leanear.export.onnx.half_precision import LARGEST_HALF
from leanear.export.onnx.observed import session_of

MOST_CLIPS = 8
HEADROOM = 2.0  # other clips are louder than those that were looked at
FRONT_END = "front_end."  # which stays in float32 whatever it holds


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
