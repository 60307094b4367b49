"""Latency tables of Whispers: the fit finds what timings were made of, files are read strictly, a goal is met."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from leanear.export.blocks import exported_groups
from leanear.families import whisper
from leanear.prune.costs import latency_costs
from leanear.runtimes.errors import BadInput
from leanear.targets.target import read_target
from leanear.timing import model_timing, speech_timing
from leanear.timing.block_timing import InTurn
from leanear.timing.latency_table import HEAD_PARTS
from leanear.timing.model_timing import Tables, Timed
from leanear.timing.speech_latency import (
    ENCODER_STAGE,
    KINDS,
    STEPS_STAGE,
    SpeechGeometry,
    SpeechTable,
    fit_speech_parts,
)
from leanear.timing.speech_timing import (
    Rounds,
    beside,
    model_of_widths,
    probe_models,
    speech_geometry,
    speech_table,
    undisturbed,
    work_of,
)
from leanear.timing.speech_work import SpeechWork
from leanear.timing.table_file import read_table, table_document, table_key
from tests.whisper_models import write_whisper

CPU = dataclasses.replace(read_target("cpu"), threads=1)
GEOMETRY = SpeechGeometry(
    positions=1500, model_width=384, heads=6, head_width=64, encoder_layers=4, decoder_layers=3,
    encoder_feed_forward_width=1536, decoder_feed_forward_width=1536, mel_bins=80, vocabulary=51864,
    decoder_positions=448, clip_samples=160000, window_samples=192000, any_window=True, prompt_tokens=2, tokens=33,
)  # fmt: skip
ENCODER_REST, STEPS_REST, CROSS_MADE_MS = 50.0, 80.0, 0.004
ENCODER = dict(zip(HEAD_PARTS, (0.2, 0.0005, 0.3, 0.011, 0.009, 0.002), strict=True))
DECODER = dict(zip(HEAD_PARTS, (0.0, 0.0, 0.05, 0.007, 0.006, 0.0), strict=True))
CROSS = dict(zip(HEAD_PARTS, (0.0, 0.0, 0.06, 0.013, 0.010, 0.0), strict=True))


def law_ms(widths, geometry=GEOMETRY, form="onnxruntime") -> dict[str, float]:
    """Milliseconds of both stages, in plain sums over heads: each kind's blocks are filled up as their groups are."""

    def columns(kind):
        block = "ordinary" if kind == "encoder" else "cached"
        groups = exported_groups(block, widths[kind], geometry.positions, geometry.model_width, form)
        heads = [(group.query_key_width, group.value_output_width) for group in groups for _ in group.heads]
        return len(groups), heads

    def block(kind, parts):
        groups, heads = columns(kind)
        total = parts["group_ms"] * (groups - 1)
        for key, value in heads:
            total += parts["head_ms"] + parts["query_key_ms"] * key + parts["value_output_ms"] * value
            total += parts["vector_ms"] * 16 * -(-value // 16) + (parts["cut_ms"] * 2 * (key + value)) * (groups > 1)
        return total

    made = sum(CROSS_MADE_MS * (key + value) for key, value in columns("cross")[1])
    return {
        ENCODER_STAGE: ENCODER_REST + geometry.encoder_layers * block("encoder", ENCODER)
        + geometry.decoder_layers * made,
        STEPS_STAGE: STEPS_REST + geometry.decoder_layers * (block("decoder", DECODER) + block("cross", CROSS)),
    }  # fmt: skip


def ragged(seed: int) -> dict[str, list[tuple[int, int]]]:
    generator = np.random.default_rng(seed)
    return {kind: [(int(k), int(v)) for k, v in generator.integers(1, 65, (6, 2))] for kind in KINDS}


def fitted_table(noise: float = 0.0) -> SpeechTable:
    generator = np.random.default_rng(0)
    timed = [
        (widths, {stage: ms * generator.uniform(1 - noise, 1 + noise) for stage, ms in law_ms(widths).items()})
        for widths in probe_models(GEOMETRY)
    ]
    rest, parts, _ = fit_speech_parts(timed, GEOMETRY, "onnxruntime")
    return SpeechTable(GEOMETRY, "onnxruntime", rest, parts, (), 0.0, {})


def sites(widths) -> list[list[tuple[int, int]]]:
    return [widths["encoder"]] * 4 + [widths["decoder"], widths["cross"]] * 3


@pytest.mark.parametrize("seed", range(4))
def test_exact_timings_give_what_they_were_made_of(seed):
    table, widths = fitted_table(), ragged(seed)
    assert table.rest_ms == pytest.approx(ENCODER_REST + STEPS_REST, rel=1e-6)
    assert table.model_ms(sites(widths)) == pytest.approx(sum(law_ms(widths).values()), rel=1e-6)


def test_the_fit_is_close_on_widths_that_were_not_timed_though_timings_are_noisy():
    table = fitted_table(noise=0.01)
    for seed in range(10):
        assert table.model_ms(sites(ragged(seed))) == pytest.approx(sum(law_ms(ragged(seed)).values()), rel=0.03)
    assert min(cost for parts in table.parts.values() for cost in parts.values()) >= 0


def test_costs_are_those_of_the_table():
    table, widths = fitted_table(), ragged(1)
    costs = latency_costs(Tables(table, None), [SimpleNamespace(may_go=False)] * 10, ())
    assert costs.of([tuple(site) for site in sites(widths)]) == pytest.approx(table.model_ms(sites(widths)))
    assert costs.fixed == table.rest_ms
    assert costs.dense == pytest.approx(table.model_ms([[(64, 64)] * 6] * 10))
    assert costs.widened is not None
    assert costs.ragged is not None
    for block in (0, 4, 5):
        given = tuple(sites(widths)[block])
        wider = costs.widened[block](given)
        assert costs.ragged[block](tuple(wider)) <= costs.ragged[block](given) * (1 + 1e-6)
    assert set(costs.widened[5](((8, 60), (50, 4)))) == {(50, 60)} or set(costs.widened[5](((8, 60), (50, 4)))) == {
        (50, 64)
    }, "heads of a cached block are filled up to the widest"


@pytest.fixture
def checkpoint(tmp_path):
    return whisper.load_checkpoint(write_whisper(tmp_path / "model"))


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(speech_timing, "ROUNDS", 1)
    monkeypatch.setattr(speech_timing, "PROCESSES", 1)
    monkeypatch.setattr(speech_timing, "SHARE_S", 0.0)


def test_models_that_are_timed_have_the_widths_that_are_said(checkpoint):
    geometry = speech_geometry(checkpoint, work_of(checkpoint, SpeechWork()))
    for widths in probe_models(geometry):
        model = model_of_widths(checkpoint, widths)
        for site in whisper.attention_sites(model):
            assert list(zip(site.query_key_widths, site.value_output_widths, strict=True)) == widths[site.kind]


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_table_is_timed_once_and_then_read(tmp_path, checkpoint, precision, monkeypatch):
    target = dataclasses.replace(CPU, precision=precision)
    work = work_of(checkpoint, SpeechWork(1.0, 5))
    monkeypatch.setattr(speech_timing, "probe_models", lambda geometry: probe_models(geometry)[:6])
    first = speech_table(checkpoint, target, work).get(cache=tmp_path, keep_busy=True)
    assert all(ms > 0 for probe in first.probes for ms in probe.measured_ms.values())
    assert len(first.probes) == 6
    monkeypatch.setattr(speech_timing, "measure_speech_table", lambda *_: pytest.fail("timed again"))
    assert speech_table(checkpoint, target, work).get(cache=tmp_path) == first
    assert speech_table(checkpoint, target, work_of(checkpoint, SpeechWork(1.0, 6))).kept(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value["parts"].pop("cross"), "of the kinds encoder, decoder, cross"),
        (lambda value: value["parts"]["cross"].update(head_ms=-1.0), "parts.cross.head_ms is -1.0"),
        (lambda value: value.pop("probes"), "probes"),
        (lambda value: value["key"].update(threads=7), "another device, runtime, model or work"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, change, message):
    key = table_key(GEOMETRY, CPU)
    table = dataclasses.replace(fitted_table(), key=key)
    value = json.loads(json.dumps(table_document(table)))
    (tmp_path / "whole.json").write_text(json.dumps(value))
    assert read_table(SpeechTable, tmp_path / "whole.json", key).parts == table.parts
    change(value)
    (tmp_path / "table.json").write_text(json.dumps(value))
    with pytest.raises(BadInput, match=message):
        read_table(SpeechTable, tmp_path / "table.json", key)


def test_the_finished_model_is_exported_and_timed_beside_the_dense_one(checkpoint, monkeypatch):
    """In the work that was stated: nothing is timed, but all that would be is there."""
    seen = {}

    def timed(models, target, work, report, share_s):
        seen.update(models=models, precision=target.precision, work=work, share_s=share_s)
        return InTurn(4.0, 2.5)

    monkeypatch.setattr(model_timing, "time_dense_and_slim", timed)
    timing = model_timing.timing_of(checkpoint, CPU, SpeechWork(1.5, 7))
    assert timing.dense_and_slim(checkpoint.model, lambda *_: None, 2.0) == InTurn(4.0, 2.5)
    assert (seen["work"].tokens, seen["work"].clip_samples, seen["share_s"]) == (7, 24_000, 2.0)
    assert timing.audio_s == 1.5
    assert timing.told() == Timed(precision="fp32", audio_s=1.5, tokens=7, window="full", window_s=2.0)


@pytest.mark.parametrize(
    ("slim_ms", "others", "doubt"),
    [
        ([6.0] * 6, 0.0, ""),
        ([6.0] * 6, 0.3, "other processes kept the cores 30% busy meanwhile"),
        ([6.0, 9.0, 6.0, 9.0, 6.0, 9.0], 0.0, "the samples spread by 22% (CV)"),
    ],
)
def test_a_check_of_the_finished_model_knows_when_it_was_disturbed(checkpoint, monkeypatch, slim_ms, others, doubt):
    """CV by hand: 6 and 9 in turn have the mean 7.5 and the sample deviation 1.64."""
    stages = tuple(
        tuple({ENCODER_STAGE: ms / 2, STEPS_STAGE: ms / 2} for ms in model) for model in ([10.0] * 6, slim_ms)
    )
    rounds = Rounds(stages, ((others,) * 6,) * 2)
    monkeypatch.setattr(speech_timing, "time_speech_in_turn", lambda *_: rounds)
    found = speech_timing.time_dense_and_slim([], CPU, None, lambda *_: None, 1.0)
    assert found == InTurn(10.0, pytest.approx(np.median(slim_ms)), doubt)


def test_a_model_is_compared_with_the_first_one_of_the_same_round():
    """Memory becomes half as fast for some rounds, which slows both down; others disturb one of the turns."""
    slow = (1.0, 2.0, 2.0, 1.0, 2.0, 9.0)
    stages = tuple(tuple({ENCODER_STAGE: ms, STEPS_STAGE: ms * factor} for factor in slow) for ms in (10.0, 6.0))
    rounds = Rounds(stages, ((0.0,) * 6, (0.0, 0.01, 0.0, 0.02, 0.0, 0.5)))
    dense = undisturbed(rounds.of_first)
    assert dense == {ENCODER_STAGE: 10.0, STEPS_STAGE: pytest.approx(12.5)}
    assert beside(dense, rounds.ratios(1)) == {ENCODER_STAGE: pytest.approx(6.0), STEPS_STAGE: pytest.approx(7.5)}
    assert len(rounds.ratios(1)) == 5
    assert rounds.others_share == 0.0
