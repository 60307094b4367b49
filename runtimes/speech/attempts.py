"""One window of audio, decoded until a text passes: in a short window, again in full, at rising temperatures."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Sequence

import numpy as np

from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.decoding import Decoded, decode_window
from leanear.runtimes.speech.short_windows import most_tokens, why_heard_again
from leanear.runtimes.speech.speech_model import SpeechModel
from leanear.runtimes.speech.tokens.repeats import SUSPECT_LOOP_TOKENS, compression_ratio, without_loop
from leanear.runtimes.speech.tokens.vocabulary import Vocabulary
from leanear.runtimes.speech.transcript import Tally

if TYPE_CHECKING:
    from leanear.runtimes.sessions import SpeechSession


def hear_window(
    session: SpeechSession,
    model: SpeechModel,
    samples: np.ndarray,
    options: DecodeOptions,
    language: str | None,
    previous: Sequence[int],
    generator: np.random.Generator,
    tally: Tally,
    first_try: Decoded | None,
) -> Decoded:
    """What is heard in `samples`: in the shortest window that holds them and, where that is not trusted, in full."""
    windows = model.encoder_windows
    length = windows.holding(len(samples))
    tally.windows += 1
    if length < windows.full:
        tally.short += 1
        decoded = first_try
        if decoded is None:
            session.encode(samples, length)
            decoded = _decode_short(session, model, samples, options, language, previous, generator)
        reason = _why_again(decoded, model, samples, options)
        if not reason:
            return decoded
        tally.second_tries[reason] = tally.second_tries.get(reason, 0) + 1
    elif first_try is not None and (
        holds_no_speech(first_try, options) or not _fails(first_try, model.vocabulary, options)
    ):
        return first_try
    session.encode(samples)
    return _decode_with_fallback(session, model, options, language, previous, generator)


def _decode_short(
    session: SpeechSession,
    model: SpeechModel,
    samples: np.ndarray,
    options: DecodeOptions,
    language: str | None,
    previous: Sequence[int],
    generator: np.random.Generator,
) -> Decoded:
    """The short window that `session` holds at the first temperature, with no more tokens than so much audio has."""
    cap = most_tokens(len(samples), model.sample_rate_hz)
    return decode_window(
        session,
        model.tokens,
        replace(options, max_tokens=cap if options.max_tokens is None else min(cap, options.max_tokens)),
        language=language,
        previous=previous,
        temperature=options.temperatures[0],
        generator=generator,
        no_speech=options.no_speech_limit is not None,
    )


def _why_again(decoded: Decoded, model: SpeechModel, samples: np.ndarray, options: DecodeOptions) -> str:
    """Why a short window is heard again, "" where it is not: what was asked to pass has to pass too."""
    if holds_no_speech(decoded, options):
        return ""
    reason = why_heard_again(decoded, model.tokens, model.vocabulary, samples, model.sample_rate_hz)
    if reason:
        return reason
    if _repeats(decoded, model.vocabulary, options):
        return "loop"
    return "unlikely" if _is_unlikely(decoded, options) else ""


def _decode_with_fallback(
    session: SpeechSession,
    model: SpeechModel,
    options: DecodeOptions,
    language: str | None,
    previous: Sequence[int],
    generator: np.random.Generator,
) -> Decoded:
    """The window that `session` holds at the first temperature that passes the tests, else at the last."""
    no_speech = None
    for attempt, temperature in enumerate(options.temperatures):
        decoded = decode_window(
            session,
            model.tokens,
            options,
            language=language,
            previous=previous,
            temperature=temperature,
            generator=generator,
            no_speech=attempt == 0 and options.no_speech_limit is not None,
        )
        if attempt == 0:
            no_speech, language = decoded.no_speech_probability, decoded.language
        else:  # it does not depend on what is said
            decoded = replace(decoded, no_speech_probability=no_speech)
        if holds_no_speech(decoded, options) or not _fails(decoded, model.vocabulary, options):
            return decoded
    if options.stop_repeats and not decoded.looped and _repeats(decoded, model.vocabulary, options):
        cut = without_loop(decoded.tokens, model.tokens.times, SUSPECT_LOOP_TOKENS)
        decoded = decoded if cut is None else replace(decoded, tokens=cut, looped=True)
    return decoded


def _fails(decoded: Decoded, vocabulary: Vocabulary, options: DecodeOptions) -> bool:
    return decoded.looped or _repeats(decoded, vocabulary, options) or _is_unlikely(decoded, options)


def _repeats(decoded: Decoded, vocabulary: Vocabulary, options: DecodeOptions) -> bool:
    limit = options.compression_ratio_limit
    return limit is not None and compression_ratio(vocabulary.text(decoded.tokens)) > limit


def _is_unlikely(decoded: Decoded, options: DecodeOptions) -> bool:
    limit = options.log_probability_limit
    return limit is not None and decoded.average_log_probability < limit


def holds_no_speech(decoded: Decoded, options: DecodeOptions) -> bool:
    probability, limit = decoded.no_speech_probability, options.no_speech_limit
    if probability is None or limit is None or probability <= limit:
        return False
    return options.log_probability_limit is None or _is_unlikely(decoded, options)
