"""Whisper in a rotated basis: exact at full width, scored right at all three kinds, within budget, repeatable."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from leanear.calibration.scores import score_magnitude
from leanear.calibration.statistics import statistics_tensors
from leanear.data.examples import SpeechInputs
from leanear.export.macs import count_whisper_macs
from leanear.families import whisper
from leanear.families.slimming import kept_attention_state, rotated_attention_state
from leanear.plan import plan_sha256
from leanear.prune.costs import mac_costs, parameter_costs
from leanear.prune.rotated import prune_rotated
from leanear.prune.scoring import score_widths
from leanear.prune.widths import POOLS, RotatedRecipe, choose_widths, cut
from leanear.reference.choose import choose_share
from leanear.runtimes.errors import BadInput
from tests.calibration.collected import collect_statistics
from tests.toolchain.dense_twin import zero_dropped_channels_
from tests.toolchain.whisper_pruning import answers, checkpoint, clips, divergence

SMALL = RotatedRecipe(multiples=(2, 2), chunk=4)


def pruned(model, sparsity: float, recipe: RotatedRecipe = SMALL, **options):
    costs = parameter_costs(whisper.dense_plan(model))
    return prune_rotated(whisper, model, clips(10), costs, (1 - sparsity) * costs.dense, recipe, **options)


def in_double(given):
    return dataclasses.replace(given, inputs=SpeechInputs(given.inputs.features.double(), given.inputs.tokens))


def output_of(model, index, given) -> torch.Tensor:
    """What one attention block gives to the residual stream."""
    kept = []
    hook = whisper.attention_sites(model)[index].output.register_forward_hook(lambda _m, _i, out: kept.append(out))
    answers(model, given)
    hook.remove()
    return kept[0]


@pytest.mark.parametrize("basis", ["weights", "activations", "attention", "fisher"])
def test_at_full_width_every_site_computes_the_same(basis):
    """Encoder, causal and cross-attention: one block after the other in fp32, and all together in float64."""
    model, judges = checkpoint().model, clips(5, seed=9)
    scores = score_widths(whisper, model, clips(8), dataclasses.replace(SMALL, basis=basis).scoring, made_from={})
    bases = scores.bases
    costs = parameter_costs(whisper.dense_plan(model))
    sites = whisper.attention_sites(model)
    full = choose_widths(sites, scores.losses, costs, costs.dense, SMALL)
    assert full.cost == costs.dense
    _, kept = cut(whisper, model, bases, full)
    for index, site in enumerate(sites):
        states = [kept_attention_state(each, plan) for each, plan in zip(sites, kept, strict=True)]
        states[index] = rotated_attention_state(site, bases[site.name], kept[index])
        one = whisper.slim_model(model, kept, states)
        assert not torch.equal(whisper.attention_sites(one)[index].query.weight, site.query.weight)
        expected = output_of(model, index, judges)
        assert (output_of(one, index, judges) - expected).abs().max() < 1e-5 * expected.abs().max(), site.name
    exact = model.double()
    together, _ = cut(whisper, exact, bases, full)
    expected = answers(exact, in_double(judges))
    assert (answers(together, in_double(judges)) - expected).abs().max() < 1e-7


def test_derivatives_by_masks_equal_finite_differences_at_all_three_kinds():
    """The clip's summed loss with one channel's mask at 1 + e and 1 - e, every channel of one block of each kind."""
    model, given = checkpoint().model.double(), in_double(clips(2, seed=3))
    sites = whisper.attention_sites(model)
    found = collect_statistics(model, sites, given.inputs, given.targets, whisper.logits, labels="observed")
    step, kinds = 1e-5, set()
    for site in sites[1:4]:
        kinds.add(site.kind)
        for kind in ("query_key", "value_output"):
            differences = []
            for channel in range(0, 32, 3):
                ends = []
                for sign in (1, -1):
                    mask = torch.ones(32, dtype=torch.float64)
                    mask[channel] += sign * step
                    if kind == "query_key":
                        hook = site.query.register_forward_hook(lambda _m, _i, out, mask=mask: out * mask)
                    else:
                        hook = site.output.register_forward_pre_hook(lambda _m, a, mask=mask: (a[0] * mask,))
                    with torch.no_grad():
                        logits = whisper.logits(model, given.inputs)
                    hook.remove()
                    losses = torch.nn.functional.cross_entropy(
                        logits.transpose(1, 2), given.targets, ignore_index=-100, reduction="none"
                    )
                    ends.append(losses.sum(dim=1))
                differences.append((ends[0] - ends[1]) / (2 * step))
            expected = torch.stack(differences, dim=1)
            actual = getattr(found[site.name], kind).diagonal(dim1=-2, dim2=-1).flatten(1)[:, ::3].double()
            assert expected.abs().max() > 1e-4
            assert torch.allclose(actual, expected, rtol=1e-3, atol=1e-6), (site.name, kind)
    assert kinds == {"encoder", "decoder", "cross"}


def test_longer_padding_changes_no_statistic():
    """The same clips, filled up further: as many tokens counted, the same sums and the same random signs."""
    model, given = checkpoint().model, clips(4)
    sites = whisper.attention_sites(model)

    def collect(inputs, targets):
        generator = torch.Generator().manual_seed(1)
        found = collect_statistics(
            model, sites, inputs, targets, whisper.logits, attended_keys=True, generator=generator
        )
        return statistics_tensors(found)

    tokens = torch.nn.functional.pad(given.inputs.tokens, (0, 5), value=3)
    longer = collect(
        dataclasses.replace(given.inputs, tokens=tokens), torch.nn.functional.pad(given.targets, (0, 5), value=-100)
    )
    for name, tensor in collect(given.inputs, given.targets).items():
        assert torch.allclose(longer[name], tensor, rtol=1e-3, atol=1e-4 * float(tensor.abs().max())), name


@pytest.mark.parametrize("pools", POOLS)
@pytest.mark.parametrize("sites", ["all", "self-attention"])
def test_the_budget_is_kept_and_shared_out_as_asked(pools, sites):
    model = checkpoint().model
    recipe = dataclasses.replace(SMALL, pools=pools, sites=sites, seed=1)  # by which no narrower block loses less
    found = pruned(model, 0.4, recipe)
    removed = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in found.model.parameters())
    assert removed == found.plan.attention_parameters_dense - found.plan.attention_parameters_kept
    assert found.cost == found.plan.attention_parameters_kept <= 0.6 * found.plan.attention_parameters_dense
    assert found.damage > 0
    shares = found.plan.shares
    assert list(shares) == ["encoder", "decoder", "cross"]
    assert sum(share.dense for share in shares.values()) == found.plan.attention_parameters_dense
    if sites == "self-attention":
        assert shares["cross"].sparsity == 0
    pruned_kinds = [kind for kind in shares if shares[kind].sparsity > 0]
    assert len(pruned_kinds) == (3 if sites == "all" else 2)
    one_channel = 1 / 32
    if pools == "by-kind":
        asked = 0.4 if sites == "all" else 0.6
        assert all(asked <= shares[kind].sparsity < asked + one_channel for kind in pruned_kinds)
    assert answers(found.model, clips(3, seed=4)).isfinite().all()


def test_one_budget_for_all_loses_no_more_by_its_own_estimate():
    model = checkpoint().model
    by_pools = {pools: pruned(model, 0.5, dataclasses.replace(SMALL, pools=pools)) for pools in POOLS}
    assert by_pools["global"].damage <= by_pools["by-kind"].damage
    assert by_pools["global"].plan.sites != by_pools["by-kind"].plan.sites


def test_the_same_clips_give_the_same_plan_and_weights():
    model = checkpoint().model
    one, two = pruned(model, 0.5), pruned(model, 0.5)
    assert plan_sha256(one.plan) == plan_sha256(two.plan)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    other = pruned(model, 0.5, dataclasses.replace(SMALL, seed=1))
    assert plan_sha256(other.plan) != plan_sha256(one.plan)


def test_chunks_taken_apart_are_the_whole():
    """As many clips in memory as there are, or one: the same basis but for rounding, and the same plan."""
    model = checkpoint().model.double()
    given, costs = in_double(clips(10)), parameter_costs(whisper.dense_plan(model))
    one, two = (
        prune_rotated(whisper, model, given, costs, 0.5 * costs.dense, SMALL, clips_at_once=at_once)
        for at_once in (None, 1)
    )
    assert one.plan == two.plan
    assert one.damage == pytest.approx(two.damage, rel=1e-5)


def test_the_basis_beats_the_channels_as_trained():
    model, judges = checkpoint().model, clips(12, seed=8)
    kls = {basis: divergence(model, pruned(model, 0.5, dataclasses.replace(SMALL, basis=basis)).model, judges)
           for basis in ("trained", "fisher")}  # fmt: skip
    assert 0 < kls["fisher"] < 0.9 * kls["trained"]


def test_parameters_and_macs_are_those_of_built_models():
    dense = checkpoint()
    model = dense.model
    plan = whisper.dense_plan(model)
    assert not plan.key_bias
    assert plan.attention_parameters_dense == 6 * (4 * 32 * 32 + 2 * 32), "four matrices, two biases"
    slim = pruned(model, 0.5)
    costs = mac_costs(plan, whisper.macs(dense, model))
    widths = [tuple(zip(s.query_key_widths, s.value_output_widths, strict=True)) for s in slim.plan.sites]
    assert costs.of(widths) == whisper.macs(dense, slim.model).total < costs.dense
    assert costs.of([((16, 16), (16, 16))] * 6) == costs.dense == whisper.macs(dense, model).total


def test_macs_of_torch_are_counted_alike():
    """Encoder and cross-attention as torch counts them in one pass over all tokens; a cache saves half the pairs.

    Torch computes every token's pairs with all tokens.
    """
    model = checkpoint().model
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.set_attn_implementation("eager")
        model(
            input_features=torch.randn(1, 80, 200),
            decoder_input_ids=torch.zeros(1, 10, dtype=torch.int64),
            use_cache=False,
        )
    later_pairs = 10 * 10 - 10 * 11 // 2
    more = 2 * 2 * later_pairs * (16 + 16)
    assert counter.get_total_flops() / 2 == count_whisper_macs(model, None, 10).total + more


def test_what_is_out_of_reach_is_said():
    with pytest.raises(BadInput, match="out of reach"):
        pruned(checkpoint().model, 0.7, dataclasses.replace(SMALL, sites="self-attention"))


def test_the_dense_twin_answers_as_the_slim_model():
    """Whisper with zeroed channels, at full size, is the model that the reference's surgery makes."""
    model, judges = checkpoint().model, clips(4, seed=5)
    sites = whisper.attention_sites(model)
    kept = choose_share([s.name for s in sites], score_magnitude(sites), "channels", "local", 0.5)
    slim = whisper.slim_model(model, kept)
    for site, plan in zip(sites, kept, strict=True):
        zero_dropped_channels_(site, plan)
    assert (answers(slim, judges) - answers(model, judges)).abs().max() < 1e-4
