"""What settings and folders rule out is refused before torch is imported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from leanear.families.known_languages import check_language
from leanear.runtimes.errors import BadInput
from tests.toolchain.speech_folder import write_speech_folder
from tests.whisper_models import write_whisper

# All in one process, in which the first that imports torch is found
PROGRAM = """
import json, sys
from leanear.cli.commands import run
for arguments in json.loads(sys.argv[1]):
    status = run(arguments)
    print(json.dumps([status, 'torch' in sys.modules]), flush=True)
    print('--', file=sys.stderr, flush=True)
"""
WITH_DATA = ("deploy", "prune", "explore", "export", "eval", "compare-methods")


def asked(command: str, data: str) -> list[str]:
    if command == "transcribe":
        return [command, "data/0.flac", "--model", "model"]
    return [command, "model", "--data", data, *([] if command == "eval" else ["--out", "out"])]


NO_AUDIO = {f"no audio, {command}": asked(command, "empty") for command in WITH_DATA}
NO_LANGUAGE = {
    f"no language, {command}": [*asked(command, "data"), "--language", "xx"] for command in (*WITH_DATA, "transcribe")
}


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    folder = tmp_path_factory.mktemp("field")
    write_whisper(folder / "model")
    write_speech_folder(folder / "data", [f"number {number}" for number in range(4)])
    (folder / "empty").mkdir()
    (folder / "empty" / "notes.txt").write_text("no audio")
    return folder


@pytest.fixture(scope="module")
def refused(field):
    """Gives the one line that a command ended with."""
    commands = {**NO_AUDIO, **NO_LANGUAGE}
    command = [sys.executable, "-c", PROGRAM, json.dumps(list(commands.values()))]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=field)
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    told = dict(zip(commands, zip(found, ended.stderr.split("--\n"), strict=False), strict=True))

    def line(name: str) -> str:
        outcome, said = told[name]
        assert outcome == [2, False], said
        assert said.count("\n") == 1, said
        assert not (field / "out").exists()
        return said

    return line


@pytest.mark.parametrize("name", NO_AUDIO)
def test_no_audio(refused, name):
    assert "empty: no .wav" in refused(name)


@pytest.mark.parametrize("name", NO_LANGUAGE)
def test_a_language_that_the_model_does_not_have(refused, name):
    assert "the model has no language 'xx'; it has de, en" in refused(name)


def settings(folder: Path, **more) -> Path:
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    return folder


@pytest.mark.parametrize("language", [None, "auto", "de", "EN", "german", "xxxx"])
def test_what_may_be_known_is_left_to_the_model(field, language):
    check_language(field / "model", language)


def test_settings_say_what_there_is(field, tmp_path):
    model = Path(shutil.copytree(field / "model", tmp_path / "model"))
    settings(model, lang_to_id={"<|de|>": 1, "<|yue|>": 2})
    check_language(model, "yue")
    with pytest.raises(BadInput, match="no language 'en'; it has de, yue"):
        check_language(model, "en")
    settings(model, is_multilingual=False)
    check_language(model, "en")
    with pytest.raises(BadInput, match="knows English alone, not 'de'"):
        check_language(model, "de")
    for name in ("generation_config.json", "tokenizer.json"):
        (model / name).unlink()
    check_language(model, "xx")


def test_an_artifact_says_too(tmp_path):
    decoding = {"multilingual": True, "languages": {"en": 1, "de": 2}}
    (tmp_path / "manifest.json").write_text(json.dumps({"decoding": decoding}))
    check_language(tmp_path, "de")
    with pytest.raises(BadInput, match="no language 'fr'; it has de, en"):
        check_language(tmp_path, "fr")
