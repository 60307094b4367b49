"""The references in docs/ are of this code."""

from __future__ import annotations

from leanear.cli.commands import cli
from leanear.studies.references import DOCS, cli_reference, python_reference, recipe_reference

REMEDY = "run `python -m leanear.studies.references`"


def test_the_command_line_is_as_told():
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == cli_reference(), REMEDY


def test_the_python_face_is_as_told():
    assert (DOCS / "python.md").read_text(encoding="utf-8") == python_reference(), REMEDY


def test_the_recipe_is_as_told():
    assert (DOCS / "recipe.md").read_text(encoding="utf-8") == recipe_reference(), REMEDY


def test_every_command_is_told():
    assert all(f"## leanear {name}\n" in cli_reference() for name in cli.commands)


def test_the_version_names_what_is_installed():
    import onnxruntime
    from click.testing import CliRunner

    printed = CliRunner().invoke(cli, ["--version"]).output
    assert printed.startswith("leanear ")
    assert f"onnxruntime {onnxruntime.__version__}" in printed
