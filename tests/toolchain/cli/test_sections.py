"""Help by headings, and settings from the environment."""

from __future__ import annotations

import click
import pytest

from leanear.cli.commands import cli, run
from leanear.cli.sections import LISTENING, OTHERS, PRUNING, Command, Host, as_flags, command, set_by_environment
from leanear.cli.voice import narrated

SECTIONED = [name for name, each in cli.commands.items() if each.sections is not None]


@pytest.mark.parametrize("name", SECTIONED)
def test_every_option_has_a_heading(name, capsys):
    assert run([name, "--help"]) == 0
    printed = capsys.readouterr().out
    headed = {each for names in cli.commands[name].sections.values() for each in names}
    assert {each.name for each in cli.commands[name].params if isinstance(each, click.Option)} <= headed
    assert printed.partition(f"\n{OTHERS}:\n")[2].strip() == "-h, --help  Show this message and exit."


def test_every_name_below_a_heading_is_one_of_an_option():
    for sections in (PRUNING, LISTENING):
        commands = [each for each in cli.commands.values() if each.sections is sections]
        known = {parameter.name for each in commands for parameter in each.params}
        assert {each for names in sections.values() for each in names} <= known
    assert {"deploy", "prune", "transcribe"} <= set(SECTIONED)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_option_has_a_variable_of_its_name(name):
    given = cli.commands[name]
    assert isinstance(given, Command)
    for each in given.params:
        if each.nargs == 1 and isinstance(each, click.Option):
            flag = max(each.opts, key=len).removeprefix("--").replace("-", "_").upper()
            assert each.envvar == f"LEANEAR_{name.replace('-', '_').upper()}_{flag}"


def ran(monkeypatch, capsys, arguments, **environment):
    """What a small command is given, what is said of it, and how it could be typed."""
    seen = {}

    @command(name="some")
    @click.argument("model", default="demo")
    @click.option("--how-many", type=click.IntRange(1, 9), default=1)
    @click.option("--host", "hosts", type=Host(), multiple=True)
    @click.option("--no-more", is_flag=True)
    @narrated
    def some(**settings):
        seen.update(settings, typed=as_flags(click.get_current_context()))

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    some.main(arguments, standalone_mode=False)
    return seen, capsys.readouterr().err


def test_a_variable_sets_what_the_command_line_does_not(monkeypatch, capsys, caplog):
    settings = {"LEANEAR_SOME_HOW_MANY": "3", "LEANEAR_SOME_MODEL": "--help", "LEANEAR_SOME_HOST": "a b; c"}
    seen, _ = ran(monkeypatch, capsys, [], **settings, LEANEAR_SOME_NO_MORE="1")
    assert (seen["how_many"], seen["model"], seen["no_more"]) == (3, "--help", True)
    assert seen["typed"] == ["--how-many", "3", "--host", "a b; c", "--no-more", "--", "--help"]
    (said,) = caplog.messages
    assert said == (
        "note: set by the environment: LEANEAR_SOME_MODEL=--help LEANEAR_SOME_HOW_MANY=3 LEANEAR_SOME_HOST='a b; c'"
        " LEANEAR_SOME_NO_MORE=1"
    )


def test_what_is_typed_wins_and_what_is_empty_is_not_said(monkeypatch, capsys, caplog):
    settings = {"LEANEAR_SOME_HOW_MANY": "3", "LEANEAR_SOME_MODEL": ""}
    seen, _ = ran(monkeypatch, capsys, ["--how-many", "4", "--quiet"], **settings)
    assert (seen["how_many"], seen["model"], seen["typed"]) == (4, "demo", [])
    assert not caplog.messages


def test_of_what_was_typed_to_make_nothing_is_said(monkeypatch, capsys, caplog):
    settings = {"LEANEAR_SOME_HOW_MANY": "3", "LEANEAR_SOME_MODEL": "x"}
    seen, _ = ran(monkeypatch, capsys, [], **settings, LEANEAR_TYPED="LEANEAR_SOME_MODEL LEANEAR_SOME_HOST")
    assert (seen["how_many"], seen["model"]) == (3, "x")
    assert caplog.messages == ["note: set by the environment: LEANEAR_SOME_HOW_MANY=3"]


def test_a_value_that_makes_no_sense_names_the_option(monkeypatch, capsys):
    monkeypatch.setenv("LEANEAR_DEPLOY_SPARSITY", "half")
    assert run(["deploy"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--sparsity" in line
    assert "LEANEAR_DEPLOY_SPARSITY" in line


def test_the_version_is_no_setting(monkeypatch, capsys):
    """Some build environments export such a variable of their own."""
    monkeypatch.setenv("LEANEAR_VERSION", "1")
    assert run(["targets"]) == 0
    assert "openvino" in capsys.readouterr().out


def test_nothing_is_set_where_the_environment_is_silent():
    context = cli.commands["targets"].make_context("targets", [])
    assert set_by_environment(context) == []
