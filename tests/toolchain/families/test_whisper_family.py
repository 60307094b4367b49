"""Whisper: surgery on every kind of attention, decoding with and without cache, folders that stand alone, bad input."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from leanear.calibration.basis import SiteBasis
from leanear.data.examples import SpeechInputs
from leanear.families import whisper
from leanear.families.checkpoint import CHECKPOINT_FILES, checkpoint_sha256, load_checkpoint
from leanear.families.slimming import rotated_attention_state
from leanear.families.whisper.model import alignment_of
from leanear.families.whisper.settings import languages
from leanear.plan import HeadPlan, SitePlan, compose, full_plan, read_plan
from leanear.runtimes.errors import BadInput
from leanear.runtimes.manifest import Decoding
from leanear.runtimes.records import as_json, read
from tests.conftest import tone
from tests.toolchain.dense_twin import zero_dropped_channels_
from tests.toolchain.pruning_documents import pruning_document
from tests.toolchain.whisper_pruning import fed_and_said
from tests.whisper_models import WINDOW_S, make_extractor, make_tokenizer, make_whisper, write_whisper

KINDS = ("encoder", "decoder", "cross")
NAMES = (
    "encoder.layers.0.self_attn", "encoder.layers.1.self_attn",
    "decoder.layers.0.self_attn", "decoder.layers.0.encoder_attn",
    "decoder.layers.1.self_attn", "decoder.layers.1.encoder_attn",
)  # fmt: skip
TEXTS = ("the other hand", "in", "Über and out")


@pytest.fixture(scope="module")
def dense() -> WhisperForConditionalGeneration:
    return make_whisper(head_width=8, heads=4)


@pytest.fixture(scope="module")
def dense_folder(tmp_path_factory, dense) -> Path:
    return write_whisper(tmp_path_factory.mktemp("whisper") / "tiny", dense)


@pytest.fixture(scope="module")
def heard() -> torch.Tensor:
    """Features of three different clips."""
    noise = (0.1 * np.random.default_rng(0).normal(size=WINDOW_S * 16000)).astype(np.float32)
    return whisper.features(make_extractor(), [tone(300, 1.5), noise, tone(900, 0.3) + noise[:4800]])


@pytest.fixture(scope="module")
def inputs(heard) -> SpeechInputs:
    return SpeechInputs(heard, fed_and_said(make_tokenizer(), TEXTS, "en")[0])


@pytest.fixture(scope="module")
def pruned(dense) -> tuple[tuple[SitePlan, ...], WhisperForConditionalGeneration, WhisperForConditionalGeneration]:
    """Ragged widths and removed heads in all blocks: what is kept, the slim model, and its dense twin with zeros."""
    sites = random_sites(dense, seed=3)
    return sites, whisper.slim_model(dense, sites), zeroed(dense, sites)


def random_sites(model, seed: int, *, kinds=KINDS, ragged=True, drop_heads=True) -> tuple[SitePlan, ...]:
    """A plan that cuts the blocks of the given kinds; another head is removed in every block."""
    generator = np.random.default_rng(seed)
    sites = []
    for number, (site, full) in enumerate(zip(whisper.attention_sites(model), full_sites(model))):
        if site.kind not in kinds:
            sites.append(full)
            continue
        heads = []
        widths = generator.integers(2, 8, size=2)
        for head in full.heads:
            if drop_heads and head.head == number % len(full.heads):
                continue
            if ragged:
                widths = generator.integers(1, 8, size=2)
            query_key, value_output = (
                sorted(generator.choice(8, size=width, replace=False).tolist()) for width in widths
            )
            heads.append(HeadPlan(head.head, tuple(query_key), tuple(value_output)))
        sites.append(SitePlan(site.name, full.dense_heads, tuple(heads)))
    return tuple(sites)


def full_sites(model) -> tuple[SitePlan, ...]:
    return full_plan("whisper", whisper.attention_sites(model)).sites


def zeroed(model, sites) -> WhisperForConditionalGeneration:
    twin = copy.deepcopy(model)
    for site, site_plan in zip(whisper.attention_sites(twin), sites):
        zero_dropped_channels_(site, site_plan)
    return twin


def logits(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return whisper.logits(model, inputs)


def generated(model, heard, **settings) -> list[list[int]]:
    settings = {"language": "en", "max_new_tokens": 24, **settings}
    torch.manual_seed(0)
    with torch.no_grad():
        return model.generate(heard, **settings).tolist()


def plan_of(model, sites):
    plan = whisper.dense_plan(model)
    return type(plan)(**{**plan.__dict__, "sites": sites})


def saved(dense_folder, sites, out: Path, facts=None) -> tuple[WhisperForConditionalGeneration, Path]:
    """The slim model, and the folder that holds it."""
    checkpoint = whisper.load_checkpoint(dense_folder)
    slim = whisper.slim_model(checkpoint.model, sites)
    whisper.save_slim_checkpoint(slim, checkpoint, plan_of(checkpoint.model, sites), out, facts)
    return slim, out


# Sites


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


# Surgery


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
    second = tuple(
        SitePlan(
            site.name,
            len(site.query_key_widths),
            tuple(
                HeadPlan(head, tuple(range(0, qk, 2)), tuple(range(0, vo, 2)))
                for head, (qk, vo) in enumerate(zip(site.query_key_widths, site.value_output_widths))
            ),
        )
        for site in whisper.attention_sites(once)
    )
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


# Decoding


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"return_timestamps": True},
        {"num_beams": 3},
        {"num_beams": 3, "return_timestamps": True},
        {"do_sample": True, "temperature": 0.7},
        {"language": None},
        {"task": "translate", "language": "german"},
    ],
    ids=str,
)
def test_generate_with_cache_and_without_dense_and_slim(dense, heard, pruned, settings):
    """Token for token: without a cache, with one, and the slim model as its dense twin."""
    _, slim, twin = pruned
    for model in (dense, slim):
        cached = generated(model, heard, **settings)
        assert cached == generated(model, heard, use_cache=False, **settings)
        assert len({tuple(row) for row in cached}) == 3, "other audio, other tokens"
        assert max(len(set(row)) for row in cached) > 5
    assert generated(slim, heard, **settings) == generated(twin, heard, **settings)
    assert generated(slim, heard, **settings) != generated(dense, heard, **settings)


def test_keeping_everything_generates_the_same(dense, heard):
    whole = whisper.slim_model(dense, full_sites(dense))
    for settings in ({}, {"return_timestamps": True}, {"num_beams": 2}):
        assert generated(whole, heard, **settings) == generated(dense, heard, **settings)


def test_with_a_cache_a_step_reads_one_token(heard, pruned):
    slim, lengths = pruned[1], []
    hook = slim.model.decoder.embed_tokens.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    generated(slim, heard, max_new_tokens=5)
    cached, lengths[:] = list(lengths), []
    generated(slim, heard, max_new_tokens=5, use_cache=False)
    hook.remove()
    assert cached == [4, 1, 1, 1, 1]
    assert lengths == [4, 5, 6, 7, 8]


def test_every_block_has_a_cache_of_its_own_shape(heard, pruned):
    sites, slim, _ = pruned
    tokens = torch.tensor([[slim.config.decoder_start_token_id, 5]] * 3)
    with torch.no_grad():
        cache = slim(heard, decoder_input_ids=tokens, use_cache=True).past_key_values
    for layer in range(2):
        parts = ((cache.self_attention_cache, 2, 2), (cache.cross_attention_cache, 100, 3))
        for part, length, offset in parts:
            site = sites[2 * layer + offset]
            keys, values = part.layers[layer].keys, part.layers[layer].values
            assert keys.shape == (3, 3, length, max(site.query_key_widths))
            assert values.shape == (3, 3, length, max(site.value_output_widths))
    shapes = {layer.keys.shape for layer in cache.self_attention_cache.layers}
    assert len(shapes) == 2, "the blocks must differ, or the test proves nothing"


def test_attention_weights_can_be_had(heard, pruned):
    """Eager and SDPA compute the same; only the former has weights to show."""
    slim = copy.deepcopy(pruned[1])
    tokens, _ = fed_and_said(make_tokenizer(), TEXTS, "en")
    by_sdpa = logits(slim, SpeechInputs(heard, tokens))
    slim.set_attn_implementation("eager")
    with torch.no_grad():
        out = slim(heard, decoder_input_ids=tokens, output_attentions=True)
    assert (out.logits - by_sdpa).abs().max() < 2e-5
    assert [tuple(weights.shape) for weights in out.cross_attentions] == [(3, 3, tokens.shape[1], 100)] * 2
    for weights in (*out.encoder_attentions, *out.decoder_attentions, *out.cross_attentions):
        assert torch.allclose(weights.sum(dim=-1), torch.ones(()))


@pytest.mark.parametrize("settings", [{}, {"condition_on_prev_tokens": True}, {"num_beams": 2}], ids=str)
def test_audio_longer_than_a_window(pruned, settings):
    """By transformers' own windows; with earlier text as a prompt, which only a "whisper" may begin with."""
    _, slim, twin = pruned
    extractor = make_extractor()
    waveform = np.concatenate([tone(frequency, 1.1) for frequency in (200, 500, 800, 1100)])
    long = extractor(waveform, sampling_rate=16000, truncation=False, padding="longest", return_tensors="pt")
    assert long["input_features"].shape[-1] > 2 * 200
    settings = {"return_timestamps": True, "return_segments": True, "language": "en", "max_new_tokens": 12, **settings}
    with torch.no_grad():
        segments, expected = (
            [
                segment["tokens"].tolist()
                for segment in model.generate(long["input_features"], **settings)["segments"][0]
            ]
            for model in (slim, twin)
        )
    assert len(segments) > 2
    assert segments == expected


