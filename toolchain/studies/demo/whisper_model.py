"""The demo Whisper before training: its settings, its first weights, and what transformers' `generate` reads of it."""

from __future__ import annotations

import math

import torch
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer

from leanear.studies.demo.tokens import LANGUAGES, MAX_TARGET_POSITIONS, MEL_BINS, TIMESTAMP_SECONDS, WINDOW_SECONDS

MAX_SOURCE_POSITIONS = round(WINDOW_SECONDS / TIMESTAMP_SECONDS)


def new_config(tokenizer: WhisperTokenizer) -> WhisperConfig:
    """The demo Whisper's settings: Whisper's head width, half of Whisper tiny's model width, and a window of 6 s."""
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    return WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=MEL_BINS,
        d_model=192,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        encoder_ffn_dim=384,
        decoder_ffn_dim=384,
        max_source_positions=MAX_SOURCE_POSITIONS,
        max_target_positions=MAX_TARGET_POSITIONS,
        decoder_start_token_id=tokenizer.convert_tokens_to_ids("<|startoftranscript|>"),
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )


def new_model(tokenizer: WhisperTokenizer, seed: int) -> WhisperForConditionalGeneration:
    """The demo Whisper, untrained."""
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(new_config(tokenizer))
    initialise(model)
    model.generation_config = new_generation_config(tokenizer, model.config)
    return model


@torch.no_grad()
def initialise(model: WhisperForConditionalGeneration) -> None:
    """Draws the weights that training starts from; biases, norms and the encoder's positions stay as they were made.

    Every product keeps the scale of what goes into it, and what goes into the residual stream is smaller.
    """
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "layers." in name:
            into_residual = name.endswith(("out_proj.weight", "fc2.weight"))
            weight.normal_(std=(0.4 if into_residual else 1.0) * weight.shape[1] ** -0.5)
        elif weight.ndim == 3:
            weight.normal_(std=math.sqrt(2 / (weight.shape[1] * weight.shape[2])))
    width = model.config.d_model
    model.model.decoder.embed_tokens.weight.normal_(std=width**-0.5)
    rate = 1000.0 ** (-torch.arange(width // 2) / (width // 2))
    angle = torch.arange(model.config.max_target_positions)[:, None] * rate
    model.model.decoder.embed_positions.weight.copy_(0.1 * torch.cat([angle.sin(), angle.cos()], dim=1))


def new_generation_config(tokenizer: WhisperTokenizer, config: WhisperConfig) -> GenerationConfig:
    """What transformers' `generate` needs to know: the tokens' numbers, what may not be said, and which heads align.

    The alignment heads are all cross-attention heads of the upper half of the decoder, as transformers takes them where
    nobody has looked; `choose_alignment_heads` replaces them once there is a model to look at.
    """
    number = tokenizer.convert_tokens_to_ids
    languages = {f"<|{language}|>": number(f"<|{language}|>") for language in LANGUAGES}
    tasks = {task: number(f"<|{task}|>") for task in ("transcribe", "translate")}
    unsaid = ("<|startoftranscript|>", *languages, *(f"<|{task}|>" for task in tasks), "<|startoflm|>")
    unsaid += ("<|startofprev|>", "<|nospeech|>")
    layers, heads = config.decoder_layers, config.decoder_attention_heads
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        is_multilingual=True,
        lang_to_id=languages,
        task_to_id=tasks,
        no_timestamps_token_id=number("<|notimestamps|>"),
        prev_sot_token_id=number("<|startofprev|>"),
        suppress_tokens=sorted(number(token) for token in unsaid),
        # A lone space. Whisper also forbids an empty transcript here; this model is trained to leave silence empty.
        begin_suppress_tokens=[number("Ġ")],
        max_initial_timestamp_index=config.max_source_positions // 2,
        max_length=config.max_target_positions,
        return_timestamps=False,
        alignment_heads=[[layer, head] for layer in range(layers // 2, layers) for head in range(heads)],
    )
