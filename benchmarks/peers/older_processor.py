"""Run a command as on an x86 processor without AVX-512, VNNI and AMX, on one that has them.

    python -m leanear.benchmarks.peers.older_processor leanear eval ARTIFACT --data DATA
    python -m leanear.benchmarks.peers.older_processor leanear bench ARTIFACT

Libraries choose their kernels by CPUID, which is answered for them here. It takes a C compiler called cc, Linux, and a
processor (and a virtual machine) that lets CPUID fault. What it has besides, caches and clock, stays.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
CANNOT = 99


def main(command: list[str]) -> int:
    """Run the command; its exit status."""
    if not command or command[0].startswith("-"):
        print(__doc__.strip())
        return 0 if command and command[0] in ("-h", "--help") else 2
    with tempfile.TemporaryDirectory(prefix="leanear-older-") as folder:
        library = Path(folder, "older_processor.so")
        try:
            compiler = shutil.which("cc") or "cc"
            subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE)], check=True)
            status = subprocess.run(command, env={**os.environ, "LD_PRELOAD": str(library)}, check=False).returncode
        except FileNotFoundError as error:
            print(f"older_processor: {error.filename}: not found", file=sys.stderr)
            return 2
        except subprocess.CalledProcessError:
            print(f"older_processor: {SOURCE.name} cannot be compiled here", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130
    if status == CANNOT:
        print("older_processor: CPUID cannot be answered for a process here", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
