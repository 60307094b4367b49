"""A runtime that computes nothing: right shapes, a fixed time, answers that a test can foresee."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.artifact import Artifact
from runtimes.sessions import SessionOptions, checked_waveform

NAME = "null"
INFERENCE_S = 0.001


def available() -> str | None:
    """None: it needs no library."""
    return None


def precisions() -> tuple[str, ...]:
    """Every precision: nothing is computed in any of them."""
    return ("fp32", "bf16")


def compile(artifact: Artifact, options: SessionOptions, out: Path) -> Path | None:  # noqa: ARG001
    """None: there is nothing to compile."""
    return None


def load(artifact: Artifact, options: SessionOptions) -> NullSession:
    """A session that answers without looking at the graph."""
    return NullSession(artifact, options)


class NullSession:
    """One logit per label: the loudness of that label's share of the waveform, given after one millisecond."""

    def __init__(self, artifact: Artifact, options: SessionOptions) -> None:
        self._labels = len(artifact.labels)
        self._options = options

    def run(self, waveform: np.ndarray) -> np.ndarray:
        """Logits, float32 (labels,): the mean magnitude of each of `labels` equal stretches of the waveform."""
        time.sleep(INFERENCE_S)
        stretches = np.array_split(checked_waveform(waveform)[0], self._labels)
        return np.array([np.abs(stretch).mean() if stretch.size else 0.0 for stretch in stretches], dtype=np.float32)

    def facts(self) -> dict[str, Any]:
        """The options, as no runtime changed them."""
        return {
            "runtime": NAME,
            "version": "0",
            "threads": self._options.threads,
            "precision": self._options.precision,
        }

    def close(self) -> None:
        """Nothing to release."""
