"""The variant table's numbers against torch's own losses, its rows against separate prunings, and its resumption."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binomtest

from tests.conftest import TINY_LABELS, make_tiny_ast
from toolchain import variants
from toolchain.families import ast
from toolchain.schedule import LabelledInputs, PruneRecipe, prune
from toolchain.variants import predict, quality_of, recipe_name, render_variants, variant_recipes, variant_table


@pytest.fixture
def checkpoint(tmp_path, tiny_extractor):
    return ast.AstCheckpoint(tmp_path, make_tiny_ast(head_width=8, heads=4, layers=2), tiny_extractor, TINY_LABELS)


def clips(count: int, seed: int) -> LabelledInputs:
    inputs = torch.randn(count, 46, 128, generator=torch.Generator().manual_seed(seed))
    return LabelledInputs(inputs, torch.arange(count) % 5)


def test_quality_by_hand():
    """Two clips, two labels: shares 3/4 right and 1/2 (counted wrong, label 1 against argmax 0); dense is 1/2, 1/2."""
    logits = torch.tensor([[math.log(3.0), 0.0], [5.0, 5.0]])
    quality = quality_of(logits, torch.zeros(2, 2), torch.tensor([0, 1]))
    assert (quality.clips, quality.correct) == (2, 1)
    assert quality.cross_entropy == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-6)
    assert quality.kl_divergence == pytest.approx((0.5 * math.log(4 / 3 / 2) + 0.5 * math.log(4 / 2)) / 2, rel=1e-6)
    wilson = binomtest(1, 2).proportion_ci(method="wilson")
    assert (quality.accuracy_low, quality.accuracy_high) == pytest.approx((wilson.low, wilson.high), abs=1e-4)


def test_the_eight_variants_are_the_eight_variants():
    recipes = variant_recipes(PruneRecipe(sparsity=0.5, seed=3), (0.3, 0.7), (0.5,))
    assert len({recipe_name(recipe) for recipe in recipes}) == len(recipes) == 24
    assert sum((r.schedule, r.recovery, r.sparsity) == ("iterative", "lora", 0.5) for r in recipes) == 8
    assert sum((r.schedule, r.recovery, r.sparsity) == ("one-shot", "none", 0.7) for r in recipes) == 8
    assert {r.seed for r in recipes} == {3}


def test_rows_equal_separate_prunings(checkpoint):
    calibration, evaluation = clips(10, seed=1), clips(33, seed=2)
    recipes = variant_recipes(PruneRecipe(sparsity=0.5, batch_size=5), (0.5,), (0.3,))
    dense, *rows = variant_table(ast, checkpoint, calibration, evaluation, recipes)
    assert (dense.recipe, dense.sparsity, dense.quality.kl_divergence) == (None, 0.0, 0.0)
    with torch.no_grad():
        dense_loss = ast.batch_loss(checkpoint.model, evaluation.inputs, evaluation.label_ids).item()
    assert dense.quality.cross_entropy == pytest.approx(dense_loss, rel=1e-5)
    for recipe, row in zip(recipes, rows, strict=True):
        pruned = prune(ast, checkpoint, calibration, recipe)
        assert row.recipe == recipe
        assert row.sparsity == pruned.plan.sparsity
        assert row.parameters == sum(p.numel() for p in pruned.model.parameters())
        with torch.no_grad():
            loss = ast.batch_loss(pruned.model, evaluation.inputs, evaluation.label_ids).item()
        assert row.quality.cross_entropy == pytest.approx(loss, rel=1e-5)
        assert row.quality.kl_divergence > 0
    assert len({row.quality.cross_entropy for row in rows}) > 8, "the variants differ"


def test_prediction_in_batches_is_prediction(checkpoint):
    inputs = clips(11, seed=4).inputs
    with torch.no_grad():
        assert torch.allclose(
            predict(checkpoint.model, inputs, batch_size=4), checkpoint.model(inputs).logits, atol=1e-5
        )


def test_finished_rows_are_not_computed_again(checkpoint, tmp_path, monkeypatch):
    calibration, evaluation = clips(10, seed=1), clips(12, seed=2)
    recipes = variant_recipes(PruneRecipe(sparsity=0.5, batch_size=5), (0.5,), ())
    rows_path = tmp_path / "rows.jsonl"
    made = []

    def watched(*arguments):
        made.append(arguments[3])
        if len(made) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    original = variants._pruned
    monkeypatch.setattr(variants, "_pruned", watched)
    arguments = (ast, checkpoint, calibration, evaluation, recipes)
    with pytest.raises(KeyboardInterrupt):
        variant_table(*arguments, made_from={"checkpoint": "m"}, rows_path=rows_path)
    assert len(rows_path.read_text().splitlines()) == 3
    rows_path.write_text(rows_path.read_text() + "{half a line\n")
    resumed = variant_table(*arguments, made_from={"checkpoint": "m"}, rows_path=rows_path)
    assert made[4:] == list(recipes[3:])
    assert resumed == variant_table(*arguments)
    made.clear()
    made.extend([None] * 9)  # past the interruption
    variant_table(*arguments, made_from={"checkpoint": "another"}, rows_path=rows_path)
    assert made[9:] == list(recipes), "rows of another model are not taken over"


def test_markdown_has_a_line_per_row_and_the_numbers(checkpoint):
    rows = variant_table(
        ast, checkpoint, clips(10, 1), clips(20, 2), variant_recipes(PruneRecipe(sparsity=0.5), (0.5,), ())
    )
    text = render_variants(rows)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 9
    assert len({line.count("|") for line in lines}) == 1
    quality = rows[3].quality
    assert f"| {100 * quality.accuracy:.1f} (" in lines[5]
    assert f"| {quality.kl_divergence:.3f} | {rows[3].parameters:,} |" in lines[5]
    assert "20 evaluation clips" in text
