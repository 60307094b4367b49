"""Schedules end where they should, on the model that they say, and go on where they were interrupted."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from leanear.data.examples import LabelledInputs
from leanear.families import ast
from leanear.recover.lora import LoraRecovery
from leanear.reference import schedule
from leanear.reference.schedule import PruneRecipe, prune
from leanear.runtimes.errors import BadInput
from tests.conftest import TINY_LABELS, make_tiny_ast


@pytest.fixture
def checkpoint(tmp_path, tiny_extractor):
    model = make_tiny_ast(head_width=8, heads=4, layers=3)
    return ast.AstCheckpoint(tmp_path, model, tiny_extractor, TINY_LABELS)


@pytest.fixture
def clips() -> LabelledInputs:
    generator = torch.Generator().manual_seed(2)
    return LabelledInputs(torch.randn(12, 46, 128, generator=generator), torch.arange(12) % 5)


VARIANTS = list(itertools.product(("channels", "heads"), ("fisher", "magnitude"), ("global", "local")))


def logits(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(inputs).logits


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("how", ["one-shot", "iterative"])
def test_the_plan_is_what_was_done_to_the_dense_model(checkpoint, clips, variant, how):
    """Without recovery, carrying out the composed plan on the dense model in one go must give the same logits."""
    scheme, score, threshold = variant
    recipe = PruneRecipe(sparsity=0.5, scheme=scheme, score=score, threshold=threshold, schedule=how, batch_size=4)
    dense = {name: value.clone() for name, value in checkpoint.model.state_dict().items()}
    pruned = prune(ast, checkpoint, clips, recipe, made_from={"checkpoint": "abc"})
    assert 0.5 <= pruned.plan.sparsity < 0.5 + 1 / 8
    assert torch.equal(
        logits(pruned.model, clips.inputs), logits(ast.slim_model(checkpoint.model, pruned.plan.sites), clips.inputs)
    )
    assert all(torch.equal(value, dense[name]) for name, value in checkpoint.model.state_dict().items())
    assert {site.scaling for site in ast.attention_sites(pruned.model)} == {8**-0.5}
    assert (pruned.plan.recipe["scheme"], pruned.plan.made_from) == (scheme, {"checkpoint": "abc"})
    widths = {(site.query_key_widths, site.value_output_widths) for site in pruned.plan.sites}
    assert all(len(set(w)) == 1 for pair in widths for w in pair), "the heads of a block keep equally many channels"


def test_iterative_takes_steps_of_a_tenth_of_what_remains_and_scores_again(checkpoint, clips, monkeypatch):
    seen = []

    def watched(family, model, *rest, **options):
        seen.append([site.query_key_widths for site in family.attention_sites(model)])
        return original(family, model, *rest, **options)

    original = schedule.score
    monkeypatch.setattr(schedule, "score", watched)
    recipe = PruneRecipe(sparsity=0.6, threshold="local", schedule="iterative", batch_size=4)
    pruned = prune(ast, checkpoint, clips, recipe)
    assert [widths[0][0] for widths in seen] == [8, 7, 6, 5, 4], "ceil(0.8), ceil(0.7), ... is one channel each time"
    assert pruned.plan.sites[0].query_key_widths == (3,) * 4
    assert pruned.plan.sparsity == 0.625


@pytest.mark.parametrize(
    ("sparsity", "scheme"), [(0.3, "channels"), (0.5, "heads"), (0.7, "heads"), (0.85, "channels")]
)
def test_the_last_step_ends_at_the_target(checkpoint, clips, sparsity, scheme, monkeypatch):
    steps = []
    original = schedule.choose_step
    monkeypatch.setattr(schedule, "choose_step", lambda *a: steps.append(a[3]) or original(*a))
    recipe = PruneRecipe(
        sparsity=sparsity, scheme=scheme, score="magnitude", schedule="iterative", max_steps=4, step=0.15
    )
    pruned = prune(ast, checkpoint, clips, recipe)
    assert sparsity - 1e-9 <= pruned.plan.sparsity < sparsity + 1 / 12
    assert steps == list(range(1, 1 + len(steps)))
    assert len(steps) <= 4


def test_a_target_reached_but_for_rounding_ends_the_schedule(checkpoint, clips, monkeypatch):
    original = schedule.choose_step

    def once(plan, scores, recipe, step):
        assert step == 1, "half is removed; 1e-12 more cannot be"
        return original(plan, scores, recipe, step)

    monkeypatch.setattr(schedule, "choose_step", once)
    recipe = PruneRecipe(sparsity=0.5 + 1e-12, score="magnitude", threshold="local")
    assert prune(ast, checkpoint, clips, recipe).plan.sparsity == 0.5


def test_recovery_follows_every_step_on_the_clips_of_the_recipe_alone(checkpoint, clips, monkeypatch):
    calls = []

    def watched(model, inputs, label_ids, batch_loss, options, *, order, seed, report):
        calls.append((ast.attention_sites(model)[0].query_key_widths[0], sorted(order.tolist()), seed))
        return original(model, inputs, label_ids, batch_loss, options, order=order, seed=seed, report=report)

    original = schedule.recover_
    monkeypatch.setattr(schedule, "recover_", watched)
    recipe = PruneRecipe(
        sparsity=0.3,
        threshold="local",
        schedule="iterative",
        recovery="lora",
        calibration_clips=10,
        batch_size=5,
        seed=7,
    )
    pruned = prune(ast, checkpoint, clips, recipe)
    assert [(width, seed) for width, _, seed in calls] == [(7, 8), (6, 9), (5, 10)]
    assert {len(order) for _, order, _ in calls} == {10}
    untrained = ast.slim_model(checkpoint.model, pruned.plan.sites)
    assert not torch.equal(logits(pruned.model, clips.inputs), logits(untrained, clips.inputs))


def test_interrupted_runs_go_on_and_end_the_same(checkpoint, clips, tmp_path, monkeypatch):
    recipe = PruneRecipe(
        sparsity=0.45,
        schedule="iterative",
        recovery="lora",
        recovery_options=LoraRecovery(learning_rate=1e-2),
        batch_size=4,
    )
    whole = prune(ast, checkpoint, clips, recipe, made_from={"checkpoint": "m"})
    scored = []

    def interrupted(family, model, *rest, **options):
        scored.append(ast.attention_sites(model)[0].query_key_widths)
        if len(scored) == 3:
            raise KeyboardInterrupt
        return original(family, model, *rest, **options)

    original = schedule.score
    state = tmp_path / "state"
    monkeypatch.setattr(schedule, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune(ast, checkpoint, clips, recipe, made_from={"checkpoint": "m"}, state=state)
    assert sorted(kept.name for kept in state.iterdir()) == ["curvature.safetensors", "step-02"], (
        "the newest step alone"
    )
    resumed = prune(ast, checkpoint, clips, recipe, made_from={"checkpoint": "m"}, state=state)
    assert scored[3] == scored[2], "it went on with the third step"
    assert resumed.plan == whole.plan
    assert torch.equal(logits(resumed.model, clips.inputs), logits(whole.model, clips.inputs))
    before = len(scored)
    again = prune(ast, checkpoint, clips, recipe, made_from={"checkpoint": "m"}, state=state)
    assert len(scored) == before, "nothing is left to do"
    assert torch.equal(logits(again.model, clips.inputs), logits(whole.model, clips.inputs))
    for other in (
        {"recipe": dataclasses.replace(recipe, seed=1), "made_from": {"checkpoint": "m"}},
        {"recipe": recipe, "made_from": {"checkpoint": "another"}},
    ):
        prune(ast, checkpoint, clips, other["recipe"], made_from=other["made_from"], state=state)
        assert scored[before][0] == 8, "steps of another recipe or another model are not taken over"
        before = len(scored)


def test_damaged_state_is_done_again(checkpoint, clips, tmp_path):
    recipe = PruneRecipe(sparsity=0.3, score="magnitude", schedule="iterative")
    first = prune(ast, checkpoint, clips, recipe, made_from={"checkpoint": "m"}, state=tmp_path / "state")
    (folder,) = (tmp_path / "state").iterdir()
    (folder / "model.safetensors").write_bytes(b"cut short")
    again = prune(ast, checkpoint, clips, recipe, made_from={"checkpoint": "m"}, state=tmp_path / "state")
    assert again.plan == first.plan
    assert torch.equal(logits(again.model, clips.inputs), logits(first.model, clips.inputs))


def test_curvature_is_kept_for_the_same_inputs_alone(checkpoint, clips, tmp_path, monkeypatch):
    collected = []

    def watched(*arguments, **options):
        collected.append(options["order"])
        return original(*arguments, **options)

    original = schedule.collect_curvature
    monkeypatch.setattr(schedule, "collect_curvature", watched)

    def pruned(made_from, **flags):
        recipe = PruneRecipe(**{"sparsity": 0.5, "batch_size": 4, **flags})
        return prune(ast, checkpoint, clips, recipe, made_from={"checkpoint": made_from}, state=tmp_path)

    first = pruned("m")
    again = pruned("m")
    assert len(collected) == 1
    assert again.plan == first.plan
    pruned("m", sparsity=0.3, scheme="heads")
    assert len(collected) == 1, "scores of the dense model serve every sparsity and scheme"
    for number, other in enumerate(
        [("n", {}), ("m", {"seed": 1}), ("m", {"batch_size": 3}), ("m", {"calibration_clips": 8})]
    ):
        pruned(other[0], **other[1])
        assert len(collected) == 2 + number
    (tmp_path / "curvature.safetensors").write_bytes(b"cut short")
    pruned("m", calibration_clips=8)
    assert len(collected) == 6
    with pytest.raises(ValueError, match="made_from"):
        prune(ast, checkpoint, clips, PruneRecipe(sparsity=0.5), state=tmp_path)


def test_what_cannot_be_reached_is_refused_before_scoring(checkpoint, clips, monkeypatch):
    monkeypatch.setattr(schedule, "score", lambda *a, **k: pytest.fail("scored in vain"))
    with pytest.raises(BadInput, match="out of reach"):
        prune(ast, checkpoint, clips, PruneRecipe(sparsity=0.9, scheme="heads"))


def test_a_slim_model_is_refused(checkpoint, clips):
    once = prune(ast, checkpoint, clips, PruneRecipe(sparsity=0.3, score="magnitude"))
    slim = dataclasses.replace(checkpoint, model=once.model)
    with pytest.raises(BadInput, match="already slim"):
        prune(ast, slim, clips, PruneRecipe(sparsity=0.5))


@pytest.mark.parametrize(
    "flags",
    [
        {"sparsity": 0.0}, {"sparsity": 1.0}, {"sparsity": 1.5}, {"sparsity": 0.5, "step": 0.0},
        {"sparsity": 0.5, "scheme": "rows"}, {"sparsity": 0.5, "score": "random"}, {"sparsity": 0.5, "batch_size": 0},
        {"sparsity": float("nan")},
    ],
)  # fmt: skip
def test_unusable_recipes_are_refused_by_the_flag(flags):
    with pytest.raises(BadInput, match=list(flags)[-1]):
        PruneRecipe(**flags)
