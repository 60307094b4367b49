"""What every runtime takes and gives back, so that a measurement does not know which runtime it measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Sequence

import numpy as np

from leanear.runtimes.artifact import Artifact
from leanear.runtimes.choose import choose_runtime, graph_precision
from leanear.runtimes.errors import BadInput, MeasurementFailed

MOST_THREADS = 1024


@dataclass(frozen=True)
class SessionOptions:
    """How a graph is executed; nothing is left to a runtime's own default.

    threads: compute threads of one inference; precision: "fp32" or "bf16", the type that the runtime computes in;
    "fp16" or "int8": the graphs are of such products themselves, all else is float32; "int8-bf16": all else is bf16.

    Raises:
        BadInput: fewer than one thread, or a precision that no runtime knows.
    """

    threads: int
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if isinstance(self.threads, bool) or not isinstance(self.threads, int) or not 1 <= self.threads <= MOST_THREADS:
            raise BadInput(f"threads: expected a whole number from 1 to {MOST_THREADS}, got {self.threads!r}")
        graph_precision(self.precision)


class Session(Protocol):
    """A loaded graph that classifies one waveform at a time."""

    def run(self, waveform: np.ndarray) -> np.ndarray:
        """Logits, float32 (labels,), of one waveform (samples,), floats within -1 to 1 or int16 PCM.

        Of a waveform that is longer than the model's window the rest is not heard; see
        `leanear.runtimes.audio.waveforms`.

        Raises:
            BadInput: the waveform is of another shape or type, or has a NaN or infinite sample.
            MeasurementFailed: the graph gave logits of another shape, or not finite.
        """

    def facts(self) -> dict[str, Any]:
        """What the runtime says that it really uses: version, threads, precision, providers or devices."""

    def close(self) -> None:
        """Release the graph and its memory."""


class SpeechSession(Protocol):
    """Loaded graphs that write down speech: one window is encoded, then tokens are decoded step by step.

    The session owns the keys and values of the window and of the tokens fed so far; a step adds rows to them and copies
    none. Only after `start` is there something to add to. takes_several: whether several windows may be encoded;
    most_rows: hypotheses at once, None: any number.
    """

    takes_several: bool
    most_rows: int | None = None

    def encode(self, waveform: np.ndarray, window: int | None = None) -> None:
        """Keys and values of one window, kept inside; waveforms are taken, and refused, as `Session.run` does.

        They are (samples,), padded with silence or cut to the window. window: samples of it, one of the artifact's
        windows; None: the full one.
        """
        self.encode_several([waveform], window)

    def encode_several(self, waveforms: Sequence[np.ndarray], window: int | None = None) -> None:
        """Keys and values of several windows of one length; the arguments are those of `encode`.

        Raises:
            BadInput: there is none, or several for a decoder's graph that takes one at a time.
        """

    def start(self, rows: int = 1) -> None:
        """Forget all tokens; `rows` hypotheses about the encoded windows follow, as many of each, one window's after
        another's.
        """

    def step(self, tokens: np.ndarray, parents: np.ndarray | None = None) -> np.ndarray:
        """Logits after the last of `tokens`, float32 (rows, vocabulary), a view that the next step may overwrite.

        tokens: int64 (rows, n), n >= 1, fed after what each row holds; parents: int64 (rows,), which earlier row each
        row goes on from, None: itself.

        Raises:
            BadInput: the shapes do not fit `start`, a token is not in the vocabulary, or there are more tokens than the
                model has positions.
        """

    def alignment_scores(self, tokens: np.ndarray) -> np.ndarray:
        """How much the alignment heads look at each position of the encoded window, float32 (A, n, T), before softmax.

        tokens: int64 (n,), n > 1, fed from the start on; what was fed before is forgotten. Only an artifact that has
        an alignment gives this, and no graph for TensorRT.
        """

    def facts(self) -> dict[str, Any]:
        """What the runtime says that it really uses: version, threads, precision, providers or devices."""

    def close(self) -> None:
        """Release the graphs and their memory."""


class Runtime(Protocol):
    """The facts and the verbs that every runtime module has.

    The module imports nothing but Python until a verb is called: where numpy is missing, a doctor reads its facts.
    """

    NAME: str
    TITLE: str  # its own name, for people
    PACKAGE: str | None  # what pip installs it by; None of one that is not for users
    INSTALL: str  # what more is said of that
    FORM: str  # of graphs that are arranged for it; it takes portable ones too
    PRECISIONS: tuple[str, ...]  # that it computes in at all; on a given machine it may be fewer
    ON_GPU: bool  # by engines, which are built where they run
    AHEAD_OF_TIME: bool  # engines may be built where no GPU is

    def available(self) -> str | None:
        """None, or why this runtime cannot be used here and the command that would install it."""

    def precisions(self) -> tuple[str, ...]:
        """The precisions that this runtime computes in on this machine."""

    def compile(self, artifact: Artifact, options: SessionOptions, out: Path) -> Path | None:
        """The file of ahead-of-time work written at `out`, or None where the runtime has none that pays."""

    def load(self, artifact: Artifact, options: SessionOptions) -> Any:
        """A session that is ready to run: a `Session` or, of a Whisper artifact, a `SpeechSession`."""


def filled_up(waveform: np.ndarray, window: int) -> np.ndarray:
    """A waveform (1, samples) filled up with zeros, or cut, to (1, window)."""
    if waveform.shape[1] >= window:
        return np.ascontiguousarray(waveform[:, :window])
    filled = np.zeros((1, window), np.float32)
    filled[:, : waveform.shape[1]] = waveform
    return filled


def check_several(windows: int, takes_several: bool) -> None:
    """Raises BadInput where so many windows cannot be encoded together."""
    if windows < 1 or (windows > 1 and not takes_several):
        raise BadInput(
            f"encode: {windows} windows; the decoder's graph takes one at a time: export it again to have several"
        )


def check_rows(rows: int, windows: int) -> None:
    """Raises BadInput where so many rows cannot be shared among the encoded windows."""
    if windows < 1 or rows < 1 or rows % windows:
        encoded = f"{windows} encoded windows" if windows > 1 else ("an" if windows else "no") + " encoded window"
        raise BadInput(f"start: {rows} rows of {encoded}")


def checked_tokens(
    tokens: np.ndarray, parents: np.ndarray | None, rows: int, filled: int, vocabulary: int, positions: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """`tokens` and `parents` of a step as int64 arrays; parents that change nothing are None.

    Raises:
        BadInput: nothing was started, a shape or an index is wrong, or the positions are used up.
    """
    if rows < 1:
        raise BadInput("step: nothing was started; call encode and start before it")
    tokens = np.ascontiguousarray(tokens, dtype=np.int64)
    if tokens.ndim != 2 or tokens.shape[0] != rows or tokens.shape[1] < 1:
        raise BadInput(f"tokens: expected shape ({rows}, n) with n of at least 1, got {tokens.shape}")
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise BadInput(f"tokens: {tokens.min()} to {tokens.max()} are not all among the {vocabulary} of the vocabulary")
    if filled + tokens.shape[1] > positions:
        raise BadInput(f"tokens: {filled} + {tokens.shape[1]} are more than the model's {positions} positions")
    if parents is not None:
        parents = np.ascontiguousarray(parents, dtype=np.int64)
        if parents.shape != (rows,) or parents.min() < 0 or parents.max() >= rows:
            raise BadInput(f"parents: expected {rows} numbers of rows, got {parents.tolist()}")
        if (parents == np.arange(rows)).all():
            parents = None
    return tokens, parents


def check_precision(artifact: Artifact, options: SessionOptions) -> None:
    """Raises BadInput where graphs of 8-bit products meet options that say otherwise, or the other way round."""
    found = artifact.precisions or {"fp32"}
    if ("int8" in found) != (graph_precision(options.precision) == "int8"):
        raise BadInput(
            f"precision: {options.precision} was asked for, but the graphs of {artifact.folder} are"
            f" {' and '.join(sorted(found))}"
        )


def own_precision(artifact: Artifact, runtime: str) -> str:
    """What an artifact is run in where nothing else is asked for: what its graphs are of, as far as the runtime can.

    Graphs in float16 run in float32 on a runtime that does not compute in float16.
    """
    found = artifact.precisions
    if "int8" in found:
        return "int8"
    return "fp16" if "fp16" in found and "fp16" in choose_runtime(runtime).PRECISIONS else "fp32"


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
