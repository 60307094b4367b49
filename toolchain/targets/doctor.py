"""What this workstation has for leanear and what it lacks."""

import importlib.metadata
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from leanear.targets.readiness import readiness
from leanear.targets.target import read_target, target_names

HOST_LIBRARIES = ("torch", "transformers", "onnx", "peft", "soundfile", "soxr", "jiwer")
NEEDED_FREE_BYTES = 2 * 1024**3


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
