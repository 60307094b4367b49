"""Graphs of blocks alone, built as the exporter builds a model's, to learn what heads and channels of them cost.

Dimension letters: T tokens, D model width, H heads, K per-head query/key width, V per-head value/output width.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from leanear.export.ast.graph import READ_TOKENS, WHOLE_LAST_ATTENTION, add_mlp
from leanear.export.onnx.attention import add_attention, add_first_tokens, add_reader_attention
from leanear.export.onnx.graph import Graph
from leanear.export.onnx.heads import GROUP_MACS, VECTOR_COLUMNS, Attention, HeadGroup, groups_in_form, together_in_form
from leanear.export.onnx.layers import add_layernorm
from leanear.export.onnx.observed import Observed, observe, tensors_to_observe
from leanear.export.onnx.static_eight_bit import add_static_products
from leanear.runtimes.files import replaced_file

KINDS = ("ordinary", "last")  # of attention
EXPORTER = {"version": 3, "group_macs": GROUP_MACS, "vector_columns": VECTOR_COLUMNS}
"""What changes when the exporter writes other blocks for the same widths: timings of other blocks are then stale.
The version is raised by hand when the exporter changes what a block is made of."""
EPSILON = 1e-12
WEIGHT_SPREAD = 0.02


def export_blocks(
    kind: str, widths: Sequence[tuple[int, int]] | int, tokens: int, model_width: int, copies: int, form: str,
    out: Path, precision: str = "fp32",
) -> None:  # fmt: skip
    """Write one ONNX file of `copies` blocks, each with its layer norm before and its residual behind.

    kind: "ordinary" blocks of attention feed one another, (T, D) in and out, as those of kind "feed-forward" do; blocks
    of kind "last" are attention for the tokens that the classifier reads, all from the same tokens. widths: (K, V) of
    every head, or how many hidden channels. Every copy has random weights of its own, so that a block's weights come
    from memory as they do in a model. The graph takes "waveform", float32 (1, D), which is added to every token, and
    gives "logits", float32 (1, 1): what every runtime here takes and gives. precision: "fp32", or "int8": products as a
    model's in 8 bits has them, in ranges that noise has.
    """
    arguments = (kind, widths, tokens, model_width, copies, form)
    if precision == "fp32":
        graph = _blocks(*arguments)
    else:
        with tempfile.TemporaryDirectory(prefix="leanear-observe-") as folder:
            plain, path = _blocks(*arguments), Path(folder, "fp32.onnx")
            names = tensors_to_observe(plain)
            _write(plain, model_width, path)
            noise = np.random.default_rng(1).standard_normal((1, model_width)).astype(np.float32)
            observed = observe(path, names, [{"waveform": noise}])
        graph = _blocks(*arguments, observed)
        add_static_products(graph, observed, form, lambda _: False)
    with replaced_file(Path(out)) as part:
        _write(graph, model_width, part)


def _write(graph: Graph, model_width: int, out: Path) -> None:
    source = helper.make_tensor_value_info("waveform", TensorProto.FLOAT, [1, model_width])
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1])
    graph.write(out, [source], [result], "blocks")


def _blocks(
    kind: str,
    widths: Sequence[tuple[int, int]] | int,
    tokens: int,
    model_width: int,
    copies: int,
    form: str,
    observed: Mapping[str, Observed] | None = None,
) -> Graph:
    """The graph of `export_blocks`."""
    generator = np.random.default_rng(0)
    graph = Graph()
    base = _random(generator, (tokens, model_width))
    hidden = graph.node("Add", ["waveform", graph.weight("tokens", base.shape, lambda: base)], "hidden")
    results = []
    for number in range(copies):
        name = f"blocks.{number}"
        if isinstance(widths, int):
            hidden = add_mlp(graph, hidden, random_feed_forward(widths, model_width, generator), form, name, observed)
            results = [hidden]
            continue
        attention = random_attention(widths, model_width, generator)
        normed = add_layernorm(graph, hidden, _random_norm(model_width, generator), f"{name}.layernorm")
        if kind == "ordinary":
            attended = add_attention(graph, normed, attention, form, tokens, name, observed)
            hidden = graph.node("Add", [attended, hidden], f"{name}.residual")
            results = [hidden]
        else:
            if form in WHOLE_LAST_ATTENTION:
                every = add_attention(graph, normed, attention, form, tokens, name)
                attended = add_first_tokens(graph, every, READ_TOKENS, f"{name}.readers")
            else:
                attended = add_reader_attention(graph, normed, attention, READ_TOKENS, name)
            read = add_first_tokens(graph, hidden, READ_TOKENS, f"{name}.read")
            results.append(graph.node("Add", [attended, read], f"{name}.residual"))
    together = results[0] if len(results) == 1 else graph.node("Concat", results, "results", axis=0)
    axes = graph.constant("mean.axes", np.array([0, 1], dtype=np.int64))
    graph.node("ReduceMean", [together, axes], "logits", keepdims=1)
    return graph


def exported_groups(
    kind: str, widths: Sequence[tuple[int, int]], tokens: int, model_width: int, form: str
) -> tuple[HeadGroup, ...]:
    """The groups of heads that the exported block computes, with the widths that they are filled up to.

    kind: as of `export_blocks`, or "cached", a block of a Whisper's decoder, whose keys and values are kept. There is
    none where there is no head.
    """
    if not widths:
        return ()
    query_key_widths, value_output_widths = zip(*widths, strict=True)
    if kind == "last" and form not in WHOLE_LAST_ATTENTION:
        return (together_in_form(query_key_widths, value_output_widths, "portable"),)
    if kind == "cached":
        return (together_in_form(query_key_widths, value_output_widths, form),)
    return groups_in_form(query_key_widths, value_output_widths, tokens, model_width, form)


def random_attention(widths: Sequence[tuple[int, int]], model_width: int, generator: np.random.Generator) -> Attention:
    """An attention block with random weights whose heads have these (K, V)."""
    query_key_widths, value_output_widths = (tuple(column) for column in zip(*widths, strict=True))
    query_key, value_output = sum(query_key_widths), sum(value_output_widths)
    return Attention(
        query_weight=_random(generator, (query_key, model_width)),
        key_weight=_random(generator, (query_key, model_width)),
        value_weight=_random(generator, (value_output, model_width)),
        output_weight=_random(generator, (model_width, value_output)),
        query_bias=_random(generator, (query_key,)),
        value_bias=_random(generator, (value_output,)),
        output_bias=_random(generator, (model_width,)),
        query_key_widths=query_key_widths,
        value_output_widths=value_output_widths,
        scaling=0.125,
    )


def random_feed_forward(width: int, model_width: int, generator: np.random.Generator) -> SimpleNamespace:
    """What the exporter reads of a layer with a feed-forward block of so many hidden channels, its weights random."""

    def linear(inputs: int, outputs: int) -> SimpleNamespace:
        weight, bias = (_parameter(_random(generator, shape)) for shape in ((outputs, inputs), (outputs,)))
        return SimpleNamespace(in_features=inputs, out_features=outputs, weight=weight, bias=bias)

    mlp = SimpleNamespace(fc1=linear(model_width, width), fc2=linear(width, model_width))
    return SimpleNamespace(layernorm_after=_random_norm(model_width, generator), mlp=mlp)


def _random_norm(width: int, generator: np.random.Generator) -> SimpleNamespace:
    weight, bias = 1.0 + _random(generator, (width,)), _random(generator, (width,))
    return SimpleNamespace(weight=_parameter(weight), bias=_parameter(bias), eps=EPSILON)


def _parameter(values: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(values)


def _random(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return WEIGHT_SPREAD * generator.standard_normal(shape, dtype=np.float32)
