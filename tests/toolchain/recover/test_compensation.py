"""Compensation: numpy's least squares on all tokens at once is the oracle; what does not help is not kept."""

from __future__ import annotations

import collections
import copy
import dataclasses
import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from leanear.data.examples import LabelledInputs
from leanear.families import ast, whisper
from leanear.plan import HeadPlan, SitePlan, full_plan
from leanear.recover.compensation import BlockSums, compensate_, least_squares_change
from leanear.runtimes.errors import BadInput
from tests.conftest import make_tiny_ast
from tests.toolchain.whisper_pruning import checkpoint, clips

CLIPS, HELD_OUT = 40, 8
FITTED = CLIPS - HELD_OUT


@pytest.fixture(autouse=True)
def every_token(monkeypatch):
    """The fits here are of all tokens, few as they are."""
    monkeypatch.setattr("leanear.recover.compensation.TOKENS_PER_COLUMN", 10_000)


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(CLIPS, 46, 128, generator=torch.Generator().manual_seed(5))


def halved(model, family=ast):
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
        for site in family.attention_sites(model)
    )
    return family.slim_model(model, sites)


def compensated(slim, dense, inputs, logits=ast.logits, **settings):
    """The last clips held out, all of one label: the labels count for nothing."""
    given = LabelledInputs(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    settings = {"batch_size": 7, **settings}
    return compensate_(answering(ast, logits), slim, dense, given[:FITTED], given[FITTED:], **settings)


def answering(family, logits):
    """The family, but for its logits."""
    return SimpleNamespace(**{**vars(family), "logits": logits})


class Judge:
    """Logits whose KL is what `loss` says of the names of the changed blocks; passes of either model counted."""

    def __init__(self, family, slim, dense, loss):
        self.family, self.slim, self.dense, self.loss = family, slim, dense, loss
        self.pruned = copy.deepcopy(slim.state_dict())
        sites = (*family.attention_sites(slim), *family.feed_forward_sites(slim))
        self.weights = {site.name: site.output.weight for site in sites}
        self.old = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.begun, self.finished = collections.Counter(), collections.Counter()

    def changed(self):
        return {name for name, weight in self.weights.items() if not torch.equal(weight, self.old[name])}

    def __call__(self, model, batch):
        self.begun["slim" if model is self.slim else "dense"] += 1
        answers = torch.zeros_like(self.family.logits(model, batch))
        self.finished["slim" if model is self.slim else "dense"] += 1
        if model is self.slim:
            answers[..., 0] = self.loss(self.changed())
        return answers


def everything_helps(slim, dense, family=ast):
    return Judge(family, slim, dense, lambda changed: 9 - len(changed))


@dataclasses.dataclass(frozen=True)
class Tokens:
    """What one block's output projection takes and gives, and the residual stream before it and at the first layer.

    float64 numpy, (tokens, C) and (tokens, D).
    """

    context: np.ndarray
    output: np.ndarray
    before: np.ndarray
    first: np.ndarray

    @property
    def given(self):
        """What the blocks have given to the stream up to and with this one."""
        return self.before + self.output - self.first


def at_block(model, run, index, family=ast):
    """Of one block in a whole forward pass `run(model)`: the stream is what its layer's norms take, (B, T, ...)."""
    seen = {}
    site = family.attention_sites(model)[index]
    stack, number, block = site.name.rsplit(".", 2)
    layers = next(module for name, module in model.named_modules() if name.endswith(stack))
    norms = {"attention": "layernorm_before"}
    before, first = (
        getattr(layers[int(each)], norms.get(name, f"{name}_layer_norm"))
        for each, name in ((number, block), (0, block.replace("encoder_attn", "self_attn")))
    )
    hooks = [
        site.output.register_forward_hook(lambda _m, a, o: seen.update(context=a[0], output=o)),
        before.register_forward_pre_hook(lambda _m, a: seen.update(before=a[0])),
        first.register_forward_pre_hook(lambda _m, a: seen.update(first=a[0])),
    ]
    with torch.no_grad():
        run(model)
    for hook in hooks:
        hook.remove()
    return {name: each.double().numpy() for name, each in seen.items()}


def tokens_at(model, inputs, index):
    """Of an AST, over all tokens."""
    seen = at_block(model, lambda model: ast.logits(model, inputs), index)
    return Tokens(**{name: each.reshape(-1, each.shape[-1]) for name, each in seen.items()})


def tokens_of(model, given, index):
    """Of a Whisper: in a decoder, of each clip the tokens up to its last target."""
    site = whisper.attention_sites(model)[index]
    seen = at_block(model, lambda model: whisper.logits(model, given.inputs), index, whisper)
    lengths = [None if site.kind == "encoder" else 1 + int(torch.nonzero(row != -100).max()) for row in given.targets]
    cut = {name: [clip[:length] for clip, length in zip(each, lengths)] for name, each in seen.items()}
    return Tokens(**{name: np.concatenate(each) for name, each in cut.items()})


def wanted_output(slim, dense):
    """What the slim block must give for its stream to be the dense one's."""
    return dense.given - (slim.given - slim.output)


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


def projection(model, index, family=ast):
    output = family.attention_sites(model)[index].output
    return output.weight.detach().double().numpy().copy(), output.bias.detach().double().numpy().copy()


def assert_closed_form(slim, index, contexts, target, weight, ridge, family=ast):
    wanted_weight, wanted_bias = closed_form(contexts, target, weight, ridge)
    found_weight, found_bias = projection(slim, index, family)
    rounding = 1e-5 * max(1, np.abs(target).max())
    assert np.abs(found_weight - wanted_weight).max() < rounding
    assert np.abs(found_bias - wanted_bias).max() < rounding


def kl(dense, slim, inputs):
    with torch.no_grad():
        p, q = (model(inputs).logits.double().log_softmax(-1).numpy() for model in (dense, slim))
    return float((np.exp(p) * (p - q)).sum(1).mean())


# The fit


def test_nothing_pruned_is_nothing_changed(tiny_ast, inputs):
    slim = ast.slim_model(tiny_ast, full_plan("ast", ast.attention_sites(tiny_ast)).sites)
    before = copy.deepcopy(slim.state_dict())
    done = compensated(slim, tiny_ast, inputs)
    assert done.held_out_kl_after == done.held_out_kl_before
    assert all((block.residual_share_before, block.residual_share_after) == (0.0, 0.0) for block in done.blocks)
    assert not any(block.kept for block in done.blocks)
    assert all(torch.equal(tensor, before[name]) for name, tensor in slim.state_dict().items())


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0])
def test_every_block_is_the_closed_form_behind_the_blocks_fitted_before(tiny_ast, inputs, ridge):
    slim = halved(tiny_ast)
    pruned = copy.deepcopy(slim)
    compensated(slim, tiny_ast, inputs, everything_helps(slim, tiny_ast), ridge=(ridge,))
    for index in range(2):
        narrow, wide = (tokens_at(model, inputs[:FITTED], index) for model in (slim, tiny_ast))
        old_weight, _ = projection(pruned, index)
        assert np.abs(projection(slim, index)[0] - old_weight).max() > 1e-2
        assert_closed_form(slim, index, narrow.context, wanted_output(narrow, wide), old_weight, ridge)


