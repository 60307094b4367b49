"""Attention blocks that keep no head: loss, allocation, cut, dense twin, checkpoint, plan, graph, report."""

from __future__ import annotations

import dataclasses
import itertools
import json
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForAudioClassification

from leanear.benchmarks.report.size_sections import widths_section
from leanear.calibration.losses import width_grid
from leanear.data.examples import HeldOut
from leanear.export.ast.graph import FORMS, export_ast, observe_ast
from leanear.export.macs import count_macs
from leanear.families import ast, whisper
from leanear.plan import plan_to_json, read_plan, write_plan
from leanear.prune import closed_loop
from leanear.prune.allocation.allocate import Allocation, HeadOptions, allocate
from leanear.prune.closed_loop import block_loss, choose_measured
from leanear.prune.costs import latency_costs, mac_costs, parameter_costs
from leanear.prune.rotated import ClosedLoop, prune_rotated
from leanear.prune.scoring import infinitesimal_losses, score_widths
from leanear.prune.widths import RotatedRecipe, choose_widths, cut, least_cost, narrowest_model, narrowest_name
from leanear.recover.compensation import compensate_
from leanear.recover.lora import with_lora
from leanear.runtimes.errors import BadInput
from leanear.timing.model_timing import Tables
from tests.calibration.collected import collect_squares
from tests.conftest import make_tiny_ast
from tests.toolchain.prune.test_rotated import clips, costs_of
from tests.toolchain.whisper_pruning import checkpoint as whisper_checkpoint
from tests.toolchain.whisper_pruning import clips as whisper_clips

RECIPE = RotatedRecipe(multiples=(4, 4), chunk=4)
FIRST, LAST = "layers.0.attention", "layers.1.attention"


def without(gone: str):
    """The dense model, the slim one without that block, what it keeps, and the scores."""
    model = make_tiny_ast()
    scores = score_widths(ast, model, clips(), RECIPE.scoring, made_from={})
    widths = tuple(
        tuple((0, 0) if site.name == gone else pair for pair in zip(site.query_key_widths, site.value_output_widths))
        for site in ast.attention_sites(model)
    )
    slim, kept = cut(ast, model, scores.bases, Allocation(widths, 0.0, 0.0))
    return model, slim, kept, scores


def logits(model, inputs):
    with torch.no_grad():
        return ast.logits(model, inputs)


@pytest.mark.parametrize("gone", [FIRST, LAST])
def test_without_a_block_the_model_is_the_dense_one_with_the_blocks_mean(gone):
    model, slim, kept, _ = without(gone)
    assert [len(site.heads) for site in kept] == [0 if site.name == gone else 2 for site in kept]
    (output,) = (site.output for site in ast.attention_sites(model) if site.name == gone)
    seen = []
    hook = output.register_forward_hook(lambda _module, _inputs, given: seen.append(given))
    logits(model, clips().inputs)
    hook.remove()
    mean = torch.cat(seen).flatten(0, 1).mean(dim=0)
    hook = output.register_forward_hook(lambda _module, _inputs, given: mean.expand_as(given))
    other = clips(seed=9).inputs
    expected = logits(model, other)
    hook.remove()
    torch.testing.assert_close(logits(slim, other), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(model, other), expected, atol=1e-3)


def test_a_dense_twin_with_zeroed_output_weights_is_the_slim_model():
    model, slim, _, _ = without(FIRST)
    with torch.no_grad():
        for twin, narrow in zip(ast.attention_sites(model), ast.attention_sites(slim), strict=True):
            if twin.name == FIRST:
                assert narrow.query_key_widths == narrow.value_output_widths == ()
                twin.output.weight.zero_()
                twin.output.bias.copy_(narrow.output.bias)
    torch.testing.assert_close(logits(slim, clips().inputs), logits(model, clips().inputs), rtol=1e-4, atol=1e-5)


def test_the_loss_of_all_heads_is_that_of_the_blocks_output_at_its_mean():
    """By the gradient at the output projection's result, in which there are no heads."""
    model, _, _, scores = without(FIRST)
    given, site = clips(), ast.attention_sites(model)[0]
    grid = width_grid(site, 4)
    found = collect_squares(
        model, [site], scores.bases, {FIRST: grid}, given.inputs, given.targets, ast.logits, labels="observed"
    )[FIRST]
    seen = {}

    def keep(_module, _inputs, output):
        output.retain_grad()
        seen["output"] = output

    hook = site.output.register_forward_hook(keep)
    functional.cross_entropy(ast.logits(model, given.inputs), given.targets, reduction="sum").backward()
    hook.remove()
    output, gradient = seen["output"].detach().double(), seen["output"].grad.double()
    mean = output.flatten(0, 1).mean(dim=0)
    changes = (gradient * (mean - output)).sum(dim=(1, 2))
    assert float(found[-1, -1, 0]) == pytest.approx(float(changes.square().sum()), rel=1e-4)
    assert float(found[-1, -1, 0]) != pytest.approx(float(found[:-1, -1, 0].sum()), rel=1e-2)


