"""Stacks of blocks are what the exporter makes of a model: same operators, same groups, same numbers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn import functional

from leanear.export.ast.graph import export_ast
from leanear.export.blocks import export_blocks, exported_groups, random_attention, random_feed_forward

TOKENS, WIDTH = 40, 48
RAGGED = [(3, 10), (7, 1), (16, 6)]


def run(path, waveform):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"waveform": waveform})[0]


@pytest.mark.parametrize("form", ["portable", "onnxruntime", "openvino", "tensorrt"])
@pytest.mark.parametrize("kind", ["ordinary", "last"])
def test_a_stack_runs_and_depends_on_its_input(tmp_path, kind, form):
    path = tmp_path / "blocks.onnx"
    export_blocks(kind, RAGGED, TOKENS, WIDTH, 3, form, path)
    generator = np.random.default_rng(0)
    one, other = (generator.standard_normal((1, WIDTH), dtype=np.float32) for _ in range(2))
    assert run(path, one).shape == (1, 1)
    assert np.isfinite(run(path, one)).all()
    assert run(path, one) != run(path, other)


def _softmax(scores):
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_one_block_against_numpy(tmp_path):
    """The file's numbers are a pre-norm attention block with residual, computed head by head in float64."""
    path = tmp_path / "blocks.onnx"
    export_blocks("ordinary", RAGGED, TOKENS, WIDTH, 1, "portable", path)
    generator = np.random.default_rng(0)
    spread = np.float32(0.02)
    tokens = spread * generator.standard_normal((TOKENS, WIDTH), dtype=np.float32)
    block = random_attention(RAGGED, WIDTH, generator)
    scale, shift = (spread * generator.standard_normal(WIDTH, dtype=np.float32) for _ in range(2))
    waveform = np.random.default_rng(1).standard_normal((1, WIDTH), dtype=np.float32)
    hidden = (tokens + waveform).astype(np.float64)
    centred = hidden - hidden.mean(axis=1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-12) * (1 + scale) + shift
    query, key = normed @ block.query_weight.T + block.query_bias, normed @ block.key_weight.T
    value = normed @ block.value_weight.T + block.value_bias
    contexts, first, begin = [], 0, 0
    for query_key, value_output in RAGGED:
        at, of = slice(first, first + query_key), slice(begin, begin + value_output)
        contexts.append(_softmax(block.scaling * query[:, at] @ key[:, at].T) @ value[:, of])
        first, begin = first + query_key, begin + value_output
    result = hidden + np.concatenate(contexts, axis=1) @ block.output_weight.T + block.output_bias
    assert run(path, waveform)[0, 0] == pytest.approx(result.mean(), abs=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("form", ["portable", "onnxruntime", "openvino", "tensorrt"])
@pytest.mark.parametrize("tokens", [TOKENS, 2])
def test_feed_forward_blocks_against_torch(tmp_path, tokens, form, precision):
    """Two blocks that feed one another, pre-norm with residual, by torch's own functions; 1024 channels are padded."""
    path = tmp_path / "blocks.onnx"
    export_blocks("feed-forward", 1024, tokens, WIDTH, 2, form, path, precision)
    generator = np.random.default_rng(0)
    hidden = torch.from_numpy(np.float32(0.02) * generator.standard_normal((tokens, WIDTH), dtype=np.float32))
    waveform = np.random.default_rng(1).standard_normal((1, WIDTH), dtype=np.float32)
    hidden = hidden + torch.from_numpy(waveform)
    for _ in range(2):
        block = random_feed_forward(1024, WIDTH, generator)
        norm, first, second = block.layernorm_after, block.mlp.fc1, block.mlp.fc2
        normed = functional.layer_norm(hidden, (WIDTH,), norm.weight, norm.bias, norm.eps)
        wide = functional.gelu(functional.linear(normed, first.weight, first.bias))
        hidden = hidden + functional.linear(wide, second.weight, second.bias)
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert (precision == "int8") == (kinds["QuantizeLinear"] > 0)
    assert run(path, waveform)[0, 0] == pytest.approx(float(hidden.mean()), abs=1e-5 if precision == "fp32" else 2e-3)


@pytest.mark.parametrize("form", ["portable", "onnxruntime", "openvino", "tensorrt"])
def test_a_feed_forward_block_has_the_operators_of_a_models_layer(tmp_path, slim, extractor, form):
    export_ast(slim, extractor, tmp_path / "model.onnx", form, input="features")
    model = onnx.load(tmp_path / "model.onnx")
    expected = Counter(n.op_type for n in model.graph.node if n.name.startswith("layers.1.mlp"))
    first = slim.audio_spectrogram_transformer.layers[1].mlp.fc1
    export_blocks("feed-forward", first.out_features, 40, first.in_features, 1, form, tmp_path / "blocks.onnx")
    nodes = onnx.load(tmp_path / "blocks.onnx").graph.node
    assert Counter(n.op_type for n in nodes if n.name.startswith("blocks.0.mlp")) == expected


@pytest.mark.parametrize("form", ["portable", "onnxruntime", "openvino", "tensorrt"])
def test_a_block_has_the_operators_of_a_models_layer(tmp_path, slim, extractor, form):
    """Layer 1 of the slim model has ragged heads; its attention nodes are a stack's, one for one."""
    export_ast(slim, extractor, tmp_path / "model.onnx", form, input="features")
    model = onnx.load(tmp_path / "model.onnx")
    expected = Counter(n.op_type for n in model.graph.node if n.name.startswith("layers.1.attention"))
    attention = slim.audio_spectrogram_transformer.layers[1].attention
    widths = list(zip(attention.query_key_widths, attention.value_output_widths))
    positions = next(w for w in model.graph.initializer if w.name == "patches.positions")
    export_blocks("ordinary", widths, positions.dims[0] + 2, positions.dims[1], 1, form, tmp_path / "blocks.onnx")
    nodes = onnx.load(tmp_path / "blocks.onnx").graph.node
    found = Counter(n.op_type for n in nodes if n.name.startswith("blocks.0") and not n.name.endswith("layernorm"))
    assert found == expected


@pytest.mark.parametrize("form", ["portable", "onnxruntime", "openvino", "tensorrt"])
@pytest.mark.parametrize("kind", ["ordinary", "last"])
@pytest.mark.parametrize("widths", [RAGGED, [(8, 8)] * 4, [(64, 64), (64, 64), (4, 4), (4, 6)], [(2, 17)]])
def test_groups_are_those_of_the_written_graph(tmp_path, kind, widths, form):
    """The projections' columns in the file are the groups' heads times their widths; so are the heads per group."""
    path, tokens, model_width = tmp_path / "blocks.onnx", 600, 256
    export_blocks(kind, widths, tokens, model_width, 1, form, path)
    sizes = {w.name: tuple(w.dims) for w in onnx.load(path).graph.initializer}
    groups = exported_groups(kind, widths, tokens, model_width, form)
    assert sorted(head for group in groups for head in group.heads) == list(range(len(widths)))
    query_key = sum(len(group.heads) * group.query_key_width for group in groups)
    value_output = sum(len(group.heads) * group.value_output_width for group in groups)
    assert sizes["blocks.0.query.weight"] == (model_width, query_key)
    assert sizes["blocks.0.output.weight"] == (value_output, model_width)
    softmaxes = sum(n.op_type in ("Softmax", "MultiHeadAttention") for n in onnx.load(path).graph.node)
    assert softmaxes == len(groups)
