"""Goals in milliseconds over attention and feed-forward channels: nothing is timed, all takes what a known law says."""

from __future__ import annotations

import dataclasses
import itertools
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from leanear.cli.commands import run
from leanear.families import ast, whisper
from leanear.families.checkpoint import load_checkpoint
from leanear.families.registry import family_of
from leanear.plan import read_plan
from leanear.prune.costs import latency_costs, parameter_costs
from leanear.prune.widths import RotatedRecipe, choose_widths, least_cost, narrowest_model
from leanear.timing import model_timing
from leanear.timing.block_timing import InTurn
from leanear.timing.latency_table import BLOCK, LatencyTable, ModelTiming, read_geometry
from leanear.timing.model_timing import Tables
from leanear.timing.speech_latency import SpeechTable
from leanear.timing.speech_timing import speech_geometry
from leanear.timing.table_file import FeedForwardParts, FeedForwardTable
from tests.conftest import make_tiny_ast
from tests.toolchain.prune.test_exploring import classifier, explored, speaker  # noqa: F401
from tests.toolchain.recipes import recipe_flags
from tests.whisper_models import make_whisper

REST_MS = 5.0  # of all that is neither
COLUMNS = {"head_ms": 0.1, "query_key_ms": 0.02, "value_output_ms": 0.02}
CHANNELS = {
    "ordinary": FeedForwardParts(0.3, 0.05),
    "last": FeedForwardParts(0.1, 0.005),
    "encoder": FeedForwardParts(0.3, 0.04),
    "decoder": FeedForwardParts(0.2, 0.02),
}
SLOWER = 2.0  # than when attention was timed was the device when feed-forward blocks were


def feed_forward_ms(model: Any) -> float:
    """By the law, in plain sums over the blocks of a model."""
    if hasattr(model, "proj_out"):
        widths = [(block.kind, block.width) for block in whisper.feed_forward_sites(model)]
    else:
        widths = list(zip(("ordinary", "last"), (b.width for b in ast.feed_forward_sites(model)), strict=True))
    return sum(CHANNELS[kind].block_ms + width * CHANNELS[kind].channel_ms for kind, width in widths if width)


def attention_table(checkpoint: Any, form: str, work: Any = None) -> Any:
    """A table by the law; its rest has the dense feed-forward blocks."""
    record = LatencyTable if work is None else SpeechTable
    parts = {kind: dict.fromkeys(record.PARTS, 0.0) | COLUMNS for kind in record.KINDS}
    rest = REST_MS + feed_forward_ms(checkpoint.model)
    if work is None:
        timing = ModelTiming((), 9.0, 9.0, 9.0)
        return LatencyTable(read_geometry(checkpoint), form, rest, timing, parts, (), 0.0, {})
    return SpeechTable(speech_geometry(checkpoint, work), form, rest, parts, (), 0.0, {})


def channels_table(checkpoint: Any, dense_ms: float) -> FeedForwardTable:
    """A table by the law, of the slower device."""
    blocks = family_of(checkpoint).feed_forward_sites(checkpoint.model)
    kinds = [block.kind for block in blocks] if hasattr(checkpoint.model, "proj_out") else ["ordinary", "last"]
    parts = {kind: FeedForwardParts(SLOWER * of.block_ms, SLOWER * of.channel_ms) for kind, of in CHANNELS.items()}
    return FeedForwardTable(SLOWER * dense_ms, tuple(kinds), parts, (), 0.0, {})


@pytest.fixture(params=["classifier", "speaker"])
def given(request, monkeypatch) -> tuple[Any, Any, list[str]]:
    """A model, its clips, and the tables that were asked for; the device obeys the law."""
    asked: list[str] = []

    def source(name: str, table: Any) -> SimpleNamespace:
        return SimpleNamespace(get=lambda **_: asked.append(name) or table, kept=lambda: table)

    def attention(checkpoint, target, work=None):
        return source("attention", attention_table(checkpoint, target.graph_form, work))

    def channels(checkpoint, target, work=None):
        table = attention_table(checkpoint, target.graph_form, work)
        dense_ms = table.model_ms([table.dense_site] * len(table.site_kinds))
        return source("feed-forward", channels_table(checkpoint, dense_ms))

    def measured(self, slim, *_):
        table = attention(self._checkpoint, self._target, getattr(self, "_work", None)).kept()
        sites = [
            list(zip(site.query_key_widths, site.value_output_widths, strict=True))
            for site in family_of(self._checkpoint).attention_sites(slim)
        ]
        dense_ms = table.model_ms([table.dense_site] * len(sites))
        slim_ms = table.model_ms(sites) - feed_forward_ms(self._checkpoint.model) + feed_forward_ms(slim)
        return InTurn(dense_ms, slim_ms)

    for name, function in (
        ("latency_table", attention), ("speech_table", attention), ("feed_forward_table", channels),
        ("speech_feed_forward_table", channels),
    ):  # fmt: skip
        monkeypatch.setattr(model_timing, name, function)
    for timing in (model_timing.AstTiming, model_timing.SpeechTiming):
        monkeypatch.setattr(timing, "dense_and_slim", measured)
    return *request.getfixturevalue(request.param), asked