def test_prompts_begin_with_previous_text(heard, pruned):
    _, slim, twin = pruned
    prompt = torch.tensor(make_tokenizer().get_prompt_ids("the other"))
    assert generated(slim, heard, prompt_ids=prompt) == generated(twin, heard, prompt_ids=prompt)
    assert generated(slim, heard, prompt_ids=prompt) != generated(slim, heard)


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


# Words to tokens


def test_targets_follow_the_tokens_that_are_fed():
    tokenizer = make_tokenizer()
    tokens, wanted = fed_and_said(tokenizer, TEXTS, "en")
    assert tokens.shape == wanted.shape
    known = tokenizer.get_vocab()
    prompt = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    assert tokens[:, :4].tolist() == [[known[name] for name in prompt]] * 3
    assert wanted[:, :3].tolist() == [[-100] * 3] * 3
    for row, text in enumerate(TEXTS):
        learned = wanted[row][wanted[row] != -100].tolist()
        assert learned[-1] == known["<|endoftext|>"]
        assert tokenizer.decode(learned[:-1]) == f" {text}"
        assert tokens[row, 4 : 3 + len(learned)].tolist() == learned[:-1], "each is to be said after the one before it"
        assert set(tokens[row, 3 + len(learned) :].tolist()) <= {known["<|endoftext|>"]}


