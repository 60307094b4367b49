"""One width per head: the best of all such allocations, of just the size that the graph for TensorRT has."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from transformers import ASTConfig

import leanear.export.onnx.heads
from leanear.cli.commands import run
from leanear.export.ast.front_end import read_front_end
from leanear.export.ast.graph import export_ast
from leanear.export.macs import count_macs
from leanear.export.whisper.graph import export_whisper
from leanear.families import ast, whisper
from leanear.prune.costs import Costs, mac_costs, parameter_costs, unfilled_blocks, without_filled
from leanear.prune.document import Widths, read_pruning
from leanear.prune.notes import pruning_notes
from leanear.prune.scoring import Scores, score_widths
from leanear.prune.widths import RotatedRecipe, choose_widths, cut
from leanear.runtimes.errors import BadInput
from tests.conftest import make_tiny_ast, write_tones
from tests.export.test_macs import _graph_macs as graph_macs
from tests.toolchain import whisper_pruning
from tests.toolchain.prune.test_rotated import clips
from tests.toolchain.recipes import recipe_flags
from tests.whisper_models import make_extractor, make_whisper

HEADS, WIDTH = 2, 48
ONE_WIDTH = RotatedRecipe(
    losses="infinitesimal", multiples=(16, 16), one_width_per_head=True, pools="by-kind", whole_blocks=False, chunk=4
)
TWO_WIDTHS = RotatedRecipe(multiples=(16, 16), chunk=4)
DRAWN = np.random.default_rng(5).choice([16, 32, 48], (40, 3))


@pytest.fixture(params=[0, 10**12], ids=["groups are free", "groups are dear"])
def group_macs(request, monkeypatch) -> int:
    monkeypatch.setattr(leanear.export.onnx.heads, "FUSED_GROUP_MACS", request.param)
    return request.param


def prepared(family) -> tuple[Any, Scores, int, float]:
    """A tiny dense model, its scores, what a head of K and V has of parameters, and how many targets a clip has."""
    if family is whisper:
        dense, given = make_whisper(head_width=WIDTH, heads=HEADS), whisper_pruning.clips(8)
        per_width = 2 * (2 * WIDTH * HEADS) + 2  # no key bias
        targets = int((given.targets >= 0).sum()) / 8
    else:
        dense, given = make_tiny_ast(WIDTH, HEADS, 3), clips(8)
        per_width, targets = 2 * (2 * WIDTH * HEADS) + 3, 1
    return dense, score_widths(family, dense, given, ONE_WIDTH.scoring, made_from={}), per_width, targets


def held_costs(family, dense, costs: Costs | None = None) -> Costs:
    costs = parameter_costs(family.dense_plan(dense)) if costs is None else costs
    return without_filled(costs, unfilled_blocks(family, dense, "tensorrt"))


def damage(basis, head: int, width: int) -> float:
    """Of a head that keeps its first channels: half the mean square of what the others' derivatives add up to."""
    dropped = basis.value_output[:, head, width:].sum(1)
    if width:
        dropped = dropped + basis.query_key[:, head, width:].sum(1)
    return 0.5 * float((dropped**2).mean())


def best_by_enumeration(sites, bases, per_width: int, budget: float, may_differ) -> float:
    """The least damage of all widths 0, 16, 32 or 48 of every head, a head at least kept in every block."""
    blocks = []
    for site in sites:
        choices = [c for c in itertools.product((0, 16, 32, WIDTH), repeat=HEADS) if any(c)]
        if not may_differ(site):
            choices = [c for c in choices if len(set(c) - {0}) == 1]
        blocks.append(
            [
                (per_width * sum(c), sum(damage(bases[site.name], head, width) for head, width in enumerate(c)))
                for c in choices
            ]
        )
    sums = (np.sum(chosen, axis=0) for chosen in itertools.product(*blocks))
    return min(lost for cost, lost in sums if cost <= budget)


