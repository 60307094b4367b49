"""Attention on keys and values in 8 bits, against softmax in numpy and against what is computed in integers by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from leanear.export.onnx.graph import Graph
from leanear.export.onnx.observed import Observed
from leanear.export.whisper.graph import cache_sizes, export_whisper, observe_encoder
from leanear.export.whisper.integer_attention import add_attended, add_scores, cross_units
from tests.export.whisper_cases import noise, small_whisper
from tests.whisper_models import make_extractor

HEADS, POSITIONS, KEY_WIDTH, VALUE_WIDTH = 3, 40, 16, 8
NAME = "decoder.layers.0.encoder_attn"


def _attended(tmp_path: Path, query: np.ndarray, key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    graph = Graph()
    scores = add_scores(graph, "query", "key", "block")
    attended = add_attended(graph, scores, "value", "block")
    kinds = ("query", TensorProto.FLOAT, query), ("key", TensorProto.INT8, key), ("value", TensorProto.INT8, value)
    inputs = [helper.make_tensor_value_info(name, kind, array.shape) for name, kind, array in kinds]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (scores, attended)]
    graph.write(tmp_path / "attention.onnx", inputs, outputs, "attention")
    session = onnxruntime.InferenceSession(str(tmp_path / "attention.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {"query": query, "key": key, "value": value})
    return found[0], found[1]


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def test_is_softmax_attention_within_a_rounding(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    query = generator.standard_normal((2, HEADS, 4, KEY_WIDTH)).astype(np.float32)
    query[0, 1] *= 30.0  # a head whose numbers are large takes no bits from the others
    keys = 0.3 * generator.standard_normal((2, HEADS, KEY_WIDTH, POSITIONS)).astype(np.float32)
    values = generator.standard_normal((2, HEADS, POSITIONS, VALUE_WIDTH)).astype(np.float32)
    key_unit, value_unit = (
        np.float32(np.abs(keys).max() / 127), np.float32(np.abs(values).max() / 127),
    )  # fmt: skip
    integers = [np.rint(keys / key_unit).astype(np.int8), np.rint(values / value_unit).astype(np.int8)]
    scores, attended = _attended(tmp_path, query * key_unit / 63, *integers)

    exact = query.astype(np.float64) @ keys
    assert scores == pytest.approx(exact, abs=0.02 * np.abs(exact).max())
    small = np.delete(exact, 1, axis=1)
    assert np.delete(scores, 1, axis=1) == pytest.approx(small, abs=0.02 * np.abs(small).max())
    assert attended * value_unit / 127 == pytest.approx(_softmax(scores) @ values, abs=0.02)


def test_integers_are_multiplied_as_by_hand(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    query = generator.standard_normal((1, 1, 1, KEY_WIDTH)).astype(np.float32)
    key = generator.integers(-127, 128, (1, 1, KEY_WIDTH, POSITIONS)).astype(np.int8)
    value = generator.integers(-127, 128, (1, 1, POSITIONS, VALUE_WIDTH)).astype(np.int8)
    scores, attended = _attended(tmp_path, query / 1000, key, value)

    largest = np.abs(query / 1000).max()
    rounded = np.rint(query / 1000 / largest * 63).astype(np.int64)
    by_hand = (rounded @ key.astype(np.int64)) * largest
    assert scores == pytest.approx(by_hand, rel=1e-5, abs=1e-5)
    weights = _softmax(by_hand.astype(np.float64))
    counted = np.rint(weights / weights.max() * 127).astype(np.int64)
    assert attended == pytest.approx((counted @ value.astype(np.int64)) * weights.max(), rel=0.01, abs=2.0)


def test_a_query_of_zeros_takes_the_mean(tmp_path: Path) -> None:
    key = np.full((1, 1, KEY_WIDTH, POSITIONS), 90, np.int8)
    value = np.random.default_rng(2).integers(-127, 128, (1, 1, POSITIONS, VALUE_WIDTH)).astype(np.int8)
    scores, attended = _attended(tmp_path, np.zeros((1, 1, 1, KEY_WIDTH), np.float32), key, value)
    assert not scores.any()
    assert attended[0, 0, 0] == pytest.approx(127 * value[0, 0].mean(axis=0), rel=1e-4, abs=1e-3)


def test_units_hold_what_was_observed_and_columns_of_zeros() -> None:
    seen = Observed(np.array([-3.0, 0.0, -1.0], np.float32), np.array([2.0, 0.0, 254.0], np.float32))
    units = cross_units({f"{NAME}.key": seen}, "onnxruntime", NAME)
    assert units.keys == pytest.approx(np.array([3.0, 1.0, 254.0]) / 127)
    assert units.values is None
    assert cross_units({f"{NAME}.key": seen}, "openvino", NAME).keys is None
    assert cross_units(None, "onnxruntime", NAME).keys is None


def _kinds(path: Path, names: str) -> dict[str, int]:
    graph = onnx.load(str(path), load_external_data=False).graph
    return {
        tensor.name: tensor.type.tensor_type.elem_type
        for tensor in (*graph.input, *graph.output)
        if tensor.name.startswith(names)
    }


@pytest.mark.parametrize("kind", ["stock", "ragged"])
def test_keys_and_values_of_windows_are_integers_but_those_left(tmp_path: Path, kind: str) -> None:
    model, extractor, clips = small_whisper(kind), make_extractor(), [noise(seed) for seed in range(3)]
    observed = observe_encoder(model, extractor, "onnxruntime", clips)
    left = "decoder.layers.1.encoder_attn.key"
    assert left in observed
    del observed[left]
    files = tmp_path / "encoder.onnx", tmp_path / "decoder.onnx"
    export_whisper(model, extractor, *files, "onnxruntime", "int8", observed)
    wanted = dict.fromkeys(("cross_key.0", "cross_value.0", "cross_value.1"), TensorProto.INT8)
    wanted["cross_key.1"] = TensorProto.FLOAT
    assert _kinds(files[0], "cross_") == _kinds(files[1], "cross_") == wanted

    plain = tmp_path / "plain.onnx", tmp_path / "plain_decoder.onnx"
    export_whisper(model, extractor, *plain, "onnxruntime")
    given, exact = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
            ["cross_key.0", "cross_key.1"], {"waveform": clips[0][None]}
        )
        for path in (files[0], plain[0])
    )
    units = cross_units(observed, "onnxruntime", NAME).keys
    assert units is not None
    by_head = units.reshape(exact[0].shape[0], -1, 1)
    assert given[0].dtype == np.int8
    assert given[0] * by_head == pytest.approx(exact[0], abs=0.1 * float(np.abs(exact[0]).max()))
    assert given[1] == pytest.approx(exact[1], abs=0.1 * float(np.abs(exact[1]).max()))

    in_float32, sizes = cache_sizes(model, "onnxruntime"), cache_sizes(model, "onnxruntime", observed=observed)
    assert sizes.padded_bytes_per_token == in_float32.padded_bytes_per_token
    spared = in_float32.padded_cross_bytes - sizes.padded_cross_bytes
    values = 100 * sum(layer.cross_value[0] * layer.cross_value[2] for layer in sizes.layers)
    assert spared == 3 * (given[0].size + values)
