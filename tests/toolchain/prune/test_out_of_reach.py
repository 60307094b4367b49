"""Goals that no model meets are refused before a clip is read: by arithmetic, the latency table, or one timing."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from leanear.cli.commands import run
from leanear.deploy import deployment_stages
from leanear.families import ast, whisper
from leanear.families.checkpoint import load_checkpoint
from leanear.prune import latency_goal, pruning
from leanear.prune.costs import parameter_costs
from leanear.prune.latency_goal import LatencyBound, latency_bound, refuse_out_of_reach
from leanear.prune.recipe import Goal
from leanear.prune.widths import RotatedRecipe, least_cost, narrowest_model
from leanear.runtimes.errors import BadInput
from leanear.targets.target import read_target
from leanear.timing.model_timing import timing_of
from tests.conftest import make_tiny_ast, write_tones
from tests.toolchain.recipes import recipe_flags
from tests.whisper_models import make_whisper

CPU = read_target("cpu")


@pytest.fixture
def data(tmp_path):
    return write_tones(tmp_path / "data", 4)


@pytest.fixture
def nothing_is_read(monkeypatch):
    for module in (pruning, deployment_stages):
        monkeypatch.setattr(module, "read_examples_for", lambda *_, **__: pytest.fail("a clip was read"))


@pytest.mark.parametrize(
    ("command", "goal", "recipe"),
    [
        ("prune", "--macs 0.1", ""),
        ("deploy", "--macs 0.1", ""),
        ("deploy", "--speedup 40", ""),
        ("prune", "--latency-ms 0.0001", ""),
        ("deploy", "--sparsity 0.999", 'method = "reference"'),
        ("prune", "--sparsity 0.9", 'method = "reference"\nscheme = "heads"'),
    ],
)
def test_no_clip_is_read_for_a_goal_out_of_reach(
    capsys, monkeypatch, tiny_folder, data, tmp_path, nothing_is_read, command, goal, recipe
):
    monkeypatch.setenv("LEANEAR_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    flags = [*goal.split(), *recipe_flags(tmp_path, recipe)]
    assert run([command, str(tiny_folder), "--data", str(data), "--out", str(out), *flags]) == 2
    (complaint,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("leanear: "))
    assert "out of reach" in complaint
    assert not out.exists()


@pytest.mark.parametrize(
    "recipe",
    [
        RotatedRecipe(),
        RotatedRecipe(whole_blocks=False),
        RotatedRecipe(multiples=(8, 8), one_width_per_head=True, whole_blocks=False),
    ],
)
def test_the_narrowest_model_is_the_one_of_least_cost(recipe):
    model = make_tiny_ast()
    narrowest = narrowest_model(ast, model, recipe)
    costs = parameter_costs(ast.dense_plan(model))
    removed = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in narrowest.parameters())
    assert costs.dense - removed == least_cost(ast.attention_sites(model), costs, recipe)
    left = () if recipe.whole_blocks else recipe.multiples[:1]
    for site in ast.attention_sites(narrowest):
        assert (site.query_key_widths, site.value_output_widths) == (left, left)
    assert torch.isfinite(ast.logits(narrowest, torch.zeros(1, 46, 128))).all()


def test_blocks_that_are_left_alone_stay_whole_in_the_narrowest_model():
    model = make_whisper()
    narrowest = narrowest_model(whisper, model, RotatedRecipe(sites="self-attention"))
    pairs = zip(whisper.attention_sites(model), whisper.attention_sites(narrowest), strict=True)
    for site, narrow in pairs:
        if site.kind == "cross":
            assert narrow.query_key_widths == site.query_key_widths
        else:
            assert narrow.query_key_widths == (() if site.kind == "encoder" else (4,))


@pytest.mark.parametrize(
    ("kind", "value", "refused"),
    [
        ("latency_ms", 9.1, False),
        ("latency_ms", 8.9, True),
        ("speedup", 2.19, False),
        ("speedup", 2.23, True),
        ("rtf", 0.0091, False),
        ("rtf", 0.0089, True),
    ],
)
def test_a_timing_may_err_by_a_tenth(monkeypatch, tiny_folder, kind, value, refused):
    monkeypatch.setattr(latency_goal, "latency_bound", lambda *_: LatencyBound(20.0, 10.0, 0.1))
    checkpoint, timing = load_checkpoint(tiny_folder), SimpleNamespace(audio_s=1.0)
    if not refused:
        refuse_out_of_reach(checkpoint, Goal(kind, value), CPU, RotatedRecipe(), timing)
        return
    with pytest.raises(BadInput, match="takes 10 ms on cpu, 2 times as fast as the dense one with 20 ms"):
        refuse_out_of_reach(checkpoint, Goal(kind, value), CPU, RotatedRecipe(), timing)


@pytest.mark.parametrize(("kind", "value"), [("latency_ms", 22.1), ("rtf", 0.0221)])
def test_a_goal_that_the_dense_model_meets_is_said_to_be_met(monkeypatch, tiny_folder, kind, value):
    monkeypatch.setattr(latency_goal, "latency_bound", lambda *_: LatencyBound(20.0, 10.0, 0.1))
    checkpoint, timing = load_checkpoint(tiny_folder), SimpleNamespace(audio_s=1.0)
    goal = Goal(kind, value)
    with pytest.raises(BadInput) as error:
        refuse_out_of_reach(checkpoint, goal, CPU, RotatedRecipe(), timing)
    said = "the dense model meets it already, with 20 of 22.1 ms: there is nothing to prune"
    assert str(error.value) == f"{goal.flag} {value:g}: {said}"


def test_the_bound_is_a_real_timing_of_both(monkeypatch, tiny_folder, tmp_path):
    monkeypatch.setenv("LEANEAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(latency_goal, "BOUND_SHARE_S", 0.1)
    checkpoint, target = load_checkpoint(tiny_folder), dataclasses.replace(CPU, threads=1)
    bound = latency_bound(checkpoint, target, RotatedRecipe(), timing_of(checkpoint, target, None))
    assert 0 < bound.narrowest_ms < 20 * bound.dense_ms
    assert bound.margin == latency_goal.BOUND_MARGIN
