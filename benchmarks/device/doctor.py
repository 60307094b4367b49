"""What this device has and lacks for a bundle, each lack with the command that mends it. Needs nothing but Python."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leanear.benchmarks.sensors.device import device_facts, device_name, device_state, is_measured
from leanear.runtimes.choose import choose_runtime, offered_runtimes
from leanear.runtimes.errors import BadInput
from leanear.runtimes.process.isolation import code_command, isolated_environment

DOCTOR_SCHEMA = "leanear-doctor-1"
NUMPY = "numpy>=1.22"
IMPORT_LIMIT_S = 120.0
NVIDIA_DRIVER = "proc/driver/nvidia/version"
WANTED_FREE_BYTES = 256 * 2**20
WANTED_MEMORY_BYTES = 256 * 2**20
EARLIEST_YEAR = 2025  # leanear is not older, so a clock that says less is wrong


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ok: None where it only informs; text: what was seen; remedy: the command that mends it."""

    name: str
    ok: bool | None
    text: str
    remedy: str = ""


def examine(runtime: str | None, folder: Path, state: dict[str, Any], root: Path = Path("/")) -> tuple[Finding, ...]:
    """Findings on Python, numpy, the runtimes (`runtime` must be there, the others may), clock, memory and disk.

    folder: where the bundle lies; state: of `device_state`; root: where /etc and /usr are looked for.
    """
    python = platform.python_version()
    return (
        Finding("python", sys.version_info >= (3, 9), f"{python}, {sys.executable}"),
        _library("numpy", root),
        *(_other_runtime(name) for name in offered_runtimes() if name != runtime),
        *((_runtime(runtime, root),) if runtime is not None and runtime in offered_runtimes() else ()),
        _clock(),
        _memory(state),
        _disk(folder),
        _load(state),
    )


def report(runtime: str | None, folder: Path, root: Path = Path("/")) -> dict[str, Any]:
    """The findings and the device's facts as JSON; `ok` when nothing that is needed is missing."""
    facts, state = device_facts(root), device_state(root)
    findings = examine(runtime, folder, state, root)
    return {
        "schema": DOCTOR_SCHEMA,
        "ok": all(finding.ok is not False for finding in findings),
        "runtime": runtime,
        "device_name": device_name(facts),
        "device": facts,
        "state": state,
        "findings": [asdict(finding) for finding in findings],
    }


def read_report(text: str) -> dict[str, Any]:
    """A report as it came from a device.

    Raises:
        BadInput: it is not one.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput("doctor: what it says is not JSON") from None
    if not isinstance(document, dict) or document.get("schema") != DOCTOR_SCHEMA:
        raise BadInput("doctor: what it says is of another version of leanear")
    findings = document.get("findings")
    kinds = {"name": str, "ok": (bool, type(None)), "text": str, "remedy": str}
    if not isinstance(document.get("device"), dict) or not isinstance(findings, list):
        raise BadInput("doctor: what it says has no findings")
    for finding in findings:
        if not isinstance(finding, dict) or set(finding) != set(kinds):
            raise BadInput("doctor: one of its findings is none")
        if not all(isinstance(finding[key], kind) for key, kind in kinds.items()):  # type: ignore[arg-type]
            raise BadInput("doctor: one of its findings is none")
    return document


def lines(document: dict[str, Any]) -> list[str]:
    """The report as a reader wants it: facts first, then what is there, what is missing, and what to type."""
    shown = []
    for name, value in {"device_name": document["device_name"], **document["device"], **document["state"]}.items():
        if isinstance(value, dict) and is_measured(value):
            value = "; ".join(f"{key}: {item}" for key, item in value.items())
        elif isinstance(value, dict):
            value = f"not measured ({value['reason']})"
        shown.append(f"{name:24} {', '.join(map(str, value)) if isinstance(value, list) else value}")
    shown.append("")
    words = {True: "ok", False: "MISSING", None: "-"}
    for finding in document["findings"]:
        shown.append(f"{words[finding['ok']]:8} {finding['name']:12} {finding['text']}")
        if finding["remedy"] and finding["ok"] is False:
            shown.append(f"{'':8} {'':12} mend it with: {finding['remedy']}")
    return shown


def lacks(document: dict[str, Any]) -> list[str]:
    """One line for each thing that is needed and missing, with its remedy."""
    return [
        f"{finding['name']}: {finding['text']}" + (f"; mend it with: {finding['remedy']}" if finding["remedy"] else "")
        for finding in document["findings"]
        if finding["ok"] is False
    ]


def _other_runtime(name: str) -> Finding:
    """Whether a runtime that is not needed is installed; trying it could take longer than all the rest."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, None, "not installed")
    return Finding(name, None, f"{version}, not tried")


