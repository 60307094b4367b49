"""Bases: nothing is lost in one, and no other keeps more in as few channels; against numpy, random search and hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.optimize import minimize
from torch import nn

from leanear.calibration.basis import BASIS_KINDS, balanced, choose_bases, choose_basis, width_damages
from tests.calibration.collected import collect_statistics
from tests.calibration.small_attention import Attention, logits

CLIPS, QUERIES, KEYS = 8, 4, 6
QUERY_KEY, VALUE_OUTPUT = ((0, 3), (3, 5)), ((0, 2), (2, 6))  # columns of each head


def setting(*, cross: bool = True, causal: bool = False, attended: bool = False):
    """A model, its block, its statistics, and the queries, keys and contexts (clips, tokens, columns) behind them."""
    model = Attention(QUERIES, cross=cross, causal=causal)
    inputs = torch.randn(CLIPS, QUERIES + (KEYS if cross else 0), 6, dtype=torch.float64)
    site, kept = model.site(), []
    found = collect_statistics(
        model, (site,), inputs, torch.arange(CLIPS) % 3, logits, labels="observed", attended_keys=attended
    )["toy"]
    hook = site.output.register_forward_pre_hook(lambda _m, args: kept.append(args[0].numpy()))
    with torch.no_grad():
        model(inputs)
        queries = site.query(inputs[:, :QUERIES]).numpy()
        keys = site.key(inputs[:, QUERIES:] if cross else inputs[:, :QUERIES]).numpy()
    hook.remove()
    return model, inputs, site, found, (queries, keys, kept[0])


def random_metric(size: int, seed: int) -> np.ndarray:
    root = np.random.default_rng(seed).normal(size=(size, size + 2))
    return root @ np.diag(3.0 ** -np.arange(size + 2)) @ root.T


def error_of(projection: np.ndarray, left: np.ndarray, right: np.ndarray) -> float:
    """||S_l^1/2 (I - P) S_r^1/2||_F^2, by the trace."""
    off = np.eye(len(left)) - projection
    return float(np.trace(off.T @ left @ off @ right))


# Balanced bases


@pytest.mark.parametrize("seed", range(4))
def test_both_metrics_become_one_diagonal(seed):
    left, right = random_metric(6, seed), random_metric(6, seed + 100)
    t_left, t_right, values = (t.numpy() for t in balanced(torch.tensor(left), torch.tensor(right)))
    assert t_left.T @ t_right == pytest.approx(np.eye(6), abs=1e-9)
    expected = np.linalg.svd(sqrtm(left) @ sqrtm(right), compute_uv=False)
    assert values == pytest.approx(expected, rel=1e-2, abs=1e-4 * expected[0])
    assert list(values) == sorted(values, reverse=True)
    for basis, metric in ((t_left, left), (t_right, right)):
        ridge = 1e-6 * np.trace(metric) / 6 * np.eye(6)
        assert basis @ (metric + ridge) @ basis.T == pytest.approx(np.diag(values), abs=1e-9 * values[0])


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_no_matrix_of_that_rank_keeps_more(rank):
    """Neither thousands at random, nor ones near by, nor what a numerical optimiser finds from many starts."""
    left, right = random_metric(5, 1), random_metric(5, 2)
    t_left, t_right, values = (t.numpy() for t in balanced(torch.tensor(left), torch.tensor(right)))
    least = error_of(t_left[:rank].T @ t_right[:rank], left, right)
    assert least == pytest.approx(np.square(values[rank:]).sum(), rel=1e-3, abs=1e-6 * values[0] ** 2)
    generator = np.random.default_rng(rank)
    for _ in range(2000):
        one, other = generator.normal(size=(2, 5, rank))
        assert error_of(one @ np.linalg.solve(other.T @ one, other.T), left, right) > least
        near = t_left[:rank] + 0.05 * generator.normal(size=(rank, 5)) * np.abs(t_left[:rank]).mean()
        assert error_of(near.T @ t_right[:rank], left, right) >= least * (1 - 1e-6)

    def of(flat: np.ndarray) -> float:
        one, other = flat.reshape(2, 5, rank)
        return error_of(one @ other.T, left, right)

    found = min(minimize(of, generator.normal(size=10 * rank), method="L-BFGS-B").fun for _ in range(4))
    assert found == pytest.approx(least, rel=1e-2, abs=1e-5 * values[0] ** 2)
    assert found >= least * (1 - 1e-4) - 1e-6 * values[0] ** 2


@pytest.mark.parametrize(
    "diagonal", [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (1e-3, -4e-4, 0.0), (-1e-9, -1e-9, 1e-9), (1.0, -1e-5, 1e-5)]
)
def test_directions_that_nothing_uses_are_no_obstacle(diagonal):
    """Nor are those of which rounding has left less than nothing, as of the covariance of constant contexts."""
    left = torch.diag(torch.tensor(diagonal))
    t_left, t_right, values = balanced(left.double(), torch.eye(3, dtype=torch.float64))
    assert torch.allclose(t_left.mT @ t_right, torch.eye(3, dtype=torch.float64), atol=1e-9)
    assert torch.isfinite(values).all()


# Bases of heads


@pytest.mark.parametrize("kind", BASIS_KINDS)
@pytest.mark.parametrize("order", ["fisher", "singular value"])
def test_every_basis_has_its_inverse_and_zeros_beside_narrow_heads(kind, order):
    _, _, site, found, _ = setting(attended=True)
    basis = choose_basis(site, found, kind, order=order)
    for one, other, columns in ((basis.query, basis.key, QUERY_KEY), (basis.output, basis.value, VALUE_OUTPUT)):
        for head, (start, end) in enumerate(columns):
            width = end - start
            product = one[head, :width, :width].mT @ other[head, :width, :width]
            assert torch.allclose(product, torch.eye(width, dtype=torch.float64), atol=1e-8)
            assert not one[head, width:].any()
            assert not one[head, :, width:].any()
    scores = (basis.query_key.square().mean(dim=0), basis.value_output.square().mean(dim=0))
    if order == "fisher":
        assert all((score.diff(dim=-1) <= 0).all() for score in scores)
    assert choose_bases((site,), {"toy": found}, kind).keys() == {"toy"}


def weights_of(linear: nn.Linear, rows: tuple[int, int]) -> np.ndarray:
    return linear.weight.detach().numpy()[slice(*rows)]


def test_of_weights_is_the_truncated_svd_of_the_heads_products():
    """For every rank, numpy's SVD of (W_q, b_q)^T W_k and of W_o W_v, (D + 1, D) and (D, D), cut off there."""
    _, _, site, found, _ = setting()
    basis = choose_basis(site, found, "weights", order="singular value")
    bias = site.query.bias.detach().numpy()
    for head, (qk, vo) in enumerate(zip(QUERY_KEY, VALUE_OUTPUT, strict=True)):
        query = np.concatenate([weights_of(site.query, qk), bias[slice(*qk)][:, None]], axis=1)
        output = site.output.weight.detach().numpy()[:, slice(*vo)]
        for left, right, one, other in (
            (query.T, weights_of(site.key, qk), basis.query, basis.key),
            (output, weights_of(site.value, vo), basis.output, basis.value),
        ):
            width = left.shape[1]
            t_left, t_right = (t[head, :width, :width].numpy() for t in (one, other))
            u, values, v = np.linalg.svd(left @ right, full_matrices=False)
            for rank in range(1, width + 1):
                best = (u[:, :rank] * values[:rank]) @ v[:rank]
                cut = left @ t_left[:rank].T @ t_right[:rank] @ right
                assert cut == pytest.approx(best, abs=1e-4 * values[0])


