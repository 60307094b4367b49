"""Plans are measured; where an estimate is wrong it is found, block by block, and widths are chosen again."""

from __future__ import annotations

import copy
import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from leanear.data.examples import NO_NUMBER, HeldOut, LabelledInputs
from leanear.families import ast
from leanear.prune import closed_loop
from leanear.prune.allocation.allocate import Allocation
from leanear.prune.closed_loop import BlockLoss, Corrections, Round, SingleBlocks, block_loss, choose_measured
from leanear.prune.costs import parameter_costs
from leanear.prune.rotated import ClosedLoop, Rotated, in_one_or_two, prune_rotated
from leanear.prune.scoring import Scores, score_widths
from leanear.prune.widths import RotatedRecipe, cut
from tests.conftest import make_tiny_ast

SMALL = RotatedRecipe(multiples=(2, 2), chunk=8)
WRONG = "layers.1.attention"

# A script of what is estimated and measured


def scripted(monkeypatch, estimated, measured, blocks=None):
    """The loop where round n chooses the model "n" of these estimates; what it gave the choice, and its result."""
    corrections_seen = []
    numbers = iter(range(len(estimated)))

    def choose_widths(_sites, losses, _costs, budget, _recipe):
        corrections_seen.append(float(losses["a"][0]))
        number = next(numbers)
        return Allocation(((number,),), budget - number, estimated[number])

    class Scripted:
        def __init__(self, _family, _model, _scores, few):
            assert len(few) <= 16

        def measure(self, _corrections, allocation, _slim, _told):
            number = allocation.widths[0][0]
            return (BlockLoss("a", *(blocks or [(e, m) for e, m in zip(estimated, measured, strict=True)])[number]),)

    monkeypatch.setattr(closed_loop, "choose_widths", choose_widths)
    monkeypatch.setattr(closed_loop, "cut", lambda _family, _model, _bases, allocation: (allocation.widths[0][0], ()))
    monkeypatch.setattr(closed_loop, "SingleBlocks", Scripted)
    monkeypatch.setattr(closed_loop, "_keeps_hardly_any", lambda *_: False)

    class Judges:
        dense = None

        def __len__(self):
            return 40

        def first(self, clips):
            return range(clips)

        def kl(self, slim, _told):
            return measured[slim]

    family = SimpleNamespace(attention_sites=lambda _model: ())
    scores = SimpleNamespace(bases={}, losses={"a": np.ones(1)})
    found = choose_measured(family, None, scores, None, 100.0, SMALL, Judges())
    return found, corrections_seen


@pytest.mark.parametrize("measured", [0.16, 0.1, 0.2, 0.05])
def test_within_a_factor_of_two_one_round_is_enough(monkeypatch, measured):
    found, _ = scripted(monkeypatch, [0.1], [measured])
    assert (len(found.rounds), found.best, found.model) == (1, 0, 0)
    assert found.round.agrees


def test_of_losses_that_are_nothing_no_ratio_matters(monkeypatch):
    assert len(scripted(monkeypatch, [1e-9], [9e-5])[0].rounds) == 1
    found, _ = scripted(monkeypatch, [1e-9, 1e-4, 1e-4], [2.1e-4, 1e-4, 1e-4])
    assert len(found.rounds) == 2


@pytest.mark.parametrize(
    ("measured", "best"), [((0.5, 0.2, 0.3, 0.3), 1), ((0.5, 0.6, 0.7, 0.8), 0), ((0.5, 0.4, 0.3, 0.2), 3)]
)
def test_of_four_rounds_at_most_the_best_one_stays(monkeypatch, measured, best):
    found, _ = scripted(monkeypatch, [0.01, 0.02, 0.03, 0.04], measured)
    assert len(found.rounds) == 4
    assert (found.best, found.model, found.round.measured) == (best, best, measured[best])
    assert found.allocation.cost == found.round.cost == 100 - best
    assert [each.estimated for each in found.rounds] == [0.01, 0.02, 0.03, 0.04]
    ratios = [after / before for before, after in zip((0.01, 0.02, 0.03, 0.04), measured, strict=True)]
    powers = [1 / (number + 2) for number in range(best)] + [1.0]
    expected = np.prod([ratio**power for ratio, power in zip(ratios, powers)])
    assert found.corrections.blocks["a"] == pytest.approx(expected), "those of its own round, roots before it"


def test_a_loss_that_is_no_number_is_the_largest_there_is(monkeypatch):
    found, _ = scripted(monkeypatch, [0.01, 0.02, 0.03, 0.04], [math.nan, 0.2, 0.1, 0.3])
    assert (found.best, found.model) == (2, 2)
    assert [each.measured for each in found.rounds] == [NO_NUMBER, 0.2, 0.1, 0.3], "JSON has no NaN"


