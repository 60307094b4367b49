"""One batch of clips through a model, forward and backward: what goes through its attention blocks, and its gradients.

Gradients are taken of an objective per clip, summed over the batch, with respect to activations alone: no weight has
one. Dimension letters: B batch, T tokens, K query/key width, V value/output width, C classes, P targets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from leanear.calibration.sites import AttentionSite, FeedForwardSite
from leanear.calibration.targets import answered, kind_of

Labels = Literal["projected", "sampled", "observed"]
LABELS: tuple[Labels, ...] = ("projected", "sampled", "observed")

Logits = Callable[[nn.Module, Any], torch.Tensor]


@dataclass(frozen=True)
class BlockPass:
    """What went through one block, heads one after the other, detached from the graph.

    queries (B, T, sum K), keys (B, T', sum K), values (B, T', sum V), contexts (B, T, sum V): what the three input
    projections gave and what the output projection took; query_gradients, context_gradients: of the objective by
    queries and contexts, in their shapes, the former None if not asked for.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    contexts: torch.Tensor
    query_gradients: torch.Tensor | None
    context_gradients: torch.Tensor


@dataclass(frozen=True)
class FeedForwardPass:
    """What went through one feed-forward block, detached from the graph.

    hidden (B, T, C): what the second linear layer took; output_gradients (B, T, D): of the objective by what it gave.
    """

    hidden: torch.Tensor
    output_gradients: torch.Tensor

    def of_clips(self, clips: Sequence[int]) -> FeedForwardPass:
        """Of these clips alone."""
        return FeedForwardPass(self.hidden[clips], self.output_gradients[clips])


@dataclass(frozen=True)
class Passed:
    """What went through the attention blocks and the feed-forward blocks, in the order of their sites."""

    attention: list[BlockPass]
    feed_forward: list[FeedForwardPass]


def pass_through_all(
    model: nn.Module,
    sites: Sequence[AttentionSite],
    feed_forward: Sequence[FeedForwardSite],
    inputs: Any,
    targets: torch.Tensor,
    logits: Logits,
    *,
    labels: Labels = "projected",
    query_gradients: bool = True,
    generator: torch.Generator | None = None,
) -> Passed:
    """One forward pass and one backward pass of a batch, block by block in the order of the sites.

    inputs: (B, ...) as the model takes them; targets: (B,), (B, C) or (B, L) as in `leanear.calibration.targets`;
    logits(model, inputs): (B, C), or (B, L, C).
    labels: what the objective of a clip is; of a sequence, of every position that has a target, summed.
      "observed": the negative log-likelihood of its label; its squared gradient is the empirical Fisher information.
      "sampled": that of a label drawn from the model's own prediction: the Fisher information (Martens 2014).
      "projected": sum_c w_c logit_c with w = sqrt(p) z - p (sqrt(p) . z), z random signs. E[w w^T] is the softmax's
      diag(p) - p p^T, so the expected squared gradient is the same Fisher information, but a clip of which the model is
      sure adds its share each time instead of a large one once in a blue moon.
    Of tags every label is a yes or no by itself: w = sqrt(p (1 - p)) z, so that E[w w^T] is diag(p (1 - p)).
    The model is left as it was: weights, training mode and requires_grad.
    """
    with (
        evaluated_with_gradients_of(model),
        _captured(sites) as captured,
        _captured_hidden(feed_forward) as (hidden, outputs),
        torch.enable_grad(),
    ):
        objective = _objective(*answered(logits(model, inputs), targets), labels, generator)
        asked = [*captured.contexts, *(captured.queries if query_gradients else ())]
        gradients = torch.autograd.grad(objective, [*asked, *outputs])
    output_gradients = gradients[len(asked) :]
    blocks = [
        BlockPass(
            queries=captured.queries[index].detach(),
            keys=captured.keys[index].detach(),
            values=captured.values[index].detach(),
            contexts=captured.contexts[index].detach(),
            query_gradients=gradients[len(sites) + index] if query_gradients else None,
            context_gradients=gradients[index],
        )
        for index in range(len(sites))
    ]
    return Passed(blocks, [FeedForwardPass(*pair) for pair in zip(hidden, output_gradients, strict=True)])