def test_a_feed_forward_block_of_full_width_makes_up_for_attention_where_asked(tiny_ast, inputs):
    """Of the last block, the residual is what tells the two models' last hidden states apart."""
    slim, ridge = halved(tiny_ast), 1e-2
    last = ast.feed_forward_sites(slim)[-1].output
    old = last.weight.detach().double().numpy().copy()
    done = compensated(slim, tiny_ast, inputs, everything_helps(slim, tiny_ast), ridge=(ridge,), every_block=True)
    assert [block.name.rpartition(".")[2] for block in done.blocks] == ["attention"] * 2 + ["feed_forward"] * 2
    seen = {}
    for name, model in (("slim", slim), ("dense", tiny_ast)):
        ast.encoder_layers(model)[-1].register_forward_hook(lambda _m, _a, o, name=name: seen.update({name: o}))
    last.register_forward_hook(lambda _m, a, o: seen.update(context=a[0], given=o))
    with torch.no_grad():
        ast.logits(slim, inputs[:FITTED])
        ast.logits(tiny_ast, inputs[:FITTED])
    of = {name: each.flatten(0, 1).double().numpy() for name, each in seen.items()}
    weight, bias = closed_form(of["context"], of["given"] + of["dense"] - of["slim"], old, ridge)
    assert np.abs(last.weight.detach().double().numpy() - weight).max() < 1e-5
    assert np.abs(last.bias.detach().double().numpy() - bias).max() < 1e-5
    assert np.abs(weight - old).max() > 1e-3


