"""Whisper: decoding with and without a cache, dense and slim; words to tokens."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from leanear.data.examples import SpeechInputs
from leanear.families import whisper
from leanear.families.checkpoint import load_checkpoint
from leanear.families.whisper.settings import languages
from leanear.runtimes.errors import BadInput
from leanear.runtimes.manifest import Decoding
from leanear.runtimes.records import as_json, read
from tests.conftest import tone
from tests.toolchain.whisper_pruning import fed_and_said
from tests.toolchain.whisper_surgery import TEXTS, full_sites, generated, logits, saved
from tests.whisper_models import make_extractor, make_tokenizer, write_whisper


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
    said = []
    for model in (dense, slim):
        cached = generated(model, heard, **settings)
        said.append(cached)
        assert cached == generated(model, heard, use_cache=False, **settings)
        assert len({tuple(row) for row in cached}) == 3, "other audio, other tokens"
        assert max(len(set(row)) for row in cached) > 5
    assert said[1] == generated(twin, heard, **settings)
    assert said[1] != said[0]


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
