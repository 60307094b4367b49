"""The graph's front end against transformers' own extractor."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from transformers import ASTFeatureExtractor

from leanear.export.ast.front_end import FrontEnd, add_front_end, read_front_end
from leanear.export.onnx.graph import Graph

FRAMES, MEL_BINS = 120, 128
WINDOW = 400 + 160 * (FRAMES - 1)


def _session(path: Path, front_end: FrontEnd) -> onnxruntime.InferenceSession:
    graph = Graph()
    result = add_front_end(graph, "waveform", front_end)
    source = helper.make_tensor_value_info("waveform", TensorProto.FLOAT, [1, "samples"])
    shape = [1, front_end.frames, front_end.mel_bins]
    graph.write(path, [source], [helper.make_tensor_value_info(result, TensorProto.FLOAT, shape)], "front_end")
    onnx.checker.check_model(str(path), full_check=True)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    extractor = ASTFeatureExtractor(max_length=FRAMES, num_mel_bins=MEL_BINS)
    return _session(tmp_path_factory.mktemp("front_end") / "front_end.onnx", read_front_end(extractor))


def _features(session: onnxruntime.InferenceSession, clip: np.ndarray) -> np.ndarray:
    return session.run(None, {"waveform": clip[None].astype(np.float32)})[0]


def _reference(extractor: ASTFeatureExtractor, clip: np.ndarray) -> np.ndarray:
    return extractor(clip.astype(np.float32), sampling_rate=16000, return_tensors="np")["input_values"]


def _noise(samples: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(samples).standard_normal(samples)


def _tone(hertz: float, amplitude: float) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(WINDOW) / 16000)


CLIPS = {
    "noise": _noise(WINDOW),
    "quiet noise": 1e-3 * _noise(WINDOW),
    "low tone": _tone(100.0, 0.3),
    "high tone": _tone(7000.0, 0.3),
    "full-scale tone": _tone(997.0, 1.0),
    "tone and noise": _tone(440.0, 0.5) + 0.01 * _noise(WINDOW),
    "silence": np.zeros(WINDOW),
    "offset alone": np.full(WINDOW, 0.5),
    "noise with offset": 0.5 + 0.1 * _noise(WINDOW),
    "click": np.eye(1, WINDOW, 5000)[0],
    "short": _noise(WINDOW // 3),
    "one sample short of the window": _noise(WINDOW - 1),
    "long": _noise(3 * WINDOW),
    "no whole frame": _noise(399),
    "fewest samples that the extractor takes": _noise(240),
    "one frame": _noise(400),
    "one sample short of two frames": _noise(559),
    "two frames": _noise(560),
}


@pytest.mark.parametrize("name", CLIPS)
def test_agrees_with_the_extractor(session: onnxruntime.InferenceSession, name: str) -> None:
    extractor = ASTFeatureExtractor(max_length=FRAMES, num_mel_bins=MEL_BINS)
    expected = _reference(extractor, CLIPS[name])
    # A pure tone leaves bins at the floor of 1e-7 beside bins of 1e3; there float32 has few digits left of the former.
    tolerance = 1e-3 if "tone" in name else 3e-4
    np.testing.assert_allclose(_features(session, CLIPS[name]), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("samples", [0, 1, 239])
def test_clips_too_short_for_the_extractor_are_padding_alone(
    session: onnxruntime.InferenceSession, samples: int
) -> None:
    extractor = ASTFeatureExtractor(max_length=FRAMES, num_mel_bins=MEL_BINS)
    padding = _reference(extractor, _noise(240))
    assert np.ptp(padding) == 0
    np.testing.assert_allclose(_features(session, np.ones(samples)), padding, rtol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_mel_bins": 64, "max_length": 33},
        {"do_normalize": False},
        {"mean": -6.8, "std": 5.5},
        {"sampling_rate": 8000, "num_mel_bins": 40},
    ],
)
def test_takes_every_setting_from_the_extractor(tmp_path: Path, settings: dict) -> None:
    extractor = ASTFeatureExtractor(**{"max_length": FRAMES, **settings})
    session = _session(tmp_path / "front_end.onnx", read_front_end(extractor))
    clip = _noise(7000).astype(np.float32)
    expected = extractor(clip, sampling_rate=extractor.sampling_rate, return_tensors="np")["input_values"]
    np.testing.assert_allclose(_features(session, clip), expected, rtol=0, atol=5e-4)


def test_of_empty_filters_nothing_is_said_and_who_else_makes_some_is_warned() -> None:
    front_end = FrontEnd(16_000, MEL_BINS, FRAMES, normalised=False, mean=0.0, std=1.0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert not front_end.mel_filters().any(axis=0).all()
        assert not said
        ASTFeatureExtractor(max_length=FRAMES, num_mel_bins=MEL_BINS)
    assert ["mel filter has all zero values" in str(each.message) for each in said] == [True]
