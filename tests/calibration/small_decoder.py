"""A small decoder of one causal and one cross-attention block, whose every position answers, written out by hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from leanear.calibration.sites import AttentionSite
from leanear.calibration.targets import NO_TARGET
from tests.calibration.small_attention import QUERY_KEY_WIDTHS, VALUE_OUTPUT_WIDTHS, WIDTH, Attention

CLASSES, HEARD, LENGTHS = 4, 5, (3, 6, 4)
"""Answers to choose among, encoder tokens, and the positions of each of three clips, of which the first is a prompt."""


@dataclass(frozen=True)
class Inputs:
    """states (B, HEARD, WIDTH) of an encoder, and embedded tokens (B, L, WIDTH); indexed like a tensor."""

    states: torch.Tensor
    tokens: torch.Tensor

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index) -> Inputs:
        return Inputs(self.states[index], self.tokens[index])


class Decoder(nn.Module):
    """Logits (B, L, CLASSES): tokens attend to the tokens up to their own, then to the encoder's states.

    The encoder is one block of its own, so that there are all three kinds.
    """

    def __init__(self):
        super().__init__()
        self.encoder = Attention(HEARD, cross=False)
        self.own = Attention(0, cross=False, causal=True)
        self.cross = Attention(0, cross=True)
        self.cross.key = nn.Linear(WIDTH, sum(QUERY_KEY_WIDTHS), bias=False).double()  # as Whisper's
        self.answer = nn.Linear(WIDTH, CLASSES).double()
        generator = torch.Generator().manual_seed(23)
        for parameter in self.parameters():
            parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator).double()

    def forward(self, inputs: Inputs) -> torch.Tensor:
        heard = inputs.states + attend(self.encoder, inputs.states, inputs.states)
        hidden = inputs.tokens + attend(self.own, inputs.tokens, inputs.tokens)
        return self.answer((hidden + attend(self.cross, hidden, heard)).tanh())

    def sites(self) -> tuple[AttentionSite, ...]:
        return tuple(
            AttentionSite(
                kind, block, block.query, block.key, block.value, block.output, QUERY_KEY_WIDTHS, VALUE_OUTPUT_WIDTHS,
                block.scaling, block.causal, kind,
            )
            for kind, block in (("encoder", self.encoder), ("decoder", self.own), ("cross", self.cross))
        )  # fmt: skip


def attend(block: Attention, asking: torch.Tensor, answering: torch.Tensor) -> torch.Tensor:
    """The block's output (B, T, WIDTH), head by head."""
    query, key, value = block.query(asking), block.key(answering), block.value(answering)
    contexts, qk, vo = [], 0, 0
    for k, v in zip(QUERY_KEY_WIDTHS, VALUE_OUTPUT_WIDTHS, strict=True):
        scores = block.scaling * query[..., qk : qk + k] @ key[..., qk : qk + k].mT
        if block.causal:
            scores = scores + torch.full(scores.shape[-2:], float("-inf")).triu(1).to(scores)
        contexts.append(scores.softmax(-1) @ value[..., vo : vo + v])
        qk, vo = qk + k, vo + v
    return block.output(torch.cat(contexts, dim=-1))


def clips(filled_with: float = 0.0) -> tuple[Inputs, torch.Tensor]:
    """Three clips of unlike lengths, and their targets; what fills up the shorter ones is `filled_with`."""
    generator = torch.Generator().manual_seed(6)
    longest = max(LENGTHS)
    inputs = Inputs(
        torch.randn(len(LENGTHS), HEARD, WIDTH, generator=generator).double(),
        torch.randn(len(LENGTHS), longest, WIDTH, generator=generator).double(),
    )
    targets = torch.randint(CLASSES, (len(LENGTHS), longest), generator=generator)
    targets[:, 0] = NO_TARGET
    for clip, length in enumerate(LENGTHS):
        targets[clip, length:] = NO_TARGET
        inputs.tokens[clip, length:] = filled_with
    return inputs, targets


def logits(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    return model(inputs)
