"""What sessions take: floats of any width, 16-bit PCM scaled, nothing else; and a note where a window is too short."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.audio.waveforms import checked_waveform
from leanear.runtimes.choose import choose_runtime
from leanear.runtimes.errors import BadInput
from leanear.runtimes.sessions import SessionOptions
from tests.runtimes.tiny_artifact import WINDOW_SAMPLES, expected_logits, weights, write_tiny_artifact

RUNTIMES = ("onnxruntime", "openvino", "null")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return read_artifact(write_tiny_artifact(tmp_path_factory.mktemp("tiny") / "artifact", weights()))


@pytest.fixture(params=RUNTIMES)
def session(request, artifact):
    session = choose_runtime(request.param).load(artifact, SessionOptions(threads=1))
    yield session
    session.close()


def pcm(samples: int = WINDOW_SAMPLES) -> np.ndarray:
    values = np.random.default_rng(0).integers(-32768, 32768, samples).astype(np.int16)
    values[:2] = (-32768, 32767)[:samples]
    return values


def test_pcm_is_scaled_to_full_scale():
    found = checked_waveform(pcm())
    assert found.dtype == np.float32
    assert found.shape == (1, WINDOW_SAMPLES)
    np.testing.assert_array_equal(found[0].astype(np.float64), pcm() / 32768)
    assert (found[0, 0], found[0, 1]) == (-1.0, 32767 / 32768)


@pytest.mark.parametrize("kind", ["<i2", ">i2", "<f2", ">f4", "<f8"])
def test_every_width_and_order_of_bytes_is_the_same_sound(kind):
    quarters = np.array([-1.0, -0.5, 0.0, 0.25, 0.75])
    given = (quarters * 32768).astype(kind) if kind.endswith("i2") else quarters.astype(kind)
    before = given.copy()
    np.testing.assert_array_equal(checked_waveform(given)[0], quarters)
    np.testing.assert_array_equal(given, before)


def test_pcm_gives_the_logits_of_the_same_floats(session):
    floats = pcm() / 32768
    np.testing.assert_array_equal(session.run(pcm()), session.run(floats.astype(np.float32)))
    np.testing.assert_array_equal(session.run(floats), session.run(floats.astype(np.float32)))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_pcm_gives_numpys_logits(artifact, name):
    session = choose_runtime(name).load(artifact, SessionOptions(threads=1))
    np.testing.assert_allclose(session.run(pcm()), expected_logits(pcm() / 32768, weights()), rtol=1e-4, atol=1e-4)
    session.close()


@pytest.mark.parametrize(
    "kind", ["int8", "uint8", "uint16", "int32", "int64", "bool", "complex64", "complex128", "O", "U1"]
)
def test_other_types_are_refused_in_one_line(session, kind):
    with pytest.raises(BadInput) as caught:
        session.run(np.zeros(4).astype(kind))
    name = np.dtype(kind).name if kind not in ("O", "U1") else ""
    assert str(caught.value).startswith(f"waveform: expected floats within -1 to 1 or int16 samples, got {name}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_what_is_no_number_in_float32_is_refused(session, value):
    waveform = np.zeros(WINDOW_SAMPLES)
    waveform[7] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadInput, match="^waveform: holds NaN or infinite samples$"):
            session.run(waveform)


def test_what_lies_behind_the_window_is_not_heard_and_that_is_said_once(session, caplog):
    longer = np.concatenate([pcm(), pcm(16_000)])
    first = session.run(longer)
    of_all = f"{len(longer) / 16_000:.2f} s"
    assert caplog.messages == [f"note: waveform: the model hears only the first 0.01 s of {of_all}"]
    again = session.run(longer)
    assert len(caplog.messages) == 1
    np.testing.assert_array_equal(first, again)


def test_a_waveform_of_the_window_or_a_little_more_is_worth_no_word(session, caplog):
    for samples in (1, WINDOW_SAMPLES, WINDOW_SAMPLES + 1599):
        session.run(pcm(samples))
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_the_rest_of_a_longer_waveform_changes_nothing(artifact, name):
    session = choose_runtime(name).load(artifact, SessionOptions(threads=1))
    np.testing.assert_allclose(session.run(np.concatenate([pcm(), pcm(500)])), session.run(pcm()), rtol=1e-5, atol=1e-5)
    session.close()


def test_speech_sessions_take_the_same(tmp_path, caplog):
    from tests.benchmarks.speech_artifact import say, write_speech_artifact

    artifact = read_artifact(write_speech_artifact(tmp_path / "speech", source="speech"))
    window = artifact.manifest.input.window_samples
    prompt = np.array([[artifact.speech.decoding.start]])
    waveform = say("the", "cat")
    quantised = np.round(waveform * 32768).astype(np.int16)
    logits = []
    for given in (quantised, quantised / 32768):
        session = choose_runtime("null").load(artifact, SessionOptions(threads=1))
        session.encode(given)
        session.start()
        logits.append(session.step(prompt).copy())
    np.testing.assert_array_equal(*logits)
    with pytest.raises(BadInput, match="int16 samples, got int32"):
        session.encode(quantised.astype(np.int32))
    assert caplog.messages == []
    session.encode(np.zeros(window + 16_000, np.int16))
    assert [message.startswith("note: waveform: the model hears only the first") for message in caplog.messages] == [
        True
    ]


def test_what_is_too_large_for_any_model_is_no_audio():
    assert checked_waveform(np.array([2.0**31, -1.0])).shape == (1, 2)
    with pytest.raises(BadInput, match=r"^waveform: holds samples up to 1e\+19 where 1 is full scale"):
        checked_waveform(np.array([0.0, -1e19]))
