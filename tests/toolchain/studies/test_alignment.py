"""Which heads word times are taken from: the model's own list, or the upper half of its decoder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

import leanear
from leanear.cli.commands import run
from leanear.deploy.deployment_stages import export_stage
from leanear.families.whisper import WhisperCheckpoint
from leanear.families.whisper.model import alignment_of
from leanear.progress import Narrator
from leanear.runtimes.clips import Clips, write_clips
from leanear.runtimes.errors import BadInput
from tests.export.whisper_cases import small_whisper
from tests.toolchain.speech_folder import write_speech_folder
from tests.whisper_models import make_extractor, make_tokenizer, make_whisper, write_whisper

pytestmark = pytest.mark.usefixtures("measured_here")


def tiny(folder: Path = Path("tiny"), **settings) -> WhisperCheckpoint:
    return WhisperCheckpoint(folder, make_whisper(seed=5, **settings), make_extractor(), make_tokenizer())


def clips(count: int = 2) -> list[np.ndarray]:
    return [(0.1 * np.random.default_rng(n).standard_normal(24_000)).astype(np.float32) for n in range(count)]


def test_the_models_own_list_is_taken(tmp_path):
    checkpoint = tiny(alignment_heads=((1, 1), (0, 0), (1, 1)))
    found = alignment_of(checkpoint)
    assert (found.heads, found.chosen_by, found.lost) == (((0, 0), (1, 1)), "generation_config", 0)
    assert found.filter_positions == checkpoint.model.config.median_filter_width


def test_what_was_pruned_is_counted(tmp_path):
    (tmp_path / "pruning.json").write_text(json.dumps({"alignment_heads": {"kept": [], "dropped": [[0, 1], [1, 1]]}}))
    assert alignment_of(tiny(tmp_path)).lost == 2
    (tmp_path / "pruning.json").write_text(json.dumps({"goal": 1}))
    assert alignment_of(tiny(tmp_path)).lost == 0
    (tmp_path / "pruning.json").write_text(json.dumps({"alignment_heads": {"kept": [], "dropped": [[0]]}}))
    with pytest.raises(BadInput, match=r"pruning\.json, alignment_heads: dropped\[0\] is \[0\], expected a list of 2"):
        alignment_of(tiny(tmp_path))


def test_without_a_list_it_is_the_upper_half_of_the_heads_that_there_are():
    checkpoint = tiny(alignment_heads=(), layers=3)
    found = alignment_of(checkpoint)
    assert (found.heads, found.chosen_by) == (((1, 0), (1, 1), (2, 0), (2, 1)), "upper half")
    slim = replace(tiny(alignment_heads=()), model=small_whisper("fewer heads"))
    slim.model.generation_config.alignment_heads = None
    assert alignment_of(slim).heads == ((1, 0),)


def test_export_says_which_heads_were_taken_and_what_is_lost(tmp_path, capsys, caplog):
    folder = write_whisper(tmp_path / "tiny", make_whisper(alignment_heads=((1, 1),)))
    (folder / "pruning.json").write_text(json.dumps({"alignment_heads": {"kept": [], "dropped": [[0, 1]]}}))
    data, out = tmp_path / "data", tmp_path / "artifact"
    data.mkdir()
    for number, clip in enumerate(clips(8)):
        soundfile.write(data / f"{number}.wav", clip, 16_000)
    rows = "".join(f"{number}.wav,the word\n" for number in range(8))
    (data / "metadata.csv").write_text(f"file_name,text\n{rows}")
    assert run(["export", str(folder), "--word-timestamps", "--data", str(data), "--out", str(out)]) == 0
    assert "word times from 1 head that generation_config.json names; 1 more of the model's own list" in caplog.text
    alignment = json.loads((out / "manifest.json").read_text())["alignment"]
    assert alignment.pop("moved") < 1e-3
    assert alignment == {"heads": [[1, 1]], "chosen_by": "generation_config", "lost": 1, "filter_positions": 7}


def test_a_deployments_slim_model_is_made_for_words_where_they_are_asked_for(tmp_path):
    """Exported again when that changes, kept when it does not."""
    source = write_whisper(tmp_path / "tiny", make_whisper(alignment_heads=()))
    folder = tmp_path / "deployment"
    (folder / "clips").mkdir(parents=True)
    heard = Clips(tuple(clips(8)), np.zeros(0), tuple("abcdefgh"), (), 16_000, ("the word",) * 8)
    write_clips(folder / "clips" / "calibration.npz", heard)

    def stage(**asked) -> tuple[bool, dict]:
        common = (folder, folder / "slim", "slim", source, "tiny", "onnxruntime", "fp32", Narrator("quiet"))
        ran = export_stage(*common, window="full", **asked)
        return ran, json.loads((folder / "slim" / "manifest.json").read_text())

    assert "alignment" not in stage()[1]
    ran, manifest = stage(word_timestamps=True)
    assert ran
    assert manifest["alignment"]["chosen_by"] == "upper half"
    assert not stage(word_timestamps=True)[0]
    ran, manifest = stage()
    assert ran
    assert "alignment" not in manifest


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("demo-ast", "--target", "cpu"), "--word-timestamps: it is for Whisper; demo-ast is a classifier"),
        (("demo-whisper", "--target", "rtx"), "--word-timestamps: TensorRT's fused kernels give no attention"),
    ],
)
def test_a_deployment_without_words_is_refused_before_any_work(arguments, complaint, tmp_path, capsys):
    assert run(["deploy", *arguments, "--word-timestamps", "--out", str(tmp_path / "out")]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_words_in_python(tmp_path):
    data = write_speech_folder(tmp_path / "data", ["the word"] * 8)
    model = leanear.load(write_whisper(tmp_path / "tiny"))
    waveform = clips()[0]
    with model.export(tmp_path / "timed", word_timestamps=True, data=data).open() as session:
        segments = session.transcribe(waveform, word_timestamps=True)
        assert segments
        assert ["".join(word.text for word in segment.words) for segment in segments] == [s.text for s in segments]
        assert session.transcribe(waveform)[0].words is None
    with model.export(tmp_path / "plain", data=data).open() as session, pytest.raises(BadInput, match="do not give"):
        session.transcribe(waveform, word_timestamps=True)
