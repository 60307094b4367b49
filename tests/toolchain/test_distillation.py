"""Distillation brings a slim model back to its dense self, never makes it worse, resumes, and runs on processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from runtimes.errors import BadInput
from tests.conftest import make_tiny_ast
from toolchain.distillation import (
    ALL_EPOCHS,
    ALL_STEPS,
    DIVERGED,
    NO_BETTER,
    STATE_FILE,
    Distillation,
    _check_same_state,
    distill_,
    kl_divergences,
)
from toolchain.families import ast
from toolchain.plan import full_plan

MADE_FROM = {"checkpoint": "0" * 64}
ROOT = Path(__file__).parents[2]


def clips(number: int = 40):
    """Noise, and five labels in turn."""
    inputs = torch.randn(number, 46, 128, generator=torch.Generator().manual_seed(3))
    return inputs, torch.arange(number) % 5


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
    return Distillation(**{"learning_rate": 3e-3, "temperature": 2.0, **options})


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_student_comes_close_to_the_teacher_on_new_clips(tiny_ast, method):
    student = damaged(tiny_ast)
    inputs, label_ids = clips(140)
    new, inputs, label_ids = inputs[120:], inputs[:120], label_ids[:120]
    before = divergence(student, tiny_ast, new)
    teacher_before = {name: value.clone() for name, value in tiny_ast.state_dict().items()}
    distilled = distill_(
        student, tiny_ast, inputs, label_ids, ast.logits, plain(method=method, epochs=6, learning_rate=1e-2)
    )
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
    inputs, label_ids = clips(20)
    expected = divergence(student, tiny_ast, inputs)
    with torch.no_grad():
        assert kl_divergences(
            tiny_ast(inputs).logits, student(inputs).logits, label_ids
        ).mean().item() == pytest.approx(expected, rel=1e-4)
    seen = []

    def watched(model, batch):
        if model is student and not student.training:
            seen.append(batch)
        return ast.logits(model, batch)

    options = plain(epochs=2, held_out=0.25, learning_rate=1e-3)
    distilled = distill_(student, tiny_ast, inputs, label_ids, watched, options)
    held_out = torch.cat(seen)[:5]
    assert distilled.held_out_kls[0] == pytest.approx(divergence(damaged(tiny_ast), tiny_ast, held_out), rel=1e-4)
    assert distilled.held_out_kls[distilled.best_epoch] == pytest.approx(
        divergence(student, tiny_ast, held_out), rel=1e-4
    )


def test_loss_is_labels_and_softened_kl(tiny_ast):
    """One epoch of one batch: the loss before any update, by its definition, in float64."""
    student = damaged(tiny_ast)
    inputs, label_ids = clips(10)
    with torch.no_grad():
        dense, slim = tiny_ast(inputs).logits.double(), student(inputs).logits.double()
    p, log_q = (dense / 3).softmax(1), (slim / 3).log_softmax(1)
    softened = 9 * (p * (p.log() - log_q)).sum(1).mean()
    labelled = -slim.log_softmax(1)[torch.arange(10), label_ids].mean()
    for weight in (0.0, 0.3, 1.0):
        options = plain(epochs=1, held_out=0.0, temperature=3.0, label_weight=weight)
        distilled = distill_(damaged(tiny_ast), tiny_ast, inputs, label_ids, ast.logits, options)
        expected = weight * labelled + (1 - weight) * softened
        assert distilled.training_losses == (pytest.approx(expected.item(), rel=1e-5),)
        assert (distilled.held_out_kls, distilled.best_epoch) == ((), 1)


def test_no_training_can_make_the_held_out_kl_worse(tiny_ast):
    """A student that is its teacher already, and a rate that ruins it: the state before training is taken back."""
    student = ast.slim_model(tiny_ast, full_plan("ast", ast.attention_sites(tiny_ast)).sites)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    options = plain(label_weight=1.0, learning_rate=0.05, epochs=9, patience=2)
    distilled = distill_(student, tiny_ast, *clips(), ast.logits, options)
    assert min(distilled.held_out_kls[1:]) > distilled.held_out_kls[0]
    assert (distilled.best_epoch, len(distilled.training_losses), distilled.stopped) == (0, 2, NO_BETTER)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("held_out", [0.0, 0.2])
def test_what_is_not_finite_is_not_kept(tiny_ast, held_out):
    student = damaged(tiny_ast)

    def overflowing(model, inputs):
        return ast.logits(model, inputs) * (float("inf") if model.training else 1.0)

    distilled = distill_(student, tiny_ast, *clips(), overflowing, plain(held_out=held_out))
    assert (distilled.best_epoch, distilled.stopped) == (0, DIVERGED)
    expected = damaged(tiny_ast).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_model_is_left_without_a_trace(tiny_ast, method):
    student = damaged(tiny_ast).train()
    student.classifier.dense.bias.requires_grad_(False)
    keys, random_state = list(student.state_dict()), torch.get_rng_state()
    distill_(student, tiny_ast.train(), *clips(), ast.logits, Distillation(method=method, epochs=1))
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
    inputs, label_ids = clips()
    start = dict(damaged(tiny_ast).named_parameters())
    for method in ("lora", "full"):
        student = damaged(tiny_ast)
        options = plain(method=method, rank=3, alpha=6.0, epochs=3, held_out=0.0, learning_rate=1e-2)
        distill_(student, tiny_ast, inputs, label_ids, ast.logits, options)
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


def test_held_out_clips_are_balanced_never_trained_on_and_no_others_are_seen(tiny_ast):
    """An order sorted by label, the worst case; the clips outside it stand for evaluation clips."""
    inputs, label_ids = clips(60)
    inputs[:, 0, 0] = torch.arange(60.0)
    order = torch.cat([torch.arange(60)[label_ids == label][:8] for label in range(5)])
    student, trained_on, judged_on = damaged(tiny_ast), set(), set()

    def watched(model, batch):
        if model is student:
            (trained_on if model.training else judged_on).update(batch[:, 0, 0].int().tolist())
        else:
            assert set(batch[:, 0, 0].int().tolist()) <= set(order.tolist())
        return ast.logits(model, batch)

    distill_(student, tiny_ast, inputs, label_ids, watched, plain(epochs=2, held_out=0.25), order=order)
    assert trained_on | judged_on == set(order.tolist())
    assert not trained_on & judged_on
    assert torch.bincount(label_ids[sorted(judged_on)]).tolist() == [2, 2, 2, 2, 2]


def test_masked_clips_are_heard_alike_by_both_models(tiny_ast):
    inputs, label_ids = clips()
    student, heard = damaged(tiny_ast), {True: [], False: []}

    def watched(model, batch):
        heard[model is student].append(batch.clone())
        return ast.logits(model, batch)

    options = Distillation(epochs=1, held_out=0.0, frequency_mask_bins=30, time_mask_frames=10)
    distill_(student, tiny_ast, inputs, label_ids, watched, options)
    assert len(heard[True]) == 3
    for slim, dense in zip(heard[True], heard[False], strict=True):
        assert torch.equal(slim, dense)
        assert (slim == 0).any()


def test_max_steps_and_the_shape_of_the_rate(tiny_ast):
    """With one weight that gets a constant gradient, AdamW moves it by the learning rate itself."""
    inputs, label_ids = clips(40)
    student, seen = damaged(tiny_ast), []
    bias = student.classifier.dense.bias

    def watched(model, batch):
        if model is student:
            seen.append(bias[0].item())
        pushed = torch.zeros(len(batch), 5)
        pushed[:, 0] = bias[0] if model is student else 100.0
        return pushed

    options = plain(epochs=9, batch_size=4, max_steps=20, warm_up=0.25, held_out=0.0, learning_rate=1e-3)
    distilled = distill_(student, tiny_ast, inputs, label_ids, watched, options)
    assert (distilled.updates, distilled.stopped, len(distilled.training_losses)) == (20, ALL_STEPS, 2)
    moves = np.diff([*seen, bias[0].item()]) / 1e-3
    expected = [*(np.arange(1, 6) / 5), *(0.5 * (1 + np.cos(np.pi * np.arange(15) / 15)))]
    assert moves == pytest.approx(expected, abs=2e-2)


def interrupted_at(update: int):
    def report(text: str, fraction: float | None = None) -> None:
        if f"update {update}/" in text:
            raise KeyboardInterrupt

    return report


@pytest.mark.parametrize("method", ["full", "lora"])
def test_an_interrupted_run_ends_with_the_same_bytes(tiny_ast, tmp_path, method):
    inputs, label_ids = clips()
    options = Distillation(method=method, epochs=4, learning_rate=3e-3, frequency_mask_bins=24, time_mask_frames=16)
    whole, resumed, said = damaged(tiny_ast), damaged(tiny_ast), []
    expected = distill_(whole, tiny_ast, inputs, label_ids, ast.logits, options)
    assert expected.updates == 12
    for update in (5, 8):
        with pytest.raises(KeyboardInterrupt):
            distill_(
                resumed, tiny_ast, inputs, label_ids, ast.logits, options,
                state=tmp_path, made_from=MADE_FROM, report=interrupted_at(update),
            )  # fmt: skip
        assert all(type(module).__module__.split(".")[0] != "peft" for module in resumed.modules())
        resumed = damaged(tiny_ast)
    found = distill_(
        resumed, tiny_ast, inputs, label_ids, ast.logits, options,
        state=tmp_path, made_from=MADE_FROM, report=lambda text, fraction=None: said.append(text),
    )  # fmt: skip
    assert said[0] == "recovery goes on after epoch 2"
    assert said[1] == f"recovery, update 7/12, held-out KL {expected.held_out_kls[2]:.4f} nats"
    assert found == expected
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_finished_state_is_not_trained_again_and_other_or_damaged_state_is(tiny_ast, tmp_path):
    inputs, label_ids = clips()
    options = plain(epochs=1)

    def run(student, options=options, made_from=MADE_FROM):
        said = []
        distilled = distill_(
            student, tiny_ast, inputs, label_ids, ast.logits, options,
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
    _, said = run(damaged(tiny_ast), made_from={"checkpoint": "1" * 64})
    assert said[0].startswith("recovery, update 1/3"), "another model"
    path = tmp_path / STATE_FILE
    path.write_bytes(path.read_bytes()[:5000])
    _, said = run(damaged(tiny_ast), made_from={"checkpoint": "1" * 64})
    assert said[0].startswith("recovery, update 1/3"), "damaged"
    tensors = load_file(path)
    with safe_open(path, framework="pt") as stream:
        metadata = stream.metadata()
    assert json.loads(metadata["leanear"])["done"]["stopped"] == ALL_EPOCHS
    save_file(dict(list(tensors.items())[1:]), path, metadata=metadata)
    _, said = run(damaged(tiny_ast), made_from={"checkpoint": "1" * 64})
    assert said[0].startswith("recovery, update 1/3"), "not whole"
    with pytest.raises(ValueError, match="made_from"):
        run(damaged(tiny_ast), made_from=None)


def test_same_seed_same_weights(tiny_ast):
    students = [damaged(tiny_ast) for _ in range(3)]
    for student, seed in zip(students, (1, 1, 2), strict=True):
        distill_(student, tiny_ast, *clips(), ast.logits, Distillation(epochs=1), seed=seed)
    weights = [student.classifier.dense.weight for student in students]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


WORKER = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from tests.conftest import make_tiny_ast
from tests.toolchain.test_distillation import clips, damaged
from toolchain.distillation import Distillation, distill_
from toolchain.families import ast

rank, folder = sys.argv[1], Path(sys.argv[2])
teacher = make_tiny_ast()
for method in ("full", "lora"):
    student, said = damaged(teacher), []
    # 33 clips in batches of 8 leave 1 for the last update, of which the second process has no part
    options = Distillation(method=method, epochs=2, batch_size=8, held_out=0.108, learning_rate=1e-3)
    distill_(
        student, teacher, *clips(37), ast.logits, options, state=folder / method, made_from={"model": "0"},
        report=lambda text, fraction=None: said.append(text),
    )
    assert bool(said) == (rank == "0"), said
    save_file(student.state_dict(), folder / f"{method}-{rank}.safetensors")
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


def start_processes(number: int, folder: Path) -> list[subprocess.Popen]:
    """As torchrun starts them, by its environment variables."""
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers = []
    for rank in range(number):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if number > 1:
            environment |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
        command = [sys.executable, "-c", WORKER, str(rank), str(folder)]
        workers.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    return workers


def test_two_processes_end_with_one_model_that_is_the_single_processs(tmp_path):
    workers = [*start_processes(1, tmp_path / "one"), *start_processes(2, tmp_path / "two")]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=100)
            assert worker.returncode == 0, errors[-2000:]
    finally:
        for worker in workers:
            worker.kill()
    start = damaged(make_tiny_ast()).state_dict()
    for method in ("full", "lora"):
        one = load_file(tmp_path / "one" / f"{method}-0.safetensors")
        first, second = (load_file(tmp_path / "two" / f"{method}-{rank}.safetensors") for rank in (0, 1))
        for name, value in one.items():
            assert torch.isfinite(first[name]).all()
            assert torch.equal(first[name], second[name]), name
            if not name.endswith("k_proj.bias"):  # its gradient is rounding alone, which AdamW brings to full size
                assert torch.allclose(first[name], value, atol=1e-5), name
        moved = max((value - start[name]).abs().max().item() for name, value in one.items())
        assert moved > 1e-3, "the models do not agree because none was trained"
        assert [path.name for path in (tmp_path / "two" / method).iterdir()] == [STATE_FILE]


def test_processes_that_see_different_states_are_refused():
    class Processes:
        device = torch.device("cpu")

        def gather(self, epochs):
            return torch.cat([epochs, torch.tensor([3])])

    with pytest.raises(BadInput, match="share"):
        _check_same_state(Processes(), None, Path("state"))


def test_a_block_that_keeps_no_head_is_no_obstacle(tiny_ast, tmp_path):
    """Its output bias alone is left, and its other parameters, which are empty or reach nothing, get no gradient."""
    student = damaged(tiny_ast)
    block = student.audio_spectrogram_transformer.layers[0].attention
    block.forward = lambda hidden: block.o_proj.bias.expand_as(hidden)
    with pytest.raises(KeyboardInterrupt):
        distill_(
            student, tiny_ast, *clips(), ast.logits, plain(epochs=2), state=tmp_path, made_from=MADE_FROM,
            report=interrupted_at(4),
        )  # fmt: skip
    distilled = distill_(student, tiny_ast, *clips(), ast.logits, plain(epochs=2), state=tmp_path, made_from=MADE_FROM)
    assert distilled.updates == 6
    assert min(distilled.held_out_kls) < distilled.held_out_kls[0]


@pytest.mark.parametrize(
    "options",
    [
        {"method": "adapters"}, {"rank": 0}, {"epochs": 0}, {"batch_size": 0}, {"patience": 0}, {"max_steps": 0},
        {"alpha": 0.0}, {"learning_rate": 0.0}, {"temperature": float("nan")}, {"label_weight": 1.5},
        {"held_out": 0.6}, {"warm_up": -0.1}, {"frequency_mask_bins": -1}, {"time_mask_frames": -1},
    ],
)  # fmt: skip
def test_unusable_options_are_refused(options):
    with pytest.raises(BadInput, match=next(iter(options))):
        Distillation(**options)


def test_too_few_clips_are_refused(tiny_ast):
    with pytest.raises(BadInput, match="held_out"):
        distill_(damaged(tiny_ast), tiny_ast, *clips(2), ast.logits, Distillation(held_out=0.1))
