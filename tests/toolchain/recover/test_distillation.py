"""Distillation brings a slim model back to its dense self, never makes it worse, and resumes."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from leanear.calibration.targets import kl_divergences
from leanear.data.examples import LabelledInputs, SpeechInputs
from leanear.families import ast, whisper
from leanear.plan import full_plan
from leanear.recover.distillation import distill_
from leanear.recover.distillation_options import FEWEST_EPOCHS, Distillation
from leanear.recover.hidden_states import hidden_differences
from leanear.recover.kept_training import STATE_FILE, check_same_state
from leanear.recover.training import ALL_EPOCHS, ALL_STEPS, DIVERGED, NO_BETTER, OUT_OF_TIME
from leanear.runtimes.errors import BadInput
from tests.toolchain import whisper_pruning

MADE_FROM = {"checkpoint": "0" * 64}
ROOT = Path(__file__).parents[3]


def clips(number: int = 40):
    """Noise, and five labels in turn."""
    inputs = torch.randn(number, 46, 128, generator=torch.Generator().manual_seed(3))
    return LabelledInputs(inputs, torch.arange(number) % 5)


def parts(number: int = 40, held_out: int = 6):
    """The clips to train on, and those held out, which come last."""
    return clips(number)[: number - held_out], clips(number)[number - held_out :]


def damaged(teacher):
    """A slim copy of the teacher whose weights are some noise away from it."""
    student = ast.slim_model(teacher, full_plan("ast", ast.attention_sites(teacher)).sites)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "attention" in name and parameter.ndim == 2:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return student


def divergence(student, teacher, inputs):
    """KL(teacher || student) in nats, in float64 by its definition."""
    with torch.no_grad():
        p, q = (model.eval()(inputs).logits.double().softmax(dim=1).numpy() for model in (teacher, student))
    return float((p * (np.log(p) - np.log(q))).sum(axis=1).mean())


def plain(**options):
    """Options with which so small a model learns in a few updates."""
    return by_logits(**{"learning_rate": 3e-3, "temperature": 2.0, "epochs": 10, **options})


def by_logits(**options):
    """Options with which only answers are compared, of clips as they are, in float32 and batches of 16."""
    plainly = {"temperature": 4.0, "hidden_weight": 0.0, "bfloat16": False, "frequency_warp": 0.0, "time_warp": 0.0}
    return Distillation(**{"batch_size": 16, **plainly, **options})


def everything_same(one, other) -> bool:
    """Whether two models have the same weights to the bit."""
    expected = other.state_dict()
    return all(torch.equal(value, expected[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_student_comes_close_to_the_teacher_on_new_clips(tiny_ast, method):
    student = damaged(tiny_ast)
    given, new = clips(120), clips(140).inputs[120:]
    before = divergence(student, tiny_ast, new)
    teacher_before = {name: value.clone() for name, value in tiny_ast.state_dict().items()}
    options = plain(method=method, epochs=6, patience=6, learning_rate=1e-2)
    distilled = distill_(student, tiny_ast, given[18:], given[:18], ast.logits, options)
    assert divergence(student, tiny_ast, new) < 0.7 * before
    assert distilled.training_losses[-1] < distilled.training_losses[0]
    assert len(distilled.training_losses) == 6
    assert len(distilled.held_out_kls) == 7
    assert distilled.updates == 6 * 7, "102 clips, 16 at a time"
    assert distilled.stopped == ALL_EPOCHS
    for name, value in tiny_ast.state_dict().items():
        assert torch.equal(value, teacher_before[name]), name


def test_kl_is_that_of_the_definition_and_the_held_out_one_is_the_students(tiny_ast):
    student = damaged(tiny_ast)
    training, held_out = parts(20, held_out=5)
    inputs, expected = held_out.inputs, divergence(student, tiny_ast, held_out.inputs)
    with torch.no_grad():
        found = kl_divergences(tiny_ast(inputs).logits, student(inputs).logits, held_out.targets)
    assert found.mean().item() == pytest.approx(expected, rel=1e-4)
    distilled = distill_(student, tiny_ast, training, held_out, ast.logits, plain(epochs=2, learning_rate=1e-3))
    assert distilled.held_out_kls[0] == pytest.approx(expected, rel=1e-4)
    assert distilled.held_out_kls[distilled.best_epoch] == pytest.approx(
        divergence(student, tiny_ast, inputs), rel=1e-4
    )


def test_loss_is_labels_and_softened_kl(tiny_ast):
    """One epoch of one batch: the loss before any update, by its definition, in float64."""
    student = damaged(tiny_ast)
    training, held_out = parts(12, held_out=2)
    with torch.no_grad():
        dense, slim = tiny_ast(training.inputs).logits.double(), student(training.inputs).logits.double()
    p, log_q = (dense / 3).softmax(1), (slim / 3).log_softmax(1)
    softened = 9 * (p * (p.log() - log_q)).sum(1).mean()
    labelled = -slim.log_softmax(1)[torch.arange(10), training.targets].mean()
    for weight in (0.0, 0.3, 1.0):
        options = plain(epochs=1, temperature=3.0, label_weight=weight)
        distilled = distill_(damaged(tiny_ast), tiny_ast, training, held_out, ast.logits, options)
        expected = weight * labelled + (1 - weight) * softened
        assert distilled.training_losses == (pytest.approx(expected.item(), rel=1e-5),)


# Hidden states


def ast_layer_outputs(model, inputs):
    """What every layer gives, by going through the model by hand, float64 arrays (B, T, D)."""
    body, outputs = model.eval().audio_spectrogram_transformer, []
    with torch.no_grad():
        hidden = body.embeddings(inputs)
        for layer in body.layers:
            hidden = layer(hidden)
            outputs.append(hidden.double().numpy())
    return outputs


def whisper_layer_outputs(model, inputs):
    """What the encoder's and the decoder's layers give, float64 arrays (B, T, D), as transformers collects them."""
    layers = [*model.model.encoder.layers, *model.model.decoder.layers]
    outputs = {}
    hooks = [layer.register_forward_hook(lambda it, _, output: outputs.update({it: output})) for layer in layers]
    with torch.no_grad():
        whisper.logits(model.eval(), inputs)
    for hook in hooks:
        hook.remove()
    found = [outputs[layer] for layer in layers]
    return [(each if isinstance(each, torch.Tensor) else each[0]).double().numpy() for each in found]


def half_whisper(dense):
    """A slim copy whose encoder and decoder are some noise away from the dense model."""
    student = whisper.slim_model(dense, full_plan("whisper", whisper.attention_sites(dense)).sites)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "attn" in name and parameter.ndim == 2:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return student


def distill_hidden(student, teacher, training, held_out, options, family=ast, **settings):
    return distill_(
        student, teacher, training, held_out, family.logits, options,
        layers=family.encoder_layers, decoder_layers=family.decoder_layers, **settings,
    )  # fmt: skip


def test_hidden_differences_are_those_of_the_definition_and_only_the_slim_ones_learn():
    generator = torch.Generator().manual_seed(0)
    dense, slim = (torch.randn(3, 4, 5, generator=generator, requires_grad=True) for _ in range(2))
    used = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    found = hidden_differences(dense, slim, used)
    expected = []
    for clip, length in enumerate((4, 2)):
        a, b = dense[clip, :length].detach().double(), slim[clip, :length].detach().double()
        expected.append(float(((a - b) ** 2).mean() / (a**2).mean()))
    assert found.tolist() == pytest.approx([*expected, 0.0], rel=1e-5)
    found.sum().backward()
    assert dense.grad is None
    assert slim.grad[0].any()
    assert not slim.grad[1, 2:].any()
    assert torch.isfinite(slim.grad).all()


def test_hidden_loss_of_a_classifier_is_that_of_the_definition(tiny_ast):
    """One epoch of one batch, before any update: its loss less that without hidden states, by numpy alone."""
    training, held_out = parts(12, held_out=2)
    dense, slim = (ast_layer_outputs(model, training.inputs) for model in (tiny_ast, damaged(tiny_ast)))
    assert len(dense) > 1
    per_layer = [
        np.mean(((b - a) ** 2).mean(axis=(1, 2)) / (a**2).mean(axis=(1, 2))) for a, b in zip(dense, slim, strict=True)
    ]
    assert min(per_layer) > 1e-4
    without, weighted = (
        distill_hidden(damaged(tiny_ast), tiny_ast, training, held_out, plain(epochs=1, hidden_weight=weight))
        for weight in (0.0, 2.5)
    )
    found = weighted.training_losses[0] - without.training_losses[0]
    assert found == pytest.approx(2.5 * np.mean(per_layer), rel=1e-4)


def test_hidden_loss_of_a_speech_model_leaves_padding_out():
    """By numpy over each clip's own length; what stands behind it may be anything."""
    dense, given = whisper_pruning.checkpoint().model, whisper_pruning.clips(10)
    training, held_out = given[:8], given[8:]
    lengths = [int((row != -100).nonzero().max()) + 1 for row in training.targets]
    assert len(set(lengths)) > 2
    losses = []
    for dense_layer, slim_layer in zip(
        *(whisper_layer_outputs(model, training.inputs) for model in (dense, half_whisper(dense))), strict=True
    ):
        decoder = dense_layer.shape[1] == training.targets.shape[1]
        ends = lengths if decoder else [dense_layer.shape[1]] * 8
        pairs = [(dense_layer[row, :end], slim_layer[row, :end]) for row, end in enumerate(ends)]
        losses.append(np.mean([((b - a) ** 2).sum() / (a**2).sum() for a, b in pairs]))
    assert len(losses) == len(dense.model.encoder.layers) + len(dense.model.decoder.layers)
    padding = torch.arange(training.targets.shape[1]) >= torch.tensor(lengths)[:, None]
    tokens = training.inputs.tokens.masked_fill(padding, 7)
    other = LabelledInputs(SpeechInputs(training.inputs.features, tokens), training.targets)
    without, weighted, other_padding = (
        distill_hidden(half_whisper(dense), dense, clips, held_out, plain(epochs=1, hidden_weight=weight), whisper)
        for clips, weight in ((training, 0.0), (training, 3.0), (other, 3.0))
    )
    found = weighted.training_losses[0] - without.training_losses[0]
    assert found == pytest.approx(3 * np.mean(losses), rel=1e-4)
    assert other_padding.training_losses == pytest.approx(weighted.training_losses, rel=1e-6)


