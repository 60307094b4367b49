"""A dense model that computes what a slim one does: the oracle of everything that is cut."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from leanear.calibration.sites import AttentionSite
from leanear.families.slimming import kept_rows
from leanear.plan import HeadPlan, SitePlan


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


def every_other_channel(sites: Iterable[AttentionSite]) -> tuple[SitePlan, ...]:
    """What is kept where a model that may be slim already loses every second channel of each of its heads."""
    plans = []
    for site in sites:
        widths = enumerate(zip(site.query_key_widths, site.value_output_widths))
        heads = (HeadPlan(head, tuple(range(0, qk, 2)), tuple(range(0, vo, 2))) for head, (qk, vo) in widths)
        plans.append(SitePlan(site.name, len(site.query_key_widths), tuple(heads)))
    return tuple(plans)
