"""Compensation: numpy's least squares on all tokens at once is the oracle; what does not help is not kept."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch

from runtimes.errors import BadInput
from tests.conftest import make_tiny_ast
from toolchain.compensation import compensate_
from toolchain.families import ast
from toolchain.plan import HeadPlan, SitePlan, full_plan

CLIPS, HELD_OUT = 40, 8
ORDER = torch.arange(CLIPS).flip(0)
FITTED = ORDER[: CLIPS - HELD_OUT]


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(CLIPS, 46, 128, generator=torch.Generator().manual_seed(5))


def halved(model):
    """Every other value/output channel kept in the trained basis, and all queries and keys."""
    sites = tuple(
        SitePlan(
            site.name,
            len(site.query_key_widths),
            tuple(
                HeadPlan(head, tuple(range(qk)), tuple(range(0, vo, 2)))
                for head, (qk, vo) in enumerate(zip(site.query_key_widths, site.value_output_widths))
            ),
        )
        for site in ast.attention_sites(model)
    )
    return ast.slim_model(model, sites)


def compensated(slim, dense, inputs, logits=ast.logits, **settings):
    return compensate_(
        slim, dense, ast.attention_sites(slim), ast.attention_sites(dense), inputs,
        torch.zeros(len(inputs), dtype=torch.int64), logits,
        **{"order": ORDER, "batch_size": 7, **settings},
    )  # fmt: skip


def always_better(dense):
    """Logits by which every trial seems nearer to the dense model than the one before: whatever is fitted is kept."""
    calls = itertools.count(1)

    def logits(model, batch):
        answers = torch.zeros_like(ast.logits(model, batch))  # passes that fit end within
        if model is not dense:
            answers[:, 0] = 1 / next(calls)
        return answers

    return logits


def streams(model):
    return [layer.layernorm_before for layer in ast.encoder_layers(model)]


def at_block(model, inputs, index):
    """Contexts, outputs and residual stream of one block over all tokens, float64 numpy, by whole forward passes."""
    seen = {}
    layer, site = ast.encoder_layers(model)[index], ast.attention_sites(model)[index]
    hooks = [
        site.output.register_forward_hook(lambda _m, a, o: seen.update(context=a[0], output=o)),
        layer.register_forward_pre_hook(lambda _m, a: seen.update(stream=a[0])),
    ]
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()
    return tuple(seen[name].flatten(0, 1).double().numpy() for name in ("context", "output", "stream"))


def closed_form(contexts, target, weight, ridge):
    """Weight and bias of least squares with the ridge written as more rows, by numpy's SVD solver."""
    mean, target_mean = contexts.mean(0), target.mean(0)
    centred = contexts - mean
    tokens, width = centred.shape
    penalty = ridge * np.square(centred).sum() / tokens / width
    rows = np.vstack([centred, np.sqrt(tokens * penalty) * np.eye(width)])
    right = np.vstack([target - target_mean, np.sqrt(tokens * penalty) * weight.T])
    solution = np.linalg.lstsq(rows, right, rcond=None)[0].T
    return solution, target_mean - solution @ mean


def projection(model, index):
    output = ast.attention_sites(model)[index].output
    return output.weight.detach().clone(), output.bias.detach().clone()


def kl(dense, slim, inputs):
    with torch.no_grad():
        p, q = (model(inputs).logits.double().log_softmax(-1).numpy() for model in (dense, slim))
    return float((np.exp(p) * (p - q)).sum(1).mean())


def test_nothing_pruned_is_nothing_changed(tiny_ast, inputs):
    slim = ast.slim_model(tiny_ast, full_plan("ast", ast.attention_sites(tiny_ast)).sites)
    before = copy.deepcopy(slim.state_dict())
    done = compensated(slim, tiny_ast, inputs)
    assert done.held_out_kl_after == done.held_out_kl_before
    assert all(block.kept is None for block in done.blocks)
    assert all(torch.equal(tensor, before[name]) for name, tensor in slim.state_dict().items())


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0])
@pytest.mark.parametrize("drift", [0.0, 1.0])
def test_every_block_is_the_closed_form_on_what_it_hears_after_the_blocks_before(tiny_ast, inputs, ridge, drift):
    slim = halved(tiny_ast)
    pruned = copy.deepcopy(slim)
    compensated(
        slim, tiny_ast, inputs, always_better(tiny_ast), ridge=(ridge,), drift=(drift,),
        slim_streams=streams(slim), dense_streams=streams(tiny_ast),
    )  # fmt: skip
    for index in range(2):
        contexts, _, stream = at_block(slim, inputs[FITTED], index)  # hears the block before as it ended up
        _, wanted, dense_stream = at_block(tiny_ast, inputs[FITTED], index)
        target = wanted + drift * (dense_stream - stream)
        old_weight = projection(pruned, index)[0].double().numpy()
        weight, bias = closed_form(contexts, target, old_weight, ridge)
        found_weight, found_bias = (tensor.double().numpy() for tensor in projection(slim, index))
        assert np.abs(found_weight - old_weight).max() > 1e-2
        assert np.abs(found_weight - weight).max() < 1e-5
        assert np.abs(found_bias - bias).max() < 1e-5
    unsequential, _, stream = at_block(pruned, inputs[FITTED], 1)
    other, _ = closed_form(unsequential, wanted + drift * (dense_stream - stream), old_weight, ridge)
    assert np.abs(found_weight - other).max() > 1e-4, "the test must see the difference that the order makes"


