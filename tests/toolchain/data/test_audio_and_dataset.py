"""Reading audio and labelled folders: what is there comes back, what is wrong is named."""

from __future__ import annotations

import errno
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from leanear.data.audio import read_waveform
from leanear.data.clips import read_examples_for
from leanear.data.splits import read_splits
from leanear.runtimes.clips import read_clips, write_clips
from leanear.runtimes.errors import BadInput
from leanear.runtimes.tasks import CLASSIFICATION_TASK, SPEECH_TASK
from tests.conftest import tone


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_format_rate_and_channels(tmp_path, suffix, channels):
    path = tmp_path / f"clip.{suffix}"
    stereo = np.stack([tone(440, 0.5, 44100)] * channels, axis=1)
    soundfile.write(path, stereo, 44100)
    waveform = read_waveform(path, 16000)
    assert waveform.dtype == np.float32
    assert abs(len(waveform) - 8000) <= 1
    expected = resample_poly(tone(440, 0.5, 44100), 160, 441)
    middle = slice(1000, 7000)
    bound = 0.02 if suffix == "ogg" else 2e-3
    assert np.abs(waveform[middle] - expected[middle]).max() < bound


def test_native_rate_is_untouched(tmp_path):
    soundfile.write(tmp_path / "clip.wav", tone(300), 16000, subtype="FLOAT")
    assert np.array_equal(read_waveform(tmp_path / "clip.wav", 16000), tone(300))


def test_channels_are_averaged(tmp_path):
    left, right = tone(300), tone(900)
    soundfile.write(tmp_path / "clip.wav", np.stack([left, right], axis=1), 16000, subtype="FLOAT")
    assert np.allclose(read_waveform(tmp_path / "clip.wav", 16000), (left + right) / 2, atol=1e-7)


def damage(tmp_path, kind):
    path = tmp_path / ("clip.flac" if kind == "truncated flac" else "clip.wav")
    if kind == "text":
        path.write_text("this is no audio\n")
    elif kind == "zero samples":
        soundfile.write(path, np.zeros((0, 1)), 16000)
    elif kind == "nan":
        samples = tone(300)
        samples[7] = np.nan
        soundfile.write(path, samples, 16000, subtype="FLOAT")
    elif kind.startswith("truncated"):
        soundfile.write(path, np.random.default_rng(0).normal(size=16000) * 0.1, 16000)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "not readable as audio"),
        ("zero samples", "zero samples"),
        ("nan", "NaN"),
        ("truncated flac", "damaged|truncated"),
        ("truncated wav", "truncated"),
        ("missing", "no such file"),
    ],
)
def test_damaged_audio_is_named(tmp_path, kind, message):
    path = damage(tmp_path, kind)
    with pytest.raises(BadInput, match=message) as caught:
        read_waveform(path, 16000)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class _HalfRead(io.FileIO):
    """A file on a disk whose blocks from 20,000 on are damaged."""

    def read(self, size=-1):
        if self.tell() + size > 20_000:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(size)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_what_the_disk_cannot_read_is_not_taken_for_the_end(tmp_path, monkeypatch, capfd, suffix):
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, np.random.default_rng(0).normal(size=160_000) * 0.1, 16_000)
    monkeypatch.setattr("leanear.data.audio.open", lambda path, _: _HalfRead(path), raising=False)
    with pytest.raises(BadInput) as caught:
        read_waveform(path, 16_000)
    assert str(caught.value) == f"{path}: Input/output error"
    assert capfd.readouterr().err == ""


def make_folder(root, counts, prefix=""):
    for label, count in counts.items():
        (root / prefix / label).mkdir(parents=True)
        for number in range(count):
            soundfile.write(root / prefix / label / f"{number}.wav", tone(200 + 50 * number), 16000)
    return root


def test_class_folders_are_divided_without_overlap(tmp_path):
    folder = make_folder(tmp_path / "data", {"no": 9, "yes": 6})
    splits = read_splits(folder, calibration_clips=8, seed=1)
    calibration, evaluation = ({e.name for e in part} for part in (splits.calibration, splits.evaluation))
    assert not calibration & evaluation
    assert len(calibration | evaluation) == 15
    assert len(calibration) == 7, "four of nine, and no more than half of six"
    assert {e.label for e in splits.evaluation} == {"no", "yes"}
    assert splits == read_splits(folder, calibration_clips=8, seed=1)
    assert splits.calibration != read_splits(folder, calibration_clips=8, seed=2).calibration


