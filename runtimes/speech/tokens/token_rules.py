"""Which tokens may come next: lists of tokens that are never said, and Whisper's rules about timestamps.

The rules are those of openai's `ApplyTimestampRules`, as transformers applies them (`WhisperTimeStampLogitsProcessor`).
"""

from __future__ import annotations

from typing import Sequence

import numpy as np

from leanear.runtimes.errors import MeasurementFailed
from leanear.runtimes.manifest import Decoding

FORBIDDEN = -np.inf


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
