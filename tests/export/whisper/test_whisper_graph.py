"""Whisper's two graphs against the model in torch, on two runtimes, and what their files promise."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch

from leanear.export.macs import count_whisper_macs
from leanear.export.onnx.graph import FORMS
from leanear.export.whisper.graph import cache_sizes, export_whisper
from leanear.runtimes.errors import BadInput
from leanear.runtimes.manifest import CacheLayer
from tests.export.whisper_cases import KINDS, WINDOW_SAMPLES, noise, small_whisper, torch_logits
from tests.whisper_models import make_extractor, make_whisper

ROOM = 16
NEAR = 3e-5  # of the largest logit: sums in float32, in the order that a CPU's instructions make


class OnnxRuntime:
    """Graphs by ONNX Runtime, fed and read by name."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.shapes = {tensor.name: tensor.shape for tensor in self.session.get_inputs()}

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, inputs), strict=True))


class OpenVino:
    """The same by OpenVINO."""

    def __init__(self, path: Path) -> None:
        self.compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self.shapes = {
            port.get_any_name(): [d.get_length() if d.is_static else "" for d in port.get_partial_shape()]
            for port in self.compiled.inputs
        }

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {port.get_any_name(): value.copy() for port, value in self.compiled(inputs).items()}


def _export(folder: Path, model: Any, form: str) -> tuple[Path, Path]:
    export_whisper(model, make_extractor(), folder / "encoder.onnx", folder / "decoder.onnx", form)
    return folder / "encoder.onnx", folder / "decoder.onnx"


def _decode(
    encoder: Any,
    decoder: Any,
    embedding: torch.nn.Embedding,
    waveform: np.ndarray,
    tokens: np.ndarray,
    steps: tuple[int, ...],
) -> np.ndarray:
    """Logits (rows, steps, vocabulary) after each of `steps`, which say how many tokens are fed."""
    crossed, rows = encoder({"waveform": waveform[None]}), len(tokens)
    if len(decoder.shapes["cross_key.0"]) == 4:  # of several windows, of which this is one
        crossed = {name: array[None] for name, array in crossed.items()}
    caches = {}
    for name, shape in decoder.shapes.items():
        if name.startswith("self_"):
            sizes = [rows, *(size if isinstance(size, int) else ROOM for size in shape[1:])]
            # What is behind the filled part may be anything finite.
            caches[name] = np.full(sizes, 7.0, dtype=np.float32)
    filled, logits = 0, []
    for new in steps:
        bias = np.full((new, ROOM + new), -1e30, dtype=np.float32)
        bias[:, :filled] = 0.0
        bias[:, ROOM:] = np.triu(np.full((new, new), -1e30), 1)
        positions = np.arange(filled, filled + new)
        fed = embedding.weight.detach().numpy()[tokens[:, filled : filled + new]]
        results = decoder({**crossed, **caches, "embedded": fed, "positions": positions, "bias": bias})
        for name, cache in caches.items():
            added = results[name.replace("self_", "new_")]
            if "key" in name:
                cache[..., filled : filled + new] = added
            else:
                cache[:, :, filled : filled + new] = added
        filled += new
        logits.append(results["logits"])
    return np.stack(logits, axis=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_computes_what_the_model_computes(kind: str, form: str, tmp_path: Path) -> None:
    model, waveform = small_whisper(kind), noise(WINDOW_SAMPLES - 5000)
    encoder, decoder = (OnnxRuntime(path) for path in _export(tmp_path, model, form))
    tokens = np.random.default_rng(0).integers(0, 300, (2, 7))
    expected = torch_logits(model, waveform, tokens)[:, [0, 2, 5, 6]]
    logits = _decode(encoder, decoder, model.model.decoder.embed_tokens, waveform, tokens, (1, 2, 3, 1))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=NEAR * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["portable", "openvino"])
def test_openvino_computes_the_forms_of_plain_operators(kind: str, form: str, tmp_path: Path) -> None:
    model, waveform = small_whisper(kind), noise(WINDOW_SAMPLES - 5000)
    encoder, decoder = (OpenVino(path) for path in _export(tmp_path, model, form))
    tokens = np.random.default_rng(0).integers(0, 300, (2, 7))
    expected = torch_logits(model, waveform, tokens)[:, [0, 2, 5, 6]]
    logits = _decode(encoder, decoder, model.model.decoder.embed_tokens, waveform, tokens, (1, 2, 3, 1))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=NEAR * np.abs(expected).max())


