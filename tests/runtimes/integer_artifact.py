"""The hand-made artifact with its matrix in 8 bits, as fine or as coarse as a test wants it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from leanear.runtimes.files import sha256_file
from tests.runtimes.tiny_artifact import write_tiny_artifact


def rounded(matrix: np.ndarray, scale: float) -> np.ndarray:
    """What is left of a matrix in units of `scale`, by numpy: float64."""
    return np.clip(np.rint(matrix / scale), -127, 127) * scale


def write_integer_artifact(folder: Path, matrix: np.ndarray, scale: float) -> Path:
    """`folder`, now an artifact of logits = window(waveform) @ rounded(matrix, scale), the matrix in 8 bits."""
    write_tiny_artifact(folder, matrix)
    path = folder / "model.onnx"
    model = onnx.load(path)
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "matrix"]
    integers = np.clip(np.rint(matrix / scale), -127, 127).astype(np.int8)
    del model.graph.initializer[:]
    model.graph.initializer.extend(
        [
            *kept,
            numpy_helper.from_array(integers, "integers"),
            numpy_helper.from_array(np.array(scale, np.float32), "scale"),
            numpy_helper.from_array(np.array(0, np.int8), "zero_point"),
        ]
    )
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["integers", "scale", "zero_point"], ["matrix"]))
    onnx.save(model, path)
    set_precision(folder, "int8")
    return folder


def set_precision(folder: Path, precision: str) -> None:
    """Let the manifest say that the graph in `folder`, whatever it is now, is of `precision`."""
    manifest = json.loads((folder / "manifest.json").read_text())
    graph = folder / "model.onnx"
    manifest["graphs"]["classifier"] |= {
        "precision": precision, "sha256": sha256_file(graph), "bytes": graph.stat().st_size,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
