"""Feed-forward channels through the product: allocation, cut, zeroed dense twin, checkpoint, plan, graph."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import onnxruntime
import pytest
import torch
from scipy import optimize

from leanear.export.ast.graph import FORMS, export_ast
from leanear.export.macs import count_macs
from leanear.families import ast, whisper
from leanear.plan import FIRST_PLAN_SCHEMA, FeedForwardPlan, read_plan, write_plan
from leanear.prune.allocation.allocate import BlockOptions, HeadOptions, allocate
from leanear.prune.costs import mac_costs, parameter_costs
from leanear.prune.rotated import prune_rotated
from leanear.prune.scoring import score_widths
from leanear.prune.widths import RotatedRecipe, choose_widths, cut, kept_channels, least_cost, narrowest_model
from leanear.runtimes.errors import BadInput
from tests.conftest import make_tiny_ast
from tests.toolchain.prune.test_rotated import clips
from tests.toolchain.whisper_pruning import checkpoint as whisper_checkpoint
from tests.toolchain.whisper_pruning import clips as whisper_clips

ALL = RotatedRecipe(multiples=(4, 4), chunk=4, prune="all", feed_forward_multiple=8)
ONLY = dataclasses.replace(ALL, prune="feed-forward")


def costs_of(family, model, recipe):
    return parameter_costs(dataclasses.replace(family.dense_plan(model), prune=recipe.prune))


def pruned(recipe=ALL, share=0.5):
    model = make_tiny_ast()
    costs = costs_of(ast, model, recipe)
    return model, costs, prune_rotated(ast, model, clips(), costs, share * costs.dense, recipe)


@pytest.mark.parametrize("recipe", [ALL, ONLY], ids=["all", "feed-forward"])
@pytest.mark.parametrize("share", [0.4, 0.7])
def test_the_plan_is_within_its_budget_and_counts_what_the_model_has(recipe, share):
    model, costs, found = pruned(recipe, share)
    gone = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in found.model.parameters())
    assert gone == found.plan.parameters_removed >= (1 - share) * costs.dense * (1 - 1e-9)
    assert found.plan.sparsity == pytest.approx(gone / costs.dense)
    assert [len(block.channels) for block in found.plan.feed_forward] == [
        site.width for site in ast.feed_forward_sites(found.model)
    ]
    if recipe is ONLY:
        assert found.plan.attention_parameters_kept == found.plan.attention_parameters_dense


def test_macs_of_the_plan_are_those_of_the_model():
    model = make_tiny_ast()
    plan = dataclasses.replace(ast.dense_plan(model), prune="all")
    costs = mac_costs(plan, count_macs(model))
    found = prune_rotated(ast, model, clips(), costs, 0.7 * costs.dense, ALL)
    assert found.cost == count_macs(found.model).total <= 0.7 * count_macs(model).total


@pytest.mark.parametrize("sites", ["all", "encoder"])
def test_whisper_macs_of_the_plan_are_those_of_the_model(sites):
    checkpoint = whisper_checkpoint()
    model, recipe = checkpoint.model, dataclasses.replace(ALL, sites=sites)
    plan = dataclasses.replace(whisper.dense_plan(model), prune="all")
    costs = mac_costs(plan, whisper.macs(checkpoint, model))
    found = prune_rotated(whisper, model, whisper_clips(6), costs, 0.98 * costs.dense, recipe)
    slim, dense = (whisper.macs(checkpoint, each) for each in (found.model, model))
    assert found.cost == slim.total <= 0.98 * dense.total
    assert {block.kind for block in found.plan.feed_forward} == {"encoder", "decoder"}
    assert any(len(block.channels) < block.dense_width for block in found.plan.feed_forward)
    smaller = {kind for kind, macs in dense.by_kind.items() if slim.by_kind[kind] < macs}
    assert smaller == ({"encoder"} if sites == "encoder" else {"encoder", "cross_keys_values", "decoder"})
    narrowest = whisper.macs(checkpoint, narrowest_model(whisper, model, recipe)).total
    assert least_cost(whisper.attention_sites(model), costs, recipe) == narrowest


def test_a_dense_twin_with_zeroed_channels_is_the_slim_model():
    """Dense shapes: rows of the first layer zeroed, the second's weights scattered back; GELU of zero is zero."""
    model, _, found = pruned(ONLY)
    twin = make_tiny_ast()
    for site, slim, plan in zip(
        ast.feed_forward_sites(twin), ast.feed_forward_sites(found.model), found.plan.feed_forward, strict=True
    ):
        gone = torch.ones(site.width, dtype=torch.bool)
        gone[list(plan.channels)] = False
        with torch.no_grad():
            site.first.weight[gone], site.first.bias[gone] = 0.0, 0.0
            site.second.weight.zero_()
            site.second.weight[:, ~gone] = slim.second.weight
            site.second.bias.copy_(slim.second.bias)
            assert torch.equal(site.first.weight[~gone], slim.first.weight)
    inputs = clips().inputs
    with torch.no_grad():
        torch.testing.assert_close(ast.logits(found.model, inputs), ast.logits(twin, inputs), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(ast.logits(found.model, inputs), ast.logits(model, inputs), atol=1e-3)


def without_a_block():
    """A model whose first feed-forward block is gone, and the dense one."""
    model = make_tiny_ast()
    scores = score_widths(ast, model, clips(), ONLY.scoring, made_from={})
    costs = costs_of(ast, model, ONLY)
    whole = choose_widths(ast.attention_sites(model), scores.losses, costs, costs.dense, ONLY)
    allocation = dataclasses.replace(whole, feed_forward={"layers.0.feed_forward": 0, "layers.1.feed_forward": 24})
    slim, _ = cut(ast, model, scores.bases, allocation)
    return model, slim, kept_channels(ast, model, scores.bases, allocation), scores


def test_a_block_that_is_gone_is_the_identity_plus_its_mean():
    model, slim, kept, scores = without_a_block()
    assert [len(block.channels) for block in kept] == [0, 24]
    seen = {}
    block = model.audio_spectrogram_transformer.layers[0].mlp
    hook = block.register_forward_hook(lambda _module, _inputs, output: seen.__setitem__("output", output))
    with torch.no_grad():
        ast.logits(model, clips().inputs)
    hook.remove()
    states = torch.randn(2, 3, 32)
    left = slim.audio_spectrogram_transformer.layers[0].mlp(states)
    assert torch.equal(left, left[:1, :1].expand_as(left))
    mean = (
        scores.bases["layers.0.feed_forward"].mean.numpy()
        @ block.fc2.weight.detach().double().numpy()[:, scores.bases["layers.0.feed_forward"].order.numpy()].T
        + block.fc2.bias.detach().double().numpy()
    )
    np.testing.assert_allclose(left[0, 0].detach().numpy(), mean, rtol=1e-4, atol=1e-5)
    spread = seen["output"].flatten(0, 1).std(dim=0)
    assert torch.all((left[0, 0] - seen["output"].flatten(0, 1).mean(dim=0)).abs() < spread)


@pytest.mark.parametrize("form", FORMS)
def test_graphs_compute_what_a_model_with_a_narrow_and_a_missing_block_computes(form, tiny_extractor, tmp_path):
    _, slim, _, _ = without_a_block()
    exported = export_ast(slim, tiny_extractor, tmp_path / "model.onnx", form)
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    clip = np.random.default_rng(2).normal(size=8000).astype(np.float32) * 0.1
    features = tiny_extractor(clip, sampling_rate=16000, return_tensors="pt")["input_values"]
    with torch.no_grad():
        expected = slim(features).logits.numpy()
    found = session.run(None, {"waveform": clip[None]})[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_the_slim_checkpoint_opens_as_it_was_written(tiny_folder, tmp_path):
    source = ast.load_checkpoint(tiny_folder)
    found = prune_rotated(
        ast, source.model, clips(), costs_of(ast, source.model, ALL), 0.5 * costs_of(ast, source.model, ALL).dense, ALL
    )
    ast.save_slim_checkpoint(found.model, source, found.plan, tmp_path / "slim")
    again = ast.load_checkpoint(tmp_path / "slim")
    with torch.no_grad():
        assert torch.equal(ast.logits(again.model, clips().inputs), ast.logits(found.model, clips().inputs))
    assert read_plan(tmp_path / "slim" / "plan.json") == found.plan


def test_a_plan_of_the_first_schema_is_read_with_its_feed_forward_blocks_whole(tmp_path):
    plan = ast.dense_plan(make_tiny_ast())
    write_plan(tmp_path / "plan.json", plan)
    value = json.loads((tmp_path / "plan.json").read_text())
    value["schema"] = FIRST_PLAN_SCHEMA
    del value["feed_forward"], value["prune"], value["feed_forward_parameters"]
    (tmp_path / "plan.json").write_text(json.dumps(value))
    assert read_plan(tmp_path / "plan.json") == dataclasses.replace(plan, feed_forward=())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prune": "everything"}, "prune is 'everything', expected one of attention, feed-forward, all"),
        ({"feed_forward": [{"name": "a"}]}, r"missing key 'feed_forward\[0\].dense_width'"),
        (
            {"feed_forward": [{"name": "a", "dense_width": 4, "channels": [3, 9], "kind": "encoder"}]},
            "a channels must be a non-empty ascending list of indices below 4",
        ),
    ],
)
def test_a_damaged_plan_is_refused(change, words, tmp_path):
    write_plan(tmp_path / "plan.json", ast.dense_plan(make_tiny_ast()))
    value = json.loads((tmp_path / "plan.json").read_text()) | change
    (tmp_path / "plan.json").write_text(json.dumps(value))
    with pytest.raises(BadInput, match=words):
        read_plan(tmp_path / "plan.json")


