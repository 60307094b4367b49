"""How a slim model is trained to answer as the dense one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from leanear.runtimes.errors import BadInput

Method = Literal["lora", "full"]
METHODS: tuple[Method, ...] = ("lora", "full")
LEARNING_RATES: dict[Method, float] = {"lora": 1e-3, "full": 6e-5}
FEWEST_EPOCHS, FEWEST_UPDATES = 10, 200  # that are planned where no number of epochs is given


@dataclass(frozen=True)
class Distillation:
    """How a slim model is trained to answer as the dense one.

    The defaults come from short runs on Whisper tiny.en and on a real AST, see docs/real-models.md. What suits one
    model destroys another: after an epoch that leaves the held-out KL a tenth above its least, training goes back to
    the best state and on at 0.3 of the rate.

    method: "full" trains every parameter but the embeddings, "lora" updates alpha/rank * B A of every linear layer's
    weight, which are merged; learning_rate: None takes the method's own; epochs: passes over the training clips, at
    most; None takes as many as make 200 updates, and 10 at least, so that a few clips are heard often enough;
    batch_size: clips per update, of all processes together; temperature, label_weight, hidden_weight: the loss is
    label_weight * cross-entropy of the observed labels + (1 - label_weight) * temperature^2 KL(dense || slim), both
    softened by the temperature, and the mean over all targets, + hidden_weight * the mean of `hidden_differences` over
    transformer layers and clips; patience: training stops after so many epochs that do not lower the held-out clips' KL
    at temperature 1, which decides which epoch's state is kept, the first of them that before any training; warm_up:
    share of the updates in which the rate rises linearly, before half a cosine takes it to 0; frequency_warp,
    time_warp: by how much training clips are `varied`, for both models alike; max_steps: updates, at most; seconds:
    wall-clock time, without interruptions, after which the epoch under way is the last. The rate falls over the updates
    for which there is time at the first epoch's pace.
    """

    method: Method = "full"
    rank: int = 16
    alpha: float = 16.0
    learning_rate: float | None = None
    epochs: int | None = None
    batch_size: int = 4
    temperature: float = 2.0
    label_weight: float = 0.0
    hidden_weight: float = 1.0
    patience: int = 5
    warm_up: float = 0.05
    frequency_warp: float = 0.06
    time_warp: float = 0.12
    max_steps: int | None = None
    seconds: float | None = None
    bfloat16: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise BadInput(f"distillation method is {self.method!r}; it must be one of {', '.join(METHODS)}")
        for name in ("rank", "epochs", "batch_size", "patience", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"distillation {name} is {value}; it must be at least 1")
        for name in ("frequency_warp", "time_warp"):
            if not 0.0 <= getattr(self, name) <= 0.5:
                raise BadInput(f"distillation {name} is {getattr(self, name):g}; it must lie between 0 and 0.5")
        for name in ("alpha", "learning_rate", "temperature", "seconds"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < math.inf:
                raise BadInput(f"distillation {name} is {value:g}; it must be above 0")
        for name in ("label_weight", "warm_up"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise BadInput(f"distillation {name} is {getattr(self, name):g}; it must lie between 0 and 1")
        if not 0.0 <= self.hidden_weight < math.inf:
            raise BadInput(f"distillation hidden_weight is {self.hidden_weight:g}; it must be at least 0")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up, the method's own unless one was given."""
        return LEARNING_RATES[self.method] if self.learning_rate is None else self.learning_rate

    def updates_per_epoch(self, clips: int) -> int:
        """Updates of one pass over so many training clips."""
        return math.ceil(clips / self.batch_size)

    def epochs_planned(self, clips: int) -> int:
        """Passes over so many training clips, at most."""
        if self.epochs is not None:
            return self.epochs
        return max(FEWEST_EPOCHS, math.ceil(FEWEST_UPDATES / self.updates_per_epoch(clips)))

    def updates_planned(self, clips: int) -> int:
        """Updates on so many training clips, at most."""
        planned = self.epochs_planned(clips) * self.updates_per_epoch(clips)
        return planned if self.max_steps is None else min(planned, self.max_steps)