def test_sums_say_what_is_left_of_the_residual():
    generator = torch.Generator().manual_seed(2)
    context, slim, dense = (torch.randn(50, width, generator=generator) + 3 for width in (6, 4, 4))
    output = torch.nn.Linear(6, 4)
    parts, whole = BlockSums.empty(output), BlockSums.empty(output)
    for rows in torch.arange(50).split(13):
        parts.add_(context[rows], slim[rows], dense[rows])
    whole.add_(context, slim, dense)
    change = least_squares_change(parts, 0.1)
    residual = (dense.double() - slim.double()) - context.double() @ change[:, :-1].T - change[:, -1]
    wanted = float(residual.square().sum() / dense.double().square().sum())
    assert parts.residual_share(change) == pytest.approx(wanted, rel=1e-6)
    assert whole.residual_share(change) == pytest.approx(wanted, rel=1e-6)


def test_the_ridge_of_the_least_held_out_residual_is_taken(tiny_ast, inputs):
    """Two fitted clips of few tokens: without a ridge they are overfitted."""
    ridges = (1e-9, 1e-2, 1e-1, 1.0, 1e3)
    given = LabelledInputs(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    slim = halved(tiny_ast)
    pruned = copy.deepcopy(slim)
    family = answering(ast, everything_helps(slim, tiny_ast))
    done = compensate_(family, slim, tiny_ast, given[:2], given[2:], ridge=ridges)
    for index, block in enumerate(done.blocks):
        fitted, judged = (tokens_at(slim, each, index) for each in (inputs[:2], inputs[2:]))
        wide = [tokens_at(tiny_ast, each, index) for each in (inputs[:2], inputs[2:])]
        target, wanted = (wanted_output(*each) for each in zip((fitted, judged), wide))
        scale = np.square(wide[1].given).sum()
        old_weight, old_bias = projection(pruned, index)
        shares = {}
        for ridge in ridges:
            weight, bias = closed_form(fitted.context, target, old_weight, ridge)
            shares[ridge] = np.square(wanted - judged.context @ weight.T - bias).sum() / scale
        before = np.square(wanted - judged.context @ old_weight.T - old_bias).sum() / scale
        assert block.ridge == min(shares, key=shares.get) != ridges[0]
        assert block.residual_share_before == pytest.approx(before, rel=1e-4)
        assert block.residual_share_after == pytest.approx(shares[block.ridge], rel=1e-4)


@pytest.mark.parametrize("room", [0, 20, 1000])
def test_where_a_pass_begins_far_away_the_first_clips_are_enough(tiny_ast, inputs, room, monkeypatch):
    """As many as have twenty tokens for each column of a context, or as have room."""
    tokens, columns = (tokens_at(halved(tiny_ast), inputs[:1], 0).context.shape[axis] for axis in (0, 1))
    of_one_clip = 2 * 4 * tokens * tiny_ast.config.hidden_size
    monkeypatch.setattr("leanear.recover.compensation.TOKENS_PER_COLUMN", 20)
    monkeypatch.setattr("leanear.recover.block_passes.MOST_KEPT_BYTES", room * of_one_clip)
    enough = math.ceil(20 * (columns + 1) / tokens)
    assert enough < 20 < FITTED
    slim, pruned = halved(tiny_ast), halved(tiny_ast)
    compensated(slim, tiny_ast, inputs, everything_helps(slim, tiny_ast), ridge=(1e-2,), batch_size=7)
    for index, taken in enumerate((FITTED, min(max(enough, room), FITTED))):
        narrow, wide = (tokens_at(model, inputs[:taken], index) for model in (slim, tiny_ast))
        old_weight, _ = projection(pruned, index)
        assert_closed_form(slim, index, narrow.context, wanted_output(narrow, wide), old_weight, 1e-2)


def test_less_ridge_never_fits_worse(tiny_ast, inputs):
    wanted = tokens_at(tiny_ast, inputs[:FITTED], 0).output
    errors = [np.square(tokens_at(halved(tiny_ast), inputs[:FITTED], 0).output - wanted).mean()]
    for ridge in (1e3, 1.0, 1e-1, 1e-2, 1e-3, 1e-6):
        slim = halved(tiny_ast)
        compensated(slim, tiny_ast, inputs, everything_helps(slim, tiny_ast), ridge=(ridge,))
        errors.append(np.square(tokens_at(slim, inputs[:FITTED], 0).output - wanted).mean())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]


