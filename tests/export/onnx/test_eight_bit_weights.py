"""Products in 8 bits: the numbers, the graphs that have them, and the proof that they are near enough."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.special
import torch
from onnx import TensorProto, helper

from leanear.export.artifact import export_artifact
from leanear.export.onnx.eight_bit_weights import (
    BLOCK_ZERO,
    add_block_products,
    add_eight_bit_weights,
    block_integers,
    block_length,
    block_scales,
)
from leanear.export.onnx.graph import FORMS, Graph
from leanear.export.onnx.observed import Observed
from leanear.export.onnx.static_eight_bit import add_static_products, column_integers, column_scales
from leanear.export.options import ExportOptions
from leanear.export.parity import prove_parity_here
from leanear.export.whisper.speech_parity import DIVERGENCE_BOUND, changed_words
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.backends.embedding import Embedding
from leanear.runtimes.backends.onnx_cpu import load
from leanear.runtimes.backends.onnx_sessions import OnnxSpeechSession
from leanear.runtimes.choose import choose_runtime
from leanear.runtimes.errors import BadInput, ParityFailed
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.guided_steps import divergences
from tests.export.whisper_cases import noise, small_speech, small_whisper, torch_logits
from tests.whisper_models import make_extractor

CLIPS = [noise(20_000), noise(40_000)]


@pytest.fixture
def _all_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' models are so small that all their weights would be kept."""
    monkeypatch.setattr("leanear.export.onnx.eight_bit_weights.SMALLEST_WEIGHT", 1)


def _calm(kind: str) -> torch.nn.Module:
    """A small Whisper whose logits move little when its weights do, as a trained one's."""
    model = small_whisper(kind)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.mul_(0.25)
    return model


def _export(folder: Path, model: torch.nn.Module, precision: str = "int8", form: str = "onnxruntime") -> Path:
    return export_artifact(
        model,
        make_extractor(),
        CLIPS,
        folder,
        ExportOptions(
            form=form,
            source={},
            made_from={},
            precision=precision,
            quantiser_waveforms=CLIPS if precision == "int8" else (),
        ),
        small_speech(model),
    )


def test_columns_are_within_half_a_step_of_what_they_stand_for() -> None:
    matrix = np.random.default_rng(0).standard_normal((50, 7)).astype(np.float32)
    matrix[:, 2] = 0.0
    integers, scales = column_integers(matrix, in_pairs=False), column_scales(matrix, in_pairs=False)
    assert integers.dtype == np.int8
    assert np.abs(integers).max(axis=0).tolist() == [127, 127, 0, 127, 127, 127, 127]
    assert (np.abs(integers * scales - matrix) <= scales / 2 + 1e-7).all()


@pytest.mark.parametrize("rows", [1, 2, 49, 50])
def test_two_neighbours_products_with_any_unsigned_integers_stay_within_16_bits(rows: int) -> None:
    matrix = np.random.default_rng(rows).standard_normal((rows, 64)).astype(np.float32)
    matrix[:, 3] = np.abs(matrix[:, 3])
    matrix[:, 4] = 0.01
    integers, scales = column_integers(matrix), column_scales(matrix)
    assert (np.abs(integers * scales - matrix) <= scales / 2 + 1e-7).all()
    for first, second in zip(integers[0::2].astype(int), integers[1::2].astype(int), strict=False):
        for left, right in itertools.product((0, 1, 128, 254, 255), repeat=2):
            assert np.abs(left * first + right * second).max() < 2**15
    assert (scales <= 2 * column_scales(matrix, in_pairs=False) + 1e-9).all()
    # where all numbers are of a size, two integers are 127 together
    assert integers[0, 4] in ((63, 64) if rows > 1 else (127,))