def test_prompts_of_english_only_models_have_no_language():
    tokenizer = make_tokenizer()
    known = tokenizer.get_vocab()
    assert whisper.prompt_tokens(tokenizer, None) == [known["<|startoftranscript|>"], known["<|notimestamps|>"]]
    assert fed_and_said(tokenizer, ["in"])[1][0].tolist() == [-100, *whisper.text_tokens(tokenizer, "in"), 274]


def test_a_transcript_is_no_place_for_special_tokens():
    with pytest.raises(BadInput, match=r"^train/a\.wav: its transcript holds '<\|en\|>', a special token$"):
        whisper.text_tokens(make_tokenizer(), "say <|en|> now", "train/a.wav")


def test_speech_inputs_are_indexed_like_a_tensor(inputs):
    order = torch.tensor([2, 0])
    assert len(inputs) == 3
    assert torch.equal(inputs[order].features, inputs.features[order])
    assert torch.equal(inputs[order].tokens, inputs.tokens[order])
    assert len(inputs[1:]) == 2
    with pytest.raises(ValueError, match="features of 3 clips but tokens of 2"):
        SpeechInputs(inputs.features, inputs.tokens[:2])


@pytest.mark.parametrize("samples", [0, 1, 100, 399, 1600])
def test_features_of_very_short_clips(samples):
    found = whisper.features(make_extractor(), [np.full(samples, 0.1, np.float32)])
    assert found.shape == (1, 80, 200)
    assert torch.isfinite(found).all()


