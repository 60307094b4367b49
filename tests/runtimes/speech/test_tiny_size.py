"""Whisper-tiny's size and vocabulary, real speech, random weights: our decoding says what `generate` says."""

from __future__ import annotations

from pathlib import Path

import pytest

from leanear.benchmarks.peers.whisper_tiny_size import write_tiny_size_checkpoint
from leanear.data.audio import read_waveform
from leanear.deploy.exporting import write_proved_artifact
from leanear.evaluate.torch_speech import TorchSpeechSession, speech_model
from leanear.export.options import ExportOptions
from leanear.families import whisper
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.choose import choose_runtime
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.decoding import decode_window
from leanear.runtimes.speech.speech_model import read_speech_model
from tests.benchmarks.peers.half_pruned import half_pruned

SHARED = Path(__file__).parents[4] / "shared" / "data"
RANKS, SPEECH = SHARED / "whisper-multilingual.tiktoken", SHARED / "jfk.flac"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (RANKS.is_file() and SPEECH.is_file()), reason=f"{RANKS} and {SPEECH.name} are not here"),
]
MOST = 100  # tokens
CASES = [("en", "transcribe", False), ("en", "transcribe", True), (None, "translate", False), (None, "translate", True)]


@pytest.fixture(scope="module", params=["dense", "slim"])
def checkpoint(request, tmp_path_factory):
    """The dense model, and one with half of all heads' channels, ragged."""
    folder = tmp_path_factory.mktemp("tiny-size") / "checkpoint"
    write_tiny_size_checkpoint(folder, RANKS)
    dense = whisper.load_checkpoint(folder)
    return dense if request.param == "dense" else half_pruned(dense)


@pytest.fixture(scope="module")
def artifact(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny-size") / "artifact"
    speech = [read_waveform(SPEECH, 16_000)]
    write_proved_artifact(checkpoint, speech, out, ExportOptions("portable", {}, {}))
    return read_artifact(out)


def theirs(checkpoint, language: str | None, task: str, timestamps: bool, cached: bool) -> list[int]:
    """Prompt and tokens of one `generate`, up to the end."""
    features = whisper.features(checkpoint.feature_extractor, [read_waveform(SPEECH, 16_000)])
    row = checkpoint.model.generate(
        features,
        language=language,
        task=task,
        return_timestamps=timestamps,
        force_unique_generate_call=True,
        use_cache=cached,
        max_new_tokens=MOST,
    )[0].tolist()
    end = checkpoint.model.config.eos_token_id
    return row[: row.index(end)] if end in row else row


@pytest.fixture(scope="module")
def expected(checkpoint):
    """What is said in every case, with the cache of keys and values."""
    return {case: theirs(checkpoint, *case, cached=True) for case in CASES}


@pytest.mark.parametrize("case", CASES[:2])
def test_the_cache_changes_no_token(checkpoint, expected, case):
    assert theirs(checkpoint, *case, cached=False) == expected[case]


def says_the_same(session, model, expected) -> None:
    session.encode(read_waveform(SPEECH, 16_000))
    for (language, task, timestamps), row in expected.items():
        options = DecodeOptions(
            language=language, task=task, timestamps=timestamps, max_tokens=MOST, stop_repeats=False
        )
        found = decode_window(session, model.tokens, options)
        assert list(found.tokens) == row[3 if timestamps else 4 :]
        assert len(found.tokens) > 10
        assert model.tokens.languages[found.language] == row[1]


def test_our_decoding_in_torch_says_what_generate_says(checkpoint, expected):
    says_the_same(TorchSpeechSession(checkpoint), speech_model(checkpoint), expected)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_what_is_exported_says_what_generate_says(artifact, expected, runtime):
    session = choose_runtime(runtime).load(artifact, SessionOptions(threads=2))
    says_the_same(session, read_speech_model(artifact), expected)
    session.close()