@pytest.mark.parametrize(("one", "two", "taken"), [(0.049, 0.01, 1), (0.051, 0.05, 2), (0.051, 0.06, 1)])
def test_where_one_shot_loses_what_matters_two_are_tried(one, two, taken):
    def prune(shots):
        return Rotated("", None, 0.0, 0.0, (Round(0.01, (one, two)[shots - 1], 1.0, ()),), scores=shots, shots=shots)

    found = in_one_or_two(prune)
    assert (found.shots, found.scores) == (taken, 1), "other budgets are served from the dense model"


@pytest.mark.parametrize(("second", "best"), [(0.209, 1), (0.23, 0)])
def test_of_plans_alike_the_one_that_was_foreseen_stays(monkeypatch, second, best):
    found, _ = scripted(monkeypatch, [0.01, second, 0.1], [0.2, second, 0.3])
    assert found.best == best


def test_a_blocks_estimate_is_multiplied_by_the_root_of_what_it_was_wrong_by(monkeypatch):
    """0.4 for 0.1 is 4 times, and the root 2; the whole loses 0.6, 3 times that: together 6."""
    found, seen = scripted(
        monkeypatch, [0.1, 0.55, 0.5], [0.6, 0.5, 0.5], blocks=[(0.1, 0.4), (0.25, 0.25), (0.1, 0.1)]
    )
    assert seen == [1.0, pytest.approx(6.0)]
    assert len(found.rounds) == 2
    assert found.best == 1
    assert found.corrections.blocks["a"] == pytest.approx(2.0)
    assert found.corrections.together == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("measured", "block"), [(0.5, (0.1, 0.1)), (0.1, (0.1, 0.3))], ids=["the whole is wrong", "a block is wrong"]
)
def test_whole_and_blocks_must_agree(monkeypatch, measured, block):
    found, _ = scripted(monkeypatch, [0.1, 0.1], [measured, 0.1], blocks=[block, (0.1, 0.1)])
    assert len(found.rounds) == 2


def test_a_block_that_loses_nothing_is_not_for_free(monkeypatch):
    _, seen = scripted(monkeypatch, [0.5, 0.4, 0.2], [0.1, 0.1, 0.1], blocks=[(0.5, 0.0), (0.4, 0.2), (0.2, 0.2)])
    assert seen[1] == pytest.approx(1e-4 * 0.1 / (0.5 * 1e-4)), "at most 10,000 times less, and the whole as measured"


# A real model


@dataclasses.dataclass
class Case:
    model: torch.nn.Module
    costs: object
    scores: Scores
    held_out: HeldOut

    def choose(self, scores=None, sparsity=0.4, **options):
        budget = (1 - sparsity) * self.costs.dense
        given = scores or self.scores
        return choose_measured(ast, self.model, given, self.costs, budget, SMALL, self.held_out, **options)


def clips(count: int, seed: int) -> LabelledInputs:
    inputs = torch.randn(count, 46, 128, generator=torch.Generator().manual_seed(seed))
    return LabelledInputs(inputs, torch.arange(count) % 5)


@pytest.fixture(scope="module")
def case() -> Case:
    model = make_tiny_ast(layers=4)
    scores = score_widths(ast, model, clips(32, 1), SMALL.scoring, made_from={})
    return Case(model, parameter_costs(ast.dense_plan(model)), scores, HeldOut(model, clips(24, 2), ast.logits, 7))


def falsified(scores: Scores) -> Scores:
    """One block is said to lose a three-hundredth of what it does."""
    return Scores(scores.bases, {**scores.losses, WRONG: scores.losses[WRONG] / 300})


def divergence(dense, slim, given: LabelledInputs) -> float:
    """Mean KL(dense || slim) by its definition, float64."""
    with torch.no_grad():
        p, q = (model(given.inputs).logits.double().softmax(1) for model in (dense, slim))
    return float((p * (p.log() - q.log())).sum(dim=1).mean())


def channels(allocation: Allocation) -> list[int]:
    return [sum(k + v for k, v in widths) for widths in allocation.widths]


