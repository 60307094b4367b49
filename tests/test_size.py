"""The check of sizes finds what is too large, and an exception that nothing needs any more."""

from __future__ import annotations

import pytest

from tests.size import MOST_FILES, MOST_FUNCTION_LINES, MOST_LINES, offenders


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "export" / "studies").mkdir(parents=True)
    (tmp_path / "export" / "small.py").write_text("ONE = 1\n")
    return tmp_path


def function(length):
    return "def f():\n" + "    f()\n" * (length - 1)


def test_what_is_at_the_limits_is_within_them(tree):
    (tree / "export" / "function.py").write_text(function(MOST_FUNCTION_LINES))
    (tree / "export" / "file.py").write_text("\n" * MOST_LINES)
    for number in range(MOST_FILES - 3):
        (tree / "export" / f"{number}.py").touch()
    total = 1 + MOST_FUNCTION_LINES + MOST_LINES
    assert offenders(tree, {}, total) == []
    assert offenders(tree, {}, total - 1) == [f"{total} lines in all, over {total - 1}"]


def test_each_that_is_over_is_named(tree):
    (tree / "export" / "function.py").write_text(function(61))
    (tree / "export" / "file.py").write_text("\n" * 401)
    (tree / "export" / "studies" / "file.py").write_text("\n" * 999)
    for number in range(18):
        (tree / "export" / f"{number}.py").touch()
    assert offenders(tree, {}) == [
        "export: 21 files, over 20",
        "export/file.py: 401 lines, over 400",
        "export/function.py: f: 61 lines, over 60",
    ]


def test_an_exception_holds_until_nothing_needs_it(tree):
    exceptions = {"export/file.py": "a table"}
    (tree / "export" / "file.py").write_text("\n" * 401)
    assert offenders(tree, exceptions) == []
    (tree / "export" / "file.py").write_text("\n" * 400)
    assert offenders(tree, exceptions) == ["export/file.py: within the limits; take it out of the exceptions"]
