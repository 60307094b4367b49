"""What is exported says what transformers' own `generate` says, token for token, on every runtime."""

from __future__ import annotations

import pytest

from leanear.families import whisper
from leanear.families.whisper import WhisperModel
from leanear.runtimes.artifact import Artifact
from leanear.runtimes.choose import choose_runtime
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.decoding import decode_window
from leanear.runtimes.speech.speech_model import read_speech_model
from tests.export.whisper_cases import KINDS, noise, small_artifact, small_whisper
from tests.whisper_models import make_extractor

CLIPS = tuple(noise(samples) for samples in (9_000, 21_000, 32_000))
ASKED = (("en", "transcribe"), (None, "translate"), ("de", "translate"))  # of each clip


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, WhisperModel]:
    folder = tmp_path_factory.mktemp("speech") / request.param.replace(" ", "-")
    return small_artifact(folder, request.param), small_whisper(request.param)


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def session(request: pytest.FixtureRequest, exported):
    with pytest.MonkeyPatch.context() as patch:
        # so that the room grows while they speak
        patch.setattr("leanear.runtimes.speech.speech_cache.ROOMS", (8, 32))
        loaded = choose_runtime(request.param).load(exported[0], SessionOptions(threads=1))
        yield loaded
        loaded.close()


def theirs(model: WhisperModel, waveform, timestamps: bool, **settings) -> list[int]:
    ids = model.generate(
        whisper.features(make_extractor(), [waveform]),
        return_timestamps=timestamps,
        force_unique_generate_call=True,
        **settings,
    )[0].tolist()
    end = model.config.eos_token_id
    return ids[: ids.index(end)] if end in ids else ids


@pytest.fixture(scope="module")
def expected(exported) -> dict[bool, list[list[int]]]:
    """What transformers says of the clips, with timestamps and without: once for all runtimes."""
    return {
        timestamps: [
            theirs(exported[1], clip, timestamps, language=language, task=task)
            for clip, (language, task) in zip(CLIPS, ASKED, strict=True)
        ]
        for timestamps in (False, True)
    }


@pytest.mark.parametrize("timestamps", [False, True])
def test_greedy_is_transformers_token_for_token(exported, session, expected, timestamps):
    speech = read_speech_model(exported[0])
    for clip, (language, task), said in zip(CLIPS, ASKED, expected[timestamps], strict=True):
        session.encode(clip)
        options = DecodeOptions(language=language, task=task, timestamps=timestamps, stop_repeats=False)
        found = decode_window(session, speech.tokens, options)
        assert list(found.tokens) == said[3 if timestamps else 4 :]
        assert speech.tokens.languages[found.language] == said[1]


def test_a_session_is_as_new_after_beams_and_samples(exported, session):
    """Rows, parents and temperatures of one window leave nothing behind for the next."""
    speech = read_speech_model(exported[0])
    greedy = DecodeOptions(timestamps=False, stop_repeats=False)
    session.encode(CLIPS[0])
    first = decode_window(session, speech.tokens, greedy)
    wide = decode_window(session, speech.tokens, DecodeOptions(beam_size=4, stop_repeats=False))
    decode_window(session, speech.tokens, DecodeOptions(best_of=3), temperature=0.8)
    assert decode_window(session, speech.tokens, greedy) == first
    session.encode(CLIPS[1])
    decode_window(session, speech.tokens, greedy, previous=list(first.tokens[:20]))
    session.encode(CLIPS[0])
    assert decode_window(session, speech.tokens, greedy) == first
    assert decode_window(session, speech.tokens, DecodeOptions(beam_size=4, stop_repeats=False)).tokens == wide.tokens
