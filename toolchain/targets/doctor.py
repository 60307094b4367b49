"""What this workstation has for leanear and each target, to build and to measure, and what it lacks."""

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from leanear.runtimes.backends.engines import import_library
from leanear.runtimes.choose import choose_runtime, require_runtime
from leanear.runtimes.errors import LeanearError
from leanear.runtimes.sessions import SessionOptions
from leanear.targets.target import Target, read_target, target_names

Where = Literal["here", "on the device", "not here"]
ON_DEVICE = "--host [user@]name"
HOST_LIBRARIES = ("torch", "transformers", "onnx", "peft", "soundfile", "soxr", "jiwer")
NEEDED_FREE_BYTES = 2 * 1024**3


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


@dataclass(frozen=True)
class Finding:
    """One thing looked at: whether it is as it should be, and what was seen or what would mend it."""

    name: str
    ok: bool
    text: str


def examine() -> tuple[Finding, ...]:
    """Findings on Python, memory, disk, libraries, and each target's runtime."""
    free_bytes = shutil.disk_usage(Path.cwd()).free
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disk = f"{free_bytes / 1e9:.1f} GB free here" + (
        "" if free_bytes >= NEEDED_FREE_BYTES else "; at least 2 GB are wanted"
    )
    return (
        Finding("python", sys.version_info >= (3, 11), f"{sys.version.split()[0]} (3.11 or later is wanted)"),
        Finding("processor", True, f"{len(os.sched_getaffinity(0))} cores, {memory_bytes / 1e9:.1f} GB of memory"),
        Finding("disk", free_bytes >= NEEDED_FREE_BYTES, disk),
        *(_library(name) for name in HOST_LIBRARIES),
        *(_target(name) for name in target_names()),
    )


def _library(name: str) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed; pip install 'leanear[host]'")


def _target(name: str) -> Finding:
    found = readiness(read_target(name))
    return Finding(f"target {name}", found.built != "not here", f"{found.runtime}, {found.precision}; {found.text}")
