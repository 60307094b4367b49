"""What leanear makes, as digests: run before and after a change that must change nothing, and compare the two files.

    python -m tests.freeze OUT.txt

One line per thing: the text of every `--help`, and for both demos the plan, the slim checkpoint and the ONNX artifacts,
made from nothing on one thread. Times, paths and versions are no part of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "120"}
DEMOS = ("demo-ast", "demo-whisper")


def leanear(*arguments: str, folder: Path) -> str:
    """Standard output of the command; raises CalledProcessError."""
    command = [str(Path(sys.executable).parent / "leanear"), *arguments]
    environment = {**os.environ, **ONE_THREAD}
    return subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


def digest(content: bytes) -> str:
    """The first 16 characters of the sha256."""
    return hashlib.sha256(content).hexdigest()[:16]


def without_paths(content: bytes, folder: Path) -> bytes:
    """JSON without what tells time, place or program: seconds, stamps, versions and the scratch folder's name."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items() if not _told_apart(key)}
        return [plain(inner) for inner in value] if isinstance(value, list) else value

    text = content.decode().replace(str(folder), "FOLDER")
    return json.dumps(plain(json.loads(text)), sort_keys=True).encode()


def _told_apart(key: str) -> bool:
    return re.search(r"second|time|date|version|machine|command|peak|memory", key) is not None


def helps(folder: Path) -> list[str]:
    """A line per command."""
    listed = leanear("--help", folder=folder)
    commands = re.findall(r"^  ([a-z-]+)  ", listed.split("Commands:")[1], re.MULTILINE)
    texts = {"": listed, **{name: leanear(name, "--help", folder=folder) for name in commands}}
    return [f"{digest(text.encode())} help {name}".rstrip() for name, text in texts.items()]


def files_of(made: Path, folder: Path) -> list[str]:
    """A line per file of a made folder."""
    lines = []
    for path in sorted(p for p in made.rglob("*") if p.is_file()):
        content = path.read_bytes()
        content = without_paths(content, folder) if path.suffix == ".json" else content
        lines.append(f"{digest(content)} {path.relative_to(folder)}")
    return lines


def main(out: Path) -> None:
    """Write the digests to `out`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = helps(folder)
        for demo in DEMOS:
            leanear("prune", demo, "--sparsity", "0.5", "--out", f"{demo}-slim", folder=folder)
            leanear("export", f"{demo}-slim", "--out", f"{demo}-artifact", folder=folder)
            lines += files_of(folder / f"{demo}-slim", folder) + files_of(folder / f"{demo}-artifact", folder)
    out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
