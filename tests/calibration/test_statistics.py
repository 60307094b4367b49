"""Statistics of clips against pencil and paper, autograd through explicit matrices, finite differences, and loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from leanear.calibration.sites import AttentionSite
from leanear.calibration.statistics import PER_CLIP, SUMS, merge_statistics, statistics_from_tensors, statistics_tensors
from leanear.families import ast
from leanear.plan import HeadPlan, SitePlan
from leanear.runtimes.errors import BadInput
from tests.calibration.collected import collect_statistics
from tests.calibration.small_attention import Attention, logits
from tests.conftest import make_tiny_ast


def batch_of(clips: int = 3, labels: int = 5):
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(clips, 46, 128, generator=generator).double()
    return inputs, torch.randint(labels, (clips,), generator=generator)


def ragged_slim():
    heads = ((HeadPlan(0, (0, 3, 5), (1, 2)), HeadPlan(1, (2,), (0, 4, 7, 9))), (HeadPlan(1, (1, 2, 3, 8), (5,)),))
    return ast.slim_model(make_tiny_ast(), tuple(SitePlan(f"layers.{i}.attention", 2, h) for i, h in enumerate(heads)))


def losses(model, inputs, label_ids) -> torch.Tensor:
    return nn.functional.cross_entropy(ast.logits(model, inputs), label_ids, reduction="none")


# Pencil and paper


class OneHead(nn.Module):
    """Tokens (q, k, v) attend with one head of width 1; the two logits are the sum of the contexts less 2, and 0."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(3, 1, bias=False) for _ in range(3))
        for place, linear in enumerate((self.query, self.key, self.value)):
            linear.weight.data = torch.eye(3)[place : place + 1]
        self.output = nn.Linear(1, 1, bias=False)
        self.output.weight.data = torch.ones(1, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        weights = (self.query(tokens) @ self.key(tokens).mT).softmax(-1)
        total = self.output(weights @ self.value(tokens)).sum(dim=(1, 2))
        return torch.stack([total - 2, torch.zeros_like(total)], dim=1)

    def site(self) -> AttentionSite:
        return AttentionSite("toy", self, self.query, self.key, self.value, self.output, (1,), (1,), scaling=1.0)


def test_two_clips_by_hand():
    """Two tokens: q = (ln 3, 0), k = (1, 0), v = (4, -4).

    Weights (3/4, 1/4) and (1/2, 1/2), contexts 2 and 0, logits (0, 0), probabilities 1/2: for the first label the loss
    has the derivative g = -1/2 by the sum of the contexts, for the second g = +1/2.
    value_output = g (2 + 0) = 2 g. The first query's scores have derivatives g 3/4 (4 - 2) = 3/2 g and
    g 1/4 (-4 - 2) = -3/2 g, so the query has 3/2 g (1 - 0), and query_key = ln 3 * 3/2 g; the other query is 0.
    The batch's derivative is the sum of g = -1/2 and g = +1/2, nothing; the clips' squares are (3/4 ln 3)^2 each.
    """
    model, clip = OneHead(), torch.tensor([[math.log(3), 1.0, 4.0], [0.0, 0.0, -4.0]])
    found = collect_statistics(
        model, (model.site(),), torch.stack([clip, clip]), torch.tensor([0, 1]), logits,
        labels="observed", attended_keys=True,
    )["toy"]  # fmt: skip
    slope = 0.75 * math.log(3)
    assert found.query_key.flatten().tolist() == pytest.approx([-slope, slope], rel=1e-6)
    assert found.value_output.flatten().tolist() == pytest.approx([-1.0, 1.0], rel=1e-6)
    assert found.context_gradient.flatten().tolist() == pytest.approx([-1.0, 1.0], rel=1e-6)
    assert 0.5 * found.query_key.square().mean().item() == pytest.approx(0.5 * slope**2, rel=1e-6)
    assert found.tokens.tolist() == [4, 4]
    assert found.query_gram.item() == pytest.approx(2 * math.log(3) ** 2, rel=1e-6)
    assert found.key_gram.item() == pytest.approx(2 * (0.25 + 0.25), rel=1e-6), "keys 1 and 0 about 1/2"
    assert found.attended_key_gram.item() == pytest.approx(2 * (3 / 16 + 1 / 4), rel=1e-6), "variances p (1 - p)"
    assert found.context_gram.item() == pytest.approx(2 * 4, rel=1e-6)
    assert found.context_sum.item() == pytest.approx(2 * 2, rel=1e-6)
    assert found.context_mean.item() == pytest.approx(1.0, rel=1e-6)
    assert found.context_covariance.item() == pytest.approx(1.0, rel=1e-6), "contexts 2 and 0"


# Derivatives


def with_matrices(site: AttentionSite, *, on_keys: bool):
    """Identity matrices put between queries and keys, and between contexts and output weights, as parameters.

    They stand on the diagonal blocks of heads: queries q P, or keys P k, and contexts R u.
    """
    qk, vo = sum(site.query_key_widths), sum(site.value_output_widths)
    between = torch.eye(qk, dtype=torch.float64, requires_grad=True)
    after = torch.eye(vo, dtype=torch.float64, requires_grad=True)
    hooks = [
        site.key.register_forward_hook(lambda _m, _i, out: out @ between.mT)
        if on_keys
        else site.query.register_forward_hook(lambda _m, _i, out: out @ between),
        site.output.register_forward_pre_hook(lambda _m, args: (args[0] @ after.mT,)),
    ]
    return between, after, hooks


def diagonal_blocks(matrix: torch.Tensor, widths) -> list[torch.Tensor]:
    starts = [sum(widths[:head]) for head in range(len(widths))]
    return [matrix[a : a + w, a : a + w] for a, w in zip(starts, widths, strict=True)]


@pytest.mark.parametrize("build", [make_tiny_ast, ragged_slim])
@pytest.mark.parametrize("on_keys", [False, True])
def test_derivatives_equal_those_by_explicit_matrices_clip_by_clip(build, on_keys):
    """dL/dP and dL/dR of one clip after the other, by autograd; P may stand on the side of queries or of keys."""
    model = build().double()
    inputs, label_ids = batch_of()
    sites = ast.attention_sites(model)
    found = collect_statistics(model, sites, inputs, label_ids, ast.logits, labels="observed")
    for site in sites:
        between, after, hooks = with_matrices(site, on_keys=on_keys)
        for clip in range(3):
            loss = losses(model, inputs[clip : clip + 1], label_ids[clip : clip + 1]).sum()
            by_scores, by_outputs = torch.autograd.grad(loss, [between, after])
            for kind, widths, expected in (
                ("query_key", site.query_key_widths, by_scores),
                ("value_output", site.value_output_widths, by_outputs),
            ):
                for head, block in enumerate(diagonal_blocks(expected, widths)):
                    actual = getattr(found[site.name], kind)[clip, head]
                    assert block.abs().max() > 1e-5
                    assert torch.allclose(actual[: len(block), : len(block)], block, rtol=1e-6, atol=1e-12)
                    assert actual[len(block) :].abs().sum() == actual[:, len(block) :].abs().sum() == 0
        for hook in hooks:
            hook.remove()


def test_derivatives_by_masks_equal_finite_differences_on_every_channel(tiny_ast):
    """The loss with one channel's mask at 1 + e and at 1 - e, every channel of both kinds, in float64."""
    model = tiny_ast.double()
    inputs, label_ids = batch_of(1)
    found = collect_statistics(model, ast.attention_sites(model), inputs, label_ids, ast.logits, labels="observed")
    step = 1e-4
    masks = 1 + torch.cat([step * torch.eye(32), -step * torch.eye(32)]).double()[:, None]
    for site in ast.attention_sites(model):
        for kind in ("query_key", "value_output"):
            if kind == "query_key":
                hook = site.query.register_forward_hook(lambda _m, _i, out: out * masks)
            else:
                hook = site.output.register_forward_pre_hook(lambda _m, args: (args[0] * masks,))
            with torch.no_grad():
                up, down = losses(model, inputs.expand(64, -1, -1), label_ids.expand(64)).split(32)
            hook.remove()
            expected = ((up - down) / (2 * step)).unflatten(0, (2, 16))
            actual = getattr(found[site.name], kind)[0].diagonal(dim1=-2, dim2=-1)
            assert expected.abs().max() > 1e-4
            assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("labels", ["observed", "sampled", "projected"])
def test_a_batch_of_three_is_three_batches_of_one(labels):
    """Clip by clip with one generator, too: the random labels do not depend on how many are drawn at once."""
    model = make_tiny_ast().double()
    inputs, label_ids = batch_of()
    sites = ast.attention_sites(model)

    def collect(clips: slice, generator: torch.Generator):
        return collect_statistics(
            model, sites, inputs[clips], label_ids[clips], ast.logits,
            labels=labels, attended_keys=True, generator=generator,
        )  # fmt: skip

    together = collect(slice(None), torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    parts = merge_statistics(*(collect(slice(clip, clip + 1), generator) for clip in range(3)))
    for name, tensor in statistics_tensors(together).items():
        assert torch.allclose(statistics_tensors(parts)[name], tensor, rtol=1e-6, atol=1e-9), name
    derivatives = together["layers.0.attention"].query_key
    assert not torch.allclose(derivatives[0], derivatives[1], rtol=0.1), "clips differ, or the order proves nothing"


def every_sign(monkeypatch, classes: int) -> None:
    """In place of random signs, row by row all of them."""
    signs = torch.tensor(list(itertools.product((0, 1), repeat=classes)))

    def every(low, high, size, generator=None):
        assert (low, high, tuple(size)) == (0, 2, tuple(signs.shape))
        return signs

    monkeypatch.setattr("leanear.calibration.statistics.torch.randint", every)


class Answer(nn.Module):
    """Logits that are the context itself: whatever the objective asks for is seen in context_gradient."""

    def __init__(self, classes: int):
        super().__init__()
        self.query, self.key = nn.Linear(classes, 1), nn.Linear(classes, 1)
        self.value, self.output = nn.Linear(classes, classes), nn.Linear(classes, classes, bias=False)
        for linear in (self.value, self.output):
            linear.weight.data = torch.eye(classes)
        self.value.bias.data.zero_()
        self.double()
        self.site = AttentionSite("toy", self, self.query, self.key, self.value, self.output, (1,), (classes,), 1.0)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.output((self.query(inputs) @ self.key(inputs).mT).softmax(-1) @ self.value(inputs))[:, 0]


@pytest.mark.parametrize("answer", [(0.3, -1.0, 2.0), (0.0, 1.0, -2.0, 0.5)])
def test_projections_have_the_covariance_of_the_softmax(monkeypatch, answer):
    """E[w w^T] = diag(p) - p p^T over all sign vectors; with labels, the same over all labels drawn with p."""
    p = np.exp(answer) / np.exp(answer).sum()
    fisher = np.diag(p) - np.outer(p, p)
    model, classes = Answer(len(answer)), len(answer)

    def squares(clips: int, label_ids: torch.Tensor, labels: str) -> np.ndarray:
        inputs = torch.tensor(answer, dtype=torch.float64).expand(clips, 1, -1)
        found = collect_statistics(model, (model.site,), inputs, label_ids, logits, labels=labels)["toy"]
        w = found.context_gradient[:, 0].numpy()
        return w[:, :, None] * w[:, None, :]

    by_label = squares(classes, torch.arange(classes), "observed")
    assert np.tensordot(p, by_label, 1) == pytest.approx(fisher, abs=1e-7)
    sampled = squares(40_000, torch.zeros(40_000, dtype=torch.int64), "sampled")
    assert np.abs(sampled.mean(axis=0) - fisher).max() < 0.03 * fisher.max()
    every_sign(monkeypatch, classes)
    by_sign = squares(2**classes, torch.zeros(2**classes, dtype=torch.int64), "projected")
    assert by_sign.mean(axis=0) == pytest.approx(fisher, abs=1e-7)


def test_projections_and_all_labels_agree_on_what_every_entry_is_worth(monkeypatch):
    """sum_y p_y G_y^2 over the five labels is the mean of G_z^2 over the 32 sign vectors, in a whole model."""
    model = make_tiny_ast().double()
    inputs, _ = batch_of(1)
    sites = ast.attention_sites(model)
    with torch.no_grad():
        p = ast.logits(model, inputs)[0].softmax(-1)
    by_label = collect_statistics(
        model, sites, inputs.expand(5, -1, -1), torch.arange(5), ast.logits, labels="observed"
    )
    every_sign(monkeypatch, 5)
    by_sign = collect_statistics(
        model, sites, inputs.expand(32, -1, -1), torch.zeros(32, dtype=torch.int64), ast.logits
    )
    for site in sites:
        for kind in ("query_key", "value_output"):
            expected = torch.einsum("y,yhkl->hkl", p, getattr(by_label[site.name], kind).square())
            actual = getattr(by_sign[site.name], kind).square().mean(dim=0)
            assert expected.max() > 1e-6
            assert torch.allclose(actual, expected, rtol=1e-6, atol=1e-12)


# Gram matrices


def heads_of(states: np.ndarray, widths) -> list[np.ndarray]:
    return np.split(states, np.cumsum(widths)[:-1], axis=-1)


@pytest.mark.parametrize(("cross", "causal"), [(False, False), (False, True), (True, False)])
def test_gram_matrices_equal_loops_over_tokens(cross, causal):
    """Four queries and, in cross-attention, six keys; heads of unequal widths, filled up with zeros."""
    model = Attention(4, cross=cross, causal=causal)
    inputs = torch.randn(5, 10 if cross else 4, 6, dtype=torch.float64)
    site = model.site()
    found = collect_statistics(
        model, (site,), inputs, torch.arange(5) % 3, logits, labels="observed", attended_keys=True
    )["toy"]
    asking, answering = inputs[:, :4], inputs[:, 4:] if cross else inputs
    with torch.no_grad():
        projected = [site.query(asking), site.key(answering), site.value(answering)]
    widths = (site.query_key_widths, site.query_key_widths, site.value_output_widths)
    queries, keys, values = (heads_of(t.numpy(), w) for t, w in zip(projected, widths, strict=True))
    assert found.tokens.tolist() == [5 * 4, 5 * answering.shape[1]]
    for head, (q, k, v) in enumerate(zip(queries, keys, values, strict=True)):
        contexts, attended = [], np.zeros((q.shape[-1], q.shape[-1]))
        for clip in range(5):
            for i in range(4):
                seen = range(i + 1) if causal else range(k.shape[1])
                weights = np.exp([0.7 * q[clip, i] @ k[clip, j] for j in seen])
                weights /= weights.sum()
                mean = sum(w * k[clip, j] for w, j in zip(weights, seen, strict=True))
                for w, j in zip(weights, seen, strict=True):
                    attended += w * np.outer(k[clip, j] - mean, k[clip, j] - mean)
                contexts.append(sum(w * v[clip, j] for w, j in zip(weights, seen, strict=True)))
        contexts, tokens = np.array(contexts), q.reshape(-1, q.shape[-1])
        centred = (k - k.mean(axis=1, keepdims=True)).reshape(-1, k.shape[-1])
        for name, expected in (
            ("query_gram", tokens.T @ tokens),
            ("key_gram", centred.T @ centred),
            ("attended_key_gram", attended),
            ("context_gram", contexts.T @ contexts),
            ("context_covariance", np.cov(contexts.T, bias=True)),
        ):
            matrix, width = getattr(found, name)[head].numpy(), len(expected)
            assert matrix[:width, :width] == pytest.approx(expected, rel=1e-6, abs=1e-9), name
            assert not matrix[width:].any(), name
        assert found.context_sum[head, : v.shape[-1]].numpy() == pytest.approx(contexts.sum(axis=0), rel=1e-6)


@pytest.mark.parametrize(("cross", "causal"), [(False, True), (True, False)])
def test_queries_and_keys_agree_on_the_derivative(cross, causal):
    """sum_i q_i (dL/dq_i)^T = sum_j (dL/dk_j) k_j^T, and the derivatives by the keys sum up to nothing."""
    model = Attention(4, cross=cross, causal=causal)
    inputs, label_ids = torch.randn(2, 10 if cross else 4, 6, dtype=torch.float64), torch.tensor([0, 2])
    found = collect_statistics(model, (model.site(),), inputs, label_ids, logits, labels="observed")["toy"]
    kept = []
    hook = model.key.register_forward_hook(lambda _m, _i, out: kept.append(out))
    loss = nn.functional.cross_entropy(model(inputs), label_ids, reduction="sum")
    hook.remove()
    (by_keys,) = torch.autograd.grad(loss, kept[-1:])
    assert by_keys.sum(dim=1).abs().max() < 1e-12
    keys = kept[-1].detach()
    for clip in range(2):
        for head, (rows, width) in enumerate(((slice(0, 3), 3), (slice(3, 5), 2))):
            expected = by_keys[clip, :, rows].mT @ keys[clip, :, rows]
            assert expected.abs().max() > 1e-6
            assert torch.allclose(found.query_key[clip, head, :width, :width], expected, rtol=1e-6, atol=1e-10)


def test_attended_keys_are_left_out_unless_asked_for(tiny_ast):
    sites, (inputs, label_ids) = ast.attention_sites(tiny_ast), batch_of()
    found = collect_statistics(tiny_ast, sites, inputs.float(), label_ids, ast.logits)
    assert all(not site.attended_key_gram.any() and site.key_gram.any() for site in found.values())


# Adding up


def test_parts_are_the_whole_and_survive_being_taken_apart(tiny_ast):
    inputs, label_ids = batch_of(7)
    sites = ast.attention_sites(tiny_ast)

    def collect(*bounds: int):
        clips = slice(*bounds)
        return collect_statistics(
            tiny_ast, sites, inputs[clips].float(), label_ids[clips], ast.logits, labels="observed", attended_keys=True
        )

    parts = (collect(0, 3), collect(3, 4), collect(4, 7))
    merged = statistics_tensors(merge_statistics(*parts))
    whole = collect(0, 7)
    assert list(merged) == list(statistics_tensors(whole))
    for name, tensor in statistics_tensors(whole).items():
        assert merged[name].shape == tensor.shape
        assert torch.allclose(merged[name], tensor, rtol=1e-4, atol=1e-5 * tensor.abs().max().item()), name
    again = statistics_tensors(statistics_from_tensors(statistics_tensors(whole)))
    assert all(torch.equal(again[name], tensor) for name, tensor in statistics_tensors(whole).items())
    first, second = (getattr(parts[0]["layers.0.attention"], kind) for kind in (SUMS[1], PER_CLIP[0]))
    assert (first.dtype, second.dtype) == (torch.float64, torch.float32)


def test_statistics_of_different_models_are_not_added(tiny_ast):
    def of(model, blocks=None):
        sites = ast.attention_sites(model)[:blocks]
        return collect_statistics(model.double(), sites, *batch_of(), ast.logits, labels="observed")

    whole = of(tiny_ast)
    with pytest.raises(BadInput, match="different attention blocks"):
        merge_statistics(whole, of(tiny_ast, 1))
    with pytest.raises(BadInput, match=r"layers\.0\.attention has different widths"):
        merge_statistics(whole, of(ragged_slim()))


@pytest.mark.parametrize("frozen", [False, True])
def test_collecting_leaves_the_model_as_it_was(tiny_ast, frozen):
    inputs, label_ids = batch_of()
    tiny_ast.train()
    for module in tiny_ast.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    kept = tiny_ast.classifier.dense.weight.requires_grad_(not frozen)
    before = {name: value.clone() for name, value in tiny_ast.state_dict().items()}
    sites = ast.attention_sites(tiny_ast)
    once, again = (collect_statistics(tiny_ast, sites, inputs.float(), label_ids, ast.logits, labels="observed")
                   for _ in range(2))  # fmt: skip
    assert torch.equal(once[sites[1].name].query_gram, again[sites[1].name].query_gram), "dropout is off"
    assert tiny_ast.training
    assert kept.requires_grad is not frozen
    assert all(p.grad is None and (p.requires_grad or p is kept) for p in tiny_ast.parameters())
    assert all(torch.equal(value, before[name]) for name, value in tiny_ast.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_ast.modules())