def test_a_student_that_is_its_teacher_has_no_loss(tiny_ast):
    student = copy.deepcopy(tiny_ast)
    distilled = distill_hidden(student, tiny_ast, *parts(), plain(epochs=1, batch_size=34, hidden_weight=1.0))
    assert distilled.training_losses == (0.0,), "before the only update"
    assert (distilled.held_out_kls[0], distilled.best_epoch) == (0.0, 0)
    assert everything_same(student, tiny_ast)


def test_without_a_weight_hidden_states_change_nothing(tiny_ast):
    with_layers, without = damaged(tiny_ast), damaged(tiny_ast)
    told = distill_hidden(with_layers, tiny_ast, *parts(), plain(epochs=2))
    assert told == distill_(without, tiny_ast, *parts(), ast.logits, plain(epochs=2))
    assert everything_same(with_layers, without)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_hidden_states_come_closer_and_both_models_hear_a_batch_once(tiny_ast, method):
    training, held_out = parts(64, held_out=16)
    passes = {}

    def watched(model, batch):
        passes[model] = passes.get(model, 0) + 1
        return ast.logits(model, batch)

    def difference(model):
        pairs = zip(*(ast_layer_outputs(each, held_out.inputs) for each in (tiny_ast, model)), strict=True)
        return np.mean([((a - b) ** 2).sum() / (a**2).sum() for a, b in pairs])

    students = [damaged(tiny_ast) for _ in range(2)]
    for student, weight in zip(students, (0.0, 1.0), strict=True):
        options = plain(method=method, epochs=12, patience=12, hidden_weight=weight, learning_rate=3e-2)
        passes.clear()
        distill_(student, tiny_ast, training, held_out, watched, options, layers=ast.encoder_layers)
        assert not any(module._forward_hooks for model in (student, tiny_ast) for module in model.modules())
    once = 12 * 3 + 13
    assert passes == {student: once, tiny_ast: once}, "three batches an epoch, and one that is held out"
    assert difference(students[1]) < 0.8 * difference(damaged(tiny_ast))
    assert difference(students[1]) < 0.8 * difference(students[0])


