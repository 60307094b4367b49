"""Environments of their own for other people's engines, made by venv and pip from a file of requirements."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from leanear.benchmarks.peers.lasting_worker import ROOT, WorkerFailed


def build_environment(environment: Path, requirements: Path, unwanted: str = "") -> Path:
    """The environment's python; it is made if it is not there or was made from other requirements.

    leanear's own code is there too, without what it needs: a worker imports little of it. unwanted: a package that
    comes along and has to go.

    Raises:
        WorkerFailed: the packages cannot be had here.
    """
    python, ready = environment / "bin" / "python", environment / ".ready"  # what was interrupted is not ready
    wanted = f"{requirements.read_text(encoding='utf-8')}# leanear of {ROOT}\n"
    if not (ready.is_file() and ready.read_text(encoding="utf-8") == wanted):
        print(f"setting up {environment} (a few minutes, once)", flush=True)
        run([sys.executable, "-I", "-m", "venv", str(environment)])
        pip = [str(python), "-I", "-m", "pip"]
        install = [*pip, "install", "--quiet", "--disable-pip-version-check"]
        run([*install, "-r", str(requirements)])
        run([*install, "--no-deps", "-e", str(ROOT)])
        if unwanted:
            run([*pip, "uninstall", "--quiet", "--yes", unwanted])
        ready.write_text(wanted, encoding="utf-8")
    return python


def run(command: list[str]) -> None:
    """Raises WorkerFailed with the command's last line."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        last = done.stdout.strip().splitlines()[-1:] or ["it said nothing"]
        raise WorkerFailed(f"{' '.join(command[:6])} ended with status {done.returncode}: {last[0]}")
