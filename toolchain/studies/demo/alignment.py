"""Which cross-attention heads of a Whisper follow the speech, for word times."""

from __future__ import annotations

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration, WhisperTokenizer

LEAST_CORRELATION = 0.8
MOST_HEADS = 6


@torch.no_grad()
def choose_alignment_heads(
    model: WhisperForConditionalGeneration, tokenizer: WhisperTokenizer, features: torch.Tensor, texts: list[str]
) -> list[list[int]]:
    """`[layer, head]` of the heads whose most attended time rises with the text, at least one and at most six.

    A head's score is the correlation between a token's place in the text and the time that the head attends to most,
    averaged over the clips. `features` is float32 (N, mel bins, frames) of `texts`.
    """
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")
    scores = np.zeros((model.config.decoder_layers, model.config.decoder_attention_heads))
    prompt = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"])
    for clip, text in zip(features, texts, strict=True):
        ids = tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        given = torch.tensor([[*prompt, *ids]])
        output = model(input_features=clip[None], decoder_input_ids=given, output_attentions=True)
        weights = torch.stack(output.cross_attentions)[:, 0]  # (layers, heads, tokens, times)
        # What a token's query looks at is what the next token is read from.
        # The last one, a full stop or a question mark, has no sound of its own.
        attended = weights[:, :, len(prompt) - 1 : -2].argmax(3).double().numpy()
        scores += _correlations(attended) / len(texts)
    model.set_attn_implementation(attention)
    order = [divmod(int(place), scores.shape[1]) for place in np.argsort(-scores, axis=None)]
    chosen = [place for place in order if scores[place] >= LEAST_CORRELATION][:MOST_HEADS] or order[:1]
    return [list(place) for place in sorted(chosen)]


def _correlations(attended: np.ndarray) -> np.ndarray:
    """The correlation with 0, 1, 2, ... along the last axis; 0 where nothing changes."""
    places = np.arange(attended.shape[-1]) - (attended.shape[-1] - 1) / 2
    centred = attended - attended.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).sum(-1) * (places**2).sum())
    return np.divide((centred * places).sum(-1), spread, out=np.zeros_like(spread), where=spread > 0)