def test_embeddings_stay_as_they_were():
    """Of words that no clip says too, whose gradient is next to nothing and whose step would be a full one."""
    dense, given = whisper_pruning.checkpoint().model, whisper_pruning.clips(10)
    student, options = half_whisper(dense), plain(epochs=2, learning_rate=1e-2)
    distilled = distill_(student, dense, given[:8], given[8:], whisper.logits, options)
    assert distilled.best_epoch > 0
    trained = dict(student.named_parameters())
    changed = [name for name, before in half_whisper(dense).named_parameters() if not trained[name].equal(before)]
    assert changed
    assert not [name for name in changed if "embed" in name]


@pytest.mark.parametrize("there", [True, False])
def test_products_are_of_bfloat16_where_the_device_has_them(tiny_ast, monkeypatch, there):
    monkeypatch.setattr("leanear.recover.training.has_bfloat16", lambda device: there)
    student, seen = damaged(tiny_ast), set()

    def watched(model, batch):
        answer = ast.logits(model, batch)
        if model is student and torch.is_grad_enabled():
            seen.add(answer.dtype)
        return answer

    options = plain(epochs=4, bfloat16=True)
    distilled = distill_(student, tiny_ast, *parts(), watched, options)
    assert seen == {torch.bfloat16 if there else torch.float32}
    assert distilled.held_out_kls[distilled.best_epoch] < 0.7 * distilled.held_out_kls[0]
    assert {each.dtype for each in student.parameters()} == {torch.float32}