def score_error(basis, head: int, rank: int, states) -> float:
    """Mean squared error of scores whose keys are centred within their clips, over all pairs of a query and a key."""
    queries, keys, _ = states
    columns = slice(*QUERY_KEY[head])
    q = queries[..., columns].reshape(-1, columns.stop - columns.start)
    k = keys[..., columns] - keys[..., columns].mean(axis=1, keepdims=True)
    width = q.shape[1]
    one, other = (t[head, :rank, :width].numpy() for t in (basis.query, basis.key))
    off = np.eye(width) - one.T @ other
    return float(np.square(q @ off @ k.reshape(-1, width).T).mean())


def output_error(site, basis, head: int, rank: int, states) -> float:
    """Mean squared error of the block's outputs, over tokens, with the mean of what is dropped put back."""
    columns = slice(*VALUE_OUTPUT[head])
    u = states[2][..., columns].reshape(-1, columns.stop - columns.start)
    width = u.shape[1]
    one, other = (t[head, :rank, :width].numpy() for t in (basis.output, basis.value))
    off = (u - u.mean(axis=0)) @ (np.eye(width) - one.T @ other).T
    return float(np.square(off @ site.output.weight.detach().numpy()[:, columns].T).sum(axis=1).mean())


@pytest.mark.parametrize("cross", [False, True])
def test_of_activations_errs_least_on_scores_and_outputs(cross):
    """On what is measured token by token; the error is that of the singular values dropped, in numpy's SVD."""
    _, _, site, found, states = setting(cross=cross)
    ours, weights, trained = (
        choose_basis(site, found, kind, order="singular value") for kind in ("activations", "weights", "trained")
    )
    better = 0
    for head, (qk, vo) in enumerate(zip(QUERY_KEY, VALUE_OUTPUT, strict=True)):
        q, k = (states[place][..., slice(*qk)] for place in (0, 1))
        width = q.shape[-1]
        flat, centred = q.reshape(-1, width), (k - k.mean(axis=1, keepdims=True)).reshape(-1, width)
        values = np.linalg.svd(flat @ centred.T, compute_uv=False)[:width] / np.sqrt(len(flat) * len(centred))
        for rank in range(1, width):
            errors = [score_error(basis, head, rank, states) for basis in (ours, weights, trained)]
            assert errors[0] == pytest.approx(np.square(values[rank:]).sum(), rel=1e-3)
            assert errors[0] <= min(errors[1:]) * (1 + 1e-4)
            better += errors[0] < 0.9 * min(errors[1:])
        for rank in range(1, vo[1] - vo[0]):
            errors = [output_error(site, basis, head, rank, states) for basis in (ours, weights, trained)]
            assert errors[0] <= min(errors[1:]) * (1 + 1e-4)
            better += errors[0] < 0.9 * min(errors[1:])
    assert better >= 3, "another basis is as good everywhere: the comparison proves little"


