"""Where attention is in a loaded model: its four projections and the widths of its heads."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

AttentionKind = Literal["encoder", "decoder", "cross"]


@dataclass(frozen=True)
class AttentionSite:
    """One attention block of a model in memory.

    name: as in plan.json, e.g. "layers.3.attention"; module: the block itself (its forward is one attention call);
    query, key: Linear (sum K, D); value: Linear (sum V, D); output: Linear (D, sum V), heads one after the other;
    query_key_widths, value_output_widths: one per head; scaling: the constant by which q.k is multiplied; causal: a
    query sees no key after itself; kind: which tokens attend to which: an encoder's or a decoder's among themselves, or
    "cross", a decoder's to an encoder's, so that keys and values come from other tokens than queries. A projection may
    lack its bias on its own: Whisper's keys have none. may_go: whether the family has a model without the block, in
    which the mean of what it gave is all that stays.
    """

    name: str
    module: nn.Module
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    query_key_widths: tuple[int, ...]
    value_output_widths: tuple[int, ...]
    scaling: float
    causal: bool = False
    kind: AttentionKind = "encoder"
    may_go: bool = False

    @property
    def parameters(self) -> int:
        """How many weights and biases the four projections hold; the output bias too."""
        return sum(p.numel() for linear in (self.query, self.key, self.value, self.output) for p in linear.parameters())


FeedForwardKind = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class FeedForwardSite:
    """One feed-forward block of a model in memory: two linear layers with an activation between them.

    name: as in plan.json, e.g. "layers.3.mlp"; first: Linear (C, D), whose outputs pass the activation; second: Linear
    (D, C), which takes them, the hidden channels; kind: whose tokens they are.
    """

    name: str
    first: nn.Linear
    second: nn.Linear
    kind: FeedForwardKind = "encoder"

    @property
    def width(self) -> int:
        """C, how many hidden channels there are."""
        return self.second.in_features

    @property
    def output(self) -> nn.Linear:
        """The linear layer that gives to the residual stream, as `AttentionSite.output` does."""
        return self.second
