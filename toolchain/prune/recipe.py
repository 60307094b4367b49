"""How small and how: the goal, and every key of `--recipe FILE` and the options beside it, once, with its limits."""

import dataclasses
import difflib
import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from leanear.runtimes.errors import BadInput
from leanear.targets.target import read_toml

ROTATED, REFERENCE = METHODS = ("rotated", "reference")
TRAINING = "distillation"  # the table of the file that says how recovery trains
GoalKind = Literal["sparsity", "macs", "latency_ms", "speedup", "rtf", "max_drop"]
TIMED_KINDS: tuple[GoalKind, ...] = ("latency_ms", "speedup", "rtf")
DEFAULT_SPARSITY = 0.5


def _key(default: Any, about: str, **more: Any) -> Any:
    """A field with what `Setting` has beside name, kind, choices and default."""
    return field(default=default, metadata={"about": about, **more})


@dataclass(frozen=True)
class Training:
    """How `--recovery full` and `--recovery lora` train; the table [distillation]."""

    minutes: float = _key(20.0, "No further pass over the clips begins after so many minutes.", above=0)
    learning_rate: float | None = _key(None, "Highest learning rate.", unset="6e-5 for full, 1e-3 for lora", above=0)
    epochs: int | None = _key(None, "Passes over the clips, at most.", unset="200 updates' worth, at least 10", least=1)
    max_steps: int | None = _key(None, "Updates, at most.", unset="no limit", least=1)
    batch_size: int = _key(4, "Clips per update.", least=1)
    rank: int = _key(16, "lora: rank of the updates.", least=1)
    alpha: float = _key(16.0, "lora: the updates are scaled by alpha / rank.", above=0)
    temperature: float = _key(2.0, "Temperature of both models' answers.", above=0)
    label_weight: float = _key(0.0, "Weight of the clips' own labels, against the dense model's.", least=0, most=1)
    hidden_weight: float = _key(1.0, "Weight of the differences between hidden states.", least=0)
    patience: int = _key(5, "Passes without a better held-out KL after which training ends.", least=1)
    warm_up: float = _key(0.05, "Share of the updates in which the learning rate rises.", least=0, most=1)
    frequency_warp: float = _key(
        0.06, "By how much the frequencies of a clip are stretched or squeezed at random, at most.", least=0, most=0.5
    )
    time_warp: float = _key(0.12, "By how much a clip that leaves room is slowed down or sped up.", least=0, most=0.5)
    bfloat16: bool = _key(True, "Multiply in bfloat16 where the device has it.")


@dataclass(frozen=True)
class Recipe:
    """What a recipe file holds, and the options beside it.

    given: the keys that the file sets, as one line of TOML, which a report quotes.
    """

    prune: Literal["attention", "feed-forward", "all"] = _key(
        "attention",
        "What is pruned, and what --sparsity is a share of: attention, feed-forward blocks, or both in one budget.",
        option=True,
    )
    recovery: Literal["none", "lora", "full"] = _key(
        "none",
        "Train afterwards, all weights but embeddings, or low-rank updates that are merged: by distillation from the"
        " dense model (method reference: lora alone, on the labels, after every step).",
        option=True,
    )
    calibration_clips: int = _key(256, "Clips to score, search and recover on, at most.", least=1, option=True)
    method: Literal["rotated", "reference"] = _key(
        ROTATED, "`rotated` is ours, a new basis per head and then any widths; `reference` is arXiv 2509.26207."
    )
    sites: Literal["all", "self-attention", "encoder"] = _key(
        "all", "Whisper: prune everywhere, but for cross-attention, or in the encoder; goals are of the whole model."
    )
    basis: Literal["trained", "weights", "activations", "attention", "fisher"] = _key(
        "fisher", "What the new basis is made from.", of=ROTATED
    )
    labels: Literal["projected", "sampled", "observed"] = _key(
        "projected",
        "Whose gradients score: of random projections of the Fisher information, of labels sampled from the model, or"
        " of the clips' own labels.",
        of=ROTATED,
    )
    shots: int | None = _key(
        None,
        "Parts in which it is pruned, each scored anew; the models between are compensated.",
        of=ROTATED, unset="1, and 2 where one loses 0.05 nats or more", least=1, most=20,
    )  # fmt: skip
    one_width_per_head: bool | None = _key(
        None, "Query/key and value/output width of a head are the same.", of=ROTATED, unset="as the target says"
    )
    pools: Literal["global", "by-kind"] = _key(
        "global",
        "Whisper: one budget for all attention, or the same share of each kind (encoder, decoder, cross-attention).",
        of=ROTATED,
    )
    compensate: bool = _key(
        True, "Fit the output projections by least squares where that helps held-out clips.", of=ROTATED
    )
    scheme: Literal["channels", "heads"] = _key(
        "channels", "Remove channels of every head, or entire heads.", of=REFERENCE
    )
    score: Literal["fisher", "magnitude"] = _key("fisher", "What a channel is judged by.", of=REFERENCE)
    threshold: Literal["global", "local"] = _key(
        "local", "Compare channels across layers, or remove the same share in each.", of=REFERENCE
    )
    schedule: Literal["one-shot", "iterative"] = _key("one-shot", "All at once, or step by step.", of=REFERENCE)
    step: float = _key(0.1, "iterative: share of what remains that a step removes.", of=REFERENCE, above=0, below=1)
    max_steps: int = _key(10, "iterative: steps, at most.", of=REFERENCE, least=1)
    batch_size: int = _key(16, "Clips per gradient.", of=REFERENCE, least=1)
    distillation: Training = field(default_factory=Training)
    given: str = ""


