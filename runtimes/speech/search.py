"""The hypotheses about one window: one likeliest or drawn token at a time, or the best of several beams.

Which tokens may come next: some are never said, and the rules about timestamps are those of openai's
`ApplyTimestampRules`, as transformers applies them (`WhisperTimeStampLogitsProcessor`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from leanear.runtimes.errors import MeasurementFailed
from leanear.runtimes.manifest import Decoding
from leanear.runtimes.sessions import SpeechSession
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.tokens.repeats import without_loop

FORBIDDEN = -np.inf
CHECK_LOOPS_EVERY = 16  # tokens


class TokenRules:
    """The rules of one window, applied to the scores of every step.

    least: with fewer tokens said, times not counted, the text does not end where a token that is never said was
    likelier than its end: who would have a quotation mark next has more to say.
    """

    def __init__(self, tokens: Decoding, timestamps: bool, least: int = 0) -> None:
        self._tokens = tokens
        self._least = least
        self._timestamps = timestamps
        never = set(tokens.suppress)
        if timestamps and tokens.no_timestamps is not None:
            never.add(tokens.no_timestamps)
        self._never = np.array(sorted(never), dtype=np.int64)
        self._not_first = np.array(sorted(set(tokens.begin_suppress)), dtype=np.int64)

    def apply(self, scores: np.ndarray, said: Sequence[Sequence[int]], first_ends: Sequence[int] = ()) -> None:
        """Set to minus infinity, in place, what may not be said next.

        scores: float32 (rows, vocabulary), logits of the next token; said: the tokens of each row since the prompt;
        first_ends: the timestamp of each row before which the text does not end after a pair of timestamps, which says
        that another segment has begun; none where it may after any. Where nothing at all may be said, the end may.

        Raises:
            MeasurementFailed: a score is NaN or infinite.
        """
        if self._least:
            goes_on = scores[:, self._never].max(axis=1, initial=FORBIDDEN) > scores[:, self._tokens.end]
            is_little = [sum(token not in self._tokens.times for token in before) < self._least for before in said]
            scores[goes_on & is_little, self._tokens.end] = FORBIDDEN
        scores[:, self._never] = FORBIDDEN
        for row, before, first_end in zip(scores, said, first_ends or [0] * len(said)):
            if not before:
                row[self._not_first] = FORBIDDEN
            if self._timestamps:
                self._apply_timestamp_rules(row, before)
                is_pair = len(before) > 1 and all(token in self._tokens.times for token in before[-2:])
                if is_pair and before[-1] < first_end:
                    row[self._tokens.end] = FORBIDDEN
            highest = row.max()  # NaN where any score is
            if not highest < np.inf:
                raise MeasurementFailed("decoding: the decoder gave NaN or infinite logits")
            if highest == FORBIDDEN:
                row[self._tokens.end] = 0.0

    def _apply_timestamp_rules(self, row: np.ndarray, before: Sequence[int]) -> None:
        times, end = self._tokens.times, self._tokens.end
        begin, behind = times.start, min(times.stop, len(row))
        if not before:  # a transcript starts with a timestamp, and not with a late one
            row[:begin] = row[behind:] = FORBIDDEN
            if self._tokens.max_initial_timestamp_index is not None:
                row[begin + self._tokens.max_initial_timestamp_index + 1 :] = FORBIDDEN
            return
        last_is_time = before[-1] in times
        one_before_is_time = len(before) < 2 or before[-2] in times
        if last_is_time and one_before_is_time:  # a segment has begun: text is next
            row[begin:behind] = FORBIDDEN
        elif last_is_time:  # a segment has ended: another one begins, or the transcript ends
            row[:end] = row[behind:] = FORBIDDEN
        latest = next((token for token in reversed(before) if token in times), None)
        if latest is not None:  # time does not go back, and no segment is empty
            row[begin : latest if last_is_time and not one_before_is_time else latest + 1] = FORBIDDEN
        text = max(row[:begin].max(), row[behind:].max(initial=FORBIDDEN))
        if _log_sum_exp(row[begin:behind]) > text:  # a timestamp is likelier than any one text token
            row[:begin] = row[behind:] = FORBIDDEN


def _log_sum_exp(scores: np.ndarray) -> float:
    """The logarithm of the sum of exponentials, in float64; minus infinity of nothing but minus infinity."""
    highest = scores.max(initial=FORBIDDEN)
    if highest == FORBIDDEN:
        return float(FORBIDDEN)
    return float(highest + np.log(np.exp(scores - highest, dtype=np.float64).sum()))


@dataclass(frozen=True)
class Hypothesis:
    tokens: tuple[int, ...]
    ended: bool
    log_probability: float
    each: tuple[float, ...]  # of the tokens, one by one


class Search:
    """The hypotheses of one window, from the prompt on; first_ends, of each, and least: see `TokenRules`."""

    def __init__(
        self,
        session: SpeechSession,
        tokens: Decoding,
        options: DecodeOptions,
        budget: int,
        first_ends: Sequence[int],
        least: int = 0,
    ) -> None:
        self._session, self._tokens, self._options, self._budget = session, tokens, options, budget
        self._first_ends = first_ends
        self._rules = TokenRules(tokens, options.timestamps, least)

    def samples(
        self,
        logits: np.ndarray,
        temperature: float,
        generator: np.random.Generator | None,
        caps: Sequence[int] | None = None,
    ) -> list[Hypothesis]:
        """One hypothesis per row: the likeliest token at each step at temperature 0, drawn ones above.

        caps: the most tokens of each row, None: as many as there is budget for.
        """
        rows, end = len(logits), self._tokens.end
        generator = generator or np.random.default_rng(self._options.seed)
        said: list[list[int]] = [[] for _ in range(rows)]
        each: list[list[float]] = [[] for _ in range(rows)]
        sums, open_rows, ended = [0.0] * rows, [True] * rows, [False] * rows
        fed = np.full((rows, 1), end)
        for length in range(1, self._budget + 1):
            live = [row for row in range(rows) if open_rows[row] or temperature > 0.0]
            scores = logits if len(live) == rows else logits[live]  # the next step overwrites them anyway
            self._rules.apply(scores, [said[row] for row in live], [self._first_ends[row] for row in live])
            chosen = _drawn(scores, temperature, generator) if temperature > 0.0 else scores.argmax(axis=1)
            log_probabilities = _log_softmax_at(scores, chosen)
            for row, token, log_probability in zip(live, chosen.tolist(), log_probabilities.tolist()):
                if open_rows[row]:
                    sums[row] += log_probability
                    ended[row] = token == end
                    if not ended[row]:
                        said[row].append(token)
                        each[row].append(log_probability)
                    open_rows[row] = not ended[row] and not self._is_stuck(said[row])
                    open_rows[row] = open_rows[row] and (caps is None or length < caps[row])
                # A row that has ended goes on with the end token: what follows is not looked at.
                fed[row] = token if open_rows[row] else end
            if not any(open_rows) or length == self._budget:
                break
            logits = self._logits(fed, None)
        return [Hypothesis(tuple(said[row]), ended[row], sums[row], tuple(each[row])) for row in range(rows)]

    def beams(self, logits: np.ndarray) -> list[Hypothesis]:
        """The hypotheses that ended, likeliest continuations first, as in openai's `BeamSearchDecoder`.

        Each step looks at the beams + 1 likeliest tokens of every hypothesis, takes those that end out of the search,
        and goes on with the best that do not, until beams × patience have ended.
        """
        beams, end = self._options.beam_size, self._tokens.end
        wanted = max(round(beams * self._options.patience), 1)
        said: list[list[int]] = [[] for _ in range(beams)]
        each: list[list[float]] = [[] for _ in range(beams)]
        sums = np.full(beams, -np.inf)
        sums[0] = 0.0  # every row holds the same prompt, so only one of them counts at first
        ended: list[Hypothesis] = []
        for length in range(1, self._budget + 1):
            scores = logits.copy()
            self._rules.apply(scores, said, self._first_ends)
            going_on: list[tuple[int, int, float]] = []
            for row, token, total in _best_continuations(log_softmax(scores), sums, beams):
                if token != end:
                    going_on.append((row, token, total))
                elif len(ended) < wanted and total > -np.inf:
                    ended.append(Hypothesis(tuple(said[row]), True, total, tuple(each[row])))
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
                ended.append(Hypothesis(tuple(said[row]), False, float(sums[row]), tuple(each[row])))
        return ended

    def _is_stuck(self, said: list[int]) -> bool:
        if not self._options.stop_repeats or len(said) == 0 or len(said) % CHECK_LOOPS_EVERY:
            return False
        return without_loop(said, self._tokens.times) is not None

    def _logits(self, fed: np.ndarray, parents: np.ndarray | None) -> np.ndarray:
        return self._session.step(fed.astype(np.int64), parents)


def rank_of(hypothesis: Hypothesis, length_penalty: float | None) -> float:
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


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Log probabilities, float64, of scores (rows, vocabulary)."""
    shifted = (scores - scores.max(axis=1, keepdims=True)).astype(np.float64)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _log_softmax_at(scores: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The log probability of one token per row; the scores are overwritten."""
    highest, of_tokens = scores.max(axis=1), scores[np.arange(len(scores)), tokens]
    scores -= highest[:, np.newaxis]
    np.exp(scores, out=scores)  # summed pairwise in float32, which is off by a ten-millionth
    return of_tokens - highest - np.log(scores.sum(axis=1), dtype=np.float64)
