"""Losses by the exact change of the attention: against loops over all widths, real deletions, and derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from leanear.calibration import losses as module
from leanear.calibration.basis import SiteBasis, choose_basis, width_damages
from leanear.calibration.losses import width_grid, width_losses
from leanear.calibration.sites import AttentionSite
from leanear.calibration.targets import NO_TARGET
from leanear.families import ast
from tests.calibration import small_attention, small_decoder
from tests.calibration.collected import collect_squares, collect_statistics
from tests.calibration.test_statistics import batch_of, ragged_slim

# All widths by explicit loops


def drawn_basis(site: AttentionSite, seed: int = 2) -> SiteBasis:
    """Invertible bases at random, narrower heads filled up with zeros; of derivatives nothing."""
    generator = np.random.default_rng(seed)
    widest = {"qk": max(site.query_key_widths), "vo": max(site.value_output_widths)}
    stacks: dict[str, list[np.ndarray]] = {"query": [], "key": [], "value": [], "output": []}
    for qk, vo in zip(site.query_key_widths, site.value_output_widths, strict=True):
        for one, other, width, most in (("query", "key", qk, widest["qk"]), ("value", "output", vo, widest["vo"])):
            new = generator.normal(size=(width, width)) + 2 * np.eye(width)
            for name, matrix in ((one, new), (other, np.linalg.inv(new).T)):
                stacks[name].append(np.pad(matrix, (0, most - width)))
    heads = len(site.query_key_widths)
    mean = np.zeros((heads, widest["vo"]))
    for head, width in enumerate(site.value_output_widths):
        mean[head, :width] = generator.normal(size=width)
    tensors = {name: torch.tensor(np.stack(matrices)) for name, matrices in stacks.items()}
    return SiteBasis(**tensors, context_mean=torch.tensor(mean), query_key=torch.empty(0), value_output=torch.empty(0))


def what_goes_through(model, site, inputs, targets, logits):
    """q, k, v and the gradients of the clips' cross-entropies by what is added to the contexts; numpy, batch first."""
    seen = {}
    hooks = [
        linear.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out.detach().numpy()))
        for name, linear in (("query", site.query), ("key", site.key), ("value", site.value))
    ]

    def shifted(_module, given):
        seen["shift"] = torch.zeros_like(given[0], requires_grad=True)
        return (given[0] + seen["shift"],)

    hooks.append(site.output.register_forward_pre_hook(shifted))
    answers = logits(model, inputs)
    if targets.ndim == 2:
        answers = answers.transpose(1, 2)
    nn.functional.cross_entropy(answers, targets, ignore_index=NO_TARGET, reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    return seen["query"], seen["key"], seen["value"], seen["shift"].grad.numpy()


def weights_of(query: np.ndarray, key: np.ndarray, scaling: float, causal: bool) -> np.ndarray:
    """Attention weights, query by query."""
    weights = np.zeros((len(query), len(key)))
    for asking, states in enumerate(query):
        seen = asking + 1 if causal else len(key)
        scores = np.exp(scaling * (key[:seen] @ states) - (scaling * (key[:seen] @ states)).max())
        weights[asking, :seen] = scores / scores.sum()
    return weights


def by_loops(model, site, basis, inputs, targets, logits, lengths=None) -> list[np.ndarray]:
    """Of every head the squared changes summed over clips, (K + 1, V + 1) at its own widths; row 0 is of no use."""
    given = what_goes_through(model, site, inputs, targets, logits)
    sums, qk, vo = [], 0, 0
    for head, (most_k, most_v) in enumerate(zip(site.query_key_widths, site.value_output_widths, strict=True)):
        queries, keys = (states[..., qk : qk + most_k] for states in given[:2])
        values, gradients = (states[..., vo : vo + most_v] for states in given[2:])
        qk, vo = qk + most_k, vo + most_v
        to_query, to_key = (t[head, :most_k, :most_k].numpy() for t in (basis.query, basis.key))
        to_value, to_output = (t[head, :most_v, :most_v].numpy() for t in (basis.value, basis.output))
        mean, total = basis.context_mean[head, :most_v].numpy(), np.zeros((most_k + 1, most_v + 1))
        for clip in range(len(queries)):
            asking = None if lengths is None or site.kind == "encoder" else lengths[clip]
            answering = lengths[clip] if lengths is not None and site.kind == "decoder" else None
            query, gradient = queries[clip, :asking], gradients[clip, :asking]
            key, value = keys[clip, :answering], values[clip, :answering]
            before = weights_of(query, key, site.scaling, site.causal) @ value
            for k in range(1, most_k + 1):
                fewer = weights_of(query @ to_query[:k].T, key @ to_key[:k].T, site.scaling, site.causal) @ value
                for v in range(most_v + 1):
                    kept = to_output[:v].T @ to_value[:v]
                    after = fewer @ kept.T + mean @ (np.eye(most_v) - kept).T
                    total[k, v] += np.sum(gradient * (after - before)) ** 2
        sums.append(total)
    return sums


def agree(found: torch.Tensor, expected: list[np.ndarray], site: AttentionSite, grid, rtol: float = 1e-7) -> None:
    """A head that is narrower than a width has all it has there. After the heads come all of them together."""
    assert found.shape == (len(expected) + 1, len(grid), max(site.value_output_widths) + 1)
    for head, sums in enumerate(expected):
        scale = sums.max()
        assert scale > 0
        for place, k in enumerate(grid):
            for v in range(found.shape[-1]):
                here = sums[min(k, len(sums) - 1), min(v, sums.shape[1] - 1)]
                assert abs(float(found[head, place, v]) - here) <= rtol * scale, (site.name, head, k, v)


@pytest.mark.parametrize(("cross", "causal"), [(False, False), (False, True), (True, False)])
def test_all_widths_of_one_block_by_loops(cross, causal):
    model = small_attention.Attention(5, cross=cross, causal=causal)
    site, targets = model.site(), torch.tensor([0, 2, 1])
    inputs = torch.randn(3, 9 if cross else 5, 6, generator=torch.Generator().manual_seed(4)).double()
    basis, grid = drawn_basis(site), width_grid(site, 1)
    assert grid == (1, 2, 3)
    found = collect_squares(
        model, [site], {"toy": basis}, {"toy": grid}, inputs, targets, small_attention.logits, labels="observed"
    )
    expected = by_loops(model, site, basis, inputs, targets, small_attention.logits)
    agree(found["toy"], expected, site, grid)
    assert expected[0][-1, -1] < 1e-20, "nothing is cut"


@pytest.mark.parametrize("filled_with", [0.0, 3.0])
def test_all_widths_of_encoder_decoder_and_cross_attention_by_loops(filled_with):
    model = small_decoder.Decoder()
    inputs, targets = small_decoder.clips(filled_with)
    sites = model.sites()
    bases = {site.name: drawn_basis(site, seed) for seed, site in enumerate(sites)}
    grids = {site.name: width_grid(site, 1) for site in sites}
    found = collect_squares(model, sites, bases, grids, inputs, targets, small_decoder.logits, labels="observed")
    for site in sites:
        expected = by_loops(model, site, bases[site.name], inputs, targets, small_decoder.logits, small_decoder.LENGTHS)
        agree(found[site.name], expected, site, grids[site.name])


def test_all_widths_of_a_slim_model_whose_heads_differ_by_loops():
    model = ragged_slim().double()
    inputs, targets = batch_of(2)
    sites = ast.attention_sites(model)
    assert sites[0].query_key_widths == (3, 1)
    assert sites[0].value_output_widths == (2, 4)
    bases = {site.name: drawn_basis(site, seed) for seed, site in enumerate(sites)}
    grids = {site.name: width_grid(site, 2) for site in sites}
    assert grids == {"layers.0.attention": (1, 2, 3), "layers.1.attention": (2, 4)}
    found = collect_squares(model, sites, bases, grids, inputs, targets, ast.logits, labels="observed")
    for site in sites:
        expected = by_loops(model, site, bases[site.name], inputs, targets, ast.logits)
        agree(found[site.name], expected, site, grids[site.name], rtol=1e-6)


def test_batches_are_the_sums_of_their_clips():
    model = small_decoder.Decoder()
    inputs, targets = small_decoder.clips()
    sites = model.sites()
    bases = {site.name: drawn_basis(site) for site in sites}
    grids = {site.name: width_grid(site, 1) for site in sites}

    def collect(rows):
        return collect_squares(
            model, sites, bases, grids, inputs[rows], targets[rows], small_decoder.logits, labels="observed"
        )

    together, alone = collect(slice(0, 3)), [collect(slice(clip, clip + 1)) for clip in range(3)]
    for name in together:
        summed = sum(each[name] for each in alone)
        assert torch.allclose(together[name], summed, rtol=1e-9, atol=1e-12 * float(summed.max()))


# A head whose softmax is saturated


POSITIONS, SPOKEN = 6, 3


class LooksAhead(nn.Module):
    """Every position attends to the one after it, all but alone; the logits are linear in the contexts.

    Inputs (B, POSITIONS, POSITIONS + SPOKEN): where a token is, one channel for each place, and what it says.
    """

    def __init__(self, sharpness: float, shares: torch.Tensor, loudness: float):
        super().__init__()
        width = POSITIONS + SPOKEN
        self.query, self.key = (nn.Linear(width, POSITIONS, bias=False) for _ in range(2))
        self.value, self.output = nn.Linear(width, SPOKEN, bias=False), nn.Linear(SPOKEN, SPOKEN, bias=False)
        places = torch.eye(POSITIONS, width)
        generator = torch.Generator().manual_seed(8)
        self.query.weight.data = sharpness * places
        self.key.weight.data = torch.zeros(POSITIONS, width)
        for place in range(POSITIONS):
            self.key.weight.data[place, (place + 1) % POSITIONS] = 1.0
        self.value.weight.data = torch.cat([torch.zeros(SPOKEN, POSITIONS), torch.eye(SPOKEN)], dim=1)
        self.output.weight.data = loudness * torch.randn(SPOKEN, SPOKEN, generator=generator)
        self.register_buffer("shares", shares)
        self.double()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        weights = (self.query(inputs) @ self.key(inputs).mT).softmax(-1)
        return (self.output(weights @ self.value(inputs)) * self.shares[:, None]).sum(dim=1)

    def site(self) -> AttentionSite:
        return AttentionSite(
            "ahead", self, self.query, self.key, self.value, self.output, (POSITIONS,), (SPOKEN,), scaling=1.0
        )


def spoken_clips(count: int, seed: int = 1) -> torch.Tensor:
    said = torch.randn(count, POSITIONS, SPOKEN, generator=torch.Generator().manual_seed(seed))
    return torch.cat([torch.eye(POSITIONS).expand(count, -1, -1), said], dim=-1).double()


def as_trained(model, inputs, targets) -> SiteBasis:
    site = model.site()
    statistics = collect_statistics(
        model, [site], inputs, targets, small_attention.logits, generator=torch.Generator().manual_seed(0)
    )
    return choose_basis(site, statistics["ahead"], "trained", order="singular value")


def narrowed(model: LooksAhead, basis: SiteBasis, k: int, v: int, inputs: torch.Tensor) -> torch.Tensor:
    """The model's logits with all but k query/key and v value channels deleted, the mean in place of the latter."""
    mean = basis.context_mean[0]

    def deleted(_module, given):
        return (torch.cat([given[0][..., :v], mean[v:].expand(*given[0].shape[:-1], -1)], dim=-1),)

    whole = model.query.weight.data.clone()
    model.query.weight.data[k:] = 0
    hook = model.output.register_forward_pre_hook(deleted)
    with torch.no_grad():
        answers = model(inputs)
    hook.remove()
    model.query.weight.data = whole
    return answers


def squares_of(model, basis, inputs, targets, **options) -> torch.Tensor:
    grid = tuple(range(1, POSITIONS + 1))
    return collect_squares(
        model, [model.site()], {"ahead": basis}, {"ahead": grid}, inputs, targets, small_attention.logits, **options
    )["ahead"]


def test_a_saturated_heads_channels_are_free_by_derivatives_and_dear_in_truth():
    """The loss of really deleting channels, KL by its definition on four thousand clips, is what is estimated."""
    model = LooksAhead(40.0, torch.linspace(0.5, 1.5, POSITIONS), 0.05)
    inputs, targets = spoken_clips(4000), torch.zeros(4000, dtype=torch.int64)
    basis = as_trained(model, inputs, targets)
    derivatives = width_damages(basis.query_key[:, 0].numpy(), basis.value_output[:, 0].numpy())
    squares = squares_of(model, basis, inputs, targets, generator=torch.Generator().manual_seed(3))
    finite = width_losses(model.site(), range(1, POSITIONS + 1), squares, len(inputs), 1.0)[0]
    with torch.no_grad():
        dense = model(inputs).log_softmax(-1)
    for k in range(1, POSITIONS):
        slim = narrowed(model, basis, k, SPOKEN, inputs).log_softmax(-1)
        true = float((dense.exp() * (dense - slim)).sum(dim=-1).mean())
        assert true > 1e-4
        assert derivatives[k, SPOKEN] < 1e-12, "nothing moves a softmax that is sure"
        assert finite[k, SPOKEN] == pytest.approx(true, rel=0.08)
    assert finite[POSITIONS, SPOKEN] < 1e-20


def test_where_the_readout_is_linear_every_pair_of_widths_is_exact():
    """Changes of the objective's linear part, (p - label) by logits, with channels of both kinds really deleted."""
    model = LooksAhead(2.0, torch.linspace(-1.0, 1.5, POSITIONS), 1.0)
    inputs, targets = spoken_clips(7), torch.arange(7) % SPOKEN
    basis = as_trained(model, inputs, targets)
    found = squares_of(model, basis, inputs, targets, labels="observed")
    with torch.no_grad():
        dense = model(inputs)
    slope = dense.softmax(-1) - torch.eye(SPOKEN)[targets]
    for k in range(1, POSITIONS + 1):
        for v in range(SPOKEN + 1):
            changes = (slope * (narrowed(model, basis, k, v, inputs) - dense)).sum(dim=-1)
            assert float(found[0, k - 1, v]) == pytest.approx(float(changes.square().sum()), rel=1e-9, abs=1e-18)


def test_values_alone_lose_what_their_derivatives_say():
    """At full query/key width the model is linear between contexts and objective: both estimates are one."""
    model = small_attention.Attention(5, cross=False)
    site, targets = model.site(), torch.tensor([0, 2, 1, 1])
    inputs = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(4)).double()
    statistics = collect_statistics(model, [site], inputs, targets, small_attention.logits, labels="observed")
    basis, grid = choose_basis(site, statistics["toy"], "fisher"), width_grid(site, 1)
    squares = collect_squares(
        model, [site], {"toy": basis}, {"toy": grid}, inputs, targets, small_attention.logits, labels="observed"
    )
    found = width_losses(site, grid, squares["toy"], 4, 1.0)
    for head, (k, v) in enumerate(zip(site.query_key_widths, site.value_output_widths, strict=True)):
        expected = width_damages(basis.query_key[:, head, :k].numpy(), basis.value_output[:, head, :v].numpy())
        assert np.allclose(found[head, k, 1 : v + 1], expected[k, 1:], rtol=1e-4, atol=1e-7 * expected[0, 0])
        assert found[head, 0, 0] == pytest.approx(expected[0, 0], rel=1e-4)


