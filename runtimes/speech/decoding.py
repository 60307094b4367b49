"""One window of speech to tokens: greedily, by beam search, or by sampling, over any session that a decoder runs in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from leanear.runtimes.errors import BadInput
from leanear.runtimes.manifest import Decoding
from leanear.runtimes.sessions import SpeechSession
from leanear.runtimes.speech.decode_options import DecodeOptions, check_options, chosen_language
from leanear.runtimes.speech.search import Hypothesis, Search, log_softmax, rank_of
from leanear.runtimes.speech.tokens.repeats import without_loop


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
    first_end: int = 0,
    least: int = 0,
) -> Decoded:
    """The likeliest transcript of the window that `session` has encoded, at one temperature.

    language: a code that is already known; None: as the options say. previous: tokens said before, shown to the
    decoder. no_speech: measure how likely it is that nobody speaks. first_end, least: see `TokenRules`. At temperature
    0 this is greedy decoding or, with `options.beam_size`, beam search as openai's; above, the likeliest of
    `options.best_of` samples by `generator`.

    Raises:
        BadInput: the model does not have the language or the task.
        MeasurementFailed: the decoder gave NaN or infinite logits.
    """
    check_options(tokens, options)
    sampling = temperature > 0.0
    rows = options.best_of if sampling else options.beam_size
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
            probability = float(np.exp(log_softmax(logits[:1]))[0, tokens.no_speech])
        if detects:
            language = likeliest_language(logits[0], tokens)
        rest = prompt_tokens(tokens, options, language)
        logits = _step(session, rest, rows, tokens) if rest else logits
    else:
        rest = prompt_tokens(tokens, options, language)
        logits = _step(session, [*opening, *rest], rows, tokens)

    budget = max(tokens.positions - len(opening) - len(rest), 0)
    budget = budget if options.max_tokens is None else min(budget, options.max_tokens)
    search = Search(session, tokens, options, budget, [first_end] * rows, least)
    if not sampling and options.beam_size > 1:
        hypotheses = search.beams(logits)
    else:
        hypotheses = search.samples(logits, temperature, generator)
    best = max(hypotheses, key=lambda hypothesis: rank_of(hypothesis, options.length_penalty))
    return _decoded(best, tokens, options, temperature, probability, language)


def decode_windows(
    session: SpeechSession,
    tokens: Decoding,
    options: DecodeOptions,
    most_tokens: Sequence[int],
    *,
    first_ends: Sequence[int] | None = None,
    no_speech: bool = True,
) -> list[Decoded]:
    """The greedy transcripts of the windows that `session` has encoded together, one row each; see `decode_window`.

    most_tokens, first_ends: of each window. The language is the options' or the model's own: it is not detected.

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
        probabilities = np.exp(log_softmax(logits))[:, tokens.no_speech].tolist()
        logits = _step(session, rest, rows, tokens) if rest else logits
    else:
        logits = _step(session, [tokens.start, *rest], rows, tokens)
    room = max(tokens.positions - 1 - len(rest), 0)
    caps = [min(room, most, room if options.max_tokens is None else options.max_tokens) for most in most_tokens]
    heard = Search(session, tokens, options, max(caps), first_ends or [0] * rows).samples(logits, 0.0, None, caps)
    return [
        _decoded(hypothesis, tokens, options, 0.0, probability, language)
        for hypothesis, probability in zip(heard, probabilities)
    ]


def _decoded(
    best: Hypothesis,
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


def _step(session: SpeechSession, prompt: Sequence[int], rows: int, tokens: Decoding) -> np.ndarray:
    """Logits, float32 (rows, vocabulary), after `prompt` in every row."""
    logits = session.step(np.tile(np.array(prompt, dtype=np.int64), (rows, 1)))
    highest = max(tokens.end, tokens.timestamp_begin or 0)
    if logits.shape[1] <= highest:
        raise BadInput(f"decoding: the decoder knows {logits.shape[1]} tokens, but the manifest names token {highest}")
    return logits
