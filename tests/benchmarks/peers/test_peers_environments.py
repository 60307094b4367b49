"""Environments for other people's engines: made once, made again for other requirements, and a failure is one line."""

from __future__ import annotations

import sys

import pytest

from leanear.benchmarks.peers import environments
from leanear.benchmarks.peers.environments import build_environment, run
from leanear.benchmarks.peers.lasting_worker import WorkerFailed


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """What would be run; of venv, the folder alone is made."""
    found: list[list[str]] = []

    def note(command: list[str]) -> None:
        found.append(command)
        (tmp_path / "environment").mkdir(exist_ok=True)

    monkeypatch.setattr(environments, "run", note)
    return found


def test_an_environment_is_made_once_and_again_for_other_requirements(commands, tmp_path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("one==1\n")
    python = build_environment(tmp_path / "environment", requirements, "unwanted")
    assert python == tmp_path / "environment" / "bin" / "python"
    assert commands[0][-1] == str(tmp_path / "environment")
    assert commands[1][-2:] == ["-r", str(requirements)]
    assert commands[3][-1] == "unwanted"
    build_environment(tmp_path / "environment", requirements)
    assert len(commands) == 4
    requirements.write_text("one==2\n")
    build_environment(tmp_path / "environment", requirements)
    assert len(commands) == 7


def test_what_was_interrupted_is_made_again(commands, tmp_path, monkeypatch):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("one==1\n")
    monkeypatch.setattr(environments, "run", lambda _: (_ for _ in ()).throw(WorkerFailed("no index")))
    with pytest.raises(WorkerFailed, match="no index"):
        build_environment(tmp_path / "environment", requirements)
    assert not (tmp_path / "environment" / ".ready").exists()


def test_a_command_that_fails_says_its_last_line():
    with pytest.raises(WorkerFailed, match="ended with status 3: no such package$"):
        run([sys.executable, "-c", "print('looking'); print('no such package'); raise SystemExit(3)"])
