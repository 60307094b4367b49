"""The public face: what a user types in six lines, on tiny models."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import ASTFeatureExtractor, AutoModelForAudioClassification

import leanear
from tests.conftest import TINY_LABELS, tone, write_tiny, write_tones
from tests.toolchain.speech_folder import write_speech_folder
from tests.whisper_models import write_whisper


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    write_tiny(folder / "ast")
    write_tones(folder / "data", 4, **{label: 200 + 90 * number for number, label in enumerate(TINY_LABELS)})
    return folder


@pytest.fixture(scope="module")
def slim(folder):
    return leanear.load(folder / "ast").prune(folder / "data", sparsity=0.5, calibration_clips=8)


def test_six_lines(folder, slim, tmp_path):
    artifact = slim.export(tmp_path / "out", target="cpu")
    waveform = tone(300).astype(np.float32)
    with artifact.open() as session:
        logits = session.run(waveform)
    model = AutoModelForAudioClassification.from_pretrained(slim.folder, trust_remote_code=True).eval()
    features = ASTFeatureExtractor(max_length=46, num_mel_bins=128)(waveform, 16_000, return_tensors="pt")
    with torch.no_grad():
        expected = model(**features).logits[0].numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert artifact.evaluate(folder / "data")["clips"] == slim.evaluate(folder / "data")["clips"]
    table = artifact.bench(folder / "data", budget_s=0.2, threads=1).table()
    assert "latency" in table
    assert "not measured" not in table
    assert "accuracy" in table


def test_a_plan_and_the_loss_that_was_measured(slim):
    assert slim.plan.sparsity == pytest.approx(0.5, abs=0.05)
    assert slim.pruning
    assert leanear.load(slim.folder).plan == slim.plan


def test_damage_is_warned_of_without_progress_and_a_recipe_is_followed(folder, tmp_path, caplog, capfd):
    (tmp_path / "recipe.toml").write_text('basis = "weights"\ncompensate = false\n')
    model, given = leanear.load(folder / "ast"), {"recipe": tmp_path / "recipe.toml", "prune": "all"}
    slim = model.prune(folder / "data", sparsity=0.9, calibration_clips=8, **given)
    assert slim.plan.basis == "rotated by weights"
    assert slim.plan.prune == "all"
    assert slim.pruning.compensation is None
    assert slim.pruning.loss.finished.matters
    assert "WARNING: Removing 9" in caplog.text
    assert "pruning" not in capfd.readouterr().err, "progress is not shown"
    with pytest.raises(leanear.BadInput, match="max_drop beside another goal"):
        model.prune(folder / "data", sparsity=0.5, max_drop=1.0)


def test_what_a_full_disk_cuts_short_leaves_nothing_and_is_saved_again(slim, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            slim.save(tmp_path / "kept")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    kept = slim.save(tmp_path / "kept")
    saved, there = (
        {path.relative_to(each).as_posix(): path.read_bytes() for path in each.rglob("*") if path.is_file()}
        for each in (kept.folder, slim.folder)
    )
    assert saved == there


def test_what_is_not_saved_goes_with_the_model(folder, slim, tmp_path):
    kept = slim.save(tmp_path / "kept")
    assert kept.plan == slim.plan
    with pytest.raises(leanear.BadInput, match="something there"):
        slim.save(tmp_path / "kept")
    model = leanear.load(folder / "ast").prune(folder / "data", sparsity=0.3, calibration_clips=4)
    made = model.folder
    assert made.is_dir()
    del model
    assert not made.exists()


def test_errors_are_leanears_own(tmp_path):
    with pytest.raises(leanear.LeanearError, match="no such model"):
        leanear.load(tmp_path / "nothing")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        leanear.nonsense  # noqa: B018


def speech_artifact(folder):
    write_whisper(folder / "whisper")
    write_speech_folder(folder / "speech", ["a", "an and", "the", "on"])
    return leanear.load(folder / "whisper").export(folder / "transcriber", data=folder / "speech")


def test_speech(tmp_path):
    with speech_artifact(tmp_path).open(threads=1) as session:
        segments = session.transcribe(np.zeros(16_000, np.float32), temperatures=(0.0,))
        pcm = np.random.default_rng(0).integers(-3000, 3000, 16_000).astype(np.int16)
        of_pcm, of_floats = (
            session.transcribe(sound, temperatures=(0.0,)) for sound in (pcm, pcm.astype(np.float32) / 32768)
        )
        assert of_pcm == of_floats
        with pytest.raises(leanear.BadInput, match="int16 samples, got int64"):
            session.transcribe(pcm.astype(np.int64))
        with pytest.raises(leanear.BadInput, match="transcribe"):
            session.run(np.zeros(16_000, np.float32))
    assert all(isinstance(segment.text, str) for segment in segments)


def test_a_closed_session_says_so_and_closes_again(folder, slim, tmp_path):
    speech = speech_artifact(tmp_path)
    for artifact, use in ((slim.export(tmp_path / "out"), "run"), (speech, "transcribe")):
        session = artifact.open(threads=1)
        session.close()
        session.close()
        with pytest.raises(leanear.BadInput, match="this session is closed; open the artifact again"):
            getattr(session, use)(np.zeros(16_000, np.float32))


def test_options_are_those_of_the_command_line_and_named_where_wrong(folder, slim, tmp_path):
    artifact = speech_artifact(tmp_path)
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, 16_000)
    with artifact.open(threads=1) as session:
        session.transcribe(sound, beam_size=2, condition=True, temperatures=(0.0,), best_of=1, seed=3, timestamps=False)
        for option, said in (
            ({"beams": 2}, "beams: transcribing has no such option; it has language, task, timestamps, beam_size"),
            ({"seed": -1}, "seed is -1, expected a whole number of at least 0"),
            ({"beam_size": "5"}, "beam_size is '5', expected a whole number of at least 1"),
            ({"temperatures": 0.0}, "temperatures is 0.0, expected a list"),
            ({"hotwords": "Anna,Bo"}, "hotwords is 'Anna,Bo', expected a list"),
            ({"hotwords": (1, 2)}, r"hotwords\[0\] is 1, expected a text"),
            ({"batch": 4.0}, "batch is 4.0, expected a whole number of at least 1"),
            ({"batch": "4"}, "batch is '4', expected a whole number of at least 1"),
            ({"batch": True}, "batch is True, expected a whole number of at least 1"),
            ({"condition": "no"}, "condition is 'no', expected true or false"),
            ({"timestamps": 1}, "timestamps is 1, expected true or false"),
            ({"temperatures": ("0",)}, r"temperatures\[0\] is '0', expected a number of at least 0"),
            ({"patience": "1"}, "patience is '1', expected a number"),
            ({"no_speech_limit": True}, "no_speech_limit is True, expected a number or null"),
            ({"prompt": None}, "prompt is None, expected a text"),
            ({"language": 3}, "language is 3, expected a text or null"),
            ({"word_timestamps": "yes"}, "word_timestamps is 'yes', expected true or false"),
            ({"word_timestamps": True}, "^word_timestamps: the graphs .* leanear export CHECKPOINT --word-timestamps "),
        ):
            with pytest.raises(leanear.BadInput, match=said):
                session.transcribe(sound, **option)
    model, data = leanear.load(folder / "ast"), folder / "data"
    for use, option, said in (
        (artifact.open, {"threads": 5000}, "threads: expected a whole number from 1 to 1024, got 5000"),
        (artifact.evaluate, {"threads": 0, "data": tmp_path}, "threads: expected a whole number from 1 to 1024, got 0"),
        (model.evaluate, {"seed": -1, "data": data}, "seed: expected a whole number from 0"),
        (model.export, {"seed": -1, "out": tmp_path / "new"}, "seed: expected a whole number from 0"),
        (model.prune, {"seed": -1, "data": data}, "seed: expected a whole number from 0"),
        (model.prune, {"sparsity": "half", "data": data}, "^sparsity is 'half'; a number is wanted"),
        (model.prune, {"prune": "heads", "data": data}, "^prune is 'heads'; \"attention\" or"),
        (model.prune, {"calibration_clips": 0, "data": data}, "^calibration_clips is 0; a whole number of at least 1"),
    ):
        with pytest.raises(leanear.BadInput, match=said):
            use(**option)
    for asked, said in (
        ({"model": folder / "ast", "task": "transcribe"}, "^task and language are for Whisper; .* is a classifier"),
        (
            {"model": tmp_path / "whisper", "task": "sing"},
            "task is 'sing', expected one of transcribe, translate or null",
        ),
        ({"model": tmp_path / "whisper", "language": 3}, "language is 3, expected a text or null"),
    ):
        with pytest.raises(leanear.BadInput, match=said):
            leanear.load(**asked)
    assert not (tmp_path / "new").exists()


def test_samples_far_beyond_full_scale_are_told_once(slim, tmp_path, caplog):
    with slim.export(tmp_path / "out").open(threads=1) as session:
        for _ in range(2):
            session.run(tone(300).astype(np.float32) * 30_000)
    assert len(caplog.messages) == 1
    assert "waveform: it holds samples up to" in caplog.text
    assert "where 1 is full scale" in caplog.text


def test_importing_it_imports_nothing_else():
    program = "import sys, leanear; print([n for n in ('torch', 'numpy', 'click', 'onnxruntime') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_a_device_opens_artifacts_without_the_workstations_libraries(slim, tmp_path):
    slim.export(tmp_path / "out")
    program = (
        "import json, sys\n"
        "for name in ('torch', 'transformers', 'click', 'rich', 'onnx'):\n"
        "    sys.modules[name] = None\n"
        "import leanear, numpy\n"
        "session = leanear.open_artifact(sys.argv[1]).open(threads=1)\n"
        "print(json.dumps(session.run(numpy.zeros(8000, numpy.float32)).tolist()))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "out")]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    assert len(json.loads(ended.stdout)) == len(TINY_LABELS)
