"""From a model's own weights and those of its slimmed attention blocks to the weights of the slim model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from leanear.calibration.sites import AttentionSite, FeedForwardSite
from leanear.plan import SitePlan
from leanear.surgery import kept_attention_state


def slim_state(
    model: torch.nn.Module,
    sites: Sequence[AttentionSite],
    plans: Sequence[SitePlan],
    attention_states: Sequence[Mapping[str, torch.Tensor]] | None,
    prefix: str,
    output: str,
    feed_forward: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """The slim model's state: what `plans` keeps of the attention blocks, and copies of everything else.

    sites: of `model`; attention_states: the blocks' weights as `surgery` makes them, None: the kept channels as they
    are; prefix: before a site's name; output: what the model calls an output projection, "o_proj" or "out_proj".
    """
    if attention_states is None:
        attention_states = [kept_attention_state(site, plan) for site, plan in zip(sites, plans, strict=True)]
    projections = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": output}
    attention: dict[str, torch.Tensor] = {}
    for site, state in zip(sites, attention_states, strict=True):
        for name, tensor in state.items():
            projection, parameter = name.split(".")
            attention[f"{prefix}.{site.name}.{projections[projection]}.{parameter}"] = tensor
    changed = {**attention, **(feed_forward or {})}
    rest = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in changed}
    return {**rest, **changed}


def kept_widths(blocks: Sequence[FeedForwardSite], states: Mapping[str, Mapping[str, torch.Tensor]]) -> list[int]:
    """Hidden channels of every feed-forward block, where `states` has the weights of those that become smaller."""
    return [len(states[block.name]["first.bias"]) if block.name in states else block.width for block in blocks]


def feed_forward_state(
    states: Mapping[str, Mapping[str, torch.Tensor]], place: Callable[[str], str]
) -> dict[str, torch.Tensor]:
    """The weights of smaller feed-forward blocks by the model's own names; place(block): where its layers are."""
    layers = {"first": "fc1", "second": "fc2"}
    state = {}
    for block, tensors in states.items():
        for name, tensor in tensors.items():
            layer, parameter = name.split(".")
            state[f"{place(block)}.{layers[layer]}.{parameter}"] = tensor
    return state
