"""Made-up speech sessions and a small model's facts, for what decodes over any session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from leanear.runtimes.manifest import Decoding
from leanear.runtimes.speech.speech_model import SpeechModel
from leanear.runtimes.speech.tokens.vocabulary import Vocabulary

WORDS = (b" yes", b" no", b" one", b" two", b" three", b" four", b" five", b" six", b" seven", b" eight")
END = len(WORDS)
START, EN, DE, TRANSLATE, TRANSCRIBE, PREVIOUS, NO_SPEECH, NO_TIMESTAMPS = range(END + 1, END + 9)
TIMES = NO_TIMESTAMPS + 1
STEPS = 50
SIZE = TIMES + STEPS + 1
RATE_HZ = 1000
WINDOW = STEPS * 20  # samples: one second

TOKENS = Decoding(
    start=START,
    end=END,
    previous=PREVIOUS,
    no_speech=NO_SPEECH,
    no_timestamps=NO_TIMESTAMPS,
    timestamp_begin=TIMES,
    timestamp_end=None,
    transcribe=TRANSCRIBE,
    translate=TRANSLATE,
    languages={"en": EN, "de": DE},
    default_language="en",
    default_task="transcribe",
    multilingual=True,
    suppress=(START, EN, DE, TRANSLATE, TRANSCRIBE, PREVIOUS, NO_SPEECH),
    begin_suppress=(END,),
    max_initial_timestamp_index=None,
    positions=64,
    timestamp_step_s=0.02,
    window_s=1.0,
)
SPECIAL = (
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>",
    "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>", *(f"<|{step * 0.02:.2f}|>" for step in range(STEPS + 1)),
)  # fmt: skip
MODEL = SpeechModel(Vocabulary(WORDS, SPECIAL), TOKENS, RATE_HZ, WINDOW)


def model_with(**changes: object) -> SpeechModel:
    """MODEL with other tokens."""
    return replace(MODEL, tokens=replace(TOKENS, **changes))


class FakeSession:
    """Logits by a function of the tokens that a row was fed and of the window; it keeps a record of what was asked.

    The view that a step gives back is overwritten by the next one, as the protocol allows.
    """

    takes_several = False
    most_rows: int | None = None

    def __init__(self, logits: Callable[[list[int], np.ndarray], np.ndarray], size: int = SIZE) -> None:
        self._logits = logits
        self._window = np.zeros(0, np.float32)
        self._view = np.zeros((0, size), np.float32)
        self._size = size
        self.rows: list[list[int]] = []
        self.windows: list[np.ndarray] = []
        self.lengths: list[int | None] = []
        self.steps = 0
        self.longest = 0

    def encode(self, waveform: np.ndarray, window: int | None = None) -> None:
        assert waveform.dtype == np.float32
        self.lengths.append(window)
        assert waveform.ndim == 1
        assert waveform.size > 0
        self._window = waveform
        self.windows.append(waveform.copy())
        self.rows = []

    def start(self, rows: int = 1) -> None:
        self.rows = [[] for _ in range(rows)]
        self._view = np.zeros((rows, self._size), np.float32)

    def step(self, tokens: np.ndarray, parents: np.ndarray | None = None) -> np.ndarray:
        assert tokens.dtype == np.int64
        assert tokens.shape[0] == len(self.rows)
        assert tokens.shape[1] > 0
        chosen = range(len(self.rows)) if parents is None else parents.tolist()
        self.rows = [[*self.rows[parent], *fed] for parent, fed in zip(chosen, tokens.tolist())]
        for row, fed in enumerate(self.rows):
            self._view[row] = self._logits(fed, self._window)
        self.steps += 1
        self.longest = max(self.longest, len(self.rows[0]))
        return self._view

    def facts(self) -> dict[str, object]:
        return {"runtime": "fake"}

    def close(self) -> None:
        pass


def said_since_prompt(fed: Sequence[int], model: SpeechModel = MODEL) -> list[int]:
    """What follows the prompt in `fed`."""
    prompt = (model.tokens.start, EN, DE, TRANSLATE, TRANSCRIBE, NO_TIMESTAMPS)
    last = max(place for place, token in enumerate(fed) if token in prompt)
    return list(fed[last + 1 :])


def scripted(*scripts: Sequence[int], certainty: float = 20.0) -> FakeSession:
    """Says the n-th script in the n-th window (the last one again and again), token by token, and then ends."""
    session: FakeSession

    def logits(fed: list[int], _window: np.ndarray) -> np.ndarray:
        script = scripts[min(len(session.windows), len(scripts)) - 1]
        said = len(said_since_prompt(fed))
        row = np.zeros(SIZE, np.float32)
        row[script[said] if said < len(script) else END] = certainty
        return row

    session = FakeSession(logits)
    return session


def hashed(seed: int, size: int = SIZE, spread: float = 2.0) -> FakeSession:
    """Random logits, the same for the same tokens: a different answer to every history."""

    def logits(fed: list[int], _window: np.ndarray) -> np.ndarray:
        generator = np.random.default_rng([seed, *fed])
        return (spread * generator.standard_normal(size)).astype(np.float32)

    return FakeSession(logits, size)


def at_time(seconds: float) -> int:
    """The timestamp token of a time."""
    return TIMES + round(seconds / 0.02)