def drawn_options(seed: int):
    generator = np.random.default_rng(seed)
    heads = [
        HeadOptions(
            np.array([0, 4, 8]), np.array([0, 4, 8]), np.array([0.0, 3.0, 7.0]),
            np.sort(generator.uniform(0, 1, 3))[::-1].copy(),
        )
        for _ in range(2)
    ]  # fmt: skip
    blocks = [
        BlockOptions(
            f"b{number}", np.array([0, 8, 16, 24]), np.array([0.0, 2.0, 4.0, 6.0]),
            np.sort(generator.uniform(0, 1, 4))[::-1].copy(),
        )
        for number in range(3)
    ]  # fmt: skip
    return heads, blocks


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget", [5.0, 11.0, 17.5])
def test_one_budget_is_shared_as_brute_force_and_milp_share_it(seed, budget):
    heads, blocks = drawn_options(seed)
    found = allocate([heads], budget, blocks=blocks)
    groups = [(h.costs, h.damages) for h in heads] + [(b.costs, b.damages) for b in blocks]
    best = min(
        sum(damages[place] for (_, damages), place in zip(groups, places, strict=True))
        for places in itertools.product(*(range(len(costs)) for costs, _ in groups))
        if sum(costs[place] for (costs, _), place in zip(groups, places, strict=True)) <= budget
        and any(places[:2])  # one head at least stays
    )
    assert found.damage == pytest.approx(best)
    assert found.cost <= budget
    costs, damages = (np.concatenate(column) for column in zip(*groups, strict=True))
    sizes = [len(costs) for costs, _ in groups]
    starts = np.cumsum([0, *sizes])
    one_of_each = np.zeros((len(groups), len(costs)))
    for row, (start, size) in enumerate(zip(starts, sizes, strict=False)):
        one_of_each[row, start : start + size] = 1
    a_head = np.zeros(len(costs))
    a_head[[starts[0], starts[1]]] = 1  # removals
    result = optimize.milp(
        damages,
        constraints=[
            optimize.LinearConstraint(one_of_each, 1, 1),
            optimize.LinearConstraint(costs[None], -np.inf, budget),
            optimize.LinearConstraint(a_head[None], 0, 1),
        ],
        integrality=np.ones(len(costs)),
        bounds=optimize.Bounds(0, 1),
    )
    assert found.damage == pytest.approx(result.fun)
    assert found.feed_forward.keys() == {"b0", "b1", "b2"}


def test_blocks_alone_share_a_budget():
    _, blocks = drawn_options(1)
    assert allocate([], 100.0, blocks=blocks).feed_forward == {"b0": 24, "b1": 24, "b2": 24}
    assert set(allocate([], 0.0, blocks=blocks).feed_forward.values()) == {0}


def test_what_feed_forward_blocks_cannot_have_is_refused():
    with pytest.raises(BadInput, match="finite losses alone"):
        RotatedRecipe(prune="all", losses="infinitesimal")
    with pytest.raises(BadInput, match="feed_forward_multiple is 0"):
        RotatedRecipe(feed_forward_multiple=0)
    with pytest.raises(BadInput, match="prune is 'heads'"):
        RotatedRecipe(prune="heads")


def test_channels_of_several_shots_are_those_of_the_dense_model():
    model, costs, found = pruned(dataclasses.replace(ONLY, shots=2), 0.4)
    for site, slim, plan in zip(
        ast.feed_forward_sites(model), ast.feed_forward_sites(found.model), found.plan.feed_forward, strict=True
    ):
        assert isinstance(plan, FeedForwardPlan)
        assert torch.equal(site.first.weight[list(plan.channels)], slim.first.weight)
    assert found.cost <= 0.4 * costs.dense
