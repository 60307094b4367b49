"""Folders of audio as people lay them out: what is used, what is said of the rest, what is refused and why."""

from __future__ import annotations

import json
import os
import unicodedata

import numpy as np
import pytest
import soundfile

from leanear.cli.commands import run
from leanear.data.audio import read_waveform
from leanear.data.clips import read_examples_for
from leanear.data.dataset import DataFolder
from leanear.data.splits import read_splits
from leanear.runtimes.errors import BadInput
from leanear.runtimes.tasks import SPEECH_TASK
from tests.conftest import tone


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, tone(300, 0.1), 16_000, format="WAV")


def table(folder, *lines):
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def lines_of(folder, *rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def splits_of(folder, column="label", clips=100):
    said = []
    return read_splits(folder, clips, 0, column, said.append), said


def names(examples):
    return sorted(example.name for example in examples)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("training", "testing"),
        ("Train", "TEST"),
        ("train", "eval"),
        ("train", "Evaluation"),
        ("validation", "test"),
        ("val", "test"),
        ("train", "val"),
        ("train", "valid"),
        ("training", "dev"),
    ],
)
@pytest.mark.parametrize("way", ["folders", "table"])
def test_splits_by_the_hubs_keywords(tmp_path, train, test, way):
    put(tmp_path, *(f"{train}/{label}/{number}.wav" for label in ("yes", "no") for number in range(3)))
    put(tmp_path, *(f"{test}/{label}/9.wav" for label in ("yes", "no")))
    if way == "table":
        files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.wav"))
        table(tmp_path, "file_name,label", *(f"{name},{name.split('/')[1]}" for name in files))
    splits, said = splits_of(tmp_path)
    assert len(splits.calibration) == 6
    assert all(example.name.startswith(f"{train}/") for example in splits.calibration)
    assert names(splits.evaluation) == [f"{test}/no/9.wav", f"{test}/yes/9.wav"]
    assert all(example.label == example.name.split("/")[1] for example in (*splits.calibration, *splits.evaluation))
    assert splits.origin.startswith("split folders")
    assert train in splits.origin
    assert said == []


def test_a_table_that_names_files_in_splits_and_outside_is_refused(tmp_path):
    put(tmp_path, "train/a.wav", "test/b.wav", "more/c.wav")
    table(tmp_path, "file_name,label", "train/a.wav,yes", "test/b.wav,no", "more/c.wav,no")
    with pytest.raises(
        BadInput, match=r"metadata\.csv: .*split folders \(test, train\) and files in none: more/c\.wav"
    ):
        splits_of(tmp_path)


def test_a_table_whose_files_are_all_in_one_split_is_divided(tmp_path):
    put(tmp_path, "train/a.wav", "train/b.wav")
    table(tmp_path, "file_name,label", "train/a.wav,yes", "train/b.wav,yes")
    splits, _ = splits_of(tmp_path)
    assert (len(splits.calibration), len(splits.evaluation)) == (1, 1)
    assert splits.origin.startswith("divided in halves")


