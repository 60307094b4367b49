"""The latency table of feed-forward blocks: fits recover what timings were made of, and the graphs are what is said."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from leanear.families import whisper
from leanear.families.ast import load_checkpoint
from leanear.families.registry import family_of
from leanear.prune.costs import latency_costs
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import write_json
from leanear.targets.target import Target, read_target
from leanear.timing import block_timing, speech_timing
from leanear.timing.block_timing import feed_forward_table, latency_table
from leanear.timing.latency_table import HEAD_PARTS, LatencyTable, ModelTiming, read_geometry
from leanear.timing.model_timing import Tables
from leanear.timing.speech_latency import ENCODER_STAGE, STEPS_STAGE
from leanear.timing.speech_timing import model_of_channels, speech_feed_forward_table, work_of
from leanear.timing.speech_work import SpeechWork
from leanear.timing.table_file import (
    FeedForwardParts,
    FeedForwardTable,
    fit_feed_forward,
    probe_widths,
    read_table,
    table_document,
)
from tests.whisper_models import write_whisper

NULL = Target("none", "nothing is computed", "null", "portable", "fp32", 1, 4, 4)
CPU = dataclasses.replace(read_target("cpu"), threads=1)
BLOCK_MS, CHANNEL_MS, LAST_MS = 0.5, 0.004, 0.0003


@pytest.mark.parametrize("blocks", [1, 12])
@pytest.mark.parametrize("rest_ms", [0.0, 40.0])
def test_the_fit_finds_what_exact_timings_were_made_of(blocks, rest_ms):
    widths = [*probe_widths(3072), *([0] if rest_ms else [])]
    timed = [(width, rest_ms + blocks * (BLOCK_MS * (width > 0) + CHANNEL_MS * width)) for width in widths]
    parts, probes = fit_feed_forward("ordinary", timed, blocks, has_rest=rest_ms > 0)
    assert dataclasses.astuple(parts) == pytest.approx((BLOCK_MS, CHANNEL_MS))
    assert [probe.fitted_ms for probe in probes] == pytest.approx([probe.measured_ms for probe in probes])


def test_the_fit_is_close_though_timings_are_noisy_and_never_negative():
    generator = np.random.default_rng(0)
    for _ in range(20):
        noise = generator.uniform(0.97, 1.03, 6)
        timed = [(width, float(CHANNEL_MS * width * off)) for width, off in zip(probe_widths(3072), noise, strict=True)]
        parts, _ = fit_feed_forward("ordinary", timed)
        assert min(dataclasses.astuple(parts)) >= 0
        assert parts.block_ms + 1000 * parts.channel_ms == pytest.approx(1000 * CHANNEL_MS, rel=0.05)


@pytest.mark.parametrize("full", [1, 3, 16, 48, 100, 1536, 3072])
def test_timed_widths_are_ones_that_a_plan_could_have(full):
    widths = probe_widths(full)
    assert widths[0] == full
    assert len(set(widths)) == len(widths)
    assert all(1 <= width <= full for width in widths)
    if full >= 512:
        assert len(widths) == 6
        assert all(width % 16 == 0 for width in widths)


@pytest.fixture
def checkpoint(tiny_folder):
    return load_checkpoint(tiny_folder)


def timed_by_law(graphs, *_arguments):
    """Milliseconds by what the files hold: rows, copies and channels of stacks; a model takes 50 ms."""
    samples = []
    for graph in graphs:
        sizes = {weight.name: tuple(weight.dims) for weight in onnx.load(graph["file"]).graph.initializer}
        widths = [size[1] for name, size in sizes.items() if re.fullmatch(r"blocks\.\d+\.mlp\.fc1\.weight", name)]
        if not widths:
            samples.append([50.0])
            continue
        per_channel = LAST_MS if sizes["tokens"][0] == 2 else CHANNEL_MS
        samples.append([sum(BLOCK_MS + per_channel * width for width in widths)])
    return samples, 0.0


def test_stacks_hold_the_blocks_that_are_said(checkpoint, monkeypatch):
    monkeypatch.setattr(block_timing, "time_in_turn", timed_by_law)
    monkeypatch.setattr(block_timing, "require_runtime", lambda *_: None)
    target = dataclasses.replace(NULL, graph_form="openvino")
    table = block_timing.measure_feed_forward(checkpoint, target, {})
    assert table.blocks == ("ordinary", "last")
    assert table.dense_ms == 50.0
    assert dataclasses.astuple(table.parts["ordinary"]) == pytest.approx((BLOCK_MS, CHANNEL_MS))
    assert dataclasses.astuple(table.parts["last"]) == pytest.approx((BLOCK_MS, LAST_MS))


def test_a_table_of_its_own_is_timed_once_and_then_read(checkpoint, tmp_path, monkeypatch):
    """Beside that of attention, which another key names; on a runtime that computes nothing."""
    monkeypatch.setattr(block_timing, "ROUNDS", 1)
    monkeypatch.setattr(block_timing, "PROCESSES", 1)
    monkeypatch.setattr(block_timing, "FEED_FORWARD_SHARE_S", 0.0)
    first = feed_forward_table(checkpoint, NULL).get(cache=tmp_path, keep_busy=True)
    assert {probe.width for probe in first.probes if probe.kind == "last"} == set(probe_widths(48))
    assert latency_table(checkpoint, NULL).kept(tmp_path) is None
    monkeypatch.setattr(block_timing, "measure_feed_forward", lambda *_: pytest.fail("timed again"))
    assert feed_forward_table(checkpoint, NULL).get(cache=tmp_path) == first
    assert feed_forward_table(checkpoint, dataclasses.replace(NULL, threads=2)).kept(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"blocks": ["ordinary", "middle"]}, "blocks are of the kind middle, of which there are no parts"),
        ({"parts": {"ordinary": {"block_ms": -1.0, "channel_ms": 1.0}}}, "parts.ordinary.block_ms is -1.0"),
        ({"schema": "leanear-latency-table-1"}, "expected schema"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, change, words):
    table = FeedForwardTable(9.0, ("ordinary",), {"ordinary": FeedForwardParts(0.5, 0.1)}, (), 0.0, {"threads": 1})
    write_json(tmp_path / "whole.json", table_document(table))
    assert read_table(FeedForwardTable, tmp_path / "whole.json", {"threads": 1}) == table
    write_json(tmp_path / "table.json", {**table_document(table), **change})
    with pytest.raises(BadInput, match=words):
        read_table(FeedForwardTable, tmp_path / "table.json")


def test_costs_are_those_of_both_tables(checkpoint):
    """The device was half as fast when feed-forward blocks were timed, the dense model beside them."""
    parts = dict.fromkeys((*LatencyTable.PARTS,), 0.0) | {HEAD_PARTS[2]: 1.0}
    timing = ModelTiming((), 9.0, 9.0, 9.0)
    table = LatencyTable(
        read_geometry(checkpoint), "portable", 6.0, timing, {"ordinary": parts, "last": parts}, (), 0.0, {}
    )
    last = FeedForwardParts(0.0, 2 * LAST_MS)
    of_channels = FeedForwardTable(
        20.0, ("ordinary", "last"), {"ordinary": FeedForwardParts(1.0, 0.02), "last": last}, (), 0.0, {}
    )
    family = family_of(checkpoint)
    sites, blocks = family.attention_sites(checkpoint.model), family.feed_forward_sites(checkpoint.model)
    costs = latency_costs(Tables(table, of_channels), sites, blocks)
    dense = [((16, 16),) * 2] * 2
    assert costs.dense == costs.of(dense) == pytest.approx(6 + 4 * 1.0)
    names = [block.name for block in blocks]
    assert costs.dense - costs.of(dense, {names[0]: 16}) == pytest.approx(0.01 * 32)
    assert costs.dense - costs.of(dense, {names[0]: 0}) == pytest.approx(0.5 + 0.01 * 48)
    assert costs.dense - costs.of(dense, {names[1]: 8}) == pytest.approx(LAST_MS * 40)
    assert costs.dense - costs.of([((16, 16),), *dense[1:]]) == pytest.approx(1.0)
    alone = latency_costs(Tables(None, of_channels), sites, blocks)
    assert (alone.unit, alone.dense, alone.of(dense)) == ("ms", 20.0, pytest.approx(20.0))
    assert alone.dense - alone.of(dense, {names[0]: 0}) == pytest.approx(1.0 + 0.02 * 48)


@pytest.fixture
def speaker(tmp_path):
    return whisper.load_checkpoint(write_whisper(tmp_path / "model"))


def test_models_that_are_timed_have_the_channels_that_are_said(speaker):
    model = model_of_channels(speaker, {"encoder": 16, "decoder": 0})
    assert {(site.kind, site.width) for site in whisper.feed_forward_sites(model)} == {("encoder", 16), ("decoder", 0)}
    pairs = zip(whisper.attention_sites(model), whisper.attention_sites(speaker.model), strict=True)
    assert all(one.query_key_widths == other.query_key_widths for one, other in pairs)


def test_stages_of_a_speech_model_say_what_its_blocks_cost(speaker, monkeypatch):
    """Nothing is exported or timed: a model's stages are by a law of the widths that it has."""
    rest = {ENCODER_STAGE: 30.0, STEPS_STAGE: 70.0}
    stage_of = {"encoder": ENCODER_STAGE, "decoder": STEPS_STAGE}
    per_channel = {"encoder": CHANNEL_MS, "decoder": 2 * CHANNEL_MS}

    def law(model):
        stages = dict(rest)
        for site in whisper.feed_forward_sites(model):
            stages[stage_of[site.kind]] += (BLOCK_MS + per_channel[site.kind] * site.width) if site.width else 0.0
        return stages

    monkeypatch.setattr(speech_timing, "export_to_time", lambda _checkpoint, model, *_: model)
    monkeypatch.setattr(
        speech_timing, "_time_beside", lambda dense, others, *_: ([law(each) for each in (dense, *others)], 0.0)
    )
    work = work_of(speaker, SpeechWork(1.0, 5))
    table = speech_timing.measure_speech_feed_forward(speaker, CPU, work, {})
    sites = whisper.feed_forward_sites(speaker.model)
    assert table.blocks == tuple(site.kind for site in sites)
    assert table.dense_ms == pytest.approx(sum(law(speaker.model).values()))
    for kind, ms in per_channel.items():
        assert dataclasses.astuple(table.parts[kind]) == pytest.approx((BLOCK_MS, ms), rel=1e-6)
    assert {probe.width for probe in table.probes if probe.kind == "decoder"} >= {0, sites[-1].width}


def test_a_speech_table_is_really_timed(speaker, tmp_path, monkeypatch):
    for name, value in (("ROUNDS", 1), ("PROCESSES", 1), ("SHARE_S", 0.0)):
        monkeypatch.setattr(speech_timing, name, value)
    source = speech_feed_forward_table(speaker, CPU, work_of(speaker, SpeechWork(1.0, 5)))
    first = source.get(cache=Path(tmp_path), keep_busy=True)
    assert all(probe.measured_ms > 0 for probe in first.probes)
    assert source.kept(tmp_path) == first