@dataclass(frozen=True)
class Setting:
    """A field of a recipe as a user may set it.

    kind: bool, int, float or str; choices: of a str. unset: what None, the default, stands for. of: the one method that
    has it, "" for both. option: it is an option of the command line, not a key of the file. above and below are
    exclusive limits, least and most inclusive ones; every number has one.
    """

    name: str
    kind: type
    choices: tuple[str, ...]
    default: Any
    about: str
    unset: str = ""
    of: str = ""
    option: bool = False
    above: float | None = None
    below: float | None = None
    least: float | None = None
    most: float | None = None

    @property
    def wanted(self) -> str:
        """The values that it may have, in a few words."""
        if self.kind is bool:
            return "true or false"
        if self.choices:
            return " or ".join(json.dumps(choice) for choice in self.choices)
        number = "a whole number" if self.kind is int else "a number"
        if self.most is not None:
            return f"{number} from {self.least:g} to {self.most:g}"
        if self.below is not None:
            return f"{number} between {self.above:g} and {self.below:g}"
        return f"{number} above {self.above:g}" if self.least is None else f"{number} of at least {self.least:g}"

    def allows(self, value: object) -> bool:
        """Whether it may have this value, as TOML has it."""
        if self.kind in (bool, str):
            return type(value) is self.kind and (not self.choices or value in self.choices)
        if type(value) not in ((int,) if self.kind is int else (int, float)) or not math.isfinite(value):  # type: ignore[arg-type]
            return False
        number: Any = value
        return (
            (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
            and (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
        )


@functools.cache
def settings(of: type) -> dict[str, Setting]:
    """The settings of Recipe or Training, by name."""
    hints = get_type_hints(of)
    found = {}
    for each in dataclasses.fields(of):
        if each.metadata:
            hint = hints[each.name]
            values = [one for one in get_args(hint) if one is not type(None)]
            choices = tuple(one for one in values if isinstance(one, str))
            kind = str if choices else values[0] if values else hint
            found[each.name] = Setting(each.name, kind, choices, each.default, **each.metadata)
    return found


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file; keys that it leaves out have their defaults.

    Raises:
        BadInput: the file is no TOML, or has a key that is unknown, of the other method, or of a wrong type or value.
    """
    document = read_toml(path)
    table = document.pop(TRAINING, {})
    if not isinstance(table, dict):
        raise BadInput(f"{path}: {TRAINING} is {table!r}; the table [{TRAINING}] is wanted")
    keys = _checked(path, "", document, settings(Recipe), {TRAINING: None})
    training = _checked(path, f"{TRAINING}.", table, settings(Training), {})
    method = keys.get("method", ROTATED)
    own = {TRAINING: ROTATED, **{name: settings(Recipe)[name].of or method for name in keys}}
    for name in (*keys, *([TRAINING] if table else [])):
        if own[name] != method:
            raise BadInput(f"{path}: {name} is of method {own[name]}, and the method is {method}")
    given = {**keys, **{f"{TRAINING}.{name}": value for name, value in training.items()}}
    said = ", ".join(f"{name} = {json.dumps(value)}" for name, value in given.items())
    return Recipe(**keys, distillation=Training(**training), given=said)


def _checked(path: Path, before: str, table: dict[str, Any], known: dict[str, Setting], others: Any) -> dict[str, Any]:
    """The values of a table, whole numbers as floats where these are wanted; before: what its keys begin with."""
    found = {}
    for name, value in table.items():
        setting = known.get(name)
        if setting is None:
            raise BadInput(f"{path}: unknown key {before + name!r}{_meant(name, [*known, *others])}")
        if setting.option:
            raise BadInput(f"{path}: {name} is no key of a recipe; say --{name.replace('_', '-')}")
        if not setting.allows(value):
            raise BadInput(f"{path}: {before}{name} is {json.dumps(value, default=str)}; {setting.wanted} is wanted")
        found[name] = float(value) if setting.kind is float else value
    return found


def _meant(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else "; docs/recipe.md lists the keys"


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
