"""The heads that an artifact's word times are taken from; where the model has no list, measured on clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from leanear.evaluate.torch_speech import TorchSpeechSession, speech_model
from leanear.families.alignment import alignment_of, correlations, every_head, following_heads
from leanear.families.whisper import WhisperCheckpoint
from leanear.progress import Report
from leanear.runtimes.errors import BadInput
from leanear.runtimes.speech.alignment import Alignment, softmax
from leanear.runtimes.speech.decoding import DecodeOptions, decode_window, prompt_tokens

MEASURING_CLIPS = 16
LEAST_TOKENS = 4  # of a clip that a head is judged by


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


def measured_correlations(
    checkpoint: WhisperCheckpoint, clips: Sequence[np.ndarray], report: Report
) -> np.ndarray | None:
    """For every head, how steadily what it looks at moves with what the model says of the clips; None: it says nothing.

    It is the correlation of `correlations`, averaged over the clips of at least LEAST_TOKENS tokens.
    """
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