def test_layers_must_be_known_where_they_are_compared(tiny_ast):
    with pytest.raises(ValueError, match="layers"):
        distill_(damaged(tiny_ast), tiny_ast, *parts(), ast.logits, plain(hidden_weight=1.0))
    dense, given = whisper_pruning.checkpoint().model, whisper_pruning.clips(4)
    with pytest.raises(ValueError, match="decoder_layers"):
        distill_(
            half_whisper(dense), dense, given[:2], given[2:], whisper.logits, plain(hidden_weight=1.0),
            layers=whisper.encoder_layers,
        )  # fmt: skip


# What is kept, and when training ends


def test_no_training_can_make_the_held_out_kl_worse(tiny_ast):
    """A student that is its teacher already, and a rate that ruins it: the state before training is taken back."""
    student = ast.slim_model(tiny_ast, full_plan("ast", ast.attention_sites(tiny_ast)).sites)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    options = plain(label_weight=1.0, learning_rate=0.05, epochs=9, patience=2)
    distilled = distill_(student, tiny_ast, *parts(), ast.logits, options)
    assert min(distilled.held_out_kls[1:]) > distilled.held_out_kls[0]
    assert (distilled.best_epoch, len(distilled.training_losses), distilled.stopped) == (0, 2, NO_BETTER)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_is_not_finite_is_not_kept(tiny_ast):
    student = damaged(tiny_ast)

    def overflowing(model, inputs):
        return ast.logits(model, inputs) * (float("inf") if model.training else 1.0)

    distilled = distill_(student, tiny_ast, *parts(), overflowing, plain())
    assert (distilled.best_epoch, distilled.stopped) == (0, DIVERGED)
    assert (distilled.training_losses, len(distilled.held_out_kls)) == ((), 1), "what is told are numbers"
    assert everything_same(student, damaged(tiny_ast))


