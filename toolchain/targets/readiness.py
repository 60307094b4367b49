"""What this machine can do for a target, to build and to measure, and what is missing where it cannot."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from leanear.runtimes.backends.engines import import_library
from leanear.runtimes.choose import choose_runtime
from leanear.runtimes.errors import RuntimeUnavailable
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
        reason = _library_missing(target.runtime)
        built = measured = "not here" if reason else "here"
        reason = reason or choose_runtime(target.runtime).available() or ""
        measured = "not here" if reason else "here"
    else:
        reason = _runtime_missing(target)
        built = measured = "not here" if reason else "here"
    return Readiness(target.name, target.runtime, target.graph_form, target.precision, built, measured, reason)


def _library_missing(runtime: str) -> str:
    """Why engines cannot be built here, which needs no GPU; "" if they can."""
    try:
        import_library(runtime)
    except RuntimeUnavailable as error:
        return str(error)
    return ""


def _runtime_missing(target: Target) -> str:
    """Why the target's runtime cannot measure here in its precision; "" if it can."""
    runtime = choose_runtime(target.runtime)
    reason = runtime.available()
    if reason is not None:
        return reason
    offered = runtime.precisions()
    if target.precision in offered:
        return ""
    return f"{target.runtime} does not compute in {target.precision} on this machine; it offers {', '.join(offered)}"
