"""What AST has, for Whisper: the reference's variants, recovery, compensation, the search, methods, and the command."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import torch

from leanear.calibration.scores import score_magnitude
from leanear.data.examples import LabelledInputs, Mistakes
from leanear.families import whisper
from leanear.families.checkpoint import load_checkpoint
from leanear.plan import read_plan
from leanear.progress import Narrator
from leanear.prune.costs import parameter_costs
from leanear.prune.job import PruneJob
from leanear.prune.pruning import prune_checkpoint
from leanear.prune.recipe import Goal
from leanear.prune.search import search_sparsity
from leanear.prune.widths import RotatedRecipe
from leanear.recover.compensation import compensate_
from leanear.recover.distillation import distill_
from leanear.recover.distillation_options import METHODS, Distillation
from leanear.recover.lora import LoraRecovery, with_lora
from leanear.reference.choose import SCHEMES, THRESHOLDS, choose_share
from leanear.reference.schedule import SCORES, PruneRecipe, prune
from leanear.runtimes.errors import BadInput
from leanear.studies.comparing import ComparisonRequest, compare_methods
from leanear.studies.methods import SPEECH_MODEL, Bench, methods
from leanear.studies.quality import judge_answers
from leanear.targets.target import read_target
from tests.toolchain.whisper_pruning import answers, checkpoint, clips, divergence, sentences, write_audio
from tests.whisper_models import write_whisper

SMALL = RotatedRecipe(multiples=(2, 2), chunk=4)


def halved(model):
    """The reference's half of every head."""
    sites = whisper.attention_sites(model)
    names = [site.name for site in sites]
    return whisper.slim_model(model, choose_share(names, score_magnitude(sites), "channels", "local", 0.5))


# The reference


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_all_eight_variants_prune_every_kind(scheme, score, threshold):
    dense = checkpoint(heads=4, head_width=8)
    recipe = PruneRecipe(0.3, scheme, score, threshold, batch_size=4)
    found = prune(whisper, dense, clips(8), recipe)
    assert found.plan.sparsity >= 0.3
    removed = sum(p.numel() for p in dense.model.parameters()) - sum(p.numel() for p in found.model.parameters())
    assert removed == found.plan.attention_parameters_dense - found.plan.attention_parameters_kept
    if (scheme, threshold) == ("channels", "local"):
        assert len({round(share.sparsity, 6) for share in found.plan.shares.values()}) == 1
    alone = prune(whisper, dense, clips(8), dataclasses.replace(recipe, sites="self-attention"))
    assert alone.plan.sparsity >= 0.3
    assert alone.plan.shares["cross"].sparsity == 0
    assert alone.plan.shares["encoder"].sparsity > 0


def test_ten_per_cent_at_a_time_with_lora_goes_on_where_it_was_interrupted(tmp_path):
    dense = checkpoint(heads=2, head_width=16)
    recipe = PruneRecipe(
        0.2, schedule="iterative", recovery="lora", recovery_options=LoraRecovery(rank=2, epochs=1, batch_size=4),
        batch_size=4,
    )  # fmt: skip
    told, again = [], []

    def run(told):
        def report(text, _share=None):
            told.append(text)

        made = {"checkpoint": "0" * 64}
        return prune(whisper, dense, clips(8), recipe, made_from=made, state=tmp_path, report=report)

    found = run(told)
    steps = {text.split(",")[0] for text in told}
    assert len(steps) > 1
    resumed = run(again)
    assert again == [f"step {len(steps)} was finished before"]
    assert resumed.plan == found.plan
    assert torch.equal(answers(resumed.model, clips(2, seed=5)), answers(found.model, clips(2, seed=5)))


def test_low_rank_updates_leave_tied_weights_alone():
    model = checkpoint().model
    before = model.proj_out.weight.detach().clone()
    adapted = with_lora(model, rank=2, alpha=2.0)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert not any("proj_out" in name for name in names)
    assert any("encoder_attn.k_proj" in name for name in names)
    for _, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    adapted.merge_and_unload()
    assert torch.equal(model.proj_out.weight, before)
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight


