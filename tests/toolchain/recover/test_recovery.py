"""Recovery learns, merges without a trace, and sees the clips that it is given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leanear.families import ast
from leanear.plan import full_plan
from leanear.recover.lora import LoraRecovery, recover_
from leanear.runtimes.errors import BadInput

ALL = torch.arange(40)


def learnable(clips: int = 40, seed: int = 0):
    """Noise whose level in one of five bands of mels tells the label."""
    generator = torch.Generator().manual_seed(seed)
    label_ids = torch.arange(clips) % 5
    inputs = torch.randn(clips, 46, 128, generator=generator)
    for clip, label in enumerate(label_ids):
        inputs[clip, :, 25 * label : 25 * label + 25] += 2.0
    return inputs, label_ids


def slim_copy(tiny_ast):
    return ast.slim_model(tiny_ast, full_plan("ast", ast.attention_sites(tiny_ast)).sites)


def test_loss_falls_and_only_linear_weights_move_by_low_rank(tiny_ast):
    model = slim_copy(tiny_ast)
    inputs, label_ids = learnable()
    with torch.no_grad():
        before = ast.batch_loss(model, inputs, label_ids).item()
    said = []
    options = LoraRecovery(rank=3, alpha=6, learning_rate=1e-2, epochs=4)
    recover_(
        model,
        inputs,
        label_ids,
        ast.batch_loss,
        options,
        order=ALL,
        report=lambda text, share: said.append((text, share)),
    )
    with torch.no_grad():
        after = ast.batch_loss(model, inputs, label_ids).item()
    assert after < 0.7 * before
    assert len(said) == 4 * 3
    assert said[-1] == ("recovery, update 12/12", 1.0)
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    originals = dict(tiny_ast.named_parameters())
    for name, parameter in model.named_parameters():
        moved = (parameter - originals[name]).detach()
        if name in linear:
            singular_values = torch.linalg.svdvals(moved)
            assert singular_values[0] > 1e-3
            assert (singular_values[3:] < 1e-5 * singular_values[0]).all(), f"{name} moved by more than rank 3"
        else:
            assert not moved.any(), name


def test_model_is_left_without_a_trace_and_saves(tiny_ast, tmp_path):
    model = slim_copy(tiny_ast).train()
    model.classifier.dense.bias.requires_grad_(False)
    keys, inputs = list(model.state_dict()), learnable()
    random_state = torch.get_rng_state()
    recover_(model, *inputs, ast.batch_loss, LoraRecovery(), order=ALL)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert list(model.state_dict()) == keys
    assert all(type(module).__module__.split(".")[0] != "peft" for module in model.modules())
    assert model.training
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["classifier.dense.bias"]
    model.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.json", "model.safetensors"]


def test_same_seed_same_weights(tiny_ast):
    inputs, label_ids = learnable()
    models = [slim_copy(tiny_ast) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        recover_(model, inputs, label_ids, ast.batch_loss, LoraRecovery(), order=ALL, seed=seed)
    weights = [model.classifier.dense.weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_warm_up_makes_the_first_updates_small(tiny_ast):
    """With AdamW the first update of B (from 0) is the learning rate itself, in every entry that has a gradient."""
    model = slim_copy(tiny_ast)
    inputs, label_ids = learnable(clips=160)
    steps = []

    def watched_loss(model, inputs, label_ids):
        b = [p for n, p in model.named_parameters() if n.endswith("classifier.dense.lora_B.default.weight")]
        if model.training and b:
            steps.append(b[0].detach().abs().max().item())
        return ast.batch_loss(model, inputs, label_ids)

    options = LoraRecovery(learning_rate=1e-3, epochs=4, batch_size=4)
    recover_(model, inputs, label_ids, watched_loss, options, order=torch.arange(160))
    assert steps[0] == 0.0
    assert steps[1] == pytest.approx(1e-3 / 8, rel=1e-3), "160 updates, 5 % of them are 8: an eighth of the rate"


def test_alpha_over_rank_scales_what_is_merged(tiny_ast):
    """The first AdamW update has the learning rate's size whatever the gradient: twice the alpha, twice as far."""
    moved = []
    for alpha in (4.0, 8.0):
        model = slim_copy(tiny_ast)
        options = LoraRecovery(rank=4, alpha=alpha, batch_size=8)
        recover_(model, *learnable(8), ast.batch_loss, options, order=torch.arange(8), seed=5)
        moved.append(model.classifier.dense.weight.detach() - tiny_ast.classifier.dense.weight.detach())
    assert torch.allclose(moved[1], 2 * moved[0], rtol=1e-2, atol=1e-7)
    assert moved[0].abs().max() > 1e-5


def test_only_the_clips_of_the_order_are_seen(tiny_ast):
    inputs, label_ids = learnable()
    inputs[:, 0, 0] = torch.arange(40.0)
    seen = set()

    def watched_loss(model, inputs, label_ids):
        seen.update(inputs[:, 0, 0].int().tolist())
        return ast.batch_loss(model, inputs, label_ids)

    order = torch.tensor([3, 9, 21, 30, 5, 18])
    recover_(slim_copy(tiny_ast), inputs, label_ids, watched_loss, LoraRecovery(batch_size=4), order=order)
    assert seen == set(order.tolist())


@pytest.mark.parametrize("options", [{"epochs": 0}, {"batch_size": 0}, {"rank": 0}])
def test_unusable_options_are_refused(options):
    with pytest.raises(BadInput, match=next(iter(options))):
        LoraRecovery(**options)