def test_losses_are_per_target_and_infinite_off_the_grid():
    site = small_attention.Attention(5, cross=False).site()
    squares = torch.arange(3 * 2 * 5, dtype=torch.float64).reshape(3, 2, 5)
    found = width_losses(site, (2, 3), squares, 4, 2.5)
    assert found.shape == (3, 4, 5)
    offered = np.zeros_like(found, dtype=bool)
    offered[2, 0, 0] = True
    assert found[2, 0, 0] == float(squares[2, 1, 0]) / 20, "of both heads together"
    for head in range(2):
        offered[head, 0, 0] = True
        assert found[head, 0, 0] == float(squares[head, 1, 0]) / 20
        for place, k in enumerate((2, 3)):
            offered[head, k, 1:] = True
            assert found[head, k, 1:].tolist() == [float(each) / 20 for each in squares[head, place, 1:]]
    assert np.isinf(found[~offered]).all()


# The queries that tell


def few_rows(monkeypatch, rows: int) -> None:
    monkeypatch.setattr(module, "ROWS_AT_LEAST", rows)
    monkeypatch.setattr(module, "ROW_SHARE", 0.0)


def test_queries_whose_gradients_are_small_may_be_left_out(monkeypatch):
    """Two of six positions hold all but a thousandth of the gradients: their attention alone says the same."""
    shares = torch.tensor([1e-2, 1.0, 1e-2, -1e-2, 2.0, 1e-2])
    model = LooksAhead(4.0, shares, 1.0)
    inputs, targets = spoken_clips(40), torch.arange(40) % SPOKEN
    basis = as_trained(model, inputs, targets)
    whole = squares_of(model, basis, inputs, targets, labels="observed")
    few_rows(monkeypatch, POSITIONS)
    assert torch.equal(squares_of(model, basis, inputs, targets, labels="observed"), whole), "all of the few"
    few_rows(monkeypatch, 2)
    part = squares_of(model, basis, inputs, targets, labels="observed")
    assert not torch.equal(part, whole)
    assert torch.allclose(part[:, :4], whole[:, :4], rtol=0.05), "position 4 is cut as well"
    few_rows(monkeypatch, 1)
    one = squares_of(model, basis, inputs, targets, labels="observed")
    assert not torch.allclose(one, whole, rtol=0.05)


