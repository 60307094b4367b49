"""The latency table: costs add up, fits recover what timings were made of, files are read strictly."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from leanear.export.blocks import export_blocks
from leanear.export.onnx.heads import group_heads
from leanear.families.ast import AstCheckpoint, load_checkpoint
from leanear.families.modeling_slim_ast import SlimASTConfig, SlimASTForAudioClassification
from leanear.runtimes.errors import BadInput, MeasurementFailed
from leanear.runtimes.files import write_json
from leanear.targets.target import Target
from leanear.timing import block_timing
from leanear.timing.block_timing import latency_table, probe_widths, time_in_turn
from leanear.timing.latency_table import (
    Geometry,
    LatencyTable,
    ModelTiming,
    Probe,
    fit_parts,
    model_sites,
    read_geometry,
    site_kind,
    tie_widths,
)
from leanear.timing.table_file import cache_folder, read_table, table_document, table_key
from tests.conftest import make_tiny_ast

GEOMETRY = Geometry(
    tokens=1214,
    model_width=768,
    heads=12,
    head_width=64,
    layers=3,
    feed_forward_width=3072,
    frames=1024,
    mel_bins=128,
    patch_values=256,
    labels=10,
    clip_samples=163840,
)
ORDINARY = dict(zip(LatencyTable.PARTS, (0.6, 0.25, 0.001, 0.33, 0.031, 0.019, 0.011), strict=True))
LAST = dict(zip(LatencyTable.PARTS, (0.2, 0.0, 0.0, 0.01, 0.002, 0.003, 0.0), strict=True))
NULL = Target("none", "nothing is computed", "null", "portable", "fp32", 1, 4, 4)


def table_of(ordinary=ORDINARY, form="onnxruntime") -> LatencyTable:
    return LatencyTable(
        geometry=GEOMETRY,
        graph_form=form,
        rest_ms=100.0,
        parts={"ordinary": ordinary, "last": LAST},
        model=ModelTiming((), 200.0, 190.0, 210.0),
        probes=(),
        others_share=0.0,
        key={},
    )


def written_out_ms(parts: dict[str, float], widths, value_multiple: int) -> float:
    """The cost of an ordinary block in plain sums over its groups, as the module's first lines say it."""
    keys, values = zip(*widths)
    groups = group_heads(keys, values, GEOMETRY.tokens, GEOMETRY.model_width)
    total, columns = parts["block_ms"] + parts["group_ms"] * (len(groups) - 1), 0
    for group in groups:
        value = -(-group.value_output_width // value_multiple) * value_multiple
        for _ in group.heads:
            total += parts["head_ms"] + parts["query_key_ms"] * group.query_key_width + parts["value_output_ms"] * value
            total += parts["vector_ms"] * 16 * -(-value // 16)
            columns += group.query_key_width + value
    return total + (parts["cut_ms"] * 2 * columns if len(groups) > 1 else 0.0)


def ragged(seed: int, heads: int = 12) -> list[tuple[int, int]]:
    return [(int(key), int(value)) for key, value in np.random.default_rng(seed).integers(1, 65, (heads, 2))]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("form", "multiple"), [("onnxruntime", 4), ("openvino", 1), ("portable", 1)])
def test_a_block_is_the_sum_of_its_parts(form, multiple, seed):
    assert table_of(form=form).site_ms("ordinary", ragged(seed)) == pytest.approx(
        written_out_ms(ORDINARY, ragged(seed), multiple)
    )


@pytest.mark.parametrize("kind", ["ordinary", "last"])
@pytest.mark.parametrize("width", [(64, 64), (20, 36), (7, 3)])
def test_equal_heads_add_up(kind, width):
    table = table_of()
    assert table.site_ms(kind, [width] * 5) == pytest.approx(table.block_ms(kind) + 5 * table.head_ms(kind, *width))


def test_heads_of_the_last_layer_are_filled_up_to_the_widest():
    table = table_of()
    assert table.site_ms("last", [(8, 60), (50, 4)]) == pytest.approx(table.site_ms("last", [(50, 60)] * 2))


def test_a_model_is_its_layers_and_the_rest():
    table, sites = table_of(), [ragged(0), ragged(1), ragged(2)]
    expected = 100.0 + table.site_ms("ordinary", sites[0]) + table.site_ms("ordinary", sites[1])
    assert table.model_ms(sites) == pytest.approx(expected + table.site_ms("last", sites[2]))
    assert [site_kind(layer, 3) for layer in range(3)] == ["ordinary", "ordinary", "last"]
    with pytest.raises(BadInput, match="2 blocks for a model of 3"):
        table.model_ms(sites[:2])


def test_the_fit_finds_what_exact_timings_were_made_of():
    timed = [(widths, written_out_ms(ORDINARY, widths, 4)) for widths in probe_widths("ordinary", GEOMETRY)]
    found = fit_parts("ordinary", timed, GEOMETRY, "onnxruntime")
    assert found == pytest.approx(ORDINARY, rel=1e-6)


def test_the_fit_is_close_on_widths_that_were_not_timed_though_timings_are_noisy():
    generator = np.random.default_rng(0)
    timed = [
        (widths, written_out_ms(ORDINARY, widths, 4) * generator.uniform(0.97, 1.03))
        for widths in probe_widths("ordinary", GEOMETRY)
    ]
    table = table_of(fit_parts("ordinary", timed, GEOMETRY, "onnxruntime"))
    for seed in range(10):
        assert table.site_ms("ordinary", ragged(seed)) == pytest.approx(
            written_out_ms(ORDINARY, ragged(seed), 4), rel=0.03
        )


def test_no_part_is_negative_whatever_the_noise():
    generator = np.random.default_rng(1)
    for _ in range(20):
        timed = [(widths, float(generator.uniform(1, 50))) for widths in probe_widths("ordinary", GEOMETRY)]
        assert min(fit_parts("ordinary", timed, GEOMETRY, "openvino").values()) >= 0


@pytest.mark.parametrize("heads", [1, 2, 3, 12])
@pytest.mark.parametrize("head_width", [1, 3, 16, 64])
def test_timed_widths_are_ones_that_a_plan_could_have(heads, head_width):
    geometry = dataclasses.replace(GEOMETRY, heads=heads, head_width=head_width)
    for kind in ("ordinary", "last"):
        probes = probe_widths(kind, geometry)
        assert [(head_width, head_width)] * heads in probes
        for widths in probes:
            assert 1 <= len(widths) <= heads
            assert all(1 <= key <= head_width and 1 <= value <= head_width for key, value in widths)
        assert len({tuple(widths) for widths in probes}) == len(probes)


@pytest.mark.parametrize("kind", ["ordinary", "last"])
@pytest.mark.parametrize("form", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("seed", range(6))
def test_tied_widths_are_no_smaller_and_cost_no_more(kind, form, seed):
    table, widths = table_of(form=form), ragged(seed, heads=2 + seed)
    tied = tie_widths(table, kind, widths)
    assert all(after[0] >= before[0] and after[1] >= before[1] for before, after in zip(widths, tied))
    assert max(max(width) for width in tied) <= 64
    assert table.site_ms(kind, tied) <= table.site_ms(kind, widths) + 1e-9
    if form == "onnxruntime" or kind == "last":  # it fills up by itself; else each of these heads may be alone
        assert sum(map(sum, tied)) > sum(map(sum, widths))
    assert table.site_ms(kind, tie_widths(table, kind, tied)) == pytest.approx(table.site_ms(kind, tied))


def test_zeros_of_a_group_are_kept_channels_instead():
    assert tie_widths(table_of(), "ordinary", [(30, 20), (32, 32)]) == [(32, 32), (32, 32)]
    assert tie_widths(table_of(), "ordinary", [(64, 64)] * 12) == [(64, 64)] * 12


def test_heads_are_tied_where_groups_are_dear():
    dear = {**ORDINARY, "group_ms": 1000.0}
    widths = [(64, 64)] * 6 + [(8, 8)] * 6
    assert tie_widths(table_of(dear), "ordinary", widths) == [(64, 64)] * 12
    free = {**ORDINARY, "group_ms": 0.0, "cut_ms": 0.0}
    assert tie_widths(table_of(free), "ordinary", widths) == widths


def test_a_slim_model_has_the_dimensions_of_its_dense_one(tmp_path, tiny_ast, tiny_extractor):
    labels = tuple("abcde")
    dense = AstCheckpoint(tmp_path, tiny_ast, tiny_extractor, labels)
    config = SlimASTConfig(
        **{key: value for key, value in tiny_ast.config.to_dict().items() if key not in ("model_type", "dtype")},
        query_key_widths=[[3, 4], [5]],
        value_output_widths=[[6, 7], [8]],
    )
    slim = AstCheckpoint(tmp_path, SlimASTForAudioClassification(config).eval(), tiny_extractor, labels)
    assert read_geometry(slim) == read_geometry(dense)
    assert (read_geometry(dense).heads, read_geometry(dense).head_width) == (2, 16)
    assert model_sites(slim) == (((3, 6), (4, 7)), ((5, 8),))
    assert model_sites(dense) == (((16, 16), (16, 16)),) * 2


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(block_timing, "ROUNDS", 1)
    monkeypatch.setattr(block_timing, "PROCESSES", 1)
    monkeypatch.setattr(block_timing, "SHARE_S", 0.0)


@pytest.fixture
def checkpoint(tmp_path, tiny_extractor) -> AstCheckpoint:
    model = make_tiny_ast()
    model.save_pretrained(tmp_path / "tiny")
    tiny_extractor.save_pretrained(tmp_path / "tiny")
    return load_checkpoint(tmp_path / "tiny")


@pytest.mark.usefixtures("hurried")
def test_a_table_is_timed_once_and_then_read(tmp_path, checkpoint, monkeypatch):
    said = []
    first = latency_table(checkpoint, NULL).get(
        cache=tmp_path / "cache", keep_busy=True, report=lambda text, fraction: said.append((text, fraction))
    )
    (path,) = (tmp_path / "cache").iterdir()
    assert said
    assert all(0 <= fraction <= 1 for _, fraction in said)
    # Nothing is computed, so a stack and a model take the same time, and a stack of 12 blocks is of 12 blocks.
    assert first.model_ms(model_sites(checkpoint)) == pytest.approx(first.model.median_ms)
    assert first.rest_ms > 0
    assert len(first.probes) == sum(len(probe_widths(kind, first.geometry)) for kind in ("ordinary", "last"))

    def fail(*_arguments):
        raise AssertionError("timed again")

    with monkeypatch.context() as patched:
        patched.setattr(block_timing, "measure_table", fail)
        assert latency_table(checkpoint, NULL).get(cache=tmp_path / "cache") == first
        assert latency_table(checkpoint, NULL).kept(tmp_path / "cache") == first
        assert latency_table(checkpoint, dataclasses.replace(NULL, threads=2)).kept(tmp_path / "cache") is None
        with pytest.raises(AssertionError, match="timed again"):
            latency_table(checkpoint, dataclasses.replace(NULL, threads=2)).get(cache=tmp_path / "cache")
    path.write_text("{")
    assert len(latency_table(checkpoint, NULL).get(cache=tmp_path / "cache").probes) == len(first.probes)
    assert read_table(LatencyTable, path).key == json.loads(json.dumps(table_key(first.geometry, NULL)))


def test_the_cache_is_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("LEANEAR_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "leanear" / "latency"
    monkeypatch.setenv("LEANEAR_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own" / "latency"


def test_a_written_table_is_read_back(tmp_path):
    key = json.loads(json.dumps(table_key(GEOMETRY, NULL)))
    probe = Probe("last", ((3, 4), (5, 6)), 1.0, 0.5, 1.5, 1.1)
    table = dataclasses.replace(table_of(form="portable"), key=key, probes=(probe,))
    write_json(tmp_path / "table.json", table_document(table))
    assert read_table(LatencyTable, tmp_path / "table.json", key) == table
    with pytest.raises(BadInput, match="another device"):
        read_table(LatencyTable, tmp_path / "table.json", {**key, "threads": 64})


def _without(value, name):
    return {key: item for key, item in value.items() if key != name}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda value: _without(value, "parts"), "missing key 'parts'"),
        (lambda value: {**value, "more": 1}, "unknown key 'more'"),
        (lambda value: {**value, "schema": "other"}, "expected schema"),
        (lambda value: {**value, "rest_ms": -1.0}, "rest_ms is -1.0, expected a number of at least 0"),
        (lambda value: {**value, "rest_ms": "fast"}, "rest_ms is 'fast'"),
        (lambda value: {**value, "others_share": None}, "others_share is None"),
        (lambda value: {**value, "parts": _without(value["parts"], "last")}, "of the kinds ordinary, last"),
        (
            lambda value: {**value, "parts": {**value["parts"], "third": value["parts"]["last"]}},
            "of the kinds ordinary, last",
        ),
        (lambda value: {**value, "probes": [{"kind": "last"}]}, r"missing key 'probes\[0\].widths'"),
        (lambda value: {**value, "probes": 3}, "probes is 3"),
        (lambda value: {**value, "key": {**value["key"], "geometry": {"tokens": 3}}}, "missing key 'geometry"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, damage, message):
    table = dataclasses.replace(table_of(), key=json.loads(json.dumps(table_key(GEOMETRY, NULL))))
    path = tmp_path / "table.json"
    write_json(path, damage(table_document(table)))
    with pytest.raises(BadInput, match=message) as caught:
        read_table(LatencyTable, path)
    assert str(path) in str(caught.value)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(("runtime", "form"), [("onnxruntime", "onnxruntime"), ("openvino", "openvino")])
def test_the_runtimes_take_blocks_that_have_no_manifest(tmp_path, runtime, form):
    graphs = []
    for kind in ("ordinary", "last"):
        path = tmp_path / f"{kind}.onnx"
        export_blocks(kind, [(3, 4), (8, 17)], 30, 32, 2, form, path)
        graphs.append({"file": str(path), "labels": 1, "samples": 32})
    target = dataclasses.replace(NULL, runtime=runtime, graph_form=form)
    samples_ms, others_share = time_in_turn(graphs, target)
    assert others_share >= 0
    assert len(samples_ms) == 2
    assert all(len(samples) >= 1 and min(samples) > 0 for samples in samples_ms)
    graphs[1]["labels"] = 2
    with pytest.raises(MeasurementFailed, match=r"expected shape \(1, 2\)"):
        time_in_turn(graphs, target)