def test_a_block_whose_estimate_is_wrong_is_found_and_spared(case):
    wrong = falsified(case.scores)
    told = []
    found = case.choose(wrong, report=lambda text, _share=None: told.append(text))
    place = list(wrong.losses).index(WRONG)
    assert 1 < len(found.rounds) <= 4
    assert found.best > 0
    assert found.round.measured < 0.8 * found.rounds[0].measured
    first = {block.name: block for block in found.rounds[0].blocks}
    ratios = {name: block.measured / block.estimated for name, block in first.items() if block.estimated > 0}
    assert max(ratios, key=ratios.get) == WRONG
    assert ratios[WRONG] > 30 * max(ratio for name, ratio in ratios.items() if name != WRONG)
    by_estimate = prune_rotated_widths(case, wrong)
    assert channels(found.allocation)[place] > by_estimate[place], "more of it is kept than the estimate alone would"
    assert found.allocation.cost <= 0.6 * case.costs.dense
    assert found.round.measured == pytest.approx(divergence(case.model, found.model, case.held_out.clips), rel=1e-4)
    assert next(text for text in told if "clip" not in text).startswith("round 1: measured")
    assert told[-1].startswith(f"measured {found.round.measured:.4f} nats on 24 held-out clips")


def prune_rotated_widths(case: Case, scores: Scores) -> list[int]:
    sites = ast.attention_sites(case.model)
    return channels(closed_loop.choose_widths(sites, scores.losses, case.costs, 0.6 * case.costs.dense, SMALL))


def test_nothing_is_changed_but_by_choosing(case):
    """The dense model, weights and blocks, stays as it was; the slim one is just what its widths make."""
    before, modules = copy.deepcopy(case.model.state_dict()), [id(module) for module in case.model.modules()]
    found = case.choose(falsified(case.scores))
    assert [id(module) for module in case.model.modules()] == modules
    assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())
    again, kept = cut(ast, case.model, case.scores.bases, found.allocation)
    assert kept == found.kept
    pairs = zip(again.state_dict().items(), found.model.state_dict().items(), strict=True)
    assert all(one == other and torch.equal(a, b) for (one, a), (other, b) in pairs)
    assert not found.model.training


def test_each_block_is_measured_alone(case):
    """Against models that are cut in this block alone, which share nothing."""
    found = case.choose(sparsity=0.5)
    sites = ast.attention_sites(case.model)
    dense_widths = tuple(((16, 16), (16, 16)) for _ in sites)
    states = {name: value.clone() for name, value in found.model.state_dict().items()}
    blocks = SingleBlocks(ast, case.model, case.scores, case.held_out).measure(
        Corrections(), found.allocation, found.model
    )
    assert all(torch.equal(value, states[name]) for name, value in found.model.state_dict().items())
    for index, (site, block) in enumerate(zip(sites, blocks, strict=True)):
        widths = tuple(found.allocation.widths[i] if i == index else w for i, w in enumerate(dense_widths))
        alone, _ = cut(ast, case.model, case.scores.bases, Allocation(widths, 0.0, 0.0))
        assert block.measured == pytest.approx(divergence(case.model, alone, case.held_out.clips), rel=1e-3, abs=1e-6)
        table = case.scores.losses[site.name]
        expected = sum(table[head, k, v] for head, (k, v) in enumerate(widths[index]))
        assert any(k for k, _ in widths[index])
        assert block.estimated == pytest.approx(expected)
        assert block_loss(case.scores.losses, site, widths[index]) == pytest.approx(expected)


def test_a_block_that_stays_whole_is_not_measured(case):
    sites = ast.attention_sites(case.model)
    widths = (((16, 16), (16, 16)), ((4, 4), (4, 4)), ((16, 16), (16, 16)), ((16, 16), (0, 0)))
    allocation = Allocation(widths, 0.0, 0.0)
    slim, _ = cut(ast, case.model, case.scores.bases, allocation)
    blocks = SingleBlocks(ast, case.model, case.scores, case.held_out).measure(Corrections(), allocation, slim)
    assert [block.name for block in blocks] == [site.name for site in sites]
    assert (blocks[0].measured, blocks[2].estimated) == (0.0, 0.0)
    assert blocks[1].measured > 0 < blocks[3].measured


def test_of_a_width_that_was_not_tried_the_next_narrower_one_stands(case):
    """A target may fill queries and keys up to widths off the grid."""
    site = ast.attention_sites(case.model)[0]
    losses = case.scores.losses[site.name]
    assert np.isinf(losses[0, 5, 4])
    found = block_loss(case.scores.losses, site, ((5, 4), (0, 0)))
    assert found == pytest.approx(losses[0, 4, 4] + losses[1, 0, 0])