def test_tokens_fed_at_once_are_tokens_fed_one_by_one(tmp_path: Path) -> None:
    model, waveform = small_whisper("ragged"), noise(3000)
    encoder, decoder = (OnnxRuntime(path) for path in _export(tmp_path, model, "portable"))
    tokens = np.random.default_rng(1).integers(0, 300, (1, 9))
    singly = _decode(encoder, decoder, model.model.decoder.embed_tokens, waveform, tokens, (1,) * 9)
    at_once = _decode(encoder, decoder, model.model.decoder.embed_tokens, waveform, tokens, (9,))
    np.testing.assert_allclose(singly[:, -1], at_once[:, -1], rtol=0, atol=NEAR * np.abs(at_once).max())


@pytest.mark.parametrize("samples", [1, WINDOW_SAMPLES, WINDOW_SAMPLES + 1, 3 * WINDOW_SAMPLES])
def test_every_length_of_audio_is_one_window(samples: int, tmp_path: Path) -> None:
    model, waveform = small_whisper("stock"), noise(samples)
    encoder, decoder = (OnnxRuntime(path) for path in _export(tmp_path, model, "onnxruntime"))
    tokens = np.array([[5, 6, 7]])
    expected = torch_logits(model, waveform, tokens)[:, -1:]
    logits = _decode(encoder, decoder, model.model.decoder.embed_tokens, waveform, tokens, (3,))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=NEAR * np.abs(expected).max())


def test_an_mlp_in_parts_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanear.export.whisper.encoder.MLP_COLUMNS", 20)  # of 48
    model, waveform = small_whisper("stock"), noise(9000)
    paths = _export(tmp_path, model, "onnxruntime")
    names = {node.name for node in onnx.load(str(paths[0])).graph.node}
    assert {f"encoder.layers.0.part{number}.narrow" for number in range(3)} < names
    encoder, decoder = (OnnxRuntime(path) for path in paths)
    tokens = np.array([[5, 6, 7]])
    expected = torch_logits(model, waveform, tokens)[:, -1:]
    logits = _decode(encoder, decoder, model.model.decoder.embed_tokens, waveform, tokens, (3,))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=NEAR * np.abs(expected).max())


def test_cross_keys_and_values_are_those_of_the_model(tmp_path: Path) -> None:
    model, waveform = small_whisper("fewer heads"), noise(WINDOW_SAMPLES)
    crossed = OnnxRuntime(_export(tmp_path, model, "portable")[0])({"waveform": waveform[None]})
    features = make_extractor()(waveform, sampling_rate=16000, return_tensors="pt")["input_features"]
    with torch.inference_mode():
        states = model.model.encoder(features).last_hidden_state
        block = model.model.decoder.layers[0].encoder_attn
        keys, values = block.k_proj(states)[0].numpy(), block.v_proj(states)[0].numpy()
    np.testing.assert_allclose(crossed["cross_key.0"][0], keys.T, rtol=0, atol=NEAR * np.abs(keys).max())
    # The value bias went into the output bias.
    unbiased = values - block.v_proj.bias.detach().numpy()
    np.testing.assert_allclose(crossed["cross_value.0"][0], unbiased, rtol=0, atol=NEAR * np.abs(values).max())


def test_scale_is_the_models_own_and_not_derived_from_a_width(tmp_path: Path) -> None:
    model, waveform = make_whisper(), noise(9000)
    model.model.decoder.layers[0].encoder_attn.scaling = 0.61
    model.model.decoder.layers[1].self_attn.scaling = 0.53
    model.model.encoder.layers[1].self_attn.scaling = 0.47
    tokens = np.array([[5, 6, 7]])
    encoder, decoder = (OnnxRuntime(path) for path in _export(tmp_path, model, "portable"))
    expected = torch_logits(model, waveform, tokens)[:, -1:]
    logits = _decode(encoder, decoder, model.model.decoder.embed_tokens, waveform, tokens, (3,))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=NEAR * np.abs(expected).max())


def test_an_output_matrix_of_its_own_is_another_weight(tmp_path: Path) -> None:
    model, waveform, tokens = make_whisper(), noise(9000), np.array([[5, 6, 7]])
    embedding = model.model.decoder.embed_tokens.weight.detach().numpy()
    model.proj_out.weight = torch.nn.Parameter(0.2 * torch.randn(model.proj_out.weight.shape))
    encoder, decoder = (OnnxRuntime(path) for path in _export(tmp_path, model, "portable"))
    expected = torch_logits(model, waveform, tokens)[:, -1:]
    logits = _decode(encoder, decoder, model.model.decoder.embed_tokens, waveform, tokens, (3,))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=NEAR * np.abs(expected).max())
    # The rows that are looked up are beside the graph all the same.
    stored = np.fromfile(tmp_path / "decoder.bin", np.float32, embedding.size).reshape(embedding.shape)
    np.testing.assert_array_equal(stored, embedding)