def test_stray_folders_beside_splits(tmp_path):
    put(tmp_path, "train/yes/a.wav", "test/yes/b.wav", "__MACOSX/train/._a.wav", "loose.wav")
    (tmp_path / "notes").mkdir()
    splits, said = splits_of(tmp_path)
    assert names(splits.evaluation) == ["test/yes/b.wav"]
    assert said == [f"{tmp_path}: audio beside the split folders is not used: 1 file (loose.wav)"]
    put(tmp_path, "extra/c.wav")
    with pytest.raises(BadInput, match=r"split folders test, train and, beside them, folders .* that are none: extra;"):
        splits_of(tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    put(tmp_path, *(f"{label}/{number}.wav" for label in ("train", "car") for number in range(2)))
    splits, _ = splits_of(tmp_path)
    assert {example.label for example in splits.evaluation} == {"train", "car"}
    with pytest.raises(
        BadInput, match="'train' is unknown to the model, .*; as a split it is known only where another"
    ):
        read_examples_for("audio-classification", splits.evaluation, ("car",), 16_000)


def test_loose_and_unreadable_files_beside_class_folders_are_counted(tmp_path):
    put(tmp_path, "yes/a.wav", "yes/b.wav", *(f"loose{number}.wav" for number in range(5)))
    (tmp_path / "yes" / "c.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    splits, said = splits_of(tmp_path)
    assert len(splits.calibration) + len(splits.evaluation) == 2
    assert said == [
        f"{tmp_path}: not all audio is used; M4A is not read, convert it with ffmpeg: 1 file (yes/c.m4a)",
        f"{tmp_path}: audio beside the class folders is not used: "
        "5 files (loose0.wav, loose1.wav, loose2.wav and 2 more)",
    ]


def test_a_folder_of_nothing_but_m4a_is_refused_by_name(tmp_path):
    (tmp_path / "yes").mkdir()
    (tmp_path / "yes" / "c.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    with pytest.raises(BadInput, match=r"no \.wav.*; M4A is not read, convert it with ffmpeg: 1 file \(yes/c\.m4a\)"):
        splits_of(tmp_path)


FORMATS = {
    "wav": "WAV", "flac": "FLAC", "ogg": "OGG", "oga": "OGG", "opus": "OGG", "mp3": "MP3", "mp2": "MP3", "aif": "AIFF",
    "aiff": "AIFF", "AIFC": "AIFF", "au": "AU", "snd": "AU", "caf": "CAF", "w64": "W64", "rf64": "RF64",
    "sph": "NIST", "nist": "NIST", "voc": "VOC",
}  # fmt: skip


def test_everything_that_libsndfile_reads_is_used(tmp_path):
    (tmp_path / "yes").mkdir()
    for suffix, container in FORMATS.items():
        subtype = {"opus": "OPUS", "mp2": "MPEG_LAYER_III"}.get(suffix)
        soundfile.write(tmp_path / "yes" / f"clip.{suffix}", tone(300), 16_000, format=container, subtype=subtype)
    splits, said = splits_of(tmp_path)
    used = (*splits.calibration, *splits.evaluation)
    assert {example.path.suffix[1:] for example in used} == set(FORMATS)
    assert said == []
    expected = tone(300)
    for example in used:
        heard = read_waveform(example.path, 16_000)
        assert np.corrcoef(heard[: len(expected)], expected)[0, 1] > 0.9, example.name


def test_a_table_of_labels_says_what_it_leaves_out(tmp_path):
    put(tmp_path, *(f"{number}.wav" for number in range(6)))
    table(tmp_path, "file_name,label", "0.wav,yes", "1.wav,yes")
    splits, said = splits_of(tmp_path)
    assert len(splits.calibration) + len(splits.evaluation) == 2
    assert said == [
        f"{tmp_path}: audio that metadata.csv does not list is not used: 4 files (2.wav, 3.wav, 4.wav and 1 more)"
    ]


@pytest.mark.parametrize("suffix", ["mp3", "m4a", "opus"])
def test_audio_of_any_format_without_a_transcript_is_refused(tmp_path, suffix):
    put(tmp_path, "a.wav", "b.wav")
    (tmp_path / f"c.{suffix}").write_bytes(b"\0" * 100)
    table(tmp_path, "file_name,text", "a.wav,one", "b.wav,two")
    with pytest.raises(BadInput, match=rf"audio without transcripts: c\.{suffix}; metadata\.csv does not list them"):
        splits_of(tmp_path, "text")


@pytest.mark.parametrize(("name", "said"), [("x" * 9000, "which does not exist"), ("a\0.wav", "which is no file name")])
def test_names_that_no_file_can_have(tmp_path, name, said):
    put(tmp_path, "a.wav")
    lines_of(tmp_path, {"file_name": "a.wav", "label": "yes"}, {"file_name": name, "label": "yes"})
    with pytest.raises(BadInput, match=rf"metadata\.jsonl: line 2 names .*{said}"):
        splits_of(tmp_path)


@pytest.mark.parametrize("column", ["label", "text", "labels"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (r'{"file_name": "a\u0000.wav", "COLUMN": "yes"}', "which is no file name"),
        (r'{"file_name": "a\ud83d.wav", "COLUMN": "yes"}', "'file_name' is .*, with half of a character in it"),
        (r'{"file_name": "a.wav", "COLUMN": "\ud83d yes"}', "'COLUMN' is .*, with half of a character in it"),
    ],
)
def test_what_no_file_can_hold_is_refused_by_its_line(tmp_path, column, line, message):
    put(tmp_path, "a.wav")
    (tmp_path / "metadata.jsonl").write_text(line.replace("COLUMN", column) + "\n")
    with pytest.raises(BadInput, match=r"metadata\.jsonl: line 1.*" + message.replace("COLUMN", column)):
        splits_of(tmp_path, column)


def test_commas_without_quotation_marks_are_refused(tmp_path):
    """And not what stands before the first of them taken for all that was said."""
    put(tmp_path, "a.wav", "b.wav")
    table(tmp_path, "file_name,text", "a.wav,one,", "b.wav,well, hello there")
    with pytest.raises(BadInput, match=r"metadata\.csv: line 3 has 3 cells, the first line 2: .* quotation marks"):
        splits_of(tmp_path, "text")
    table(tmp_path, "file_name,text", "a.wav,one,", 'b.wav,"well, hello there"')
    splits, _ = splits_of(tmp_path, "text")
    assert {each.text for each in (*splits.calibration, *splits.evaluation)} == {"one", "well, hello there"}


def test_one_file_under_two_names_is_one_clip(tmp_path):
    put(tmp_path, "a.wav", "b.wav", "s/c.wav")
    (tmp_path / "link.wav").symlink_to(tmp_path / "a.wav")
    rows = ["a.wav,yes", "s/../a.wav,yes", "link.wav,yes", "b.wav,yes", "s/c.wav,yes"]
    table(tmp_path, "file_name,label", *rows)
    splits, _ = splits_of(tmp_path)
    assert names((*splits.calibration, *splits.evaluation)) == ["a.wav", "b.wav", "s/c.wav"]
    table(tmp_path, "file_name,label", *rows[:-1], "link.wav,no")
    with pytest.raises(BadInput, match=r"line 6 gives 'link\.wav' a second label"):
        splits_of(tmp_path)


def test_no_label_is_taken_for_those_of_one_clip_each(tmp_path):
    many = [f"{number}.wav" for number in range(20)]
    put(tmp_path, *many, "man.wav", "speech.wav")
    rows = [f'{name},"Male speech, man speaking"' for name in many]
    table(tmp_path, "file_name,labels", *rows, "man.wav,man speaking", "speech.wav,Male speech")
    splits, _ = splits_of(tmp_path, "labels")
    assert names((*splits.calibration, *splits.evaluation)) == sorted([*many, "man.wav", "speech.wav"])


def test_json_lines_overrule_the_names_of_folders(tmp_path):
    put(tmp_path, "no/a.wav", "no/b.wav", "no/c.wav")
    rows = [{"file_name": f"no/{name}.wav", "label": "yes", "speaker": {"id": 3}} for name in "abc"]
    lines_of(tmp_path, *rows)
    splits, _ = splits_of(tmp_path)
    assert {example.label for example in (*splits.calibration, *splits.evaluation)} == {"yes"}
    table(tmp_path, "file_name,label", "no/a.wav,yes")
    with pytest.raises(BadInput, match=r"both metadata\.csv and metadata\.jsonl are in it"):
        splits_of(tmp_path)


def test_json_lines_of_transcripts_in_splits(tmp_path):
    for split, text in (("train", "one"), ("test", "two")):
        put(tmp_path, f"{split}/a.wav")
        lines_of(tmp_path / split, {"file_name": "a.wav", "text": text})
    splits, _ = splits_of(tmp_path, "text")
    assert (splits.calibration[0].text, splits.evaluation[0].text) == ("one", "two")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"file_name": "a.wav", "label": "yes"}\n{"file_name"\n', "line 2 is not JSON"),
        ('["a.wav", "yes"]\n', "line 1 is no JSON object"),
        ('{"file_name": "a.wav", "label": ["yes"]}\n', r"line 1: 'label' is \['yes'\]; text is wanted"),
        ('{"file_name": "a.wav", "label": null}\n', "line 1 lacks a file_name or a label"),
        ('{"file": "a.wav", "label": "yes"}\n', "no column 'file_name' in its lines; it has 'file', 'label'"),
        ("\n", "no column 'file_name'"),
    ],
)
def test_wrong_json_lines_are_named(tmp_path, content, message):
    put(tmp_path, "a.wav")
    (tmp_path / "metadata.jsonl").write_text(content)
    with pytest.raises(BadInput, match=rf"metadata\.jsonl: {message}"):
        splits_of(tmp_path)


@pytest.mark.parametrize("column", ["transcription", "sentence", "transcript"])
def test_other_names_of_transcripts_are_known_and_said(tmp_path, column):
    put(tmp_path, "a.wav", "b.wav")
    table(tmp_path, f"file_name,{column}", "a.wav,one", "b.wav,two")
    splits, said = splits_of(tmp_path, "text")
    assert {example.text for example in (*splits.calibration, *splits.evaluation)} == {"one", "two"}
    assert said == [f"{tmp_path / 'metadata.csv'}: column '{column}' is taken for the transcripts, there is no 'text'"]


def test_columns_by_name(tmp_path):
    put(tmp_path, "a.wav", "b.wav")
    table(tmp_path, "file_name,text,norm,kind,label", "a.wav,ONE,one,x,p", "b.wav,TWO,two,x,p")
    splits, said = splits_of(DataFolder(tmp_path, text_column="norm"), "text")
    assert {example.text for example in (*splits.calibration, *splits.evaluation)} == {"one", "two"}
    splits, more = splits_of(DataFolder(tmp_path, label_column="kind"))
    assert {example.label for example in (*splits.calibration, *splits.evaluation)} == {"x"}
    assert said == more == []
    with pytest.raises(
        BadInput, match=r"no column 'words', as --text-column says, in its first line; it has 'file_name'"
    ):
        splits_of(DataFolder(tmp_path, text_column="words"), "text")
    with pytest.raises(BadInput, match="--label-column is for classifiers"):
        splits_of(DataFolder(tmp_path, label_column="kind"), "text")
    with pytest.raises(BadInput, match="--text-column is for speech models"):
        splits_of(DataFolder(tmp_path, text_column="norm"))


def test_columns_that_cannot_be_told_apart_are_refused(tmp_path):
    put(tmp_path, "a.wav")
    table(tmp_path, "file_name,sentence,transcript", "a.wav,one,two")
    with pytest.raises(BadInput, match="the transcripts may be 'sentence' or 'transcript'; say with --text-column"):
        splits_of(tmp_path, "text")
    table(tmp_path, "file_name,label,label", "a.wav,one,two")
    with pytest.raises(BadInput, match="column 'label' is there 2 times"):
        splits_of(tmp_path)


def test_a_column_of_splits_is_said_to_be_unused(tmp_path):
    put(tmp_path, "a.wav", "b.wav")
    table(tmp_path, "file_name,label,split", "a.wav,yes,train", "b.wav,yes,test")
    assert splits_of(tmp_path)[1] == [
        f"{tmp_path / 'metadata.csv'}: its column 'split' is not used; splits are told by folders"
    ]


@pytest.mark.parametrize(
    ("label", "hint"),
    [("Cat", "there is 'cat'"), ("cat ", "there is 'cat'"), ("1", "not numbers: 1 is 'cat'"), ("cow", "--label-map ")],
)
def test_a_label_that_is_nearly_known(tmp_path, label, hint):
    put(tmp_path, "a.wav", "b.wav")
    table(tmp_path, "file_name,label", f"a.wav,{label}", f"b.wav,{label}")
    with pytest.raises(BadInput, match=rf"label '{label}' is unknown to the model, which knows bird, cat; .*{hint}"):
        read_examples_for("audio-classification", splits_of(tmp_path)[0].evaluation, ("bird", "cat"), 16_000)


def test_silent_clips_are_evaluated_and_never_calibrated_on(tmp_path):
    put(tmp_path, *(f"{number}.wav" for number in range(8)))
    table(tmp_path, "file_name,text", *(f"{number}.wav,{'' if number < 3 else 'one'}" for number in range(8)))
    splits, said = splits_of(tmp_path, "text")
    assert all(example.text == "one" for example in splits.calibration)
    assert sum(example.text == "" for example in splits.evaluation) == 3
    assert len(splits.calibration) + len(splits.evaluation) == 8
    assert said == [f"{tmp_path}: clips with an empty transcript, in which each word heard counts as put in: 3"]


def test_silent_clips_in_splits(tmp_path):
    for split in ("train", "test"):
        put(tmp_path, f"{split}/a.wav", f"{split}/b.wav")
        table(tmp_path / split, "file_name,text", "a.wav,one", "b.wav,")
    splits, said = splits_of(tmp_path, "text")
    assert names(splits.calibration) == ["train/a.wav"]
    assert names(splits.evaluation) == ["test/a.wav", "test/b.wav"]
    assert [line.rsplit(" ", 1)[1] for line in said] == ["1", "1"]


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café ü.wav") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("on_disk", "listed"),
    [
        (DECOMPOSED, COMPOSED),
        (COMPOSED, DECOMPOSED),
        ("clips/a.wav", "clips\\a.wav"),
        ("clips/a.wav", ".\\clips\\a.wav"),
        ("a.wav", "a.wav "),
        ("a.wav", " a.wav"),
        ("a .wav", "a .wav"),
    ],
)
def test_names_are_found_as_other_systems_write_them(tmp_path, on_disk, listed):
    put(tmp_path, on_disk, "other.wav")
    table(tmp_path, "file_name,label", f"{listed},yes", "other.wav,yes")
    splits, said = splits_of(tmp_path)
    assert names((*splits.calibration, *splits.evaluation)) == sorted([on_disk, "other.wav"])
    assert said == []


