"""Whisper folders that are damaged, or make no sense: one line each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leanear.families.checkpoint import load_checkpoint
from leanear.runtimes.errors import BadInput
from tests.toolchain.whisper_surgery import edit, saved


def edit_weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def larger_vocabulary(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer.json").read_text())
    more = {**settings["added_tokens"][-1], "id": 387, "content": "<|2.02|>"}
    edit(folder / "tokenizer.json", added_tokens=[*settings["added_tokens"], more])


def without_token(folder: Path, token: str) -> None:
    settings = json.loads((folder / "tokenizer.json").read_text())
    added = [
        {**entry, "content": "<|x|>"} if entry["content"] == token else entry for entry in settings["added_tokens"]
    ]
    edit(folder / "tokenizer.json", added_tokens=added)
    edit(folder / "tokenizer_config.json", extra_special_tokens=[])  # or it would be added again


K_PROJ = "model.decoder.layers.1.encoder_attn.k_proj.weight"
FAULTS = {
    "no front end": (
        lambda folder: (folder / "preprocessor_config.json").unlink(),
        r"preprocessor_config\.json: no such file",
    ),
    "front end damaged": (
        lambda folder: (folder / "preprocessor_config.json").write_text("{"),
        r"preprocessor_config\.json: not JSON",
    ),
    "window too long": (
        lambda folder: edit(folder / "preprocessor_config.json", chunk_length=30),
        r"preprocessor_config\.json: chunk_length is 30 s, 3000 frames, a window longer than the model's: "
        r"max_source_positions in config\.json is 100, for 200 frames",
    ),
    "window too short": (
        lambda folder: edit(folder / "preprocessor_config.json", chunk_length=1),
        r"chunk_length is 1 s, 100 frames, a window shorter than the model's",
    ),
    "other mel bins": (
        lambda folder: edit(folder / "preprocessor_config.json", feature_size=128),
        r"preprocessor_config\.json: feature_size is 128, but config\.json says 80",
    ),
    "no tokenizer": (
        lambda folder: [(folder / name).unlink() for name in ("tokenizer.json", "vocab.json")],
        r"tokenizer\.json: no such file; the tokenizer's vocabulary is needed",
    ),
    "tokenizer damaged": (
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        r"tokenizer\.json: not a Whisper tokenizer",
    ),
    "tokenizer of something else": (
        lambda folder: (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Bread"}}'),
        r"tokenizer\.json: not a Whisper tokenizer",
    ),
    "vocabulary too large": (
        larger_vocabulary,
        r"tokenizer\.json: the vocabulary has 388 tokens, but the model 387 \(vocab_size in config\.json\)",
    ),
    "vocabulary too small": (
        lambda folder: edit(
            folder / "tokenizer.json",
            added_tokens=json.loads((folder / "tokenizer.json").read_text())["added_tokens"][:-30],
        ),
        r"tokenizer\.json: the vocabulary has 357 tokens, fewer than the model's 387",
    ),
    "no start token": (
        lambda folder: without_token(folder, "<|startoftranscript|>"),
        r"tokenizer\.json: it has no '<\|startoftranscript\|>'",
    ),
    "other start token": (
        lambda folder: edit(folder / "config.json", decoder_start_token_id=3),
        r"config\.json: decoder_start_token_id is 3, but '<\|startoftranscript\|>' of the tokenizer is 275",
    ),
    "no generation settings": (
        lambda folder: (folder / "generation_config.json").unlink(),
        r"generation_config\.json: no such file; Whisper's decoding rules are needed",
    ),
    "generation settings damaged": (
        lambda folder: (folder / "generation_config.json").write_text("[]"),
        r"generation_config\.json: not generation settings",
    ),
    "another id for no timestamps": (
        lambda folder: edit(folder / "generation_config.json", no_timestamps_token_id=9),
        r"no_timestamps_token_id is 9, but '<\|notimestamps\|>' of the tokenizer is 285",
    ),
    "no languages": (
        lambda folder: edit(folder / "generation_config.json", lang_to_id={}),
        r"generation_config\.json: it has no lang_to_id, (which a multilingual model needs|and the tokenizer no such)",
    ),
    "a task that it has not": (
        lambda folder: edit(folder / "generation_config.json", task="sing"),
        r"generation_config\.json: task is 'sing', but it has transcribe, translate",
    ),
    "forced to say something": (
        lambda folder: edit(folder / "generation_config.json", forced_decoder_ids=[[1, 3]]),
        r"generation_config\.json: forced_decoder_ids forces token 3, which is neither a language nor a task",
    ),
    "forced out of order": (
        lambda folder: edit(folder / "config.json", forced_decoder_ids=[[2, 3]]),
        r"/config\.json: forced_decoder_ids has \[2, 3\], where \[1, a token\] is wanted",
    ),
    "nothing says how many languages": (
        lambda folder: edit(folder / "generation_config.json", is_multilingual=None, lang_to_id=None, task_to_id=None),
        r"generation_config\.json: nothing says whether the model is multilingual; set is_multilingual",
    ),
    "English alone, and translating": (
        lambda folder: edit(folder / "generation_config.json", is_multilingual=False, task="translate"),
        r"generation_config\.json: task is 'translate', but the model knows English alone",
    ),
    "another language": (
        lambda folder: edit(folder / "generation_config.json", lang_to_id={"<|en|>": 277}),
        r"generation_config\.json: lang_to_id says that '<\|en\|>' is 277, and the tokenizer 276",
    ),
    "a task of none": (
        lambda folder: edit(folder / "generation_config.json", task_to_id={"sing": 3}),
        r"task_to_id says that '<\|sing\|>' is 3, and the tokenizer None",
    ),
    "suppressed beyond": (
        lambda folder: edit(folder / "generation_config.json", suppress_tokens=[1, 50000]),
        r"generation_config\.json: suppress_tokens holds 50000, which no token of the model is",
    ),
    "alignment heads malformed": (
        lambda folder: edit(folder / "generation_config.json", alignment_heads=[3]),
        r"generation_config\.json: alignment_heads names 3",
    ),
    "impossible model": (
        lambda folder: edit(folder / "config.json", encoder_attention_heads=5),
        r"config\.json: no model can be built from it",
    ),
    "no decoder": (
        lambda folder: edit(folder / "config.json", decoder_layers=0),
        r"config\.json: decoder_layers is 0; there is no attention to prune",
    ),
    "heads of two widths": (
        lambda folder: edit(folder / "config.json", decoder_attention_heads=2),
        r"config\.json: encoder_attention_heads is 4 and decoder_attention_heads 2; heads of two widths",
    ),
    "another activation": (
        lambda folder: edit(folder / "config.json", activation_function="gelu_new"),
        r"config\.json: activation_function is 'gelu_new'; only 'gelu' can be exported",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"weights cannot be read"),
    "weights damaged": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"0" * 100),
        r"weights cannot be read",
    ),
    "weights of another shape": (
        lambda folder: edit_weights(folder, lambda tensors: tensors.update({K_PROJ: torch.zeros(16, 32)})),
        rf"'{K_PROJ}' has another shape in the weights than config\.json says",
    ),
    "a weight missing": (
        lambda folder: edit_weights(folder, lambda tensors: tensors.pop(K_PROJ)),
        rf"the weights lack '{K_PROJ}' \(1 tensors missing\)",
    ),
    "weights not finite": (
        lambda folder: edit_weights(folder, lambda tensors: tensors[K_PROJ].fill_(float("nan"))),
        rf"the weights hold NaN or infinite values, in '{K_PROJ}'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_checkpoints_are_one_line(dense_folder, tmp_path, fault):
    folder = tmp_path / "broken"
    shutil.copytree(dense_folder, folder)
    damage, line = FAULTS[fault]
    damage(folder)
    with pytest.raises(BadInput, match=line) as refused:
        load_checkpoint(folder)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"query_key_widths": [[8]]},
            r"config\.json: no model can be built from it \(query_key_widths and .* 6 blocks",
        ),
        ({"value_output_widths": [[4]] * 6}, r"has another shape in the weights than config\.json says"),
        ({"query_key_widths": "wide"}, r"config\.json: no model can be built from it"),
    ],
)
def test_bad_slim_checkpoints_are_one_line(dense_folder, pruned, tmp_path, changes, line):
    _, folder = saved(dense_folder, pruned[0], tmp_path / "slim")
    edit(folder / "config.json", **changes)
    with pytest.raises(BadInput, match=line):
        load_checkpoint(folder)


def test_an_unknown_family_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(BadInput, match=r"model_type is 'bert'; leanear takes .* and Whisper \(whisper\)"):
        load_checkpoint(tmp_path)
