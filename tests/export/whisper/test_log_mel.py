"""The graph's log-mel front end against transformers' own extractor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from onnx import TensorProto, helper
from transformers import WhisperFeatureExtractor

from leanear.export.onnx.graph import Graph
from leanear.export.whisper.log_mel import add_log_mel, read_log_mel
from leanear.runtimes.errors import BadInput

WINDOW = 2 * 16000


def _write(path: Path, extractor: WhisperFeatureExtractor) -> Path:
    graph, log_mel = Graph(), read_log_mel(extractor)
    result = add_log_mel(graph, "waveform", log_mel)
    source = helper.make_tensor_value_info("waveform", TensorProto.FLOAT, [1, "samples"])
    shape = [log_mel.frames, log_mel.mel_bins]
    graph.write(path, [source], [helper.make_tensor_value_info(result, TensorProto.FLOAT, shape)], "log_mel")
    onnx.checker.check_model(str(path), full_check=True)
    return path


@pytest.fixture(scope="module")
def extractor() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(chunk_length=2)


@pytest.fixture(scope="module")
def path(extractor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("log_mel") / "log_mel.onnx", extractor)


@pytest.fixture(scope="module")
def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _features(session: onnxruntime.InferenceSession, clip: np.ndarray) -> np.ndarray:
    return session.run(None, {"waveform": clip[None].astype(np.float32)})[0]


def _reference(extractor: WhisperFeatureExtractor, clip: np.ndarray) -> np.ndarray:
    return extractor(clip.astype(np.float32), sampling_rate=extractor.sampling_rate)["input_features"][0].T


def _noise(samples: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(samples).standard_normal(samples)


def _tone(hertz: float, amplitude: float) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(WINDOW) / 16000)


def _speech_like() -> np.ndarray:
    """A buzz of 120 Hz whose loudness and colour change, with a pause."""
    time_s = np.arange(WINDOW) / 16000
    buzz = sum(np.sin(2 * np.pi * 120 * overtone * time_s) / overtone for overtone in range(1, 40))
    loudness = np.clip(np.sin(2 * np.pi * 2 * time_s), 0, 1) * (time_s < 1.3)
    return 0.1 * buzz * loudness + 1e-4 * _noise(WINDOW)


CLIPS = {
    "noise": _noise(WINDOW),
    "quiet noise": 1e-3 * _noise(WINDOW),
    "speech-like": _speech_like(),
    "low tone": _tone(100.0, 0.3),
    "full-scale tone": _tone(997.0, 1.0),
    "silence": np.zeros(WINDOW),
    "offset alone": np.full(WINDOW, 0.5),
    "click": np.eye(1, WINDOW, 5000)[0],
    "click at the first sample": np.eye(1, WINDOW, 0)[0],
    "click at the last sample": np.eye(1, WINDOW, WINDOW - 1)[0],
    "short": _noise(WINDOW // 3),
    "one sample short of the window": _noise(WINDOW - 1),
    "one sample longer than the window": _noise(WINDOW + 1),
    "long": _noise(3 * WINDOW),
    "one sample": np.array([0.5]),
    "less than a hop": _noise(159),
}


@pytest.mark.parametrize("name", CLIPS)
def test_agrees_with_the_extractor(session: onnxruntime.InferenceSession, extractor, name: str) -> None:
    expected = _reference(extractor, CLIPS[name])
    # A pure tone or offset leaves bins 8 decades under the loudest one, where float32 has few digits left.
    tolerance = 2e-3 if "tone" in name or "offset" in name else 1e-4
    np.testing.assert_allclose(_features(session, CLIPS[name]), expected, rtol=0, atol=tolerance)


def test_openvino_agrees_too(path: Path, extractor) -> None:
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for name in ("noise", "short", "long", "one sample"):
        clip = CLIPS[name][None].astype(np.float32)
        np.testing.assert_allclose(compiled([clip])[0], _reference(extractor, CLIPS[name]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"feature_size": 128, "chunk_length": 1},
        {"sampling_rate": 8000, "chunk_length": 3},
        {"n_fft": 512, "hop_length": 128, "chunk_length": 1},
        {"n_fft": 400, "hop_length": 300, "chunk_length": 1},
    ],
)
def test_takes_every_setting_from_the_extractor(tmp_path: Path, settings: dict) -> None:
    extractor = WhisperFeatureExtractor(**settings)
    path = _write(tmp_path / "log_mel.onnx", extractor)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    clip = _noise(7000)
    np.testing.assert_allclose(_features(session, clip), _reference(extractor, clip), rtol=0, atol=1e-4)


def test_the_file_holds_no_waveform_of_silence(path: Path) -> None:
    assert all(np.prod(tensor.dims) < WINDOW * 12 for tensor in onnx.load(str(path)).graph.initializer)
    assert "front_end.silence" in {tensor.name for tensor in onnx.load(str(path)).graph.initializer}


@pytest.mark.parametrize(
    ("settings", "message"), [({"dither": 1e-5}, "dither"), ({"padding_value": 1.0}, "padding_value is 1.0")]
)
def test_refuses_what_a_graph_cannot_repeat(settings: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_log_mel(WhisperFeatureExtractor(**settings))
