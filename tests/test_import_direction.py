"""The arrows between the folders: toolchain -> {calibration, export, benchmarks} -> runtimes, and none back."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "runtimes": set(),
    "calibration": {"runtimes"},
    "export": {"runtimes"},
    "benchmarks": {"runtimes"},
    "toolchain": {"runtimes", "calibration", "export", "benchmarks"},
}
# Host-side programs that measure or compare the exporter itself; nothing on a device imports them.
HOST_PROGRAMS = {"benchmarks/graph_forms.py"}


def imported_folders(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names & set(ALLOWED)


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_imports_point_downwards(folder):
    modules = [path for path in (ROOT / folder).rglob("*.py") if "peers" not in path.parts]
    assert modules
    for path in modules:
        name = path.relative_to(ROOT).as_posix()
        if name in HOST_PROGRAMS:
            continue
        wrong = imported_folders(path.read_text()) - ALLOWED[folder] - {folder}
        assert not wrong, f"{name} imports {sorted(wrong)}"


def test_the_check_sees_an_arrow_that_points_up():
    assert imported_folders("def f():\n    from leanear.plan import Plan\n") == {"toolchain"}
