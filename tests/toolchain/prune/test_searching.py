"""The search finds where a known drop is passed, on clips that no choice was made on, and says what it tried."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from leanear.data.examples import LabelledInputs
from leanear.families import ast
from leanear.prune import search as searching
from leanear.prune.costs import parameter_costs
from leanear.prune.rotated import prune_rotated
from leanear.prune.search import search_sparsity
from leanear.prune.widths import RotatedRecipe
from leanear.runtimes.errors import BadInput
from tests.conftest import make_tiny_ast

CLIPS, CLASSES = 100, 4
COSTS = SimpleNamespace(dense=1000.0)
MADE_FROM = {"checkpoint": "0" * 64}


def known(monkeypatch, drop_at, sure: float = 20.0, least: float = 0.0):
    """Models that are nothing but their sparsity: of 100 clips, each its number, the first ones are lost.

    drop_at(sparsity): how many clips, of those that the dense model gets right; sure: logit of the chosen label, so
    that probabilities are 0 and 1 or less; least: the smallest share of the budget that there is a model for.
    """
    scored = []

    def score_widths(_family, _model, clips, _scoring, **_options):
        scored.append(clips.inputs[:, 0].long().tolist())
        return SimpleNamespace(bases=len(scored) - 1, losses=len(scored) - 1)

    def choose_widths(_sites, losses, costs, budget, _recipe):
        assert losses in range(3)
        if budget < least * costs.dense:
            raise BadInput("below the least possible cost")
        return budget

    def cut(_family, _model, _bases, budget):
        return 1 - budget / COSTS.dense, ()

    def logits(sparsity, inputs):
        numbers = inputs[:, 0].long()
        right = numbers % CLASSES
        lost = numbers < (0 if sparsity == "dense" else round(drop_at(sparsity)))
        return sure * torch.nn.functional.one_hot((right + lost) % CLASSES, CLASSES).float()

    for name, function in (("score_widths", score_widths), ("choose_widths", choose_widths), ("cut", cut)):
        monkeypatch.setattr(searching, name, function)
    family = SimpleNamespace(attention_sites=lambda _model: (), logits=logits, mistakes=ast.mistakes)
    numbers = torch.arange(CLIPS)
    return family, LabelledInputs(numbers[:, None].float(), numbers % CLASSES), scored


def search(family, clips, max_drop, recipe=None, **options):
    return search_sparsity(
        family,
        SimpleNamespace(model="dense"),
        clips,
        COSTS,
        recipe or RotatedRecipe(),
        max_drop,
        made_from=MADE_FROM,
        **options,
    )


@pytest.mark.parametrize("step", [1, 2, 17, 24, 25, 47, 48])
def test_the_step_is_found_wherever_it_is(monkeypatch, step):
    """Nothing is lost up to it, and 30 clips beyond."""
    family, clips, _ = known(monkeypatch, lambda sparsity: 0 if sparsity < (step + 0.5) / 50 else 30)
    found = search(family, clips, 0.5)
    assert found.sparsity == step / 50
    assert len(found.trials) <= math.ceil(math.log2(49))
    for trial in found.trials:
        beyond = trial.sparsity > step / 50
        assert (trial.lost, trial.won, trial.drop_points, trial.within) == (30 * beyond, 0, 30.0 * beyond, not beyond)
        assert trial.clips == CLIPS


@pytest.mark.parametrize(("allowed", "lost_at_most"), [(3.0, 1), (9.5, 6), (20.0, 16)])
def test_the_standard_error_is_part_of_the_drop(monkeypatch, allowed, lost_at_most):
    """One clip more is lost with every step: of 100, 6 lost are 6 +- 2.4 points, 7 are 7 +- 2.6, too much for 9.5."""
    family, clips, _ = known(monkeypatch, lambda sparsity: 50 * sparsity)
    found = search(family, clips, allowed)
    assert found.sparsity == lost_at_most / 50
    for trial in found.trials:
        lost = round(50 * trial.sparsity)
        falls = np.array([100.0] * lost + [0.0] * (CLIPS - lost))
        assert trial.lost == lost
        assert trial.expected_drop_points == pytest.approx(lost, abs=1e-3)
        assert trial.standard_error_points == pytest.approx(falls.std(ddof=1) / 10, rel=1e-3, abs=1e-6)


def test_a_fall_of_probability_counts_though_no_clip_is_lost(monkeypatch):
    """All answers stay right, but above 30 % by a hair: 100 clips lost by count in no trial, and the KL by hand."""
    family, clips, _ = known(monkeypatch, lambda _share: 0)
    flat = family.logits

    def logits(model, inputs):
        answers = flat("dense", inputs)
        return answers if model == "dense" or model < 0.31 else 0.05 * answers

    family.logits = logits
    found = search(family, clips, 5.0)
    assert found.sparsity == 0.3
    assert not any(trial.lost or trial.won for trial in found.trials)
    p = np.array([math.exp(20), 1, 1, 1]) / (math.exp(20) + 3)
    q = np.array([math.e, 1, 1, 1]) / (math.e + 3)
    for trial in found.trials:
        beyond = trial.sparsity > 0.3
        assert trial.kl_divergence == pytest.approx(beyond * (p * np.log(p / q)).sum(), rel=1e-5, abs=1e-12)
        assert trial.expected_drop_points == pytest.approx(beyond * 100 * (p[0] - q[0]), rel=1e-5, abs=1e-9)


def test_every_clip_is_judged_by_a_model_that_was_not_chosen_on_it(monkeypatch):
    family, clips, scored = known(monkeypatch, lambda _share: 0)
    judged = []
    plain = family.logits

    def logits(model, inputs):
        if model != "dense":
            judged.append(inputs[:, 0].long().tolist())
        return plain(model, inputs)

    family.logits = logits
    found = search(family, clips, 1.0)
    everyone = set(range(CLIPS))
    assert [set(fold) for fold in scored] == [everyone - set(range(fold, CLIPS, 3)) for fold in range(3)]
    judged_clips = [clip for batch in judged for clip in batch]
    assert sorted(judged_clips) == sorted(list(range(CLIPS)) * len(found.trials))


def test_what_is_narrower_than_the_narrowest_model_is_too_much(monkeypatch):
    family, clips, _ = known(monkeypatch, lambda _share: 0, least=0.31)
    found = search(family, clips, 1.0)
    assert found.sparsity == 0.68
    assert max(trial.sparsity for trial in found.trials) == 0.68


def test_no_sparsity_within_the_drop(monkeypatch):
    family, clips, _ = known(monkeypatch, lambda _share: 50)
    with pytest.raises(BadInput, match=r"^not even 2 % .* 100 held-out clips"):
        search(family, clips, 0.5)


def test_too_few_clips(monkeypatch):
    family, clips, _ = known(monkeypatch, lambda _share: 0)
    few = clips[:5]
    with pytest.raises(BadInput, match="^the search needs at least 6 calibration clips; there are 5"):
        search(family, few, 0.5)


@pytest.mark.parametrize("shots", [1, 2])
def test_a_real_model_is_searched_as_it_is_pruned(shots):
    """The trials' divergence is that of models pruned on the other folds, made and judged here one by one."""
    model = make_tiny_ast()
    inputs = torch.randn(9, 46, 128, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        dense = ast.logits(model, inputs).double()
    clips, costs = LabelledInputs(inputs, dense.argmax(dim=1)), parameter_costs(ast.dense_plan(model))
    recipe, told = RotatedRecipe(shots=shots, chunk=4), []
    found = search_sparsity(
        ast, SimpleNamespace(model=model), clips, costs, recipe, 40.0, made_from=MADE_FROM,
        report=lambda text, _share=None: told.append(text),
    )  # fmt: skip
    results = [text for text in told if " on held-out clips" in text]
    assert [text.partition(":")[0] for text in results] == [f"{100 * trial.sparsity:g} %" for trial in found.trials]
    trial = found.trials[0]
    divergences = []
    for fold in range(3):
        others = [clip for clip in range(9) if clip % 3 != fold]
        chosen_on = clips[others]
        slim = prune_rotated(ast, model, chosen_on, costs, (1 - trial.sparsity) * costs.dense, recipe).model
        with torch.no_grad():
            answers = ast.logits(slim, inputs[fold::3]).double().log_softmax(1).numpy()
        reference = dense[fold::3].log_softmax(1).numpy()
        divergences += (np.exp(reference) * (reference - answers)).sum(axis=1).tolist()
    assert trial.kl_divergence == pytest.approx(np.mean(divergences), rel=1e-3)
    assert trial.kl_divergence > 1e-4