def test_padded_decoder_tokens_count_for_nothing():
    """The fit is numpy's on the tokens up to each clip's last target, and on every token of the encoder."""
    dense, given = checkpoint().model, clips(9)
    given = LabelledInputs(
        dataclasses.replace(given.inputs, tokens=functional.pad(given.inputs.tokens, (0, 6), value=11)),
        functional.pad(given.targets, (0, 6), value=-100),
    )
    slim = halved(dense, whisper)
    pruned = copy.deepcopy(slim)
    family = answering(whisper, everything_helps(slim, dense, whisper))
    # judged on the fitted clips, where no change is worse than none
    compensate_(family, slim, dense, given, given, ridge=(1e-2,), batch_size=4)
    for index in range(len(whisper.attention_sites(slim))):
        narrow, wide = (tokens_of(model, given, index) for model in (slim, dense))
        old_weight, _ = projection(pruned, index, whisper)
        assert_closed_form(slim, index, narrow.context, wanted_output(narrow, wide), old_weight, 1e-2, whisper)


def test_a_decoder_stays_as_it_is_where_the_encoder_alone_is_fitted():
    dense, given = checkpoint().model, clips(9)
    slim = halved(dense, whisper)
    pruned = copy.deepcopy(slim.state_dict())
    family = answering(whisper, everything_helps(slim, dense, whisper))
    done = compensate_(family, slim, dense, given, given, ridge=(1e-2,), every_block=True, encoder_alone=True)
    changed = {name for name, weight in slim.state_dict().items() if not torch.equal(weight, pruned[name])}
    assert {name.split(".")[1] for name in changed} == {"encoder"}
    assert {block.name.split(".")[0] for block in done.blocks} == {"encoder"}


def test_a_block_whose_held_out_residual_would_grow_is_not_changed():
    """A single clip has fewer decoder tokens than channels: almost without a ridge, they are fitted exactly."""
    dense, given = checkpoint().model, clips(9)
    slim = halved(dense, whisper)
    judge = everything_helps(slim, dense, whisper)
    done = compensate_(answering(whisper, judge), slim, dense, given[:1], given[1:], ridge=(1e-9,))
    kinds = {site.kind for site, block in zip(whisper.attention_sites(slim), done.blocks) if block.kept}
    assert kinds >= {"encoder"}
    unchanged = [index for index, block in enumerate(done.blocks) if block.ridge is None]
    assert unchanged
    for index in unchanged:
        fitted, judged = (tokens_of(slim, each, index) for each in (given[:1], given[1:]))
        wide = [tokens_of(dense, each, index) for each in (given[:1], given[1:])]
        target, wanted = (wanted_output(*each) for each in zip((fitted, judged), wide))
        old_weight, old_bias = projection(slim, index, whisper)
        weight, bias = closed_form(fitted.context, target, old_weight, 1e-9)
        before = np.square(wanted - judged.context @ old_weight.T - old_bias).sum()
        assert np.square(wanted - judged.context @ weight.T - bias).sum() > before
        assert done.blocks[index].residual_share_after == done.blocks[index].residual_share_before
    assert judge.changed() == {block.name for block in done.blocks if block.kept}
    assert not any(done.blocks[index].kept for index in unchanged)


# What is kept


def test_reported_kl_is_that_of_the_held_out_clips(tiny_ast, inputs):
    slim = halved(tiny_ast)
    held_out = inputs[FITTED:]
    before = kl(tiny_ast, slim, held_out)
    done = compensated(slim, tiny_ast, inputs)
    assert done.held_out_kl_before == pytest.approx(before, rel=1e-4)
    assert done.held_out_kl_after == pytest.approx(kl(tiny_ast, slim, held_out), rel=1e-4)
    assert done.held_out_kl_after < 0.9 * before
    assert all(block.residual_share_after < block.residual_share_before for block in done.blocks)
    assert json.loads(json.dumps(dataclasses.asdict(done)))["held_out_kl_after"] == done.held_out_kl_after


