"""The references in docs/ are of this code."""

from __future__ import annotations

import json
import re

from leanear.cli.commands import cli
from leanear.studies.references import DOCS, cli_reference, file_reference, python_reference, recipe_reference
from tests.runtimes.tiny_artifact import weights, write_tiny_artifact

REMEDY = "run `python -m leanear.studies.references`"


def test_the_command_line_is_as_told():
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == cli_reference(), REMEDY


def test_the_python_face_is_as_told():
    assert (DOCS / "python.md").read_text(encoding="utf-8") == python_reference(), REMEDY


def test_the_recipe_is_as_told():
    assert (DOCS / "recipe.md").read_text(encoding="utf-8") == recipe_reference(), REMEDY


def test_the_files_are_as_told():
    assert (DOCS / "files.md").read_text(encoding="utf-8") == file_reference(), REMEDY


def test_every_key_of_a_real_file_is_told(tmp_path):
    document = json.loads((write_tiny_artifact(tmp_path / "artifact", weights(2)) / "manifest.json").read_text())
    told = file_reference().partition("## manifest.json")[2].partition("## RUNTIME")[0]
    assert {key for key in document if not re.search(rf"^\[?{key}\]?: ", told, re.MULTILINE)} == set()


def test_every_command_is_told():
    assert all(f"## leanear {name}\n" in cli_reference() for name in cli.commands)


def test_the_version_names_what_is_installed():
    import onnxruntime
    from click.testing import CliRunner

    printed = CliRunner().invoke(cli, ["--version"]).output
    assert printed.startswith("leanear ")
    assert f"onnxruntime {onnxruntime.__version__}" in printed
