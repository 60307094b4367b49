"""Whether a text that was heard in a window shorter than the trained one is to be trusted.

The decoder was trained on full windows. In a shorter one it may not stop where the audio does, and say something over
and over or make up what nobody said, or it may stop too early. All of that shows in the tokens, and such a window is
heard again, in full.
"""

from __future__ import annotations

import math

import numpy as np

from leanear.runtimes.manifest import Decoding
from leanear.runtimes.speech.decoding import Decoded
from leanear.runtimes.speech.tokens.repeats import SUSPECT_LOOP_TOKENS, compression_ratio, without_loop
from leanear.runtimes.speech.tokens.vocabulary import Vocabulary

MOST_TOKENS_PER_S, MOST_TOKENS_MORE = 8.0, 12  # of audio; nobody speaks so fast
LEAST_TOKENS_PER_S = 1.5  # of audible audio; of 100 clips of read speech none has fewer than 2.5
LEAST_AUDIBLE_S = 2.0  # a shorter noise need not be a word
LEFT_S = 0.5  # of a piece of long audio, audible, that its text may leave out
TWICE_TOKENS = 10  # in a row, that are said again, are rather the decoder's than the speaker's
REPETITIVE = 2.4  # compression ratio, openai's limit
FRAME_S = 0.02
AUDIBLE_SHARE = 10.0 ** (-30 / 20)  # of the loudest frame's amplitude: 30 dB under it


def most_tokens(samples: int, sample_rate_hz: int) -> int:
    """How many tokens so much audio may have."""
    return int(MOST_TOKENS_PER_S * samples / sample_rate_hz) + MOST_TOKENS_MORE


def why_heard_again(
    decoded: Decoded, tokens: Decoding, vocabulary: Vocabulary, samples: np.ndarray, sample_rate_hz: int
) -> str:
    """Why a short window's text is not to be trusted: "cap", "loop" or "short"; "" where it is.

    samples: float32 (samples,), the audio in the window without what it was filled up with.
    """
    if not decoded.ended and len(decoded.tokens) >= most_tokens(len(samples), sample_rate_hz):
        return "cap"
    said = [token for token in decoded.tokens if vocabulary.is_text(token)]
    runs = list(zip(*(said[at:] for at in range(TWICE_TOKENS))))
    loops = len(set(runs)) < len(runs) or without_loop(decoded.tokens, tokens.times, SUSPECT_LOOP_TOKENS) is not None
    if decoded.looped or loops or compression_ratio(vocabulary.text(decoded.tokens)) > REPETITIVE:
        return "loop"
    if len(said) >= LEAST_TOKENS_PER_S * len(samples) / sample_rate_hz:  # no more than all of it is audible
        return ""
    audible = audible_s(samples, sample_rate_hz)
    return "short" if audible >= LEAST_AUDIBLE_S and len(said) < LEAST_TOKENS_PER_S * audible else ""


def least_tokens(samples: np.ndarray, sample_rate_hz: int) -> int:
    """How many tokens what is audible in so much audio has, at least."""
    return math.ceil(LEAST_TOKENS_PER_S * audible_s(samples, sample_rate_hz))


def audible_s(samples: np.ndarray, sample_rate_hz: int) -> float:
    """Seconds of audio that is not much quieter than its loudest moment."""
    return float(_are_audible(samples, sample_rate_hz).sum() * FRAME_S)


def first_end(tokens: Decoding, samples: np.ndarray, sample_rate_hz: int) -> int:
    """The first timestamp that leaves no word out: what of `samples` is audible after it is too short for one."""
    behind = np.cumsum(_are_audible(samples, sample_rate_hz)[::-1])
    end_s = (len(behind) - np.searchsorted(behind, LEFT_S / FRAME_S)) * FRAME_S
    return (tokens.timestamp_begin or 0) + int(end_s / tokens.timestamp_step_s)


def _are_audible(samples: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Whether each frame is, bool (frames,)."""
    frame = max(round(FRAME_S * sample_rate_hz), 1)
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    energy = np.einsum("fs,fs->f", frames, frames)
    return np.asarray(energy > AUDIBLE_SHARE**2 * energy.max(initial=0.0))
