"""TensorRT and TensorRT-RTX: engines, their cache, sessions on device buffers, and failures, on a fake library."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from leanear.export.artifact import export_artifact
from leanear.export.options import ExportOptions
from leanear.runtimes.artifact import Artifact, read_artifact, read_golden
from leanear.runtimes.backends import engines, onnx_cpu, rtx_gpu
from leanear.runtimes.backends import tensorrt_gpu as nvidia_gpu
from leanear.runtimes.backends.bf16_networks import compute_in_bf16
from leanear.runtimes.backends.engines import ahead_of_time, build_engines, input_spans, unsupported_nodes
from leanear.runtimes.choose import choose_runtime, require_runtime
from leanear.runtimes.errors import BadInput, MeasurementFailed, RuntimeUnavailable
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.guided_steps import guided_logits
from tests.export.whisper_cases import make_extractor, noise, small_artifact, small_speech, small_whisper
from tests.runtimes.fake_tensorrt import FakeCuda, FakeTensorRT
from tests.runtimes.tiny_artifact import WINDOW_SAMPLES, expected_logits, weights, write_tiny_artifact

FP32, FP16, BF16 = (SessionOptions(threads=1, precision=precision) for precision in ("fp32", "fp16", "bf16"))
CLIP = noise(25_000)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    monkeypatch.setenv("LEANEAR_CACHE", str(tmp_path / "cache"))
    return fake


@pytest.fixture
def library(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    fake = FakeTensorRT(cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake


@pytest.fixture
def tiny(tmp_path: Path) -> Artifact:
    write_tiny_artifact(tmp_path / "tiny", weights())
    return read_artifact(tmp_path / "tiny")


@pytest.fixture(scope="module", params=[("stock", "fp32"), ("ragged", "fp16")], ids="-".join)
def speech(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    kind, precision = request.param
    folder, model = tmp_path_factory.mktemp("speech") / kind, small_whisper(kind)
    export_artifact(
        model,
        make_extractor(),
        [noise(20_000)],
        folder,
        ExportOptions(form="tensorrt", source={}, made_from={}, precision=precision),
        small_speech(model),
    )
    return read_artifact(folder)


def _options(artifact: Artifact) -> SessionOptions:
    return FP16 if artifact.manifest.graphs["decoder"].precision == "fp16" else FP32


def test_a_classifier_computes_on_device_buffers_whatever_the_length(library, cuda, tiny):
    session = nvidia_gpu.load(tiny, FP32)
    matrix = weights()
    for samples in (WINDOW_SAMPLES, WINDOW_SAMPLES, WINDOW_SAMPLES, 40, WINDOW_SAMPLES + 9):
        waveform = noise(samples)
        np.testing.assert_allclose(session.run(waveform), expected_logits(waveform, matrix), atol=1e-4)
    facts = session.facts()
    assert facts["runs"]["classifier"]["launched_as_graph"] == cuda.launches == 2
    assert session.take_gpu_ms() == {"inference": 5 * 1.25}
    assert session.take_gpu_ms() == {"inference": 0.0}, "since it was last asked"
    assert facts["execution_devices"] == ["Fake Orin (compute capability 8.7)"]
    assert (facts["version"], facts["precision"]) == ("10.3.0", "fp32")
    session.close()
    assert not cuda.memory


def test_speech_is_that_of_the_other_runtime_through_rooms_rows_and_parents(library, cuda, speech, monkeypatch):
    monkeypatch.setattr("leanear.runtimes.backends.gpu_cache.ROOMS", (8, 32))
    monkeypatch.setattr("leanear.runtimes.backends.engines.ROOMS", (8, 32))
    ours, theirs = nvidia_gpu.load(speech, _options(speech)), onnx_cpu.load(speech, FP32)
    generator = np.random.default_rng(0)
    for session in (ours, theirs):
        session.encode(CLIP)
    steps = 0
    for rows in (1, 3):
        for session in (ours, theirs):
            session.start(rows)
        fed = 0
        for number in range(30):
            new = 3 if number in (0, 5) else 1
            if fed + new > 64:
                break
            tokens = generator.integers(0, 300, (rows, new))
            parents = generator.integers(0, rows, rows) if number % 4 == 3 else None
            expected = theirs.step(tokens, parents)
            np.testing.assert_allclose(ours.step(tokens, parents), expected, atol=2e-3 * np.abs(expected).max())
            fed += new
            steps += 1
    runs = ours.facts()["runs"]
    assert runs["one_token"]["launched_as_graph"] > 20
    assert runs["several_tokens"]["launched_as_graph"] == 0
    gpu_ms = ours.take_gpu_ms()
    assert gpu_ms["encoder"] == 1.25
    assert gpu_ms["first_token"] + gpu_ms["later_tokens"] == 1.25 * steps
    ours.close()
    theirs.close()
    assert not cuda.memory


def test_steps_that_cannot_be_are_refused(library, cuda, speech):
    session = nvidia_gpu.load(speech, _options(speech))
    with pytest.raises(BadInput, match="no encoded window"):
        session.start()
    session.encode(CLIP)
    with pytest.raises(BadInput, match="1 to 8"):
        session.start(9)
    session.start(2)
    with pytest.raises(BadInput, match="expected shape"):
        session.step(np.zeros((1, 1), np.int64))
    session.close()


def test_a_run_that_cannot_be_captured_runs_piece_by_piece_and_the_facts_say_so(library, cuda, tiny):
    library.capturable = False
    session = nvidia_gpu.load(tiny, FP32)
    waveform = noise(WINDOW_SAMPLES)
    for _ in range(3):
        np.testing.assert_allclose(session.run(waveform), expected_logits(waveform, weights()), atol=1e-4)
    runs = session.facts()["runs"]["classifier"]
    assert runs["launched_as_graph"] == 0
    assert "did not run" in runs["not_captured"]


def test_engines_are_built_once_for_a_graph_a_version_a_gpu(library, cuda, tiny, tmp_path, monkeypatch):
    out = tmp_path / "engines"
    assert nvidia_gpu.compile(tiny, FP32, out) == out
    (engine,) = out.glob("*.engine")
    facts = json.loads(engine.with_suffix(".json").read_text())
    assert facts["bytes"] == engine.stat().st_size
    assert facts["built_for"] == {"device": "Fake Orin", "compute_capabilities": ["8.7"], "ahead_of_time": False}
    nvidia_gpu.compile(tiny, FP32, out)
    assert len(library.builds) == 1
    cuda.name = b"Another Orin"
    nvidia_gpu.compile(tiny, FP32, out)
    library.__version__ = "10.4.0"
    nvidia_gpu.compile(tiny, FP32, out)
    assert len(library.builds) == len(list(out.glob("*.engine"))) == 3
    engine.write_bytes(b"damaged")
    cuda.name, library.__version__ = b"Fake Orin", "10.3.0"
    nvidia_gpu.compile(tiny, FP32, out)
    assert len(library.builds) == 4


def test_a_build_is_strongly_typed_without_tf32_and_within_the_free_memory(library, cuda, tiny, tmp_path):
    nvidia_gpu.compile(tiny, FP32, tmp_path)
    ((_, config),) = library.builds
    assert config.cleared == [library.BuilderFlag.TF32]
    assert config.limits == {library.MemoryPoolType.WORKSPACE: 1 << 29}
    (profile,) = config.profiles
    assert profile.spans == {"waveform": ((1, 1), (1, WINDOW_SAMPLES), (1, WINDOW_SAMPLES))}
    assert (tmp_path / "timing.cache").read_bytes() == b"."
    cuda.name = b"Another"
    nvidia_gpu.compile(tiny, FP32, tmp_path)
    assert (tmp_path / "timing.cache").read_bytes() == b".."


def test_a_decoder_takes_its_caches_layer_by_layer(library, speech, tmp_path):
    nvidia_gpu.compile(speech, _options(speech), tmp_path)
    network, config = next((n, c) for n, c in library.builds if n.path.endswith("decoder.onnx"))
    shapes = {tensor.name: tensor.shape for tensor in network.inputs}
    spans = config.profiles[0].spans
    assert {name for name, shape in shapes.items() if -1 in shape} == set(spans)
    assert spans["positions"] == ((1,), (1,), (64,))
    assert spans["bias"] == ((1, 65), (1, 65), (64, 128))
    heads, width = shapes["self_key.0"][1:3]
    assert spans["self_key.0"] == ((1, heads, width, 64), (1, heads, width, 64), (8, heads, width, 64))
    assert spans == input_spans(speech, "decoder", shapes)


def test_attention_that_was_fused_is_counted_beside_what_there_is(library, speech, tmp_path):
    built = build_engines("tensorrt", speech, _options(speech), ahead(library), tmp_path)
    facts = built["decoder"].facts
    layers = len(speech.speech.cache.layers)
    assert facts["attention"] == len(facts["fused_attention"]) == 2 * layers
    assert facts["layers"] == {"gemm": 1, "kgen": 2 * layers}


def ahead(library: FakeTensorRT) -> engines.Place:
    return engines.Place("Fake Orin", ("8.7",), True, 1 << 30)


def test_engines_are_built_ahead_of_time_for_capabilities(cuda, tiny, tmp_path, monkeypatch):
    cuda.devices = 0
    rtx = FakeTensorRT(cuda, "tensorrt_rtx", "1.7.1", capable=True)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    build_engines("tensorrt_rtx", tiny, FP32, ahead_of_time(("8.6", "12.0")), tmp_path)
    ((_, config),) = rtx.builds
    assert config.num_compute_capabilities == 2
    assert config.capabilities == {0: rtx.ComputeCapability.SM86, 1: rtx.ComputeCapability.SM120}
    assert config.limits == {}
    with pytest.raises(BadInput, match=r"8\.7: tensorrt_rtx 1\.7\.1 has none such"):
        build_engines("tensorrt_rtx", tiny, FP32, ahead_of_time(("8.7",)), tmp_path)
    assert "no NVIDIA GPU" in str(rtx_gpu.available())


def test_tensorrt_itself_does_not_build_ahead_of_time(library, tiny, tmp_path):
    with pytest.raises(RuntimeUnavailable, match="only tensorrt_rtx builds ahead of time"):
        build_engines("tensorrt", tiny, FP32, ahead_of_time(("8.7",)), tmp_path)


def test_what_is_missing_is_said_with_what_would_help(monkeypatch, tmp_path, tiny, cuda):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "python3-libnvinfer" in str(nvidia_gpu.available())
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert "pip install tensorrt-rtx" in str(rtx_gpu.available())
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT(cuda, version="8.6.2"))
    assert "8.6.2 is too old" in str(nvidia_gpu.available())
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT(cuda))
    assert nvidia_gpu.available() is None
    cuda.devices = 0
    assert "CUDA driver version is insufficient (error 35)" in str(nvidia_gpu.available())
    with pytest.raises(RuntimeUnavailable, match="no NVIDIA GPU"):
        nvidia_gpu.load(tiny, FP32)
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "pip install cuda-python" in str(nvidia_gpu.available())


def test_a_graph_that_the_parser_refuses_names_the_node(library, tiny, tmp_path):
    assert unsupported_nodes("tensorrt", tiny.graphs["classifier"]) == []
    library.refused = "no importer for it"
    assert unsupported_nodes("tensorrt", tiny.graphs["classifier"]) == ["some.node"]
    with pytest.raises(BadInput, match="some.node: no importer for it"):
        nvidia_gpu.compile(tiny, FP32, tmp_path)


def test_a_build_that_fails_says_the_librarys_last_word_and_leaves_nothing(library, tiny, tmp_path):
    library.fails = True
    with pytest.raises(MeasurementFailed, match="OutOfMemory"):
        nvidia_gpu.compile(tiny, FP32, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_an_engine_of_another_gpu_is_not_loaded(library, tiny):
    library.foreign = True
    with pytest.raises(RuntimeUnavailable, match=r"not an engine for this GPU .*compute capability 8\.9"):
        nvidia_gpu.load(tiny, FP32)


def test_memory_that_cannot_be_had_is_an_error_that_says_so(library, cuda, tiny):
    nvidia_gpu.load(tiny, FP32).close()
    cuda.fails.add("cudaMalloc")
    with pytest.raises(MeasurementFailed, match="cudaMalloc: out of memory"):
        nvidia_gpu.load(tiny, FP32)


def test_the_precision_is_the_graphs_own(library, tiny):
    with pytest.raises(BadInput, match="fp16 was asked for, but the graphs"):
        nvidia_gpu.load(tiny, FP16)
    assert require_runtime("tensorrt", FP16) is nvidia_gpu
    with pytest.raises(BadInput, match="does not compute in int8-bf16"):
        require_runtime("tensorrt", SessionOptions(threads=1, precision="int8-bf16"))


def test_products_in_bfloat16_are_torchs(library, tiny):
    matrix, clip = weights(), noise(WINDOW_SAMPLES)
    session = nvidia_gpu.load(tiny, BF16)
    rounded = [torch.from_numpy(each).to(torch.bfloat16).double().numpy() for each in (clip, matrix)]
    np.testing.assert_allclose(session.run(clip), rounded[0] @ rounded[1], atol=1e-4)
    assert np.abs(session.run(clip) - expected_logits(clip, matrix)).max() > 1e-3
    np.testing.assert_allclose(nvidia_gpu.load(tiny, FP32).run(clip), expected_logits(clip, matrix), atol=1e-4)


@pytest.mark.parametrize("kind", ["ast", "speech"])
def test_a_network_in_bfloat16_keeps_its_front_end_norms_and_softmax(library, kind, tiny_ast, tiny_extractor, tmp_path):
    """What each node of the changed graph reads says in which type it computes."""
    if kind == "ast":
        sources = {"source": {}, "made_from": {}}
        export_artifact(
            tiny_ast, tiny_extractor, [noise(9_000)], tmp_path / "a", ExportOptions(form="tensorrt", **sources)
        )
    else:
        small_artifact(tmp_path / "a", "ragged", "tensorrt", [noise(20_000)])
    artifact = read_artifact(tmp_path / "a")
    build_engines("tensorrt", artifact, BF16, ahead(library), tmp_path / "out")
    for network, _ in library.builds:
        coarse = {name for name, kind in network.kinds.items() if kind == library.DataType.BF16}
        computed = set(coarse)
        for node in network.graph.node:
            if node.op_type == "Cast":
                continue
            reads = computed & set(node.input)
            if node.name.startswith("front_end.") or node.op_type in ("LayerNormalization", "Softmax", "Conv"):
                assert not reads, node.name
                continue
            if node.op_type in ("MatMul", "Gemm"):
                assert reads == set(node.input) - {""}, node.name
            if reads:
                computed |= set(node.output)
        assert coarse
        assert not computed & {value.name for value in (*network.graph.input, *network.graph.output)}
        onnx.checker.check_model(network.path + ".changed.onnx")


def test_speech_in_bfloat16_writes_logits_near_those_in_float32(library, tmp_path):
    small_artifact(tmp_path / "a", "stock", "tensorrt", [noise(20_000)])
    artifact = read_artifact(tmp_path / "a")
    golden = read_golden(artifact)
    logits = [
        guided_logits(nvidia_gpu.load(artifact, options), golden.waveforms[0], 32_000, golden.speech, 0)[0]
        for options in (FP32, BF16)
    ]
    apart = np.sqrt(((logits[0] - logits[1]) ** 2).mean())
    assert 1e-4 < apart / logits[0].std() < 0.15


def test_engines_of_both_precisions_lie_side_by_side(library, tiny, tmp_path):
    found = {
        options.precision: build_engines("tensorrt", tiny, options, ahead(library), tmp_path)["classifier"]
        for options in (FP32, BF16)
    }
    assert found["fp32"].path != found["bf16"].path
    assert len(library.builds) == 2
    build_engines("tensorrt", tiny, BF16, ahead(library), tmp_path)
    assert len(library.builds) == 2, "it is there already"


def test_bfloat16_is_for_gpus_that_have_it(library, cuda, tiny, tmp_path, monkeypatch):
    assert nvidia_gpu.precisions() == rtx_gpu.PRECISIONS == ("fp32", "bf16", "fp16", "int8")
    monkeypatch.setattr(
        cuda, "cudaGetDeviceProperties", lambda device: (0, types.SimpleNamespace(name=b"Xavier", major=7, minor=2))
    )
    assert nvidia_gpu.precisions() == ("fp32", "fp16", "int8")
    with pytest.raises(BadInput, match="tensorrt does not compute in bf16 on this machine"):
        require_runtime("tensorrt", BF16)
    with pytest.raises(BadInput, match=r"capability 7\.2 do not compute in bf16"):
        nvidia_gpu.compile(tiny, BF16, tmp_path)
    cuda.devices = 0
    assert nvidia_gpu.precisions() == nvidia_gpu.PRECISIONS, "no GPU is here to say otherwise"


def test_logits_that_are_not_finite_are_a_failure(library, cuda, tiny, monkeypatch):
    session = nvidia_gpu.load(tiny, FP32)
    monkeypatch.setattr(cuda, "cudaMemcpyAsync", _poisoned(cuda.cudaMemcpyAsync))
    with pytest.raises(MeasurementFailed, match="NaN"):
        session.run(noise(WINDOW_SAMPLES))


def _poisoned(copy):
    def poisoned(target, source, size, kind, stream):
        done = copy(target, source, size, kind, stream)
        if kind == 2:
            import ctypes

            ctypes.memset(target, 0xFF, size)
        return done

    return poisoned


def test_both_are_chosen_by_name():
    assert choose_runtime("tensorrt") is nvidia_gpu
    assert choose_runtime("tensorrt_rtx") is rtx_gpu


def test_the_real_parser_takes_every_node(tmp_path, tiny_ast, tiny_extractor):
    """TensorRT-RTX's own parser, where it is installed: it is the parser of TensorRT."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'leanear[rtx]'")

    from leanear.export.ast.graph import export_ast

    graph = export_ast(tiny_ast, tiny_extractor, tmp_path / "model.onnx", "tensorrt", precision="fp16").path
    assert unsupported_nodes("tensorrt_rtx", graph) == []


