"""Linear layers and layer norms as ONNX operators over tokens (T, D), their weights read from torch modules."""

from collections.abc import Callable
from typing import Any

import numpy as np

from leanear.export.onnx.graph import Graph


def array(parameter: Any) -> np.ndarray:
    """A parameter's own memory."""
    return parameter.detach().numpy()


def add_layernorm(graph: Graph, hidden: str, module: Any, name: str) -> str:
    """Add a layer norm over the last dimension."""
    scale = graph.weight(f"{name}.scale", tuple(module.weight.shape), _reader(module.weight))
    shift = graph.weight(f"{name}.shift", tuple(module.bias.shape), _reader(module.bias))
    return graph.node("LayerNormalization", [hidden, scale, shift], name, axis=-1, epsilon=float(module.eps))


def add_linear(
    graph: Graph, source: str, module: Any, name: str, result: str, more_inputs: int = 0, more_outputs: int = 0
) -> str:
    """Add a linear layer; `more_inputs` and `more_outputs` are rows and columns of zeros at the ends of its weight."""
    rows, columns = module.in_features + more_inputs, module.out_features + more_outputs
    weight = graph.weight(
        f"{name}.weight", (rows, columns), lambda: np.pad(array(module.weight).T, ((0, more_inputs), (0, more_outputs)))
    )
    bias = graph.weight(f"{name}.bias", (columns,), lambda: np.pad(array(module.bias), (0, more_outputs)))
    return graph.node("Gemm", [source, weight, bias], result)


def add_bias_alone(graph: Graph, hidden: str, module: Any, name: str) -> str:
    """Add what is left of a feed-forward block without hidden channels: the second linear layer's bias."""
    bias = graph.weight(f"{name}.fc2.bias", (module.out_features,), _reader(module.bias))
    return graph.node("Add", [hidden, bias], f"{name}.residual")


def _reader(parameter: Any) -> Callable[[], np.ndarray]:
    return lambda: array(parameter)