# Recovery and compensation


@pytest.mark.parametrize("method", METHODS)
def test_distillation_lowers_the_divergence_on_clips_that_it_was_not_given(method):
    dense, given = checkpoint().model, clips(40)
    slim, judges = halved(dense), clips(12, seed=7)
    before = divergence(dense, slim, judges)
    options = Distillation(
        method=method, epochs=4, batch_size=8, learning_rate=3e-3, temperature=1.0, hidden_weight=0.0, patience=4
    )
    done = distill_(slim, dense, given[6:], given[:6], whisper.logits, options)
    assert done.best_epoch > 0
    assert done.held_out_kls[done.best_epoch] < done.held_out_kls[0]
    assert divergence(dense, slim, judges) < 0.9 * before
    assert slim.proj_out.weight is slim.model.decoder.embed_tokens.weight


def test_the_held_out_divergence_is_the_mean_over_target_tokens():
    dense, given = checkpoint().model, clips(20)
    slim = halved(dense)
    options = Distillation(epochs=1, batch_size=8, learning_rate=1e-9, hidden_weight=0.0)
    done = distill_(slim, dense, given[:10], given[10:], whisper.logits, options)
    assert done.held_out_kls[0] == pytest.approx(divergence(dense, halved(dense), given[10:]), rel=1e-3)


def test_compensation_lowers_the_divergence_and_padding_is_in_no_sum():
    dense = checkpoint().model
    given = clips(40)

    def fitted(inputs, targets):
        slim = halved(dense)
        some = LabelledInputs(inputs, targets)
        return slim, compensate_(whisper, slim, dense, some[:32], some[32:], batch_size=8)

    slim, done = fitted(given.inputs, given.targets)
    assert [block.name for block in done.blocks] == [site.name for site in whisper.attention_sites(dense)]
    assert done.held_out_kl_after < 0.9 * done.held_out_kl_before
    judges = clips(12, seed=7)
    assert divergence(dense, slim, judges) < divergence(dense, halved(dense), judges)
    tokens = torch.nn.functional.pad(given.inputs.tokens, (0, 6), value=11)
    padded, _ = fitted(
        dataclasses.replace(given.inputs, tokens=tokens), torch.nn.functional.pad(given.targets, (0, 6), value=-100)
    )
    for one, two in zip(whisper.attention_sites(slim), whisper.attention_sites(padded), strict=True):
        spread = one.output.weight.detach().abs().max()
        assert torch.allclose(one.output.weight, two.output.weight, atol=2e-3 * float(spread)), one.name


# The search, and how answers are judged


def test_the_search_counts_words(monkeypatch):
    """Every clip of ten words: models of more than half lose one word in every clip, and are refused."""
    dense, given = checkpoint(), clips(9)
    widest = sum(p.numel() for p in dense.model.parameters())
    half = parameter_costs(whisper.dense_plan(dense.model)).dense / 2

    def mistakes(_checkpoint, model, some, _answers):
        lost = widest - sum(p.numel() for p in model.parameters()) > half
        return Mistakes(np.full(len(some), float(lost)), np.full(len(some), 10.0))

    monkeypatch.setattr(whisper, "mistakes", mistakes)
    costs = parameter_costs(whisper.dense_plan(dense.model))
    found = search_sparsity(whisper, dense, given, costs, SMALL, 9.0, made_from={})
    for trial in found.trials:
        beyond = trial.sparsity > 0.5
        assert (trial.lost, trial.won, trial.drop_points) == (9 * beyond, 0, 10.0 * beyond)
        assert trial.clips == 9
        assert trial.within is (not beyond) or max(trial.expected_drop_points, 0) + trial.standard_error_points > 9.0
    assert 0 < found.sparsity <= 0.5


