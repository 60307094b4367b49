"""Recovery between pruning steps: low-rank updates of all linear layers, trained on the calibration clips, merged."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from leanear.data.examples import Inputs
from leanear.progress import Report, quiet
from leanear.runtimes.errors import BadInput

BatchLoss = Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]

WARM_UP_SHARE = 0.05


@dataclass(frozen=True)
class LoraRecovery:
    """How recovery is trained; the defaults are those of arXiv 2509.26207 for AST.

    rank, alpha: of the update alpha/rank * B A of every linear layer's weight; epochs: passes over the clips per step.
    """

    rank: int = 16
    alpha: float = 16.0
    learning_rate: float = 1e-4
    epochs: int = 1
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("rank", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise BadInput(f"recovery {name} is {getattr(self, name)}; it must be at least 1")


def recover_(
    model: nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    batch_loss: BatchLoss,
    options: LoraRecovery,
    *,
    order: torch.Tensor,
    seed: int = 0,
    report: Report = quiet,
) -> None:
    """Train low-rank updates of every linear layer and merge them into its weight, in place.

    inputs: (N, ...) as the model takes them; targets: (N,), or (N, L) as in `leanear.calibration.targets`;
    batch_loss(model, inputs, targets): mean loss; order: clips to use, int64.
    The model's structure, its mode and its requires_grad flags stay.
    """
    training_mode = model.training
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = with_lora(model, options.rank, options.alpha)
        _train(adapted, inputs, targets, batch_loss, options, order, report)
    merged = adapted.merge_and_unload()
    assert merged is model, "updates are merged in place"
    model.train(training_mode)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(required[name])


def with_lora(model: nn.Module, rank: int, alpha: float) -> Any:
    """The model, in place, with a low-rank update of every linear layer, alone in requiring a gradient (peft's).

    A layer whose weight is an embedding's too is left out.

    Its `merge_and_unload()` adds the updates to the weights and its `unload()` forgets them; both take them out again.
    """
    from peft import LoraConfig, get_peft_model  # imports much; only recovery needs it

    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    linear_layers = [
        name
        for name, module in model.named_modules()
        # a matrix that is tied to an embedding would change there too, unheard of by the training
        if isinstance(module, nn.Linear) and module.weight.numel() and id(module.weight) not in embeddings
    ]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=linear_layers, bias="none")
    with warnings.catch_warnings():
        # peft asks the model by a name that transformers is about to drop
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return get_peft_model(model, config)


def _train(
    model: nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    batch_loss: BatchLoss,
    options: LoraRecovery,
    order: torch.Tensor,
    report: Report,
) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=0.0)
    total = math.ceil(len(order) / options.batch_size) * options.epochs
    warm_up = max(1, round(WARM_UP_SHARE * total))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / warm_up))
    updates = 0
    model.train()
    for _epoch in range(options.epochs):
        for batch in order[torch.randperm(len(order))].split(options.batch_size):
            loss = batch_loss(model, inputs[batch], targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            updates += 1
            report(f"recovery, update {updates}/{total}", updates / total)
