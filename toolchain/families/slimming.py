"""From a model's own weights and those of its slimmed attention blocks to the weights of the slim model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from leanear.calibration.sites import AttentionSite, FeedForwardSite
from leanear.families.checkpoint_files import slim_settings
from leanear.plan import SitePlan
from leanear.surgery import kept_attention_state

Slim = tuple[type[Any], type[PreTrainedModel], str]
"""A slim model's configuration and class, and the class of transformers that opens it by its own file."""


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


def slim_config(
    config: PreTrainedConfig, kind: Slim, plans: Sequence[SitePlan], scaling: float, feed_forward_widths: Sequence[int]
) -> Any:
    """The configuration of the slim model of a dense one, or of a slim one, of this configuration."""
    made, model, opener = kind
    slim = made(
        query_key_widths=[list(plan.query_key_widths) for plan in plans],
        value_output_widths=[list(plan.value_output_widths) for plan in plans],
        attention_scaling=scaling,
        feed_forward_widths=feed_forward_widths,
        **slim_settings(config),
    )
    file = model.__module__.rpartition(".")[2]
    slim.architectures = [model.__name__]
    slim.auto_map = {"AutoConfig": f"{file}.{made.__name__}", opener: f"{file}.{model.__name__}"}
    return slim


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