def test_losses_hold_the_removal_of_a_block_and_nothing_else_of_it():
    _, _, _, scores = without(FIRST)
    sites = ast.attention_sites(make_tiny_ast())
    for losses in (scores.losses, infinitesimal_losses(sites, scores.bases, 1.0)):
        for site in sites:
            table = losses[site.name]
            assert table.shape[0] == len(site.query_key_widths) + 1
            assert np.isfinite(table[-1, 0, 0])
            assert np.isinf(table[-1]).sum() == table[-1].size - 1
    everything, some = ((0, 0), (0, 0)), ((16, 16), (0, 0))
    assert block_loss(scores.losses, sites[0], everything) == scores.losses[FIRST][-1, 0, 0]
    assert block_loss(scores.losses, sites[0], some) == pytest.approx(
        scores.losses[FIRST][0, 16, 16] + scores.losses[FIRST][1, 0, 0]
    )


# Allocation


def drawn_sites(seed: int) -> list[list[HeadOptions]]:
    generator = np.random.default_rng(seed)
    widths = np.array([0, 4, 8])
    return [
        [
            HeadOptions(widths, widths, np.array([0.0, 3.0, 7.0]), np.sort(generator.uniform(0, 1, 3))[::-1].copy())
            for _ in range(2)
        ]
        for _ in range(3)
    ]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget", [0.0, 4.0, 9.0, 22.0])
@pytest.mark.parametrize("is_ragged", [False, True])
def test_options_without_heads_are_chosen_as_brute_force_chooses_them(seed, budget, is_ragged):
    sites = drawn_sites(seed)
    removals = [*np.random.default_rng(seed + 50).uniform(0, 2, 2), 0.05]

    def block_cost(widths):
        kept = [pair for pair in widths if pair != (0, 0)]
        return (1.5 if is_ragged else 0.0) + sum({4: 3.0, 8: 7.0}[key] for key, _ in kept)

    def choices(heads, removal):
        yield ((0, 0), (0, 0)), 0.0, removal
        for places in itertools.product(range(3), repeat=2):
            if any(places):
                widths = tuple((4 * place, 4 * place) for place in places)
                yield widths, block_cost(widths), sum(h.damages[p] for h, p in zip(heads, places, strict=True))

    every = itertools.product(*(choices(heads, removal) for heads, removal in zip(sites, removals, strict=True)))
    best = min(sum(c[2] for c in chosen) for chosen in every if sum(c[1] for c in chosen) <= budget + 1e-9)
    ragged = [block_cost] * 3 if is_ragged else None
    found = allocate(sites, budget, ragged=ragged, removals=removals)
    assert found.damage == pytest.approx(best)
    assert found.cost <= budget + 1e-9


def test_a_block_whose_removal_is_not_offered_keeps_a_head():
    found = allocate(drawn_sites(1), 3.0, removals=[0.0, np.inf, 0.0])
    assert [any(pair != (0, 0) for pair in widths) for widths in found.widths] == [False, True, False]


def test_whole_blocks_go_where_nothing_else_is_within_the_budget():
    model = make_tiny_ast()
    costs, sites = costs_of(model), ast.attention_sites(model)
    scores = score_widths(ast, model, clips(), RECIPE.scoring, made_from={})
    assert least_cost(sites, costs, RECIPE) == 0.0
    assert narrowest_name(sites, RECIPE) == "the narrowest model, no head,"
    assert choose_widths(sites, scores.losses, costs, 0.0, RECIPE).widths == (((0, 0),) * 2,) * 2
    narrowest = narrowest_model(ast, model, RECIPE)
    assert all(site.query_key_widths == () for site in ast.attention_sites(narrowest))
    assert torch.isfinite(logits(narrowest, clips().inputs)).all()
    kept = dataclasses.replace(RECIPE, whole_blocks=False)
    assert least_cost(sites, costs, kept) > 0.0
    assert narrowest_name(sites, kept) == "the narrowest model, one head per block,"