def test_an_epoch_that_ends_in_no_numbers_leaves_the_best_before_it(tiny_ast):
    """And is not told of: what is written of a training are numbers."""
    student, asked = damaged(tiny_ast), [0]

    def overflowing_later(model, inputs):
        asked[0] += model.training
        return ast.logits(model, inputs) * (float("inf") if asked[0] > 12 else 1.0)

    distilled = distill_(student, tiny_ast, *parts(), overflowing_later, plain(epochs=9))
    assert distilled.stopped == DIVERGED
    assert 1 <= len(distilled.training_losses) == len(distilled.held_out_kls) - 1 < 9
    assert np.isfinite([*distilled.training_losses, *distilled.held_out_kls]).all()
    assert all(bool(torch.isfinite(value).all()) for value in student.state_dict().values())
    assert not everything_same(student, damaged(tiny_ast))


def test_a_student_that_gives_no_numbers_is_not_trained(tiny_ast):
    student = damaged(tiny_ast)
    with torch.no_grad():
        next(student.parameters()).fill_(float("nan"))
    distilled = distill_(student, tiny_ast, *parts(), ast.logits, plain())
    assert (distilled.updates, distilled.held_out_kls, distilled.stopped) == (0, (), DIVERGED)


class Clock:
    """Time of which every look at it takes ten seconds."""

    def __init__(self):
        self.now_s = 0.0

    def monotonic(self) -> float:
        self.now_s += 10.0
        return self.now_s


@pytest.mark.parametrize(("seconds", "epochs"), [(1.0, 1), (25.0, 3), (30.0, 3), (31.0, 4)])
def test_training_ends_with_the_epoch_in_which_its_time_is_spent(tiny_ast, monkeypatch, seconds, epochs):
    monkeypatch.setattr("leanear.recover.training.time", Clock())
    student = damaged(tiny_ast)
    distilled = distill_(student, tiny_ast, *parts(), ast.logits, plain(seconds=seconds))
    assert (len(distilled.training_losses), distilled.stopped) == (epochs, OUT_OF_TIME)
    held_out = parts()[1].inputs
    assert divergence(student, tiny_ast, held_out) == pytest.approx(min(distilled.held_out_kls), rel=1e-4)


def test_the_rate_falls_over_the_updates_for_which_there_is_time(tiny_ast, monkeypatch):
    """Ten seconds an epoch of three updates and room for four epochs of nine: the last updates are all but nothing."""
    monkeypatch.setattr("leanear.recover.training.time", Clock())
    rates = []

    class Watched(torch.optim.AdamW):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    options = plain(epochs=9, seconds=40.0, warm_up=0.0, learning_rate=1e-5)
    distilled = distill_(damaged(tiny_ast), tiny_ast, *parts(), ast.logits, options)
    assert (distilled.updates, distilled.updates_planned, distilled.stopped) == (12, 12, OUT_OF_TIME)
    expected = [*(0.5 * (1 + np.cos(np.pi * np.arange(3) / 27))), *(0.5 * (1 + np.cos(np.pi * np.arange(3, 12) / 12)))]
    assert rates == pytest.approx([1e-5 * share for share in expected])


def test_time_before_an_interruption_counts(tiny_ast, monkeypatch, tmp_path):
    """Two epochs of ten seconds, an interruption in the third, of which nothing is kept, and two more."""
    options, settings = plain(seconds=35.0), {"state": tmp_path, "made_from": MADE_FROM}
    whole, resumed = damaged(tiny_ast), damaged(tiny_ast)
    monkeypatch.setattr("leanear.recover.training.time", Clock())
    expected = distill_(whole, tiny_ast, *parts(), ast.logits, options)
    assert (len(expected.training_losses), expected.stopped) == (4, OUT_OF_TIME)
    monkeypatch.setattr("leanear.recover.training.time", Clock())
    with pytest.raises(KeyboardInterrupt):
        distill_(damaged(tiny_ast), tiny_ast, *parts(), ast.logits, options, report=interrupted_at(8), **settings)
    monkeypatch.setattr("leanear.recover.training.time", Clock())
    assert distill_(resumed, tiny_ast, *parts(), ast.logits, options, **settings) == expected
    assert everything_same(resumed, whole)


