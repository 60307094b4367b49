"""What a Whisper checkpoint says of golden clips in torch, with the logits of every step.

Of a window of any length these are its encoder's states, and what its decoder looks at.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from leanear.runtimes.artifact import Golden, GoldenSpeech
from leanear.runtimes.errors import BadInput
from leanear.runtimes.manifest import Decoding, EncoderWindows
from leanear.runtimes.speech.encoder_windows import transcribe_prompt
from leanear.runtimes.speech.guided_steps import log_sums

GOLDEN_TOKENS = 24
ALIGNMENT_BLOCK = 8  # positions whose attention golden clips hold as one sum
GOLDEN_COLUMNS = 8192  # so that golden logits of a large vocabulary stay a few MB
LIKELY = 1e-3  # tokens that are as likely as this after any step are kept, whatever their number


def window_states(encoder: Any, features: Any) -> Any:
    """States (B, T, D) of features (B, mel bins, frames), by transformers' own encoder, stock or slim.

    Of fewer frames than the model's window has, the positions are the first rows of the trained ones. The weights are
    the encoder's own, not copies.
    """
    from torch import nn

    frames_per_position = encoder.conv1.stride[0] * encoder.conv2.stride[0]
    positions = features.shape[-1] // frames_per_position
    if positions == encoder.config.max_source_positions:
        return encoder(features).last_hidden_state
    shorter = copy.copy(encoder)
    shorter._modules = dict(encoder._modules)
    shorter.config = copy.copy(encoder.config)
    shorter.config.max_source_positions = positions
    shorter.embed_positions = nn.Embedding.from_pretrained(encoder.embed_positions.weight[:positions])
    return shorter(features).last_hidden_state


def cross_attention(model: Any, tokens: np.ndarray, states: Any) -> list[np.ndarray]:
    """How much every token looks at every position of a window, by decoder layer: float32 (H, N, T), after softmax.

    tokens: int64 (N,), from the start on; states: of one window (1, T, D).
    """
    import torch

    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the others do not store it
    try:
        decoded = model.model.decoder(
            input_ids=torch.tensor(tokens, device=states.device)[None],
            encoder_hidden_states=states,
            use_cache=False,
            output_attentions=True,
        )
    finally:
        model.set_attn_implementation(attention)
    return [weights[0].float().cpu().numpy() for weights in decoded.cross_attentions]


def collect_golden_speech(
    model: Any,
    feature_extractor: Any,
    waveforms: Sequence[np.ndarray],
    decoding: Decoding,
    windows: EncoderWindows,
    alignment_heads: Sequence[tuple[int, int]] = (),
) -> Golden:
    """The clips, what the checkpoint says of them in torch when the likeliest token is taken, and its logits.

    Each clip is heard in the shortest of the windows that holds it. No cache is used. Suppressed tokens are not taken.
    The end of the text is, and decoding goes on after it, so that more steps are proved. alignment_heads: whose
    attention is kept as well, after the last step.
    """
    import torch

    if not waveforms:
        raise BadInput("golden clips: at least one is needed")
    clips = tuple(np.ascontiguousarray(waveform, dtype=np.float32) for waveform in waveforms)
    prompt, training = np.array(transcribe_prompt(decoding), dtype=np.int64), model.training
    steps = min(GOLDEN_TOKENS, model.config.max_target_positions - len(prompt))
    if steps < 1:
        raise BadInput(f"config.json: max_target_positions of {model.config.max_target_positions} hold no transcript")
    tokens, logits, attention = [], [], []
    model.eval()
    with torch.inference_mode():
        for number, clip in enumerate(clips):
            if clip.ndim != 1 or len(clip) < 1:
                raise BadInput(f"golden clip {number}: shape {clip.shape}; at least one sample, mono")
            features = feature_extractor(clip, sampling_rate=feature_extractor.sampling_rate, return_tensors="pt")
            frames = windows.holding(len(clip)) // feature_extractor.hop_length
            heard = features["input_features"].to(torch.float32)[..., :frames]
            states = window_states(model.model.encoder, heard)
            fed, rows = list(prompt), []
            for step in range(steps):
                decoded = model.model.decoder(
                    input_ids=torch.tensor([fed]), encoder_hidden_states=states, use_cache=False
                )
                # All logits of one pass: those after the prompt's first token as well as the last.
                wanted = [0, -1] if step == 0 else [-1]
                rows += list(model.proj_out(decoded.last_hidden_state[0, wanted]).numpy())
                allowed = rows[-1].copy()
                allowed[[*decoding.suppress, *(decoding.begin_suppress if step == 0 else ())]] = -np.inf
                fed.append(int(allowed.argmax()))
            tokens.append(fed[len(prompt) :])
            logits.append(np.stack(rows))
            if alignment_heads:
                weights = cross_attention(model, np.array(fed[:-1]), states)
                chosen = np.stack([weights[layer][head] for layer, head in alignment_heads])
                attention.append(in_blocks(chosen, model.config.max_source_positions))
    model.train(training)
    said = np.array(tokens, dtype=np.int64)
    stacked = np.stack(logits).astype(np.float32)
    sums = log_sums(stacked)
    likely = np.flatnonzero((stacked - sums[..., None] >= np.log(LIKELY)).any(axis=(0, 1)))
    columns = _kept_columns(model.config.vocab_size, np.concatenate([prompt, said.ravel(), likely]))
    alignment = np.stack(attention) if alignment_heads else None
    return Golden(clips, stacked[..., columns], GoldenSpeech(prompt, said, columns, sums, alignment))


def in_blocks(weights: np.ndarray, positions: int) -> np.ndarray:
    """Attention (A, N, T) summed over each ALIGNMENT_BLOCK of the model's `positions`, float32 (A, N, blocks).

    Positions that a shorter window lacks are looked at by nobody.
    """
    blocks = -(-positions // ALIGNMENT_BLOCK)
    filled = np.zeros((*weights.shape[:2], blocks * ALIGNMENT_BLOCK), np.float32)
    filled[..., : weights.shape[2]] = weights
    return filled.reshape(*weights.shape[:2], blocks, ALIGNMENT_BLOCK).sum(axis=-1)


def _kept_columns(size: int, tokens: np.ndarray) -> np.ndarray:
    """All tokens, or evenly spaced ones and those given."""
    stride = -(-size // GOLDEN_COLUMNS)
    return np.unique(np.concatenate([np.arange(0, size, stride), tokens])).astype(np.int64)
