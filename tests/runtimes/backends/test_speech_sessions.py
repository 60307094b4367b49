"""Sessions that decode speech: every runtime gives torch's logits, whatever the steps, rows and parents."""

from __future__ import annotations

import numpy as np
import pytest

from leanear.runtimes.artifact import Artifact
from leanear.runtimes.backends.null_sessions import said_tokens
from leanear.runtimes.choose import choose_runtime
from leanear.runtimes.errors import BadInput, MeasurementFailed
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.speech_cache import ROOMS, SpeechCache
from tests.export.whisper_cases import WINDOW_SAMPLES, noise, small_artifact, small_whisper, torch_logits

REAL_RUNTIMES = ("onnxruntime", "openvino")
KINDS = ("stock", "ragged")
CLIP = noise(25_000)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("speech")
    return {kind: small_artifact(folder / kind.replace(" ", "-"), kind) for kind in KINDS}


@pytest.fixture(params=[(runtime, kind) for runtime in REAL_RUNTIMES for kind in KINDS], ids="-".join)
def loaded(request: pytest.FixtureRequest, artifacts, monkeypatch: pytest.MonkeyPatch):
    runtime, kind = request.param
    monkeypatch.setattr("leanear.runtimes.speech.speech_cache.ROOMS", (8, 32))
    session = choose_runtime(runtime).load(artifacts[kind], SessionOptions(threads=1))
    yield session, small_whisper(kind)
    session.close()


def _tokens(rows: int, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 300, (rows, count))


