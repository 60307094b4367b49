"""Which cross-attention heads of a Whisper follow the speech, for word times."""

from __future__ import annotations

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration, WhisperTokenizer

from leanear.alignment import correlations, following_heads
from leanear.export.whisper.window_states import cross_attention, window_states


@torch.no_grad()
def choose_alignment_heads(
    model: WhisperForConditionalGeneration, tokenizer: WhisperTokenizer, features: torch.Tensor, texts: list[str]
) -> list[list[int]]:
    """`[layer, head]` of the heads whose most attended time rises with the text, at least one and at most six.

    A head's score is the correlation between a token's place in the text and the time that the head attends to most,
    averaged over the clips. `features` is float32 (N, mel bins, frames) of `texts`.
    """
    layers, heads = model.config.decoder_layers, model.config.decoder_attention_heads
    scores = np.zeros((layers, heads))
    prompt = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"])
    for clip, text in zip(features, texts, strict=True):
        ids = tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        states = window_states(model.model.encoder, clip[None])
        weights = np.stack(cross_attention(model, np.array([*prompt, *ids]), states))  # (layers, heads, tokens, times)
        # What a token's query looks at is what the next token is read from.
        # The last one, a full stop or a question mark, has no sound of its own.
        scores += correlations(weights[:, :, len(prompt) - 1 : -2].argmax(axis=3)) / len(texts)
    places = [(layer, head) for layer in range(layers) for head in range(heads)]
    return [list(place) for place in following_heads(scores.ravel(), places)]
