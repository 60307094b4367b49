"""Which cross-attention heads of a Whisper follow the speech: its own list, or heads that are seen to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from leanear.families.whisper import WhisperCheckpoint
from leanear.progress import Report
from leanear.runtimes.alignment import Alignment, softmax
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_object
from leanear.runtimes.speech.decoding import DecodeOptions, decode_window, prompt_tokens

LEAST_CORRELATION = 0.8
MOST_HEADS = 6
MEASURING_CLIPS = 16
LEAST_TOKENS = 4  # of a clip that a head is judged by


def alignment_of(checkpoint: WhisperCheckpoint) -> Alignment:
    """The alignment heads of generation_config.json or, where it has none, all of the decoder's upper half."""
    config, settings = checkpoint.model.config, checkpoint.model.generation_config
    heads = {(int(layer), int(head)) for layer, head in getattr(settings, "alignment_heads", None) or ()}
    lost, width = _pruned_heads(checkpoint), int(config.median_filter_width)
    if heads:
        return Alignment(tuple(sorted(heads)), "generation_config", lost, width)
    every = every_head(checkpoint)
    upper = tuple(head for head in every if head[0] >= config.decoder_layers // 2)
    return Alignment(upper, "upper half", lost, width)


def choose_alignment(checkpoint: Any, clips: Sequence[np.ndarray], report: Report) -> Alignment:
    """The heads that an artifact's word times are taken from: those of `alignment_of` or, rather than all of the upper
    half, those that are seen to follow the speech of `clips`, float32 (samples,) each, if there are any.

    Raises:
        BadInput: the model is a classifier.
    """
    if not isinstance(checkpoint, WhisperCheckpoint):
        raise BadInput(f"--word-timestamps: it is for Whisper; {checkpoint.folder} is a classifier")
    own = alignment_of(checkpoint)
    if own.chosen_by == "generation_config" or not len(clips):
        return own
    scores = measured_correlations(checkpoint, clips[:MEASURING_CLIPS], report)
    if scores is None:  # nothing is said in them
        return own
    every = every_head(checkpoint)
    heads = following_heads(scores, every)
    return Alignment(heads, "measurement", own.lost, own.filter_positions)


def every_head(checkpoint: WhisperCheckpoint) -> list[tuple[int, int]]:
    """(decoder layer, head) of all heads of cross-attention, those that pruning took not counted."""
    from leanear.export.onnx.attention import read_widths

    layers = checkpoint.model.model.decoder.layers
    return [
        (number, head) for number, layer in enumerate(layers) for head in range(len(read_widths(layer.encoder_attn)[0]))
    ]


def measured_correlations(
    checkpoint: WhisperCheckpoint, clips: Sequence[np.ndarray], report: Report
) -> np.ndarray | None:
    """For every head, how steadily what it looks at moves with what the model says of the clips; None: it says nothing.

    It is the correlation of `correlations`, averaged over the clips of at least LEAST_TOKENS tokens.
    """
    from leanear.evaluate.torch_speech import TorchSpeechSession, speech_model

    model, session = speech_model(checkpoint), TorchSpeechSession(checkpoint, every_head(checkpoint))
    options, found = DecodeOptions(timestamps=False), []
    for number, clip in enumerate(clips):
        session.encode(clip)
        decoded = decode_window(session, model.tokens, options)
        text = [token for token in decoded.tokens if model.vocabulary.is_text(token)]
        if len(text) >= LEAST_TOKENS:
            prompt = [model.tokens.start, *prompt_tokens(model.tokens, options, decoded.language)]
            positions = max(min(len(clip), model.window_samples) // model.step_samples, 1)
            scores = session.alignment_scores(np.array([*prompt, *text], dtype=np.int64))[..., :positions]
            # What a token's query looks at is what the next token is read from; behind the last one comes no sound.
            found.append(correlations(softmax(scores)[:, len(prompt) - 1 : -1].argmax(axis=-1)))
        report(f"clip {number + 1} of {len(clips)}", (number + 1) / len(clips))
    session.close()
    return np.mean(found, axis=0) if found else None


def following_heads(scores: np.ndarray, heads: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Of `heads` with their correlations those of at least LEAST_CORRELATION: one at least and MOST_HEADS at most."""
    order = np.argsort(-scores, kind="stable")
    chosen = [heads[place] for place in order if scores[place] >= LEAST_CORRELATION][:MOST_HEADS]
    return tuple(sorted(chosen or [heads[order[0]]]))


def correlations(attended: np.ndarray) -> np.ndarray:
    """The correlation with 0, 1, 2, ... along the last axis; 0 where nothing changes."""
    attended = attended.astype(np.float64)
    places = np.arange(attended.shape[-1]) - (attended.shape[-1] - 1) / 2
    centred = attended - attended.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).sum(-1) * (places**2).sum())
    return np.divide((centred * places).sum(-1), spread, out=np.zeros_like(spread), where=spread > 0)


def _pruned_heads(checkpoint: WhisperCheckpoint) -> int:
    """How many heads of the dense model's list pruning took, as pruning.json says; 0 where there is none."""
    path = checkpoint.folder / "pruning.json"
    if not path.is_file():
        return 0
    found = read_object(path).get("alignment_heads")
    dropped = found.get("dropped", []) if isinstance(found, dict) else []
    return len(dropped) if isinstance(dropped, list) else 0