def test_a_clip_longer_than_the_window_is_refused_not_cut():
    with pytest.raises(BadInput, match=r"lasts 2\.50 s, longer than the model's window of 2 s"):
        whisper.features(make_extractor(), [tone(300, 2.5)])


def test_languages(dense_folder, heard):
    checkpoint = whisper.load_checkpoint(dense_folder)
    assert whisper.prompt_language(checkpoint) is None
    assert [whisper.prompt_language(checkpoint, name) for name in ("de", "German", "<|de|>", "castilian")] == [
        "de", "de", "de", "es",
    ]  # fmt: skip
    with pytest.raises(BadInput, match=r"knows no language 'fr'; it knows .*en"):
        whisper.prompt_language(checkpoint, "fr")
    by_transformers = checkpoint.model.detect_language(heard[:1], num_segment_frames=200).item()
    tokens = languages(checkpoint.tokenizer)
    assert list(tokens) == ["en", "zh", "de", "es"]
    assert tokens[whisper.detected_language(checkpoint, heard[:1])] == by_transformers
    checkpoint.model.generation_config.language = "<|de|>"
    assert whisper.prompt_language(checkpoint) == "de"
    checkpoint.model.generation_config.language = None
    checkpoint.model.generation_config.lang_to_id = {"<|zh|>": 277}
    assert whisper.prompt_language(checkpoint) == "zh", "the only one"


def test_english_only(tmp_path, heard):
    """Its vocabulary has language tokens that no prompt uses."""
    folder = write_whisper(tmp_path / "english", english_only=True)
    checkpoint = whisper.load_checkpoint(folder)
    assert not checkpoint.is_multilingual
    assert whisper.prompt_language(checkpoint) is None
    assert whisper.prompt_language(checkpoint, "english") is None
    assert whisper.detected_language(checkpoint, heard) is None
    with pytest.raises(BadInput, match="knows English alone, not 'de'"):
        whisper.prompt_language(checkpoint, "de")
    settings = whisper.decoding_settings(checkpoint)
    assert (settings.multilingual, settings.languages, settings.default_language) == (False, {}, "en")
    sites = full_sites(checkpoint.model)
    slim, out = saved(folder, sites, tmp_path / "slim")
    assert not load_checkpoint(out).is_multilingual
    assert generated(slim, heard, language=None) == generated(checkpoint.model, heard, language=None)


def test_decoding_settings(dense_folder):
    settings = whisper.decoding_settings(whisper.load_checkpoint(dense_folder))
    known = make_tokenizer().get_vocab()
    assert settings.start == known["<|startoftranscript|>"]
    assert settings.languages == {name: known[f"<|{name}|>"] for name in ("en", "zh", "de", "es")}
    assert settings.timestamp_begin == known["<|0.00|>"]
    assert settings.begin_suppress == (220, known["<|endoftext|>"])
    assert (settings.positions, settings.timestamp_step_s, settings.window_s) == (64, 0.02, 2.0)
    assert read(Decoding, json.loads(json.dumps(as_json(settings))), "settings") == settings


def test_vocabulary_is_whole_even_where_the_tokenizer_lists_no_timestamps(dense_folder):
    checkpoint = whisper.load_checkpoint(dense_folder)
    texts = whisper.vocabulary_tokens(checkpoint)
    assert len(texts) == len(set(texts)) == checkpoint.model.config.vocab_size
    assert (texts[256], texts[274], texts[286], texts[-1]) == ("Ġt", "<|endoftext|>", "<|0.00|>", "<|2.00|>")


# Folders


