"""What this machine can do for a target, to build and to measure, and what is missing where it cannot."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from leanear.runtimes.backends.engines import import_library
from leanear.runtimes.choose import choose_runtime, require_runtime
from leanear.runtimes.errors import LeanearError
from leanear.runtimes.sessions import SessionOptions
from leanear.targets.target import Target

Where = Literal["here", "on the device", "not here"]
ON_DEVICE = "--host [user@]name"


@dataclass(frozen=True)
class Readiness:
    """What `leanear deploy` does for a target on this machine.

    built: where what runs is made of the exported graphs: engines, or what the runtime makes of them when it loads;
    measured: where latency, memory and accuracy are taken; reason: why something is not here, with the command that
    would help, "" if nothing is missing. `deploy` goes through unless built is "not here".
    """

    target: str
    runtime: str
    graph_form: str
    precision: str
    built: Where
    measured: Where
    reason: str

    @property
    def text(self) -> str:
        """The same in a few words."""
        if self.built == "not here":
            return f"not here: {self.reason}"
        if self.measured == "on the device":
            made = "engines built and measured" if self.built == "on the device" else "measured"
            return f"bundle made here, {made} on the device: {ON_DEVICE}"
        if self.measured == "not here":
            return f"builds here, not measured here: {self.reason}"
        return "builds and is measured here" if choose_runtime(self.runtime).ON_GPU else "ready"

    def as_json(self) -> dict[str, Any]:
        """Everything, by stable keys."""
        return {**asdict(self), "text": self.text}


def readiness(target: Target) -> Readiness:
    """What can be done for `target` here; libraries are imported to see."""
    built: Where = "here"
    measured: Where = "here"
    reason = ""
    if target.on_device:
        built = "on the device" if choose_runtime(target.runtime).ON_GPU else "here"
        measured = "on the device"
    elif target.compute_capabilities:
        reason = _missing(lambda: import_library(target.runtime))  # which needs no GPU
        built = measured = "not here" if reason else "here"
        reason = reason or choose_runtime(target.runtime).available() or ""
        measured = "not here" if reason else "here"
    else:
        reason = _missing(lambda: require_runtime(target.runtime, SessionOptions(target.threads, target.precision)))
        built = measured = "not here" if reason else "here"
    return Readiness(target.name, target.runtime, target.graph_form, target.precision, built, measured, reason)


def _missing(require: Callable[[], object]) -> str:
    """Why what is required is not to be had here, "" if it is."""
    try:
        require()
    except LeanearError as error:
        return str(error).removeprefix("precision: ")
    return ""
