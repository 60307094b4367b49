"""A hand-made artifact: a waveform is cut or padded to a window and multiplied by one small matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from leanear.runtimes.artifact import Golden, write_golden
from leanear.runtimes.files import sha256_file, write_json
from leanear.runtimes.manifest import MANIFEST_SCHEMA

WINDOW_SAMPLES = 160
LABELS = ("bed", "cat", "dog", "owl")


def weights(seed: int = 0, window: int = WINDOW_SAMPLES, labels: int = len(LABELS)) -> np.ndarray:
    """The matrix of the tiny graph, float32 (window, labels)."""
    return np.random.default_rng(seed).standard_normal((window, labels)).astype(np.float32)


def loudness_weights(window: int = WINDOW_SAMPLES, labels: int = len(LABELS)) -> np.ndarray:
    """A matrix whose logits are the mean of each label's stretch of the window, float32 (window, labels)."""
    matrix = np.zeros((window, labels), dtype=np.float32)
    for label, stretch in enumerate(np.array_split(np.arange(window), labels)):
        matrix[stretch, label] = 1.0 / len(stretch)
    return matrix


def expected_logits(waveform: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """What the tiny graph computes, by numpy in float64."""
    window = np.zeros(matrix.shape[0])
    kept = waveform[: matrix.shape[0]]
    window[: len(kept)] = kept
    return window @ matrix.astype(np.float64)


def write_tiny_artifact(
    folder: Path,
    matrix: np.ndarray,
    *,
    source: str = "tiny",
    labels: tuple[str, ...] = LABELS,
    sample_rate_hz: int = 16_000,
    model: dict[str, Any] | None = None,
) -> Path:
    """`folder`, now an artifact of the graph logits = window(waveform) @ matrix."""
    folder.mkdir(parents=True)
    window = matrix.shape[0]
    nodes = [
        helper.make_node("Concat", ["waveform", "silence"], ["long"], axis=1),
        helper.make_node("Slice", ["long", "zero", "window", "one"], ["cut"]),
        helper.make_node("Reshape", ["cut", "shape"], ["row"]),
        helper.make_node("MatMul", ["row", "matrix"], ["logits"]),
    ]
    constants = {
        "silence": np.zeros((1, window), np.float32),
        "zero": np.array([0], np.int64),
        "window": np.array([window], np.int64),
        "one": np.array([1], np.int64),
        "shape": np.array([1, window], np.int64),
        "matrix": matrix,
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("waveform", TensorProto.FLOAT, [1, "samples"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, matrix.shape[1]])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "model.onnx"
    )
    waveforms = tuple(np.random.default_rng(clip).uniform(-1, 1, window).astype(np.float32) for clip in range(2))
    golden = np.stack([expected_logits(waveform, matrix) for waveform in waveforms])
    write_golden(folder / "golden.npz", Golden(waveforms, golden))
    write_manifest(folder, source, labels, sample_rate_hz, window, model or {})
    return folder


def write_manifest(
    folder: Path, source: str, labels: tuple[str, ...], sample_rate_hz: int, window: int, model: dict[str, Any]
) -> None:
    """Write `manifest.json` for the graph and golden files in `folder`."""
    graph, golden = folder / "model.onnx", folder / "golden.npz"
    manifest = {
        "schema": MANIFEST_SCHEMA,
        "family": "ast",
        "task": "audio-classification",
        "model": {
            "source": source,
            "parameters": 1000,
            "attention_parameters": 400,
            "macs": 50_000,
            "checkpoint_bytes": 4000,
            **model,
        },
        "graphs": {
            "classifier": {
                "file": graph.name,
                "sha256": sha256_file(graph),
                "bytes": graph.stat().st_size,
                "form": "portable",
                "opset": 20,
                "nodes": 4,
                "precision": "fp32",
                "data": None,
            }
        },
        "input": {
            "name": "waveform",
            "dtype": "float32",
            "shape": [1, "samples"],
            "sample_rate_hz": sample_rate_hz,
            "window_samples": window,
        },
        "output": {"name": "logits", "dtype": "float32", "shape": [1, len(labels)]},
        "labels": list(labels),
        "golden": {"file": golden.name, "sha256": sha256_file(golden), "clips": 2},
        "parity": None,
        "made_from": {},
    }
    write_json(folder / "manifest.json", manifest)
