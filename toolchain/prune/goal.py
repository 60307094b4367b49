"""How small the model is to become, as the user says it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from leanear.runtimes.errors import BadInput

GoalKind = Literal["sparsity", "macs", "latency_ms", "speedup", "rtf", "max_drop"]
TIMED_KINDS: tuple[GoalKind, ...] = ("latency_ms", "speedup", "rtf")
DEFAULT_SPARSITY = 0.5


@dataclass(frozen=True)
class Goal:
    """One of: sparsity, the share to remove of the parameters of what is pruned; macs, the share of the model's
    multiply-accumulates to keep; latency_ms, on the target; speedup, dense over slim latency on the target; rtf,
    seconds of computing for every second of audio there; max_drop, as small as possible while on held-out calibration
    clips the accuracy drops, or the word error rate rises, by so many points at most.
    """

    kind: GoalKind
    value: float

    def __post_init__(self) -> None:
        flag = self.flag
        if not isinstance(self.value, (int, float)):
            raise BadInput(f"{flag} is {self.value!r}; a number is wanted")
        if self.kind in ("sparsity", "macs") and not 0.0 < self.value < 1.0:
            raise BadInput(f"{flag} is {self.value:g}; it must lie between 0 and 1 (0.5 is half)")
        if self.kind == "speedup" and not self.value > 1.0:
            raise BadInput(f"{flag} is {self.value:g}; it must be above 1 (1.3 is 1.3 times as fast)")
        if self.kind in ("latency_ms", "rtf") and not self.value > 0.0:
            raise BadInput(f"{flag} is {self.value:g}; it must be above 0")
        if self.kind == "max_drop" and not 0.0 <= self.value <= 100.0:
            raise BadInput(f"{flag} is {self.value:g}; it is in points, from 0 to 100")

    @property
    def flag(self) -> str:
        """The goal's name on the command line."""
        return "--" + self.kind.replace("_", "-")

    @property
    def needs_latency(self) -> bool:
        """Whether the target's device must be timed first."""
        return self.kind in TIMED_KINDS

    @property
    def text(self) -> str:
        """The goal in a few words."""
        return {
            "sparsity": f"{100 * self.value:g} % of the attention parameters removed",
            "macs": f"{100 * self.value:g} % of the multiply-accumulates kept",
            "latency_ms": f"{self.value:g} ms",
            "speedup": f"{self.value:g} times as fast",
            "rtf": f"a real-time factor of {self.value:g}",
            "max_drop": f"at most {self.value:g} points lost",
        }[self.kind]

    def milliseconds(self, dense_ms: float, audio_s: float) -> float:
        """What an inference that hears `audio_s` seconds may take; dense_ms: what the dense model's takes."""
        return {"latency_ms": self.value, "speedup": dense_ms / self.value, "rtf": 1000 * self.value * audio_s}[
            self.kind
        ]


def choose_goal(flags: Mapping[str, float | None]) -> Goal:
    """The one goal among the flags that were given; without any, half of the attention parameters go.

    max_drop beside another goal is not a goal but a gate, and is left out.

    Raises:
        BadInput: two goals, or one that makes no sense.
    """
    given = {kind: value for kind, value in flags.items() if value is not None}
    if len(given) > 1:
        given.pop("max_drop", None)
    if len(given) > 1:
        names = " and ".join("--" + kind.replace("_", "-") for kind in given)
        raise BadInput(f"{names}: give one of them, they are different goals")
    if not given:
        return Goal("sparsity", DEFAULT_SPARSITY)
    ((kind, value),) = given.items()
    return Goal(kind, value)  # type: ignore[arg-type]