def test_less_ridge_never_fits_worse(tiny_ast, inputs):
    wanted = at_block(tiny_ast, inputs[FITTED], 0)[1]
    errors = []
    for ridge in (1e3, 1.0, 1e-1, 1e-2, 1e-3, 1e-6):
        slim = halved(tiny_ast)
        if not errors:
            errors.append(np.square(at_block(slim, inputs[FITTED], 0)[1] - wanted).mean())
        compensated(slim, tiny_ast, inputs, always_better(tiny_ast), ridge=(ridge,))
        errors.append(np.square(at_block(slim, inputs[FITTED], 0)[1] - wanted).mean())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]


def test_reported_kl_is_that_of_the_held_out_clips_and_the_best_trial_stays(tiny_ast, inputs):
    slim = halved(tiny_ast)
    held_out = inputs[ORDER[-HELD_OUT:]]
    before = kl(tiny_ast, slim, held_out)
    done = compensated(slim, tiny_ast, inputs)
    assert done.held_out_kl_before == pytest.approx(before, rel=1e-4)
    assert done.held_out_kl_after == pytest.approx(kl(tiny_ast, slim, held_out), rel=1e-4)
    assert done.held_out_kl_after < 0.9 * before
    for block in done.blocks:
        assert len(block.trials) == 3
        if block.kept is not None:
            assert block.kept.held_out_kl == min(trial.held_out_kl for trial in block.trials)


def test_clips_are_held_out_of_the_fit(tiny_ast, inputs):
    other = inputs.clone()
    other[ORDER[-HELD_OUT:]] = torch.randn(HELD_OUT, 46, 128)
    first, second = halved(tiny_ast), halved(tiny_ast)
    for slim, clips in ((first, inputs), (second, other)):
        compensated(slim, tiny_ast, clips, always_better(tiny_ast), ridge=(1e-2,))
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_what_does_not_help_is_put_back_bitwise(tiny_ast, inputs):
    """Held-out clips on which the slim model already is the dense one, because their dense twin is the slim model."""
    slim = halved(tiny_ast)
    before = copy.deepcopy(slim.state_dict())
    held_out_rows = inputs[ORDER[-HELD_OUT:]]
    twin = copy.deepcopy(slim)

    def logits(model, batch):
        if model is tiny_ast and any(torch.equal(batch[0], row) for row in held_out_rows):
            return twin(batch).logits
        return ast.logits(model, batch)

    done = compensated(slim, tiny_ast, inputs, logits)
    assert all(block.kept is None and min(trial.held_out_kl for trial in block.trials) > 0 for block in done.blocks)
    assert done.held_out_kl_after == done.held_out_kl_before
    assert all(torch.equal(tensor, before[name]) for name, tensor in slim.state_dict().items())


def test_only_output_projections_change_and_modes_stay(tiny_ast, inputs):
    slim = halved(tiny_ast).train()
    slim.classifier.dense.weight.requires_grad_(False)
    required = {name: parameter.requires_grad for name, parameter in slim.named_parameters()}
    before = {name: copy.deepcopy(model.state_dict()) for name, model in (("slim", slim), ("dense", tiny_ast))}
    compensated(slim, tiny_ast, inputs)
    assert slim.training
    assert not tiny_ast.training
    assert {name: parameter.requires_grad for name, parameter in slim.named_parameters()} == required
    changed = {name for name, tensor in slim.state_dict().items() if not torch.equal(tensor, before["slim"][name])}
    assert changed
    assert all(".attention.o_proj." in name for name in changed)
    assert all(torch.equal(tensor, before["dense"][name]) for name, tensor in tiny_ast.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in slim.modules())


def test_interrupted_trial_leaves_the_old_weights(tiny_ast, inputs):
    slim = halved(tiny_ast)
    before = copy.deepcopy(slim.state_dict())
    calls = []

    def logits(model, batch):
        answers = ast.logits(model, batch)
        calls.append(model)  # reached by whole forward passes alone
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answers

    with pytest.raises(KeyboardInterrupt):
        compensated(slim, tiny_ast, inputs, logits, batch_size=16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in slim.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"held_out": 0.0}, "held_out"),
        ({"held_out": 1.0}, "held_out"),
        ({"order": torch.arange(2)}, "too few"),
        ({"ridge": (0.0,)}, "ridge"),
        ({"ridge": ()}, "ridge"),
        ({"drift": ()}, "drift"),
    ],
)
def test_unusable_settings_are_refused(tiny_ast, inputs, settings, message):
    with pytest.raises(BadInput, match=message):
        compensated(halved(tiny_ast), tiny_ast, inputs, **settings)


def test_drift_without_streams_and_other_blocks_are_refused(tiny_ast, inputs):
    with pytest.raises(ValueError, match="stream"):
        compensated(halved(tiny_ast), tiny_ast, inputs, drift=(1.0,))
    with pytest.raises(ValueError, match="different attention blocks"):
        compensated(halved(tiny_ast), make_tiny_ast(layers=3), inputs)
