"""The control that trains a plan's widths from nothing: what it reads, builds and reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from leanear.benchmarks.peers.from_scratch import Heard, describe, main, new_slim_model, read_schedule, read_widths
from leanear.families.ast import attention_sites, dense_plan
from leanear.plan import write_plan
from leanear.runtimes.errors import BadInput
from leanear.studies.demo.training import new_model

LAYERS = 6


def bare(path: Path, query_key: list[list[int]], value_output: list[list[int]]) -> Path:
    path.write_text(json.dumps({"query_key_widths": query_key, "value_output_widths": value_output}))
    return path


def test_widths_come_from_a_plan_or_from_bare_lists(tmp_path: Path):
    write_plan(tmp_path / "plan.json", dense_plan(new_model(0)))
    from_plan = read_widths(tmp_path / "plan.json")
    assert from_plan == read_widths(bare(tmp_path / "bare.json", [[64] * 4] * LAYERS, [[64] * 4] * LAYERS))


@pytest.mark.parametrize(
    ("query_key", "value_output", "said"),
    [
        ([[8]] * 5, [[8]] * 5, "5 layers"),
        ([[8]] * 5 + [[]], [[8]] * 5 + [[]], "0 heads"),
        ([[8, 8]] * LAYERS, [[8]] * LAYERS, "numbers of heads"),
        ([[0]] * LAYERS, [[8]] * LAYERS, "whole numbers"),
        ([[8.5]] * LAYERS, [[8]] * LAYERS, "whole numbers"),
    ],
)
def test_widths_that_make_no_demo_ast_are_refused(tmp_path: Path, query_key, value_output, said):
    with pytest.raises(BadInput, match=said):
        read_widths(bare(tmp_path / "bare.json", query_key, value_output))


def test_the_slim_model_has_the_widths_and_the_dense_softmax_scale(tmp_path: Path):
    query_key, value_output = [[8, 12 + layer] for layer in range(LAYERS)], [[4 + layer, 20] for layer in range(LAYERS)]
    model = new_slim_model(read_widths(bare(tmp_path / "bare.json", query_key, value_output)), seed=0)
    for layer, site in enumerate(attention_sites(model)):
        assert (list(site.query_key_widths), list(site.value_output_widths)) == (query_key[layer], value_output[layer])
        assert site.scaling == attention_sites(new_model(0))[layer].scaling
        assert not any(torch.any(linear.bias) for linear in (site.query, site.key, site.value, site.output))
    config = new_model(0).config
    assert model.config.id2label == config.id2label
    assert (model.config.hidden_size, model.config.max_length) == (config.hidden_size, config.max_length)


def test_the_schedule_is_the_dense_models_over_more_steps(tmp_path: Path):
    (tmp_path / "schedule.json").write_text(json.dumps({"steps": 50, "batch": 7, "seed": 3}))
    schedule = read_schedule(tmp_path, 20, None)
    assert (schedule.steps, schedule.batch, schedule.seed) == (70, 7, 3)
    assert read_schedule(tmp_path, 20, 9).steps == 9


def test_quality_agrees_with_scipy():
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=40)
    one, dense = (Heard(rng.standard_normal((40, 5)).astype(np.float32), labels) for _ in range(2))
    said = describe(new_model(0), one, dense)
    shares, dense_shares = softmax(one.logits, axis=1), softmax(dense.logits, axis=1)
    assert said["kl_to_dense_nats"] == pytest.approx(rel_entr(dense_shares, shares).sum(axis=1).mean(), rel=1e-5)
    losses = -np.log(shares[np.arange(40), labels])
    assert said["cross_entropy_nats"] == pytest.approx(losses.mean(), rel=1e-5)
    right, dense_right = shares.argmax(1) == labels, dense_shares.argmax(1) == labels
    assert said["only_this_correct"] - said["only_dense_correct"] == right.sum() - dense_right.sum()
    same = describe(new_model(0), dense, dense)
    assert same["kl_to_dense_nats"] == same["cross_entropy_change_nats"] == 0


def test_a_work_folder_without_the_speech_is_refused_in_one_line(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("leanear.benchmarks.peers.from_scratch.signal.signal", lambda *_: None)
    plan = bare(tmp_path / "bare.json", [[8]] * LAYERS, [[8]] * LAYERS)
    assert main(["--work", str(tmp_path), "--plan", str(plan), "--out", str(tmp_path / "out")]) != 0
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "speech-train.npz is missing" in said[0]
