"""Carry out a plan: a new model whose attention matrices and feed-forward blocks are really smaller."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from leanear.calibration.basis import SiteBasis, head_weights
from leanear.calibration.feed_forward import FeedForwardBasis
from leanear.calibration.sites import AttentionSite, FeedForwardSite
from leanear.families.checkpoint_files import slim_settings
from leanear.plan import SitePlan

Slim = tuple[type[Any], type[PreTrainedModel], str]
"""A slim model's configuration and class, and the class of transformers that opens it by its own file."""


def kept_rows(site_plan: SitePlan, widths: tuple[int, ...], kind: str) -> torch.Tensor:
    """Row indices (int64) that the kept heads' channels have in a projection whose heads have `widths`.

    kind: "query_key" or "value_output". Heads and channels of `site_plan` count within the block given by `widths`.
    """
    starts = [sum(widths[:head]) for head in range(len(widths))]
    rows = [starts[head.head] + channel for head in site_plan.heads for channel in getattr(head, kind)]
    return torch.tensor(rows, dtype=torch.int64)


def kept_attention_state(site: AttentionSite, site_plan: SitePlan) -> dict[str, torch.Tensor]:
    """Copies of the block's weights and biases with only what `site_plan` keeps.

    Keys: "query.weight", "query.bias", "key.weight", ..., "output.bias"; a bias that the block lacks is absent.
    """
    query_key = kept_rows(site_plan, site.query_key_widths, "query_key")
    value_output = kept_rows(site_plan, site.value_output_widths, "value_output")
    state: dict[str, torch.Tensor] = {}
    for name, linear, rows in (
        ("query", site.query, query_key),
        ("key", site.key, query_key),
        ("value", site.value, value_output),
    ):
        state[f"{name}.weight"] = linear.weight.detach()[rows].clone()
        if linear.bias is not None:
            state[f"{name}.bias"] = linear.bias.detach()[rows].clone()
    state["output.weight"] = site.output.weight.detach()[:, value_output].clone()
    if site.output.bias is not None:
        state["output.bias"] = site.output.bias.detach().clone()
    return state


def rotated_attention_state(site: AttentionSite, basis: SiteBasis, site_plan: SitePlan) -> dict[str, torch.Tensor]:
    """The block's weights and biases in the new basis, with only what `site_plan` keeps of it; keys as above.

    site_plan counts the new channels, of which every head keeps the first ones. Key and value biases become zero: the
    softmax does not see the one, and the other, passed through the output weights, is part of the output bias, as is
    the mean of what the dropped contexts gave: all that is left of a block without heads. Computed in float64.

    Raises:
        ValueError: the block has no output bias to take these means.
    """
    if site.output.bias is None:
        raise ValueError(f"{site.name} has no output bias")
    kept = {head.head: head for head in site_plan.heads}
    none = torch.zeros(0, site.query.in_features, dtype=torch.float64)  # where no head is kept, that is all
    parts = {"query": [none], "query_bias": [none[:, 0]], "key": [none], "value": [none], "output": [none.mT]}
    output_bias = site.output.bias.detach().double().cpu().clone()
    for head, weights in enumerate(head_weights(site)):
        qk, vo = site.query_key_widths[head], site.value_output_widths[head]
        constant = basis.context_mean[head, :vo]
        if head in kept:
            k, v = len(kept[head].query_key), len(kept[head].value_output)
            query, key = basis.query[head, :k, :qk], basis.key[head, :k, :qk]
            value, output = basis.value[head, :v, :vo], basis.output[head, :v, :vo]
            parts["query"].append(query @ weights.query)
            parts["query_bias"].append(query @ weights.query_bias)
            parts["key"].append(key @ weights.key)
            parts["value"].append(value @ weights.value)
            parts["output"].append(weights.output @ output.mT)
            constant = constant - output.mT @ (value @ (constant - weights.value_bias))
        output_bias += weights.output @ constant
    state = {f"{name}.weight": torch.cat(parts[name]) for name in ("query", "key", "value")}
    state["output.weight"] = torch.cat(parts["output"], dim=1)
    state["output.bias"] = output_bias
    for name, linear, bias in (
        ("query", site.query, torch.cat(parts["query_bias"])),
        ("key", site.key, torch.zeros(len(state["key.weight"]))),
        ("value", site.value, torch.zeros(len(state["value.weight"]))),
    ):
        if linear.bias is not None:
            state[f"{name}.bias"] = bias
    dtype = site.query.weight.dtype
    return {name: tensor.to(dtype).contiguous() for name, tensor in state.items()}


