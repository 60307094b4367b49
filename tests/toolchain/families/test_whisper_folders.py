"""Whisper: folders that stand alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import WhisperProcessor

from leanear.families import whisper
from leanear.families.checkpoint import CHECKPOINT_FILES, checkpoint_sha256, load_checkpoint
from leanear.plan import read_plan
from leanear.runtimes.errors import BadInput
from tests.conftest import tone
from tests.toolchain.whisper_surgery import edit, generated, logits, plan_of, saved
from tests.whisper_models import make_extractor, make_tokenizer


def test_a_slim_folder_comes_back_as_it_was(dense_folder, pruned, inputs, heard, tmp_path):
    slim, folder = saved(dense_folder, pruned[0], tmp_path / "slim")
    checkpoint = load_checkpoint(folder)
    assert isinstance(checkpoint, whisper.WhisperCheckpoint)
    assert checkpoint.model.config.query_key_widths
    assert torch.equal(logits(checkpoint.model, inputs), logits(slim, inputs))
    assert generated(checkpoint.model, heard) == generated(slim, heard)
    assert [site.scaling for site in whisper.attention_sites(checkpoint.model)] == [8**-0.5] * 6, "a constant"
    assert read_plan(folder / "plan.json").sites == pruned[0]
    assert json.loads((folder / "config.json").read_text())["model_type"] == "slim-whisper"
    assert WhisperProcessor.from_pretrained(folder).tokenizer.english_spelling_normalizer == {"colour": "color"}
    assert whisper.decoding_settings(checkpoint) == whisper.decoding_settings(whisper.load_checkpoint(dense_folder))


def test_a_slim_folder_can_be_saved_by_transformers_and_read_again(dense_folder, pruned, inputs, tmp_path):
    slim, folder = saved(dense_folder, pruned[0], tmp_path / "slim")
    shutil.copytree(folder, tmp_path / "again")
    whisper.load_checkpoint(folder).model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(whisper.load_checkpoint(tmp_path / "again").model, inputs), logits(slim, inputs))


ALONE = """
import json, sys
for name in ("toolchain", "calibration", "export", "runtimes", "benchmarks"):
    sys.modules[name] = None  # importing it fails
import torch
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor
torch.set_num_threads(1)
model = AutoModelForSpeechSeq2Seq.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
clip = torch.load(sys.argv[2], weights_only=True).numpy()
heard = processor(clip, sampling_rate=16000, return_tensors="pt").input_features
tokens = {
    name: model.generate(heard, language="en", max_new_tokens=24, **settings).tolist()
    for name, settings in json.loads(sys.argv[3]).items()
}
text = processor.batch_decode(tokens["greedy"])
print(json.dumps({"module": type(model).__module__, "tokens": tokens, "text": text}))
"""


def test_a_folder_opens_where_leanear_is_not_installed(dense_folder, pruned, tmp_path):
    slim, folder = saved(dense_folder, pruned[0], tmp_path / "slim")
    clip = tone(700, 1.2)
    torch.save(torch.from_numpy(clip), tmp_path / "clip.pt")
    ways = {
        "greedy": {}, "uncached": {"use_cache": False}, "beams": {"num_beams": 3}, "timed": {"return_timestamps": True},
    }  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-c", ALONE, folder, tmp_path / "clip.pt", json.dumps(ways)],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    assert said["module"].startswith("transformers_modules.")
    heard = whisper.features(make_extractor(), [clip])
    for name, settings in ways.items():
        assert said["tokens"][name] == generated(slim, heard, **settings), name
    assert said["text"] == make_tokenizer().batch_decode(said["tokens"]["greedy"])


def test_not_finite_weights_are_not_written(dense_folder, dense, pruned, tmp_path):
    checkpoint = whisper.load_checkpoint(dense_folder)
    slim = whisper.slim_model(dense, pruned[0])
    slim.model.decoder.layers[0].fc1.weight.data[0, 0] = float("nan")
    with pytest.raises(BadInput, match=r"not written, because .* in 'model\.decoder\.layers\.0\.fc1\.weight'"):
        whisper.save_slim_checkpoint(slim, checkpoint, plan_of(dense, pruned[0]), tmp_path / "slim")
    assert not (tmp_path / "slim").exists()


def test_every_file_that_is_read_counts_for_the_identity(dense_folder, pruned, tmp_path):
    _, folder = saved(dense_folder, pruned[0], tmp_path / "slim")
    unnamed = {path.name for path in folder.iterdir()} - set(CHECKPOINT_FILES)
    assert unnamed == {"modeling_slim_whisper.py"}
    before = checkpoint_sha256(folder)
    edit(folder / "generation_config.json", max_initial_timestamp_index=7)
    assert checkpoint_sha256(folder) != before