def test_where_hardly_anything_stays_removals_are_offered_as_measured(case, monkeypatch):
    """Against models without just one block; estimates have the dearest one for free, and the cheapest beyond price."""
    sites, few = ast.attention_sites(case.model), case.held_out.first(16)
    dense = tuple(((16, 16), (16, 16)) for _ in sites)
    expected = {}
    for index, site in enumerate(sites):
        widths = tuple(((0, 0),) * 2 if place == index else pair for place, pair in enumerate(dense))
        alone, _ = cut(ast, case.model, case.scores.bases, Allocation(widths, 0.0, 0.0))
        expected[site.name] = divergence(case.model, alone, few.clips)
    dearest, cheapest = max(expected, key=expected.get), min(expected, key=expected.get)
    losses = {name: table.copy() for name, table in case.scores.losses.items()}
    losses[dearest][-1, 0, 0], losses[cheapest][-1, 0, 0] = 1e-9, 1e3
    wrong = Scores(case.scores.bases, losses)
    found = case.choose(wrong, sparsity=0.92)
    assert found.corrections.removals == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert channels(found.allocation)[[site.name for site in sites].index(dearest)] > 0
    assert case.choose(sparsity=0.5).corrections.removals == {}
    monkeypatch.setattr(closed_loop, "_keeps_hardly_any", lambda *_: False)
    assert found.round.measured < case.choose(wrong, sparsity=0.92).round.measured


def test_what_was_learned_makes_the_estimate_the_measurement(case):
    """Of the model's own widths; and another call with it begins where the first one ended."""
    wrong = falsified(case.scores)
    found = case.choose(wrong)
    corrected = found.corrections.applied(wrong.losses)
    widths = zip(ast.attention_sites(case.model), found.allocation.widths, strict=True)
    estimated = sum(block_loss(corrected, site, each) for site, each in widths)
    assert estimated == pytest.approx(found.round.measured, rel=1e-6)
    again = case.choose(wrong, corrections=found.corrections)
    assert again.rounds[0].estimated <= found.round.measured * (1 + 1e-6)
    assert again.rounds[0].measured < found.rounds[0].measured


def test_prune_rotated_measures_where_there_are_held_out_clips(case):
    budget = 0.5 * case.costs.dense
    given = (ast, case.model, clips(32, 1), case.costs, budget, SMALL)
    found = prune_rotated(*given, loop=ClosedLoop(case.held_out))
    chosen = case.choose(sparsity=0.5)
    assert found.rounds == chosen.rounds
    assert (found.best, found.damage) == (chosen.best, chosen.allocation.damage)
    assert found.corrections == chosen.corrections
    plain = prune_rotated(*given)
    assert (plain.rounds, plain.scores, plain.corrections) == ((), None, None)


def test_a_later_shot_prunes_the_compensated_model_and_counts_what_was_lost_before(case, tmp_path):
    lost, told = [], []
    generator = torch.Generator()

    def compensate(model, _report):
        for site in ast.attention_sites(model):  # shows that it is this model
            site.output.bias.data += 0.1 * torch.randn(site.output.bias.shape, generator=generator.manual_seed(1))
        lost.append(case.held_out.kl(model))
        return SimpleNamespace(held_out_kl_after=lost[-1])

    def prune():
        return prune_rotated(
            ast, case.model, clips(32, 1), case.costs, 0.5 * case.costs.dense, dataclasses.replace(SMALL, shots=2),
            loop=ClosedLoop(case.held_out, compensate=compensate), made_from={"checkpoint": "0" * 64}, state=tmp_path,
            report=lambda text, _share=None: told.append(text),
        )  # fmt: skip

    found = prune()
    first = case.choose(sparsity=1 - math.sqrt(0.5))
    assert found.corrections == first.corrections, "other budgets are served from the dense model"
    assert min(lost) > first.round.measured
    assert found.rounds[found.best].measured == pytest.approx(case.held_out.kl(found.model))
    assert all(each.estimated >= min(lost) for each in found.rounds)
    assert found.cost == found.plan.attention_parameters_kept <= 0.5 * case.costs.dense
    assert [text.partition(",")[0] for text in told] == sorted(text.partition(",")[0] for text in told)
    assert sum("scored" in text for text in told) > 0
    told.clear()
    assert prune().rounds == found.rounds
    assert not any("scored" in text for text in told), "both shots' scores are there"


def test_a_round_is_told_of_clip_by_clip_and_block_by_block(case):
    told, wrong = [], Scores(case.scores.bases, {name: table * 1e3 for name, table in case.scores.losses.items()})
    found = case.choose(wrong, report=lambda text, share: told.append((text, share)))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    for number in range(1, len(found.rounds) + 1):
        of_round = [text for text, _ in told if text.startswith(f"round {number}: ")]
        batches, clips = -(-len(case.held_out) // case.held_out.batch_size), len(case.held_out)
        assert len(of_round) == batches + len(found.rounds[0].blocks)
        assert of_round[0].endswith(f"held-out clip {case.held_out.batch_size} of {clips}")
        assert of_round[-1].endswith(f", {len(found.rounds[0].blocks)} of {len(found.rounds[0].blocks)}")
