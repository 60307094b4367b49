"""The clips that a deployment is judged by, where not all of them are wanted: a device may be slow, or far away."""

from __future__ import annotations

import dataclasses

import numpy as np

from leanear.data.splits import Splits
from leanear.runtimes.errors import BadInput


def draw_evaluation(splits: Splits, most: int | None, seed: int) -> Splits:
    """The splits with at most `most` evaluation clips, drawn at random, in their order; None: all of them.

    Raises:
        BadInput: fewer than one is wanted.
    """
    if most is None or most >= len(splits.evaluation):
        return splits
    if most < 1:
        raise BadInput(f"--eval-clips {most}: at least one is needed")
    drawn = sorted(np.random.default_rng(seed).choice(len(splits.evaluation), most, replace=False))
    origin = f"{splits.origin}; {most} of {len(splits.evaluation)} evaluation clips, drawn at random"
    return dataclasses.replace(splits, evaluation=tuple(splits.evaluation[place] for place in drawn), origin=origin)
