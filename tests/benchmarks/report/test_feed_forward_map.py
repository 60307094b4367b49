"""The map of widths where feed-forward blocks were pruned, and the words beside it."""

from __future__ import annotations

import dataclasses
import json

from leanear.benchmarks.report.page import Paragraph, Table
from leanear.benchmarks.report.size_sections import _feed_forward_map as feed_forward_map
from leanear.benchmarks.report.size_sections import widths_section
from leanear.evaluate.measured_loss import MeasuredLoss
from leanear.families import ast
from leanear.plan import plan_to_json
from leanear.prune.notes import loss_warning, pruning_notes
from tests.conftest import make_tiny_ast
from tests.toolchain.pruning_documents import pruning_document


def plan(widths: tuple[int, ...], kinds: tuple[str, ...] = ("encoder", "encoder")) -> dict:
    dense = dataclasses.replace(ast.dense_plan(make_tiny_ast()), prune="all")
    blocks = tuple(
        dataclasses.replace(block, channels=block.channels[:width], kind=kind)
        for block, width, kind in zip(dense.feed_forward, widths, kinds, strict=True)
    )
    return json.loads(json.dumps(plan_to_json(dataclasses.replace(dense, feed_forward=blocks))))


def test_every_layer_has_its_channels():
    said, picture, table = feed_forward_map(plan((24, 0)))
    assert isinstance(said, Paragraph)
    assert "Of 96 feed-forward channels 24 are kept. 1 of 2 feed-forward blocks are gone" in said.text
    assert isinstance(table, Table)
    assert table.rows == (("layer 0", "24", "48"), ("layer 1", "–", "48"))
    assert "layer 0" in str(picture)


def test_encoder_and_decoder_are_told_apart():
    table = feed_forward_map(plan((24, 8), ("encoder", "decoder")))[2]
    assert [row[0] for row in table.rows] == ["encoder layer 0", "decoder layer 1"]


def test_nothing_is_said_of_blocks_that_are_whole_or_of_plans_of_attention_alone():
    assert feed_forward_map(plan((48, 48))) == []
    assert feed_forward_map({}) == []


def test_the_section_says_what_the_sparsity_is_of():
    section = widths_section(plan((24, 0)))
    assert "of the attention and feed-forward blocks' parameters are removed" in section.blocks[0].text
    first = plan((48, 48))
    del first["prune"], first["feed_forward"]
    assert "of the attention blocks' parameters are removed" in widths_section(first).blocks[0].text


def test_notes_and_warnings_name_what_was_pruned():
    lost = MeasuredLoss(10, 0.5, 1.0, 3.0, 10.0, None, None, None)
    pruning = pruning_document(lost, prune="all", by_kind={"encoder": 0.25}, feed_forward_by_kind={"encoder": 0.625})
    assert "Removed are 25.0 % of attention and 62.5 % of feed-forward channels." in pruning_notes(pruning, {})
    assert "Removing 50 % of the attention and feed-forward parameters does damage here" in loss_warning(pruning)
    attention, feed_forward = {"encoder": 0.1, "cross": 0.2}, {"encoder": 0.5, "decoder": 0.0}
    notes = pruning_notes(pruning_document(by_kind=attention, feed_forward_by_kind=feed_forward), {})
    assert "Removed are 50.0 % of the encoder's feed-forward channels, 0.0 % of the decoder's." in notes
