"""What runs on a device imports with numpy and the standard library, on Python 3.9."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
BLOCKED = (
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "openvino",
    "jinja2",
    "matplotlib",
    "rich",
    "click",
    "scipy",
    "safetensors",
)
DEVICE_SIDE = sorted(
    path.relative_to(ROOT)
    for folder in ("runtimes", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if "peers" not in path.parts
)
IMPORT_ALL = """
import importlib, sys
for name in {blocked!r}:
    sys.modules[name] = None
before = set(sys.modules)
for name in {modules!r}:
    importlib.import_module(name)
folders = {{"leanear", "numpy"}}
strange = {{name.partition(".")[0] for name in set(sys.modules) - before}} - set(sys.stdlib_module_names) - folders
assert not strange, strange
"""


def module_name(path: Path) -> str:
    return "leanear." + ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def test_device_modules_import_without_the_workstations_libraries():
    modules = [module_name(path) for path in DEVICE_SIDE]
    assert len(modules) > 90
    program = IMPORT_ALL.format(blocked=BLOCKED, modules=modules)
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=600)


@pytest.mark.parametrize("path", DEVICE_SIDE, ids=str)
def test_device_modules_are_python_3_9(path):
    source = (ROOT / path).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 9))
    assert "match" not in {type(node).__name__.lower() for node in ast.walk(tree)}
    if path.name != "__init__.py":
        assert "from __future__ import annotations" in source


def test_python_3_9_compiles_the_device_modules(tmp_path):
    python = shutil.which("python3.9")
    if python is None or subprocess.run([python, "--version"], capture_output=True, check=False).returncode:
        pytest.skip("there is no python3.9 here")
    for path in DEVICE_SIDE:
        compile_one = (
            f"import py_compile; py_compile.compile({str(ROOT / path)!r}, {str(tmp_path / 'out.pyc')!r}, doraise=True)"
        )
        subprocess.run([python, "-c", compile_one], check=True, timeout=600)
