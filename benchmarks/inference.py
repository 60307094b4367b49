"""One inference of either task, as latency and memory are measured on it."""

from __future__ import annotations

import time
from typing import Any, Callable, Dict

import numpy as np

from leanear.runtimes.artifact import Artifact
from leanear.runtimes.sessions import SpeechSession
from leanear.runtimes.speech.encoder_windows import artifact_windows, transcribe_prompt

STAGES = ("encoder", "first_token", "later_tokens")

Inference = Callable[[], Dict[str, float]]


def one_inference(
    session: Any, artifact: Artifact, waveform: np.ndarray, tokens: int | None, choice: str | None = None
) -> Inference:
    """A function that makes one inference and gives the time of its stages in ms.

    A classifier's is one call, which has no stages. Of speech it is a window: the encoder (front end and the keys and
    values of cross-attention included), the first token (the prompt goes through the decoder), and the other ones up to
    `tokens`: always the likeliest text token, for the end is not listened to, so that all models do the same work. The
    encoder is given the shortest window of `choice` (of the artifact's own, if None) that holds the waveform.
    """
    if tokens is None:

        def classify() -> dict[str, float]:
            session.run(waveform)
            return {}

        return classify
    decoding = artifact.speech.decoding
    prompt = np.array([transcribe_prompt(decoding)], dtype=np.int64)
    text_tokens, wanted, window = (
        decoding.text_tokens,
        tokens,
        artifact_windows(artifact, choice).holding(len(waveform)),
    )

    def transcribe() -> dict[str, float]:
        return timed_window(session, waveform, prompt, wanted, text_tokens, window)

    return transcribe


def timed_window(
    session: SpeechSession, waveform: np.ndarray, prompt: np.ndarray, tokens: int, text_tokens: int, window: int
) -> dict[str, float]:
    """Milliseconds of each of STAGES, for one window and `tokens` tokens, each below `text_tokens`."""
    start = time.perf_counter_ns()
    session.encode(waveform, window)
    encoded = time.perf_counter_ns()
    session.start(1)
    said = _likeliest(session.step(prompt), text_tokens)
    first = time.perf_counter_ns()
    for _ in range(tokens - 1):
        said = _likeliest(session.step(said), text_tokens)
    last = time.perf_counter_ns()
    return dict(zip(STAGES, (milliseconds(encoded - start), milliseconds(first - encoded), milliseconds(last - first))))


def _likeliest(logits: np.ndarray, text_tokens: int) -> np.ndarray:
    return logits[:, :text_tokens].argmax(axis=1)[:, np.newaxis].astype(np.int64)


def take_gpu_ms(session: Any) -> dict[str, float]:
    """Milliseconds that a GPU worked since this was last asked, as its own clock says, by stage.

    The stages are STAGES, or "inference" of a classifier; none where the session does not tell.
    """
    take: Callable[[], Dict[str, float]] | None = getattr(session, "take_gpu_ms", None)
    return {} if take is None else take()


def milliseconds(nanoseconds: int) -> float:
    """Nanoseconds in ms, to a tenth of a microsecond."""
    return round(nanoseconds / 1e6, 4)