def test_a_whispers_encoder_alone_may_lose_blocks():
    model, given = whisper_checkpoint().model, whisper_clips(6)
    sites = whisper.attention_sites(model)
    costs = parameter_costs(whisper.dense_plan(model))
    assert narrowest_name(sites, RECIPE) == "the narrowest model, one head per block that must have one,"
    scores = score_widths(whisper, model, given, RECIPE.scoring, made_from={})
    found = choose_widths(sites, scores.losses, costs, least_cost(sites, costs, RECIPE), RECIPE)
    gone = [not any(pair != (0, 0) for pair in widths) for widths in found.widths]
    assert gone == [site.kind == "encoder" for site in sites]
    dense = tuple(tuple(zip(site.query_key_widths, site.value_output_widths, strict=True)) for site in sites)
    widths = ((((0, 0),) * len(dense[0])), *dense[1:])
    slim, _ = cut(whisper, model, scores.bases, Allocation(widths, 0.0, 0.0))
    mean = whisper.attention_sites(slim)[0].output.bias
    hook = sites[0].output.register_forward_hook(lambda _module, _inputs, given: mean.expand_as(given))
    with torch.no_grad():
        torch.testing.assert_close(
            whisper.logits(slim, given.inputs), whisper.logits(model, given.inputs), rtol=1e-3, atol=1e-4
        )
        seen = []
        again = sites[0].output.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
        whisper.logits(model, given.inputs)
    hook.remove()
    again.remove()
    torch.testing.assert_close(mean, sites[0].output(torch.cat(seen).flatten(0, 1).mean(dim=0)), rtol=1e-3, atol=1e-4)
    tokens = slim.generate(given.inputs.features[:1], max_new_tokens=4, num_beams=1)
    assert tokens.shape[0] == 1


# The model


@pytest.mark.parametrize(("prune", "shots"), [("attention", 1), ("all", 1), ("attention", 2)])
def test_a_plan_without_blocks_goes_through_the_loop_and_compensation(prune, shots):
    model, recipe = make_tiny_ast(), dataclasses.replace(RECIPE, prune=prune, shots=shots)
    plan = dataclasses.replace(ast.dense_plan(model), prune=prune)
    costs = mac_costs(plan, count_macs(model))
    budget = costs.fixed + 0.02 * (costs.dense - costs.fixed)
    held = HeldOut(model, clips(6, seed=5), ast.logits)
    found = prune_rotated(ast, model, clips(), costs, budget, recipe, loop=ClosedLoop(held))
    gone = [not site.heads for site in found.plan.sites]
    assert any(gone)
    assert found.cost == count_macs(found.model).total <= budget
    alone = {block.name: block for block in found.rounds[found.best].blocks}
    assert all(alone[site.name].measured >= 0 and alone[site.name].estimated > 0 for site in found.plan.sites)
    done = compensate_(ast, found.model, model, clips(), clips(4, seed=6))
    assert {block.name for block in done.blocks if "attention" in block.name} == {
        site.name for site, is_gone in zip(found.plan.sites, gone, strict=True) if not is_gone
    }
    assert done.held_out_kl_after <= done.held_out_kl_before
    with pytest.raises(BadInput, match="out of reach|least possible cost"):
        prune_rotated(ast, model, clips(), costs, budget, dataclasses.replace(recipe, shots=3))


@pytest.mark.parametrize(("divergences", "stays"), [((0.2, 0.1), True), ((0.1, 0.2), False), ((np.nan, 0.2), True)])
def test_of_plans_with_and_without_a_block_the_one_that_measures_better_is_taken(monkeypatch, divergences, stays):
    gone, kept = (Allocation(((pair,), ((4, 4),)), 1.0, 0.1) for pair in ((0, 0), (4, 4)))
    monkeypatch.setattr(closed_loop, "choose_widths", lambda *given: gone if given[-1].whole_blocks else kept)
    monkeypatch.setattr(closed_loop, "cut", lambda _family, _model, _bases, allocation: (allocation is kept, ()))
    nothing = SimpleNamespace(measure=lambda *_: ())
    monkeypatch.setattr(closed_loop, "SingleBlocks", lambda *_: nothing)
    monkeypatch.setattr(closed_loop, "_keeps_hardly_any", lambda *_: False)

    class Judges:
        dense = None

        def __len__(self):
            return 4

        def kl(self, is_kept, _told):
            return divergences[is_kept]

    family, scores = SimpleNamespace(attention_sites=lambda _model: ()), SimpleNamespace(bases={}, losses={})
    found = choose_measured(family, None, scores, None, 1.0, RECIPE, Judges())
    assert found.model is stays
    assert found.allocation is (kept if stays else gone)


