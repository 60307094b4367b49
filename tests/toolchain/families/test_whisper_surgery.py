"""Whisper: surgery on every kind of attention, training, and the heads that tell times."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from leanear.calibration.basis import SiteBasis
from leanear.data.examples import SpeechInputs
from leanear.families import whisper
from leanear.families.slimming import rotated_attention_state
from leanear.families.whisper.model import alignment_of
from leanear.plan import HeadPlan, SitePlan, compose
from leanear.runtimes.errors import BadInput
from tests.toolchain.dense_twin import every_other_channel
from tests.toolchain.pruning_documents import pruning_document
from tests.toolchain.whisper_pruning import fed_and_said
from tests.toolchain.whisper_surgery import (
    KINDS,
    NAMES,
    TEXTS,
    edit,
    full_sites,
    generated,
    logits,
    plan_of,
    random_sites,
    saved,
    zeroed,
)
from tests.whisper_models import make_tokenizer


def test_sites_of_all_three_kinds_in_order(dense, pruned):
    for model in (dense, pruned[1]):
        sites = whisper.attention_sites(model)
        assert tuple(site.name for site in sites) == NAMES
        assert [site.kind for site in sites] == ["encoder", "encoder", "decoder", "cross", "decoder", "cross"]
        assert [site.causal for site in sites] == [False, False, True, False, True, False]
        assert all(site.key.bias is None for site in sites), "Whisper's keys have no bias"
        assert all(linear.bias is not None for site in sites for linear in (site.query, site.value, site.output))
        assert {site.scaling for site in sites} == {8**-0.5}
        for site in sites:
            assert site.module is model.get_submodule(f"model.{site.name}")
            assert site.query.out_features == site.key.out_features == sum(site.query_key_widths)
            assert site.value.out_features == site.output.in_features == sum(site.value_output_widths)


def test_a_slim_model_is_no_start_for_a_plan(pruned):
    with pytest.raises(BadInput, match="already slim"):
        whisper.dense_plan(pruned[1])


def test_keeping_everything_is_bit_identical(dense, inputs):
    assert torch.equal(logits(whisper.slim_model(dense, full_sites(dense)), inputs), logits(dense, inputs))


@pytest.mark.parametrize("kinds", [("encoder",), ("decoder",), ("cross",), KINDS])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("drop_heads", [False, True])
def test_smaller_matrices_equal_zeroed_channels(dense, inputs, kinds, ragged, drop_heads):
    sites = random_sites(dense, 5, kinds=kinds, ragged=ragged, drop_heads=drop_heads)
    expected = logits(zeroed(dense, sites), inputs)
    assert (expected - logits(dense, inputs)).abs().max() > 0.1, (
        "the plan must matter, or the comparison proves nothing"
    )
    assert (logits(whisper.slim_model(dense, sites), inputs) - expected).abs().max() < 2e-5


def test_parameters_really_go(dense, pruned):
    sites, slim, _ = pruned
    plan = plan_of(dense, sites)
    removed = sum(p.numel() for p in dense.parameters()) - sum(p.numel() for p in slim.parameters())
    assert removed == plan.attention_parameters_dense - plan.attention_parameters_kept > 0
    assert not [block for block in slim.modules() if type(block).__name__ == "WhisperAttention"], (
        "no stock block is left"
    )


def test_sparsity_counts_no_key_bias(dense):
    """Half of the heads removed, D=32: exactly half; per block 4 weights of D x D and two biases."""
    halved = tuple(SitePlan(site.name, 4, site.heads[:2]) for site in full_sites(dense))
    plan = plan_of(dense, halved)
    assert plan.attention_parameters_dense == 6 * (4 * 32 * 32 + 2 * 32)
    assert plan.sparsity == 0.5


def test_pruning_twice_equals_pruning_once(dense, inputs, pruned):
    first, once, _ = pruned
    second = every_other_channel(whisper.attention_sites(once))
    twice = whisper.slim_model(once, second)
    assert torch.equal(logits(twice, inputs), logits(whisper.slim_model(dense, compose(first, second)), inputs))


def test_the_dense_model_is_not_changed(dense, inputs, pruned):
    before = logits(dense, inputs)
    slim = whisper.slim_model(dense, pruned[0])
    for parameter in slim.parameters():
        parameter.data.add_(1.0)
    assert torch.equal(logits(dense, inputs), before)
    assert dense.generation_config.alignment_heads == [[0, 0], [1, 0], [1, 1]]


def test_embeddings_stay_tied(dense, pruned, dense_folder, tmp_path):
    slim, folder = saved(dense_folder, pruned[0], tmp_path / "slim")
    for model in (slim, whisper.load_checkpoint(folder).model):
        assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    assert "proj_out.weight" not in load_file(folder / "model.safetensors")


def random_basis(site, seed: int) -> SiteBasis:
    """Any invertible change of basis, and a mean context, for a block whose heads are all of one width."""
    generator = torch.Generator().manual_seed(seed)
    heads, qk, vo = len(site.query_key_widths), site.query_key_widths[0], site.value_output_widths[0]
    query = torch.eye(qk).double() + 0.3 * torch.randn(heads, qk, qk, generator=generator).double()
    output = torch.eye(vo).double() + 0.3 * torch.randn(heads, vo, vo, generator=generator).double()
    mean = torch.randn(heads, vo, generator=generator).double()
    nothing = torch.zeros(1, heads, max(qk, vo)).double()
    return SiteBasis(query, query.inverse().mT, output.inverse().mT, output, mean, nothing, nothing)


def test_a_new_basis_with_nothing_cut_changes_no_logit(dense, inputs):
    dense, inputs = copy.deepcopy(dense).double(), SpeechInputs(inputs.features.double(), inputs.tokens)
    sites, everything = whisper.attention_sites(dense), full_sites(dense)
    states = [
        rotated_attention_state(site, random_basis(site, number), kept)
        for number, (site, kept) in enumerate(zip(sites, everything))
    ]
    assert all("key.bias" not in state for state in states)
    turned = whisper.slim_model(dense, everything, states)
    assert all(not site.value.bias.any() for site in whisper.attention_sites(turned)), "it is in the output bias"
    assert (logits(turned, inputs) - logits(dense, inputs)).abs().max() < 1e-9


# Training


def test_loss_is_that_of_teacher_forcing(dense, heard, inputs):
    """By hand, token by token; and the model's own loss is the same where the prompt is masked as well."""
    tokenizer = make_tokenizer()
    _, wanted = fed_and_said(tokenizer, TEXTS, "en")
    probabilities = logits(dense, inputs).log_softmax(dim=-1)
    learned = [
        -probabilities[row, place, wanted[row, place]].item()
        for row in range(3)
        for place in range(wanted.shape[1])
        if wanted[row, place] != -100
    ]
    assert len(learned) == sum(len(whisper.text_tokens(tokenizer, text)) + 1 for text in TEXTS)
    loss = whisper.batch_loss(dense, inputs, wanted)
    assert loss.item() == pytest.approx(np.mean(learned), rel=1e-5)
    own = dense(heard, decoder_input_ids=inputs.tokens, labels=wanted).loss
    assert own.item() == pytest.approx(loss.item(), rel=1e-6)


