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

PROGRAM = """
import sys
from leanear.cli.commands import run
print(run(sys.argv[1:]), 'torch' in sys.modules)
"""


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    folder = tmp_path_factory.mktemp("field")
    write_whisper(folder / "model")
    write_speech_folder(folder / "data", [f"number {number}" for number in range(4)])
    (folder / "empty").mkdir()
    (folder / "empty" / "notes.txt").write_text("no audio")
    return folder


def refused(field: Path, *arguments: str) -> str:
    ended = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, cwd=field)
    assert ended.stdout.split() == ["2", "False"], ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr


@pytest.mark.parametrize("command", ["deploy", "prune", "explore", "export", "eval", "compare-methods"])
def test_no_audio(field, command):
    out = [] if command == "eval" else ["--out", "out"]
    assert "empty: no .wav" in refused(field, command, "model", "--data", "empty", *out)
    assert not (field / "out").exists()


@pytest.mark.parametrize("command", ["deploy", "prune", "explore", "export", "eval", "compare-methods", "transcribe"])
def test_a_language_that_the_model_does_not_have(field, command):
    given = ["transcribe", "data/0.flac", "--model", "model"] if command == "transcribe" else [command, "model"]
    data = [] if command == "transcribe" else ["--data", "data"]
    out = [] if command in ("eval", "transcribe") else ["--out", "out"]
    said = refused(field, *given, *data, *out, "--language", "xx")
    assert "the model has no language 'xx'; it has de, en" in said


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
