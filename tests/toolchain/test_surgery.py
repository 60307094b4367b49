"""Surgery: nothing kept away is nothing changed; smaller matrices equal zeroed channels; the folder stands alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from runtimes.errors import BadInput
from tests.conftest import make_tiny_ast
from toolchain.families import ast
from toolchain.plan import HeadPlan, Plan, SitePlan, compose, full_plan, plan_to_json, read_plan, write_plan
from toolchain.surgery import zero_dropped_channels_


def random_sites(model, seed: int, *, ragged: bool, drop_head: bool) -> tuple[SitePlan, ...]:
    generator = np.random.default_rng(seed)
    sites = []
    for site in ast.attention_sites(model):
        heads = []
        width_qk, width_vo = generator.integers(1, 16, size=2)
        for head in range(len(site.query_key_widths)):
            if drop_head and head == 0:
                continue
            if ragged:
                width_qk, width_vo = generator.integers(1, 16, size=2)
            channels = [
                sorted(generator.choice(16, size=width, replace=False).tolist()) for width in (width_qk, width_vo)
            ]
            heads.append(HeadPlan(head, tuple(channels[0]), tuple(channels[1])))
        sites.append(SitePlan(site.name, len(site.query_key_widths), tuple(heads)))
    return tuple(sites)


def logits(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(inputs).logits


def with_sites(model, sites) -> Plan:
    plan = full_plan("ast", ast.attention_sites(model))
    return Plan(plan.family, plan.dense_head_width, plan.model_width, plan.projection_bias, plan.scaling, sites)


def test_keeping_everything_is_bit_identical(tiny_ast):
    inputs = torch.randn(3, 46, 128)
    slim = ast.slim_model(tiny_ast, full_plan("ast", ast.attention_sites(tiny_ast)).sites)
    assert torch.equal(logits(slim, inputs), logits(tiny_ast, inputs))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("drop_head", [False, True])
def test_smaller_matrices_equal_zeroed_channels(tiny_ast, ragged, drop_head):
    inputs = torch.randn(3, 46, 128)
    sites = random_sites(tiny_ast, seed=3, ragged=ragged, drop_head=drop_head)
    slim = ast.slim_model(tiny_ast, sites)
    dense_logits = logits(tiny_ast, inputs)
    for site, site_plan in zip(ast.attention_sites(tiny_ast), sites):
        zero_dropped_channels_(site, site_plan)
    zeroed = logits(tiny_ast, inputs)
    assert (zeroed - dense_logits).abs().max() > 1e-2, "the plan must matter, or the comparison proves nothing"
    assert (logits(slim, inputs) - zeroed).abs().max() < 1e-5


def test_parameters_really_go(tiny_ast):
    sites = random_sites(tiny_ast, seed=5, ragged=True, drop_head=True)
    plan = with_sites(tiny_ast, sites)
    slim = ast.slim_model(tiny_ast, sites)
    removed = sum(p.numel() for p in tiny_ast.parameters()) - sum(p.numel() for p in slim.parameters())
    assert removed == plan.attention_parameters_dense - plan.attention_parameters_kept
    block = slim.audio_spectrogram_transformer.layers[0].attention
    assert block.q_proj.weight.shape == (sum(sites[0].query_key_widths), 32)
    assert block.o_proj.weight.shape == (32, sum(sites[0].value_output_widths))


def test_pruning_twice_equals_pruning_once(tiny_ast):
    inputs = torch.randn(2, 46, 128)
    first = random_sites(tiny_ast, seed=7, ragged=True, drop_head=True)
    once = ast.slim_model(tiny_ast, first)
    second = tuple(
        SitePlan(
            site.name,
            len(site.query_key_widths),
            tuple(
                HeadPlan(head, tuple(range(0, qk, 2)), tuple(range(0, vo, 2)))
                for head, (qk, vo) in enumerate(zip(site.query_key_widths, site.value_output_widths))
            ),
        )
        for site in ast.attention_sites(once)
    )
    twice = ast.slim_model(once, second)
    directly = ast.slim_model(tiny_ast, compose(first, second))
    assert torch.equal(logits(twice, inputs), logits(directly, inputs))


def test_softmax_scale_is_a_constant_of_the_model(tiny_ast, tiny_extractor, tmp_path):
    sites = random_sites(tiny_ast, seed=9, ragged=False, drop_head=False)
    slim = ast.slim_model(tiny_ast, sites)
    ast.save_slim_checkpoint(slim, tiny_extractor, with_sites(tiny_ast, sites), tmp_path / "slim")
    reloaded = ast.load_checkpoint(tmp_path / "slim")
    assert [site.scaling for site in ast.attention_sites(reloaded.model)] == [16**-0.5] * 2
    inputs = torch.randn(2, 46, 128)
    assert torch.equal(logits(reloaded.model, inputs), logits(slim, inputs))


def test_folder_opens_through_auto_classes_with_its_own_code(tiny_ast, tiny_extractor, tmp_path, monkeypatch):
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    sites = random_sites(tiny_ast, seed=11, ragged=True, drop_head=True)
    slim = ast.slim_model(tiny_ast, sites)
    ast.save_slim_checkpoint(slim, tiny_extractor, with_sites(tiny_ast, sites), tmp_path / "slim")
    opened = AutoModelForAudioClassification.from_pretrained(tmp_path / "slim", trust_remote_code=True).eval()
    assert type(opened).__module__ != type(slim).__module__
    inputs = torch.randn(2, 46, 128)
    assert torch.equal(logits(opened, inputs), logits(slim, inputs))
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "slim").max_length == 46


def test_plan_survives_its_file(tiny_ast, tmp_path):
    plan = with_sites(tiny_ast, random_sites(tiny_ast, seed=13, ragged=True, drop_head=True))
    write_plan(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan
    assert plan_to_json(plan)["sparsity"] == pytest.approx(plan.sparsity, abs=1e-6)


@pytest.mark.parametrize("channels", [(), (3, 2), (1, 1), (16,)])
def test_malformed_plan_is_refused(tiny_ast, tmp_path, channels):
    plan = full_plan("ast", ast.attention_sites(tiny_ast))
    head = HeadPlan(0, channels, plan.sites[0].heads[0].value_output)
    broken = (SitePlan("layers.0.attention", 2, (head,)), plan.sites[1])
    write_plan(tmp_path / "plan.json", with_sites(tiny_ast, broken))
    with pytest.raises(BadInput, match="layers.0.attention head 0 query_key"):
        read_plan(tmp_path / "plan.json")


def test_sparsity_by_hand():
    """One head of two removed, D=32, head width 16: exactly half of what can be removed."""
    model = make_tiny_ast()
    plan = full_plan("ast", ast.attention_sites(model))
    halved = tuple(SitePlan(site.name, 2, site.heads[:1]) for site in plan.sites)
    assert with_sites(model, halved).sparsity == 0.5
    assert plan.attention_parameters_dense == 2 * (4 * 32 * 32 + 3 * 32)


def test_slim_model_cannot_be_mistaken_for_dense(tiny_ast):
    slim = ast.slim_model(tiny_ast, random_sites(tiny_ast, seed=1, ragged=True, drop_head=False))
    with pytest.raises(BadInput, match="already slim"):
        full_plan("ast", ast.attention_sites(slim))