def test_a_slim_folder_comes_back_as_it_was(dense_folder, pruned, inputs, heard, tmp_path):
    slim, folder = saved(dense_folder, pruned[0], tmp_path / "slim")
    checkpoint = load_checkpoint(folder)
    assert isinstance(checkpoint, whisper.WhisperCheckpoint)
    assert checkpoint.model.config.query_key_widths
    assert torch.equal(logits(checkpoint.model, inputs), logits(slim, inputs))
    assert generated(checkpoint.model, heard) == generated(slim, heard)
    assert [site.scaling for site in whisper.attention_sites(checkpoint.model)] == [8**-0.5] * 6, "a constant"
    assert read_plan(folder / "plan.json").sites == pruned[0]
    assert json.loads((folder / "config.json").read_text())["model_type"] == "slim-whisper"
    assert WhisperProcessor.from_pretrained(folder).tokenizer.english_spelling_normalizer == {"colour": "color"}
    assert whisper.decoding_settings(checkpoint) == whisper.decoding_settings(whisper.load_checkpoint(dense_folder))


def test_a_slim_folder_can_be_saved_by_transformers_and_read_again(dense_folder, pruned, inputs, tmp_path):
    slim, folder = saved(dense_folder, pruned[0], tmp_path / "slim")
    shutil.copytree(folder, tmp_path / "again")
    whisper.load_checkpoint(folder).model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(whisper.load_checkpoint(tmp_path / "again").model, inputs), logits(slim, inputs))


ALONE = """
import json, sys
for name in ("toolchain", "calibration", "export", "runtimes", "benchmarks"):
    sys.modules[name] = None  # importing it fails
import torch
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor
torch.set_num_threads(1)
model = AutoModelForSpeechSeq2Seq.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
clip = torch.load(sys.argv[2], weights_only=True).numpy()
heard = processor(clip, sampling_rate=16000, return_tensors="pt").input_features
tokens = {
    name: model.generate(heard, language="en", max_new_tokens=24, **settings).tolist()
    for name, settings in json.loads(sys.argv[3]).items()
}
text = processor.batch_decode(tokens["greedy"])
print(json.dumps({"module": type(model).__module__, "tokens": tokens, "text": text}))
"""


def test_a_folder_opens_where_leanear_is_not_installed(dense_folder, pruned, tmp_path):
    slim, folder = saved(dense_folder, pruned[0], tmp_path / "slim")
    clip = tone(700, 1.2)
    torch.save(torch.from_numpy(clip), tmp_path / "clip.pt")
    ways = {
        "greedy": {}, "uncached": {"use_cache": False}, "beams": {"num_beams": 3}, "timed": {"return_timestamps": True},
    }  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-c", ALONE, folder, tmp_path / "clip.pt", json.dumps(ways)],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    assert said["module"].startswith("transformers_modules.")
    heard = whisper.features(make_extractor(), [clip])
    for name, settings in ways.items():
        assert said["tokens"][name] == generated(slim, heard, **settings), name
    assert said["text"] == make_tokenizer().batch_decode(said["tokens"]["greedy"])


def test_not_finite_weights_are_not_written(dense_folder, dense, pruned, tmp_path):
    checkpoint = whisper.load_checkpoint(dense_folder)
    slim = whisper.slim_model(dense, pruned[0])
    slim.model.decoder.layers[0].fc1.weight.data[0, 0] = float("nan")
    with pytest.raises(BadInput, match=r"not written, because .* in 'model\.decoder\.layers\.0\.fc1\.weight'"):
        whisper.save_slim_checkpoint(slim, checkpoint, plan_of(dense, pruned[0]), tmp_path / "slim")
    assert not (tmp_path / "slim").exists()


def test_every_file_that_is_read_counts_for_the_identity(dense_folder, pruned, tmp_path):
    _, folder = saved(dense_folder, pruned[0], tmp_path / "slim")
    unnamed = {path.name for path in folder.iterdir()} - set(CHECKPOINT_FILES)
    assert unnamed == {"modeling_slim_whisper.py"}
    before = checkpoint_sha256(folder)
    edit(folder / "generation_config.json", max_initial_timestamp_index=7)
    assert checkpoint_sha256(folder) != before


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


# Bad input


def edit(path: Path, **changes) -> None:
    """Set keys of a JSON file, or remove those that are None."""
    settings = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del settings[key]
        else:
            settings[key] = value
    path.write_text(json.dumps(settings))


