"""What tensors of a graph were seen to hold while real clips ran through it: the ranges that integers are given."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanear.export.onnx.graph import Graph

THREADS = 2


def reference_session(path: Path) -> Any:
    """ONNX Runtime's session, on the CPU, of a graph: what tensors are looked at in."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = THREADS, 1
    settings.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def session_of(model: Any, folder: Path) -> Any:
    """The same of a changed graph, whose weights lie in `folder`: with them in it, it would end at 2 GiB."""
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".onnx") as file:
        file.write(model.SerializeToString())
        file.flush()
        return reference_session(Path(file.name))


@dataclass(frozen=True)
class Observed:
    """The lowest and the highest value of every column of one tensor over all clips: float32 (last dimension,) each."""

    lows: np.ndarray
    highs: np.ndarray

    @property
    def low(self) -> float:
        """The lowest value."""
        return float(self.lows.min())

    @property
    def high(self) -> float:
        """The highest value."""
        return float(self.highs.max())

    @property
    def magnitude(self) -> float:
        """The largest magnitude."""
        return max(-self.low, self.high)


BETWEEN_TOKENS = tuple(f".{part}.{shaped}" for part in ("query", "key", "value") for shaped in ("split", "batch"))


def tensors_to_observe(graph: Graph) -> list[str]:
    """What products multiply with weights, and queries, keys and values: names of tensors of a float32 graph."""
    names: dict[str, None] = {}
    for node in graph.nodes:
        is_product = node.op_type in ("Gemm", "MatMul") and node.input[1] in graph.weights
        if is_product or (node.op_type == "Reshape" and node.name.endswith(BETWEEN_TOKENS)):
            names[node.input[0]] = None
    return [name for name in names if name not in graph.weights]


def observe(path: Path, names: Sequence[str], feeds: Iterable[Mapping[str, np.ndarray]]) -> dict[str, Observed]:
    """Run the ONNX file `path` on every feed, on ONNX Runtime's CPU provider, and look at the tensors called `names`.

    Raises:
        ValueError: there is no feed.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    kept = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in kept)
    session = session_of(model, path.parent)
    del model
    seen: dict[str, Observed] = {}
    for feed in feeds:
        for name, tensor in zip(names, session.run(list(names), dict(feed)), strict=True):
            seen[name] = _joined(seen.get(name), _look(tensor))
    if not seen and names:
        raise ValueError("observe: no feed to look at")
    return seen


def _look(tensor: np.ndarray) -> Observed:
    rows = tensor.reshape(-1, tensor.shape[-1])
    return Observed(rows.min(axis=0), rows.max(axis=0))


def _joined(before: Observed | None, now: Observed) -> Observed:
    if before is None:
        return now
    return Observed(np.minimum(before.lows, now.lows), np.maximum(before.highs, now.highs))
