"""Which positions of which clips are asked for, by hand."""

from __future__ import annotations

import torch

from leanear.calibration.targets import NO_TARGET, answered, before_the_end, clip_numbers, kind_of, positions, strata

N = NO_TARGET
SEQUENCES = torch.tensor([[N, N, 7, 3], [N, 5, N, N], [2, N, 4, N]])


def test_labels_are_one_position_each():
    labels, logits = torch.tensor([3, 0, 3]), torch.randn(3, 5)
    found, wanted = answered(logits, labels)
    assert found is logits
    assert wanted is labels
    assert clip_numbers(labels).tolist() == [0, 1, 2]
    assert positions(labels) == 3
    assert before_the_end(labels) is None
    assert strata(labels) is labels


def test_sequences_are_asked_where_they_have_a_target():
    logits = torch.arange(3 * 4 * 2).view(3, 4, 2)
    found, wanted = answered(logits, SEQUENCES)
    assert wanted.tolist() == [7, 3, 5, 2, 4]
    assert found.tolist() == [[4, 5], [6, 7], [10, 11], [16, 17], [20, 21]]
    assert clip_numbers(SEQUENCES).tolist() == [0, 0, 1, 2, 2]
    assert positions(SEQUENCES) == 5
    assert strata(SEQUENCES).tolist() == [2, 1, 2], "how long they are"


def test_only_what_follows_the_last_target_fills_up():
    assert before_the_end(SEQUENCES).int().tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]


def test_tags_are_told_by_their_type():
    tags = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    logits = torch.randn(4, 3)
    found, wanted = answered(logits, tags)
    assert found is logits
    assert wanted is tags
    assert [kind_of(targets) for targets in (tags, torch.tensor([3, 0]), SEQUENCES)] == ["tags", "label", "sequence"]
    assert positions(tags) == 4
    assert clip_numbers(tags).tolist() == [0, 1, 2, 3]
    assert before_the_end(tags) is None
    assert strata(tags).tolist() == [2, 3, 1, 0], "the rarest of their labels; those without any are a stratum"