def test_a_model_without_a_block_can_be_trained():
    _, slim, _, _ = without(FIRST)
    adapted = with_lora(slim, 2, 2.0).train()
    ast.batch_loss(adapted, clips().inputs, clips().targets).backward()
    merged = adapted.merge_and_unload()
    assert torch.isfinite(logits(merged.eval(), clips().inputs)).all()


def test_the_slim_checkpoint_opens_here_and_with_transformers_alone(tiny_folder, tmp_path):
    source = ast.load_checkpoint(tiny_folder)
    costs = costs_of(source.model)
    held = HeldOut(source.model, clips(6, seed=5), ast.logits)
    found = prune_rotated(ast, source.model, clips(), costs, 0.02 * costs.dense, RECIPE, loop=ClosedLoop(held))
    assert any(not site.heads for site in found.plan.sites)
    ast.save_slim_checkpoint(found.model, source, found.plan, tmp_path / "slim")
    assert read_plan(tmp_path / "slim" / "plan.json") == found.plan
    expected = logits(found.model, clips().inputs)
    assert torch.equal(logits(ast.load_checkpoint(tmp_path / "slim").model, clips().inputs), expected)
    alone = AutoModelForAudioClassification.from_pretrained(tmp_path / "slim", trust_remote_code=True).eval()
    with torch.no_grad():
        assert torch.equal(alone(clips().inputs).logits, expected)


def test_milliseconds_of_a_block_go_with_its_last_head():
    class Table:
        site_kinds, rest_ms, dense_site = ("ordinary", "last"), 5.0, ((16, 16), (16, 16))

        def block_ms(self, _kind):
            return 1.0

        def site_ms(self, _kind, widths):
            assert widths
            return 1.0 + 0.1 * len(widths)

        def model_ms(self, sites):
            return self.rest_ms + sum(self.site_ms("", widths) for widths in sites)

    costs = latency_costs(Tables(Table(), None), ast.attention_sites(make_tiny_ast()), ())
    assert costs.fixed == 5.0
    assert costs.of([(), ((4, 4),)]) == pytest.approx(6.1)
    assert costs.of([Table.dense_site] * 2) == pytest.approx(costs.dense)


# The graph and the report


@pytest.mark.parametrize("gone", [FIRST, LAST])
@pytest.mark.parametrize(
    ("form", "precision"),
    [
        *((form, "fp32") for form in FORMS),
        ("tensorrt", "fp16"),
        *((form, "int8") for form in FORMS if form != "portable"),
    ],
)
def test_the_graph_has_nothing_of_the_block_but_its_bias(form, precision, gone, tiny_extractor, tmp_path):
    _, slim, _, _ = without(gone)
    generator = np.random.default_rng(2)
    waveforms = [generator.normal(size=8000).astype(np.float32) * 0.1 for _ in range(3)]
    observed = observe_ast(slim, tiny_extractor, form, waveforms) if precision == "int8" else None
    exported = export_ast(slim, tiny_extractor, tmp_path / "m.onnx", form, precision=precision, observed=observed)
    graph = onnx.load(exported.path).graph
    prefix = gone.removesuffix("attention")
    nodes = [node.name for node in graph.node if node.name.startswith((f"{prefix}attention", f"{prefix}layernorm_b"))]
    assert [name for name in nodes if "residual" not in name and "output.bias" not in name] == []
    assert all(0 not in tensor.dims for tensor in graph.initializer)
    features = tiny_extractor(waveforms[0], sampling_rate=16000, return_tensors="pt")["input_values"]
    expected = logits(slim, features).numpy()
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    found = session.run(None, {"waveform": waveforms[0][None]})[0]
    atol = {"fp32": 2e-5, "fp16": 1e-2, "int8": 0.1}[precision] * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def test_the_report_shows_which_blocks_are_gone(tmp_path):
    plan = ast.dense_plan(make_tiny_ast())
    plan = dataclasses.replace(plan, sites=(dataclasses.replace(plan.sites[0], heads=()), plan.sites[1]))
    write_plan(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan
    section = widths_section(json.loads(json.dumps(plan_to_json(plan))))
    assert "1 of 2 attention blocks are gone" in section.blocks[0].text
    assert section.blocks[2].rows[0] == ("layer 0", "0 of 2", "–, –", "–, –")
