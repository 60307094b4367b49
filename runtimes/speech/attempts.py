"""One window of audio, decoded until a text passes: in a short window, again in full, at rising temperatures.

The decoder was trained on full windows. In a shorter one it may not stop where the audio does, and say something over
and over or make up what nobody said, or it may stop too early. All of that shows in the tokens, and such a window is
heard again, in full.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Sequence

import numpy as np

from leanear.runtimes.manifest import Decoding
from leanear.runtimes.sessions import SpeechSession
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.decoding import Decoded, decode_window
from leanear.runtimes.speech.speech_model import SpeechModel
from leanear.runtimes.speech.tokens.repeats import SUSPECT_LOOP_TOKENS, compression_ratio, without_loop
from leanear.runtimes.speech.tokens.vocabulary import Vocabulary
from leanear.runtimes.speech.transcript import Tally

MOST_TOKENS_PER_S, MOST_TOKENS_MORE = 8.0, 12  # of audio; nobody speaks so fast
LEAST_TOKENS_PER_S = 1.5  # of audible audio; of 100 clips of read speech none has fewer than 2.5
LEAST_AUDIBLE_S = 2.0  # a shorter noise need not be a word
LEFT_S = 0.5  # of a piece of long audio, audible, that its text may leave out
TWICE_TOKENS = 10  # in a row, that are said again, are rather the decoder's than the speaker's
REPETITIVE = 2.4  # compression ratio, openai's limit
FRAME_S = 0.02
AUDIBLE_SHARE = 10.0 ** (-30 / 20)  # of the loudest frame's amplitude: 30 dB under it


def most_tokens(samples: int, sample_rate_hz: int) -> int:
    """How many tokens so much audio may have."""
    return int(MOST_TOKENS_PER_S * samples / sample_rate_hz) + MOST_TOKENS_MORE


def why_heard_again(
    decoded: Decoded, tokens: Decoding, vocabulary: Vocabulary, samples: np.ndarray, sample_rate_hz: int
) -> str:
    """Why a short window's text is not to be trusted: "cap", "loop" or "short"; "" where it is.

    samples: float32 (samples,), the audio in the window without what it was filled up with.
    """
    if not decoded.ended and len(decoded.tokens) >= most_tokens(len(samples), sample_rate_hz):
        return "cap"
    said = [token for token in decoded.tokens if vocabulary.is_text(token)]
    runs = list(zip(*(said[at:] for at in range(TWICE_TOKENS))))
    loops = len(set(runs)) < len(runs) or without_loop(decoded.tokens, tokens.times, SUSPECT_LOOP_TOKENS) is not None
    if decoded.looped or loops or compression_ratio(vocabulary.text(decoded.tokens)) > REPETITIVE:
        return "loop"
    if len(said) >= LEAST_TOKENS_PER_S * len(samples) / sample_rate_hz:  # no more than all of it is audible
        return ""
    audible = audible_s(samples, sample_rate_hz)
    return "short" if audible >= LEAST_AUDIBLE_S and len(said) < LEAST_TOKENS_PER_S * audible else ""


def least_tokens(samples: np.ndarray, sample_rate_hz: int) -> int:
    """How many tokens what is audible in so much audio has, at least."""
    return math.ceil(LEAST_TOKENS_PER_S * audible_s(samples, sample_rate_hz))


def audible_s(samples: np.ndarray, sample_rate_hz: int) -> float:
    """Seconds of audio that is not much quieter than its loudest moment."""
    return float(_are_audible(samples, sample_rate_hz).sum() * FRAME_S)


def first_end(tokens: Decoding, samples: np.ndarray, sample_rate_hz: int) -> int:
    """The first timestamp that leaves no word out: what of `samples` is audible after it is too short for one."""
    behind = np.cumsum(_are_audible(samples, sample_rate_hz)[::-1])
    end_s = (len(behind) - np.searchsorted(behind, LEFT_S / FRAME_S)) * FRAME_S
    return (tokens.timestamp_begin or 0) + int(end_s / tokens.timestamp_step_s)


def _are_audible(samples: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Whether each frame is, bool (frames,)."""
    frame = max(round(FRAME_S * sample_rate_hz), 1)
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    energy = np.einsum("fs,fs->f", frames, frames)
    return np.asarray(energy > AUDIBLE_SHARE**2 * energy.max(initial=0.0))