@pytest.mark.parametrize("family", [ast, whisper], ids=["ast", "whisper"])
def test_the_best_of_all_allocations_with_one_width_per_head(family, group_macs):
    dense, scores, per_width, targets = prepared(family)
    sites = family.attention_sites(dense)

    def may_differ(site) -> bool:
        return group_macs == 0 and site.kind == "encoder"

    differs = False
    kinds = {site.kind for site in sites}
    for share in (0.25, 0.4, 0.5, 0.6, 0.8):
        costs = held_costs(family, dense)
        found = choose_widths(sites, scores.losses, costs, share * costs.dense, ONE_WIDTH)
        expected = 0.0
        for kind in kinds:
            of_kind = [site for site in sites if site.kind == kind]
            budget = share * per_width * WIDTH * HEADS * len(of_kind)
            expected += best_by_enumeration(of_kind, scores.bases, per_width, budget, may_differ) / targets
        assert found.damage == pytest.approx(expected, rel=1e-5)
        assert found.cost == per_width * sum(k for widths in found.widths for k, _ in widths) <= share * costs.dense
        assert all(k == v and k in (0, 16, 32, 48) for widths in found.widths for k, v in widths)
        differs |= any(len(set(widths) - {(0, 0)}) > 1 for widths in found.widths)
    assert differs == (group_macs == 0), "heads are of unlike widths only where that fills no head up"


def attention_values(paths: list[Path]) -> int:
    """How many values of attention's weights the graphs hold, those of zero too."""
    count = 0
    for path in paths:
        for tensor in onnx.load(str(path), load_external_data=False).graph.initializer:
            of_attention = "attention." in tensor.name or "_attn." in tensor.name
            count += int(np.prod(tensor.dims)) if of_attention and tensor.name.endswith(".weight") else 0
    return count


def exported_values(family, slim, extractor, folder: Path) -> int:
    if family is whisper:
        paths = [folder / "encoder.onnx", folder / "decoder.onnx"]
        export_whisper(slim, make_extractor(), *paths, "tensorrt", "fp16")
        return attention_values(paths)
    return attention_values([export_ast(slim, extractor, folder / "model.onnx", "tensorrt", precision="fp16").path])


@pytest.mark.parametrize("family", [ast, whisper], ids=["ast", "whisper"])
def test_the_graph_of_a_plan_with_one_width_per_head_has_no_padding(family, group_macs, tmp_path, tiny_extractor):
    dense, scores, *_ = prepared(family)
    sites = family.attention_sites(dense)
    costs = held_costs(family, dense)
    for share in (0.35, 0.5, 0.6):
        allocation = choose_widths(sites, scores.losses, costs, share * costs.dense, ONE_WIDTH)
        slim, plan = cut(family, dense, scores.bases, allocation)
        kept = 2 * WIDTH * HEADS * sum(sum(s.query_key_widths) + sum(s.value_output_widths) for s in plan)
        assert exported_values(family, slim, tiny_extractor, tmp_path) == kept
    uneven = parameter_costs(family.dense_plan(dense))
    allocation = choose_widths(sites, scores.losses, uneven, 0.5 * costs.dense, TWO_WIDTHS)
    slim, plan = cut(family, dense, scores.bases, allocation)
    kept = 2 * WIDTH * HEADS * sum(sum(s.query_key_widths) + sum(s.value_output_widths) for s in plan)
    assert exported_values(family, slim, tiny_extractor, tmp_path) > kept, "two widths per head are filled up"