def test_answers_are_judged_by_token_and_by_word():
    """Three clips of 2, 1 and 3 target tokens: the mean over clips is the mean over the six tokens."""
    targets = torch.tensor([[-100, 1, 0, -100], [-100, 2, -100, -100], [-100, 0, 1, 2]])
    generator = torch.Generator().manual_seed(0)
    logits, dense = (torch.randn(3, 4, 5, generator=generator) for _ in range(2))
    found = judge_answers(logits, dense, targets, Mistakes(np.array([1.0, 0.0, 2.0]), np.array([2.0, 1.0, 3.0])))
    asked = targets >= 0
    p, q = (each[asked].double().softmax(1) for each in (dense, logits))
    divergences = (p * (p.log() - q.log())).sum(1)
    assert found.kl_divergence.mean() == pytest.approx(float(divergences.mean()))
    assert found.kl_divergence[1] == pytest.approx(float(divergences[2]) / 2), "one of three clips, one of six tokens"
    right = q.gather(1, targets[asked][:, None])[:, 0]
    assert found.cross_entropy.mean() == pytest.approx(float(-right.log().mean()))
    assert found.error_rate == 0.5


def test_word_errors_are_those_of_generates_transcripts():
    dense, given = checkpoint(), clips(3)
    ids = dense.model.generate(given.inputs.features, language="en", task="transcribe")
    said = dense.tokenizer.batch_decode(ids, skip_special_tokens=True)
    given = dataclasses.replace(given, texts=(said[0], *given.texts[1:]))
    found = whisper.mistakes(dense, dense.model, given, torch.zeros(0))
    assert found.errors[0] == 0
    assert found.errors[1] > 0
    assert found.counted[1:].tolist() == [len(text.split()) for text in sentences(3)[1:]]


# Methods side by side


def test_every_method_for_speech_makes_a_model():
    dense = checkpoint(heads=4, head_width=8)
    bench = Bench(whisper, dense, clips(10), clips=8, seed=0)
    names = [method.name for method in methods(SPEECH_MODEL)]
    assert "a budget for each kind" in names
    assert "self-attention alone" in names
    assert "one label's clips" not in names
    for method in methods(SPEECH_MODEL)[1:]:
        made = method.make(bench, 0.25, method.recipe)
        assert made.plan.sparsity == pytest.approx(0.25, abs=0.13), method.name
        assert answers(made.model, clips(2, seed=3)).isfinite().all(), method.name


# From folder to folder


@pytest.fixture
def folders(tmp_path):
    write_whisper(tmp_path / "model")
    write_audio(tmp_path / "data" / "train", 12)
    write_audio(tmp_path / "data" / "test", 6, seed=1)
    return tmp_path


def job(kind="sparsity", value=0.5, recipe=SMALL, **options) -> PruneJob:
    return PruneJob(Goal(kind, value), recipe, read_target("cpu"), **options)


@pytest.mark.parametrize(
    "asked",
    [
        job(),
        job(recipe=dataclasses.replace(SMALL, shots=2), compensation=True),
        job("macs", 0.96, recovery=Distillation(epochs=1, batch_size=4, hidden_weight=1.0)),
        job("max_drop", 90.0),
        job(recipe=PruneRecipe(0.5, batch_size=4)),
    ],
    ids=["default", "shots and compensation", "macs and recovery", "search", "reference"],
)
def test_a_folder_becomes_a_slim_folder(folders, asked):
    result = prune_checkpoint(
        str(folders / "model"), data=str(folders / "data"), job=asked, out=folders / "slim", narrator=Narrator()
    )
    plan, slim = read_plan(folders / "slim" / "plan.json"), load_checkpoint(folders / "slim")
    assert slim.model.__class__.__name__.startswith("Slim")
    assert plan.sparsity == pytest.approx(result["sparsity"], abs=1e-5)
    written = json.loads((folders / "slim" / "plan.json").read_text())
    assert written["family"] == "whisper"
    assert written["key_bias"] is False
    assert set(written["by_kind"]) == {"encoder", "decoder", "cross"} == set(result["sparsity_by_kind"])
    facts = json.loads((folders / "slim" / "pruning.json").read_text())
    assert facts["metric"] == "word error rate"
    assert facts["by_kind"] == {kind: pytest.approx(share.sparsity) for kind, share in plan.shares.items()}
    assert result["calibration_clips"] == 12
    widths = [(site.query_key_widths, site.value_output_widths) for site in whisper.attention_sites(slim.model)]
    assert widths == [(site.query_key_widths, site.value_output_widths) for site in plan.sites]