@pytest.mark.parametrize(("cross", "causal"), [(False, True), (True, False)])
def test_of_attention_errs_least_on_keys_as_they_are_attended_to(cross, causal):
    """The error that the softmax sees: the variance of a query's score errors under its own attention weights."""
    model, _, site, found, (queries, keys, _) = setting(cross=cross, causal=causal, attended=True)

    def error(basis, head: int, rank: int) -> float:
        columns = slice(*QUERY_KEY[head])
        width = columns.stop - columns.start
        one, other = (t[head, :rank, :width].numpy() for t in (basis.query, basis.key))
        second = np.zeros((width, width))
        for clip in range(CLIPS):
            for i in range(QUERIES):
                seen = keys[clip, : i + 1 if causal else None, columns]
                weights = np.exp(model.scaling * seen @ queries[clip, i, columns])
                weights /= weights.sum()
                off = seen - weights @ seen
                second += (off * weights[:, None]).T @ off
        q = queries[..., columns].reshape(-1, width)
        gap = np.eye(width) - one.T @ other
        return float(np.trace(gap.T @ (q.T @ q) @ gap @ second)) / len(q) ** 2

    ours, plain, weights = (
        choose_basis(site, found, kind, order="singular value") for kind in ("attention", "activations", "weights")
    )
    for head, (start, end) in enumerate(QUERY_KEY):
        for rank in range(1, end - start):
            assert error(ours, head, rank) <= min(error(plain, head, rank), error(weights, head, rank)) * (1 + 1e-4)


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
def test_of_fisher_balances_the_clips_derivatives(shrinkage):
    """At shrinkage 0 both metrics are those of the derivatives, at 1 those of activations; trace 1 each."""
    _, _, site, found, states = setting()
    basis = choose_basis(site, found, "fisher", shrinkage=shrinkage, order="singular value")
    mean = states[2].mean(axis=(0, 1))
    for head, (qk, vo) in enumerate(zip(QUERY_KEY, VALUE_OUTPUT, strict=True)):
        q, k = (states[place][..., slice(*qk)] for place in (0, 1))
        u = states[2][..., slice(*vo)].reshape(-1, vo[1] - vo[0])
        k = k - k.mean(axis=1, keepdims=True)
        w, v = qk[1] - qk[0], vo[1] - vo[0]
        by_scores = found.query_key[:, head, :w, :w].double().numpy()
        gradient = found.context_gradient[:, head, :v].double().numpy()
        by_outputs = found.value_output[:, head, :v, :v].double().numpy()
        by_outputs = by_outputs - gradient[:, :, None] * mean[slice(*vo)]
        output = site.output.weight.detach().numpy()[:, slice(*vo)]
        for derivatives, other_left, other_right, one, other in (
            (by_scores, np.einsum("nik,nil->kl", q, q), np.einsum("njk,njl->kl", k, k), basis.query, basis.key),
            (by_outputs, output.T @ output, np.cov(u.T, bias=True), basis.output, basis.value),
        ):
            left = sum(g @ g.T for g in derivatives)
            right = sum(g.T @ g for g in derivatives)
            left = (1 - shrinkage) * left / np.trace(left) + shrinkage * other_left / np.trace(other_left)
            right = (1 - shrinkage) * right / np.trace(right) + shrinkage * other_right / np.trace(other_right)
            size = len(left)
            t_left, t_right = (t[head, :size, :size].numpy() for t in (one, other))
            for balanced_metric in (t_left @ left @ t_left.T, t_right @ right @ t_right.T):
                values = np.diag(balanced_metric)
                assert balanced_metric == pytest.approx(np.diag(values), abs=1e-4 * values.max())
            assert np.diag(t_left @ left @ t_left.T) == pytest.approx(np.diag(t_right @ right @ t_right.T), rel=1e-2)