@pytest.mark.parametrize("prune", ["all", "feed-forward"])
def test_a_goal_is_met_by_the_finished_model(given, tmp_path, capsys, prune):
    model, data, asked = given
    out = tmp_path / "slim"
    flags = ["--out", str(out), "--prune", prune, "--json", *recipe_flags(tmp_path / "recipe", "compensate = false")]
    assert run(["prune", str(model), "--data", str(data), "--speedup", "1.3", *flags]) == 0
    facts = json.loads(capsys.readouterr().out)["pruning"]
    (check,) = facts["latency_checks"]
    assert check["met"]
    assert check["measured_ms"] <= check["measured_dense_ms"] / 1.3 * 1.005
    assert check["predicted_ms"] / check["predicted_dense_ms"] == pytest.approx(
        check["measured_ms"] / check["measured_dense_ms"]
    )
    assert (facts["prune"], facts["cost"]["unit"]) == (prune, "ms")
    assert facts["cost"]["slim"] == pytest.approx(check["predicted_ms"])
    assert asked == (["attention", "feed-forward"] if prune == "all" else ["feed-forward"])
    plan, slim = read_plan(out / "plan.json"), load_checkpoint(out).model
    family = whisper if hasattr(slim, "proj_out") else ast
    assert any(len(block.channels) < block.dense_width for block in plan.feed_forward)
    assert [len(block.channels) for block in plan.feed_forward] == [b.width for b in family.feed_forward_sites(slim)]
    if prune == "feed-forward":
        assert plan.attention_parameters_kept == plan.attention_parameters_dense


def test_what_no_model_reaches_is_refused_by_the_tables(given, tmp_path, capsys):
    model, data, asked = given
    flags = ["--out", str(tmp_path / "slim"), "--prune", "all", "--latency-ms", "0.5"]
    assert run(["prune", str(model), "--data", str(data), *flags]) == 2
    (complaint,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("leanear: "))
    assert "--latency-ms 0.5: 0.5 ms are out of reach: the narrowest model" in complaint
    if "classifier" in str(model):
        assert "takes 5 ms" in complaint, "neither a head nor a channel is left of the classifier"
    assert asked == []
    assert not (tmp_path / "slim").exists()


def test_the_curve_is_in_milliseconds_too(given, tmp_path, capsys):
    found = explored(capsys, given[:2], tmp_path / "out", "--target", "cpu", "--prune", "all")
    assert given[2] == ["attention", "feed-forward"]
    times = [found["latency_ms_dense"], *(point["latency_ms"] for point in found["points"])]
    assert REST_MS <= min(times) == times[-1] < times[0] - 1.0
    assert max(times) == times[0]


@pytest.mark.parametrize("prune", ["all", "feed-forward"])
@pytest.mark.parametrize(("family", "make"), [(ast, make_tiny_ast), (whisper, make_whisper)], ids=["ast", "whisper"])
def test_no_channel_is_left_of_the_narrowest_model(family, make, prune):
    model, recipe = make(), RotatedRecipe(prune=prune)
    narrowest = narrowest_model(family, model, recipe)
    costs = parameter_costs(dataclasses.replace(family.dense_plan(model), prune=prune))
    removed = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in narrowest.parameters())
    assert costs.dense - removed == least_cost(family.attention_sites(model), costs, recipe)
    assert {site.width for site in family.feed_forward_sites(narrowest)} == {0}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.45, 0.7, 0.9])
def test_one_budget_in_milliseconds_is_shared_as_brute_force_shares_it(seed, share):
    """Of a tiny AST: two blocks of two heads of 8 or 16, or none, and two of 0, 16, 32 or 48 channels."""
    model, recipe = make_tiny_ast(), RotatedRecipe(multiples=(8, 8), prune="all", one_width_per_head=True)
    checkpoint = SimpleNamespace(model=model, feature_extractor=SimpleNamespace(sampling_rate=16_000))
    table = attention_table(checkpoint, "portable")
    table = dataclasses.replace(table, parts={kind: {**of, BLOCK: 0.4} for kind, of in table.parts.items()})
    sites, blocks = ast.attention_sites(model), ast.feed_forward_sites(model)
    dense_ms = table.model_ms([table.dense_site] * 2)
    channels = FeedForwardTable(dense_ms, ("ordinary", "last"), CHANNELS, (), 0.0, {})
    costs = latency_costs(Tables(table, channels), sites, blocks)
    generator = np.random.default_rng(seed)
    losses = {site.name: generator.uniform(0.1, 1, (3, 17, 17)) for site in sites}
    losses |= {block.name: generator.uniform(0, 1, 49) for block in blocks}
    for site in sites:
        losses[site.name][:, 16, 16] = 0.0
    found = choose_widths(sites, losses, costs, share * dense_ms, recipe)

    def site_options(number):
        """Milliseconds and loss of every pair of heads; a head's loss of its removal is at widths 0 and 0."""
        table_of, kind = losses[sites[number].name], ("ordinary", "last")[number]
        yield 0.0, table_of[-1, 0, 0]
        for widths in itertools.product((0, 8, 16), repeat=2):
            kept = [(width, width) for width in widths if width]
            if kept:
                yield table.site_ms(kind, kept), sum(table_of[head, width, width] for head, width in enumerate(widths))

    def block_options(number):
        law = (CHANNELS["ordinary"], CHANNELS["last"])[number]
        for width in (0, 16, 32, 48):
            ms = law.block_ms + width * law.channel_ms if width else 0.0
            yield ms, losses[blocks[number].name][width]

    rest_ms = table.rest_ms - sum(CHANNELS[k].block_ms + 48 * CHANNELS[k].channel_ms for k in ("ordinary", "last"))
    choices = [list(site_options(n)) for n in range(2)] + [list(block_options(n)) for n in range(2)]
    ms = rest_ms + sum(np.meshgrid(*([ms for ms, _ in each] for each in choices), indexing="ij"))
    lost = sum(np.meshgrid(*([loss for _, loss in each] for each in choices), indexing="ij"))
    assert found.cost <= share * dense_ms * (1 + 1e-9)
    assert found.damage == pytest.approx(lost[ms <= share * dense_ms * (1 + 1e-12)].min())
