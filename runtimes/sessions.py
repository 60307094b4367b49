"""What every runtime takes and gives back, so that a measurement does not know which runtime it measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from runtimes.artifact import Artifact
from runtimes.errors import BadInput, MeasurementFailed

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class SessionOptions:
    """How a graph is executed; nothing is left to a runtime's own default.

    threads: compute threads of one inference; precision: "fp32" or "bf16", the type that the runtime computes in.

    Raises:
        BadInput: fewer than one thread, or a precision that no runtime knows.
    """

    threads: int
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if isinstance(self.threads, bool) or not isinstance(self.threads, int) or self.threads < 1:
            raise BadInput(f"threads: expected a whole number of at least 1, got {self.threads!r}")
        if self.precision not in PRECISIONS:
            raise BadInput(f"precision: expected one of {', '.join(PRECISIONS)}, got {self.precision!r}")


class Session(Protocol):
    """A loaded graph that classifies one waveform at a time."""

    def run(self, waveform: np.ndarray) -> np.ndarray:
        """Logits, float32 (labels,), of one waveform, float32 (samples,)."""

    def facts(self) -> dict[str, Any]:
        """What the runtime says that it really uses: version, threads, precision, providers or devices."""

    def close(self) -> None:
        """Release the graph and its memory."""


class Runtime(Protocol):
    """The verbs that every runtime module has."""

    NAME: str

    def available(self) -> str | None:
        """None, or why this runtime cannot be used here and the command that would install it."""

    def precisions(self) -> tuple[str, ...]:
        """The precisions that this runtime computes in on this machine."""

    def compile(self, artifact: Artifact, options: SessionOptions, out: Path) -> Path | None:
        """The file of ahead-of-time work written at `out`, or None where the runtime has none that pays."""

    def load(self, artifact: Artifact, options: SessionOptions) -> Session:
        """A session that is ready to run."""


def checked_waveform(waveform: np.ndarray) -> np.ndarray:
    """`waveform` as a float32 (1, samples) view or copy, the shape that exported graphs take.

    Raises:
        BadInput: it is not one-dimensional, is empty, or has a NaN or infinite sample.
    """
    waveform = np.ascontiguousarray(waveform, dtype=np.float32)
    if waveform.ndim != 1 or waveform.size == 0:
        raise BadInput(f"waveform: expected a non-empty array of shape (samples,), got shape {waveform.shape}")
    if not np.isfinite(waveform).all():
        raise BadInput("waveform: it has NaN or infinite samples")
    return waveform[np.newaxis]


def checked_logits(logits: np.ndarray, labels: int) -> np.ndarray:
    """A float32 (labels,) copy of a graph's (1, labels) output.

    Raises:
        MeasurementFailed: the shape is another one, or a logit is NaN or infinite.
    """
    if logits.shape != (1, labels):
        raise MeasurementFailed(f"logits: expected shape (1, {labels}), the graph gave {logits.shape}")
    copy = np.array(logits[0], dtype=np.float32)
    if not np.isfinite(copy).all():
        raise MeasurementFailed("logits: the graph gave NaN or infinite values")
    return copy
