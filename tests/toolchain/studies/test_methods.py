"""Methods against the product's own pruning and against numpy's SVD, controls against what they break."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from leanear.data.examples import HeldOut, LabelledInputs, divided
from leanear.families import ast
from leanear.prune.costs import parameter_costs
from leanear.prune.rotated import FITS_ALL_NATS, MATTERS_NATS, ClosedLoop, prune_rotated
from leanear.prune.scoring import score_widths
from leanear.prune.widths import RotatedRecipe, choose_widths
from leanear.recover.compensation import compensate_
from leanear.recover.distillation_options import Distillation
from leanear.reference.schedule import calibration_order, prune
from leanear.runtimes.errors import BadInput
from leanear.studies import methods as module
from leanear.studies.methods import (
    ACTIVATIONS_EQUAL,
    CLOVER,
    DEFAULT,
    DEFAULT_AS_SMALL,
    DENSE,
    Bench,
    Control,
    method_named,
    methods,
    recovered,
    ten_steps,
    widest_equal_widths,
)
from tests.conftest import TINY_LABELS, make_tiny_ast

HEADS, WIDTH = 4, 8


def clips(count: int, seed: int) -> LabelledInputs:
    inputs = torch.randn(count, 46, 128, generator=torch.Generator().manual_seed(seed))
    return LabelledInputs(inputs, torch.arange(count) % 5)


@pytest.fixture
def bench(tmp_path, tiny_extractor):
    model = make_tiny_ast(head_width=WIDTH, heads=HEADS, layers=2)
    checkpoint = ast.AstCheckpoint(tmp_path, model, tiny_extractor, TINY_LABELS)
    return Bench(ast, checkpoint, clips(30, seed=1), clips=20, seed=3)


def make(bench: Bench, name: str, sparsity: float):
    method = method_named(name)
    return method.make(bench, sparsity, method.recipe)


def logits(model, seed: int = 5):
    with torch.no_grad():
        return model(clips(6, seed).inputs).logits


def test_the_list_has_what_is_claimed_and_no_name_twice():
    names = [method.name for method in methods()]
    assert len(set(names)) == len(names)
    assert names[0] == DENSE
    assert sum(method.group == "reference" for method in methods()) == 8
    assert sum(method.group == "control" for method in methods()) == 5
    assert {DEFAULT, CLOVER, ACTIVATIONS_EQUAL, "random channels", "without compensation", "two shots"} <= set(names)


def test_every_method_removes_what_was_asked_and_computes_something_else(bench):
    dense = logits(bench.checkpoint.model)
    for method in methods()[1:]:
        made = method.make(bench, 0.5, method.recipe)
        assert made.plan.sparsity >= 0.5 - 1e-9, method.name
        attention = sum(p.numel() for name, p in made.model.named_parameters() if "attention" in name)
        output_biases = 2 * HEADS * WIDTH
        assert attention - output_biases == made.plan.attention_parameters_kept, method.name
        assert not torch.allclose(logits(made.model), dense, atol=1e-3), method.name


def test_the_default_is_what_pruning_does_by_default(bench):
    recipe = dataclasses.replace(RotatedRecipe(), seed=3, calibration_clips=20)
    dense = bench.checkpoint.model
    scored, held_out = divided(bench.pool[bench.order])
    expected = prune_rotated(
        ast, dense, scored, parameter_costs(bench.plan), 0.8 * bench.plan.attention_parameters_dense, recipe,
        loop=ClosedLoop(HeldOut(dense, held_out, ast.logits)),
    )  # fmt: skip
    assert not expected.loses(MATTERS_NATS), "one shot is enough"
    slim = expected.model
    compensate_(ast, slim, dense, scored, held_out)
    made = make(bench, DEFAULT, 0.2)
    assert made.plan.sites == expected.plan.sites
    assert torch.equal(logits(made.model), logits(expected.model))


def test_two_shots_take_the_dense_models_scores_from_those_of_one(bench, monkeypatch):
    recipe = dataclasses.replace(RotatedRecipe(), seed=3, calibration_clips=20, shots=2)
    dense, scored_models = bench.checkpoint.model, []
    scored, held_out = divided(bench.pool[bench.order])

    def compensate(model, _report=None, **options):
        return compensate_(ast, model, dense, scored, held_out, **options)

    expected = prune_rotated(
        ast, dense, scored, parameter_costs(bench.plan), 0.5 * bench.plan.attention_parameters_dense, recipe,
        loop=ClosedLoop(HeldOut(dense, held_out, ast.logits), compensate=compensate),
    )  # fmt: skip
    compensate(expected.model, every_block=expected.loses(FITS_ALL_NATS))
    for place in ("leanear.prune.rotated", "leanear.studies.methods"):
        monkeypatch.setattr(
            f"{place}.score_widths",
            lambda family, model, *given, **named: (
                scored_models.append(model) or score_widths(family, model, *given, **named)
            ),
        )
    make(bench, "without compensation", 0.5)
    made = make(bench, "two shots", 0.5)
    assert [model is dense for model in scored_models] == [True, False]
    assert torch.equal(logits(made.model), logits(expected.model))


@pytest.mark.parametrize("scheme", ["channels", "heads"])
@pytest.mark.parametrize("kind", ["fisher", "magnitude"])
def test_the_reference_is_the_reference(bench, scheme, kind):
    method = method_named(f"reference: {scheme}, {kind}, global")
    recipe = dataclasses.replace(method.recipe, sparsity=0.5, calibration_clips=20, seed=3)
    expected = prune(ast, bench.checkpoint, bench.pool, recipe)
    made = method.make(bench, 0.5, method.recipe)
    assert made.plan.sites == expected.plan.sites
    assert torch.equal(logits(made.model), logits(expected.model))
    assert torch.equal(bench.order, calibration_order(bench.pool, recipe)), "all methods calibrate on the same clips"


def test_clover_is_the_truncated_svd_of_every_heads_products(bench):
    """Without data: the best approximation of W_q^T W_k (bias as one more row) and of W_o W_v by numpy's SVD."""
    made = make(bench, CLOVER, 0.5)
    kept = WIDTH // 2
    for before, after in zip(ast.attention_sites(bench.checkpoint.model), ast.attention_sites(made.model), strict=True):
        assert after.query_key_widths == after.value_output_widths == (kept,) * HEADS
        bias = before.output.bias.double()
        for head in range(HEADS):
            old, new = slice(head * WIDTH, (head + 1) * WIDTH), slice(head * kept, (head + 1) * kept)

            def scores(site, rows):
                query = torch.cat([site.query.weight[rows], site.query.bias[rows, None]], dim=1).double()
                return (query.T @ site.key.weight[rows].double()).detach().numpy()

            def outputs(site, rows):
                return (site.output.weight[:, rows].double() @ site.value.weight[rows].double()).detach().numpy()

            for products in (scores, outputs):
                u, s, v = np.linalg.svd(products(before, old))
                best = (u[:, :kept] * s[:kept]) @ v[:kept]
                assert np.allclose(products(after, new), best, atol=1e-4)
            # the value bias goes through the kept directions of the output weights alone
            weight = before.output.weight[:, old].double()
            product = weight @ before.value.weight[old].double()
            directions = torch.linalg.svd(product)[0][:, :kept]
            bias = bias + directions @ directions.T @ weight @ before.value.bias[old].double()
        assert torch.allclose(after.output.bias.double(), bias, atol=1e-4)
    other = dataclasses.replace(bench, seed=4, kept={})
    assert torch.equal(logits(make(other, CLOVER, 0.5).model), logits(made.model)), "no data, no seed"
    assert not method_named(CLOVER).drawn