def test_any_prefix_of_the_calibration_clips_is_balanced(tmp_path):
    folder = make_folder(tmp_path / "data", {"a": 8, "b": 8, "c": 8}, "train")
    make_folder(tmp_path / "data", {"a": 1, "b": 1, "c": 1}, "test")
    splits = read_splits(folder, calibration_clips=24, seed=0)
    for end in range(1, 25):
        labels = [e.label for e in splits.calibration[:end]]
        counts = [labels.count(label) for label in "abc"]
        assert max(counts) - min(counts) <= 1


def test_metadata_csv(tmp_path):
    folder = make_folder(tmp_path / "data", {"x": 4})
    rows = "".join(
        f"x/{number}.wav,{'yes' if number % 2 else 'no, thanks'}\n".replace("no, thanks", '"no, thanks"')
        for number in range(4)
    )
    (folder / "metadata.csv").write_text("file_name,label\n" + rows)
    splits = read_splits(folder, calibration_clips=2, seed=0)
    assert {e.label for e in splits.evaluation} == {"yes", "no, thanks"}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("file,label\nx/0.wav,yes\n", "no column 'file_name'"),
        ("file_name,label\nx/9.wav,yes\n", "line 2 names 'x/9.wav'"),
        ("file_name,label\nx/0.wav,\n", "line 2 lacks"),
        ("file_name,label\n", "lists no clips"),
        ("file_name,label\nx/0.wav,yes\nx/0.wav,no\n", "line 3 gives 'x/0.wav' a second label"),
    ],
)
def test_wrong_metadata_is_named(tmp_path, metadata, message):
    folder = make_folder(tmp_path / "data", {"x": 1})
    (folder / "metadata.csv").write_text(metadata)
    with pytest.raises(BadInput, match=message):
        read_splits(folder, calibration_clips=2, seed=0)


def test_metadata_that_is_not_utf8_is_named(tmp_path):
    folder = make_folder(tmp_path / "data", {"x": 1})
    (folder / "metadata.csv").write_bytes("file_name,label\nx/0.wav,Grün\n".encode("latin-1"))
    with pytest.raises(BadInput, match=r"metadata\.csv: not a CSV file in UTF-8"):
        read_splits(folder, calibration_clips=2, seed=0)


def write_metadata(folder, *rows):
    (folder / "metadata.csv").write_text("\n".join(["file_name, label", *rows]) + "\n")


def test_metadata_with_absolute_paths_and_a_name_that_is_not_utf8(tmp_path):
    folder = make_folder(tmp_path / "data", {"x": 2, "y": 2})
    write_metadata(folder, f"{folder}/y/0.wav,yes", f"{folder}/y/1.wav,yes", "x/0.wav,no", "x/1.wav,no")
    splits = read_splits(folder, calibration_clips=2, seed=0)
    clips = read_examples_for(CLASSIFICATION_TASK, splits.evaluation, ("no", "yes"), 16000)
    assert len(clips) == 2
    odd = os.fsencode(folder) + b"/bad\xff.wav"
    os.rename(folder / "x" / "0.wav", odd)
    assert len(read_waveform(Path(os.fsdecode(odd)), 16000)) == 6400


@pytest.mark.parametrize("way", ["up", "absolute", "link", "linked folder"])
def test_metadata_does_not_leave_the_data_folder(tmp_path, way):
    folder = make_folder(tmp_path / "data", {"x": 2})
    elsewhere = make_folder(tmp_path / "elsewhere", {"y": 2})
    (folder / "link.wav").symlink_to(elsewhere / "y" / "0.wav")
    (folder / "linked").symlink_to(elsewhere)
    names = {
        "up": "x/../../elsewhere/y/0.wav",
        "absolute": f"{elsewhere}/y/0.wav",
        "link": "link.wav",
        "linked folder": "linked/y/0.wav",
    }
    write_metadata(folder, "x/0.wav,yes", f"{names[way]},yes", "x/1.wav,yes")
    with pytest.raises(BadInput, match=rf"metadata.csv: line 3 names '{names[way]}', which is outside the data folder"):
        read_splits(folder, calibration_clips=2, seed=0)


