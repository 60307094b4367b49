"""A stage runs once, again when its inputs or outputs change, and again when it was cut off."""

from __future__ import annotations

import json
import shutil

import pytest

from leanear.data.splits import read_splits
from leanear.deploy.deployment_stages import clips_stage
from leanear.outputs import run_stage, stage_is_done
from leanear.progress import Narrator
from tests.conftest import write_tones


class Work:
    def __init__(self, folder):
        self.folder, self.runs = folder, 0

    def __call__(self):
        self.runs += 1
        (self.folder / "out.bin").write_bytes(b"result")

    def run(self, made_from):
        return run_stage(self.folder, "prune", made_from, lambda: [self.folder / "out.bin"], self)


def test_runs_once_for_the_same_inputs(tmp_path):
    work = Work(tmp_path)
    assert work.run({"checkpoint": "a"}) is True
    assert work.run({"checkpoint": "a"}) is False
    assert work.runs == 1


def test_runs_again_for_other_inputs(tmp_path):
    work = Work(tmp_path)
    work.run({"checkpoint": "a"})
    assert work.run({"checkpoint": "b"}) is True


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"resulT")])
def test_runs_again_when_its_output_is_gone_or_changed(tmp_path, damage):
    work = Work(tmp_path)
    work.run({"checkpoint": "a"})
    damage(tmp_path / "out.bin")
    assert not stage_is_done(tmp_path, "prune", {"checkpoint": "a"})
    assert work.run({"checkpoint": "a"}) is True
    assert (tmp_path / "out.bin").read_bytes() == b"result"


@pytest.mark.parametrize("kind", ["made_from", "outputs"])
def test_a_record_of_another_kind_is_none(tmp_path, kind):
    work = Work(tmp_path)
    work.run({"checkpoint": "a"})
    record = next((tmp_path / ".stages").iterdir())
    record.write_text(json.dumps({**json.loads(record.read_text()), kind: [1]}))
    assert work.run({"checkpoint": "a"}) is True


def test_a_stage_that_fails_is_not_done(tmp_path):
    Work(tmp_path).run({"checkpoint": "a"})

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path, "prune", {"checkpoint": "b"}, lambda: [], interrupted)
    assert not stage_is_done(tmp_path, "prune", {"checkpoint": "b"})
    assert not stage_is_done(tmp_path, "prune", {"checkpoint": "a"}), "its output may have been touched"


def test_clips_that_calibrate_and_evaluate_are_told(tiny_folder, tmp_path, caplog):
    train = write_tones(tmp_path / "data" / "train", 3)
    write_tones(tmp_path / "data" / "test", 2, **{"yes": 900, "up": 2500})
    shutil.copy(train / "yes" / "1.wav", tmp_path / "data" / "test" / "yes" / "another name.wav")
    for name, said in (
        ("leaks", ["note: calibration clips among the evaluation clips, 1 of 5: test/yes/another name.wav"]),
        ("clean", []),
    ):
        caplog.clear()
        splits = read_splits(tmp_path / "data", 6, 0)
        assert clips_stage(tmp_path / name, tiny_folder, splits, "audio-classification", Narrator("quiet"))
        assert caplog.messages == said
        (tmp_path / "data" / "test" / "yes" / "another name.wav").unlink(missing_ok=True)
