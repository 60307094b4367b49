"""When each token was said, from what a decoder's alignment heads look at in the audio.

The method is that of openai's Whisper: the attention of a few cross-attention heads that follow the speech is
sharpened over the tokens, smoothed over time and averaged, and the cheapest monotonic path through it (dynamic time
warping; Sakoe and Chiba 1978) says where each token begins.

Dimension letters: A alignment heads, N tokens, T encoder positions.
"""

from __future__ import annotations

import numpy as np


def token_positions(scores: np.ndarray, first: int, count: int, filter_positions: int) -> np.ndarray:
    """The position at which each of `count` tokens begins, int64 (count,), never falling.

    scores: float32 (A, N, T), of the alignment heads before the softmax, T being positions of audio alone; first: the
    row that the first token is said from, which is that of the token before it.
    """
    weights = softmax(scores)
    weights -= weights.mean(axis=1, keepdims=True)
    spread = weights.std(axis=1, keepdims=True)
    weights = np.divide(weights, spread, out=np.zeros_like(weights), where=spread > 0)
    matrix = np.zeros((count, weights.shape[2]))
    for head in weights[:, first : first + count]:
        matrix += median_filter(head, filter_positions)
    return first_columns(warp(-matrix / len(weights)))


def softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, float32."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True), dtype=np.float32)
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def median_filter(values: np.ndarray, width: int) -> np.ndarray:
    """The median of each number and its neighbours along the last axis, whose ends are mirrored.

    width: odd. Where the axis is too short to be mirrored, the numbers stay as they are. All places are sorted at once
    by odd-even transposition, a few whole-array operations that need no copy of every neighbourhood.
    """
    reach, length = width // 2, values.shape[-1]
    if length <= reach:
        return values
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(reach, reach)], mode="reflect")
    rows = [padded[..., place : place + length] for place in range(width)]
    for turn in range(width):
        for place in range(turn % 2, width - 1, 2):
            low, high = rows[place], rows[place + 1]
            rows[place], rows[place + 1] = np.minimum(low, high), np.maximum(low, high)
    return rows[reach]


def warp(costs: np.ndarray) -> list[tuple[int, int]]:
    """The cheapest path through `costs` (N, T) from the first corner to the last.

    It moves by a row, by a column, or by both at once, and costs what its cells cost. A row is filled without a loop:
    the cheapest way along it from where the path came in is a running minimum of sums.
    """
    rows, columns = costs.shape
    totals = np.empty((rows, columns))
    totals[0] = np.cumsum(costs[0], dtype=np.float64)
    for row in range(1, rows):
        above = totals[row - 1]
        entered = np.concatenate([above[:1], np.minimum(above[1:], above[:-1])])
        along = np.cumsum(costs[row], dtype=np.float64)
        before = np.concatenate([[0.0], along[:-1]])
        totals[row] = np.minimum.accumulate(entered - before) + along
    row, column = rows - 1, columns - 1
    path = [(row, column)]
    while row or column:
        moves = [(row - 1, column - 1), (row - 1, column), (row, column - 1)]
        row, column = min((move for move in moves if min(move) >= 0), key=lambda move: totals[move])
        path.append((row, column))
    return path[::-1]


def first_columns(path: list[tuple[int, int]]) -> np.ndarray:
    """The column at which a path enters each row."""
    entered: dict[int, int] = {}
    for row, column in path:
        entered.setdefault(row, column)
    return np.array(list(entered.values()), dtype=np.int64)
