"""One window of speech to tokens: greedily, by beam search, or by sampling, over any session that a decoder runs in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Sequence

import numpy as np

from leanear.runtimes.errors import BadInput
from leanear.runtimes.manifest import Decoding
from leanear.runtimes.speech.repeats import without_loop
from leanear.runtimes.speech.token_rules import TokenRules
from leanear.runtimes.tasks import SPOKEN_TASKS

if TYPE_CHECKING:
    from leanear.runtimes.sessions import SpeechSession

DETECT = "auto"
CHECK_LOOPS_EVERY = 16  # tokens


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

    def __post_init__(self) -> None:
        if self.task is not None and self.task not in SPOKEN_TASKS:
            raise BadInput(f"task: {self.task!r} is not one of {', '.join(SPOKEN_TASKS)}")
        for name in ("beams", "best_of"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}: {getattr(self, name)} is not a positive whole number")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise BadInput(f"max_tokens: {self.max_tokens} is not a positive whole number")
        if not self.temperatures or not all(0.0 <= temperature < np.inf for temperature in self.temperatures):
            raise BadInput(f"temperatures: {self.temperatures} are not numbers of at least 0")
        if not 0.0 < self.patience < np.inf:
            raise BadInput(f"patience: {self.patience} is not a number over 0")


@dataclass(frozen=True)
class Decoded:
    """What a window was heard to say.

    tokens: without prompt and end; ended: the model said the end itself; looped: it was stopped, or cut, in a loop;
    average_log_probability: per token, the end counted; no_speech_probability: None where it was not asked for;
    language: its code, None for a model of one language; log_probabilities: of each token, as the rules let it be said.
    """

    tokens: tuple[int, ...]
    ended: bool
    looped: bool
    temperature: float
    average_log_probability: float
    no_speech_probability: float | None
    language: str | None
    log_probabilities: tuple[float, ...] = ()


@dataclass(frozen=True)
class _Hypothesis:
    tokens: tuple[int, ...]
    ended: bool
    log_probability: float
    each: tuple[float, ...]  # of the tokens, one by one


def decode_window(
    session: SpeechSession,
    tokens: Decoding,
    options: DecodeOptions,
    *,
    language: str | None = None,
    previous: Sequence[int] = (),
    temperature: float = 0.0,
    generator: np.random.Generator | None = None,
    no_speech: bool = True,
) -> Decoded:
    """The likeliest transcript of the window that `session` has encoded, at one temperature.

    language: a code that is already known; None: as the options say. previous: tokens said before, shown to the
    decoder. no_speech: measure how likely it is that nobody speaks. At temperature 0 this is greedy decoding or, with
    `options.beams`, beam search as openai's; above, the likeliest of `options.best_of` samples by `generator`.

    Raises:
        BadInput: the model does not have the language or the task.
        MeasurementFailed: the decoder gave NaN or infinite logits.
    """
    check_options(tokens, options)
    sampling = temperature > 0.0
    rows = options.best_of if sampling else options.beams
    language = language or chosen_language(tokens, options)
    detects = language is None and tokens.multilingual and bool(tokens.languages)
    no_speech = no_speech and tokens.no_speech is not None
    earlier = [tokens.previous, *previous] if previous and tokens.previous is not None else []
    opening = [*earlier, tokens.start]

    session.start(rows)
    probability = None
    if detects or no_speech:  # both are read where only the start has been said
        logits = _step(session, opening, rows, tokens)
        if no_speech:
            probability = float(np.exp(_log_softmax(logits[:1]))[0, tokens.no_speech])
        if detects:
            language = likeliest_language(logits[0], tokens)
        rest = prompt_tokens(tokens, options, language)
        logits = _step(session, rest, rows, tokens) if rest else logits
    else:
        rest = prompt_tokens(tokens, options, language)
        logits = _step(session, [*opening, *rest], rows, tokens)

    budget = max(tokens.positions - len(opening) - len(rest), 0)
    budget = budget if options.max_tokens is None else min(budget, options.max_tokens)
    search = _Search(session, tokens, options, budget)
    if not sampling and options.beams > 1:
        hypotheses = search.beams(logits)
    else:
        hypotheses = search.samples(logits, temperature, generator)
    best = max(hypotheses, key=lambda hypothesis: _rank(hypothesis, options.length_penalty))
    return _decoded(best, tokens, options, temperature, probability, language)


def decode_windows(
    session: SpeechSession,
    tokens: Decoding,
    options: DecodeOptions,
    most_tokens: Sequence[int],
    *,
    no_speech: bool = True,
) -> list[Decoded]:
    """The greedy transcripts of the windows that `session` has encoded together, one row each; see `decode_window`.

    most_tokens: of each window. The language is the options' or the model's own: it is not detected.

    Raises:
        BadInput: the model does not have the language or the task.
        MeasurementFailed: the decoder gave NaN or infinite logits.
    """
    check_options(tokens, options)
    rows, language = len(most_tokens), chosen_language(tokens, options)
    rest = prompt_tokens(tokens, options, language)
    probabilities: list[float | None] = [None] * rows
    session.start(rows)
    if no_speech and tokens.no_speech is not None:
        logits = _step(session, [tokens.start], rows, tokens)
        probabilities = np.exp(_log_softmax(logits))[:, tokens.no_speech].tolist()
        logits = _step(session, rest, rows, tokens) if rest else logits
    else:
        logits = _step(session, [tokens.start, *rest], rows, tokens)
    room = max(tokens.positions - 1 - len(rest), 0)
    caps = [min(room, most, room if options.max_tokens is None else options.max_tokens) for most in most_tokens]
    heard = _Search(session, tokens, options, max(caps)).samples(logits, 0.0, None, caps)
    return [
        _decoded(hypothesis, tokens, options, 0.0, probability, language)
        for hypothesis, probability in zip(heard, probabilities)
    ]


def _decoded(
    best: _Hypothesis,
    tokens: Decoding,
    options: DecodeOptions,
    temperature: float,
    no_speech_probability: float | None,
    language: str | None,
) -> Decoded:
    cut = without_loop(best.tokens, tokens.times) if options.stop_repeats else None
    counted, said = len(best.tokens) + best.ended, best.tokens if cut is None else cut
    return Decoded(
        tokens=said,
        ended=best.ended,
        looped=cut is not None,
        temperature=temperature,
        average_log_probability=best.log_probability / max(counted, 1),
        no_speech_probability=no_speech_probability,
        language=language,
        log_probabilities=best.each[: len(said)],
    )


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


def likeliest_language(logits: np.ndarray, tokens: Decoding) -> str:
    """The code of the likeliest language, from the logits (vocabulary,) after the start token."""
    codes = sorted(tokens.languages, key=lambda code: tokens.languages[code])
    return codes[int(np.argmax(logits[[tokens.languages[code] for code in codes]]))]


def prompt_tokens(tokens: Decoding, options: DecodeOptions, language: str | None) -> list[int]:
    """What follows the start token: language and task of a multilingual model, and whether timestamps are wanted."""
    prompt: list[int] = []
    if tokens.multilingual:
        task = tokens.transcribe if (options.task or tokens.default_task) == "transcribe" else tokens.translate
        assert task is not None
        prompt = [*([tokens.languages[language]] if language is not None else []), task]
    if not options.timestamps and tokens.no_timestamps is not None:
        prompt.append(tokens.no_timestamps)
    return prompt


class _Search:
    """The hypotheses of one window, from the prompt on."""

    def __init__(self, session: SpeechSession, tokens: Decoding, options: DecodeOptions, budget: int) -> None:
        self._session, self._tokens, self._options, self._budget = session, tokens, options, budget
        self._rules = TokenRules(tokens, options.timestamps)

    def samples(
        self,
        logits: np.ndarray,
        temperature: float,
        generator: np.random.Generator | None,
        caps: Sequence[int] | None = None,
    ) -> list[_Hypothesis]:
        """One hypothesis per row: the likeliest token at each step at temperature 0, drawn ones above.

        caps: the most tokens of each row, None: as many as there is budget for.
        """
        rows, end = len(logits), self._tokens.end
        generator = generator or np.random.default_rng(self._options.seed)
        said: list[list[int]] = [[] for _ in range(rows)]
        each: list[list[float]] = [[] for _ in range(rows)]
        sums, open_rows, ended = [0.0] * rows, [True] * rows, [False] * rows
        for length in range(1, self._budget + 1):
            scores = logits.copy()
            self._rules.apply(scores, said)
            chosen = _drawn(scores, temperature, generator) if temperature > 0.0 else scores.argmax(axis=1)
            log_probabilities = _log_softmax_at(scores, chosen)
            for row in range(rows):
                if open_rows[row]:
                    sums[row] += float(log_probabilities[row])
                    ended[row] = bool(chosen[row] == end)
                    if not ended[row]:
                        said[row].append(int(chosen[row]))
                        each[row].append(float(log_probabilities[row]))
                    open_rows[row] = not ended[row] and not self._is_stuck(said[row])
                    open_rows[row] = open_rows[row] and (caps is None or length < caps[row])
            if not any(open_rows) or length == self._budget:
                break
            # A row that has ended goes on with the end token: what follows is not looked at.
            fed = np.where(open_rows, chosen, end)
            logits = self._logits(fed[:, np.newaxis], None)
        return [_Hypothesis(tuple(said[row]), ended[row], sums[row], tuple(each[row])) for row in range(rows)]

    def beams(self, logits: np.ndarray) -> list[_Hypothesis]:
        """The hypotheses that ended, likeliest continuations first, as in openai's `BeamSearchDecoder`.

        Each step looks at the beams + 1 likeliest tokens of every hypothesis, takes those that end out of the search,
        and goes on with the best that do not, until beams × patience have ended.
        """
        beams, end = self._options.beams, self._tokens.end
        wanted = max(round(beams * self._options.patience), 1)
        said: list[list[int]] = [[] for _ in range(beams)]
        each: list[list[float]] = [[] for _ in range(beams)]
        sums = np.full(beams, -np.inf)
        sums[0] = 0.0  # every row holds the same prompt, so only one of them counts at first
        ended: list[_Hypothesis] = []
        for length in range(1, self._budget + 1):
            scores = logits.copy()
            self._rules.apply(scores, said)
            going_on: list[tuple[int, int, float]] = []
            for row, token, total in _best_continuations(_log_softmax(scores), sums, beams):
                if token != end:
                    going_on.append((row, token, total))
                elif len(ended) < wanted and total > -np.inf:
                    ended.append(_Hypothesis(tuple(said[row]), True, total, tuple(each[row])))
                if len(going_on) == beams:
                    break
            said = [[*said[row], token] for row, token, _ in going_on]
            each = [[*each[row], total - float(sums[row])] for row, _, total in going_on]
            sums = np.array([total for _, _, total in going_on])
            if len(ended) >= wanted or length == self._budget or self._is_stuck(said[0]):
                break
            parents = np.array([row for row, _, _ in going_on], dtype=np.int64)
            logits = self._logits(np.array([[tokens[-1]] for tokens in said], dtype=np.int64), parents)
        for row in range(beams - len(ended)):  # the best of those that did not come to an end; they are in order
            if sums[row] > -np.inf:
                ended.append(_Hypothesis(tuple(said[row]), False, float(sums[row]), tuple(each[row])))
        return ended

    def _is_stuck(self, said: list[int]) -> bool:
        if not self._options.stop_repeats or len(said) == 0 or len(said) % CHECK_LOOPS_EVERY:
            return False
        return without_loop(said, self._tokens.times) is not None

    def _logits(self, fed: np.ndarray, parents: np.ndarray | None) -> np.ndarray:
        return self._session.step(fed.astype(np.int64), parents)


def _step(session: SpeechSession, prompt: Sequence[int], rows: int, tokens: Decoding) -> np.ndarray:
    """Logits, float32 (rows, vocabulary), after `prompt` in every row."""
    logits = session.step(np.tile(np.array(prompt, dtype=np.int64), (rows, 1)))
    highest = max(tokens.end, tokens.timestamp_begin or 0)
    if logits.shape[1] <= highest:
        raise BadInput(f"decoding: the decoder knows {logits.shape[1]} tokens, but the manifest names token {highest}")
    return logits


def _rank(hypothesis: _Hypothesis, length_penalty: float | None) -> float:
    """Log probability, the end's included, over tokens or over a penalty of their number, as openai's ranker."""
    length = len(hypothesis.tokens)
    divisor = max(length, 1) if length_penalty is None else ((5 + length) / 6) ** length_penalty
    return hypothesis.log_probability / divisor


def _best_continuations(log_probabilities: np.ndarray, sums: np.ndarray, beams: int) -> list[tuple[int, int, float]]:
    """Row, token and total of each row's `beams` + 1 likeliest tokens, the best total first."""
    kept = min(beams + 1, log_probabilities.shape[1])
    likeliest = np.argpartition(-log_probabilities, kept - 1, axis=1)[:, :kept]
    totals = sums[:, np.newaxis] + np.take_along_axis(log_probabilities, likeliest, axis=1)
    order = np.argsort(-totals, axis=None, kind="stable")
    return [
        (int(place // kept), int(likeliest[place // kept, place % kept]), float(totals.flat[place])) for place in order
    ]


def _drawn(scores: np.ndarray, temperature: float, generator: np.random.Generator) -> np.ndarray:
    """A token per row, drawn with the probabilities that its scores over `temperature` have."""
    scaled = (scores - scores.max(axis=1, keepdims=True)) / temperature
    cumulative = np.exp(scaled, dtype=np.float64).cumsum(axis=1)
    points = generator.random(len(scores)) * cumulative[:, -1]
    # The first token whose cumulative weight is over the point: never one of weight 0.
    return np.array([np.searchsorted(row, point, side="right") for row, point in zip(cumulative, points)])


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    """Log probabilities, float64, of scores (rows, vocabulary)."""
    shifted = (scores - scores.max(axis=1, keepdims=True)).astype(np.float64)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _log_softmax_at(scores: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The log probability of one token per row."""
    highest = scores.max(axis=1)
    exponentials = scores - highest[:, np.newaxis]
    np.exp(exponentials, out=exponentials)  # summed pairwise in float32, which is off by a ten-millionth
    return scores[np.arange(len(scores)), tokens] - highest - np.log(exponentials.sum(axis=1), dtype=np.float64)
