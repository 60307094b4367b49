"""What a model is calibrated, trained and judged on, once it is in memory.

Some calibration clips are those that nothing was chosen on: how far a model's answers to them are from the dense one's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from leanear.benchmarks.summary import Interval, paired_change, word_error_change
from leanear.benchmarks.tagging import tag_change
from leanear.calibration.passes import Logits
from leanear.calibration.targets import answered, before_the_end, kl_divergences, positions, strata
from leanear.runtimes.process.notes import note

HELD_OUT_SHARE = 0.2
MOST_HELD_OUT = 64
NO_NUMBER = 1e9  # nats
MOST_KEPT_BYTES = 1024**3  # of the dense model's answers; what is above, it answers anew for every model


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


def divided(clips: LabelledInputs) -> tuple[LabelledInputs, LabelledInputs]:
    """Clips to score, and clips that are held out: the last fifth, 64 at most, 1 at least; both the same if only one.

    clips: in an order whose every run is balanced, see `LabelledInputs.balanced_order`.
    """
    if len(clips) < 2:
        note("one calibration clip: it is scored, and judged on as well, so that no measured loss says anything")
        return clips, clips
    scored = clips_to_score(len(clips))
    return clips[:scored], clips[scored:]


def clips_to_score(clips: int) -> int:
    """How many of so many clips `divided` does not hold out."""
    return clips if clips < 2 else clips - min(MOST_HELD_OUT, max(1, round(HELD_OUT_SHARE * clips)))


def losing(divergence: float) -> float:
    """The divergence; in place of what is no number one that is more than any, which sorts last and which JSON has."""
    return divergence if math.isfinite(divergence) else NO_NUMBER


@dataclass(frozen=True)
class HeldOut:
    """Held-out clips, and the dense model's answers at their targets, kept as far as they fit."""

    dense: nn.Module
    clips: LabelledInputs
    logits: Logits
    batch_size: int = 8
    answers: dict[int, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.clips)

    def of(self, inputs: Any) -> HeldOut:
        """The same clips as other inputs that `logits` takes, to which the dense model's answers are the same."""
        return dataclasses.replace(self, clips=dataclasses.replace(self.clips, inputs=inputs))

    def first(self, clips: int) -> HeldOut:
        """The first of the clips alone."""
        return HeldOut(self.dense, self.clips[:clips], self.logits, self.batch_size)

    @property
    def knows_all_answers(self) -> bool:
        """Whether all of the dense model's answers are kept, so that no inputs are asked of it again."""
        return len(self.answers) * self.batch_size >= len(self)

    @torch.no_grad()
    def kl(self, model: nn.Module, told: Callable[[int, int], None] = lambda _done, _total: None) -> float:
        """The mean KL(dense || model) of a model on the dense one's device, nats per target, 0 or more.

        told: takes after every batch how many of how many clips are done.
        """
        total, done = 0.0, 0
        for number, rows in enumerate(self._order().split(self.batch_size)):
            batch = self.clips[rows].trimmed()
            found, targets = self._answers(model, batch)
            dense = self._dense_answers(number, batch).to(found.device)
            total += float(kl_divergences(dense, found, targets).double().sum())
            done += len(rows)
            told(done, len(self))
        return max(total / positions(self.clips.targets), 0.0)  # below 0 is rounding; what is no number stays so

    def _order(self) -> torch.Tensor:
        """The clips' numbers, sequences the shortest first, so that few positions of a batch are filled up."""
        used = before_the_end(self.clips.targets)
        return torch.arange(len(self.clips)) if used is None else used.sum(dim=1).argsort(stable=True)

    def _dense_answers(self, number: int, batch: LabelledInputs) -> torch.Tensor:
        if number in self.answers:
            return self.answers[number]
        found, _ = self._answers(self.dense, batch)
        if sum(each.nbytes for each in self.answers.values()) + found.nbytes <= MOST_KEPT_BYTES:
            self.answers[number] = found
        return found

    def _answers(self, model: nn.Module, batch: LabelledInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (P, classes) in eval mode at the targets, and those, (P,)."""
        with evaluated(model):
            return answered(self.logits(model, batch.inputs), batch.targets)


@contextlib.contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """The model in eval mode within the block, and in its own after it."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
