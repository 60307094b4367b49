"""Data sets whose labels have other names than the model's: names by a map, and clips that are left out and counted."""

from __future__ import annotations

import json

import pytest
import soundfile

from leanear.cli.commands import run
from leanear.data.clips import read_examples_for
from leanear.data.dataset import DataFolder
from leanear.data.splits import read_splits
from leanear.runtimes.errors import BadInput
from leanear.runtimes.tasks import CLASSIFICATION_TASK
from tests.conftest import TINY_LABELS, tone

pytestmark = pytest.mark.usefixtures("measured_here")

LABELS = ("down", "left", "up")


def put(root, **clips):
    for label, count in clips.items():
        (root / label).mkdir(parents=True)
        for number in range(count):
            soundfile.write(root / label / f"{number}.wav", tone(300, 0.1), 16_000)


def split(folder, labels=LABELS, **read_as):
    said = []
    splits = read_splits(DataFolder(folder, **read_as), 100, 0, "label", said.append, labels)
    return (*splits.calibration, *splits.evaluation), said, splits


@pytest.fixture
def mapped(tmp_path):
    def write(text, name="map.csv"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.csv", "data,model\nUP,up\nunten,down\n"),
        ("map.csv", '\ufeffdata,model\r\n"UP", up\r\nunten,down\r\n\r\n'),
        ("map.json", '{"UP": "up", "unten": "down"}'),
        ("map", ' \n{"UP": "up", "unten": "down"}'),
    ],
)
def test_labels_get_the_names_of_the_model(tmp_path, mapped, name, text):
    data = tmp_path / "data"
    put(data, UP=2, unten=3, left=2)
    examples, said, splits = split(data, label_map=mapped(text, name))
    counted = {label: sum(example.label == label for example in examples) for label in LABELS}
    assert counted == {"up": 2, "down": 3, "left": 2}
    assert said == []
    assert splits.origin.endswith(f"; labels by {name}")
    clips = read_examples_for(CLASSIFICATION_TASK, examples, LABELS, 16_000)
    assert [LABELS[label_id] for label_id in clips.label_ids] == [example.label for example in examples]


def test_several_names_may_be_one_label_and_a_table_is_read_alike(tmp_path, mapped):
    data = tmp_path / "data"
    put(data, a=4)
    rows = ["file_name,kind", "a/0.wav,high", "a/1.wav,higher", "a/2.wav,up", "a/3.wav,left"]
    (data / "metadata.csv").write_text("\n".join(rows) + "\n")
    (data / "a" / "4.wav").write_bytes((data / "a" / "3.wav").read_bytes())
    with open(data / "metadata.csv", "a") as stream:
        stream.write("a/4.wav,left\n")
    examples, said, _ = split(data, label_column="kind", label_map=mapped("data,model\nhigh,up\nhigher,up\n"))
    assert sorted(example.label for example in examples) == ["left", "left", "up", "up", "up"]
    assert said == []


def test_clips_of_unknown_labels_are_left_out_and_counted_in_one_line(tmp_path):
    for part in ("train", "test"):
        put(tmp_path / part, up=2, left=2, noise=3, speech=1)
    examples, said, splits = split(tmp_path, ignore_unknown_labels=True)
    assert {example.label for example in examples} == {"up", "left"}
    assert len(splits.calibration) == len(splits.evaluation) == 4
    assert said == [
        "--ignore-unknown-labels leaves out 8 clips of labels that the model does not have: 'noise', 'speech'"
    ]
    assert splits.origin.endswith("; labels unknown to the model left out")


def test_both_together(tmp_path, mapped):
    data = tmp_path / "data"
    put(data, unten=2, up=2, noise=1)
    examples, said, _ = split(data, label_map=mapped('{"unten": "down", "oben": "up"}'), ignore_unknown_labels=True)
    assert sorted(example.label for example in examples) == ["down", "down", "up", "up"]
    assert said == [
        f"{tmp_path / 'map.csv'}: names that no clip has: 'oben'",
        "--ignore-unknown-labels leaves out 1 clip of labels that the model does not have: 'noise'",
    ]


def test_clips_of_several_labels_keep_those_that_the_model_has(tmp_path, mapped):
    rows = ["file_name,labels", "a/0.wav,hoch|oben", "a/1.wav,left|noise", "a/2.wav,", "a/3.wav,noise|speech"]
    for part in ("train", "test"):
        put(tmp_path / part, a=4)
        (tmp_path / part / "metadata.csv").write_text("\n".join(rows) + "\n")
    said, read_as = [], {"label_map": mapped("data,model\nhoch,up\noben,up\n"), "ignore_unknown_labels": True}
    splits = read_splits(DataFolder(tmp_path, **read_as), 100, 0, "labels", said.append, LABELS)
    assert [example.labels for example in splits.evaluation] == [("up",), ("left",), ()]
    assert sorted(example.labels for example in splits.calibration) == [(), ("left",), ("up",)]
    assert said[:2] == [
        "--ignore-unknown-labels leaves out 2 clips of labels that the model does not have: 'noise', 'speech'",
        "--ignore-unknown-labels leaves out labels that the model does not have, of 2 clips of others too: 'noise'",
    ]
    clips = read_examples_for(CLASSIFICATION_TASK, splits.evaluation, LABELS, 16_000)
    assert clips.tags.tolist() == [[False, False, True], [False, True, False], [False, False, False]]