def test_few_clips_are_heard_often_enough(tiny_ast):
    assert Distillation(batch_size=16).updates_planned(80) == 40 * 5, "200 updates"
    assert Distillation(batch_size=16).updates_planned(325) == FEWEST_EPOCHS * 21
    assert Distillation(batch_size=4).updates_planned(80) == FEWEST_EPOCHS * 20
    assert Distillation(batch_size=16, epochs=3).updates_planned(80) == 3 * 5
    assert Distillation(batch_size=16, max_steps=33).updates_planned(80) == 33
    options = by_logits(learning_rate=1e-5, batch_size=8, patience=100)
    distilled = distill_(damaged(tiny_ast), tiny_ast, *parts(22, held_out=6), ast.logits, options)
    assert (distilled.updates, len(distilled.training_losses), distilled.stopped) == (200, 100, ALL_EPOCHS)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_model_is_left_without_a_trace(tiny_ast, method):
    student = damaged(tiny_ast).train()
    student.classifier.dense.bias.requires_grad_(False)
    keys, random_state = list(student.state_dict()), torch.get_rng_state()
    distill_(student, tiny_ast.train(), *parts(), ast.logits, by_logits(method=method, epochs=1))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert list(student.state_dict()) == keys
    assert all(type(module).__module__.split(".")[0] != "peft" for module in student.modules())
    assert student.training
    assert tiny_ast.training
    assert [n for n, p in student.named_parameters() if not p.requires_grad] == ["classifier.dense.bias"]
    assert all(p.requires_grad for p in tiny_ast.parameters())
    assert all(p.grad is None for p in student.parameters())
    assert not torch.equal(student.classifier.dense.weight, tiny_ast.classifier.dense.weight), "it was trained"


def test_lora_moves_linear_weights_by_low_rank_and_full_moves_everything(tiny_ast):
    start = dict(damaged(tiny_ast).named_parameters())
    for method in ("lora", "full"):
        student = damaged(tiny_ast)
        options = plain(method=method, rank=3, alpha=6.0, epochs=3, learning_rate=1e-2)
        distill_(student, tiny_ast, *parts(), ast.logits, options)
        linear = {f"{name}.weight" for name, module in student.named_modules() if isinstance(module, nn.Linear)}
        for name, parameter in student.named_parameters():
            moved = (parameter - start[name]).detach()
            if method == "full":
                assert moved.any() or name.endswith("k_proj.bias"), f"{name} was not trained"
            elif name in linear:
                singular_values = torch.linalg.svdvals(moved)
                assert singular_values[0] > 1e-3
                assert (singular_values[3:] < 1e-5 * singular_values[0]).all(), f"{name} moved by more than rank 3"
            else:
                assert not moved.any(), name


def test_held_out_clips_are_never_trained_on(tiny_ast):
    given = clips(60)
    given.inputs[:, 0, 0] = torch.arange(60.0)
    student, trained_on, judged_on = damaged(tiny_ast), set(), set()

    def watched(model, batch):
        if model is student:
            (trained_on if model.training else judged_on).update(batch[:, 0, 0].int().tolist())
        return ast.logits(model, batch)

    distill_(student, tiny_ast, given[:45], given[45:], watched, plain(epochs=2))
    assert trained_on == set(range(45))
    assert judged_on == set(range(45, 60))


def test_varied_clips_are_heard_alike_by_both_models(tiny_ast):
    student, heard, (training, held_out) = damaged(tiny_ast), {True: [], False: []}, parts()

    def watched(model, batch):
        if len(batch) != len(held_out):
            heard[model is student].append(batch.cpu())
        return ast.logits(model, batch)

    options = by_logits(epochs=1, batch_size=17, frequency_warp=0.3, time_warp=0.0)
    distill_(student, tiny_ast, training, held_out, watched, options)
    assert len(heard[True]) == 2
    for slim, dense in zip(heard[True], heard[False], strict=True):
        assert torch.equal(slim, dense)
        assert not any(torch.equal(slim[0], clip) for clip in training.inputs)


