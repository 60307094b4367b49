"""Word error rates of checkpoints and artifacts, by hand and against transformers' own transcripts."""

from __future__ import annotations

import json
import re

import pytest
import torch

from leanear.benchmarks.results import write_results
from leanear.cli.commands import run
from leanear.data.splits import read_splits
from leanear.data.word_errors import choose_normaliser, count_word_errors
from leanear.evaluate.speech_evaluation import count_results_word_errors
from leanear.families.checkpoint import load_checkpoint
from leanear.families.registry import read_spellings, task_of
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import write_json
from tests.toolchain.speech_folder import RATE_HZ, sound, write_speech_folder
from tests.whisper_models import write_whisper

pytestmark = pytest.mark.usefixtures("measured_here")

CLIPS = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_whisper(tmp_path_factory.mktemp("whisper") / "tiny")


def evaluation(capsys, *arguments):
    assert run(["eval", *map(str, arguments), "--threads", "1", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_rate_is_of_what_transformers_would_say(tmp_path, capsys):
    checkpoint = write_whisper(tmp_path / "english", english_only=True)
    loaded = load_checkpoint(checkpoint)
    sounds = [sound(number) for number in range(2 * CLIPS)]
    features = loaded.feature_extractor(sounds, sampling_rate=RATE_HZ, return_tensors="pt")["input_features"]
    with torch.inference_mode():
        ids = loaded.model.generate(features, return_timestamps=False, do_sample=False)
    said = loaded.tokenizer.batch_decode(ids, skip_special_tokens=True)
    texts = ["the colour " + " ".join(text.replace('"', " ").split()) for text in said]
    data = write_speech_folder(tmp_path / "data", texts)
    result = evaluation(capsys, checkpoint, "--data", data, "--calibration-clips", CLIPS)

    evaluated = [int(example.name.split(".")[0]) for example in read_splits(data, CLIPS, 0, "text").evaluation]
    normaliser = choose_normaliser("en", {"colour": "color"})
    expected = count_word_errors([texts[n] for n in evaluated], [said[n] for n in evaluated], normaliser)
    assert (result["task"], result["kind"]) == ("automatic-speech-recognition", "checkpoint")
    assert result["clips"] == len(evaluated) == CLIPS
    assert result["metric"] == normaliser.metric
    assert result["reference_words"] == sum(expected.reference_words)
    for kind in ("substitutions", "deletions", "insertions"):
        assert result[kind] == sum(getattr(expected, kind))
    assert sum(expected.errors) >= 2 * CLIPS, "two words were put in front of every transcript"
    low, high = result["word_error_rate_interval_95"]
    assert 0 < low <= result["word_error_rate"] <= high


def test_checkpoint_and_artifact_make_the_same_errors(checkpoint, tmp_path, capsys):
    data = write_speech_folder(tmp_path / "data", ["the cat and the dog"] * 2 * CLIPS)
    assert run(["export", str(checkpoint), "--data", str(data), "--out", str(tmp_path / "artifact")]) == 0
    capsys.readouterr()
    asked = ("--data", data, "--calibration-clips", CLIPS)
    results = [evaluation(capsys, folder, *asked) for folder in (checkpoint, tmp_path / "artifact")]
    assert [result["kind"] for result in results] == ["checkpoint", "artifact"]
    for key in ("substitutions", "deletions", "insertions", "reference_words", "word_error_rate"):
        assert results[0][key] == results[1][key]
    assert run(["eval", str(checkpoint), "--data", str(data), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "word error rate" in printed
    assert "metric: word error rate by jiwer" in printed


def test_what_has_too_short_a_text_is_heard_again_and_counted(checkpoint, tmp_path, capsys, monkeypatch):
    data = write_speech_folder(tmp_path / "data", ["the cat and the dog"] * 2 * CLIPS)
    asked = ["eval", str(checkpoint), "--data", str(data), "--calibration-clips", str(CLIPS), "--threads", "1"]
    assert run(asked) == 0
    assert "heard again" not in capsys.readouterr().out
    monkeypatch.setattr("leanear.runtimes.speech.attempts.LEAST_TOKENS_PER_S", 1000.0)
    monkeypatch.setattr("leanear.runtimes.speech.attempts.LEAST_AUDIBLE_S", 0.1)
    assert run(asked) == 0
    again, windows = re.search(r"(\d+) of (\d+) windows heard again", capsys.readouterr().out).groups()
    assert int(again) > 0
    assert int(windows) >= CLIPS + int(again)


def test_words_heard_in_a_clip_that_has_none_count_as_put_in(checkpoint, tmp_path, capsys):
    """A silent clip beside others adds what is heard in it to the insertions, and nothing to anything else."""
    counted = {}
    for kind, texts in (("spoken", ["one two", "three"]), ("with a silent one", ["one two", "three", ""])):
        folder = tmp_path / kind
        write_speech_folder(folder / "train", ["one", "two"])
        write_speech_folder(folder / "test", texts)
        assert run(["eval", str(checkpoint), "--data", str(folder), "--json"]) == 0
        counted[kind] = json.loads(capsys.readouterr().out)
    write_speech_folder(tmp_path / "silent" / "train", ["one", "two"])
    write_speech_folder(tmp_path / "silent" / "test", ["a", "b", "heard"])
    for number in range(2):
        (tmp_path / "silent" / "test" / f"{number}.flac").unlink()
    (tmp_path / "silent" / "test" / "metadata.csv").write_text("file_name,text\n2.flac,qqq\n")
    assert run(["eval", str(checkpoint), "--data", str(tmp_path / "silent"), "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    heard = alone["substitutions"] + alone["insertions"]  # of one reference word, which the model cannot say
    assert alone["reference_words"] == 1
    assert heard > 0
    before, after = counted["spoken"], counted["with a silent one"]
    assert after["clips"] == before["clips"] + 1
    assert after["insertions"] == before["insertions"] + heard
    for key in ("reference_words", "substitutions", "deletions"):
        assert after[key] == before[key]


def test_labels_and_transcripts_are_not_mixed_up(checkpoint, tiny_folder, tmp_path, capsys):
    data = write_speech_folder(tmp_path / "data", ["a b", "c d"])
    labelled = tmp_path / "labelled"
    for label in ("yes", "up"):
        write_speech_folder(labelled / label, ["x", "y"])
        (labelled / label / "metadata.csv").unlink()
    for model, folder, said in (
        (tiny_folder, data, "no column 'label'"),
        (checkpoint, labelled, "audio without transcripts"),
    ):
        assert run(["eval", str(model), "--data", str(folder)]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert said in lines[-1]
        assert sum(line.startswith("leanear: ") for line in lines) == 1
    assert run(["classify", str(data / "0.flac"), "--model", str(checkpoint)]) == 2
    assert "writes down speech and has no labels" in capsys.readouterr().err


def test_the_task_is_told_without_loading(checkpoint, tiny_folder, tmp_path):
    assert task_of(checkpoint) == "automatic-speech-recognition"
    assert task_of(tiny_folder) == "audio-classification"
    with pytest.raises(BadInput, match=r"config\.json: no such file"):
        task_of(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(BadInput, match="not JSON"):
        task_of(tmp_path)


def test_spellings_are_found_beside_an_artifact(checkpoint, tmp_path):
    assert read_spellings(checkpoint) == {"colour": "color"}
    (tmp_path / "slim").mkdir()
    assert read_spellings(tmp_path / "slim") is None
    (tmp_path / "slim" / "manifest.json").write_text("{}")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "normalizer.json").write_text('{"a": "b"}')
    assert read_spellings(tmp_path / "slim") == read_spellings(tmp_path) == {"a": "b"}
    (tmp_path / "checkpoint" / "normalizer.json").write_text('{"a": 1}')
    with pytest.raises(BadInput, match="not a map of spellings"):
        read_spellings(tmp_path)


def test_word_errors_are_added_to_results_once(speech_results, tmp_path):
    path = tmp_path / "r.json"
    write_results(path, speech_results.document)
    counted = count_results_word_errors(path, {"colour": "color"})
    errors = counted.document["accuracy"]["word_errors"]
    # 12 sentences, of which every fourth has one word replaced, and a silent clip whose one word is left out
    assert errors["reference_words"] == [3, 2, 4] * 4 + [1]
    for kinds in errors["roles"].values():
        assert kinds["substitutions"] == [0, 0, 0, 1] * 3 + [0]
        assert kinds["deletions"] == [0] * 12 + [1]
        assert kinds["insertions"] == [0] * 13
    assert "EnglishTextNormalizer" in errors["metric"]
    written = path.read_bytes()
    assert count_results_word_errors(path, None).document == counted.document
    assert path.read_bytes() == written, "what is counted is kept"


def test_results_without_transcripts_are_left_as_they_are(speech_results, tmp_path):
    accuracy = {
        **speech_results.document["accuracy"],
        "status": "not measured", "reason": "no evaluation clips were given",
        "names": [], "references": [], "audio_s": [], "roles": {},
    }  # fmt: skip
    write_json(tmp_path / "r.json", {**speech_results.document, "accuracy": accuracy})
    assert count_results_word_errors(tmp_path / "r.json", None).document["accuracy"]["word_errors"] is None