def first_channels_state(site: FeedForwardSite, width: int) -> dict[str, torch.Tensor]:
    """The block's weights and biases with its first so many channels as they are; keys as of `feed_forward_state`."""
    weights = {"first.weight": site.first.weight[:width], "second.weight": site.second.weight[:, :width]}
    biases = {"first.bias": site.first.bias[:width], "second.bias": site.second.bias}
    return {name: tensor.detach().clone().contiguous() for name, tensor in (weights | biases).items()}


def feed_forward_state(site: FeedForwardSite, basis: FeedForwardBasis, width: int) -> dict[str, torch.Tensor]:
    """The block's weights and biases with the first so many channels in the basis' order, which are put in ascending.

    Keys: "first.weight", "first.bias", "second.weight", "second.bias". The second weight and bias hold what the kept
    channels predict of the others. At full width both are those of the block, to rounding. Computed in float64.

    Raises:
        ValueError: the block lacks a bias.
    """
    if site.first.bias is None or site.second.bias is None:
        raise ValueError(f"{site.name} lacks a bias")
    weight, bias = basis.second(site.second.bias.detach(), width)
    channels, places = basis.order[:width].sort()
    rows = channels.to(site.first.weight.device)
    state = {
        "first.weight": site.first.weight.detach()[rows].clone(),
        "first.bias": site.first.bias.detach()[rows].clone(),
        "second.weight": weight[:, places],
        "second.bias": bias,
    }
    dtype = site.second.weight.dtype
    return {name: tensor.to(dtype).cpu().contiguous() for name, tensor in state.items()}


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

    sites: of `model`; attention_states: the blocks' weights as made here, None: the kept channels as they
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


def smaller_model(
    dense: PreTrainedModel,
    kind: Slim,
    blocks: tuple[Sequence[AttentionSite], Sequence[FeedForwardSite]],
    plans: Sequence[SitePlan],
    attention_states: Sequence[Mapping[str, torch.Tensor]] | None,
    feed_forward_states: Mapping[str, Mapping[str, torch.Tensor]] | None,
    names: tuple[str, str],
    place: Callable[[str], str],
) -> Any:
    """A family's `slim_model` of `dense`, of these blocks; names, place: of `slim_state`, `named_feed_forward`."""
    (made, model, opener), (attention, feed_forward), states = kind, blocks, feed_forward_states or {}
    config = made(
        query_key_widths=[list(plan.query_key_widths) for plan in plans],
        value_output_widths=[list(plan.value_output_widths) for plan in plans],
        attention_scaling=attention[0].scaling,
        feed_forward_widths=[
            len(states[block.name]["first.bias"]) if block.name in states else block.width for block in feed_forward
        ],
        **slim_settings(dense.config),
    )
    file = model.__module__.rpartition(".")[2]
    config.architectures = [model.__name__]
    config.auto_map = {"AutoConfig": f"{file}.{made.__name__}", opener: f"{file}.{model.__name__}"}
    with torch.device("meta"):
        slim = model(config)
    state = slim_state(dense, attention, plans, attention_states, *names, named_feed_forward(states, place))
    slim.load_state_dict(state, strict=True, assign=True)
    return slim.eval()


def named_feed_forward(
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