@pytest.mark.parametrize("start", [0, 2_000_000, 10**12])
def test_blocks_that_are_filled_up_are_those_whose_graph_is_larger(start, monkeypatch, tmp_path, tiny_extractor):
    monkeypatch.setattr(leanear.export.onnx.heads, "FUSED_GROUP_MACS", start)
    dense = make_tiny_ast(48, 3, 2)
    site, found = ast.attention_sites(dense)[0], set()
    for drawn in DRAWN[:12].tolist():
        widths = tuple((width, width) for width in drawn)
        slim = ast.slim_model(dense, [_keeping(site.name, widths), _keeping(site.name, widths)])
        path = export_ast(slim, tiny_extractor, tmp_path / "model.onnx", "tensorrt").path
        for layer, unfilled in enumerate(unfilled_blocks(ast, dense, "tensorrt")):
            held = sum(
                int(np.prod(tensor.dims))
                for tensor in onnx.load(str(path)).graph.initializer
                if tensor.name.startswith(f"layers.{layer}.attention") and tensor.name.endswith(".weight")
            )
            assert unfilled(widths) == (held == 4 * 144 * sum(drawn))
            assert unfilled(widths) == unfilled(widths[::-1])
            found.add(unfilled(widths))
    assert found == ({True} if start == 0 else {True, False})


def test_at_the_size_of_ast_base_no_head_is_filled_up_to_another():
    model = SimpleNamespace(config=ASTConfig())
    for unfilled in unfilled_blocks(ast, model, "tensorrt"):
        assert unfilled(((16, 16), (32, 32), (64, 64), (64, 64)))
        assert unfilled(((16, 16),) + ((32, 32),) * 11)


def test_the_last_block_of_other_forms_is_filled_up_to_its_widest():
    *_, last = unfilled_blocks(ast, make_tiny_ast(48, 3, 2), "portable")
    assert last(((16, 16), (16, 16)))
    assert not last(((16, 16), (32, 32)))


def _keeping(name, widths):
    from leanear.plan import HeadPlan, SitePlan

    heads = tuple(HeadPlan(h, tuple(range(k)), tuple(range(v))) for h, (k, v) in enumerate(widths))
    return SitePlan(name, len(widths), heads)


def test_multiply_accumulates_are_those_of_the_graph(group_macs, tiny_extractor, tmp_path):
    dense, scores, *_ = prepared(ast)
    sites = ast.attention_sites(dense)
    macs = mac_costs(ast.dense_plan(dense), count_macs(dense, read_front_end(tiny_extractor), form="tensorrt"))
    costs = held_costs(ast, dense, macs)
    allocation = choose_widths(sites, scores.losses, costs, 0.8 * costs.dense, ONE_WIDTH)
    slim, _ = cut(ast, dense, scores.bases, allocation)
    path = export_ast(slim, tiny_extractor, tmp_path / "model.onnx", "tensorrt").path
    slim_macs = count_macs(slim, read_front_end(tiny_extractor), form="tensorrt").total
    assert graph_macs(path) == allocation.cost == slim_macs <= 0.8 * costs.dense