def test_the_real_parser_takes_every_node_of_speech(speech):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'leanear[rtx]'")
    for graph in speech.graphs.values():
        assert unsupported_nodes("tensorrt_rtx", graph) == []


def test_the_real_library_takes_a_network_of_bfloat16(tmp_path, tiny_ast, tiny_extractor):
    """TensorRT-RTX says itself in which types the layers of the changed network compute."""
    library = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'leanear[rtx]'")
    sources = {"source": {}, "made_from": {}}
    export_artifact(tiny_ast, tiny_extractor, [noise(9_000)], tmp_path / "a", ExportOptions(form="tensorrt", **sources))
    log = engines._log(library)
    _, network = engines._network(library, log)
    parser = library.OnnxParser(network, log)
    assert parser.parse_from_file(str(tmp_path / "a" / "model.onnx"))
    compute_in_bf16(library, network)
    coarse, fine = set(), set()
    for layer in map(network.get_layer, range(network.num_layers)):
        kinds = {layer.get_input(place).dtype for place in range(layer.num_inputs) if layer.get_input(place)}
        of_layer = coarse if library.DataType.BF16 in kinds else fine if library.DataType.FLOAT in kinds else set()
        of_layer.add("front end" if layer.name.startswith("front_end.") else layer.type.name)
    assert "MATRIX_MULTIPLY" in coarse - fine
    assert {"SOFTMAX", "NORMALIZATION", "CONVOLUTION", "front end"} <= fine - coarse
    assert {network.get_output(0).name, network.get_output(0).dtype} == {"logits", library.DataType.FLOAT}
    assert build_engines("tensorrt_rtx", read_artifact(tmp_path / "a"), BF16, ahead_of_time(("8.9",)), tmp_path)
