"""Clips that are decoded together say what each says alone, on every runtime and in torch."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

from leanear.runtimes.choose import choose_runtime
from leanear.runtimes.errors import BadInput, MeasurementFailed
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.decoding import decode_window, decode_windows
from leanear.runtimes.speech.first_tries import first_tries
from leanear.runtimes.speech.long_audio import single_window, transcribe
from leanear.runtimes.speech.speech_model import read_speech_model
from leanear.runtimes.speech.transcript import Tally
from tests.export.whisper_cases import KINDS, noise, small_artifact

LENGTHS = (9_000, 32_000, 21_000, 70_000, 160, 30_000)  # of a window of 32,000: some take several
SILENCE = np.zeros(16_000, np.float32)


def clips() -> list[np.ndarray]:
    return [*(noise(samples) for samples in LENGTHS), SILENCE]


@pytest.fixture(scope="module", params=KINDS)
def artifact(request, tmp_path_factory):
    return small_artifact(tmp_path_factory.mktemp("speech") / request.param.replace(" ", "-"), request.param)


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def session(request, artifact):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leanear.runtimes.speech.speech_cache.ROOMS", (8, 32))
        loaded = choose_runtime(request.param).load(artifact, SessionOptions(threads=1))
        yield loaded
        loaded.close()


@pytest.fixture(scope="module")
def alone(artifact, session):
    """Gives segments and tally of every clip on its own."""
    model = read_speech_model(artifact)

    def heard(waveform, options):
        tally = Tally()
        return list(transcribe(session, model, waveform, options, tally)), tally

    return functools.cache(lambda options: [heard(waveform, options) for waveform in clips()])


@pytest.mark.parametrize("batch", [2, 3, 64])
@pytest.mark.parametrize("timestamps", [False, True])
def test_every_transcript_is_that_of_the_clip_alone(artifact, session, alone, batch, timestamps):
    model = read_speech_model(artifact)
    options = DecodeOptions(language="en", timestamps=timestamps, temperatures=(0.0, 0.5), max_tokens=16)
    several = replace(options, batch=batch)
    tries = first_tries(session, model, several, (single_window(model, clip) for clip in clips()))
    for clip, (_, first_try), (expected, counted) in zip(clips(), tries, alone(options), strict=True):
        tally = Tally()
        segments = list(transcribe(session, model, clip, several, tally, first_try=first_try))
        told = [(segment.text, segment.tokens, segment.start_s, segment.end_s) for segment in segments]
        assert told == [(segment.text, segment.tokens, segment.start_s, segment.end_s) for segment in expected]
        assert tally == counted
        for one, other in zip(segments, expected, strict=True):
            assert one.average_log_probability == pytest.approx(other.average_log_probability, abs=1e-4)


def test_rows_have_ends_and_caps_of_their_own(artifact, session):
    model, options = read_speech_model(artifact), DecodeOptions(language="de", timestamps=False, stop_repeats=False)
    waveforms, caps = [noise(samples) for samples in (9_000, 21_000, 32_000)], [3, 40, 11]
    session.encode_several(waveforms)
    together = decode_windows(session, model.tokens, options, caps)
    for waveform, cap, found in zip(waveforms, caps, together, strict=True):
        session.encode(waveform)
        expected = decode_window(session, model.tokens, replace(options, max_tokens=cap))
        assert (found.tokens, found.ended, found.language) == (expected.tokens, expected.ended, expected.language)
        assert found.no_speech_probability == pytest.approx(expected.no_speech_probability, abs=1e-5)


def test_beams_after_several_windows_are_of_one(artifact, session):
    """Windows that were there before leave nothing behind, and several rows of each of two windows keep apart."""
    model = read_speech_model(artifact)
    options = DecodeOptions(language="en", timestamps=False, beam_size=3, max_tokens=12)
    session.encode(noise(21_000))
    expected = decode_window(session, model.tokens, options)
    session.encode_several([noise(9_000), noise(32_000)])
    session.start(4)
    prompt = np.array([[model.tokens.start]] * 4, dtype=np.int64)
    first, second, third, fourth = session.step(prompt).copy()
    np.testing.assert_allclose(first, second, atol=1e-5)
    np.testing.assert_allclose(third, fourth, atol=1e-5)
    assert np.abs(first - third).max() > 1e-3
    session.encode(noise(21_000))
    assert decode_window(session, model.tokens, options).tokens == expected.tokens


def test_rows_that_windows_cannot_share_are_refused(artifact, session):
    session.encode_several([noise(9_000), noise(32_000)])
    with pytest.raises(BadInput, match="3 rows of 2 encoded windows"):
        session.start(3)
    with pytest.raises(BadInput, match="0 windows"):
        session.encode_several([])


def test_what_is_not_greedy_or_in_an_unknown_language_is_heard_alone(artifact, session, monkeypatch):
    model = read_speech_model(artifact)
    monkeypatch.setattr("leanear.runtimes.speech.first_tries._together", lambda *_: pytest.fail("decoded together"))
    for changes in ({"beam_size": 2}, {"temperatures": (0.4,)}, {"language": "auto"}, {"prompt": "the"}):
        options = DecodeOptions(**{"language": "en", "timestamps": False, "max_tokens": 4, **changes})
        tries = first_tries(session, model, options, [noise(9_000)] * 2)
        assert [first_try for _, first_try in tries] == [None, None]


def test_windows_that_fail_together_are_left_to_be_heard_alone(artifact, session, monkeypatch):
    def fails(*_):
        raise MeasurementFailed("logits: the graph gave NaN or infinite values")

    monkeypatch.setattr("leanear.runtimes.speech.first_tries._together", fails)
    model, options = read_speech_model(artifact), DecodeOptions(language="en", batch=2)
    windows = [noise(9_000)] * 3
    assert [heard for _, heard in first_tries(session, model, options, windows)] == [None] * 3