def _check(logits: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_logits_are_torchs_through_every_room(loaded):
    session, model = loaded
    tokens = _tokens(1, 64)
    expected = torch_logits(model, CLIP, tokens)
    session.encode(CLIP)
    for _ in range(2):  # the second time in buffers that hold the first one's rows
        session.start()
        for place in range(64):
            _check(session.step(tokens[:, place : place + 1]), expected[:, place])
    with pytest.raises(BadInput, match="64 positions"):
        session.step(tokens[:, :1])


def test_tokens_at_once_are_tokens_one_by_one(loaded):
    session, model = loaded
    tokens = _tokens(2, 9)
    expected = torch_logits(model, CLIP, tokens)
    session.encode(CLIP)
    for steps in ((9,), (1, 3, 3, 1, 1), (4, 5), (1, 1, 7)):
        session.start(2)
        fed = 0
        for new in steps:
            logits = session.step(tokens[:, fed : fed + new])
            fed += new
            _check(logits, expected[:, fed - 1])


def test_rows_and_parents_are_separate_decoding(loaded):
    session, model = loaded
    session.encode(CLIP)
    session.start(4)
    tokens = _tokens(4, 3)
    session.step(tokens)
    for parents, seed in (([0, 0, 2, 1], 1), ([3, 2, 1, 0], 2), ([1, 1, 1, 1], 3), ([0, 1, 2, 3], 4)):
        new = _tokens(4, 1 + seed % 2, seed)
        tokens = np.concatenate([tokens[parents], new], axis=1)
        _check(session.step(new, np.array(parents)), torch_logits(model, CLIP, tokens)[:, -1])


def test_windows_and_numbers_of_rows_follow_one_another(loaded):
    session, model = loaded
    for samples, rows in ((1000, 1), (WINDOW_SAMPLES, 3), (3 * WINDOW_SAMPLES, 1), (1, 2)):
        clip, tokens = noise(samples), _tokens(rows, 5, samples)
        session.encode(clip)
        session.start(rows)
        _check(session.step(tokens), torch_logits(model, clip, tokens)[:, -1])


@pytest.mark.parametrize("runtime", REAL_RUNTIMES)
def test_a_step_copies_no_cache(runtime, artifacts):
    session = choose_runtime(runtime).load(artifacts["stock"], SessionOptions(threads=1))
    session.encode(CLIP)
    session.start(2)
    session.step(_tokens(2, 3))
    cache = session._cache
    before = {name: buffer.ctypes.data for name, buffer in cache.buffers.items()}
    kept = {name: buffer.copy() for name, buffer in cache.buffers.items()}
    crossed = {name: (buffer.ctypes.data, buffer.copy()) for name, buffer in session._crossed.arrays.items()}
    for place in range(3, 12):
        session.step(_tokens(2, 1, place))
        assert {name: buffer.ctypes.data for name, buffer in cache.buffers.items()} == before
    for name, buffer in cache.buffers.items():
        position_axis = 3 if "key" in name else 2
        old = np.take(buffer, range(3), axis=position_axis)
        np.testing.assert_array_equal(old, np.take(kept[name], range(3), axis=position_axis))
        new = np.take(buffer, range(3, 12), axis=position_axis)
        assert np.abs(new).min(axis=position_axis).max() > 0
        assert not np.take(buffer, range(12, buffer.shape[position_axis]), axis=position_axis).any()
    for name, (place, values) in crossed.items():
        assert session._crossed.arrays[name].ctypes.data == place
        np.testing.assert_array_equal(session._crossed.arrays[name], values)
    # The encoder writes another window's keys and values to the same memory, where the decoder reads them.
    session.encode(noise(31_000))
    assert all(session._crossed.arrays[name].ctypes.data == place for name, (place, _) in crossed.items())
    assert any((session._crossed.arrays[name] != values).any() for name, (_, values) in crossed.items())
    session.close()


@pytest.mark.parametrize("runtime", REAL_RUNTIMES)
def test_facts_report_threads_and_precision(runtime, artifacts):
    session = choose_runtime(runtime).load(artifacts["stock"], SessionOptions(threads=2))
    facts = session.facts()
    session.close()
    assert facts["threads"] == 2
    assert facts.get("precision", "fp32") == "fp32"
    assert facts.get("INFERENCE_PRECISION_HINT", "f32") == "f32"


@pytest.mark.parametrize("runtime", [*REAL_RUNTIMES, "null"])
def test_what_does_not_fit_is_refused(runtime, artifacts):
    session = choose_runtime(runtime).load(artifacts["stock"], SessionOptions(threads=1))
    with pytest.raises(BadInput, match="nothing was started"):
        session.step(_tokens(1, 1))
    session.encode(CLIP)
    session.start(2)
    for tokens, parents, message in (
        (_tokens(1, 1), None, r"expected shape \(2, n\)"),
        (np.zeros((2, 0), np.int64), None, r"expected shape \(2, n\)"),
        (np.full((2, 1), 387), None, "of the vocabulary"),
        (np.full((2, 1), -1), None, "of the vocabulary"),
        (_tokens(2, 65), None, "64 positions"),
        (_tokens(2, 1), np.array([0]), "parents"),
        (_tokens(2, 1), np.array([0, 2]), "parents"),
    ):
        with pytest.raises(BadInput, match=message):
            session.step(tokens, parents)
    session.close()


@pytest.mark.parametrize("runtime", REAL_RUNTIMES)
def test_nothing_starts_before_a_window_and_nan_is_a_failed_measurement(runtime, artifacts):
    session = choose_runtime(runtime).load(artifacts["stock"], SessionOptions(threads=1))
    with pytest.raises(BadInput, match="no encoded window"):
        session.start()
    with pytest.raises(BadInput, match="NaN"):
        session.encode(np.array([np.nan], np.float32))
    session.encode(CLIP)
    session.start()
    expected = session.step(_tokens(1, 1)).copy()
    session.start()
    session._crossed.arrays["cross_value.0"][...] = np.nan
    for _ in range(3):
        with pytest.raises(MeasurementFailed, match="NaN"):
            session.step(_tokens(1, 1))
    session.encode(CLIP)  # nothing is left of it
    session.start()
    np.testing.assert_array_equal(session.step(_tokens(1, 1)), expected)
    session.close()


@pytest.mark.parametrize("runtime", REAL_RUNTIMES)
def test_a_damaged_graph_is_one_clear_line(runtime, artifacts, tmp_path):
    from dataclasses import replace

    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph at all")
    artifact = artifacts["stock"]
    for role in artifact.graphs:
        with pytest.raises(BadInput, match=r"broken\.onnx") as caught:
            choose_runtime(runtime).load(
                replace(artifact, graphs={**artifact.graphs, role: broken}), SessionOptions(threads=1)
            )
        assert "\n" not in str(caught.value)


def test_a_cache_grows_in_steps_and_keeps_what_is_in_it():
    cache = SpeechCache({"k": (2, 3)}, {"v": (2, 5)}, positions=ROOMS[0] + 10)
    assert cache.start(1)
    assert cache.room == ROOMS[0]
    generator, fed = np.random.default_rng(0), []
    for place in range(ROOMS[0] + 10):
        grown = cache.reserve(1)
        assert grown == (place == ROOMS[0])
        bias = cache.bias(1)
        assert (bias[0, :place] == 0).all()
        assert (bias[0, place:-1] < -1e29).all()
        assert bias[0, -1] == 0
        key, value = generator.standard_normal((1, 2, 3, 1)), generator.standard_normal((1, 2, 1, 5))
        fed.append((key, value))
        cache.append({"k": key.astype(np.float32), "v": value.astype(np.float32)})
    np.testing.assert_allclose(cache.buffers["k"], np.concatenate([key for key, _ in fed], axis=3), rtol=1e-6)
    np.testing.assert_allclose(cache.buffers["v"], np.concatenate([value for _, value in fed], axis=2), rtol=1e-6)
    assert cache.start(1)
    assert (cache.room, cache.filled) == (ROOMS[0], 0)
    assert (cache.bias(3)[:, :-3] < -1e29).all()
    np.testing.assert_array_equal(cache.bias(3)[:, -3:] == 0, np.tri(3) == 1)


def test_a_cache_has_its_memory_once():
    cache = SpeechCache({"k": (2, 3)}, {"v": (2, 5)}, positions=300)
    places = set()
    for rows in (3, 1, 2, 3):
        cache.start(rows)
        while cache.filled < 300:
            cache.reserve(30)
            cache.append(cache.new_rows(30))
            places.add((cache.buffers["k"].ctypes.data, cache.buffers["v"].ctypes.data))
            assert cache.buffers["k"].flags.c_contiguous
    assert len(places) == 1
    cache.start(4)
    assert cache.buffers["k"].shape == (4, 2, 3, ROOMS[0])


def test_buffers_begin_on_a_cache_line(artifacts):
    session = choose_runtime("onnxruntime").load(artifacts["ragged"], SessionOptions(threads=1))
    session.encode(CLIP)
    session.start(3)
    buffers = [*session._crossed.arrays.values(), *session._cache.buffers.values()]
    assert all(buffer.ctypes.data % 64 == 0 for buffer in buffers)
    session.close()


def test_null_says_what_the_waveform_tells_it_to(artifacts):
    artifact = artifacts["stock"]
    decoding = artifact.speech.decoding
    waveform = np.zeros(WINDOW_SAMPLES, np.float32)
    waveform[:4000], waveform[8000:12000] = 0.065, -0.110
    assert said_tokens(artifact, waveform) == [65, 110]
    session = choose_runtime("null").load(artifact, SessionOptions(threads=1))
    session.encode(waveform)
    session.start(2)
    start = np.full((2, 1), decoding.start)
    assert session.step(start).argmax(axis=1).tolist() == [decoding.languages["en"]] * 2
    prompt = np.tile([decoding.languages["en"], decoding.transcribe, decoding.no_timestamps], (2, 1))
    assert session.step(prompt).argmax(axis=1).tolist() == [65, 65]
    assert session.step(np.array([[65], [decoding.timestamp_begin]])).argmax(axis=1).tolist() == [110, 65]
    assert session.step(np.array([[110], [65]]), np.array([0, 0])).argmax(axis=1).tolist() == [decoding.end] * 2
    session.encode(np.zeros(5, np.float32))
    session.start()
    assert session.step(start[:1]).argmax() == decoding.no_speech
    session.close()


@pytest.mark.parametrize("runtime", REAL_RUNTIMES)
def test_a_graph_in_float16_gives_torchs_logits_as_near_as_float16_is(runtime, tmp_path):
    """Its keys and values lie in memory of float16 on either runtime."""
    artifact = small_artifact(tmp_path / "half", form="tensorrt", precision="fp16")
    session = choose_runtime(runtime).load(artifact, SessionOptions(threads=1, precision="fp32"))
    tokens = _tokens(1, 12)
    expected = torch_logits(small_whisper("stock"), CLIP, tokens)
    session.encode(CLIP)
    session.start()
    for place in range(12):
        logits = session.step(tokens[:, place : place + 1])
        np.testing.assert_allclose(logits, expected[:, place], rtol=0, atol=2e-2 * np.abs(expected).max())
    session.close()