def edit_weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def larger_vocabulary(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer.json").read_text())
    more = {**settings["added_tokens"][-1], "id": 387, "content": "<|2.02|>"}
    edit(folder / "tokenizer.json", added_tokens=[*settings["added_tokens"], more])


def without_token(folder: Path, token: str) -> None:
    settings = json.loads((folder / "tokenizer.json").read_text())
    added = [
        {**entry, "content": "<|x|>"} if entry["content"] == token else entry for entry in settings["added_tokens"]
    ]
    edit(folder / "tokenizer.json", added_tokens=added)
    edit(folder / "tokenizer_config.json", extra_special_tokens=[])  # or it would be added again


K_PROJ = "model.decoder.layers.1.encoder_attn.k_proj.weight"
FAULTS = {
    "no front end": (
        lambda folder: (folder / "preprocessor_config.json").unlink(),
        r"preprocessor_config\.json: no such file",
    ),
    "front end damaged": (
        lambda folder: (folder / "preprocessor_config.json").write_text("{"),
        r"preprocessor_config\.json: not JSON",
    ),
    "window too long": (
        lambda folder: edit(folder / "preprocessor_config.json", chunk_length=30),
        r"preprocessor_config\.json: chunk_length is 30 s, 3000 frames, a window longer than the model's: "
        r"max_source_positions in config\.json is 100, for 200 frames",
    ),
    "window too short": (
        lambda folder: edit(folder / "preprocessor_config.json", chunk_length=1),
        r"chunk_length is 1 s, 100 frames, a window shorter than the model's",
    ),
    "other mel bins": (
        lambda folder: edit(folder / "preprocessor_config.json", feature_size=128),
        r"preprocessor_config\.json: feature_size is 128, but config\.json says 80",
    ),
    "no tokenizer": (
        lambda folder: [(folder / name).unlink() for name in ("tokenizer.json", "vocab.json")],
        r"tokenizer\.json: no such file; the tokenizer's vocabulary is needed",
    ),
    "tokenizer damaged": (
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        r"tokenizer\.json: not a Whisper tokenizer",
    ),
    "tokenizer of something else": (
        lambda folder: (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Bread"}}'),
        r"tokenizer\.json: not a Whisper tokenizer",
    ),
    "vocabulary too large": (
        larger_vocabulary,
        r"tokenizer\.json: the vocabulary has 388 tokens, but the model 387 \(vocab_size in config\.json\)",
    ),
    "vocabulary too small": (
        lambda folder: edit(
            folder / "tokenizer.json",
            added_tokens=json.loads((folder / "tokenizer.json").read_text())["added_tokens"][:-30],
        ),
        r"tokenizer\.json: the vocabulary has 357 tokens, fewer than the model's 387",
    ),
    "no start token": (
        lambda folder: without_token(folder, "<|startoftranscript|>"),
        r"tokenizer\.json: it has no '<\|startoftranscript\|>'",
    ),
    "other start token": (
        lambda folder: edit(folder / "config.json", decoder_start_token_id=3),
        r"config\.json: decoder_start_token_id is 3, but '<\|startoftranscript\|>' of the tokenizer is 275",
    ),
    "no generation settings": (
        lambda folder: (folder / "generation_config.json").unlink(),
        r"generation_config\.json: no such file; Whisper's decoding rules are needed",
    ),
    "generation settings damaged": (
        lambda folder: (folder / "generation_config.json").write_text("[]"),
        r"generation_config\.json: not generation settings",
    ),
    "another id for no timestamps": (
        lambda folder: edit(folder / "generation_config.json", no_timestamps_token_id=9),
        r"no_timestamps_token_id is 9, but '<\|notimestamps\|>' of the tokenizer is 285",
    ),
    "no languages": (
        lambda folder: edit(folder / "generation_config.json", lang_to_id={}),
        r"generation_config\.json: it has no lang_to_id, (which a multilingual model needs|and the tokenizer no such)",
    ),
    "a task that it has not": (
        lambda folder: edit(folder / "generation_config.json", task="sing"),
        r"generation_config\.json: task is 'sing', but it has transcribe, translate",
    ),
    "forced to say something": (
        lambda folder: edit(folder / "generation_config.json", forced_decoder_ids=[[1, 3]]),
        r"generation_config\.json: forced_decoder_ids forces token 3, which is neither a language nor a task",
    ),
    "forced out of order": (
        lambda folder: edit(folder / "config.json", forced_decoder_ids=[[2, 3]]),
        r"/config\.json: forced_decoder_ids has \[2, 3\], where \[1, a token\] is wanted",
    ),
    "nothing says how many languages": (
        lambda folder: edit(folder / "generation_config.json", is_multilingual=None, lang_to_id=None, task_to_id=None),
        r"generation_config\.json: nothing says whether the model is multilingual; set is_multilingual",
    ),
    "English alone, and translating": (
        lambda folder: edit(folder / "generation_config.json", is_multilingual=False, task="translate"),
        r"generation_config\.json: task is 'translate', but the model knows English alone",
    ),
    "another language": (
        lambda folder: edit(folder / "generation_config.json", lang_to_id={"<|en|>": 277}),
        r"generation_config\.json: lang_to_id says that '<\|en\|>' is 277, and the tokenizer 276",
    ),
    "a task of none": (
        lambda folder: edit(folder / "generation_config.json", task_to_id={"sing": 3}),
        r"task_to_id says that '<\|sing\|>' is 3, and the tokenizer None",
    ),
    "suppressed beyond": (
        lambda folder: edit(folder / "generation_config.json", suppress_tokens=[1, 50000]),
        r"generation_config\.json: suppress_tokens holds 50000, which no token of the model is",
    ),
    "alignment heads malformed": (
        lambda folder: edit(folder / "generation_config.json", alignment_heads=[3]),
        r"generation_config\.json: alignment_heads names 3",
    ),
    "impossible model": (
        lambda folder: edit(folder / "config.json", encoder_attention_heads=5),
        r"config\.json: no model can be built from it",
    ),
    "no decoder": (
        lambda folder: edit(folder / "config.json", decoder_layers=0),
        r"config\.json: decoder_layers is 0; there is no attention to prune",
    ),
    "heads of two widths": (
        lambda folder: edit(folder / "config.json", decoder_attention_heads=2),
        r"config\.json: encoder_attention_heads is 4 and decoder_attention_heads 2; heads of two widths",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"weights cannot be read"),
    "weights damaged": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"0" * 100),
        r"weights cannot be read",
    ),
    "weights of another shape": (
        lambda folder: edit_weights(folder, lambda tensors: tensors.update({K_PROJ: torch.zeros(16, 32)})),
        rf"'{K_PROJ}' has another shape in the weights than config\.json says",
    ),
    "a weight missing": (
        lambda folder: edit_weights(folder, lambda tensors: tensors.pop(K_PROJ)),
        rf"the weights lack '{K_PROJ}' \(1 tensors missing\)",
    ),
    "weights not finite": (
        lambda folder: edit_weights(folder, lambda tensors: tensors[K_PROJ].fill_(float("nan"))),
        rf"the weights hold NaN or infinite values, in '{K_PROJ}'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_checkpoints_are_one_line(dense_folder, tmp_path, fault):
    folder = tmp_path / "broken"
    shutil.copytree(dense_folder, folder)
    damage, line = FAULTS[fault]
    damage(folder)
    with pytest.raises(BadInput, match=line) as refused:
        load_checkpoint(folder)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"query_key_widths": [[8]]},
            r"config\.json: no model can be built from it \(query_key_widths and .* 6 blocks",
        ),
        ({"value_output_widths": [[4]] * 6}, r"has another shape in the weights than config\.json says"),
        ({"query_key_widths": "wide"}, r"config\.json: no model can be built from it"),
    ],
)
def test_bad_slim_checkpoints_are_one_line(dense_folder, pruned, tmp_path, changes, line):
    _, folder = saved(dense_folder, pruned[0], tmp_path / "slim")
    edit(folder / "config.json", **changes)
    with pytest.raises(BadInput, match=line):
        load_checkpoint(folder)


def test_an_unknown_family_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(BadInput, match=r"model_type is 'bert'; leanear takes .* and Whisper \(whisper\)"):
        load_checkpoint(tmp_path)
