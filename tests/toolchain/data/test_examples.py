from __future__ import annotations

import numpy as np
import pytest

from leanear.data.examples import stratified_order

SORTED_BY_CLASS = np.repeat([0, 1, 2, 3], [40, 20, 10, 5])  # as an unshuffled loader would serve it


def test_it_is_a_permutation_made_by_the_seed_alone():
    order = stratified_order(SORTED_BY_CLASS, seed=3)
    assert sorted(order.tolist()) == list(range(75))
    assert np.array_equal(order, stratified_order(SORTED_BY_CLASS, seed=3))
    assert not np.array_equal(order, stratified_order(SORTED_BY_CLASS, seed=4))


@pytest.mark.parametrize("seed", range(5))
def test_every_prefix_is_stratified(seed):
    labels = SORTED_BY_CLASS[stratified_order(SORTED_BY_CLASS, seed)]
    for label, total in enumerate([40, 20, 10, 5]):
        seen = np.cumsum(labels == label)
        proportional = np.arange(1, 76) * total / 75
        assert np.abs(seen - proportional).max() < 4 * (total / 75) + 2, "within jitter of the other labels"
    assert set(labels[:38]) == {0, 1, 2, 3}, "the rarest label has 5 of 75 clips: half of the order must hold it"


def test_clips_of_one_label_are_shuffled():
    order = stratified_order(np.zeros(50, dtype=int), seed=0)
    assert not np.array_equal(order, np.arange(50))


def test_labels_are_shuffled_within_every_round():
    labels = np.repeat([0, 1, 2, 3], 10)
    rounds = labels[stratified_order(labels, seed=0)].reshape(10, 4)
    assert len({tuple(one) for one in rounds}) > 5
