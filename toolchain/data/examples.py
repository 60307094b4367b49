"""What a model is calibrated, trained and judged on, once it is in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from leanear.benchmarks.summary import Interval, paired_change, word_error_change
from leanear.benchmarks.tagging import tag_change
from leanear.calibration.targets import before_the_end, strata


@dataclass(frozen=True)
class SpeechInputs:
    """What Whisper takes, indexed like a tensor: log-mel features (N, mels, frames) and decoder tokens (N, L), int64.

    The tokens are those that are fed: `<|startoftranscript|>`, the rest of the prompt and the text. encoded: the
    features are what an encoder made of them, (N, positions, width), so that none runs.
    """

    features: torch.Tensor
    tokens: torch.Tensor
    encoded: bool = False

    def __post_init__(self) -> None:
        if len(self.features) != len(self.tokens):
            raise ValueError(f"features of {len(self.features)} clips but tokens of {len(self.tokens)}")

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: torch.Tensor | slice) -> SpeechInputs:
        return SpeechInputs(self.features[index], self.tokens[index], self.encoded)

    def first_tokens(self, length: int) -> SpeechInputs:
        """The same with so many positions at most."""
        return SpeechInputs(self.features, self.tokens[:, :length], self.encoded)

    def to(self, device: torch.device | str) -> SpeechInputs:
        """The same on another device."""
        return SpeechInputs(self.features.to(device), self.tokens.to(device), self.encoded)


Inputs: TypeAlias = torch.Tensor | SpeechInputs


@dataclass(frozen=True)
class LabelledInputs:
    """Clips as a model takes them, and what it is to answer, indexed like a tensor.

    inputs: (N, ...); targets: a label each, (N,), tags, (N, C), or a token at every position, (N, L), as in
    `leanear.calibration.targets`; texts: what is said in each clip, where that is what the model is judged by; clips:
    how many the N were made of, where some were joined.
    """

    inputs: Inputs
    targets: torch.Tensor
    texts: tuple[str, ...] | None = None
    clips: int | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: torch.Tensor | slice) -> LabelledInputs:
        texts = self.texts
        if texts is not None:
            texts = tuple(texts[number] for number in torch.arange(len(texts))[index].tolist())
        return LabelledInputs(self.inputs[index], self.targets[index], texts)

    def trimmed(self) -> LabelledInputs:
        """The same without the positions at the end that fill up shorter clips than there are."""
        inputs, targets = trimmed(self.inputs, self.targets)
        return LabelledInputs(inputs, targets, self.texts, self.clips)

    def balanced_order(self, seed: int, most: int | None = None) -> torch.Tensor:
        """The clips' numbers, int64, shuffled and balanced over their labels or lengths; at most so many of them."""
        return torch.from_numpy(stratified_order(strata(self.targets).numpy(), seed)[:most])


def trimmed(inputs: Any, targets: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """Inputs, which have `first_tokens`, and targets of sequences up to the last target of any; others as they are."""
    used = before_the_end(targets)
    if used is None:
        return inputs, targets
    longest = max(int(used.any(dim=0).sum()), 1)
    return inputs.first_tokens(longest), targets[:, :longest]


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


@dataclass(frozen=True)
class Mistakes:
    """What a model got wrong: errors, and out of how many, both float64 (N,): labels, or words of a transcript.

    Of clips with several labels, what each costs of the mean average precision, and what it could add to it; the sum of
    the former over that of the latter is 1 - mAP. scores, truth: what that is of, (N, C) each, None of other clips.
    """

    errors: np.ndarray
    counted: np.ndarray
    scores: np.ndarray | None = None
    truth: np.ndarray | None = None

    def rise_over(self, before: Mistakes) -> tuple[Interval, float]:
        """By how much the share of mistakes rose from `before`, of the same clips, and its standard error over clips.

        With its paired 95% interval: Tango's score interval where each clip is one answer, right or wrong; else a
        bootstrap over clips.
        """
        if before.scores is not None and self.scores is not None and self.truth is not None:
            change = tag_change(before.scores, self.scores, self.truth)
            gain = change.interval
            return Interval(-gain.estimate, -gain.high, -gain.low), change.standard_error
        more = self.errors - before.errors
        error = float(np.std(more)) * math.sqrt(len(more)) / float(before.counted.sum())
        if (self.counted == 1).all() and max(self.errors.max(), before.errors.max()) <= 1:
            lost, won = (more > 0).sum(), (more < 0).sum()
            return paired_change(int(won), int(lost), len(more)), error
        return word_error_change(before.errors.tolist(), self.errors.tolist(), self.counted.tolist()).change, error
