"""Held-out clips, the loss on them, and the curve of estimates: numbers by hand, or by definition."""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from leanear.data.examples import HeldOut, LabelledInputs, Mistakes, divided
from leanear.evaluate.measured_loss import Judge, MeasuredLoss
from leanear.families import ast, whisper
from leanear.prune import curve
from leanear.prune.allocation.allocate import Allocation
from leanear.prune.closed_loop import Corrections
from leanear.prune.costs import parameter_costs
from leanear.prune.curve import TENTHS, Estimate, estimated_curve, knee, loss_begins_at
from leanear.prune.rotated import prune_rotated
from leanear.prune.scoring import Scores, score_widths
from leanear.prune.widths import RotatedRecipe
from leanear.runtimes.errors import BadInput
from leanear.runtimes.records import as_json, read
from tests.conftest import make_tiny_ast
from tests.toolchain import whisper_pruning

SMALL = RotatedRecipe(multiples=(2, 2), chunk=8)


def clips(count: int, seed: int = 1) -> LabelledInputs:
    inputs = torch.randn(count, 46, 128, generator=torch.Generator().manual_seed(seed))
    return LabelledInputs(inputs, torch.arange(count) % 5)


def halved(family, model, given):
    costs = parameter_costs(family.dense_plan(model))
    return prune_rotated(family, model, given, costs, 0.5 * costs.dense, SMALL).model


# Held-out clips


@pytest.mark.parametrize(
    ("count", "scored", "held_out"), [(2, 1, 1), (3, 2, 1), (7, 6, 1), (8, 6, 2), (100, 80, 20), (1000, 936, 64)]
)
def test_the_last_fifth_is_held_out(count, scored, held_out):
    given = LabelledInputs(torch.arange(count)[:, None].float(), torch.zeros(count, dtype=torch.int64))
    first, last = divided(given)
    assert first.inputs[:, 0].tolist() == list(range(scored))
    assert last.inputs[:, 0].tolist() == list(range(scored, scored + held_out))


def test_one_clip_is_both():
    given = clips(1)
    assert divided(given) == (given, given)


@pytest.mark.parametrize("kept_bytes", [0, 100, 10**9])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_divergence_is_the_one_of_the_definition(monkeypatch, kept_bytes, batch_size):
    """Of labels and of tokens, however many answers of the dense model are kept, and the same when asked again."""
    monkeypatch.setattr("leanear.data.examples.MOST_KEPT_BYTES", kept_bytes)
    model = make_tiny_ast()
    slim, judged = halved(ast, model, clips(8)), clips(7, 2)
    held_out = HeldOut(model, judged, ast.logits, batch_size)
    with torch.no_grad():
        p, q = (each(judged.inputs).logits.double().softmax(1) for each in (model, slim))
    expected = float((p * (p.log() - q.log())).sum(dim=1).mean())
    assert held_out.kl(slim) == pytest.approx(expected, rel=1e-4)
    assert held_out.kl(slim) == held_out.kl(slim) > 1e-3
    assert held_out.kl(model) == pytest.approx(0.0, abs=1e-9)
    assert sum(each.nbytes for each in held_out.answers.values()) <= kept_bytes
    speaker = whisper_pruning.checkpoint().model
    small, spoken = halved(whisper, speaker, whisper_pruning.clips(8)), whisper_pruning.clips(5, seed=2)
    found = HeldOut(speaker, spoken, whisper.logits, batch_size).kl(small)
    assert found == pytest.approx(whisper_pruning.divergence(speaker, small, spoken), rel=1e-3)


def test_training_mode_is_given_back():
    model = make_tiny_ast().train()
    held_out = HeldOut(model, clips(3), ast.logits)
    assert held_out.kl(model) == pytest.approx(0.0, abs=1e-9), "in eval mode, without dropout"
    assert model.training
    assert (len(held_out), len(held_out.first(2))) == (3, 2)


# The measured loss


def test_mistakes_are_counted_and_their_standard_error_is_over_clips(monkeypatch):
    """Of words: 2 of 10 wrong, then 5; clip by clip 0, 3 and 0 more: sqrt(3) * std / 10, by numpy's std of N."""
    before, after = (Mistakes(np.array(e), np.array([4.0, 3.0, 3.0])) for e in ((1.0, 0.0, 1.0), (1.0, 3.0, 1.0)))
    family = SimpleNamespace(mistakes=lambda _checkpoint, model, _clips, _answers: before if model == "d" else after)
    judge = Judge(family, SimpleNamespace(model="d"), HeldOutOf(3, 0.02))
    monkeypatch.setattr("leanear.evaluate.measured_loss.evaluated", lambda _model: torch.no_grad())
    few = judge.loss("s")
    assert few.standard_error_points is None, "of three clips it says nothing"
    assert not few.matters, "by mistakes; its divergence is small"
    monkeypatch.setattr("leanear.evaluate.measured_loss.FEWEST_CLIPS", 3)
    found = judge.loss("s")
    assert (found.clips, found.divergence, found.counted) == (3, 0.02, 10.0)
    assert (found.dense_mistakes, found.slim_mistakes) == (2.0, 5.0)
    assert found.points == pytest.approx(30.0)
    assert found.standard_error_points == pytest.approx(100 * math.sqrt(3) * math.sqrt(2.0) / 10)
    assert not found.matters, "30 points of 24.5 standard error"
    assert Judge(family, SimpleNamespace(model="d"), HeldOutOf(3, math.nan)).loss("s").divergence is None