@pytest.mark.parametrize("harmful", range(5))
@pytest.mark.parametrize("harm", [0.5, 20])
def test_a_block_whose_change_hurts_is_not_kept_while_the_others_are(inputs, harmful, harm):
    """Be the harm less than all others' gain together, or more."""
    dense = make_tiny_ast(layers=5)
    slim = halved(dense)
    name = f"layers.{harmful}.attention"
    judge = Judge(ast, slim, dense, lambda changed: 9 - len(changed - {name}) + harm * (name in changed))
    done = compensated(slim, dense, inputs, judge)
    assert [block.kept for block in done.blocks] == [index != harmful for index in range(5)]
    assert judge.changed() == {block.name for block in done.blocks if block.kept}
    assert done.held_out_kl_after < done.held_out_kl_before


def test_a_kind_whose_changes_hurt_is_not_kept():
    dense, given = checkpoint().model, clips(10)
    slim = halved(dense, whisper)
    judge = Judge(
        whisper, slim, dense,
        lambda changed: 9 + sum(-1 if "encoder_attn" in name else 1 for name in changed),
    )  # fmt: skip
    done = compensate_(answering(whisper, judge), slim, dense, given[:8], given[8:])
    assert [block.kept for block in done.blocks] == [site.kind == "cross" for site in whisper.attention_sites(slim)]


def test_never_a_higher_kl_than_before_whatever_the_changes_do(inputs):
    dense = make_tiny_ast(layers=4)
    for seed in range(8):
        slim = halved(dense)
        losses = np.random.default_rng(seed).uniform(1, 9, 16)
        names = [site.name for site in ast.attention_sites(slim)]

        def loss(changed, losses=losses, names=names):
            return losses[sum(1 << names.index(name) for name in changed)]

        judge = Judge(ast, slim, dense, loss)
        done = compensated(slim, dense, inputs, judge, batch_size=40)
        assert done.held_out_kl_after <= done.held_out_kl_before
        with torch.no_grad():
            now, old = (torch.tensor([loss(changed), 0, 0, 0, 0]) for changed in (judge.changed(), set()))
        for logit, reported in ((now, done.held_out_kl_after), (old, done.held_out_kl_before)):
            assert reported == pytest.approx(float(-math.log(5) - logit.log_softmax(0).mean()), rel=1e-4)


def test_clips_are_held_out_of_the_fit(tiny_ast, inputs):
    other = inputs.clone()
    other[FITTED:] = torch.randn(HELD_OUT, 46, 128)
    first, second = halved(tiny_ast), halved(tiny_ast)
    for slim, given in ((first, inputs), (second, other)):
        compensated(slim, tiny_ast, given, everything_helps(slim, tiny_ast), ridge=(1e-2,))
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_what_does_not_help_is_put_back_bitwise(tiny_ast, inputs):
    """Held-out clips on which the slim model already is the dense one, because their dense twin is the slim model."""
    slim = halved(tiny_ast)
    twin = copy.deepcopy(slim)

    def logits(model, batch):
        answers = ast.logits(model, batch)
        held_out = any(torch.equal(batch[0], row) for row in inputs[FITTED:])
        return ast.logits(twin, batch) if model is tiny_ast and held_out else answers

    done = compensated(slim, tiny_ast, inputs, logits)
    assert not any(block.kept for block in done.blocks)
    assert done.held_out_kl_after == done.held_out_kl_before
    assert all(torch.equal(tensor, twin.state_dict()[name]) for name, tensor in slim.state_dict().items())


# What it costs, and what it leaves alone


@pytest.mark.parametrize("kept_bytes", [1024**3, 0])
def test_clips_go_as_far_as_the_block_and_the_held_out_ones_once_more_to_the_end(inputs, kept_bytes, monkeypatch):
    monkeypatch.setattr("leanear.data.examples.MOST_KEPT_BYTES", kept_bytes)
    dense = make_tiny_ast(layers=6)
    slim = halved(dense)
    judge = everything_helps(slim, dense)
    done = compensated(slim, dense, inputs, judge, batch_size=4)
    assert all(block.kept for block in done.blocks)
    in_order, trials = 1, 1 + 6
    assert judge.finished == {
        "slim": in_order + trials * HELD_OUT // 4,
        "dense": (1 if kept_bytes else trials) * HELD_OUT // 4,
    }
    behind_layers, tries = 5 * CLIPS // 4, 5 * 2  # a clip alone tells how much there is to keep
    assert {name: judge.begun[name] - judge.finished[name] for name in judge.begun} == {
        "slim": 6 * CLIPS // 4 + behind_layers + tries,
        "dense": 6 * CLIPS // 4 + behind_layers,
    }