def test_many_heads_take_all_their_counts_into_account_in_moments():
    """Heads of Whisper large: 20 of 64, whose 10,626 blocks are all looked at."""
    from leanear.prune.allocation.allocate import HeadOptions, allocate

    generator = np.random.default_rng(0)
    widths = np.array([0, 16, 32, 48, 64])
    heads = []
    for _ in range(20):
        damages = np.cumsum(generator.gamma(0.3, size=5))[::-1]
        heads.append(HeadOptions(widths, widths, widths.astype(float), damages - damages[-1]))

    def two_widths_at_most(kept) -> float:
        return sum(k for k, _ in kept) if len(set(kept)) <= 2 else float("inf")

    best = allocate([heads], 640.0, ragged=[two_widths_at_most])
    assert len(set(best.widths[0]) - {(0, 0)}) <= 2
    by_pairs = []
    for first, second in itertools.combinations((16, 32, 48, 64), 2):
        places = [0, int(first // 16), int(second // 16)]
        fewer = [HeadOptions(w.query_key_widths[places], w.value_output_widths[places], w.costs[places],
                             w.damages[places]) for w in heads]  # fmt: skip
        by_pairs.append(allocate([fewer], 640.0).damage)
    assert best.damage == pytest.approx(min(by_pairs), rel=1e-9)


# On the command line


@pytest.fixture
def data(tmp_path) -> Path:
    return write_tones(tmp_path / "clips", 4)


def prune(capsys, model, data, out, *flags) -> dict:
    assert run(["prune", str(model), "--data", str(data), "--out", str(out), "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_target_says_one_width_and_a_recipe_says_otherwise(capsys, tiny_folder, data, tmp_path):
    ours = (
        'description = "mine"\nruntime = "onnxruntime"\ngraph_form = "onnxruntime"\nprecision = "fp32"\nthreads = 1\n'
    )
    ours += "one_width_per_head = true\nquery_key_multiple = 2\nvalue_output_multiple = 2\n"
    (tmp_path / "own.toml").write_text(ours)
    target = ["--target", str(tmp_path / "own.toml"), "--sparsity", "0.45"]
    found = prune(capsys, tiny_folder, data, tmp_path / "one", *target)
    plan = json.loads((tmp_path / "one" / "plan.json").read_text())
    assert plan["recipe"]["one_width_per_head"] is True
    heads = [head for site in plan["sites"] for head in site["heads"]]
    assert all(head["query_key"] == head["value_output"] for head in heads)
    pruning = read_pruning(tmp_path / "one")
    assert found["pruning"]["widths"] == {"multiples": [2, 2], "one_per_head": True, "not_filled_up_by": None}
    assert pruning.widths == Widths((2, 2), one_per_head=True, not_filled_up_by=None)
    assert "Query/key and value/output width of a head are one, a multiple of 2." in pruning_notes(pruning, {})
    prune(capsys, tiny_folder, data, tmp_path / "two", *target, *recipe_flags(tmp_path, "one_width_per_head = false"))
    plan = json.loads((tmp_path / "two" / "plan.json").read_text())
    assert any(head["query_key"] != head["value_output"] for site in plan["sites"] for head in site["heads"])
    prune(
        capsys,
        tiny_folder,
        data,
        tmp_path / "again",
        *recipe_flags(tmp_path, "one_width_per_head = true"),
        "--sparsity",
        "0.45",
    )
    plan = json.loads((tmp_path / "again" / "plan.json").read_text())
    assert all(head["query_key"] == head["value_output"] for site in plan["sites"] for head in site["heads"])


def test_a_target_for_tensorrt_is_counted_as_its_graph_holds_it(capsys, tiny_folder, data, tmp_path):
    prune(capsys, tiny_folder, data, tmp_path / "slim", "--target", "rtx", "--sparsity", "0.4")
    pruning = read_pruning(tmp_path / "slim")
    assert pruning.widths == Widths((16, 16), one_per_head=True, not_filled_up_by="tensorrt")
    assert json.loads((tmp_path / "slim" / "plan.json").read_text())["recipe"]["not_filled_up_by"] == "tensorrt"
    (note,) = (said for said in pruning_notes(pruning, {}) if "width of a head" in said)
    assert "fills no head up" in note


def test_multiples_of_one_width_are_one_and_those_of_the_graph(capsys, tiny_folder, data, tmp_path):
    for text, message in (
        ('graph_form = "onnxruntime"\nruntime = "onnxruntime"\nquery_key_multiple = 8\n', "multiples of 8 and of 4"),
        ('graph_form = "tensorrt"\nruntime = "tensorrt"\n', "choose among these"),
    ):
        path = tmp_path / "own.toml"
        path.write_text(f'description = "mine"\nprecision = "fp32"\nthreads = 1\n{text}')
        arguments = [
            "prune",
            str(tiny_folder),
            "--data",
            str(data),
            "--target",
            str(path),
            "--out",
            str(tmp_path / "out"),
        ]
        assert run([*arguments, *recipe_flags(tmp_path, "one_width_per_head = true")]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(BadInput, match="multiples of 4 and of 8"):
        RotatedRecipe(multiples=(4, 8), one_width_per_head=True)