def test_max_steps_and_the_shape_of_the_rate(tiny_ast):
    """With one weight that gets a constant gradient, AdamW moves it by the learning rate itself."""
    student, seen = damaged(tiny_ast), []
    bias = student.classifier.dense.bias

    def watched(model, batch):
        if model is student and model.training:
            seen.append(bias[0].item())
        pushed = torch.zeros(len(batch), 5, device=bias.device)
        pushed[:, 0] = bias[0] if model is student else 100.0
        return pushed

    options = plain(epochs=9, batch_size=4, max_steps=20, warm_up=0.25, learning_rate=1e-3)
    distilled = distill_(student, tiny_ast, *parts(42, held_out=2), watched, options)
    assert (distilled.updates, distilled.stopped, len(distilled.training_losses)) == (20, ALL_STEPS, 2)
    moves = np.diff([*seen, bias[0].item()]) / 1e-3
    expected = [*(np.arange(1, 6) / 5), *(0.5 * (1 + np.cos(np.pi * np.arange(15) / 15)))]
    assert moves == pytest.approx(expected, abs=2e-2)


def interrupted_at(update: int):
    def report(text: str, fraction: float | None = None) -> None:
        if f"update {update}/" in text:
            raise KeyboardInterrupt

    return report


@pytest.mark.parametrize("hidden_weight", [0.0, 1.0])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_an_interrupted_run_ends_with_the_same_bytes(tiny_ast, tmp_path, method, hidden_weight):
    options = by_logits(
        method=method, epochs=4, learning_rate=3e-3, hidden_weight=hidden_weight,
        frequency_warp=0.2, time_warp=0.1,
    )  # fmt: skip
    whole, resumed, said = damaged(tiny_ast), damaged(tiny_ast), []
    expected = distill_hidden(whole, tiny_ast, *parts(), options)
    assert expected.updates == 12
    for update in (5, 8):
        with pytest.raises(KeyboardInterrupt):
            distill_hidden(
                resumed, tiny_ast, *parts(), options,
                state=tmp_path, made_from=MADE_FROM, report=interrupted_at(update),
            )  # fmt: skip
        assert all(type(module).__module__.split(".")[0] != "peft" for module in resumed.modules())
        assert not any(module._forward_hooks for model in (resumed, tiny_ast) for module in model.modules())
        resumed = damaged(tiny_ast)
    found = distill_hidden(
        resumed, tiny_ast, *parts(), options,
        state=tmp_path, made_from=MADE_FROM, report=lambda text, fraction=None: said.append(text),
    )  # fmt: skip
    assert said[0] == "recovery goes on after epoch 2"
    assert said[1] == f"recovery, update 7/12, held-out KL {expected.held_out_kls[2]:.4f} nats"
    assert found == expected
    assert everything_same(resumed, whole)


def test_finished_state_is_not_trained_again_and_other_or_damaged_state_is(tiny_ast, tmp_path):
    options = plain(epochs=1)

    def run(student, options=options, made_from=MADE_FROM, given=None):
        said = []
        distilled = distill_(
            student, tiny_ast, *(given or parts()), ast.logits, options,
            state=tmp_path, made_from=made_from, report=lambda text, fraction=None: said.append(text),
        )  # fmt: skip
        return distilled, said

    first, again = damaged(tiny_ast), damaged(tiny_ast)
    done, _ = run(first)
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]
    assert run(again) == (done, ["recovery was finished before"])
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in again.state_dict().items())
    _, said = run(damaged(tiny_ast), options=plain(epochs=1, temperature=1.0))
    assert said[0].startswith("recovery, update 1/3"), "other options"
    _, said = run(damaged(tiny_ast), given=parts(held_out=7))
    assert said[0].startswith("recovery, update 1/3"), "other clips held out"
    _, said = run(damaged(tiny_ast), made_from={"checkpoint": "1" * 64})
    assert said[0].startswith("recovery, update 1/3"), "another model"
    path = tmp_path / STATE_FILE
    path.write_bytes(path.read_bytes()[:5000])
    _, said = run(damaged(tiny_ast), made_from={"checkpoint": "1" * 64})
    assert said[0].startswith("recovery, update 1/3"), "damaged"
    tensors = load_file(path)
    with safe_open(path, framework="pt") as stream:
        metadata = stream.metadata()
    assert json.loads(metadata["leanear"])["told"]["done"]["stopped"] == ALL_EPOCHS
    save_file(dict(list(tensors.items())[1:]), path, metadata=metadata)
    _, said = run(damaged(tiny_ast), made_from={"checkpoint": "1" * 64})
    assert said[0].startswith("recovery, update 1/3"), "not whole"
    with pytest.raises(ValueError, match="made_from"):
        run(damaged(tiny_ast), made_from=None)


