"""A speech session led through given tokens, and how far what it says comes next is from what was to be said."""

from __future__ import annotations

from typing import List, Tuple

import numpy as np

from leanear.runtimes.artifact import Golden, GoldenSpeech
from leanear.runtimes.manifest import Decoding
from leanear.runtimes.sessions import SpeechSession

SMALLEST_SHARE = 1e-6  # of probability, below which float32 tells nothing apart


def guided_logits(
    session: SpeechSession, waveform: np.ndarray, window: int, speech: GoldenSpeech, clip: int
) -> Tuple[np.ndarray, np.ndarray]:
    """Logits after the prompt's first token, after the prompt, and after each token but the last; and those at once.

    window: samples of it that the encoder is given.

    Raises:
        MeasurementFailed: the graph gave NaN or infinite values.
    """
    prompt, tokens = speech.prompt, speech.tokens[clip]
    session.encode(waveform, window)
    session.start()
    logits = [session.step(fed[None])[0].copy() for fed in (prompt[:1], prompt[1:], *tokens[:-1, None])]
    session.start()
    return np.stack(logits), session.step(np.concatenate([prompt, tokens[:-1]])[None])[0].copy()


def written_down(session: SpeechSession, prompt: np.ndarray, most: int, decoding: Decoding) -> List[int]:
    """The likeliest tokens of the encoded window, one by one, up to the end of the text or `most`."""
    session.start()
    logits = session.step(prompt[None])[0]
    tokens: List[int] = []
    while len(tokens) < most and decoding.end not in tokens[-1:]:
        if tokens:
            logits = session.step(np.array([tokens[-1:]], dtype=np.int64))[0]
        allowed = logits.copy()
        allowed[[*decoding.suppress, *(() if tokens else decoding.begin_suppress)]] = -np.inf
        tokens.append(int(allowed.argmax()))
    return tokens


def until_end(tokens: List[int], end: int) -> List[int]:
    """The tokens up to the end of the text, which is the last one where it was reached."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def text_steps(golden: Golden, clip: int, decoding: Decoding) -> slice:
    """The steps of a golden clip up to the end of its text; what language it is counts."""
    assert golden.speech is not None
    said = until_end(golden.speech.tokens[clip].tolist(), decoding.end)
    return slice(0 if decoding.multilingual else 1, 1 + len(said))


def clip_divergences(golden: Golden, clip: int, logits: np.ndarray, decoding: Decoding) -> np.ndarray:
    """`divergences` of a golden clip's steps up to the end of its text; logits: of at least those steps."""
    speech, steps = golden.speech, text_steps(golden, clip, decoding)
    assert speech is not None
    return divergences(golden.logits[clip, steps], speech.log_sums[clip, steps], logits[steps], speech.columns)


def divergences(expected: np.ndarray, sums: np.ndarray, logits: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """KL(expected || logits) of every step, in nats, (steps,): of the tokens in `columns`, all others being one.

    expected: (steps, columns); sums: (steps,), logarithms of the summed exponentials of all expected logits; logits:
    (steps, vocabulary). Lumping tokens together never makes it larger.
    """
    wanted = expected.astype(np.float64) - sums.astype(np.float64)[:, None]
    found = (logits - log_sums(logits)[:, None]).astype(np.float64)[:, columns]
    others = [np.maximum(1.0 - np.exp(of).sum(axis=1), SMALLEST_SHARE) for of in (wanted, found)]
    return (np.exp(wanted) * (wanted - found)).sum(axis=1) + others[0] * np.log(others[0] / others[1])


def log_sums(logits: np.ndarray) -> np.ndarray:
    """The logarithm of the summed exponentials over the last dimension, float32."""
    largest = logits.max(axis=-1, keepdims=True).astype(np.float64)
    sums = np.exp(logits - largest).sum(axis=-1)
    return (np.log(sums) + largest[..., 0]).astype(np.float32)