def test_equal_widths_are_the_widest_that_fit(bench):
    sites, costs = ast.attention_sites(bench.checkpoint.model), bench.costs
    for sparsity in (0.05, 0.3, 0.5, 0.61, 0.9):
        budget = (1 - sparsity) * costs.dense
        pairs = [(k, v) for k in range(1, WIDTH + 1) for v in (k, k + 1) if v <= WIDTH]
        fitting = [pair for pair in pairs if 2 * HEADS * costs.heads[0](*pair) <= budget * (1 + 1e-12)]
        allocation = widest_equal_widths(sites, costs, sparsity)
        assert {pair for heads in allocation.widths for pair in heads} == {max(fitting, default=(1, 1), key=sum)}


def test_the_default_as_small_as_equal_widths_is_as_small(bench):
    for sparsity in (0.45, 0.7):
        equal, default = make(bench, ACTIVATIONS_EQUAL, sparsity), make(bench, DEFAULT_AS_SMALL, sparsity)
        assert default.plan.sparsity >= equal.plan.sparsity - 1e-12


def test_wrong_scale_is_one_over_the_root_of_the_kept_width(bench):
    """Where all heads keep the same width, as where each block keeps one, the fault is one number per block."""
    recipe, sparsity = RotatedRecipe(multiples=(WIDTH // 2,) * 2, whole_blocks=False), 1 - 0.5 / HEADS
    right = module._default(bench, sparsity, recipe)
    wrong = module._wrong_scale(bench, sparsity, Control("wrong scale", recipe))
    assert not torch.allclose(logits(wrong.model), logits(right.model), atol=1e-4)
    for site in ast.attention_sites(right.model):
        (width,) = set(site.query_key_widths)
        site.module.scaling = 1 / math.sqrt(width)
    assert torch.allclose(logits(wrong.model), logits(right.model), atol=1e-5)


def test_shuffled_scores_choose_widths_that_the_true_scores_call_worse(bench):
    sites = ast.attention_sites(bench.checkpoint.model)
    losses = module._scores(bench, RotatedRecipe()).losses
    true = choose_widths(sites, losses, bench.costs, 0.6 * bench.costs.dense, RotatedRecipe())
    made = make(bench, "scores of other heads", 0.4)
    damage = 0.0
    for site, plan in zip(sites, made.plan.sites, strict=True):
        widths = {head.head: (len(head.query_key), len(head.value_output)) for head in plan.heads}
        damage += sum(losses[site.name][(head, *widths.get(head, (0, 0)))] for head in range(HEADS))
    assert damage > 1.1 * true.damage


def test_one_labels_clips_are_of_one_label_and_the_few_of_all(bench, monkeypatch):
    seen = []
    original = module.score_widths

    def watched(family, model, clips, *arguments, **options):
        seen.append(clips.targets)
        return original(family, model, clips, *arguments, **options)

    monkeypatch.setattr(module, "score_widths", watched)
    make(bench, "one label's clips", 0.5)
    assert len(torch.cat(seen).unique()) == 1
    count = len(torch.cat(seen))
    assert count == 5, "all of the pool's clips with that label but the one that is held out"
    seen.clear()
    make(bench, "as few clips, all labels", 0.5)
    assert len(torch.cat(seen)) == count
    assert len(torch.cat(seen).unique()) == 5
    seen.clear()
    make(bench, "one label's clips", 0.7)
    assert not seen, "what was computed once is used again"


def test_what_is_shared_is_computed_once_and_its_time_is_counted_every_time(bench, monkeypatch):
    calls = []

    def watch(name):
        original = getattr(module, name)

        def watched(*arguments, **options):
            calls.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, watched)

    watch("score_widths")
    watch("_statistics")
    make(bench, DEFAULT, 0.5)
    assert bench.reused_s == 0.0
    make(bench, DEFAULT, 0.7)
    once = bench.reused_s
    assert once > 0.0
    make(bench, "scores of other heads", 0.5)
    assert bench.reused_s > once, "other widths, the same scores"
    assert calls == ["score_widths"]
    make(bench, "observed labels", 0.5)
    assert calls == ["score_widths"] * 2
    twice = bench.reused_s
    make(bench, ACTIVATIONS_EQUAL, 0.5)
    assert bench.reused_s == twice
    make(bench, "Fisher basis, equal widths", 0.5)
    assert bench.reused_s > twice, "other bases, the same statistics"
    assert calls == ["score_widths"] * 2 + ["_statistics"]


def test_what_is_out_of_reach_is_said(bench):
    with pytest.raises(BadInput, match="out of reach"):
        make(bench, "reference: heads, fisher, global", 0.9)
    with pytest.raises(BadInput, match="the narrowest model, one head per block"):
        make(bench, "Fisher basis, entire heads", 0.9)


def test_recovery_trains_what_the_method_made(bench):
    options = Distillation(epochs=10, patience=10, learning_rate=3e-3, batch_size=8)
    before = make(bench, "random channels", 0.5)
    method = recovered(method_named("random channels"), options)
    after = method.make(bench, 0.5, method.recipe)
    assert after.updates == 10 * 2, "16 of 20 clips, 8 at a time"
    assert after.plan == before.plan

    def divergence(model):
        with torch.no_grad():
            inputs = bench.pool.inputs[bench.order]
            dense = bench.checkpoint.model(inputs).logits.log_softmax(1)
            return (dense.exp() * (dense - model(inputs).logits.log_softmax(1))).sum(1).mean().item()

    assert divergence(after.model) < 0.8 * divergence(before.model)


def test_ten_steps_have_the_updates_that_they_were_given(bench):
    epochs = {s: ten_steps("channels", "global", s, 35, 20).recipe.recovery_options.epochs for s in (0.3, 0.5, 0.9)}
    assert epochs == {0.3: 5, 0.5: 3, 0.9: 2}, "two updates an epoch; 4, 7 and 10 steps"
    method = ten_steps("channels", "global", 0.5, 35, 20)
    made = method.make(bench, 0.5, method.recipe)
    steps = made.updates / 6
    assert steps == int(steps)
    assert 6 <= steps <= 10, "whole bundles are less than a tenth"
    assert made.updates >= 35
    assert made.plan.sparsity >= 0.5
