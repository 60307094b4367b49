"""Whisper-tiny's size and vocabulary, real speech, random weights: our decoding says what `generate` says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.peers.whisper_tiny_size import write_tiny_size_checkpoint
from runtimes.decoding import DecodeOptions, decode_window
from toolchain.audio import read_waveform
from toolchain.families import whisper
from toolchain.torch_speech import TorchSpeechSession, speech_model

SHARED = Path(__file__).parents[3] / "shared" / "data"
RANKS, SPEECH = SHARED / "whisper-multilingual.tiktoken", SHARED / "jfk.flac"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (RANKS.is_file() and SPEECH.is_file()), reason=f"{RANKS} and {SPEECH.name} are not here"),
]
MOST = 100  # tokens
CASES = [("en", "transcribe", False), ("en", "transcribe", True), (None, "translate", False), (None, "translate", True)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-size") / "checkpoint"
    write_tiny_size_checkpoint(folder, RANKS)
    return whisper.load_checkpoint(folder)


@pytest.fixture(scope="module")
def expected(checkpoint):
    """Prompt and tokens of one `generate` per case, with the cache."""
    torch.set_num_threads(2)
    features = whisper.features(checkpoint.feature_extractor, [read_waveform(SPEECH, 16_000)])
    said = {}
    for language, task, timestamps in CASES:
        row = checkpoint.model.generate(
            features,
            language=language,
            task=task,
            return_timestamps=timestamps,
            force_unique_generate_call=True,
            max_new_tokens=MOST,
        )[0].tolist()
        end = checkpoint.model.config.eos_token_id
        said[language, task, timestamps] = row[: row.index(end)] if end in row else row
    return said


def test_our_decoding_says_what_generate_says(checkpoint, expected):
    session, model = TorchSpeechSession(checkpoint), speech_model(checkpoint)
    session.encode(read_waveform(SPEECH, 16_000))
    for (language, task, timestamps), row in expected.items():
        options = DecodeOptions(
            language=language, task=task, timestamps=timestamps, max_tokens=MOST, stop_repeats=False
        )
        found = decode_window(session, model.tokens, options)
        assert list(found.tokens) == row[3 if timestamps else 4 :]
        assert len(found.tokens) > 10
        assert model.tokens.languages[found.language] == row[1]