class HeldOutOf:
    """So many clips of words, on which every model has this divergence."""

    batch_size = 16

    def __init__(self, count: int, divergence: float):
        self.divergence = divergence
        self.clips = LabelledInputs(torch.zeros(count, 1), torch.zeros(count, 2, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.clips)

    def kl(self, _model) -> float:
        return self.divergence


@pytest.mark.parametrize(
    ("divergence", "mistakes", "error", "matters"),
    [
        (0.049, 0, 0.0, False),
        (0.05, 0, 0.0, True),
        (0.001, 9, 0.1, False),  # 0.9 points
        (0.001, 10, 0.4, True),  # one point, 2.5 standard errors
        (0.001, 10, 0.6, False),
        (0.001, -50, 0.1, False),
        (None, 0, 0.0, True),
    ],
)
def test_what_matters(divergence, mistakes, error, matters):
    loss = MeasuredLoss(20, divergence, 100, 100 + mistakes, 1000, None, None, error)
    assert loss.matters is matters
    assert as_json(loss)["matters"] is matters
    assert read(MeasuredLoss, as_json(loss), "loss") == loss


# The curve


def known(monkeypatch, loss_at, most: float = 1.0):
    """Estimates that are a function of sparsity, corrected by 1.5; budgets below 1 - most are out of reach."""

    def choose_widths(_sites, losses, costs, budget, _recipe):
        sparsity = 1 - budget / costs.dense
        if sparsity > most + 1e-9:
            raise BadInput("out of reach")
        return Allocation((), budget, float(losses["a"][0]) * loss_at(sparsity))

    monkeypatch.setattr(curve, "choose_widths", choose_widths)
    family = SimpleNamespace(attention_sites=lambda _model: ())
    scores = Scores({}, {"a": np.ones(1)})
    return family, None, scores, Corrections({"a": 3.0}, 0.5), SimpleNamespace(dense=1000.0), SMALL


def test_the_curve_is_of_corrected_estimates_and_ends_where_models_do(monkeypatch):
    found = estimated_curve(*known(monkeypatch, lambda sparsity: sparsity**2, most=0.6))
    assert [each.sparsity for each in found] == list(TENTHS[:6])
    for each in found:
        assert each.loss == pytest.approx(1.5 * each.sparsity**2)
        assert each.allocation.cost == pytest.approx(1000 * (1 - each.sparsity))


@pytest.mark.parametrize(
    ("loss_at", "most", "begins"),
    [
        (lambda sparsity: sparsity**2, 1.0, 0.18),  # 1.5 times that passes 0.05 at 0.1826
        (lambda sparsity: 0.0, 0.63, 0.63),
        (lambda sparsity: 1.0, 1.0, 0.0),
        (lambda sparsity: 0.0 if sparsity < 0.705 else 9.0, 1.0, 0.7),
        (lambda sparsity: 0.0, 1.0, 0.99),
    ],
)
def test_where_a_loss_begins_to_matter(monkeypatch, loss_at, most, begins):
    curve = functools.partial(estimated_curve, *known(monkeypatch, loss_at, most))
    assert loss_begins_at(curve) == pytest.approx(begins)


def estimates(*losses: float) -> list[Estimate]:
    nothing = Allocation((), 0.0, 0.0)
    return [Estimate(sparsity, loss, nothing) for sparsity, loss in zip(TENTHS, losses, strict=False)]


def test_the_knee_is_where_losses_begin_to_rise():
    assert knee(estimates(0, 0, 0, 0, 0, 1, 2, 3, 4)) == 0.5
    assert knee(estimates(0.0, 0.001, 0.01, 0.1, 1.0)) == 0.4, "by hand: 1/4 - .001, 1/2 - .01, 3/4 - .1"
    assert knee(estimates(1.0, 2.0)) is None
    assert knee(estimates(1.0, 1.0, 1.0)) is None
    assert knee(estimates(3.0, 2.0, 1.0)) is None
    assert knee([]) is None


def test_a_real_curve_is_of_the_models_that_pruning_makes():
    model = make_tiny_ast()
    scores = score_widths(ast, model, clips(16), SMALL.scoring, made_from={})
    costs = parameter_costs(ast.dense_plan(model))
    found = estimated_curve(ast, model, scores, Corrections(), costs, SMALL, (0.2, 0.5, 0.8, 0.99, 0.3))
    assert [each.sparsity for each in found] == [0.2, 0.5, 0.8], "nothing is as narrow as the fourth"
    for each in found:
        alone = prune_rotated(ast, model, clips(16), costs, (1 - each.sparsity) * costs.dense, SMALL)
        assert (each.loss, each.allocation.cost) == (alone.damage, alone.cost)
    assert found[0].loss <= found[1].loss <= found[2].loss