@pytest.mark.parametrize("kind", ["stock", "ragged"])
@pytest.mark.parametrize("form", FORMS)
def test_no_weight_is_stored_twice(kind: str, form: str, tmp_path: Path) -> None:
    model = small_whisper(kind)
    paths = _export(tmp_path, model, form)
    tensors = [t for path in paths for t in onnx.load(str(path), load_external_data=False).graph.initializer]
    large = [(tuple(t.dims), t.raw_data) for t in tensors if math.prod(t.dims) >= 256 and any(t.raw_data)]
    assert max(Counter(large).values()) == 1
    # What is outside is outside once, too, and all of it is used.
    places = [{entry.key: entry.value for entry in t.external_data} for t in tensors if t.external_data]
    assert len({(place["location"], place["offset"]) for place in places}) == len(places)
    for path in paths:
        size = path.with_suffix(".bin").stat().st_size
        lengths = [int(place["length"]) for place in places if place["location"] == f"{path.stem}.bin"]
        assert size - 4096 * len(lengths) < sum(lengths) <= size
    vocabulary = [t for t in tensors if model.config.vocab_size in t.dims]
    assert [tuple(t.dims) for t in vocabulary] == [tuple(model.proj_out.weight.shape)]
    if kind == "stock":
        stored = sum(math.prod(t.dims) for t in tensors if not t.name.startswith("front_end"))
        assert stored == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.02)


@pytest.mark.parametrize("form", ["portable", "openvino"])
def test_is_valid_onnx_of_plain_operators(form: str, tmp_path: Path) -> None:
    for path in _export(tmp_path, small_whisper("ragged"), form):
        onnx.checker.check_model(str(path), full_check=True)
        assert {node.domain for node in onnx.load(str(path)).graph.node} == {""}


@pytest.mark.parametrize("form", FORMS)
def test_same_model_gives_the_same_bytes(form: str, tmp_path: Path) -> None:
    model = small_whisper("ragged")
    first = [path.read_bytes() for path in _export(tmp_path, model, form)]
    assert [path.read_bytes() for path in _export(tmp_path, model, form)] == first


def test_cache_sizes_are_those_of_the_widths() -> None:
    sizes = cache_sizes(small_whisper("ragged"))
    assert sizes.layers[0] == CacheLayer((2, 9), (2, 6), (2, 100, 16), (2, 100, 12))
    assert sizes.bytes_per_token == 4 * (5 + 9 + 6 + 3 + 8 + 8 + 1 + 8)
    assert sizes.cross_bytes == 4 * 100 * (16 + 2 + 4 + 12 + 1 + 7 + 16 + 16)
    assert sizes.padded_bytes_per_token == 4 * 2 * (9 + 6 + 8 + 8)
    assert sizes.padded_cross_bytes == 4 * 100 * 2 * (16 + 12 + 7 + 16)
    dense = cache_sizes(small_whisper("stock"))
    assert dense.bytes_per_token == dense.padded_bytes_per_token == 2 * 2 * 4 * 32


def test_macs_by_hand() -> None:
    model = make_whisper()  # width 32, two layers each, 100 positions, MLP 48 wide
    macs = count_whisper_macs(model, None, 3)
    vocabulary = model.config.vocab_size
    assert macs.by_kind["convolutions"] == 200 * 240 * 32 + 100 * 96 * 32
    assert macs.by_kind["encoder"] == 2 * (100 * 4 * 32 * 32 + 100 * 100 * 64 + 100 * 2 * 32 * 48)
    assert macs.by_kind["cross_keys_values"] == 2 * 100 * 32 * 64
    looked_at = 1 + 2 + 3
    assert macs.by_kind["decoder"] == 2 * (
        3 * 4 * 32 * 32 + looked_at * 64 + 3 * 2 * 32 * 32 + 3 * 100 * 64 + 3 * 2 * 32 * 48
    )
    assert macs.by_kind["head"] == 3 * 32 * vocabulary
    assert count_whisper_macs(small_whisper("fewer heads"), None, 3).total < macs.total


def test_refuses_a_form_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="form 'fast'"):
        _export(tmp_path, make_whisper(), "fast")
    assert not list(tmp_path.iterdir())
