"""What decoding is asked for: task, language, timestamps, beams, temperatures, limits, and what the decoder is shown.

It is shown a prompt in front of the first words, and hot words in front of all.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Mapping, Optional, Sequence, Tuple

from leanear.runtimes.errors import BadInput
from leanear.runtimes.manifest import Decoding
from leanear.runtimes.records import Amount, Count, Positive, check
from leanear.runtimes.sessions import SpeechSession
from leanear.runtimes.speech.tokens.vocabulary import Vocabulary, text_tokens
from leanear.runtimes.tasks import AskedTask

DETECT = "auto"


@dataclass(frozen=True)
class DecodeOptions:
    """How to decode; the defaults are those of openai's Whisper but for `condition`, which is off.

    language: a code such as "en", "auto" to detect it, or None: the model's own where it has one, else detected.
    task: one of SPOKEN_TASKS, or None: the model's own.
    timestamps: ask for them, and let them say where the next window starts.
    beam_size: hypotheses followed at temperature 0; 1 is greedy. patience: search until beam_size × patience of them
        have ended. length_penalty: rank them by log probability over ((5 + tokens) / 6) ** penalty; None: over tokens.
    temperatures: tried in this order until a window passes the two tests below. best_of: samples at temperatures over
        0, of which the likeliest is taken.
    compression_ratio_limit, log_probability_limit: a window whose text repeats itself more (a text's bytes over its
        zlib-compressed bytes), or whose tokens are less likely on average, is decoded again; None: no such test.
    no_speech_limit: a window more likely than this to hold no speech, whose tokens are also unlikely, has no text.
    condition: show the decoder what it said before, unless that came from a temperature over 0.5.
    prompt: text that the decoder is shown as if it had been said before the first words; hotwords: words that it is
        shown so before every window.
    max_tokens: most tokens of a window; None: as many as the model has positions for.
    stop_repeats: leanear's own protection from loops, see `leanear.runtimes.speech.long_audio`; off, none.
    quiet_cuts: end a window at a quiet moment where more audio follows, or too little of it was heard; off, after the
        model's window, as transformers.
    seed: of the samples.
    batch: so many windows that do not depend on each other, of long audio or of several clips, are decoded together.

    Raises:
        BadInput: an option is of another type, or out of its range.
    """

    language: Optional[str] = None
    task: Optional[AskedTask] = None
    timestamps: bool = True
    beam_size: Positive = 1
    patience: float = 1.0
    length_penalty: Optional[float] = None
    temperatures: Tuple[Amount, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    best_of: Positive = 5
    compression_ratio_limit: Optional[float] = 2.4
    log_probability_limit: Optional[float] = -1.0
    no_speech_limit: Optional[float] = 0.6
    condition: bool = False
    prompt: str = ""
    hotwords: Tuple[str, ...] = ()
    max_tokens: Optional[Positive] = None
    stop_repeats: bool = True
    quiet_cuts: bool = True
    seed: Count = 0
    batch: Positive = 4

    def __post_init__(self) -> None:
        check(self, "transcribe")
        if not self.temperatures:
            raise BadInput("transcribe: temperatures is empty, expected one at least, as in (0.0, 0.5)")
        if self.patience <= 0.0:
            raise BadInput(f"transcribe: patience is {self.patience}, expected a number over 0")


def named_options(given: Mapping[str, Any]) -> DecodeOptions:
    """The options of these names.

    Raises:
        BadInput: there is no option of a name, or one is out of its range.
    """
    known = [each.name for each in fields(DecodeOptions)]
    for name in given:
        if name not in known:
            raise BadInput(f"{name}: transcribing has no such option; it has {', '.join(known)}")
    return DecodeOptions(**given)


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


def check_rows_of(session: SpeechSession, options: DecodeOptions) -> None:
    """Raises BadInput where the session follows fewer hypotheses than the options may ask for, now or an hour later."""
    rows = {"beam_size": options.beam_size, "best_of": options.best_of if max(options.temperatures) > 0 else 1}
    for name, count in rows.items():
        if session.most_rows is not None and count > session.most_rows:
            raise BadInput(f"{name}: {count} hypotheses at once; this runtime's engines take {session.most_rows}")


def chosen_language(tokens: Decoding, options: DecodeOptions) -> str | None:
    """The language's code as the options or the model say it, or None: it is to be detected, or there is but one."""
    if not tokens.multilingual or options.language == DETECT:
        return None
    return options.language or tokens.default_language


@dataclass(frozen=True)
class Prompts:
    """Tokens that are shown as if they had been said before.

    first: until something was said; every: in front of every window; most: how many tokens a window is shown, the
    start of earlier text not counted.
    """

    first: tuple[int, ...]
    every: tuple[int, ...]
    most: int

    def shown(self, before: Sequence[int]) -> list[int]:
        """What a window is shown: the words for every window, and the latest of `before` that there is room for."""
        room = self.most - len(self.every)
        return [*self.every, *(before[-room:] if room else ())]


def read_prompts(vocabulary: Vocabulary, tokens: Decoding, options: DecodeOptions) -> Prompts:
    """The tokens of `options.prompt` and `options.hotwords`, each after a space, as Whisper's are.

    Raises:
        BadInput: the model has no token to show earlier text with, or the texts are longer than it can be shown.
    """
    most = max(tokens.positions // 2 - 1, 0)
    texts = {"prompt": options.prompt.strip(), "hotwords": ", ".join(options.hotwords)}
    shown = {}
    for what, text in texts.items():
        if text and tokens.previous is None:
            raise BadInput(f"{what}: this model has no token to show earlier text with")
        shown[what] = text_tokens(vocabulary, f" {text}", what) if text else ()
        if len(shown[what]) > most:
            raise BadInput(f"{what}: {len(shown[what])} tokens; this model can be shown {most}")
    if len(shown["prompt"]) + len(shown["hotwords"]) > most:
        counts = " and ".join(str(len(each)) for each in shown.values())
        raise BadInput(f"prompt and hotwords: {counts} tokens; this model can be shown {most}")
    return Prompts(shown["prompt"], shown["hotwords"], most)


def hotwords_of(text: str | None) -> tuple[str, ...]:
    """The words in a text with commas between them, None: no words.

    Raises:
        BadInput: there is none in it.
    """
    words = tuple(word.strip() for word in (text or "").split(",") if word.strip())
    if text is not None and not words:
        raise BadInput(f"--hotwords is {text!r}; words with commas between are wanted")
    return words