def test_every_head_has_telling_queries_of_its_own():
    gradient = torch.zeros(2, 8, 3)
    gradient[0, 5], gradient[1, 2] = 1.0, -2.0
    query, context = torch.randn(2, 8, 4), torch.randn(2, 8, 3)
    with pytest.MonkeyPatch.context() as monkeypatch:
        few_rows(monkeypatch, 1)
        picked = module._telling_rows(query, gradient, context)
    for head, row in ((0, 5), (1, 2)):
        for found, states in zip(picked, (query, gradient, context), strict=True):
            assert torch.equal(found[head], states[head, row : row + 1])


def test_a_decoders_queries_see_what_they_saw_however_many_there_are(monkeypatch):
    """Which keys come later is a matter of a query's place, which a selection would lose."""
    few_rows(monkeypatch, 2)
    model = small_attention.Attention(6, cross=False, causal=True)
    site, targets = model.site(), torch.tensor([0, 2, 1])
    inputs = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(4)).double()
    basis, grid = drawn_basis(site), width_grid(site, 1)
    found = collect_squares(
        model, [site], {"toy": basis}, {"toy": grid}, inputs, targets, small_attention.logits, labels="observed"
    )
    agree(found["toy"], by_loops(model, site, basis, inputs, targets, small_attention.logits), site, grid)


def test_the_grid_has_multiples_and_every_heads_own_width():
    site = small_attention.Attention(5, cross=False).site()
    assert width_grid(site, 2) == (2, 3)
    assert width_grid(site, 8) == (2, 3)