@pytest.mark.parametrize(("kept_bytes", "runs"), [(1024**3, 6 + 5), (0, 6 * 7 // 2)])
def test_passes_begin_at_the_blocks_layer_where_what_comes_before_fits(inputs, kept_bytes, runs, monkeypatch):
    """A dense layer runs once for its block and once to get behind it, not for every block that follows."""
    monkeypatch.setattr("leanear.recover.block_passes.MOST_KEPT_BYTES", kept_bytes)
    dense, counted = make_tiny_ast(layers=6), collections.Counter()
    for layer in ast.encoder_layers(dense):
        layer.layernorm_before.register_forward_pre_hook(lambda _m, a: counted.update([len(a[0])]))
    slim = halved(dense)
    compensated(slim, dense, inputs, everything_helps(slim, dense), batch_size=FITTED)
    assert counted[FITTED] == runs
    assert not any("forward" in vars(module) for model in (slim, dense) for module in model.modules())


def test_an_encoder_runs_once_for_the_blocks_of_a_decoder_where_what_it_gives_fits(monkeypatch):
    dense, given, found = checkpoint().model, clips(10), []
    layers = dense.model.encoder.layers
    counted = collections.Counter()
    layers[-1].fc1.register_forward_pre_hook(lambda _m, a: counted.update([len(a[0])]))
    for kept_bytes, runs in ((1024**3, 1), (0, sum(site.kind != "encoder" for site in whisper.attention_sites(dense)))):
        monkeypatch.setattr("leanear.recover.block_passes.MOST_KEPT_BYTES", kept_bytes)
        counted.clear()
        found.append(halved(dense, whisper))
        compensate_(whisper, found[-1], dense, given[:8], given[8:], ridge=(1e-2,))
        assert counted[8] == runs
    for name, tensor in found[0].state_dict().items():
        assert torch.allclose(found[1].state_dict()[name], tensor, rtol=3e-4, atol=3e-4), name


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
    assert not any(module._forward_hooks for model in (slim, tiny_ast) for module in model.modules())


@pytest.mark.parametrize("asked", range(1, 18))
def test_when_interrupted_the_old_weights_are_back(tiny_ast, inputs, asked):
    """While it fits or in any trial, at that batch."""
    slim = halved(tiny_ast)
    before = copy.deepcopy(slim.state_dict())
    calls = itertools.count(1)

    def logits(model, batch):
        if next(calls) == asked:
            raise KeyboardInterrupt
        return ast.logits(model, batch)

    with pytest.raises(KeyboardInterrupt):
        compensated(slim, tiny_ast, inputs, logits, batch_size=16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in slim.state_dict().items())
    assert not any(module._forward_hooks for model in (slim, tiny_ast) for module in model.modules())


def test_it_says_how_far_it_is(tiny_ast, inputs):
    told = []
    compensated(halved(tiny_ast), tiny_ast, inputs, report=lambda text, fraction: told.append((text, fraction)))
    texts, fractions = zip(*told, strict=True)
    assert [text[: text.index(",", 14)] for text in texts[:-1]] == [f"compensation, block {i} of 2" for i in (1, 2)]
    assert texts[-1].startswith("compensated, held-out KL ")
    assert list(fractions) == sorted(fractions)
    assert fractions[-1] == 1.0


@pytest.mark.parametrize(("settings", "message"), [({"ridge": (0.0,)}, "ridge"), ({"ridge": ()}, "ridge")])
def test_unusable_settings_are_refused(tiny_ast, inputs, settings, message):
    with pytest.raises(BadInput, match=message):
        compensated(halved(tiny_ast), tiny_ast, inputs, **settings)


def test_too_few_clips_and_other_blocks_are_refused(tiny_ast, inputs):
    with pytest.raises(BadInput, match="^2 clips are too few for compensation"):
        compensated(halved(tiny_ast), tiny_ast, inputs[:2])
    with pytest.raises(ValueError, match="shorter|longer"):
        compensated(halved(tiny_ast), make_tiny_ast(layers=3), inputs)