@pytest.mark.parametrize("kind", ["trained", "activations", "fisher"])
def test_derivatives_by_new_channels_need_no_second_backward_pass(kind):
    """Against autograd through masks on the new channels of every clip: queries, and contexts less their mean."""
    model, inputs, site, found, states = setting()
    basis = choose_basis(site, found, kind)
    mean = torch.tensor(states[2].mean(axis=(0, 1)))
    for head in range(2):
        (q, q_end), (v, v_end) = QUERY_KEY[head], VALUE_OUTPUT[head]
        k_width, v_width = q_end - q, v_end - v
        query, key = basis.query[head, :k_width, :k_width], basis.key[head, :k_width, :k_width]
        output, value = basis.output[head, :v_width, :v_width], basis.value[head, :v_width, :v_width]
        mask_k = torch.ones(CLIPS, 1, k_width, dtype=torch.float64, requires_grad=True)
        mask_v = torch.ones(CLIPS, 1, v_width, dtype=torch.float64, requires_grad=True)

        def masked_query(_module, _inputs, out, q=q, q_end=q_end, query=query, key=key, mask=mask_k):
            return torch.cat([out[..., :q], (out[..., q:q_end] @ query.mT * mask) @ key, out[..., q_end:]], dim=-1)

        def masked_context(_module, args, v=v, v_end=v_end, output=output, value=value, mask=mask_v):
            (out,) = args
            new = ((out[..., v:v_end] - mean[v:v_end]) @ value.mT * mask) @ output + mean[v:v_end]
            return (torch.cat([out[..., :v], new, out[..., v_end:]], dim=-1),)

        hooks = [
            site.query.register_forward_hook(masked_query), site.output.register_forward_pre_hook(masked_context),
        ]  # fmt: skip
        loss = nn.functional.cross_entropy(model(inputs), torch.arange(CLIPS) % 3, reduction="sum")
        by_k, by_v = torch.autograd.grad(loss, [mask_k, mask_v])
        for hook in hooks:
            hook.remove()
        assert torch.allclose(basis.query_key[:, head, :k_width], by_k[:, 0], rtol=1e-5, atol=1e-7)
        assert torch.allclose(basis.value_output[:, head, :v_width], by_v[:, 0], rtol=1e-5, atol=1e-7)
        assert not basis.query_key[:, head, k_width:].any()


# Damages


def test_damages_of_widths_are_half_the_mean_square_of_all_that_is_dropped():
    generator = np.random.default_rng(0)
    by_scores, by_outputs = generator.normal(size=(7, 4)), generator.normal(size=(7, 3))
    damages = width_damages(by_scores, by_outputs)
    assert damages.shape == (5, 4)
    for k in range(1, 5):
        for v in range(1, 4):
            total = 0.0
            for clip in range(7):
                total += (sum(by_scores[clip, k:]) + sum(by_outputs[clip, v:])) ** 2
            assert damages[k, v] == pytest.approx(total / 7 / 2, abs=1e-12)
    assert damages[4, 3] == 0
    assert damages[0, 0] == pytest.approx(np.mean([sum(clip) ** 2 for clip in by_outputs]) / 2)
    assert np.isinf(damages[0, 1:]).all()
    assert np.isinf(damages[1:, 0]).all()


def test_damages_by_hand():
    """Clips (1, 2) and (-1, 3) of scores, (2) and (0) of outputs: keeping one score channel (4 + 9) / 4."""
    damages = width_damages(np.array([[1.0, 2.0], [-1.0, 3.0]]), np.array([[2.0], [0.0]]))
    assert damages[1, 1] == (4 + 9) / 4
    assert damages[0, 0] == 4 / 4
    assert damages[2, 1] == 0
