"""The part of the map of widths that shows feed-forward blocks: a bar per layer, and their widths."""

from __future__ import annotations

from typing import Any, Dict, List

from leanear.benchmarks.report.drawing.pictures import picture_stacks
from leanear.benchmarks.report.page import Block, Paragraph, Table

TITLES = {"encoder": "encoder", "decoder": "decoder"}


def feed_forward_map(plan: Dict[str, Any]) -> List[Block]:
    """From a plan of which feed-forward blocks are a part; nothing where they were left whole."""
    blocks = plan.get("feed_forward", [])
    if not any(len(block["channels"]) < block["dense_width"] for block in blocks):
        return []
    several = len({block["kind"] for block in blocks}) > 1
    named = [(_name(block, several), len(block["channels"]), int(block["dense_width"])) for block in blocks]
    kept, dense = sum(channels for _, channels, _ in named), sum(width for _, _, width in named)
    gone = sum(not channels for _, channels, _ in named)
    said = f"Of {dense:,} feed-forward channels {kept:,} are kept."
    if gone:
        said += f" {gone} of {len(named)} feed-forward blocks are gone: the mean of what they gave is all that stays."
    stacks = [
        (name, (("kept", float(channels)), ("removed", float(width - channels)))) for name, channels, width in named
    ]
    rows = tuple((name, f"{channels:,}" if channels else "–", f"{width:,}") for name, channels, width in named)
    return [
        Paragraph(said),
        picture_stacks(stacks, "channels", 1.0, "Feed-forward channels kept, layer by layer"),
        Table("Feed-forward channels kept (– for a removed block)", ("layer", "kept", "dense"), rows, folded=True),
    ]


def _name(block: Dict[str, Any], several: bool) -> str:
    digits = [part for part in str(block["name"]).split(".") if part.isdigit()]
    return f"{TITLES[block['kind']]} layer {digits[0]}" if several else f"layer {digits[0]}"
