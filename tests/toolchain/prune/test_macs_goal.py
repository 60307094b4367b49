"""What `--macs` promises is what a manifest counts, and that is what the graphs' own operators multiply."""

from __future__ import annotations

import json
import math
from pathlib import Path

import onnx
import pytest
import soundfile
from onnx import shape_inference

from leanear.cli.commands import run
from leanear.export.ast.graph import export_ast
from leanear.export.whisper.graph import export_whisper
from leanear.families import ast, whisper
from leanear.families.ast import AstCheckpoint
from leanear.families.checkpoint import load_checkpoint
from leanear.plan import HeadPlan, SitePlan
from leanear.prune.costs import mac_costs
from leanear.runtimes.windows import window_tokens
from tests.conftest import TINY_LABELS, make_tiny_ast
from tests.toolchain import whisper_pruning
from tests.toolchain.speech_folder import sound
from tests.toolchain.whisper_pruning import write_audio
from tests.whisper_models import write_whisper


def multiplied(path: Path, **sizes: int) -> int:
    """Multiply-accumulates of a graph's products and convolutions, from the shapes that ONNX infers.

    sizes: of the dimensions that have a name.
    """
    model = onnx.load(str(path))
    for tensor in model.graph.input:
        for dimension in tensor.type.tensor_type.shape.dim:
            if dimension.dim_param in sizes:
                dimension.dim_value = sizes[dimension.dim_param]
    del model.graph.output[:], model.graph.value_info[:]
    graph = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.value_info, *graph.input]:
        shapes[value.name] = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
    total = 0
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            total += math.prod(shapes[node.input[0]]) * shapes[node.input[1]][-1]
        elif node.op_type == "Conv":
            places = math.prod(shapes[node.output[0]]) if node.output[0] in shapes else 0
            assert places, node.name
            total += places * math.prod(shapes[node.input[1]][1:])
    assert total
    return total


def narrow(family, model, heads_kept: int, query_key: int, value_output: int):
    """The model whose blocks keep some heads, all of one width, so that its graphs have no padding."""
    sites = tuple(
        SitePlan(
            site.name,
            len(site.query_key_widths),
            tuple(HeadPlan(head, tuple(range(query_key)), tuple(range(value_output))) for head in range(heads_kept)),
            site.kind,
        )
        for site in family.attention_sites(model)
    )
    return family.slim_model(model, sites)


@pytest.mark.parametrize("kept", [None, (2, 5, 9), (1, 16, 3)])
@pytest.mark.parametrize("form", ["portable", "tensorrt"])
def test_an_ast_is_counted_as_its_graph(tiny_extractor, tmp_path, kept, form):
    dense = make_tiny_ast()
    checkpoint = AstCheckpoint(Path("tiny"), dense, tiny_extractor, TINY_LABELS)
    model = dense if kept is None else narrow(ast, dense, *kept)
    path = export_ast(model, tiny_extractor, tmp_path / "model.onnx", form).path
    assert ast.macs(checkpoint, model, form).total == multiplied(path, samples=16_000)


@pytest.mark.parametrize("kept", [None, (2, 5, 9), (1, 16, 3)])
def test_a_whisper_is_counted_as_its_graphs_step_by_step(tmp_path, kept):
    """The encoder once, and the decoder for every token of the window, each with one more token before it."""
    checkpoint = whisper_pruning.checkpoint()
    dense, extractor = checkpoint.model, checkpoint.feature_extractor
    model = dense if kept is None else narrow(whisper, dense, *kept)
    encoder, decoder = tmp_path / "encoder.onnx", tmp_path / "decoder.onnx"
    export_whisper(model, extractor, encoder, decoder)
    tokens = window_tokens(whisper.decoding_settings(checkpoint))
    assert tokens == 7, "of a window of 2 s"
    steps = [
        multiplied(decoder, rows=1, windows=1, new=1, room=before, room_and_new=before + 1) for before in range(tokens)
    ]
    assert whisper.macs(checkpoint, model).total == multiplied(encoder, samples=32_000) + sum(steps)


def write_ast(folder: Path, extractor) -> tuple[Path, Path]:
    """A tiny AST and clips of its labels."""
    make_tiny_ast().save_pretrained(folder / "model")
    extractor.save_pretrained(folder / "model")
    (folder / "data").mkdir()
    rows = ["file_name,label"]
    for number in range(24):
        soundfile.write(folder / "data" / f"{number}.wav", sound(number, 0.2), 16_000)
        rows.append(f"{number}.wav,{TINY_LABELS[number % len(TINY_LABELS)]}")
    (folder / "data" / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder / "model", folder / "data"


def exported_macs(model: Path, out: Path) -> int:
    """What the manifest of a checkpoint's artifact counts."""
    assert run(["export", str(model), "--out", str(out)]) == 0
    return json.loads((out / "manifest.json").read_text())["model"]["macs"]


@pytest.mark.parametrize("family", [ast, whisper])
@pytest.mark.parametrize("prune", ["attention", "all"])
def test_the_goal_is_what_the_manifests_count(tiny_extractor, tmp_path, family, prune, capsys):
    if family is ast:
        model, data = write_ast(tmp_path, tiny_extractor)
    else:
        model, data = write_whisper(tmp_path / "model"), write_audio(tmp_path / "data", 24)
    goal = 0.8
    arguments = ["--data", str(data), "--calibration-clips", "12", "--macs", str(goal), "--prune", prune]
    assert run(["prune", str(model), *arguments, "--out", str(tmp_path / "slim")]) == 0, capsys.readouterr().err
    checkpoint = load_checkpoint(model)
    dense, slim = exported_macs(model, tmp_path / "a"), exported_macs(tmp_path / "slim", tmp_path / "b")
    plan = family.dense_plan(checkpoint.model)
    costs = mac_costs(plan, family.macs(checkpoint, checkpoint.model))
    assert costs.dense == dense
    width, step = plan.dense_head_width, 8
    one_step = max(head(width, width) - head(width - step, width - step) for head in costs.heads)
    assert goal * dense - one_step <= slim <= goal * dense
