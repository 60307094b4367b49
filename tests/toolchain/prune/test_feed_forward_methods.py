"""What feed-forward pruning is compared with, and scores that are kept for another goal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from leanear.calibration.sites import FeedForwardSite
from leanear.data.examples import HeldOut
from leanear.families import ast
from leanear.outputs import held
from leanear.prune import scoring
from leanear.prune.allocation.allocate import Allocation
from leanear.prune.closed_loop import Corrections, SingleBlocks
from leanear.prune.pruning import check_scores_folder
from leanear.prune.scoring import score_widths
from leanear.prune.widths import RotatedRecipe, cut
from leanear.runtimes.errors import BadInput
from leanear.studies.closed_form import RIDGE, ridge_feed_forward
from leanear.studies.comparing import ComparisonRequest
from leanear.studies.methods import DENSE, Bench, methods_beyond_attention
from tests.conftest import TINY_LABELS, make_tiny_ast
from tests.toolchain.prune.test_rotated import clips


@pytest.mark.parametrize("prune", ["all", "feed-forward"])
def test_every_method_removes_what_was_asked(prune):
    model = make_tiny_ast()
    checkpoint = ast.AstCheckpoint(Path("tiny"), model, None, TINY_LABELS)
    bench = Bench(ast, checkpoint, clips(20), clips=16, seed=1, prune=prune)
    every = methods_beyond_attention(prune)
    assert every[0].name == DENSE
    assert any("CORP" in method.about for method in every) == (prune == "all")
    for method in every[1:]:
        made = method.make(bench, 0.5, method.recipe)
        gone = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in made.model.parameters())
        assert made.plan.prune == prune
        assert made.plan.parameters_removed == gone >= 0.5 * made.plan.parameters_dense, method.name


def test_ridge_on_the_channels_of_most_energy_is_numpys_fit():
    generator = np.random.default_rng(3)
    rows = generator.normal(size=(50, 4)) @ generator.normal(size=(4, 9)) + 0.2 * generator.normal(size=(50, 9)) + 0.5
    site = FeedForwardSite("toy", nn.Linear(3, 9).double(), nn.Linear(9, 3).double())
    dense, old = site.second.weight.detach().numpy(), site.second.bias.detach()
    counted = np.concatenate([rows, np.ones((50, 1))], axis=1)
    basis = ridge_feed_forward(site, torch.tensor(counted.T @ counted), 5)
    kept = np.argsort(-((rows**2).mean(axis=0) * (dense**2).sum(axis=0)))[:5]
    assert basis.order[:5].tolist() == kept.tolist()
    centred = rows - rows.mean(axis=0)
    dropped = np.setdiff1d(np.arange(9), kept)
    pull = np.sqrt(50 * RIDGE * (centred[:, kept] ** 2).mean()) * np.eye(5)
    fitted, *_ = np.linalg.lstsq(
        np.concatenate([centred[:, kept], pull]),
        np.concatenate([centred[:, dropped], np.zeros((5, len(dropped)))]),
        rcond=None,
    )
    weight, bias = basis.second(old, 5)
    expected = dense[:, kept] + dense[:, dropped] @ fitted.T
    np.testing.assert_allclose(weight.numpy(), expected, atol=1e-6)
    rest = old.numpy() + dense @ rows.mean(axis=0) - expected @ rows.mean(axis=0)[kept]
    np.testing.assert_allclose(bias.numpy(), rest, atol=1e-6)


def test_kept_scores_serve_another_goal_without_a_pass_over_the_clips(tmp_path, monkeypatch):
    model, recipe = make_tiny_ast(), RotatedRecipe(prune="all", chunk=4)
    made_from = {"checkpoint": "0" * 64}
    first = score_widths(ast, model, clips(), recipe.scoring, made_from=made_from, state=tmp_path / "scores")
    check_scores_folder(tmp_path / "scores", tmp_path / "out")

    def never(*_arguments, **_settings):
        raise AssertionError("a pass over the clips")

    monkeypatch.setattr(scoring, "pass_through_all", never)
    again = score_widths(ast, model, clips(), recipe.scoring, made_from=made_from, state=tmp_path / "scores")
    for name, losses in first.losses.items():
        np.testing.assert_array_equal(losses, again.losses[name])
        kept = vars(again.bases[name])
        assert all(torch.equal(value, kept[key]) for key, value in vars(first.bases[name]).items())
    with pytest.raises(AssertionError, match="a pass over"):
        score_widths(ast, model, clips(), recipe.scoring, made_from={"checkpoint": "1" * 64}, state=tmp_path / "scores")


def test_a_resumed_run_gives_the_same_scores(tmp_path):
    """A chunk's sums of feed-forward blocks are read back from its file as they were."""
    model, recipe = make_tiny_ast(), RotatedRecipe(prune="all", chunk=4)
    made_from = {"checkpoint": "0" * 64}
    whole = score_widths(ast, model, clips(), recipe.scoring, made_from=made_from)

    def stop(text: str, _fraction: float | None = None) -> None:
        if text.startswith("basis from 8/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_widths(ast, model, clips(), recipe.scoring, made_from=made_from, state=tmp_path, report=stop)
    assert (tmp_path / scoring.BASIS_FOLDER / "sums").is_dir(), "of the chunks before, which must not count twice"
    resumed = score_widths(ast, model, clips(), recipe.scoring, made_from=made_from, state=tmp_path)
    for name, losses in whole.losses.items():
        np.testing.assert_array_equal(losses, resumed.losses[name])
    assert not list((tmp_path / scoring.BASIS_FOLDER).iterdir())


def test_each_feed_forward_block_is_measured_alone():
    """Against models that are cut in this block alone."""
    model, recipe = make_tiny_ast(), RotatedRecipe(prune="all", chunk=4)
    scores = score_widths(ast, model, clips(), recipe.scoring, made_from={})
    dense = tuple(((16, 16), (16, 16)) for _ in ast.attention_sites(model))
    narrow = {"layers.0.feed_forward": 16, "layers.1.feed_forward": 8}
    held_out = HeldOut(model, clips(8, 5), ast.logits)
    slim, _ = cut(ast, model, scores.bases, Allocation(dense, 0.0, 0.0, narrow))
    blocks = SingleBlocks(ast, model, scores, held_out).measure(Corrections(), Allocation(dense, 0, 0, narrow), slim)
    measured = {block.name: block for block in blocks if block.name in narrow}
    assert list(measured) == list(narrow)
    for name, width in narrow.items():
        alone, _ = cut(ast, model, scores.bases, Allocation(dense, 0.0, 0.0, {name: width}))
        assert measured[name].measured == pytest.approx(held_out.kl(alone), rel=1e-3, abs=1e-6)
        assert measured[name].estimated == pytest.approx(float(scores.losses[name][width]))
        assert measured[name].measured > 1e-4


def test_what_a_killed_run_left_half_written_goes(tmp_path):
    litter = [tmp_path / name for name in (".scores.safetensors.k3x9.part", "losses/.chunk-00001.safetensors.a.part")]
    for each in litter:
        each.parent.mkdir(exist_ok=True)
        each.touch()
    check_scores_folder(tmp_path, tmp_path / "out")
    with held(tmp_path):
        assert not any(each.exists() for each in litter)


def test_scores_are_kept_where_nothing_else_is(tmp_path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "clip.wav").write_bytes(b"")
    with pytest.raises(BadInput, match=r"holds clip\.wav, which is no part of kept scores"):
        check_scores_folder(tmp_path / "audio", tmp_path / "out")
    with pytest.raises(BadInput, match="the checkpoint goes there"):
        check_scores_folder(tmp_path / "out", tmp_path / "out")
    with pytest.raises(BadInput, match="not a folder"):
        check_scores_folder(tmp_path / "audio" / "clip.wav", tmp_path / "out")


def test_what_is_compared_for_attention_alone_is_refused():
    with pytest.raises(BadInput, match="--recovery and --target are for attention alone"):
        ComparisonRequest(prune="all", target="cpu")
