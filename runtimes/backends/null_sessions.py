"""Sessions that compute nothing: right shapes, a fixed time, answers that a test can foresee."""

from __future__ import annotations

import time
from typing import Any, Sequence

import numpy as np

from leanear.runtimes.artifact import Artifact
from leanear.runtimes.audio.waveforms import WaveformInput
from leanear.runtimes.backends.null import NAME
from leanear.runtimes.sessions import SessionOptions, SpeechSession, checked_tokens

INFERENCE_S = 0.001
STRETCHES = 8
CERTAIN = 20.0


class _Session:
    """What sessions for labels and for speech share."""

    _options: SessionOptions

    def facts(self) -> dict[str, Any]:
        """The options, as no runtime changed them."""
        options = self._options
        return {"runtime": NAME, "version": "0", "threads": options.threads, "precision": options.precision}

    def close(self) -> None:
        """Nothing to release."""


class NullSession(_Session):
    """One logit per label: the loudness of that label's share of the waveform, given after one millisecond."""

    def __init__(self, artifact: Artifact, options: SessionOptions) -> None:
        self._labels = len(artifact.labels)
        self._checked = WaveformInput(artifact)
        self._options = options

    def run(self, waveform: np.ndarray) -> np.ndarray:
        """Logits, float32 (labels,): the mean magnitude of each of `labels` equal stretches of the waveform."""
        time.sleep(INFERENCE_S)
        stretches = np.array_split(self._checked(waveform)[0], self._labels)
        return np.array([np.abs(stretch).mean() if stretch.size else 0.0 for stretch in stretches], dtype=np.float32)


def said_tokens(artifact: Artifact, waveform: np.ndarray) -> list[int]:
    """The text tokens that a null speech session hears: every eighth of the window's mean magnitude in thousandths.

    A stretch that rounds to zero says nothing.
    """
    window = np.zeros(artifact.manifest.input.window_samples, np.float32)
    window[: len(waveform)] = waveform[: len(window)]
    text_tokens = artifact.speech.decoding.text_tokens
    loudness = [round(1000 * float(np.abs(stretch).mean())) for stretch in np.array_split(window, STRETCHES)]
    return [thousandths % text_tokens for thousandths in loudness if thousandths]


class NullSpeechSession(_Session, SpeechSession):
    """Says `said_tokens` one by one after the prompt and then ends; of silence it says that there is no speech."""

    takes_several = True

    def __init__(self, artifact: Artifact, options: SessionOptions) -> None:
        self._artifact, self._options = artifact, options
        self._checked = WaveformInput(artifact)
        self._decoding = artifact.speech.decoding
        self._vocabulary = artifact.speech.output.shape[1]
        self._said: list[list[int]] = []  # of every window
        self._rows: list[list[int]] = []

    def encode_several(self, waveforms: Sequence[np.ndarray], window: int | None = None) -> None:  # noqa: ARG002
        """Listen to several windows."""
        time.sleep(INFERENCE_S * len(waveforms))
        self._said = [said_tokens(self._artifact, self._checked(waveform)[0]) for waveform in waveforms]
        self._rows = []

    def start(self, rows: int = 1) -> None:
        """Forget all tokens."""
        self._rows = [[] for _ in range(rows)]

    def step(self, tokens: np.ndarray, parents: np.ndarray | None = None) -> np.ndarray:
        """Logits of each row: 20 for the foreseeable token, 0 for the others."""
        time.sleep(INFERENCE_S / 10)
        filled = len(self._rows[0]) if self._rows else 0
        tokens, parents = checked_tokens(
            tokens, parents, len(self._rows), filled, self._vocabulary, self._decoding.positions
        )
        chosen = range(len(self._rows)) if parents is None else parents
        self._rows = [[*self._rows[parent], *new.tolist()] for parent, new in zip(chosen, tokens)]
        logits = np.zeros((len(self._rows), self._vocabulary), np.float32)
        of_each = max(len(self._rows) // max(len(self._said), 1), 1)
        for row, fed in enumerate(self._rows):
            logits[row, self._next(fed, self._said[row // of_each])] = CERTAIN
        return logits

    def alignment_scores(self, tokens: np.ndarray) -> np.ndarray:
        """Scores of heads that look at one position after the other, as many for each token: (A, n, T)."""
        manifest = self._artifact.speech
        step = self._decoding.timestamp_step_s * manifest.input.sample_rate_hz
        positions = round(manifest.input.window_samples / step)
        looked_at = np.arange(positions) * len(tokens) // positions
        scores = np.where(looked_at == np.arange(len(tokens))[:, np.newaxis], np.float32(CERTAIN), np.float32(0.0))
        return np.tile(scores, (len(manifest.alignment.heads) if manifest.alignment else 0, 1, 1))

    def _next(self, fed: list[int], known: list[int]) -> int:
        decoding = self._decoding
        if fed[-1] == decoding.start:
            if not known and decoding.no_speech is not None:
                return decoding.no_speech
            languages = decoding.languages
            return languages.get(decoding.default_language or "", next(iter(languages.values()), decoding.end))
        text_tokens = decoding.text_tokens
        past_end = self._vocabulary if decoding.timestamp_begin is None else decoding.timestamp_begin
        prompts = [place for place, token in enumerate(fed) if text_tokens <= token < past_end]
        said = sum(token < text_tokens for token in fed[prompts[-1] + 1 if prompts else 0 :])
        return known[said] if said < len(known) else decoding.end
