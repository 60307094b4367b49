"""Counted MACs against a count by hand, PyTorch's own counter and the operators of the exported graph."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import torch
from onnx import shape_inference
from torch.utils.flop_counter import FlopCounterMode
from transformers import ASTConfig, ASTForAudioClassification

from leanear.export.ast.front_end import read_front_end
from leanear.export.ast.graph import export_ast
from leanear.export.macs import count_macs
from tests.export.conftest import SETTINGS


def _graph_macs(path: Path) -> int:
    """MACs of every product and convolution in a graph of plain operators, from the shapes of its tensors."""
    graph = shape_inference.infer_shapes(onnx.load(str(path)), strict_mode=True, data_prop=True).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.value_info, *graph.input, *graph.output]:
        shapes[value.name] = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
    macs = 0
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            macs += math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
        elif node.op_type == "Conv":
            macs += math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
    return macs


def test_a_count_by_hand() -> None:
    config = ASTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=10, num_labels=3,
        max_length=26, num_mel_bins=16,
    )  # fmt: skip
    macs = count_macs(ASTForAudioClassification(config))
    # One row of two patches, so four tokens; the second layer is computed for two of them.
    assert macs.by_kind["patches"] == 2 * 16 * 16 * 8
    assert macs.by_kind["projections"] == 4 * (4 * 8 * 8) + 2 * (4 * 8 * 8)
    # First layer: 4 x 4 scores and as many weighted values, 4 wide, for 2 heads. Second: 2 x 4, 8 wide, for 2 heads.
    assert macs.by_kind["attention"] == 2 * 2 * (4 * 4 * 4) + 2 * 2 * (2 * 4 * 8)
    assert macs.by_kind["mlp"] == 4 * (2 * 8 * 10) + 2 * (2 * 8 * 10)
    assert macs.by_kind["head"] == 8 * 3
    assert macs.by_kind["front_end"] == 0
    assert macs.total == sum(macs.by_kind.values())


def test_whole_last_layer_agrees_with_pytorchs_counter() -> None:
    model = ASTForAudioClassification(ASTConfig(**SETTINGS, attn_implementation="eager"))
    features = torch.zeros(1, SETTINGS["max_length"], SETTINGS["num_mel_bins"])
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(features)
    assert 2 * count_macs(model, read_tokens=None).total == counter.get_total_flops()


def test_agrees_with_the_operators_of_the_exported_graph(dense, extractor, tmp_path: Path) -> None:
    path = export_ast(dense, extractor, tmp_path / "model.onnx", "portable").path
    assert _graph_macs(path) == count_macs(dense, read_front_end(extractor)).total


def test_the_form_for_tensorrt_computes_the_last_attention_for_all_tokens(dense, extractor, tmp_path: Path) -> None:
    path = export_ast(dense, extractor, tmp_path / "model.onnx", "tensorrt").path
    counted = count_macs(dense, read_front_end(extractor), form="tensorrt").total
    assert _graph_macs(path) == counted > count_macs(dense, read_front_end(extractor)).total


def test_slim_counts_kept_widths_and_its_graph_no_less(slim, dense, extractor, tmp_path: Path) -> None:
    path = export_ast(slim, extractor, tmp_path / "model.onnx", "portable").path
    counted = count_macs(slim, read_front_end(extractor)).total
    assert counted < count_macs(dense, read_front_end(extractor)).total
    assert counted <= _graph_macs(path) <= 1.2 * counted