@pytest.mark.parametrize(
    ("rows", "block"), [(384, 128), (1536, 128), (120, 128), (144, 16), (96, 32), (30, 32), (3, 16)]
)
def test_blocks_are_within_half_a_step_and_waste_little(rows: int, block: int) -> None:
    assert block_length(rows) == block
    by_column = np.random.default_rng(rows).standard_normal((5, rows)).astype(np.float32)
    by_column[1] = 0.0
    integers, scales = block_integers(by_column, block), block_scales(by_column, block)
    assert integers.shape == (5, -(-rows // block), block)
    values = ((integers.astype(np.float32) - BLOCK_ZERO) * scales[..., None]).reshape(5, -1)
    assert not values[:, rows:].any()
    assert (np.abs(values[:, :rows] - by_column) <= np.repeat(scales, block, axis=1)[:, :rows] / 2 + 1e-7).all()


WAYS = {
    "static onnxruntime": ({"QuantizeLinear", "QGemm"}, {"MatMul", "Gemm"}),
    "static openvino": ({"QuantizeLinear", "DequantizeLinear"}, {"QGemm"}),
    "blocks": ({"MatMulNBits"}, {"MatMul", "Gemm"}),
    "columns": ({"DequantizeLinear", "Gemm"}, {"QuantizeLinear", "MatMul"}),
}


@pytest.mark.parametrize("way", sorted(WAYS))
@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "Gemm of a transposed weight", "Gemm that adds a matrix"])
def test_a_product_in_8_bits_is_near_the_one_it_replaces(way: str, kind: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    source = generator.standard_normal((6, 192)).astype(np.float32)
    matrix = generator.standard_normal((192, 64)).astype(np.float32)
    bias, more = (generator.standard_normal(size).astype(np.float32) for size in ((64,), (6, 64)))
    graph, expected = Graph(), source @ matrix
    inputs = ["source", graph.weight("weight", (64, 192) if "transposed" in kind else (192, 64),
                                     lambda: matrix.T if "transposed" in kind else matrix)]  # fmt: skip
    if kind == "MatMul":
        graph.node("MatMul", inputs, "product")
    elif "adds" in kind:
        graph.node("Gemm", [*inputs, "more"], "product")
        expected = expected + more
    else:
        attributes = {"transB": 1} if "transposed" in kind else {}
        graph.node("Gemm", [*inputs, graph.weight("bias", (64,), lambda: bias)], "product", **attributes)
        expected = expected + bias
    if way == "blocks":
        add_block_products(graph)
    elif way == "columns":
        add_eight_bit_weights(graph)
    else:
        seen = {"source": Observed(source.min(axis=0), source.max(axis=0))}
        add_static_products(graph, seen, way.split()[1], lambda _: False)
    feeds = {"source": source, **({"more": more} if "adds" in kind else {})}
    declared = [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in feeds.items()]
    graph.write(
        tmp_path / "m.onnx", declared, [helper.make_tensor_value_info("product", TensorProto.FLOAT, [6, 64])], "m"
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    operators = {node.op_type for node in onnx.load(str(tmp_path / "m.onnx")).graph.node}
    assert operators >= WAYS[way][0]
    assert not operators & WAYS[way][1]
    product = session.run(None, feeds)[0]
    assert 1e-6 < np.abs(product - expected).max() / np.abs(expected).max() < 0.03


@pytest.mark.usefixtures("_all_products")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["stock", "ragged"])
def test_proved_with_the_noise_in_the_manifest(kind: str, form: str, tmp_path: Path) -> None:
    folder = _export(tmp_path / "artifact", _calm(kind), form=form)
    parity = prove_parity_here(folder)
    assert parity.precision == "int8"
    assert parity.noise is None
    assert parity.divergence is not None
    assert 1e-6 < parity.divergence <= parity.bound == DIVERGENCE_BOUND
    assert parity.runtime == ("openvino" if form == "openvino" else "onnxruntime")
    assert parity.words is not None
    assert parity.changed_words is not None
    assert 0 <= parity.changed_words <= 0.2 * parity.words
    assert (parity.tokens, parity.clips) == (48, 2)
    assert "nats a token (bound 0.03) and change" in parity.sentence
    artifact = read_artifact(folder)
    assert artifact.manifest.parity["divergence"] == parity.divergence
    precisions = {role: graph.precision for role, graph in artifact.manifest.graphs.items()}
    assert precisions == {"encoder": "int8", "decoder": "fp16" if form == "tensorrt" else "int8"}


@pytest.mark.usefixtures("_all_products")
def test_divergence_and_words_over_their_bounds_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _export(tmp_path / "artifact", _calm("stock"))
    monkeypatch.setattr("leanear.export.whisper.speech_parity.DIVERGENCE_BOUND", 1e-7)
    with pytest.raises(ParityFailed, match=r"8 bits cost .* nats a token on golden clips; the bound is 1e-07"):
        prove_parity_here(folder)
    monkeypatch.setattr("leanear.export.whisper.speech_parity.DIVERGENCE_BOUND", 1.0)
    monkeypatch.setattr("leanear.export.whisper.speech_parity.CHANGED_WORDS_SHARE", -1.0)
    with pytest.raises(ParityFailed, match=r"8 bits change \d+ of \d+ words of golden clips"):
        prove_parity_here(folder)
    assert read_artifact(folder).manifest.parity is None


def test_divergences_are_those_of_scipy_with_the_tokens_left_out_as_one() -> None:
    generator = np.random.default_rng(3)
    expected, found = (2 * generator.standard_normal((5, 40)).astype(np.float32) for _ in range(2))
    columns = np.array([0, 3, 4, 17, 38])
    sums = np.log(np.exp(expected.astype(np.float64)).sum(axis=1)).astype(np.float32)

    def lumped(logits: np.ndarray) -> np.ndarray:
        shares = scipy.special.softmax(logits.astype(np.float64), axis=1)
        return np.concatenate([shares[:, columns], 1 - shares[:, columns].sum(axis=1, keepdims=True)], axis=1)

    wanted = scipy.special.rel_entr(lumped(expected), lumped(found)).sum(axis=1)
    np.testing.assert_allclose(divergences(expected[:, columns], sums, found, columns), wanted, rtol=1e-4)
    whole = divergences(expected, sums, found, np.arange(40))
    shares = [scipy.special.softmax(logits.astype(np.float64), axis=1) for logits in (expected, found)]
    np.testing.assert_allclose(whole, scipy.special.rel_entr(*shares).sum(axis=1), rtol=1e-4)
    assert (wanted <= whole + 1e-9).all()


@pytest.mark.parametrize(
    ("expected", "found", "counts"),
    [
        ("The cat sat.", " the  CAT sat.", (0, 3)),
        ("the cat sat", "the dog sat down", (2, 3)),
        ("the cat sat", "", (3, 3)),
        ("", "hello you", (2, 0)),
        ("こんにちは", "こんばんは", (2, 5)),
    ],
)
def test_words_are_counted_by_hand(expected: str, found: str, counts: tuple[int, int]) -> None:
    assert changed_words(expected, found) == counts


@pytest.mark.usefixtures("_all_products")
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_session_decodes_in_8_bits_and_says_so(runtime: str, tmp_path: Path) -> None:
    model = _calm("ragged")
    artifact = read_artifact(_export(tmp_path / "artifact", model, form=runtime))
    module = choose_runtime(runtime)
    if "int8" not in module.precisions():
        pytest.skip(f"{runtime} does not compute in 8 bits on this CPU")
    session = module.load(artifact, SessionOptions(threads=1, precision="int8"))
    if runtime == "onnxruntime":
        assert isinstance(session, OnnxSpeechSession)
        assert session.facts()["precision"] == "int8"
    tokens = np.random.default_rng(0).integers(0, 300, (2, 5))
    expected = torch_logits(model, CLIPS[0], tokens)
    session.encode(CLIPS[0])
    session.start(2)
    for place in range(5):
        logits = session.step(tokens[:, place : place + 1])
        assert np.abs(logits - expected[:, place]).std() < 0.1 * expected[:, place].std()
    session.close()


@pytest.mark.usefixtures("_all_products")
def test_rows_of_the_embedding_are_those_that_the_graph_multiplies_with(tmp_path: Path) -> None:
    model = _calm("stock")
    weights = model.proj_out.weight.detach().numpy()
    for precision, tolerance in (("fp32", 0.0), ("int8", 0.5 / 127)):
        artifact = read_artifact(_export(tmp_path / precision, model, precision))
        embedding, tokens = Embedding(artifact), np.array([[0, 386], [5, 77]])
        rows = np.zeros((2, 2, weights.shape[1]), np.float32)
        embedding.read(tokens, rows)
        embedding.close()
        largest = np.abs(weights[tokens]).max(axis=-1, keepdims=True)
        assert (np.abs(rows - weights[tokens]) <= tolerance * largest * 1.001).all()
    # It is stored once, in bytes.
    data = (tmp_path / "int8" / "decoder.bin").stat().st_size
    assert data < (tmp_path / "fp32" / "decoder.bin").stat().st_size / 2


def test_front_end_and_norms_stay_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanear.export.onnx.eight_bit_weights.SMALLEST_WEIGHT", 1)
    _export(tmp_path / "artifact", small_whisper("stock"))
    nodes = onnx.load(str(tmp_path / "artifact" / "encoder.onnx"), load_external_data=False).graph.node
    kinds = {node.name: node.op_type for node in nodes}
    assert kinds["front_end.spectrum"] == kinds["front_end.mel"] == "MatMul"
    assert kinds["encoder.layers.0.wide"] == "QGemm"
    decoder = onnx.load(str(tmp_path / "artifact" / "decoder.onnx"), load_external_data=False).graph
    types = {tensor.name: tensor.data_type for tensor in decoder.initializer}
    assert types["decoder.embedding"] == TensorProto.UINT8
    assert types["decoder.layers.0.self_attn_layer_norm.scale"] == TensorProto.FLOAT


def test_what_is_not_offered_is_refused(tmp_path: Path) -> None:
    model = small_whisper("stock")
    with pytest.raises(BadInput, match="precision 'int4'"):
        export_artifact(
            model,
            make_extractor(),
            CLIPS,
            tmp_path / "a",
            ExportOptions(form="onnxruntime", source={}, made_from={}, precision="int4", quantiser_waveforms=CLIPS),
            small_speech(model),
        )
    with pytest.raises(BadInput, match="precision 'int8': at least one clip is needed"):
        export_artifact(
            model,
            make_extractor(),
            CLIPS,
            tmp_path / "a",
            ExportOptions(form="onnxruntime", source={}, made_from={}, precision="int8"),
            small_speech(model),
        )
    fp32, int8 = (read_artifact(_export(tmp_path / precision, model, precision)) for precision in ("fp32", "int8"))
    with pytest.raises(BadInput, match="precision: fp32 was asked for, but the graphs of .* are int8"):
        load(int8, SessionOptions(threads=1))
    with pytest.raises(BadInput, match="precision: int8 was asked for, but the graphs of .* are fp32"):
        load(fp32, SessionOptions(threads=1, precision="int8"))