def test_metadata_of_splits_may_name_what_lies_beside_them_and_links_within_the_hubs_cache(tmp_path):
    blobs = make_folder(tmp_path / "datasets--a" / "blobs", {"x": 4})
    folder = tmp_path / "datasets--a" / "snapshots" / "0123"
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        for number in range(2):
            (folder / f"{split}{number}.wav").symlink_to(f"../../blobs/x/{number}.wav")
        write_metadata(folder / split, f"../{split}0.wav,yes", f"../{split}1.wav,yes")
    assert blobs.is_dir()
    assert len(read_splits(folder, calibration_clips=2, seed=0).evaluation) == 2


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(BadInput, match="no such data folder"):
        read_splits(tmp_path / "none", 4, 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no .wav"):
        read_splits(tmp_path / "empty", 4, 0)


def test_unknown_label_is_named_with_what_is_known(tmp_path):
    folder = make_folder(tmp_path / "data", {"yes": 2, "perhaps": 2})
    splits = read_splits(folder, 2, 0)
    with pytest.raises(BadInput, match=r"perhaps.*knows no, yes"):
        read_examples_for(CLASSIFICATION_TASK, splits.evaluation, ("no", "yes"), 16000)


def test_clips_file_round_trip_and_damage(tmp_path):
    folder = make_folder(tmp_path / "data", {"yes": 3, "no": 3})
    clips = read_examples_for(CLASSIFICATION_TASK, read_splits(folder, 2, 0).evaluation, ("no", "yes"), 16000)
    write_clips(tmp_path / "clips.npz", clips)
    again = read_clips(tmp_path / "clips.npz")
    assert all(np.array_equal(a, b) for a, b in zip(clips.waveforms, again.waveforms, strict=True))
    assert (again.names, again.labels, again.label_ids.tolist()) == (
        clips.names,
        clips.labels,
        clips.label_ids.tolist(),
    )
    shutil.copy(tmp_path / "clips.npz", tmp_path / "cut.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "clips.npz").read_bytes()[:500])
    with pytest.raises(BadInput, match=r"cut\.npz"):
        read_clips(tmp_path / "cut.npz")


def speech_folder(root, texts, prefix="", listed=None):
    """A folder of `texts` by file name; `listed`: what metadata.csv says instead."""
    (root / prefix).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(texts):
        soundfile.write(root / prefix / name, tone(200 + 20 * number), 16000)
    rows = "".join(f'{name},"{text}"\n' for name, text in (texts if listed is None else listed).items())
    (root / prefix / "metadata.csv").write_text("file_name,text\n" + rows)
    return root


def test_transcripts_are_divided_in_halves_and_drawn_by_the_seed(tmp_path):
    texts = {f"{number}.wav": f"sentence number {number}, in full" for number in range(12)}
    folder = speech_folder(tmp_path / "data", texts)
    splits = read_splits(folder, 4, 0, "text")
    assert len(splits.calibration) == 4
    assert len(splits.evaluation) == 6
    assert {e.name: e.text for e in read_splits(folder, 6, 0, "text").calibration + splits.evaluation} == texts
    assert all(example.label is None for example in splits.calibration)
    assert splits == read_splits(folder, 4, 0, "text")
    assert splits.calibration != read_splits(folder, 4, 1, "text").calibration
    assert "by label" not in splits.origin


@pytest.mark.parametrize("counts", [{"no": 9, "yes": 6, "up": 17}, {"no": 2, "yes": 3}])
def test_what_one_command_calibrates_on_no_other_evaluates(tmp_path, counts):
    """Whatever number of clips and seed each of them is given, and when there are more clips than there were."""
    folder = make_folder(tmp_path / "data", counts)
    given = [(clips, seed) for clips in (1, 4, 7, 100) for seed in (0, 1, 2)]
    found = [read_splits(folder, clips, seed) for clips, seed in given]
    evaluated = {each.evaluation for each in found}
    assert len(evaluated) == 1
    heard = {example for each in found for example in each.calibration}
    assert not heard & {*next(iter(evaluated))}
    assert len(heard) == sum(count // 2 for count in counts.values())


def test_transcripts_in_split_folders(tmp_path):
    folder = speech_folder(tmp_path / "data", {"a.wav": "one", "b.wav": "two", "c.wav": "three"}, "train")
    speech_folder(tmp_path / "data", {"d.wav": "four"}, "test")
    splits = read_splits(folder, 2, 0, "text")
    assert {e.text for e in splits.calibration} < {"one", "two", "three"}
    assert [e.text for e in splits.evaluation] == ["four"]
    (folder / "train" / "metadata.csv").unlink()
    with pytest.raises(BadInput, match=r"train: audio without transcripts: a\.wav and 2 more; there is no metadata"):
        read_splits(folder, 2, 0, "text")


@pytest.mark.parametrize(
    ("texts", "listed", "message"),
    [
        ({"a.wav": "", "b.wav": "", "c.wav": ""}, {"b.wav": "yes"}, r"audio without transcripts: a\.wav and 1 more"),
        ({"a.wav": ""}, {"a.wav": "yes", "z.wav": "no"}, r"transcript without audio: line 3 names 'z\.wav'"),
        ({"a.wav": ""}, {"a.wav": "  "}, "the transcripts of all clips to calibrate on are empty"),
        ({"a.wav": "yes"}, None, "there is one clip; two are needed"),
        ({}, {}, "lists no clips"),
    ],
)
def test_wrong_transcripts_are_named_in_one_line(tmp_path, texts, listed, message):
    folder = speech_folder(tmp_path / "data", texts, listed=listed)
    with pytest.raises(BadInput, match=message) as caught:
        read_splits(folder, 2, 0, "text")
    assert "\n" not in str(caught.value)


def test_labels_are_no_transcripts_and_transcripts_no_labels(tmp_path):
    labelled = make_folder(tmp_path / "labelled", {"x": 2})
    with pytest.raises(BadInput, match=r"audio without transcripts: x/0\.wav and 1 more; there is no metadata\.csv"):
        read_splits(labelled, 2, 0, "text")
    (labelled / "metadata.csv").write_text("file_name,label\nx/0.wav,yes\n")
    with pytest.raises(BadInput, match=r"no column 'text' in its first line; it has 'label', but MODEL is a speech"):
        read_splits(labelled, 2, 0, "text")
    transcribed = speech_folder(tmp_path / "transcribed", {"a.wav": "yes", "b.wav": "no"})
    with pytest.raises(BadInput, match=r"no column 'label' in its first line; it has 'text', but MODEL is a class"):
        read_splits(transcribed, 2, 0)


def test_no_calibration_clips(tmp_path):
    folder = speech_folder(tmp_path / "data", {"a.wav": "one"}, "test")
    with pytest.raises(BadInput, match="no calibration clips: it has split folders"):
        read_splits(folder, 2, 0, "text")


def test_transcribed_clips_file_round_trip(tmp_path):
    folder = speech_folder(tmp_path / "data", {"a.wav": "café, 7 o'clock", "b.wav": "今日は"})
    splits = read_splits(folder, 1, 0, "text")
    examples = sorted((*splits.calibration, *splits.evaluation), key=lambda example: example.name)
    clips = read_examples_for(SPEECH_TASK, examples, (), 16000)
    write_clips(tmp_path / "clips.npz", clips)
    again = read_clips(tmp_path / "clips.npz")
    assert again.texts == ("café, 7 o'clock", "今日は")
    assert (again.labels, again.label_ids.tolist()) == ((), [])
    assert [len(waveform) for waveform in again.waveforms] == [6400, 6400]
    labelled = make_folder(tmp_path / "labelled", {"yes": 2})
    with pytest.raises(BadInput, match="audio without a transcript"):
        read_examples_for(SPEECH_TASK, read_splits(labelled, 1, 0).evaluation, (), 16000)


def test_so_many_evaluation_clips_are_drawn_at_random_and_said(tmp_path):
    from leanear.data.dataset import Example
    from leanear.data.splits import Splits, draw_evaluation

    examples = tuple(Example(tmp_path / f"{n}.wav", f"{n}.wav", label="a") for n in range(50))
    splits = Splits(examples[:3], examples, "one folder")
    assert draw_evaluation(splits, None, 0) is splits
    assert draw_evaluation(splits, 50, 0) is splits
    few, again, other = (draw_evaluation(splits, 10, seed) for seed in (0, 0, 1))
    assert few.evaluation == again.evaluation != other.evaluation
    places = [examples.index(example) for example in few.evaluation]
    assert places == sorted(set(places))
    assert len(places) == 10
    assert "10 of 50 evaluation clips" in few.origin
    assert few.calibration == splits.calibration
