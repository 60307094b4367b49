"""The program that a device is sent: the receiver's files as one text, which needs Python 3.9 and no folder."""

import ast
import threading
from pathlib import Path

from leanear.benchmarks.device.receiver import child, place, serve, wire

FUTURE = "from __future__ import annotations\n"
PARSING = threading.Lock()  # devices are greeted at once, and ast.parse of Python 3.11 is not for threads


def receiver_program() -> str:
    """The files, each after those whose names it uses, without what they import from each other."""
    paths = [Path(str(module.__file__)) for module in (wire, child, place, serve)]
    return FUTURE + "".join(_without_own_imports(path.read_text(encoding="utf-8")) for path in paths)


def _without_own_imports(text: str) -> str:
    with PARSING:
        body = ast.parse(text).body
    own = [
        node
        for node in body
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in ("leanear", "__future__")
    ]
    dropped = {number for node in own for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    return "".join(line for number, line in enumerate(text.splitlines(True), 1) if number not in dropped)