def test_a_name_that_may_be_either_of_two_files_is_refused(tmp_path):
    put(tmp_path, "clips/a.wav", "clips/a.wav ")
    table(tmp_path, "file_name,label", "clips\\a.wav,yes")
    with pytest.raises(BadInput, match="which does not exist"):
        splits_of(tmp_path)


def test_a_name_that_is_almost_there_shows_the_difference(tmp_path):
    put(tmp_path, "cafe\u0301 1.wav")
    table(tmp_path, "file_name,label", "caf\u00e9 1.waw,yes")
    with pytest.raises(BadInput) as caught:
        splits_of(tmp_path)
    assert "names 'caf\\xe9 1.waw', which does not exist; there is 'cafe\\u0301 1.wav'" in str(caught.value)


def test_clips_longer_than_the_window_are_not_calibrated_on(tmp_path, caplog):
    for number, seconds in enumerate((0.5, 2.0, 3.5, 1.0)):
        soundfile.write(tmp_path / f"{number}.wav", tone(300, seconds), 16_000)
    table(tmp_path, "file_name,text", *(f"{number}.wav,one" for number in range(4)))
    splits, _ = splits_of(tmp_path, "text")
    examples = sorted((*splits.calibration, *splits.evaluation), key=lambda example: example.name)
    clips = read_examples_for(SPEECH_TASK, examples, (), 16_000, window_samples=16_000)
    assert clips.names == ("0.wav", "3.wav")
    assert [len(waveform) for waveform in clips.waveforms] == [8_000, 16_000]
    assert clips.texts == ("one", "one")
    assert caplog.messages == [
        "note: 2 of 4 clips, 1.wav the first, are not calibrated on: longer than the model's window of 1 s"
    ]
    with pytest.raises(
        BadInput, match="no clip is left to calibrate on, all 2 are longer than the model's window of 1 s"
    ):
        read_examples_for(SPEECH_TASK, examples[1:3], (), 16_000, window_samples=16_000)


