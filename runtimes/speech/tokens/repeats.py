"""Text that repeats itself: the two signs by which a decoder that is stuck is known."""

from __future__ import annotations

import zlib
from typing import Sequence

import numpy as np

# A stretch of tokens said over and over: this often at least, and this many tokens at least. Nobody speaks like that.
LOOP_TIMES = 4
LOOP_TOKENS = 32
SUSPECT_LOOP_TOKENS = 8  # where the text as a whole is known to repeat itself too much


def compression_ratio(text: str) -> float:
    """Bytes of `text`, stripped, over its bytes after zlib: high where it repeats itself. 0 of no text.

    That of openai's Whisper; transformers takes it of the tokens instead, so its limits are other numbers.
    """
    raw = text.strip().encode("utf-8")
    return len(raw) / len(zlib.compress(raw))


def loop_start(tokens: Sequence[int], least_tokens: int = LOOP_TOKENS) -> tuple[int, int] | None:
    """Where the loop that `tokens` end in starts, and its period; None where they do not end in a loop.

    A loop is the same `period` tokens at least LOOP_TIMES times, `least_tokens` tokens at least, up to the last token.
    """
    said = np.asarray(tokens, dtype=np.int64)
    for period in range(1, len(said) // LOOP_TIMES + 1):
        differs = np.flatnonzero(said[period:] != said[:-period])
        start = int(differs[-1]) + 1 if differs.size else 0
        if len(said) - start >= max(least_tokens, LOOP_TIMES * period):
            return start, period
    return None


def without_loop(said: Sequence[int], times: range, least_tokens: int = LOOP_TOKENS) -> tuple[int, ...] | None:
    """`said` up to the end of its loop's first round; None where it does not end in a loop.

    times: the ids of timestamps, which do not break a loop.
    """
    places = [place for place, token in enumerate(said) if token not in times]
    loop = loop_start([said[place] for place in places], least_tokens)
    if loop is None:
        return None
    start, period = loop
    kept = places[start + period - 1] + 1
    if kept < len(said) and said[kept] in times:  # the time at which the first round ended
        kept += 1
    return tuple(said[:kept])
