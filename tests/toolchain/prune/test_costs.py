"""Costs of widths against what built models really hold, count and, by the table, take."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from leanear.export.macs import count_macs
from leanear.families import ast
from leanear.plan import HeadPlan, SitePlan
from leanear.prune.costs import latency_costs, mac_costs, parameter_costs
from leanear.timing.latency_table import Geometry, LatencyTable, ModelTiming, read_geometry
from leanear.timing.model_timing import Tables
from tests.conftest import make_tiny_ast

LAYERS, HEADS, WIDTH = 3, 2, 16
ORDINARY = dict(zip(LatencyTable.PARTS, (0.6, 0.25, 0.001, 0.33, 0.031, 0.019, 0.011), strict=True))
LAST = dict(zip(LatencyTable.PARTS, (0.2, 0.0, 0.0, 0.01, 0.002, 0.003, 0.0), strict=True))


def any_widths(seed: int) -> list[tuple[tuple[int, int], ...]]:
    """Of two heads and, in the last block, of one."""
    drawn = np.random.default_rng(seed).integers(1, WIDTH + 1, (LAYERS, HEADS, 2))
    widths = [tuple((int(k), int(v)) for k, v in heads) for heads in drawn]
    return [*widths[:-1], widths[-1][:1]]


def slim_of(model, widths):
    return ast.slim_model(
        model,
        tuple(
            SitePlan(
                f"layers.{layer}.attention",
                HEADS,
                tuple(HeadPlan(h, tuple(range(k)), tuple(range(v))) for h, (k, v) in enumerate(heads)),
            )
            for layer, heads in enumerate(widths)
        ),
    )


@pytest.fixture(scope="module")
def model():
    return make_tiny_ast(WIDTH, HEADS, LAYERS)


@pytest.fixture(scope="module")
def geometry(model) -> Geometry:
    class Extractor:
        sampling_rate = 16000

    return read_geometry(ast.AstCheckpoint(None, model, Extractor(), ()))


def table_of(geometry: Geometry, form: str = "onnxruntime") -> LatencyTable:
    return LatencyTable(
        geometry, form, 100.0, ModelTiming((), 9.0, 9.0, 9.0), {"ordinary": ORDINARY, "last": LAST}, (), 0.0, {}
    )


def parameters(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("seed", range(3))
def test_parameters_are_those_of_built_models(model, seed):
    costs, widths = parameter_costs(ast.dense_plan(model)), any_widths(seed)
    removed = parameters(model) - parameters(slim_of(model, widths))
    assert costs.dense - costs.of(widths) == removed
    assert costs.dense == costs.of([((WIDTH, WIDTH),) * HEADS] * LAYERS)
    assert costs.dense == LAYERS * (4 * 32 * 32 + 3 * 32), "four matrices, three biases"


@pytest.mark.parametrize("seed", range(3))
def test_macs_are_those_of_built_models(model, seed):
    """The last block reads two tokens: there no width is free, and removing heads saves their keys' sums too."""
    costs, widths = mac_costs(ast.dense_plan(model), count_macs(model)), any_widths(seed)
    assert costs.of(widths) == count_macs(slim_of(model, widths)).total
    assert costs.of([((WIDTH, WIDTH),) * HEADS] * LAYERS) == costs.dense == count_macs(model).total
    assert all(head(0, 0) == 0 for head in costs.heads)


def test_macs_of_torch_are_counted_alike(model, geometry):
    """An ordinary block's matrix products, as torch's own counter sees them, at two sets of widths."""
    costs = mac_costs(ast.dense_plan(model), count_macs(model))
    counted = []
    for widths in (((16, 16), (16, 16)), ((4, 4), (4, 4))):
        slim = slim_of(model, [widths] * LAYERS)
        block = ast.attention_sites(slim)[0].module
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            block(torch.randn(1, geometry.tokens, 32))
        counted.append(counter.get_total_flops() / 2)
    wide, narrow = (HEADS * costs.heads[0](width, width) for width in (16, 4))
    assert (wide, wide - narrow) == (counted[0], counted[0] - counted[1])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", ["onnxruntime", "openvino", "portable"])
@pytest.mark.parametrize("may_go", [False, True])
def test_milliseconds_are_those_of_the_table(geometry, seed, form, may_go):
    table, widths = table_of(geometry, form), any_widths(seed)
    costs = latency_costs(Tables(table, None), [SimpleNamespace(may_go=may_go)] * LAYERS, ())
    assert costs.of(widths) == pytest.approx(table.model_ms(widths))
    assert costs.of([((WIDTH, WIDTH),) * HEADS] * LAYERS) == pytest.approx(costs.dense)
    assert costs.fixed == pytest.approx(100 if may_go else 100 + 2 * 0.6 + 0.2)
    if may_go:
        assert costs.of([(), *widths[1:]]) == pytest.approx(
            table.model_ms(widths) - table.site_ms("ordinary", widths[0])
        )
    for block, kind in enumerate(("ordinary", "ordinary", "last")):
        tied = costs.ragged[block](((5, 7), (5, 7)))
        fixed_ms = 0.0 if may_go else table.block_ms(kind)
        assert tied + fixed_ms == pytest.approx(table.site_ms(kind, [(5, 7), (5, 7)]))
        assert costs.heads[block](5, 7) == pytest.approx(table.site_ms(kind, [(5, 7)]) - table.block_ms(kind))
        assert costs.heads[block](0, 0) == 0
        wider = costs.widened[block](widths[block])
        assert costs.ragged[block](tuple(wider)) <= costs.ragged[block](widths[block]) * (1 + 1e-6)
        assert all(k <= wk <= WIDTH and v <= wv <= WIDTH for (k, v), (wk, wv) in zip(widths[block], wider))