def test_gradients_reach_every_block(inputs, pruned):
    """Of the loss, by weights and by what goes in and out of every projection."""
    slim = copy.deepcopy(pruned[1])
    seen = {}

    def keep(name):
        def hook(_module, args, out):
            out.retain_grad()
            seen[name] = out

        return hook

    for site in whisper.attention_sites(slim):
        for part in ("query", "key", "value", "output"):
            getattr(site, part).register_forward_hook(keep(f"{site.name} {part}"))
    slim.train()
    _, wanted = fed_and_said(make_tokenizer(), TEXTS, "en")
    slim(inputs.features, labels=wanted, decoder_input_ids=inputs.tokens).loss.backward()
    assert len(seen) == 24
    assert all(states.grad.abs().max() > 0 for states in seen.values())
    missing = [
        name for name, parameter in slim.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert missing == []
    assert [name for name, p in slim.named_parameters() if not p.requires_grad] == [
        "model.encoder.embed_positions.weight"
    ]


def test_layers_can_be_recomputed(inputs, pruned):
    slim = copy.deepcopy(pruned[1]).train()
    assert len(whisper.encoder_layers(slim)) == 4
    _, wanted = fed_and_said(make_tokenizer(), TEXTS, "en")
    whisper.batch_loss(slim, inputs, wanted).backward()
    plain = {name: parameter.grad.clone() for name, parameter in slim.named_parameters() if parameter.grad is not None}
    slim.zero_grad()
    slim.activation_checkpointing_enable({"use_reentrant": False})
    whisper.batch_loss(slim, inputs, wanted).backward()
    for name, parameter in slim.named_parameters():
        if name in plain:
            assert torch.allclose(parameter.grad, plain[name], atol=1e-6), name


# Alignment heads


def test_alignment_heads_get_their_new_numbers(dense, dense_folder, tmp_path):
    """Layer 0 loses head 0, which tells times; in layer 1, head 0 goes and head 1 becomes the first."""
    sites = tuple(
        SitePlan(site.name, 4, site.heads[1:] if site.name.endswith("encoder_attn") else site.heads)
        for site in full_sites(dense)
    )
    found = whisper.alignment_heads(dense.generation_config, sites)
    assert found == whisper.AlignmentHeads(kept=(whisper.KeptHead((1, 1), (1, 0)),), dropped=((0, 0), (1, 0)))
    slim, folder = saved(dense_folder, sites, tmp_path / "slim", pruning_document())
    assert slim.generation_config.alignment_heads == [[1, 0]]
    assert whisper.load_checkpoint(folder).model.generation_config.alignment_heads == [[1, 0]]
    assert json.loads((folder / "pruning.json").read_text())["alignment_heads"] == {
        "kept": [{"dense": [1, 1], "slim": [1, 0]}],
        "dropped": [[0, 0], [1, 0]],
    }


def test_alignment_heads_through_two_steps(dense):
    first = tuple(SitePlan(site.name, 4, site.heads[1:]) for site in full_sites(dense))
    once = whisper.slim_model(dense, first)
    second = tuple(
        SitePlan(site.name, len(site.query_key_widths), tuple(HeadPlan(h, (0, 1), (0,)) for h in (0, 2)))
        for site in whisper.attention_sites(once)
    )
    twice = whisper.slim_model(once, second)
    directly = whisper.slim_model(dense, compose(first, second))
    assert twice.generation_config.alignment_heads == directly.generation_config.alignment_heads == [[1, 0]]


def test_alignment_heads_of_a_larger_model_are_said_and_not_used(dense_folder, tmp_path, caplog):
    """A distilled model may come with its teacher's list, which words' times alone need."""
    folder = shutil.copytree(dense_folder, tmp_path / "distilled")
    edit(folder / "generation_config.json", alignment_heads=[[0, 0], [1, 4]])
    checkpoint = whisper.load_checkpoint(folder)
    assert "alignment_heads names [1, 4], which the model does not have; the list is not used" in caplog.text
    assert alignment_of(checkpoint).chosen_by == "upper half"


def test_without_alignment_heads_there_are_no_token_times(dense, heard):
    sites = tuple(SitePlan(site.name, 4, site.heads[2:]) for site in full_sites(dense))
    slim = whisper.slim_model(dense, sites)
    assert not hasattr(slim.generation_config, "alignment_heads")
    with pytest.raises(ValueError, match="no `alignment_heads`"):
        generated(slim, heard, return_token_timestamps=True)


@pytest.mark.parametrize("beams", [1, 2])
def test_token_times_by_the_heads_that_stay(dense, heard, beams):
    """Of a slim model with its renumbered heads, and of its dense twin with the same heads under their old numbers."""
    sites = random_sites(dense, 9, kinds=("cross",))
    slim, twin = whisper.slim_model(dense, sites), zeroed(dense, sites)
    found = whisper.alignment_heads(dense.generation_config, sites)
    assert found.kept
    twin.generation_config.alignment_heads = [list(head.dense) for head in found.kept]
    times = []
    for model in (slim, twin):
        out = model.generate(heard[:1], language="en", max_new_tokens=20, num_beams=beams, return_token_timestamps=True)
        times.append((out["sequences"].tolist(), out["token_timestamps"]))
    assert times[0][0] == times[1][0]
    assert torch.allclose(times[0][1], times[1][1], atol=0.021)
    assert times[0][1].max() > 0