def test_same_seed_same_weights(tiny_ast):
    students = [damaged(tiny_ast) for _ in range(3)]
    for student, seed in zip(students, (1, 1, 2), strict=True):
        distill_(student, tiny_ast, *parts(), ast.logits, by_logits(epochs=1), seed=seed)
    weights = [student.classifier.dense.weight for student in students]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_processes_that_see_different_states_are_refused():
    class Processes:
        device = torch.device("cpu")

        def gather(self, epochs):
            return torch.cat([epochs, torch.tensor([3])])

    with pytest.raises(BadInput, match="share"):
        check_same_state(Processes(), None, Path("state"))


def test_a_block_that_keeps_no_head_is_no_obstacle(tiny_ast, tmp_path):
    """Its output bias alone is left, and its other parameters, which are empty or reach nothing, get no gradient."""
    student = damaged(tiny_ast)
    block = student.audio_spectrogram_transformer.layers[0].attention
    block.forward = lambda hidden: block.o_proj.bias.expand_as(hidden)
    with pytest.raises(KeyboardInterrupt):
        distill_(
            student, tiny_ast, *parts(), ast.logits, plain(epochs=2), state=tmp_path, made_from=MADE_FROM,
            report=interrupted_at(4),
        )  # fmt: skip
    distilled = distill_(student, tiny_ast, *parts(), ast.logits, plain(epochs=2), state=tmp_path, made_from=MADE_FROM)
    assert distilled.updates == 6
    assert min(distilled.held_out_kls) < distilled.held_out_kls[0]


@pytest.mark.parametrize(
    "options",
    [
        {"method": "adapters"}, {"rank": 0}, {"epochs": 0}, {"batch_size": 0}, {"patience": 0}, {"max_steps": 0},
        {"alpha": 0.0}, {"learning_rate": 0.0}, {"temperature": float("nan")}, {"label_weight": 1.5},
        {"hidden_weight": -1.0}, {"hidden_weight": float("nan")}, {"seconds": 0.0}, {"warm_up": -0.1},
        {"frequency_warp": -0.1}, {"time_warp": 0.6},
    ],
)  # fmt: skip
def test_unusable_options_are_refused(options):
    with pytest.raises(BadInput, match=next(iter(options))):
        Distillation(**options)


def test_too_few_clips_are_refused(tiny_ast):
    for training, held_out in ((2, 0), (0, 2)):
        with pytest.raises(BadInput, match="held out"):
            distill_(
                damaged(tiny_ast), tiny_ast, clips(2)[:training], clips(2)[:held_out], ast.logits, by_logits()
            )  # fmt: skip


def test_after_an_epoch_that_makes_it_worse_training_begins_again_with_a_lower_rate(tiny_ast, monkeypatch):
    """A rate that destroys the model, and then none to speak of: the second epoch ends where the first began."""
    monkeypatch.setattr("leanear.recover.training.RATE_AFTER_WORSE", 1e-12)
    student = damaged(tiny_ast)
    options = plain(learning_rate=1e2, epochs=3, patience=3, warm_up=0.0)
    training, held_out = parts()
    done = distill_(student, tiny_ast, training, held_out, ast.logits, options)
    before, first, second, _ = done.held_out_kls
    assert first > 10 * before
    assert second == pytest.approx(before, rel=1e-3)