def _runtime(name: str, root: Path) -> Finding:
    """Whether a runtime's library imports, and then whether the runtime says of itself that it works here."""
    finding = _library(name, root)
    try:
        reason = choose_runtime(name).available() if finding.ok else None
    except ImportError:  # numpy is missing, which is a finding of its own
        return finding
    return finding if reason is None else Finding(name, False, reason)


def _library(name: str, root: Path) -> Finding:
    """Whether `name` imports, tried in a process of its own: a build for another CPU dies of it."""
    program = f"import {name}; print({name}.__version__)"
    try:
        tried = subprocess.run(
            code_command(program),
            env=isolated_environment(),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=IMPORT_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return Finding(name, False, f"importing it takes over {IMPORT_LIMIT_S:g} s")
    if tried.returncode == 0:
        return Finding(name, True, tried.stdout.strip().splitlines()[-1])
    last = (tried.stderr.strip().splitlines() or ["no word on standard error"])[-1]
    if tried.returncode < 0:
        name_of_signal = signal.Signals(-tried.returncode).name
        text = f"importing it is ended by {name_of_signal}: this build is not for this CPU"
    elif f"No module named '{name}'" in last:
        text = f"not installed for {sys.executable}" + (_about_tensorrt(root) if name == "tensorrt" else "")
    else:
        text = f"does not import: {last}"
    return Finding(name, False, text, remedy(name, root))


def remedy(name: str, root: Path = Path("/")) -> str:
    """The command that installs `name` on this device."""
    if name == "tensorrt" and _is_jetson(root):
        return "sudo apt-get install python3-libnvinfer"
    if name == "tensorrt" and not (root / NVIDIA_DRIVER).exists():
        return ""  # it would install and find no GPU
    python = sys.executable or "python3"
    if name == "numpy" and python.startswith("/usr/bin/") and (root / "usr/bin/apt-get").exists():
        return "sudo apt-get install python3-numpy"
    wanted = f"'{package(name)}'"
    if sys.prefix != sys.base_prefix:
        return f"{python} -m pip install {wanted}"
    if _externally_managed():
        venv = "~/leanear-venv"
        return (
            f"{python} -m venv --system-site-packages {venv} && {venv}/bin/pip install {wanted} "
            f"(and then {venv}/bin/python in place of python3)"
        )
    return f"{python} -m pip install --user {wanted}"


def package(name: str) -> str | None:
    """What pip installs a library by, the earliest version with it."""
    return NUMPY if name == "numpy" else choose_runtime(name).PACKAGE


def _externally_managed() -> bool:
    """Whether this Python belongs to the system, which does not let pip write to it (PEP 668)."""
    import sysconfig

    return (Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED").exists()


def _is_jetson(root: Path) -> bool:
    return (root / "etc/nv_tegra_release").exists()


def _about_tensorrt(root: Path) -> str:
    if not _is_jetson(root):
        said = "; it comes with JetPack, and this is not a Jetson (there is no /etc/nv_tegra_release)"
        if (root / NVIDIA_DRIVER).exists():
            return said
        return f"{said}, nor is there an NVIDIA driver; the target raspberrypi measures the CPU of any such device"
    if sys.prefix != sys.base_prefix or not sys.executable.startswith("/usr/bin/"):
        return "; JetPack's is for the system's own /usr/bin/python3, or a venv made with --system-site-packages"
    return ""


def _clock() -> Finding:
    now = time.gmtime()
    said = time.strftime("%Y-%m-%d %H:%M:%S UTC", now)
    if now.tm_year >= EARLIEST_YEAR:
        return Finding("clock", True, said)
    # Nothing is measured by it, so it does not stop anything.
    return Finding("clock", None, f"it says {said}, which is wrong; set it with: sudo timedatectl set-ntp true")


def _memory(state: dict[str, Any]) -> Finding:
    available = state["memory_available_bytes"]
    if not is_measured(available):
        return Finding("memory", None, f"not measured ({available['reason']})")
    text = f"{available / 1e6:.0f} MB available"
    if available >= WANTED_MEMORY_BYTES:
        return Finding("memory", True, text)
    return Finding("memory", None, f"{text}; a model and its runtime may not fit")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e6:.0f} MB free at {folder}"
    return Finding("disk", True if free >= WANTED_FREE_BYTES else None, text)


def _load(state: dict[str, Any]) -> Finding:
    share = state["cpu_busy_share"]
    if not is_measured(share):
        return Finding("load", None, f"not measured ({share['reason']})")
    text = f"other processes keep {share:.0%} of the cores busy"
    return Finding("load", True if share <= 0.1 else None, text + ("" if share <= 0.1 else "; timings will show it"))
