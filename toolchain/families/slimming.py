"""From a model's own weights and those of its slimmed attention blocks to the weights of the slim model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from leanear.calibration.sites import AttentionSite
from leanear.plan import SitePlan
from leanear.surgery import kept_attention_state


def slim_state(
    model: torch.nn.Module,
    sites: Sequence[AttentionSite],
    plans: Sequence[SitePlan],
    attention_states: Sequence[Mapping[str, torch.Tensor]] | None,
    prefix: str,
    output: str,
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
    rest = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in attention}
    return {**rest, **attention}
