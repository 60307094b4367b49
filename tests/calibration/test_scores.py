"""Scores against pencil and paper, against brute force, and against identities that they must obey."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from leanear.calibration.scores import (
    collect_curvature,
    curvature_from_tensors,
    curvature_tensors,
    score_fisher,
    score_magnitude,
)
from leanear.calibration.shards import keep_tensors, kept_tensors
from leanear.calibration.sites import AttentionSite
from leanear.families import ast
from leanear.plan import HeadPlan, SitePlan
from leanear.runtimes.errors import BadInput
from tests.conftest import make_tiny_ast

PROJECTIONS = ("query", "key", "value", "output")


class OneToken(nn.Module):
    """An attention block for a single token: softmax over one key is 1, so y = O V x and scores do not matter.

    To give query and key gradients of their own, sum(q * k) is added to the loss.
    """

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(2, 2, bias=False) for _ in PROJECTIONS)
        self.query.weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        self.key.weight.data = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        self.value.weight.data = torch.tensor([[1.0, -1.0], [2.0, 0.0]])
        self.output.weight.data = torch.tensor([[1.0, 4.0], [0.0, -5.0]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.value(x)).sum(dim=-1) + (self.query(x) * self.key(x)).sum(dim=-1)

    def site(self) -> AttentionSite:
        projections = {name: getattr(self, name) for name in PROJECTIONS}
        return AttentionSite("toy", self, **projections, query_key_widths=(1, 1), value_output_widths=(1, 1), scaling=1)


def mean_loss(model: nn.Module, inputs: torch.Tensor, label_ids: torch.Tensor) -> torch.Tensor:
    return (model(inputs) * label_ids).mean()


def test_magnitude_by_hand():
    (scores,) = score_magnitude((OneToken().site(),))
    assert [head.tolist() for head in scores.query_key] == [[2.0], [1.5]]  # (1+3)/2, (2+1)/2
    assert [head.tolist() for head in scores.value_output] == [[1.5], [5.5]]  # (2+1)/2, (2+9)/2
    assert scores.head.tolist() == [1.75, 3.5]  # (1+3+2+1)/4, (2+1+2+9)/4


def test_fisher_by_hand():
    """One clip per batch, x = (1, 2) with weight 1 and x = (1, 0) with weight 3, two batches.

    L = w (o V x + q.k), o = column sums of O = (1, -1).
    dL/dV = w o x^T: batch 1 [[1, 2], [-1, -2]], batch 2 [[3, 0], [-3, 0]]; squares by row 5, 5 and 9, 9: mean 7, 7.
    dL/dO has both rows w (V x): V x = (-1, 2), then (1, 2) * 3; squares by column 2, 8 and 18, 72: mean 10, 40.
    dL/dQ = w k x^T with k = (3, 2), then 3 (3, 0): rows 9*5, 4*5 and 81, 0: mean 63, 10.
    dL/dK = w q x^T with q = (1, 4), then 3 (1, 0): rows 1*5, 16*5 and 9, 0: mean 7, 40.
    """
    model = OneToken()
    inputs, weights = torch.tensor([[1.0, 2.0], [1.0, 0.0]]), torch.tensor([1.0, 3.0])
    curvature = collect_curvature(model, (model.site(),), inputs, weights, mean_loss, batch_size=1)
    assert curvature.batches == 2
    (scores,) = score_fisher((model.site(),), curvature, damping=0.0)
    assert [head.tolist() for head in scores.query_key] == [[70.0], [50.0]]
    assert [head.tolist() for head in scores.value_output] == [[17.0], [47.0]]
    assert scores.head.tolist() == [87.0, 97.0]
    (damped,) = score_fisher((model.site(),), curvature, damping=0.5)
    assert [head.tolist() for head in damped.query_key] == [[72.0], [52.0]], "two weights of two matrices, 0.5 each"
    assert damped.head.tolist() == [91.0, 101.0]


def batches_of(model, clips: int = 12):
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(clips, model.config.max_length, model.config.num_mel_bins, generator=generator)
    return inputs, torch.randint(model.config.num_labels, (clips,), generator=generator)


def ragged_slim():
    heads = ((HeadPlan(0, (0, 3, 5), (1, 2)), HeadPlan(1, (2,), (0, 4, 7, 9))), (HeadPlan(1, (1, 2, 3, 8), (5,)),))
    return ast.slim_model(make_tiny_ast(), tuple(SitePlan(f"layers.{i}.attention", 2, h) for i, h in enumerate(heads)))


@pytest.mark.parametrize("build", [make_tiny_ast, ragged_slim])
@pytest.mark.parametrize("clips_at_once", [None, 3])
def test_fisher_equals_brute_force(build, clips_at_once):
    """Against full weight gradients of every batch, squared and sliced head by head in loops."""
    model = build()
    inputs, label_ids = batches_of(model)
    sites = ast.attention_sites(model)
    curvature = collect_curvature(
        model, sites, inputs, label_ids, ast.batch_loss, batch_size=4, clips_at_once=clips_at_once,
        recomputed_layers=ast.encoder_layers(model),
    )  # fmt: skip
    fisher = {(site.name, name): torch.zeros_like(getattr(site, name).weight) for site in sites for name in PROJECTIONS}
    for start in range(0, 12, 4):
        model.zero_grad()
        ast.batch_loss(model, inputs[start : start + 4], label_ids[start : start + 4]).backward()
        for site in sites:
            for name in PROJECTIONS:
                fisher[site.name, name] += getattr(site, name).weight.grad ** 2 / 3
    for site, scores in zip(sites, score_fisher(sites, curvature), strict=True):
        q, k, v, o = (fisher[site.name, name].double() + 1e-6 for name in PROJECTIONS)
        row = 0
        for head, width in enumerate(site.query_key_widths):
            expected = [float(q[row + c].sum() + k[row + c].sum()) for c in range(width)]
            assert scores.query_key[head] == pytest.approx(expected, rel=1e-4)
            row += width
        row = 0
        for head, width in enumerate(site.value_output_widths):
            expected = [float(v[row + c].sum() + o[:, row + c].sum()) for c in range(width)]
            assert scores.value_output[head] == pytest.approx(expected, rel=1e-4)
            row += width
            total = scores.query_key[head].sum() + scores.value_output[head].sum()
            assert scores.head[head] == pytest.approx(total, rel=1e-9)


def test_magnitude_of_a_head_is_half_the_sum_of_its_channels():
    for scores in score_magnitude(ast.attention_sites(ragged_slim())):
        channels = [q.sum() + v.sum() for q, v in zip(scores.query_key, scores.value_output, strict=True)]
        assert scores.head == pytest.approx(np.array(channels) / 2, rel=1e-9)


def test_magnitude_forgets_a_silenced_channel(tiny_ast):
    site = ast.attention_sites(tiny_ast)[1]
    site.value.weight.data[16 + 3] = 0
    site.output.weight.data[:, 16 + 3] = 0
    scores = score_magnitude(ast.attention_sites(tiny_ast))[1]
    assert scores.value_output[1][3] == 0
    assert scores.value_output[1].argmin() == 3
    assert scores.value_output[0].min() > 0


def test_collecting_leaves_the_model_as_it_was(tiny_ast):
    inputs, label_ids = batches_of(tiny_ast, 4)
    tiny_ast.train()
    frozen = tiny_ast.classifier.dense.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in tiny_ast.state_dict().items()}
    collect_curvature(tiny_ast, ast.attention_sites(tiny_ast), inputs, label_ids, ast.batch_loss, batch_size=2)
    assert tiny_ast.training
    assert not frozen.requires_grad
    assert all(p.grad is None and (p.requires_grad or p is frozen) for p in tiny_ast.parameters())
    assert all(torch.equal(value, before[name]) for name, value in tiny_ast.state_dict().items())


def test_dropout_is_off_while_collecting(tiny_ast):
    inputs, label_ids = batches_of(tiny_ast, 4)
    for module in tiny_ast.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    sums = []
    for training in (True, False):
        tiny_ast.train(training)
        curvature = collect_curvature(tiny_ast, ast.attention_sites(tiny_ast), inputs, label_ids, ast.batch_loss)
        sums.append(curvature.sites["layers.1.attention"].query)
    assert torch.equal(*sums)


def test_partial_batches_are_left_out_and_progress_is_told(tiny_ast):
    inputs, label_ids = batches_of(tiny_ast, 11)
    told = []
    sites = ast.attention_sites(tiny_ast)
    curvature = collect_curvature(
        tiny_ast, sites, inputs, label_ids, ast.batch_loss, batch_size=4, progress=lambda *done: told.append(done)
    )
    assert curvature.batches == 2
    assert told == [(4, 8), (8, 8)]
    few = collect_curvature(tiny_ast, sites, inputs[:3], label_ids[:3], ast.batch_loss, batch_size=4)
    assert few.batches == 1, "of three clips"


def test_recomputed_layers_are_restored_even_after_an_error(tiny_ast):
    layers = ast.encoder_layers(tiny_ast)

    def fail(model, inputs, label_ids):
        assert all("forward" in vars(layer) for layer in layers)
        raise KeyError

    inputs, label_ids = batches_of(tiny_ast, 2)
    with pytest.raises(KeyError):
        collect_curvature(
            tiny_ast, ast.attention_sites(tiny_ast), inputs, label_ids, fail, batch_size=2, recomputed_layers=layers
        )
    assert not any("forward" in vars(layer) for layer in layers)


def test_batches_add_up_and_survive_their_files(tiny_ast, tmp_path):
    inputs, label_ids = batches_of(tiny_ast)
    sites = ast.attention_sites(tiny_ast)

    def collect(start, end):
        return collect_curvature(tiny_ast, sites, inputs[start:end], label_ids[start:end], ast.batch_loss, batch_size=2)

    for shard, (start, end) in {"a": (0, 4), "b": (4, 12)}.items():
        keep_tensors(tmp_path / shard, curvature_tensors(collect(start, end)), {"calibration": shard})
    one, other = (curvature_from_tensors(kept_tensors(tmp_path / each, {"calibration": each})) for each in "ab")
    whole = collect(0, 12)
    assert (one.batches, other.batches, whole.batches) == (2, 4, 6)
    for name, site in whole.sites.items():
        for projection in PROJECTIONS:
            parts = (getattr(each.sites[name], projection) for each in (one, other))
            assert torch.allclose(sum(parts), getattr(site, projection), rtol=1e-12)


def test_same_curvature_same_bytes(tiny_ast, tmp_path):
    inputs, label_ids = batches_of(tiny_ast, 4)
    sites = ast.attention_sites(tiny_ast)
    for name in ("one", "two"):
        curvature = collect_curvature(tiny_ast, sites, inputs, label_ids, ast.batch_loss, batch_size=2)
        keep_tensors(tmp_path / name, curvature_tensors(curvature), {"calibration": "c", "checkpoint": "m"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_what_does_not_fit_is_refused(tiny_ast):
    inputs, label_ids = batches_of(tiny_ast, 4)
    sites = ast.attention_sites(tiny_ast)
    curvature = collect_curvature(tiny_ast, sites, inputs, label_ids, ast.batch_loss, batch_size=2)
    with pytest.raises(BadInput, match="another model"):
        score_fisher(ast.attention_sites(ragged_slim()), curvature)
