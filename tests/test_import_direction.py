"""The arrows between the rooms: a room imports from the rooms that its row names and from nowhere else."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOPS = ("runtimes", "export", "calibration", "benchmarks")  # leanear.X lies in X, everything else in toolchain
# A room is a folder of files; "" is the top of the package. The doors are rooms of their own.
ROOMS = {
    "runtimes": "",
    "runtimes.process": "",
    "runtimes.audio": "runtimes runtimes.process",
    "runtimes.speech.tokens": "runtimes",
    "runtimes.speech": "runtimes runtimes.process runtimes.speech.tokens",
    "runtimes.backends": "runtimes runtimes.audio runtimes.speech",
    "runtimes.voice": "runtimes runtimes.backends runtimes.process runtimes.speech",
    "export.onnx": "runtimes",
    "export.ast": "export.onnx runtimes",
    "export.whisper": "export.onnx runtimes runtimes.speech runtimes.speech.tokens runtimes.voice",
    "export": "export.ast export.onnx export.whisper runtimes runtimes.backends runtimes.process runtimes.speech",
    "calibration": "runtimes runtimes.process",
    "benchmarks.sensors": "",
    "benchmarks": "benchmarks.sensors runtimes runtimes.process runtimes.speech",
    "benchmarks.measure": "benchmarks benchmarks.sensors runtimes runtimes.backends runtimes.process runtimes.speech "
    "runtimes.speech.tokens",
    "benchmarks.report.drawing": "benchmarks runtimes",
    "benchmarks.report": "benchmarks benchmarks.measure benchmarks.report.drawing benchmarks.sensors runtimes "
    "runtimes.process runtimes.speech",
    "benchmarks.compare": "benchmarks benchmarks.report benchmarks.sensors runtimes runtimes.process",
    "benchmarks.device.receiver": "",
    "benchmarks.device": "benchmarks benchmarks.compare benchmarks.measure benchmarks.report benchmarks.sensors "
    "runtimes runtimes.audio runtimes.backends runtimes.process runtimes.speech runtimes.voice",
    "benchmarks.__main__": "benchmarks.device runtimes.process",
    "": "benchmarks calibration runtimes runtimes.process",
    "demo": "runtimes",
    "data": "benchmarks calibration runtimes runtimes.audio runtimes.process",
    "targets": " runtimes runtimes.backends",
    "families": " benchmarks calibration data demo export export.ast runtimes runtimes.process runtimes.speech",
    "families.whisper": " calibration data export export.whisper families runtimes runtimes.process runtimes.speech "
    "runtimes.speech.tokens",
    "recover": " calibration data families runtimes runtimes.process",
    "reference": " calibration data families recover runtimes runtimes.process",
    "evaluate": " benchmarks benchmarks.device benchmarks.measure calibration data demo export.ast export.whisper "
    "families families.whisper runtimes runtimes.audio runtimes.process runtimes.speech "
    "runtimes.speech.tokens runtimes.voice",
    "timing": " benchmarks benchmarks.measure benchmarks.sensors calibration data export export.ast export.onnx "
    "export.whisper families runtimes runtimes.process runtimes.speech targets",
    "prune.allocation": "runtimes",
    "prune": " benchmarks benchmarks.measure benchmarks.report benchmarks.report.drawing benchmarks.sensors "
    "calibration data demo evaluate export export.ast export.onnx export.whisper families prune.allocation recover "
    "reference runtimes runtimes.backends runtimes.process runtimes.speech targets timing",
    "devices": " benchmarks benchmarks.device benchmarks.device.receiver benchmarks.measure runtimes runtimes.process "
    "runtimes.speech",
    "deploy": " benchmarks benchmarks.device benchmarks.measure benchmarks.report benchmarks.sensors data demo "
    "devices timing evaluate export export.whisper families families.whisper prune runtimes runtimes.backends "
    "runtimes.process runtimes.speech targets",
    "studies": " benchmarks benchmarks.measure benchmarks.report benchmarks.report.drawing benchmarks.sensors "
    "calibration data timing export.ast families prune prune.allocation recover reference runtimes runtimes.process "
    "targets",
    "studies.command": " cli data families runtimes studies",
    "studies.references": "cli.commands prune runtimes.speech studies",
    "studies.demo": "benchmarks calibration demo families runtimes",
    "cli": " benchmarks benchmarks.compare benchmarks.device benchmarks.report calibration data deploy devices "
    "evaluate families prune timing recover reference runtimes runtimes.audio runtimes.process runtimes.speech "
    "runtimes.voice targets",
    "cli.commands": "cli runtimes runtimes.process studies.command",
    "api": " benchmarks benchmarks.report benchmarks.sensors cli deploy evaluate families prune runtimes "
    "runtimes.audio runtimes.process runtimes.speech targets",
    "entry": "cli.commands runtimes.process",
}


def allowed(room: str) -> set[str]:
    """The rooms of a row; one that starts with a space may import from the top of the package."""
    row = ROOMS[room]
    return {*row.split(), *([""] if row.startswith(" ") else []), room}


def room_of(module: str) -> str:
    """The room of a module below `leanear`, named without it."""
    return module if module in ROOMS else module.rpartition(".")[0]


def modules() -> dict[str, Path]:
    """Every module below `leanear` but the programs that measure leanear itself."""
    found = {}
    for top in ("toolchain", *TOPS):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT / top).with_suffix("").parts
            if "peers" not in parts:
                name = ".".join(([] if top == "toolchain" else [top]) + [p for p in parts if p != "__init__"])
                found[name] = path
    return found


def imported(source: str, known: set[str]) -> set[str]:
    """The modules of `known` that a source imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    inside = {name.removeprefix("leanear").removeprefix(".") for name in names if name.split(".")[0] == "leanear"}
    return {name for name in inside if name in known}


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_what_its_row_names(room):
    known = modules()
    packages = {name for name, path in known.items() if path.name == "__init__.py"}
    own = {name: path for name, path in known.items() if room_of(name) == room and name not in packages}
    assert own or room == "demo", "a row without files"
    for name, path in own.items():
        targets = {module for module in imported(path.read_text(), set(known)) if module not in packages}
        wrong = {module for module in targets if room_of(module) not in allowed(room)}
        assert not wrong, f"{name} imports {sorted(wrong)}"


def test_every_file_has_a_room():
    known = modules()
    packages = {name for name, path in known.items() if path.name == "__init__.py"}
    assert {room_of(name) for name in known if name not in packages} <= set(ROOMS)


def test_the_rows_have_no_circle():
    graph = {room: allowed(room) - {room} for room in ROOMS}
    assert len(tuple(graphlib.TopologicalSorter(graph).static_order())) == len(ROOMS)


def test_the_check_sees_an_import_wherever_it_stands():
    inner = "def f():\n    from leanear.plan import Plan\n"
    source = inner + "import leanear.cli.commands\nfrom leanear.runtimes import files"
    assert imported(source, set(modules())) == {"plan", "cli.commands", "runtimes.files", "runtimes"}
