"""One thing that a device shows of itself, and how files of the kernel and programs are read.

Readers take a root folder in place of "/", and `ask` in place of running a program.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Sequence

ASK_LIMIT_S = 5.0
ABSOLUTE_ZERO_C, HOTTEST_C = -60.0, 250.0  # beyond these a sensor is switched off or broken
BATTERY = re.compile(r"^(bat|ac|adp|ucsi|hidpp|cmb|sbs|bq2|max17|pisugar)", re.IGNORECASE)

Ask = Callable[[Sequence[str]], "str | None"]


def not_measured(reason: str) -> dict[str, str]:
    """The value that stands for a fact that is unknown, and why."""
    return {"status": "not measured", "reason": reason}


@dataclass(frozen=True)
class Sensor:
    """One thing that can be read.

    kind: one of KINDS of `leanear.benchmarks.sensors.sensors`; source: the file or program; read: its value now, or
    None.
    """

    kind: str
    name: str
    source: str
    read: Callable[[], "float | None"]


def run_program(command: Sequence[str]) -> str | None:
    """What a program writes, or None where there is no such program or it fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        asked = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ASK_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout if asked.returncode == 0 else None


def number_in(path: Path) -> float | None:
    """The number that a file of the kernel shows now."""
    try:
        return float(path.read_text(encoding="ascii", errors="replace"))
    except (OSError, ValueError):
        return None


def text_in(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return ""


def scaled(path: Path, factor: float, lowest: float = -1e18, highest: float = 1e18) -> Callable[[], float | None]:
    def read() -> float | None:
        value = number_in(path)
        return None if value is None or not lowest <= value * factor <= highest else value * factor

    return read


def readable(kind: str, name: str, path: Path, root: Path, read: Callable[[], float | None]) -> list[Sensor]:
    """The sensor, if it can be read now."""
    return [Sensor(kind, name, shown(path, root), read)] if read() is not None else []


def shown(path: Path, root: Path) -> str:
    return "/" + path.relative_to(root).as_posix()


def monitoring_chips(root: Path) -> list[tuple[Path, str]]:
    """Folder and name of each monitoring chip that is not a battery or its charger."""
    found = [(folder, text_in(folder / "name")) for folder in sorted((root / "sys/class/hwmon").glob("hwmon*"))]
    return [(folder, name) for folder, name in found if name and not BATTERY.match(name)]


def by_number(path: Path) -> tuple[int, str]:
    found = re.search(r"\d+", path.name)
    return (int(found.group()) if found else -1, path.name)
