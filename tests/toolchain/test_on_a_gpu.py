"""On a GPU a Whisper is pruned, compensated and recovered as on the CPU, to within rounding, and hears the same."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from accelerate.state import AcceleratorState

from leanear.accelerator import accelerator, on_accelerator
from leanear.data.examples import HeldOut
from leanear.evaluate.torch_speech import TorchSpeechSession, speech_model
from leanear.families import whisper
from leanear.prune import rotated
from leanear.prune.costs import parameter_costs
from leanear.prune.rotated import ClosedLoop, prune_rotated
from leanear.prune.widths import RotatedRecipe
from leanear.recover.compensation import compensate_
from leanear.recover.distillation import distill_
from leanear.recover.distillation_options import Distillation
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.decoding import decode_window
from tests.toolchain.evaluate.test_torch_speech import checkpoint_with, noise
from tests.toolchain.whisper_pruning import checkpoint, clips, divergence

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_one() -> None:
    assert accelerator().type != "cpu", "these tests are for a machine with a GPU"


def test_two_compensated_shots_are_scored_where_the_model_is_and_lose_what_they_do_on_a_cpu(monkeypatch):
    dense, judges = checkpoint().model, clips(6, seed=5)
    compensate = functools.partial(compensated, dense=dense)
    loop = ClosedLoop(HeldOut(dense, clips(4, seed=9), whisper.logits), compensate=compensate)
    costs, recipe = parameter_costs(whisper.dense_plan(dense)), RotatedRecipe(multiples=(2, 2), chunk=4, shots=2)
    prune = functools.partial(prune_rotated, whisper, dense, clips(10), costs, 0.5 * costs.dense, recipe, loop=loop)
    on_cpu, scored_on = prune(), []

    def scored(family, model, *given, **options):
        scored_on.append(next(model.parameters()).device.type)
        return score(family, model, *given, **options)

    score = rotated.score_widths
    monkeypatch.setattr(rotated, "score_widths", scored)
    with on_accelerator(dense):
        on_gpu = prune()
    assert scored_on == [accelerator().type] * 2
    assert next(dense.parameters()).device.type == "cpu"
    assert on_gpu.cost <= 0.5 * costs.dense
    losses = [divergence(dense, each.model.to("cpu"), judges) for each in (on_cpu, on_gpu)]
    assert losses[1] == pytest.approx(losses[0], rel=0.25)  # the GPU convolves in TF32


def compensated(slim, _report, *, dense):
    with on_accelerator(slim, dense):
        return compensate_(whisper, slim, dense, clips(10), clips(4, seed=9), every_block=False, batch_size=4)


def test_recovery_ends_where_it_does_on_a_cpu():
    dense, given, held_out = checkpoint().model, clips(10), clips(4, seed=9)
    damaged = copy.deepcopy(dense)
    with torch.no_grad():
        damaged.model.encoder.layers[0].fc2.weight.mul_(0.3)
    options, found = Distillation(epochs=3, learning_rate=3e-4, bfloat16=False), []
    for on_cpu in (True, False):
        student = copy.deepcopy(damaged)
        AcceleratorState._reset_state(reset_partial_state=True)
        with pytest.MonkeyPatch.context() as patch:
            if on_cpu:
                patch.setattr(torch.accelerator, "is_available", lambda: False)
            found.append(distill_(student, dense, given, held_out, whisper.logits, options,
                                  layers=whisper.encoder_layers, decoder_layers=whisper.decoder_layers))  # fmt: skip
    of_cpu, of_gpu = found
    assert of_gpu.held_out_kls == pytest.approx(of_cpu.held_out_kls, rel=0.1)
    assert of_gpu.held_out_kls[-1] < of_gpu.held_out_kls[0]


@pytest.mark.parametrize("seed", range(4))
def test_a_session_hears_on_a_gpu_what_it_hears_on_a_cpu(seed):
    heard = []
    for device in (torch.device("cpu"), accelerator()):
        tiny = checkpoint_with(seed)
        tiny.model.to(device)
        session = TorchSpeechSession(tiny)
        session.encode(noise(seed))
        heard.append(decode_window(session, speech_model(tiny).tokens, DecodeOptions(language="en")).tokens)
    assert heard[0] == heard[1]
