"""A comparison's figures by hand and against scipy, its rows kept and taken over, and the command's files."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from leanear.cli.commands import run
from leanear.data.examples import LabelledInputs, Mistakes
from leanear.families import ast
from leanear.studies import comparison
from leanear.studies.comparing import ComparisonRequest, is_claimed, one_shot_jobs, recovery_methods
from leanear.studies.comparison import (
    ANY_SEED,
    Finished,
    Job,
    OutOfReach,
    Row,
    compare_with,
    compute_rows,
    finished_rows,
    paired_ratio,
    read_rows,
)
from leanear.studies.methods import DEFAULT, DENSE, Bench, method_named, methods
from leanear.studies.quality import Answers, judge_answers, predict
from tests.conftest import TINY_LABELS, make_tiny_ast, write_tones

NAMES = (DENSE, "reference: channels, magnitude, local", "reference: heads, fisher, local", DEFAULT)


def clips(count: int, seed: int) -> LabelledInputs:
    inputs = torch.randn(count, 46, 128, generator=torch.Generator().manual_seed(seed))
    return LabelledInputs(inputs, torch.arange(count) % 5)


@pytest.fixture
def bench_of(tmp_path, tiny_extractor):
    model = make_tiny_ast(head_width=8, heads=4, layers=2)
    checkpoint = ast.AstCheckpoint(tmp_path, model, tiny_extractor, TINY_LABELS)
    pool = clips(20, seed=1)
    return lambda seed: Bench(ast, checkpoint, pool, clips=15, seed=max(seed, 0))


def jobs(sparsities=(0.5,), seeds=(0,)) -> list[Job]:
    every = [Job(method_named(name), s, seed) for seed in seeds for name in NAMES[1:] for s in sparsities]
    return [Job(method_named(DENSE), 0.0, ANY_SEED), *every]


def test_answers_by_hand():
    """Two clips, two labels: shares 3/4 right and 1/2 (counted wrong, label 1 against argmax 0); dense is 1/2, 1/2."""
    logits = torch.tensor([[math.log(3.0), 0.0], [5.0, 5.0]])
    answers = judge_answers(logits, torch.zeros(2, 2), torch.tensor([0, 1]), Mistakes(np.array([0.0, 1.0]), np.ones(2)))
    assert answers.errors.tolist() == [0, 1]
    assert answers.error_rate == 0.5
    assert answers.cross_entropy == pytest.approx([math.log(4 / 3), math.log(2)], rel=1e-6)
    assert answers.kl_divergence == pytest.approx([0.5 * math.log(2 / 3) + 0.5 * math.log(2), 0.0], rel=1e-6)


def test_prediction_in_batches_is_prediction(bench_of):
    model, inputs = bench_of(0).checkpoint.model, clips(11, seed=4).inputs
    with torch.no_grad():
        assert torch.allclose(predict(model, inputs, ast.logits, batch_size=4), model(inputs).logits, atol=1e-5)


def test_rows_have_the_figures_of_their_models(bench_of):
    evaluation = clips(33, seed=2)
    dense, *rows = compute_rows(jobs(), bench_of, evaluation, None, {})
    assert (dense.row.sparsity, dense.row.kl_divergence) == (0.0, 0.0)
    bench = bench_of(0)
    for found, name in zip(rows, NAMES[1:], strict=True):
        method = method_named(name)
        made = method.make(bench, 0.5, method.recipe)
        with torch.no_grad():
            expected = ast.batch_loss(made.model, evaluation.inputs, evaluation.targets).item()
        assert found.row.cross_entropy == pytest.approx(expected, rel=1e-5)
        assert found.row.parameters == sum(p.numel() for p in made.model.parameters())
        assert (found.row.method, found.row.sparsity, found.row.clips) == (name, made.plan.sparsity, 33)
        assert found.row.kl_divergence > 0
        assert found.row.macs < dense.row.macs


def test_finished_rows_are_not_computed_again(bench_of, tmp_path, monkeypatch):
    evaluation, folder = clips(12, seed=2), tmp_path / "out"
    made = []
    original = comparison._compute

    def watched(job, *arguments):
        made.append(job.method.name)
        if len(made) == 3:
            raise KeyboardInterrupt
        return original(job, *arguments)

    monkeypatch.setattr(comparison, "_compute", watched)
    with pytest.raises(KeyboardInterrupt):
        compute_rows(jobs(), bench_of, evaluation, folder, {"checkpoint": "m"})
    assert len(read_rows(folder)) == 2
    path = folder / comparison.ROWS_FILE
    path.write_text(path.read_text() + '{"identity": "half a li')
    resumed = compute_rows(jobs(), bench_of, evaluation, folder, {"checkpoint": "m"})
    assert made[3:] == list(NAMES[2:]), "the two that were finished are not made again"
    fresh = compute_rows(jobs(), bench_of, evaluation, None, {})
    for one, other in zip(resumed, fresh, strict=True):
        assert dataclasses.replace(one.row, seconds=0.0) == dataclasses.replace(other.row, seconds=0.0)
        assert np.array_equal(one.answers.kl_divergence, other.answers.kl_divergence)
    made[:] = [""] * 9
    compute_rows(jobs(), bench_of, evaluation, folder, {"checkpoint": "another"})
    assert made[9:] == list(NAMES), "rows of another model are not taken over"
    for file in (folder / comparison.ANSWERS_FOLDER).glob("*.npz"):
        file.write_bytes(file.read_bytes()[:40])
    assert read_rows(folder) == {}, "a row without its clips' figures is none"


def test_what_is_out_of_reach_is_a_line_and_stays_one(bench_of, tmp_path):
    evaluation = clips(12, seed=2)
    wanted = [Job(method_named("reference: heads, fisher, local"), 0.9, 0)]
    (outcome,) = compute_rows(wanted, bench_of, evaluation, tmp_path, {})
    assert isinstance(outcome, OutOfReach)
    assert "one head per block stays" in outcome.reason
    assert compute_rows(wanted, bench_of, evaluation, tmp_path, {}) == (outcome,)
    assert finished_rows([outcome]) == ()


def test_paired_ratio_against_scipy():
    generator = np.random.default_rng(0)
    common = generator.gamma(0.3, size=400)
    ours, theirs = 0.4 * common + 0.05 * generator.random(400), common
    own, other, ratio = paired_ratio(ours[None], theirs[None])
    expected = bootstrap(
        (ours, theirs), lambda a, b, axis: a.mean(axis) / b.mean(axis), paired=True, n_resamples=4000,
        method="percentile", rng=np.random.default_rng(1), vectorized=True,
    ).confidence_interval  # fmt: skip
    assert ratio.estimate == pytest.approx(ours.mean() / theirs.mean())
    assert (own.estimate, other.estimate) == pytest.approx((ours.mean(), theirs.mean()))
    width = expected.high - expected.low
    assert (ratio.low, ratio.high) == pytest.approx((expected.low, expected.high), abs=0.15 * width)
    assert other.high - other.low > 2 * (ratio.high - ratio.low), "what the clips share cancels"


def test_paired_ratio_where_it_is_known():
    values = np.random.default_rng(0).random((3, 50))
    _, _, ratio = paired_ratio(0.25 * values, values)
    assert (ratio.estimate, ratio.low, ratio.high) == pytest.approx((0.25, 0.25, 0.25))
    noise = np.random.default_rng(1).normal(size=(1, 200))
    assert paired_ratio(np.abs(noise), noise - noise.mean())[2] is None
    # four clips of a hundred, which one draw in sixty has not at all: nothing to divide by, and no NaN for it
    rare = np.zeros((1, 100))
    rare[0, :4] = 1.0
    _, _, ratio = paired_ratio(rare, rare)
    assert (ratio.estimate, ratio.low, ratio.high) == (1.0, 1.0, 1.0)
    assert paired_ratio(np.ones((1, 100)), rare)[2].high == pytest.approx(100.0), "one of the four is left"
    rare[0, 3] = 0.0
    assert paired_ratio(rare, rare)[2] is None, "none of three is left in one draw of twenty"
    # seeds that disagree widen the interval
    calm = np.full((3, 50), 1.0)
    wild = calm * np.array([[0.5], [1.0], [1.5]])
    assert paired_ratio(calm, calm)[2].high == 1.0
    assert paired_ratio(wild, calm)[2].high > 1.3


def finished(name: str, seed: int, kl: float, correct: list[bool]) -> Finished:
    answers = Answers(np.full(4, kl), np.full(4, 0.5 + kl), 1.0 - np.array(correct), np.ones(4))
    asked, wrong = 0.0 if name == DENSE else 0.5, 4 - sum(correct)
    row = Row(name, asked, seed, 0.5, 1, 1, 1, {"encoder": 0.5}, 4, 4, wrong, 0.5 + kl, kl, 0, 0.0)
    return Finished(row, answers)


def test_the_comparison_pairs_seeds_and_lends_the_row_that_has_none():
    rows = [
        finished(DENSE, ANY_SEED, 0.0, [True] * 4),
        finished(DEFAULT, 0, 0.1, [True] * 4),
        finished(DEFAULT, 1, 0.3, [True] * 4),
        finished("drawn", 1, 0.6, [False] * 4),
        finished("undrawn", ANY_SEED, 0.4, [True, True, True, False]),
    ]
    ratios = {(ratio.theirs, ratio.measure): ratio for ratio in compare_with(rows)}
    assert ratios["drawn", "kl_divergence"].seeds == (1,)
    assert ratios["drawn", "kl_divergence"].ratio.estimate == pytest.approx(0.5)
    assert ratios["undrawn", "kl_divergence"].seeds == (0, 1)
    assert ratios["undrawn", "kl_divergence"].ratio.estimate == pytest.approx(0.2 / 0.4)
    assert ratios["undrawn", "cross_entropy_change"].ratio.estimate == pytest.approx(0.2 / 0.4)
    assert ratios["drawn", "excess_error"].their_mean.estimate == 1.0
    assert ratios["drawn", "excess_error"].ratio.estimate == 0.0
    assert (DENSE, "kl_divergence") not in ratios


def test_the_claims_methods_have_all_seeds_and_the_others_one():
    request = ComparisonRequest(sparsities=(0.5, 0.7), seeds=3, seed=4)
    every = one_shot_jobs(request, methods())
    assert len(set(every)) == len(every)
    by_name = {method.name: [job for job in every if job.method.name == method.name] for method in methods()}
    assert {job.seed for job in by_name[DEFAULT]} == {4, 5, 6}
    assert {job.seed for job in by_name["wrong scale"]} == {4}
    assert {job.seed for job in by_name["reference: channels, magnitude, local"]} == {ANY_SEED}
    assert [job.sparsity for job in by_name[DENSE]] == [0.0]
    only = one_shot_jobs(dataclasses.replace(request, claim_only=True), methods())
    assert set(only) == {job for job in every if is_claimed(job.method)}


def test_recovery_takes_the_references_best_and_gives_its_full_schedule_five_times_the_updates():
    def row(name, kl):
        return finished(name, 0, kl, [True] * 4)

    rows = [row(method.name, 1.0) for method in methods() if method.group == "reference"]
    rows += [row("reference: channels, magnitude, local", 0.2), row("reference: heads, fisher, global", 0.3)]
    rows = [found for found in rows if found.row.kl_divergence != 1.0 or "heads, fisher, local" not in found.row.method]
    (chosen,) = recovery_methods(rows, (0.5,), clips=256).values()
    names = [method.name for method in chosen]
    assert names[0] == "default, recovered"
    assert "reference: heads, fisher, global, recovered" in names
    assert "reference: channels, magnitude, local, recovered" in names
    budget = chosen[0].recipe.options
    ours = budget.updates_planned(256 - 51)
    for method in chosen[-2:]:
        assert method.recipe.schedule == "iterative"
        theirs = 7 * method.recipe.recovery_options.epochs * math.ceil(256 / 16)
        assert 5 * ours <= theirs < 5 * ours + 7 * 16, "seven steps of a tenth go past a half"


@pytest.fixture
def data(tmp_path):
    return write_tones(tmp_path / "data", 8, yes=500, up=1500, left=900)


def test_the_command_writes_its_files_and_takes_rows_over(tiny_folder, data, tmp_path, capsys):
    out = tmp_path / "comparison"
    arguments = [
        "compare-methods", str(tiny_folder), "--data", str(data), "--sparsity", "0.5", "--seeds", "2",
        "--calibration-clips", "8", "--out", str(out), "--verbose",
    ]  # fmt: skip
    assert run(arguments) == 0
    said = capsys.readouterr()
    assert "activation basis, equal widths" in said.out
    read = [int(share) for share in re.findall(r"reading \d+ of \d+ \((\d+) %\)$", said.err, re.MULTILINE)]
    assert read == sorted(read), "of all clips, those to evaluate on too"
    assert read[0] < read[-1] < 100, "they are yet to be made into features"
    document = json.loads((out / "comparison.json").read_text())
    assert {row["method"] for row in document["one_shot"]["rows"]} >= set(NAMES)
    assert document["evaluation"]["clips"] == 12
    assert document["calibration"]["clips"] == 8
    page = (out / "comparison.html").read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    before = (out / "rows.jsonl").read_bytes()
    assert run(arguments) == 0
    assert (out / "rows.jsonl").read_bytes() == before
    assert json.loads((out / "comparison.json").read_text()) == document


def test_recovery_and_latency_are_added(tiny_folder, data, tmp_path, monkeypatch):
    monkeypatch.setattr("leanear.recover.distillation_options.FEWEST_UPDATES", 10)
    target = tmp_path / "small.toml"
    target.write_text(
        'description = "one thread"\nruntime = "onnxruntime"\n'
        'graph_form = "portable"\nprecision = "fp32"\nthreads = 1\n'
    )
    out = tmp_path / "comparison"
    arguments = [
        "compare-methods", str(tiny_folder), "--data", str(data), "--sparsity", "0.5", "--seeds", "1", "--claim-only",
        "--calibration-clips", "12", "--recovery", "0.5", "--target", str(target), "--out", str(out),
    ]  # fmt: skip
    assert run(arguments) == 0
    document = json.loads((out / "comparison.json").read_text())
    trained = {row["method"]: row for row in document["recovery"]["rows"]}
    assert trained["default, recovered"]["updates"] > 0
    ours = trained["default, recovered"]["updates"]
    ten = [row["updates"] for name, row in trained.items() if name.endswith("ten steps")]
    assert len(ten) == 2
    assert min(ten) > ours, "five times, were the tiny model's steps not coarse"
    assert max(ten) > 2 * ours
    measured = {(row["method"], row["asked"]) for row in document["latency"]["rows"]}
    assert {(DENSE, 0.0), (DEFAULT, 0.5), ("activation basis, equal widths", 0.5)} <= measured
    assert all(row["median_ms"] > 0 for row in document["latency"]["rows"])
    assert "Quality against measured latency" in (out / "comparison.html").read_text()


def test_bad_input_is_one_line(tiny_folder, data, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    common = ["compare-methods", str(tiny_folder), "--data", str(data)]
    for more, word in (
        (["--sparsity", "1.2"], "--sparsity"),
        (["--recovery", "most"], "--recovery"),
        (["--target", "toaster"], "toaster"),
        (["--out", str(tmp_path / "mine")], "--out"),
    ):
        assert run([*common, *more]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len([line for line in said if line.startswith("leanear: ")]) == 1
        assert word in said[-1]
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