def test_odd_clips_of_a_folder_are_noted_once_each_and_counted(tmp_path, caplog):
    for number in range(6):
        soundfile.write(tmp_path / f"{number}.wav", tone(300) * 30_000, 16_000, subtype="FLOAT")
    table(tmp_path, "file_name,text", *(f"{number}.wav,one" for number in range(6)))
    splits, _ = splits_of(tmp_path, "text")
    read_examples_for(SPEECH_TASK, (*splits.calibration, *splits.evaluation), (), 16_000)
    assert [message.endswith("scale them before use") for message in caplog.messages] == [True, True, True, False]
    assert caplog.messages[3] == "note: and so of 3 more clips"


def test_flags_that_name_columns(tiny_folder, tmp_path, capsys):
    data = tmp_path / "data"
    put(data, *(f"{number}.wav" for number in range(4)))
    table(data, "file_name,class,label", *(f"{number}.wav,yes,?" for number in range(4)))
    assert run(["eval", str(tiny_folder), "--data", str(data), "--label-column", "class", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == 2
    assert run(["eval", "demo-ast", "--label-column", "class"]) == 2
    assert "--label-column is for --data, which is missing" in capsys.readouterr().err


def test_a_name_that_is_no_text_is_divided_as_others_are(tmp_path):
    """As a file from a system with another encoding has it."""
    put(tmp_path, "yes/a.wav", "yes/b.wav")
    os.rename(tmp_path / "yes" / "b.wav", os.fsencode(tmp_path / "yes") + b"/gr\xfcn.wav")
    splits, _ = splits_of(tmp_path)
    assert (len(splits.calibration), len(splits.evaluation)) == (1, 1)


def test_links_that_lead_nowhere_are_no_clips(tmp_path):
    put(tmp_path, *(f"{label}/{number}.wav" for label in ("yes", "no") for number in range(4)))
    for number in range(6):
        (tmp_path / "no" / f"dead{number}.flac").symlink_to(tmp_path / "nowhere")
    splits, said = splits_of(tmp_path)
    assert len(splits.calibration) + len(splits.evaluation) == 8
    assert said == [
        f"{tmp_path}: links that lead nowhere are passed over: dead0.flac, dead1.flac, dead2.flac and 3 more"
    ]


def test_a_cell_may_be_long(tmp_path):
    put(tmp_path, *(f"{number}.wav" for number in range(4)))
    table(tmp_path, "file_name,label,remark", *(f"{number}.wav,yes,{'x' * 200_000}" for number in range(4)))
    splits, _ = splits_of(tmp_path)
    assert len(splits.calibration) + len(splits.evaluation) == 4