def prune_with(folders, *texts):
    """Prune on these transcripts and the same audio."""
    metadata = folders / "data" / "train" / "metadata.csv"
    names = [line.split(",")[0] for line in metadata.read_text().splitlines()[1:]]
    lines = [f"{name},{text}" for name, text in zip(names, texts * len(names), strict=False)]
    metadata.write_text("\n".join(["file_name,text", *lines]))
    return prune_checkpoint(
        str(folders / "model"), data=str(folders / "data"), job=job(), out=folders / "slim", narrator=Narrator()
    )


def test_a_transcript_that_is_too_long_or_has_no_word_is_left_out_and_not_counted(folders, caplog):
    """Of 12 clips 2 and 2."""
    result = prune_with(folders, "zebra " * 30, "the sun", "...", "an owl", "on the other hand", "water")
    assert re.search(r"2 calibration clips of 10 left out: the transcript takes more than the 59 .*0\.wav", caplog.text)
    assert "2 calibration clips of 12 left out: no word" in caplog.text
    assert result["calibration_clips"] == 8
    assert json.loads((folders / "slim" / "pruning.json").read_text())["calibration_clips"] == 8


def test_transcripts_that_are_all_too_long_are_refused(folders):
    with pytest.raises(BadInput, match=r"clips: the transcript takes more than the 59 tokens .*0\.wav, .* and 9 more"):
        prune_with(folders, "zebra " * 30)


def test_the_comparison_states_words_and_kinds(folders, monkeypatch):
    chosen = [method for method in methods(SPEECH_MODEL) if method.group in ("dense", "default")][:2]
    monkeypatch.setattr("leanear.studies.comparing.methods", lambda _there=None: tuple(chosen))
    request = ComparisonRequest(sparsities=(0.5,), seeds=2, calibration_clips=8)
    paths = compare_methods(
        str(folders / "model"), data=str(folders / "data"), request=request, out=folders / "compared",
        command=("leanear",), narrator=Narrator(),
    )  # fmt: skip
    document = json.loads(paths.json.read_text())
    assert document["metric"] == "word error rate"
    rows = document["one_shot"]["rows"]
    words = sum(len(text.split()) for text in sentences(6, seed=1))
    assert all(row["counted"] == words and row["clips"] == 6 for row in rows)
    assert set(rows[-1]["by_kind"]) == {"encoder", "decoder", "cross"}
    rate = document["one_shot"]["error_rates"][0]["rate"]
    assert rate["low"] <= rate["estimate"] <= rate["high"]
    assert rate["estimate"] == pytest.approx(rows[0]["errors"] / words)
    page = paths.markdown.read_text()
    assert "The dense model has a word error rate of" in page
    assert "cross, % removed" in page


def test_labelled_inputs_can_be_picked_by_number():
    given = clips(5)
    some = given[torch.tensor([3, 1])]
    assert isinstance(some, LabelledInputs)
    assert some.texts == (given.texts[3], given.texts[1])
    assert torch.equal(some.inputs.tokens, given.inputs.tokens[[3, 1]])
    order = given.balanced_order(seed=2)
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4]
    assert torch.equal(given.balanced_order(2, 3), order[:3])
