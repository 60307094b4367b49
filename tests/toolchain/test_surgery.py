"""Surgery: nothing kept away is nothing changed; smaller matrices equal zeroed channels; the folder stands alone.

In a new basis, nothing cut is nothing changed, and what is cut equals projections within the dense model.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ASTForAudioClassification

from leanear.calibration.basis import BASIS_KINDS, choose_bases
from leanear.families import ast
from leanear.families.slimming import rotated_attention_state
from leanear.plan import HeadPlan, Plan, SitePlan, compose, full_plan, plan_to_json, read_plan, write_plan
from leanear.runtimes.errors import BadInput
from tests.calibration.collected import collect_statistics
from tests.conftest import TINY_LABELS, make_tiny_ast
from tests.toolchain.dense_twin import every_other_channel, zero_dropped_channels_


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


def as_checkpoint(model, feature_extractor) -> ast.AstCheckpoint:
    return ast.AstCheckpoint(Path("tiny-ast"), model, feature_extractor, TINY_LABELS)


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
    second = every_other_channel(ast.attention_sites(once))
    twice = ast.slim_model(once, second)
    directly = ast.slim_model(tiny_ast, compose(first, second))
    assert torch.equal(logits(twice, inputs), logits(directly, inputs))


def test_softmax_scale_is_a_constant_of_the_model(tiny_ast, tiny_extractor, tmp_path):
    sites = random_sites(tiny_ast, seed=9, ragged=False, drop_head=False)
    slim = ast.slim_model(tiny_ast, sites)
    ast.save_slim_checkpoint(
        slim, as_checkpoint(tiny_ast, tiny_extractor), with_sites(tiny_ast, sites), tmp_path / "slim"
    )
    reloaded = ast.load_checkpoint(tmp_path / "slim")
    assert [site.scaling for site in ast.attention_sites(reloaded.model)] == [16**-0.5] * 2
    inputs = torch.randn(2, 46, 128)
    assert torch.equal(logits(reloaded.model, inputs), logits(slim, inputs))


def test_folder_opens_through_auto_classes_with_its_own_code(tiny_ast, tiny_extractor, tmp_path, monkeypatch):
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    sites = random_sites(tiny_ast, seed=11, ragged=True, drop_head=True)
    slim = ast.slim_model(tiny_ast, sites)
    ast.save_slim_checkpoint(
        slim, as_checkpoint(tiny_ast, tiny_extractor), with_sites(tiny_ast, sites), tmp_path / "slim"
    )
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


# In a new basis


def biased_ast(*, bias: bool = True, slim: bool = False):
    """A tiny AST, dense or with heads of many widths, whose attention biases are as large as its weights."""
    model = make_tiny_ast()
    if not bias:
        config = model.config
        config.qkv_bias = False
        state = {name: value for name, value in model.state_dict().items() if not name.endswith(("q_proj.bias",
                 "k_proj.bias", "v_proj.bias"))}  # fmt: skip
        model = ASTForAudioClassification(config).eval()
        model.load_state_dict(state)
    if slim:
        model = ast.slim_model(model, random_sites(model, seed=3, ragged=True, drop_head=False))
    generator = torch.Generator().manual_seed(2)
    for site in ast.attention_sites(model):
        for linear in (site.query, site.key, site.value):
            if linear.bias is not None:
                linear.bias.data = torch.randn(linear.bias.shape, generator=generator)
    return model


def bases_of(model, kind, inputs):
    sites = ast.attention_sites(model)
    label_ids = torch.arange(len(inputs)) % 5
    found = collect_statistics(
        model, sites, inputs, label_ids, ast.logits, labels="observed", attended_keys=kind == "attention"
    )
    return sites, choose_bases(sites, found, kind)


def narrowed(sites, widths) -> tuple[SitePlan, ...]:
    """The first channels of the heads of the given (K, V); a head of (0, 0) goes."""
    return tuple(
        SitePlan(
            site.name,
            len(site.query_key_widths),
            tuple(
                HeadPlan(head, tuple(range(min(k, qk))), tuple(range(min(v, vo))))
                for head, (qk, vo) in enumerate(zip(site.query_key_widths, site.value_output_widths))
                for k, v in [widths[head]]
                if k
            ),
        )
        for site in sites
    )


def rotated(model, sites, bases, kept):
    states = [rotated_attention_state(site, bases[site.name], plan) for site, plan in zip(sites, kept)]
    return ast.slim_model(model, kept, states)


@pytest.mark.parametrize("kind", BASIS_KINDS)
@pytest.mark.parametrize("slim", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_new_basis_with_nothing_cut_changes_no_logit(kind, slim, bias):
    """Of all blocks together, and of each alone, whose own output is compared too."""
    model = biased_ast(bias=bias, slim=slim)
    inputs = torch.randn(6, 46, 128)
    sites, bases = bases_of(model, kind, inputs)
    everything = narrowed(sites, [(16, 16), (16, 16)])
    turned = rotated(model, sites, bases, everything)
    scale = logits(model, inputs).abs().max()
    assert (logits(turned, inputs) - logits(model, inputs)).abs().max() < 1e-5 * scale
    hidden = torch.randn(2, 20, 32)
    for site, new in zip(sites, ast.attention_sites(turned)):
        moved = (new.query.weight - site.query.weight).abs().max()
        assert moved > 0.1 or kind == "trained"
        with torch.no_grad():
            before, after = site.module(hidden), new.module(hidden)
        before, after = (out[0] if isinstance(out, tuple) else out for out in (before, after))
        assert (after - before).abs().max() < 1e-5 * before.abs().max()
        for linear in (new.key, new.value):
            assert linear.bias is None or not linear.bias.any()


@pytest.mark.parametrize("kind", ["trained", "weights", "fisher"])
@pytest.mark.parametrize("widths", [[(5, 3), (2, 9)], [(4, 4), (0, 0)]])
def test_a_cut_equals_projections_of_queries_and_of_contexts_about_their_mean(kind, widths):
    """Hooks in the dense model: queries q -> T_r^T T_l q, contexts u -> m + T_o^T T_v (u - m), of heads gone u -> m."""
    model = biased_ast().double()
    inputs = torch.randn(6, 46, 128).double()
    sites, bases = bases_of(model, kind, inputs)
    slim = rotated(model, sites, bases, narrowed(sites, widths))
    dense_logits = logits(model, inputs)
    means = []
    for site in sites:
        basis, mean = bases[site.name], bases[site.name].context_mean
        of_queries = [basis.key[h, :k].mT @ basis.query[h, :k] for h, (k, _) in enumerate(widths)]
        of_contexts = [basis.output[h, :v].mT @ basis.value[h, :v] for h, (_, v) in enumerate(widths)]

        def project_query(_module, _inputs, out, of_queries=of_queries):
            return torch.cat([q @ p.mT for q, p in zip(out.split(16, dim=-1), of_queries)], dim=-1)

        def project_context(_module, args, of_contexts=of_contexts, mean=mean):
            heads = zip(args[0].split(16, dim=-1), of_contexts, mean)
            return (torch.cat([m + (u - m) @ p.mT for u, p, m in heads], dim=-1),)

        measured = []
        hook = site.output.register_forward_pre_hook(lambda _m, args, kept=measured: kept.append(args[0]))
        logits(model, inputs)
        hook.remove()
        means.append((measured[0].mean(dim=(0, 1)).view(2, 16), mean))
        site.query.register_forward_hook(project_query)
        site.output.register_forward_pre_hook(project_context)
    assert torch.allclose(*means[0], atol=1e-9), "the first block's contexts are those of the dense model"
    projected = logits(model, inputs)
    assert (projected - dense_logits).abs().max() > 1e-2, "the cut must matter, or the comparison proves nothing"
    assert (logits(slim, inputs) - projected).abs().max() < 1e-7


def test_a_head_whose_context_is_constant_can_go_without_loss():
    """Its values are their bias alone: what it gives is the same for all tokens and stays in the output bias."""
    model = biased_ast()
    inputs = torch.randn(4, 46, 128)
    for site in ast.attention_sites(model):
        site.value.weight.data[:16] = 0
    sites, bases = bases_of(model, "fisher", inputs)
    slim = rotated(model, sites, bases, narrowed(sites, [(0, 0), (16, 16)]))
    assert [site.query_key_widths for site in ast.attention_sites(slim)] == [(16,), (16,)]
    scale = logits(model, inputs).abs().max()
    assert (logits(slim, inputs) - logits(model, inputs)).abs().max() < 1e-5 * scale
    for site in sites:
        site.value.bias.data[:16] = 0
    assert (logits(slim, inputs) - logits(model, inputs)).abs().max() > 1e-2, "the constant mattered"


def test_a_block_without_an_output_bias_is_refused(tiny_ast):
    inputs = torch.randn(4, 46, 128)
    sites, bases = bases_of(tiny_ast, "weights", inputs)
    sites[0].output.bias = None
    with pytest.raises(ValueError, match=r"layers\.0\.attention has no output bias"):
        rotated_attention_state(sites[0], bases[sites[0].name], narrowed(sites, [(4, 4)] * 2)[0])


@pytest.mark.parametrize("kind", BASIS_KINDS)
def test_the_plan_of_a_new_basis_survives_its_file(tiny_ast, tmp_path, kind):
    plan = dataclasses.replace(full_plan("ast", ast.attention_sites(tiny_ast)), basis=f"rotated by {kind}")
    write_plan(tmp_path / "plan.json", plan)
    assert json.loads((tmp_path / "plan.json").read_text())["basis"] == f"rotated by {kind}"
    assert read_plan(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("basis", ["sideways", "", None, 3])
def test_an_unknown_basis_is_refused(tiny_ast, tmp_path, basis):
    plan = dataclasses.replace(full_plan("ast", ast.attention_sites(tiny_ast)), basis=basis)
    write_plan(tmp_path / "plan.json", plan)
    with pytest.raises(BadInput, match="plan.json: (unknown basis|basis is)"):
        read_plan(tmp_path / "plan.json")
