"""The statistics that only speech has: a window's stages, word error rates, and signs of a decoder gone astray."""

from __future__ import annotations

from dataclasses import dataclass

from leanear.benchmarks.inference import STAGES
from leanear.benchmarks.results import Results
from leanear.benchmarks.results_document import Role, Transcripts
from leanear.benchmarks.summary import Interval, WordErrorChange, summarise_latency, word_error_change, word_error_rate

LOOP_COMPRESSION_RATIO = 2.4  # Whisper's own limit, over which a text repeats itself


@dataclass(frozen=True)
class WindowTimes:
    """Medians over all samples of one role's windows; None where the samples are too few, or it was not timed.

    front_end_ms: the part of encoder_ms that the runtime's profiler says; per_token_ms: of each token after the first;
    tokens_per_second: of decoder time, prompt and first token included.
    """

    front_end_ms: float | None
    encoder_ms: float | None
    first_token_ms: float | None
    later_tokens_ms: float | None
    per_token_ms: float | None
    tokens_per_second: float | None


@dataclass(frozen=True)
class WordCounts:
    """Over all clips of one role. loops: transcripts that repeat themselves; empty: no word, though some were said.

    real_time_factor: seconds of compute per second of audio, the clips one after the other, as long as they are.
    """

    reference_words: int
    substitutions: int
    deletions: int
    insertions: int
    loops: int
    empty: int
    real_time_factor: float

    @property
    def errors(self) -> int:
        """All three kinds together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def by_kind(self) -> str:
        """How many words were substituted, deleted and inserted."""
        return f"{self.substitutions:,} / {self.deletions:,} / {self.insertions:,}"


@dataclass(frozen=True)
class Words:
    """Each by role; rates and counts are empty, and change is None, until the workstation has counted word errors."""

    rates: dict[str, Interval]
    counts: dict[str, WordCounts]
    change: WordErrorChange | None


@dataclass(frozen=True)
class SpeechAnalysis(Words):
    """Of the clips; windows: by role; recordings: of the clips joined, None where they were not."""

    windows: dict[str, WindowTimes]
    recordings: Words | None


def analyse_speech(results: Results) -> SpeechAnalysis:
    """The statistics of results of speech."""
    joined = results.content.recordings
    return SpeechAnalysis(
        **vars(_words(results.content.accuracy)),
        windows={role: _window_times(results, role) for role in results.roles if results.repeats(role)},
        recordings=None if joined is None else _words(joined),
    )


def _words(answers: Transcripts) -> Words:
    if answers.word_errors is None:
        return Words({}, {}, None)
    words = answers.word_errors.reference_words
    errors = {role: clip_errors(answers, role) for role in answers.word_errors.roles}
    return Words(
        rates={role: word_error_rate(each, words) for role, each in errors.items()},
        counts={role: _counts(answers, role) for role in errors},
        change=word_error_change(errors["dense"], errors["slim"], words) if len(errors) == 2 else None,
    )


def clip_errors(accuracy: Transcripts, role: Role) -> list[int]:
    """Errors of each clip of `role`, all kinds together."""
    assert accuracy.word_errors is not None
    kinds = accuracy.word_errors.roles[role]
    return [sum(clip) for clip in zip(kinds.substitutions, kinds.deletions, kinds.insertions)]


def cache_bytes(results: Results) -> dict[str, dict[str, float | None]]:
    """By what it is for, then by role: bytes of keys and values as the manifest counts them.

    token, tokens: of one and of all positions; window: cross-attention's; all: both, without padding; held: with the
    padding that the graphs give them.
    """
    found: dict[str, dict[str, float | None]] = {"token": {}, "tokens": {}, "window": {}, "all": {}, "held": {}}
    for role in results.roles:
        artifact = results.content.artifacts[role]
        cache, decoding = artifact.cache, artifact.decoding
        assert cache is not None, "of speech it never is"
        assert decoding is not None, "of speech it never is"
        positions = decoding.positions
        found["token"][role] = cache.bytes_per_token
        found["tokens"][role] = cache.bytes_per_token * positions
        found["window"][role] = cache.cross_bytes
        found["all"][role] = cache.cross_bytes + cache.bytes_per_token * positions
        found["held"][role] = cache.padded_cross_bytes + cache.padded_bytes_per_token * positions
    return found


def _window_times(results: Results, role: str) -> WindowTimes:
    latency = results.content.latency
    tokens = latency.settings.tokens or 1
    encoder, first, later = (
        _median([sample for samples in results.stages_ms(role, stage) for sample in samples]) for stage in STAGES
    )
    share = latency.front_end_share.get(role)
    decoder = None if first is None or later is None else first + later
    return WindowTimes(
        front_end_ms=None if share is None or encoder is None else share * encoder,
        encoder_ms=encoder,
        first_token_ms=first,
        later_tokens_ms=later,
        per_token_ms=later / (tokens - 1) if later is not None and tokens > 1 else None,
        tokens_per_second=1000 * tokens / decoder if decoder else None,
    )


def _median(samples: list[float]) -> float | None:
    return summarise_latency(samples).percentiles_ms[50] if samples else None


def _counts(accuracy: Transcripts, role: str) -> WordCounts:
    answers, counted = accuracy.roles[role], accuracy.word_errors
    assert counted is not None
    words = counted.reference_words
    kinds = {name: sum(values) for name, values in vars(counted.roles[role]).items()}
    return WordCounts(
        reference_words=sum(words),
        loops=sum(ratio > LOOP_COMPRESSION_RATIO for ratio in answers.compression_ratios),
        empty=sum(not text.strip() and said > 0 for text, said in zip(answers.texts, words)),
        real_time_factor=sum(answers.seconds) / sum(accuracy.audio_s),
        **kinds,
    )
