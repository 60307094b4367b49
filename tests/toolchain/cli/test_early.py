"""What settings and folders rule out is refused before torch is imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from leanear.cli.early import BRACKETED, check_early
from leanear.families.asked import NOTHING_ASKED, check_language
from leanear.outputs import check_replaceable
from leanear.runtimes.errors import BadInput
from tests.conftest import write_tiny, write_tones
from tests.toolchain.speech_folder import write_speech_folder
from tests.whisper_models import write_whisper

# All in one process, in which the first that imports torch, or what speaks to the Hub, is found
PROGRAM = """
import json, sys
from leanear.cli.commands import run
for arguments in json.loads(sys.argv[1]):
    status = run(arguments)
    print(json.dumps([status, not sys.modules.keys().isdisjoint(("torch", "huggingface_hub"))]), flush=True)
    print('--', file=sys.stderr, flush=True)
"""
WITH_DATA = ("deploy", "prune", "explore", "export", "eval", "compare-methods")


def asked(command: str, data: str) -> list[str]:
    if command == "transcribe":
        return [command, "data/0.flac", "--model", "model"]
    return [command, "model", "--data", data, *([] if command == "eval" else ["--out", "out"])]


def asked_of_ast(command: str) -> list[str]:
    return [command, "ast", "--data", "odd", *([] if command == "eval" else ["--out", "out"])]


# What is asked for, and what the one line has to say
REFUSED: dict[str, tuple[list[str], str]] = {
    **{f"no audio, {command}": (asked(command, "empty"), "empty: no .wav") for command in WITH_DATA},
    **{
        f"no such column, {command}": ([*asked(command, "data"), "--text-column", "words"], "'words'")
        for command in WITH_DATA
    },
    **{
        f"no language, {command}": (
            [*asked(command, "data"), "--language", "xx"],
            "the model has no language 'xx'; it has de, en",
        )
        for command in (*WITH_DATA, "transcribe")
    },
    **{
        f"no such label, {command}": (
            asked_of_ast(command),
            "label 'meow' is unknown to the model, which knows down, left",
        )
        for command in ("deploy", "prune", "explore", "eval")
    },
    **{
        f"not writable, {command}": ([command, "model", "--out", "taken"], "taken: ")
        for command in ("deploy", "prune", "explore", "export", "bench")
    },
    "a column without a table": (
        ["prune", "ast", "--data", "tones", "--label-column", "class", "--out", "out"],
        "--label-column class: tones has no table",
    ),
    "no data": (["prune", "model", "--out", "out"], "--data is missing: model brings no audio"),
    **{
        f"transcribe {flag}": (["transcribe", "data/0.flac", "--model", "model", flag, value], flag)
        for flag, value in {"--temperatures": "warm", "--max-line-count": "2", "--hotwords": " ,"}.items()
    },
    **{
        f"no place, {arguments[0]}": ([*arguments, "--out", "/proc/out.txt"], "/proc/out.txt: --out cannot be written")
        for arguments in (["bench", "model"], ["transcribe", "data/0.flac", "--model", "model"])
    },
    **{
        f"no word, {command}": (
            asked(command, "wordless"),
            f"wordless/{split}/metadata.csv: no transcript of the {clips} clips has a word",
        )
        for command, split, clips in (
            ("deploy", "train", "calibration"),
            ("prune", "train", "calibration"),
            ("eval", "test", "evaluation"),
        )
    },
    "no clip": (["classify", "no.wav", "--model", "model"], "no.wav: no such file"),
    **{
        f"no audio in it, {command}": (
            [command, "taken/letter.txt", "--model", model],
            "taken/letter.txt: not readable as audio",
        )
        for command, model in {"classify": "ast", "transcribe": "model"}.items()
    },
    "no labels": (["classify", "data/0.flac", "--model", "model"], "model: it writes down speech and has no labels"),
    **{
        f"export {flags}": (["export", model, "--out", "out", *flags.split()], said)
        for model, flags, said in (
            ("model", "--precision int8", "--data is missing: model brings no audio"),
            ("ast", "--precision fp16", "the form 'portable' is for runtimes that compute in float32"),
            ("ast", "--window auto", "--window auto: it is for Whisper; ast is a classifier"),
            ("ast", "--word-timestamps", "--word-timestamps: it is for Whisper; ast is a classifier"),
            ("model", "--form tensorrt --word-timestamps", "the form 'tensorrt' has none"),
        )
    },
    **{
        f"{command[0]}, a window longer than Whisper's": (
            [*command, "--window", "2.5"],
            "--window 2.5: expected full, auto, or seconds over 2 (a tail of silence is part of it), up to the model's",
        )
        for command in map(asked, ("deploy", "export", "transcribe"), 3 * ("data",))
    },
    "no artifact": (["bench", "ast"], "ast: no artifact, for there is no manifest.json"),
    **{
        f"{command} {flags}": ([command, "ast", "--data", "tones", "--out", "out", *flags.split()], said)
        for command, flags, said in (
            ("prune", "--speedup 1.2 --tokens 12", "--tokens 12: it is for Whisper; ast is a classifier"),
            ("prune", "--sparsity 2", "--sparsity is 2; it must lie between 0 and 1"),
            ("explore", "--target nowhere", "unknown target 'nowhere'"),
            ("deploy", "--word-timestamps", "--word-timestamps: it is for Whisper; ast is a classifier"),
        )
    },
    "export, two forms": (
        ["export", "ast", "--target", "cpu", "--form", "portable", "--out", "out"],
        "--form and --target: give one of them",
    ),
    "export, no target": (["export", "ast", "--target", "nowhere", "--out", "out"], "unknown target 'nowhere'"),
    "bench, a target": (["bench", "ast", "--target", "cpu"], "'--target'; what runs an artifact has --runtime"),
    "no report": (["report", "data"], "data: no results/*.json in it"),
    "no results": (["report", "no.json"], "no.json: no such file"),
    "nothing brought": (["import", "data"], "data: no results there"),
    "no data, compare-methods": (["compare-methods", "model", "--out", "out"], "--data is missing: model brings"),
}


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    folder = tmp_path_factory.mktemp("field")
    write_whisper(folder / "model")
    write_speech_folder(folder / "data", [f"number {number}" for number in range(4)])
    write_speech_folder(folder / "wordless" / "train", ["[noise]", "(applause) <unk>"])
    write_speech_folder(folder / "wordless" / "test", ["", "...", "[noise]"])
    for name, text in {"empty/notes.txt": "no audio", "taken/letter.txt": "dear"}.items():
        (folder / name).parent.mkdir()
        (folder / name).write_text(text)
    write_tiny(folder / "ast")
    write_tones(folder / "tones", 4)
    write_tones(folder / "odd", 4, yes=300, meow=900)
    return folder


@pytest.fixture(scope="module")
def told(field):
    """What became of each command: its status, whether torch was imported, and what it said."""
    command = [sys.executable, "-c", PROGRAM, json.dumps([arguments for arguments, _ in REFUSED.values()])]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=field)
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    return dict(zip(REFUSED, zip(found, ended.stderr.split("--\n"), strict=False), strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_one_line_and_no_torch(told, field, name):
    outcome, said = told[name]
    assert outcome == [2, False], said
    assert said.count("\n") == 1, said
    assert REFUSED[name][1] in said
    assert not (field / "out").exists()


@pytest.mark.parametrize(
    "text", ["[noise]", "(a door) <unk> ...", "[a] word", "a (b) c", "()x", "[noise", "<a> (b", "1", "<", ""]
)
def test_what_has_no_word_is_what_whispers_own_normaliser_leaves_nothing_of(text):
    left = BasicTextNormalizer()(text)
    assert any(map(str.isalnum, BRACKETED.sub("", text))) == any(map(str.isalnum, left))


def test_a_folder_that_cannot_be_moved_is_refused_where_one_is_moved_to_its_place(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OSError, match="busy"):
        os.rename(".", "../there")
    for marker in ("plan.json", "manifest.json"):
        for out in (Path("."), Path("../here")):
            with pytest.raises(BadInput, match="--out is the folder that you are in"):
                check_replaceable(out, marker)
        check_replaceable(Path("slim"), marker)
    check_replaceable(Path("."), "explore.json")


def test_what_is_only_in_a_split_that_is_not_read_is_not_refused(tmp_path):
    write_tiny(tmp_path / "ast")
    write_tones(tmp_path / "data" / "test", 2, yes=300)
    write_tones(tmp_path / "data" / "train", 2, yes=300, meow=900)
    check_early(str(tmp_path / "ast"), NOTHING_ASKED, str(tmp_path / "data"), reads=("evaluation",))
    with pytest.raises(BadInput, match="'meow' is unknown"):
        check_early(str(tmp_path / "ast"), NOTHING_ASKED, str(tmp_path / "data"), reads=("calibration",))


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