def test_nothing_left_is_refused(tmp_path):
    put(tmp_path, a=2, b=2)
    with pytest.raises(BadInput, match="no clip is left, all are 4 clips of labels that the model .*: 'a', 'b'"):
        split(tmp_path, ignore_unknown_labels=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "neither a JSON object nor a CSV file whose first line is data,model"),
        ("up,UP\n", "neither a JSON object nor a CSV file whose first line is data,model"),
        ("data,model\n", "it names no labels"),
        ("{}", "it names no labels"),
        ("data,model\na\n", "'a': a name in the data and one of the model are wanted"),
        ("data,model\na,\n", "'a,': a name in the data and one of the model are wanted"),
        ("data,model\na,b,c\n", "'a,b,c': a name in the data and one of the model are wanted"),
        ("data,model\na,up\na,left\n", "'a' is to be both 'up' and 'left'"),
        ("data,model\na,uup\n", "'a' is to be 'uup', a label that the model does not have"),
        ('{"a": "up", "a": "left"}', "'a' is to be both 'up' and 'left'"),
        ('{"a": 1}', "'a' is to be 1; a label of the model is wanted"),
        ('{"a": null}', "'a' is to be None; a label of the model is wanted"),
        ('{"a": "up"', "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
    ],
)
def test_maps_that_are_none_are_refused(tmp_path, mapped, text, said):
    data = tmp_path / "data"
    put(data, a=2)
    with pytest.raises(BadInput, match=rf"map\.csv: {said}"):
        split(data, label_map=mapped(text))


def test_a_map_that_is_not_there_or_not_text(tmp_path):
    put(tmp_path / "data", a=2)
    with pytest.raises(BadInput, match=r"map\.csv: No such file"):
        split(tmp_path / "data", label_map=tmp_path / "map.csv")
    (tmp_path / "map.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match=r"map\.csv: not text in UTF-8"):
        split(tmp_path / "data", label_map=tmp_path / "map.csv")


def test_a_model_without_names_has_no_unknown_ones(tmp_path):
    put(tmp_path, a=2)
    with pytest.raises(BadInput, match="--ignore-unknown-labels: the model names no labels"):
        split(tmp_path, labels=(), ignore_unknown_labels=True)


def test_speech_has_no_labels(tmp_path):
    with pytest.raises(BadInput, match="--label-map and --ignore-unknown-labels are for classifiers"):
        read_splits(DataFolder(_one(tmp_path), ignore_unknown_labels=True), 4, 0, "text")


def _one(folder):
    put(folder, a=1)
    (folder / "metadata.csv").write_text("file_name,text\na/0.wav,one\n")
    return folder


def test_the_commands_take_both(tiny_folder, tmp_path, mapped, capsys, caplog):
    data = tmp_path / "data"
    put(data, hoch=8, left=8, noise=3)
    flags = ["--data", str(data), "--label-map", str(mapped("data,model\nhoch,up\n")), "--ignore-unknown-labels"]
    clips = ["--calibration-clips", "8"]
    evaluation = ["eval", str(tiny_folder), *flags, *clips, "--threads", "1", "--json"]
    assert run(evaluation) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == 8
    told = "note: --ignore-unknown-labels leaves out 3 clips of labels that the model does not have: 'noise'"
    assert caplog.messages == [told]
    assert run(["prune", str(tiny_folder), *flags, *clips, "--out", str(tmp_path / "slim"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calibration_clips"] == 8
    artifact = tmp_path / "artifact"
    assert run(["export", str(tiny_folder), *flags, "--out", str(artifact)]) == 0
    capsys.readouterr()
    assert run(["eval", str(artifact), *flags, *clips, "--threads", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == 8
    assert run(["eval", str(tiny_folder), "--data", str(data)]) == 2
    assert "is unknown to the model, which knows " + ", ".join(TINY_LABELS) in capsys.readouterr().err
    assert run(["eval", "demo-ast", "--ignore-unknown-labels"]) == 2
    assert "--ignore-unknown-labels is for --data, which is missing" in capsys.readouterr().err


def test_the_flags_come_back_as_they_were_given(tmp_path, mapped):
    path = mapped("data,model\na,up\n", "my map.csv")
    folder = DataFolder(tmp_path / "data", label_column="kind", label_map=path, ignore_unknown_labels=True)
    assert folder.flags == (f"--data {tmp_path}/data --label-column kind --label-map '{path}' --ignore-unknown-labels")
