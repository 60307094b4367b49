"""What `--macs` promises is what a manifest counts, and that is what the graphs' own operators multiply."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile

from leanear.cli.commands import run
from leanear.export.ast.graph import export_ast
from leanear.export.whisper.graph import export_whisper
from leanear.families import ast, whisper
from leanear.families.ast import AstCheckpoint
from leanear.families.checkpoint import load_checkpoint
from leanear.plan import HeadPlan, SitePlan
from leanear.prune.costs import mac_costs
from leanear.runtimes.speech.encoder_windows import window_tokens
from tests.conftest import TINY_LABELS, make_tiny_ast, write_tiny
from tests.toolchain import whisper_pruning
from tests.toolchain.recipes import recipe_flags
from tests.toolchain.speech_folder import sound
from tests.toolchain.whisper_pruning import write_audio
from tests.whisper_models import write_whisper

pytestmark = pytest.mark.usefixtures("measured_here")


def multiplied(path: Path, **sizes: int) -> int:
    """Multiply-accumulates of a graph's products and convolutions, from the shapes that its tensors have when it runs.

    sizes: of the dimensions that have a name.
    """
    model = onnx.load(str(path))
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    assert products
    given = {}
    for tensor in model.graph.input:
        kind = tensor.type.tensor_type
        shape = [each.dim_value or sizes[each.dim_param] for each in kind.shape.dim]
        given[tensor.name] = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    wanted = {name for node in products for name in (*node.input[:2], node.output[0])} - {*shapes, *given}
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in sorted(wanted - known))
    onnx.save_model(model, str(path.with_suffix(".all")))
    session = onnxruntime.InferenceSession(str(path.with_suffix(".all")))
    names = sorted(wanted)
    found = session.run(names, given)
    shapes |= {name: list(value.shape) for name, value in zip(names, found)}
    shapes |= {name: list(value.shape) for name, value in given.items()}
    total = 0
    for node in products:
        inner = shapes[node.input[1]][1:] if node.op_type == "Conv" else shapes[node.input[0]][-1:]
        total += math.prod(shapes[node.output[0]]) * math.prod(inner)
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


@pytest.mark.parametrize(
    ("form", "kept"),
    [
        ("portable", None),
        ("portable", (2, 5, 9)),
        ("portable", (1, 16, 3)),
        ("tensorrt", None),
        ("tensorrt", (1, 16, 16)),
    ],
)
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


def write_ast(folder: Path) -> tuple[Path, Path]:
    """A tiny AST and clips of its labels."""
    write_tiny(folder / "model")
    (folder / "data").mkdir()
    rows = ["file_name,label"]
    for number in range(24):
        soundfile.write(folder / "data" / f"{number}.wav", sound(number, 0.2), 16_000)
        rows.append(f"{number}.wav,{TINY_LABELS[number % len(TINY_LABELS)]}")
    (folder / "data" / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder / "model", folder / "data"


def exported_macs(model: Path, data: Path, out: Path) -> int:
    """What the manifest of a checkpoint's artifact counts."""
    assert run(["export", str(model), "--data", str(data), "--out", str(out)]) == 0
    return json.loads((out / "manifest.json").read_text())["model"]["macs"]


@pytest.mark.parametrize(("family", "goal"), [(ast, 0.985), (whisper, 0.965)])  # most is the front end, which stays
@pytest.mark.parametrize("prune", ["attention", "all"])
def test_the_goal_is_what_the_manifests_count(tmp_path, family, goal, prune, capsys):
    if family is ast:
        model, data = write_ast(tmp_path)
    else:
        model, data = write_whisper(tmp_path / "model"), write_audio(tmp_path / "data", 24)
    arguments = ["--data", str(data), "--calibration-clips", "12", "--macs", str(goal), "--prune", prune]
    # fits of a random model on a few clips round badly
    arguments += recipe_flags(tmp_path, "shots = 1\ncompensate = false\n")
    assert run(["prune", str(model), *arguments, "--out", str(tmp_path / "slim")]) == 0, capsys.readouterr().err
    checkpoint = load_checkpoint(model)
    dense, slim = (
        exported_macs(each, data, tmp_path / name) for each, name in ((model, "a"), (tmp_path / "slim", "b"))
    )
    plan = family.dense_plan(checkpoint.model)
    costs = mac_costs(plan, family.macs(checkpoint, checkpoint.model))
    assert costs.dense == dense
    width, step = plan.dense_head_width, 8
    one_step = max(head(width, width) - head(width - step, width - step) for head in costs.heads)
    assert goal * dense - one_step <= slim <= goal * dense
