"""What settings and folders rule out is refused before torch is imported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from leanear.cli.early import check_early
from leanear.families.asked import NOTHING_ASKED
from leanear.families.known_languages import check_language
from leanear.runtimes.errors import BadInput
from tests.conftest import write_tiny, write_tones
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


@pytest.mark.parametrize("command", ["deploy", "prune", "explore", "export", "eval", "compare-methods"])
def test_a_table_without_the_column(field, command):
    out = [] if command == "eval" else ["--out", "out"]
    said = refused(field, command, "model", "--data", "data", "--text-column", "words", *out)
    assert "metadata.csv" in said
    assert "words" in said


def test_a_column_where_there_is_no_table(tmp_path):
    write_tiny(tmp_path / "ast")
    write_tones(tmp_path / "tones", 4)
    said = refused(tmp_path, "prune", "ast", "--data", "tones", "--label-column", "class", "--out", "out")
    assert "--label-column class: tones has no table" in said


@pytest.mark.parametrize("command", ["deploy", "prune", "explore", "eval"])
def test_a_label_that_the_model_does_not_have(field, tmp_path, command):
    write_tiny(tmp_path / "ast")
    write_tones(tmp_path / "tones", 4, yes=300, meow=900)
    out = [] if command == "eval" else ["--out", str(tmp_path / "out")]
    said = refused(field, command, str(tmp_path / "ast"), "--data", str(tmp_path / "tones"), *out)
    assert "label 'meow' is unknown to the model, which knows down, left" in said


def test_what_is_only_in_a_split_that_is_not_read_is_not_refused(tmp_path):
    write_tiny(tmp_path / "ast")
    write_tones(tmp_path / "data" / "test", 2, yes=300)
    write_tones(tmp_path / "data" / "train", 2, yes=300, meow=900)
    check_early(str(tmp_path / "ast"), NOTHING_ASKED, str(tmp_path / "data"), reads=("evaluation",))
    with pytest.raises(BadInput, match="'meow' is unknown"):
        check_early(str(tmp_path / "ast"), NOTHING_ASKED, str(tmp_path / "data"), reads=("calibration",))


@pytest.mark.parametrize("command", ["deploy", "prune", "explore", "export", "bench"])
def test_a_place_that_cannot_be_written(field, command):
    (field / "taken").mkdir(exist_ok=True)
    (field / "taken" / "letter.txt").write_text("dear")
    assert "taken: " in refused(field, command, "model", "--out", "taken")


def test_no_data_for_a_model_that_brings_none(field):
    assert "--data is missing: model brings no audio" in refused(field, "prune", "model", "--out", "out")


@pytest.mark.parametrize("flag", [("--temperatures", "warm"), ("--max-line-count", "2"), ("--hotwords", " ,")])
def test_flags_of_transcribe(field, flag):
    assert flag[0] in refused(field, "transcribe", "data/0.flac", "--model", "model", *flag)


def test_clips_that_are_not_there(field):
    assert "no.wav: no such file" in refused(field, "classify", "no.wav", "--model", "model")


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
