"""Models that are refused before any work: of another size than their weights, adapters, heads that are no classes."""

from __future__ import annotations

import json
import re
import time

import pytest
import torch

from leanear.cli.commands import run
from leanear.families.checkpoint import checkpoint_folder, checkpoint_sha256, load_checkpoint
from leanear.families.registry import task_of
from leanear.runtimes.errors import BadInput
from tests.whisper_models import write_whisper


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("wrong", [1, 3, 100_000])
def test_layers_are_counted_in_the_weights(tiny_folder, tmp_path, wrong):
    whisper = write_whisper(tmp_path / "whisper")
    for folder, key in ((tiny_folder, "num_hidden_layers"), (whisper, "decoder_layers")):
        change_config(folder, **{key: wrong})
        start = time.monotonic()
        with pytest.raises(BadInput, match=f"{key} is {wrong}, but the weights are those of 2$"):
            load_checkpoint(folder)
        assert time.monotonic() - start < 30, "no model of so many layers was made"


def test_layers_are_counted_in_shards(tiny_ast, tiny_folder, tmp_path):
    sharded = tmp_path / "sharded"
    tiny_ast.save_pretrained(sharded, max_shard_size="20KB")
    (sharded / "preprocessor_config.json").write_bytes((tiny_folder / "preprocessor_config.json").read_bytes())
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    load_checkpoint(sharded)
    change_config(sharded, num_hidden_layers=3)
    with pytest.raises(BadInput, match="the weights are those of 2$"):
        load_checkpoint(sharded)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("hidden_size", 3_200_000, "hidden_size is 3200000, but the weights are those of 32$"),
        ("num_labels", 10**9, "num_labels is 1000000000, but the weights are those of 5$"),
        ("intermediate_size", 10**9, "a model of 130,.* parameters, but the weights hold "),
    ],
)
def test_no_model_is_built_that_the_weights_cannot_fill(tiny_folder, key, value, said):
    change_config(tiny_folder, **{key: value})
    with pytest.raises(BadInput, match=said):
        load_checkpoint(tiny_folder)


@pytest.mark.parametrize(
    ("name", "key", "value", "said"),
    [
        ("preprocessor_config.json", "sampling_rate", 10**9, "sampling_rate is 1000000000; a whole number from 1 to"),
        ("preprocessor_config.json", "hop_length", "160", "hop_length is '160'; a whole number from 1 to 65,536"),
        ("preprocessor_config.json", "hop_length", 161, "preprocessor_config.json: "),
        ("preprocessor_config.json", "n_fft", 10**12, "n_fft is 1000000000000; a whole number"),
        ("preprocessor_config.json", "padding_value", "x", "padding_value is 'x'; a number is wanted"),
        ("preprocessor_config.json", "padding_side", "up", "no features can be made by it"),
        ("config.json", "pad_token_id", 10**6, "config.json: no model can be built from it"),
        ("generation_config.json", "language", 5, "language is 5; a name is wanted"),
        ("generation_config.json", "task", ["translate"], "task is ['translate']; a name is wanted"),
        ("generation_config.json", "is_multilingual", "no", "is_multilingual is 'no'; true or false is wanted"),
        ("generation_config.json", "alignment_heads", 7, "alignment_heads is 7; a list is wanted"),
        ("generation_config.json", "max_initial_timestamp_index", -1, "max_initial_timestamp_index is -1; a number"),
        ("generation_config.json", "lang_to_id", [1], "lang_to_id is [1]; a table is wanted"),
    ],
)
def test_settings_of_a_whisper_that_cannot_be_meant(tmp_path, name, key, value, said):
    folder = write_whisper(tmp_path / "whisper")
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(BadInput, match=re.escape(said)) as refused:
        load_checkpoint(folder)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("text", ['{"a":' * 100_000, '{"a": ' + "1" * 5000 + "}", "[]", "\ufeff{}"])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_what_is_no_settings_at_all(tiny_folder, name, text):
    (tiny_folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=rf"{name}: not (JSON|an object)"):
        load_checkpoint(tiny_folder)


@pytest.mark.parametrize("text", [None, "{}", '{"weight_map": {"a": "gone.safetensors"}}', "[1]"])
def test_weights_that_are_not_there(tiny_folder, text):
    (tiny_folder / "model.safetensors").unlink()
    if text is not None:
        (tiny_folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(BadInput, match="weights cannot be read"):
        load_checkpoint(tiny_folder)


def test_adapters(tiny_folder, tmp_path, capsys):
    before = checkpoint_sha256(tiny_folder)
    (tiny_folder / "adapter_config.json").write_text("{}")
    assert checkpoint_sha256(tiny_folder) != before
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "adapter_config.json").write_text("{}")
    for folder in (tiny_folder, alone):
        for command in ("prune", "export"):
            assert run([command, str(folder), "--out", str(tmp_path / "out"), "--data", str(tmp_path)]) == 2
            said = capsys.readouterr().err
            assert "adapter_config.json: an adapter, not a whole model; merge it" in said.splitlines()[-1]
            assert "merge_and_unload" in said
        with pytest.raises(BadInput, match="an adapter"):
            checkpoint_folder(str(folder))
    with pytest.raises(BadInput, match="an adapter"):
        load_checkpoint(tiny_folder)


@pytest.mark.parametrize("logits", [1, 5])
def test_heads_whose_logits_are_not_of_classes(tiny_ast, tiny_folder, logits):
    if logits == 1:
        save_one_logit(tiny_ast, tiny_folder)
    change_config(tiny_folder, problem_type="regression")
    with pytest.raises(BadInput, match="config.json: problem_type is 'regression'; leanear takes classifiers: single"):
        load_checkpoint(tiny_folder)


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        (None, "audio-classification"),
        ("single_label_classification", "audio-classification"),
        ("multi_label_classification", "audio-tagging"),
    ],
)
def test_the_kind_of_problem_decides(tiny_folder, kind, task):
    change_config(tiny_folder, problem_type=kind)
    assert load_checkpoint(tiny_folder).task == task_of(tiny_folder) == task


def save_one_logit(model, folder):
    model.config.id2label = {0: "yes"}
    model.classifier.dense = torch.nn.Linear(32, 1)
    model.save_pretrained(folder)


def test_one_logit_is_a_yes_or_no(tiny_ast, tiny_folder):
    save_one_logit(tiny_ast, tiny_folder)
    assert load_checkpoint(tiny_folder).task == task_of(tiny_folder) == "audio-tagging"


def test_two_classes_of_one_name(tiny_folder):
    change_config(tiny_folder, id2label={"0": "down", "1": "left", "2": "right", "3": "left", "4": "yes"})
    with pytest.raises(BadInput, match="config.json: id2label names both 1 and 3 'left'"):
        load_checkpoint(tiny_folder)


def test_a_deployment_is_no_model_but_has_two(tmp_path):
    for part in ("dense", "slim"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "manifest.json").write_text("{}")
    with pytest.raises(BadInput, match="a deployment, whose artifacts are dense and slim in it"):
        checkpoint_folder(str(tmp_path))
