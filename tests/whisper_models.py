"""Tiny stock Whisper checkpoints with random weights, whole: weights, front end, tokenizer and generation settings."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

WINDOW_S = 2
LANGUAGES = ("en", "zh", "de", "es")  # transformers counts languages in its own order, so these are its first ones
MERGES = (
    ("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("a", "n"), ("Ġ", "a"), ("o", "n"), ("e", "r"), ("Ġ", "s"),
    ("Ġ", "w"), ("o", "u"), ("r", "e"), ("Ġ", "o"), ("Ġa", "n"), ("Ġan", "d"), ("in", "g"), ("Ã", "¼"), ("ã", "ģ"),
)  # fmt: skip
SPELLINGS = {"colour": "color"}


def special_tokens() -> tuple[str, ...]:
    """From the end of text to the last before the timestamps, in Whisper's order; English-only models have them too."""
    languages = tuple(f"<|{language}|>" for language in LANGUAGES)
    tasks = ("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
    return ("<|endoftext|>", "<|startoftranscript|>", *languages, *tasks)


def make_tokenizer(window_s: int = WINDOW_S) -> WhisperTokenizer:
    """A byte-level tokenizer of all 256 bytes and a few merges, with Whisper's special tokens and timestamps."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in MERGES)]
    tokenizer = WhisperTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=list(MERGES),
        additional_special_tokens=list(special_tokens()[1:]),
    )
    tokenizer.add_tokens([AddedToken(f"<|{step * 0.02:.2f}|>", normalized=False) for step in range(window_s * 50 + 1)])
    tokenizer.english_spelling_normalizer = dict(SPELLINGS)
    return tokenizer


def make_extractor(window_s: int = WINDOW_S, mels: int = 80) -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=mels, chunk_length=window_s)


def make_whisper(
    *,
    head_width: int = 16,
    heads: int = 2,
    layers: int = 2,
    window_s: int = WINDOW_S,
    positions: int = 64,
    seed: int = 0,
    english_only: bool = False,
    alignment_heads: tuple[tuple[int, int], ...] = ((0, 0), (1, 0), (1, 1)),
    calm: bool = False,
) -> WhisperForConditionalGeneration:
    """A random Whisper in eval mode; its next token depends on the audio, the tokens before it and the position.

    Its generation settings are complete. calm: its attention is not so sharp that what is cut out of it may move by
    more in rounding than the proof of a graph allows.
    """
    known = make_tokenizer(window_s).get_vocab()
    end = known["<|endoftext|>"]
    width = head_width * heads
    config = WhisperConfig(
        vocab_size=len(known),
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=window_s * 50,
        max_target_positions=positions,
        decoder_start_token_id=known["<|startoftranscript|>"],
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config).eval()
    draw_weights_(model, seed, known)
    if calm:
        for name, weight in model.named_parameters():
            weight.data *= 0.3 if "q_proj" in name or "k_proj" in name else 1.0
    model.generation_config = generation_settings(config, known, english_only=english_only)
    model.generation_config.alignment_heads = [list(head) for head in alignment_heads]
    return model


def draw_weights_(model: WhisperForConditionalGeneration, seed: int, known: dict[str, int]) -> None:
    """Weights with which greedy decoding neither says one token for ever nor the same for all audio.

    Small embeddings and large sub-layers keep the last token from being the likeliest next one, the end of text comes
    up now and then, and timestamps only where the rules ask for them.
    """
    spreads = {
        "embed_tokens": 0.15, "embed_positions": 0.5, "norm": 0.05, "bias": 0.05,
        "q_proj": 0.8, "k_proj": 0.8, "out_proj": 0.6, "fc2": 0.6,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        spread = next((spread for part, spread in spreads.items() if part in name), 0.25)
        parameter.data = spread * torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            parameter.data += 1
    embeddings = model.model.decoder.embed_tokens.weight.data
    embeddings[known["<|notimestamps|>"] + 1 :] *= 0.4
    embeddings[known["<|endoftext|>"]] *= 1.5


def generation_settings(config: WhisperConfig, known: dict[str, int], *, english_only: bool) -> GenerationConfig:
    """All that Whisper's generation_config.json holds, but the alignment heads."""
    unspoken = ("startoftranscript", "translate", "transcribe", "startoflm", "startofprev", "nospeech")
    settings = GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        max_length=config.max_target_positions,
        suppress_tokens=sorted([known["#"], known["("], *(known[f"<|{name}|>"] for name in unspoken)]),
        begin_suppress_tokens=[known["Ġ"], known["<|endoftext|>"]],
        is_multilingual=not english_only,
        no_timestamps_token_id=known["<|notimestamps|>"],
        prev_sot_token_id=known["<|startofprev|>"],
        max_initial_timestamp_index=50,
        return_timestamps=False,
    )
    if not english_only:
        settings.lang_to_id = {f"<|{language}|>": known[f"<|{language}|>"] for language in LANGUAGES}
        settings.task_to_id = {task: known[f"<|{task}|>"] for task in ("transcribe", "translate")}
    return settings


def write_whisper(folder: Path, model: WhisperForConditionalGeneration | None = None, **settings) -> Path:
    """Write a dense checkpoint with all its files and give back its folder; settings: as `make_whisper` takes them."""
    model = make_whisper(**settings) if model is None else model
    window_s = model.config.max_source_positions // 50
    model.save_pretrained(folder)
    make_extractor(window_s, model.config.num_mel_bins).save_pretrained(folder)
    tokenizer = make_tokenizer(window_s)
    tokenizer.save_pretrained(folder)
    tokenizer.save_vocabulary(str(folder))
    return folder
