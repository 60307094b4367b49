"""Costs of parts from timings of sums of them, none negative."""

from collections.abc import Mapping, Sequence

import numpy as np


def fit_nonnegative(rows: Sequence[Mapping[str, float]], milliseconds: Sequence[float]) -> dict[str, float]:
    """What every part costs, so that the rows' sums are nearest to `milliseconds`: least squares of relative errors.

    rows: how often every part is in what was timed; all have the same parts.
    """
    names, timed = list(rows[0]), np.array(milliseconds)
    matrix = np.array([[row[name] for name in names] for row in rows], dtype=np.float64) / timed[:, None]
    used = [column for column in range(len(names)) if matrix[:, column].any()]
    while True:
        scale = np.abs(matrix[:, used]).max(axis=0)
        solution = np.linalg.lstsq(matrix[:, used] / scale, np.ones(len(timed)), rcond=None)[0] / scale
        if (solution >= 0).all():
            break
        # A cost below zero is noise: the part that is furthest below, by its share of a row, is not there.
        used.remove(used[int(np.argmin(solution * scale))])
    found = dict.fromkeys(names, 0.0)
    return found | {names[column]: float(value) for column, value in zip(used, solution, strict=True)}
