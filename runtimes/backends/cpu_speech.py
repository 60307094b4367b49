"""What speech sessions on a CPU share: the memory of keys and values that their graphs write and read."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import numpy as np

from leanear.runtimes.artifact import Artifact
from leanear.runtimes.audio.waveforms import WaveformInput
from leanear.runtimes.backends.embedding import Embedding
from leanear.runtimes.errors import BadInput
from leanear.runtimes.sessions import SpeechSession, check_rows, check_several, checked_tokens, filled_up
from leanear.runtimes.speech.encoder_windows import step_samples
from leanear.runtimes.speech.speech_cache import CrossMemory, SpeechCache

WINDOWS_RANK = 4  # of a decoder's keys and values of encoded windows, where its graph takes several


class CpuSpeechSession(SpeechSession):
    """A session whose encoder writes a window's keys and values where the decoder reads them.

    outputs: shapes of the encoder's; inputs: of the decoder's, None where a size is not fixed; kept: the types of both.
    `_bound` is what was made for where they all are, None once they have moved.
    """

    def __init__(
        self,
        artifact: Artifact,
        outputs: Mapping[str, Sequence[int | None]],
        inputs: Mapping[str, Sequence[Any]],
        kept: Mapping[str, type],
    ) -> None:
        self._checked = WaveformInput(artifact)
        self._vocabulary = artifact.speech.output.shape[1]
        self._positions = artifact.speech.decoding.positions
        self._takes_any = any(None in shape for shape in outputs.values())
        self._window, self._step = artifact.manifest.input.window_samples, step_samples(artifact)
        self._crossed = CrossMemory(outputs, self._window // self._step, kept)
        self.takes_several = len(inputs["cross_key.0"]) == WINDOWS_RANK
        self._cache = SpeechCache(
            {name: (shape[1], shape[2]) for name, shape in inputs.items() if name.startswith("self_key.")},
            {name: (shape[1], shape[3]) for name, shape in inputs.items() if name.startswith("self_value.")},
            self._positions,
            kept["self_key.0"],
        )
        self._embedding = Embedding(artifact)
        self._encoded = False
        self._bound: Any = None

    def encode_several(self, waveforms: Sequence[np.ndarray], window: int | None = None) -> None:
        """Keys and values of several windows of one length, each written to where the decoder reads them."""
        check_several(len(waveforms), self.takes_several)
        length = (window or self._window) if self._takes_any else self._window
        if self._crossed.arrange(length // self._step, len(waveforms)):
            self._bound = None
        for number, waveform in enumerate(waveforms):
            self._encode(self._in_window(self._checked(waveform), window), number)
        self._encoded = True

    def _in_window(self, waveform: np.ndarray, window: int | None) -> np.ndarray:
        """A waveform (1, samples) as the encoder takes it: a graph of the full window fills up and cuts by itself.

        Raises:
            BadInput: another window than the full one, for a graph that has no other.
        """
        if self._takes_any:
            return filled_up(waveform, window or self._window)
        if window not in (None, self._window):
            raise BadInput(f"encode: a window of {window} samples; the encoder's graph has {self._window} alone")
        return waveform

    def start(self, rows: int = 1) -> None:
        """Forget all tokens; `rows` hypotheses about the encoded windows follow, as many of each."""
        check_rows(rows, self._crossed.windows if self._encoded else 0)
        if self._cache.start(rows):
            self._bound = None

    def step(self, tokens: np.ndarray, parents: np.ndarray | None = None) -> np.ndarray:
        """Logits after the last of `tokens`, (rows, vocabulary), which the next step overwrites."""
        cache = self._cache
        tokens, parents = checked_tokens(tokens, parents, cache.rows, cache.filled, self._vocabulary, self._positions)
        if parents is not None:
            cache.reorder(parents)
        if cache.reserve(tokens.shape[1]):
            self._bound = None
        return self._feed(tokens)

    def _encode(self, samples: np.ndarray, number: int) -> None:
        """Run the encoder on `samples` (1, window), for the memory of window `number`."""
        raise NotImplementedError

    def _feed(self, tokens: np.ndarray) -> np.ndarray:
        """Run the decoder on `tokens` (rows, n), for which there is room, and keep what it gives; the logits."""
        raise NotImplementedError


def one_line(error: Exception) -> str:
    """What a runtime says of an error, in one line."""
    return " ".join(str(error).split())[:300]
