"""What decoding is asked for: task, language, timestamps, beams, temperatures, limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leanear.runtimes.errors import BadInput
from leanear.runtimes.manifest import Decoding
from leanear.runtimes.tasks import SPOKEN_TASKS

DETECT = "auto"


@dataclass(frozen=True)
class DecodeOptions:
    """How to decode; the defaults are those of openai's Whisper but for `condition_on_previous`, which is off.

    language: a code such as "en", "auto" to detect it, or None: the model's own where it has one, else detected.
    task: one of SPOKEN_TASKS, or None: the model's own.
    timestamps: ask for them, and let them say where the next window starts.
    beams: hypotheses that are followed at temperature 0; 1 is greedy. patience: search until beams × patience of them
        have ended. length_penalty: rank them by log probability over ((5 + tokens) / 6) ** penalty; None: over tokens.
    temperatures: tried in this order until a window passes the two tests below. best_of: samples at temperatures over
        0, of which the likeliest is taken.
    compression_ratio_limit, log_probability_limit: a window whose text repeats itself more (a text's bytes over its
        zlib-compressed bytes), or whose tokens are less likely on average, is decoded again; None: no such test.
    no_speech_limit: a window more likely than this to hold no speech, whose tokens are also unlikely, has no text.
    condition_on_previous: show the decoder what it said before, unless that came from a temperature over 0.5.
    prompt: text that the decoder is shown as if it had been said before the first words; hotwords: words that it is
        shown so before every window.
    max_tokens: most tokens of a window; None: as many as the model has positions for.
    stop_repeats: leanear's own protection from loops (see `leanear.runtimes.speech.long_audio`); off, nothing is done
        that transformers does not do.
    quiet_cuts: end a window at a quiet moment where more audio follows; off, after the model's window, as transformers.
    seed: of the samples.
    batch: so many windows that do not depend on each other, of long audio or of several clips, are decoded together.

    Raises:
        BadInput: an option is out of its range.
    """

    language: str | None = None
    task: str | None = None
    timestamps: bool = True
    beams: int = 1
    patience: float = 1.0
    length_penalty: float | None = None
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    best_of: int = 5
    compression_ratio_limit: float | None = 2.4
    log_probability_limit: float | None = -1.0
    no_speech_limit: float | None = 0.6
    condition_on_previous: bool = False
    prompt: str = ""
    hotwords: tuple[str, ...] = ()
    max_tokens: int | None = None
    stop_repeats: bool = True
    quiet_cuts: bool = True
    seed: int = 0
    batch: int = 4

    def __post_init__(self) -> None:
        if self.task is not None and self.task not in SPOKEN_TASKS:
            raise BadInput(f"task: {self.task!r} is not one of {', '.join(SPOKEN_TASKS)}")
        for name in ("beams", "best_of", "batch"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}: {getattr(self, name)} is not a positive whole number")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise BadInput(f"max_tokens: {self.max_tokens} is not a positive whole number")
        if not self.temperatures or not all(0.0 <= temperature < np.inf for temperature in self.temperatures):
            raise BadInput(f"temperatures: {self.temperatures} are not numbers of at least 0")
        if not 0.0 < self.patience < np.inf:
            raise BadInput(f"patience: {self.patience} is not a number over 0")


def check_options(tokens: Decoding, options: DecodeOptions) -> None:
    """Raises BadInput where the model cannot do what the options ask for."""
    if options.timestamps and tokens.timestamp_begin is None:
        raise BadInput("timestamps: this model has no timestamp tokens")
    language = options.language
    if not tokens.multilingual:
        if options.task not in (None, "transcribe"):
            raise BadInput(f"task: this model knows one language and cannot {options.task}")
        if language not in (None, DETECT, tokens.default_language, "en"):
            raise BadInput(f"language: this model knows one language, and it is not {language!r}")
        return
    if language not in (None, DETECT) and language not in tokens.languages:
        raise BadInput(f"language: this model has no {language!r}; it has {', '.join(sorted(tokens.languages))}")
    task = options.task or tokens.default_task
    if getattr(tokens, task) is None:
        raise BadInput(f"task: this model cannot {task}")


def chosen_language(tokens: Decoding, options: DecodeOptions) -> str | None:
    """The language's code as the options or the model say it, or None: it is to be detected, or there is but one."""
    if not tokens.multilingual or options.language == DETECT:
        return None
    return options.language or tokens.default_language