@dataclass(frozen=True)
class Hearing:
    """What the windows of one recording are decoded with; the tally is added to.

    in_pieces: they do not depend on each other, and each is heard to its end.
    """

    session: SpeechSession
    model: SpeechModel
    options: DecodeOptions
    generator: np.random.Generator
    tally: Tally
    in_pieces: bool = False

    def window(
        self, samples: np.ndarray, language: str | None, previous: Sequence[int], first_try: Decoded | None
    ) -> Decoded:
        """What is heard in `samples`: in the shortest window that holds them and, where it is not trusted, in full.

        first_try: what was heard already, at the first temperature.
        """
        windows = self.model.encoder_windows
        length = windows.holding(len(samples))
        self.tally.windows += 1
        if length < windows.full:
            self.tally.short += 1
            decoded = first_try or self._short(samples, length, language, previous)
            reason = self._why_again(decoded, samples)
            if not reason:
                return decoded
            self.tally.again(reason)
            if reason == "short":
                return self._in_full(samples, language, previous, least_tokens(samples, self.model.sample_rate_hz))
        elif first_try is not None and self._passes(first_try):
            return first_try
        return self._in_full(samples, language, previous)

    def _short(self, samples: np.ndarray, length: int, language: str | None, previous: Sequence[int]) -> Decoded:
        """A window of `length` at the first temperature, with no more tokens than so much audio has."""
        self.session.encode(samples, length)
        options, cap = self.options, most_tokens(len(samples), self.model.sample_rate_hz)
        capped = replace(options, max_tokens=cap if options.max_tokens is None else min(cap, options.max_tokens))
        return self._decoded(capped, language, previous, 0, self._first_end(samples))

    def _first_end(self, samples: np.ndarray) -> int:
        """Before which timestamp the text of a piece does not end at a pair; 0, at any it may, of what is no piece."""
        return first_end(self.model.tokens, samples, self.model.sample_rate_hz) if self.in_pieces else 0

    def _decoded(
        self,
        options: DecodeOptions,
        language: str | None,
        previous: Sequence[int],
        attempt: int,
        end: int = 0,
        least: int = 0,
    ) -> Decoded:
        return decode_window(
            self.session,
            self.model.tokens,
            options,
            language=language,
            previous=previous,
            temperature=options.temperatures[attempt],
            generator=self.generator,
            no_speech=attempt == 0 and options.no_speech_limit is not None,
            first_end=end,
            least=least,
        )

    def _why_again(self, decoded: Decoded, samples: np.ndarray) -> str:
        """Why a window is heard again, "" where it is not: what was asked to pass has to pass too."""
        if holds_no_speech(decoded, self.options):
            return ""
        model = self.model
        reason = why_heard_again(decoded, model.tokens, model.vocabulary, samples, model.sample_rate_hz)
        if reason:
            return reason
        if self._repeats(decoded):
            return "loop"
        return "unlikely" if _is_unlikely(decoded, self.options) else ""

    def says_too_little(self, decoded: Decoded, samples: np.ndarray) -> bool:
        """Whether a window, where all are full ones, has more to be heard than was said."""
        return len(self.model.encoder_windows.lengths) == 1 and self._why_again(decoded, samples) == "short"

    def _in_full(self, samples: np.ndarray, language: str | None, previous: Sequence[int], least: int = 0) -> Decoded:
        """The full window at the first temperature that passes the tests, else at the last; least: see `TokenRules`."""
        self.session.encode(samples)
        no_speech = None
        # Nothing but the test for loops ends a text here that may not end by itself.
        end = self._first_end(samples) if self.options.stop_repeats else 0
        for attempt in range(len(self.options.temperatures)):
            decoded = self._decoded(self.options, language, previous, attempt, 0 if attempt else end, least)
            if attempt == 0:
                no_speech, language = decoded.no_speech_probability, decoded.language
            else:  # it does not depend on what is said
                decoded = replace(decoded, no_speech_probability=no_speech)
            if self._passes(decoded):
                return decoded
        if self.options.stop_repeats and not decoded.looped and self._repeats(decoded):
            cut = without_loop(decoded.tokens, self.model.tokens.times, SUSPECT_LOOP_TOKENS)
            decoded = decoded if cut is None else replace(decoded, tokens=cut, looped=True)
        return decoded

    def _passes(self, decoded: Decoded) -> bool:
        if holds_no_speech(decoded, self.options):
            return True
        return not (decoded.looped or self._repeats(decoded) or _is_unlikely(decoded, self.options))

    def _repeats(self, decoded: Decoded) -> bool:
        limit = self.options.compression_ratio_limit
        return limit is not None and compression_ratio(self.model.vocabulary.text(decoded.tokens)) > limit


def _is_unlikely(decoded: Decoded, options: DecodeOptions) -> bool:
    limit = options.log_probability_limit
    return limit is not None and decoded.average_log_probability < limit


def holds_no_speech(decoded: Decoded, options: DecodeOptions) -> bool:
    """Whether nobody speaks in a window, as far as the options have a limit for that."""
    probability, limit = decoded.no_speech_probability, options.no_speech_limit
    if probability is None or limit is None or probability <= limit:
        return False
    return options.log_probability_limit is None or _is_unlikely(decoded, options)
