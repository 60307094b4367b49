"""`leanear compare` as its users meet it: a table, JSON, a page, a status, and one line where it cannot."""

from __future__ import annotations

import json

import pytest

from leanear.cli.commands import run
from tests.benchmarks.compare.test_compare import changed, quiet, slower


@pytest.fixture
def files(null_results, tmp_path):
    """before.json, and after.json in which slim takes 1.2 times as long."""
    before = quiet(null_results.document)
    after = changed(before, lambda document: slower(document, 1.2))
    for name, document in (("before", before), ("after", after)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    return str(tmp_path / "before.json"), str(tmp_path / "after.json")


def complaints(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line]


def test_a_file_beside_itself(files, capsys):
    assert run(["compare", files[0], files[0], "--strict"]) == 0
    printed = capsys.readouterr()
    assert not printed.err
    assert "noise" in printed.out
    assert "worse" not in printed.out.replace("Nothing is worse in B than in A beyond its bound.", "")


def test_a_regression_is_a_status_of_its_own_and_one_line(files, capsys):
    assert run(["compare", *files]) == 8
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        line for line in printed.err.splitlines() if line.startswith("leanear: B is worse")
    ]
    assert len(printed.err.splitlines()) == 1
    assert "worse" in printed.out
    assert run(["compare", *files, "--max-slowdown", "30"]) == 0
    assert run(["compare", *reversed(files)]) == 0


def test_json_is_all_that_is_printed_whatever_the_status(files, capsys):
    assert run(["compare", *files, "--json"]) == 8
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["exit_status"], document["exceeded"]) == ("leanear-compare-1", 8, ["latency"])


@pytest.mark.parametrize("suffix", ["md", "html"])
def test_a_page_is_written_beside_what_is_printed(files, tmp_path, capsys, suffix):
    out = tmp_path / f"page.{suffix}"
    assert run(["compare", *files, "--out", str(out)]) == 8
    assert "latency, median 1.200×" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--out", "page.pdf"], "--out page.pdf: a name that ends in .md or .html"),
        (["--max-slowdown", "-1"], "--max-slowdown"),
        (["--max-drop", "nan"], "--max-drop"),
        (["--side", "thin"], "--side"),
    ],
)
def test_unusable_flags_are_named(files, capsys, flags, said):
    assert run(["compare", *files, *flags]) == 2
    (line,) = complaints(capsys)
    assert said in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        ("{", "not JSON"),
        ("[]", "expected schema"),
        ('{"schema": "leanear-results-0"}', "found 'leanear-results-0'"),
        ("without memory", "missing key 'memory'"),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(files, tmp_path, capsys, content, said):
    broken = tmp_path / "broken.json"
    if content == "without memory":
        document = json.loads((tmp_path / "before.json").read_text())
        del document["memory"]
        content = json.dumps(document)
    if content is not None:
        broken.write_text(content)
    assert run(["compare", files[0], str(broken)]) == 2
    (line,) = complaints(capsys)
    assert line.startswith(f"leanear: {broken}: ")
    assert said in line


def test_what_is_missing_fails_only_if_strict(files, tmp_path, capsys):
    document = json.loads((tmp_path / "before.json").read_text())
    document["accuracy"].update(status="not measured", reason="no evaluation clips were given", roles={})
    lacking = tmp_path / "lacking.json"
    lacking.write_text(json.dumps(document))
    assert run(["compare", files[0], str(lacking)]) == 0
    printed = capsys.readouterr().out
    assert "not measured: accuracy: B: no evaluation clips were given" in printed
    assert "Not measured, so not judged: accuracy." in printed
    assert run(["compare", files[0], str(lacking), "--strict"]) == 5
    (line,) = complaints(capsys)
    assert "accuracy: not measured (B: no evaluation clips were given)" in line
