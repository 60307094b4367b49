"""A small attention block whose keys may come from other tokens than its queries, whose heads differ in width."""

from __future__ import annotations

import torch
from torch import nn

from leanear.calibration.sites import AttentionSite

QUERY_KEY_WIDTHS, VALUE_OUTPUT_WIDTHS = (3, 2), (2, 4)
WIDTH, CLASSES = 6, 3


class Attention(nn.Module):
    """Logits (B, CLASSES) of inputs (B, T + T', WIDTH): the first T tokens ask, and the other T', or the same, answer.

    Written out head by head, with a softmax of its own: nothing here is shared with what it tests.
    """

    def __init__(self, queries: int, *, cross: bool, causal: bool = False, bias: bool = True):
        super().__init__()
        qk, vo = sum(QUERY_KEY_WIDTHS), sum(VALUE_OUTPUT_WIDTHS)
        self.queries, self.cross, self.causal, self.scaling = queries, cross, causal, 0.7
        self.query, self.key = nn.Linear(WIDTH, qk, bias=bias), nn.Linear(WIDTH, qk, bias=bias)
        self.value, self.output = nn.Linear(WIDTH, vo, bias=bias), nn.Linear(vo, WIDTH)
        self.classifier = nn.Linear(WIDTH, CLASSES)
        generator = torch.Generator().manual_seed(11)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.double()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        asking = inputs[:, : self.queries]
        answering = inputs[:, self.queries :] if self.cross else asking
        query, key, value = self.query(asking), self.key(answering), self.value(answering)
        contexts, qk, vo = [], 0, 0
        for k, v in zip(QUERY_KEY_WIDTHS, VALUE_OUTPUT_WIDTHS, strict=True):
            scores = self.scaling * query[..., qk : qk + k] @ key[..., qk : qk + k].mT
            if self.causal:
                scores = scores + torch.full(scores.shape[-2:], float("-inf")).triu(1).to(scores)
            contexts.append(scores.softmax(-1) @ value[..., vo : vo + v])
            qk, vo = qk + k, vo + v
        hidden = self.output(torch.cat(contexts, dim=-1))
        return self.classifier((hidden + asking).tanh().mean(dim=1))

    def site(self) -> AttentionSite:
        return AttentionSite(
            "toy", self, self.query, self.key, self.value, self.output,
            QUERY_KEY_WIDTHS, VALUE_OUTPUT_WIDTHS, self.scaling, self.causal,
        )  # fmt: skip


def logits(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return model(inputs)
