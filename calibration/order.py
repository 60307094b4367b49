"""In which order calibration clips are seen: shuffled by a seed, with every label spread evenly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def stratified_order(label_ids: Sequence[int] | np.ndarray, seed: int) -> np.ndarray:
    """A permutation (int64) of the clips in which every prefix holds each label in proportion, give or take one clip.

    The j-th of a label's n clips is put at a random place within [j/n, (j+1)/n) of the whole; which clip is the j-th is
    random too. So any run of batches, and any cut to the first clips, represents all labels. Same seed, same order.
    """
    label_ids = np.asarray(label_ids)
    generator = np.random.default_rng(seed)
    place = np.empty(len(label_ids))
    for label in np.unique(label_ids):
        members = generator.permutation(np.flatnonzero(label_ids == label))
        place[members] = (np.arange(len(members)) + generator.random(len(members))) / len(members)
    return np.argsort(place, kind="stable")
