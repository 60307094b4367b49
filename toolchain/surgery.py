"""Carry out a plan: a new model whose attention matrices are really smaller."""

from __future__ import annotations

import torch

from calibration.sites import AttentionSite
from toolchain.plan import SitePlan


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


def zero_dropped_channels_(site: AttentionSite, site_plan: SitePlan) -> None:
    """Set to zero, in place, every channel and head that `site_plan` does not keep: the slim block's dense twin.

    A dropped query/key channel then adds nothing to any score and a dropped value/output channel nothing to the output,
    while every matrix keeps its dense shape.
    """
    query_key = kept_rows(site_plan, site.query_key_widths, "query_key")
    value_output = kept_rows(site_plan, site.value_output_widths, "value_output")
    for linear, rows in ((site.query, query_key), (site.key, query_key), (site.value, value_output)):
        dropped = torch.ones(linear.out_features, dtype=torch.bool)
        dropped[rows] = False
        linear.weight.data[dropped] = 0.0
        if linear.bias is not None:
            linear.bias.data[dropped] = 0.0
    dropped = torch.ones(site.output.in_features, dtype=torch.bool)
    dropped[value_output] = False
    site.output.weight.data[:, dropped] = 0.0