def _objective(
    logits: torch.Tensor, targets: torch.Tensor, labels: Labels, generator: torch.Generator | None
) -> torch.Tensor:
    """The sum over positions of what `labels` says: clips do not mix in the model, nor do their gradients."""
    if kind_of(targets) == "tags":
        return _objective_of_tags(logits, targets, labels, generator)
    probabilities = logits.detach().softmax(-1)
    if labels == "projected":
        signs = torch.randint(0, 2, probabilities.shape, generator=generator).to(probabilities) * 2 - 1
        roots = probabilities.sqrt() * signs
        return (logits * (roots - probabilities * roots.sum(-1, keepdim=True))).sum()
    if labels == "sampled":
        targets = torch.multinomial(probabilities.cpu(), 1, generator=generator)[:, 0]
    return nn.functional.cross_entropy(logits, targets.to(logits.device), reduction="sum")


def _objective_of_tags(
    logits: torch.Tensor, targets: torch.Tensor, labels: Labels, generator: torch.Generator | None
) -> torch.Tensor:
    """The same of logits (B, C) that are one sigmoid each."""
    probabilities = logits.detach().sigmoid()
    if labels == "projected":
        signs = torch.randint(0, 2, probabilities.shape, generator=generator).to(probabilities) * 2 - 1
        return (logits * (probabilities * (1 - probabilities)).sqrt() * signs).sum()
    if labels == "sampled":
        targets = torch.bernoulli(probabilities.cpu(), generator=generator)
    targets = targets.to(logits.device, logits.dtype)
    return nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")


@dataclass
class _Captured:
    queries: list[torch.Tensor]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    contexts: list[torch.Tensor]


@contextlib.contextmanager
def _captured(sites: Sequence[AttentionSite]) -> Iterator[_Captured]:
    """What passes through the projections within the block, in the shapes of `BlockPass`.

    Queries and contexts ask for a gradient even where nothing before them does: in the first layer.
    """
    captured = _Captured([], [], [], [])

    def keep_query(_module: nn.Module, _inputs: tuple, output: torch.Tensor) -> None:
        captured.queries.append(output if output.requires_grad else output.requires_grad_())

    def keep_key(_module: nn.Module, _inputs: tuple, output: torch.Tensor) -> None:
        captured.keys.append(output)

    def keep_value(_module: nn.Module, _inputs: tuple, output: torch.Tensor) -> None:
        captured.values.append(output)

    def keep_context(_module: nn.Module, inputs: tuple) -> None:
        captured.contexts.append(inputs[0] if inputs[0].requires_grad else inputs[0].requires_grad_())

    hooks = []
    for site in sites:
        hooks += [
            site.query.register_forward_hook(keep_query),
            site.key.register_forward_hook(keep_key),
            site.value.register_forward_hook(keep_value),
            site.output.register_forward_pre_hook(keep_context),
        ]
    try:
        yield captured
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _captured_hidden(sites: Sequence[FeedForwardSite]) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """What the second linear layers take, detached, and what they give, within the block."""
    hidden: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []

    def keep(_module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        hidden.append(inputs[0].detach())
        outputs.append(output if output.requires_grad else output.requires_grad_())

    hooks = [site.second.register_forward_hook(keep) for site in sites]
    try:
        yield hidden, outputs
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def evaluated_with_gradients_of(model: nn.Module, weights: Sequence[torch.Tensor] = ()) -> Iterator[None]:
    """Eval mode with gradients for `weights` alone; on leaving, everything is as before and these have no gradient."""
    training = model.training
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in required:
        parameter.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
        weight.grad = None
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        for parameter, before in required:
            parameter.requires_grad_(before)
        for weight in weights:
            weight.grad = None


def by_head(states: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
    """(B, T, sum of widths) as (B, H, T, widest), narrower heads filled up with zeros."""
    widest = max(widths)
    if all(width == widest for width in widths):
        return states.unflatten(-1, (len(widths), widest)).transpose(1, 2)
    padded = [nn.functional.pad(head, (0, widest - head.shape[-1])) for head in states.split(list(widths), dim=-1)]
    return torch.stack(padded, dim=1)
