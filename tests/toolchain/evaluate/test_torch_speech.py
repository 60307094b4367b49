"""Our decoding over torch sessions, token for token against transformers' own `generate` on the same weights.

The tiny models are random; the rows of the end and of the timestamps in their tied embedding are made longer, so that
transcripts end and timestamps win now and then, as in trained ones.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from leanear.evaluate.torch_speech import TorchSpeechSession, speech_model
from leanear.families import whisper
from leanear.families.whisper import WhisperCheckpoint
from leanear.runtimes.speech.decode_options import DecodeOptions, read_prompts
from leanear.runtimes.speech.decoding import decode_window
from leanear.runtimes.speech.long_audio import transcribe_windows
from leanear.runtimes.speech.transcript import Window
from tests.whisper_models import make_extractor, make_tokenizer, make_whisper

HOP = 160
LANGUAGES = ("en", "zh", "de", "es")


def checkpoint_with(
    seed: int, *, positions: int = 40, end: float = 2.5, times: float = 1.2, **settings
) -> WhisperCheckpoint:
    """A tiny random checkpoint; end, times: how much longer these tokens' rows are made."""
    model = make_whisper(seed=seed, positions=positions, **settings)
    begin = model.generation_config.no_timestamps_token_id + 1
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight[model.config.eos_token_id] *= end
        model.model.decoder.embed_tokens.weight[begin:] *= times
    return WhisperCheckpoint(Path("tiny"), model, make_extractor(), make_tokenizer())


def noise(seed: int, seconds: float = 2.0) -> np.ndarray:
    """A few tones in noise, a different mixture for every seed."""
    generator = np.random.default_rng(seed)
    time_s = np.arange(round(16_000 * seconds)) / 16_000
    tones = sum(np.sin(2 * np.pi * frequency * time_s) for frequency in generator.uniform(80, 4000, 3))
    return (0.1 * tones + 0.03 * generator.standard_normal(len(time_s))).astype(np.float32)


def without_padding(row: list[int], end: int) -> list[int]:
    while row and row[-1] == end:
        row.pop()
    return row


def one_window_of_theirs(
    checkpoint: WhisperCheckpoint, waveform: np.ndarray, timestamps: bool, **settings
) -> list[int]:
    """The prompt and the tokens of one call of `generate`."""
    ids = checkpoint.model.generate(
        whisper.features(checkpoint.feature_extractor, [waveform]),
        return_timestamps=timestamps,
        force_unique_generate_call=True,
        **settings,
    )
    return without_padding(ids[0].tolist(), checkpoint.model.config.eos_token_id)


def one_window_of_ours(checkpoint: WhisperCheckpoint, waveform: np.ndarray, options: DecodeOptions) -> tuple[int, ...]:
    session = TorchSpeechSession(checkpoint)
    session.encode(waveform)
    return decode_window(session, speech_model(checkpoint).tokens, options).tokens


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("task", ["transcribe", "translate"])
@pytest.mark.parametrize("language", ["en", "de", None])
def test_one_window_is_transformers_greedy_token_for_token(timestamps, task, language):
    ended = 0
    for seed in range(4):
        checkpoint = checkpoint_with(seed, end=2.0 + seed)
        for clip in range(2):
            waveform = noise(10 * seed + clip, seconds=2.0 if clip else 0.7)
            theirs = one_window_of_theirs(checkpoint, waveform, timestamps, task=task, language=language)
            options = DecodeOptions(language=language, task=task, timestamps=timestamps, stop_repeats=False)
            ours = one_window_of_ours(checkpoint, waveform, options)
            assert list(ours) == theirs[3 if timestamps else 4 :]
            ended += len(theirs) < 40
    assert ended > 0, "no transcript came to an end"


@pytest.mark.parametrize("timestamps", [False, True])
def test_a_model_of_one_language_is_prompted_with_the_start_alone(timestamps):
    for seed in range(4):
        checkpoint = checkpoint_with(seed, english_only=True)
        theirs = one_window_of_theirs(checkpoint, noise(seed), timestamps)
        ours = one_window_of_ours(checkpoint, noise(seed), DecodeOptions(timestamps=timestamps, stop_repeats=False))
        assert list(ours) == theirs[1 if timestamps else 2 :]


def test_the_detected_language_is_transformers():
    languages = set()
    for seed in range(12):
        checkpoint = checkpoint_with(seed)
        session, model = TorchSpeechSession(checkpoint), speech_model(checkpoint)
        session.encode(noise(seed))
        found = decode_window(session, model.tokens, DecodeOptions(language="auto", timestamps=False)).language
        features = whisper.features(checkpoint.feature_extractor, [noise(seed)])
        assert model.tokens.languages[found] == checkpoint.model.detect_language(features).item()
        languages.add(found)
    assert len(languages) > 1


class FeatureSession(TorchSpeechSession):
    """Takes a window's samples for positions in features that are already there, as transformers slices them."""

    def __init__(self, checkpoint: WhisperCheckpoint, features: torch.Tensor) -> None:
        super().__init__(checkpoint)
        self._features = features

    def encode(self, waveform: np.ndarray) -> None:
        first, frames = int(waveform[0]) // HOP, len(waveform) // HOP
        part = self._features[:, :, first : first + frames]
        width = 2 * self._model.config.max_source_positions
        self.encode_features(torch.nn.functional.pad(part, (0, width - part.shape[-1])))


def positions_in(features: torch.Tensor) -> np.ndarray:
    """A waveform whose every sample is its own number."""
    return np.arange(features.shape[-1] * HOP, dtype=np.float32)


def long_features(seed: int, frames: int) -> torch.Tensor:
    """Features that change over time, as if several things were heard one after another."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 80, frames // 40 + 2, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, scale_factor=40, mode="linear")[:, :, :frames]
    return (0.6 * smooth + 0.2 * torch.randn(1, 80, frames, generator=generator)).contiguous()


def ours_of_long(checkpoint: WhisperCheckpoint, features: torch.Tensor, options: DecodeOptions) -> list[Window]:
    session = FeatureSession(checkpoint, features)
    return list(transcribe_windows(session, speech_model(checkpoint), positions_in(features), options))


@pytest.mark.parametrize("condition", [False, True])
@pytest.mark.parametrize("thresholds", [False, True])
@pytest.mark.parametrize("frames", [450, 731])
def test_long_audio_is_transformers_long_form_token_for_token(condition, thresholds, frames):
    skipped, windows_seen, pairs = 0, 0, 0
    for seed in range(3):
        checkpoint, features = checkpoint_with(seed, positions=32), long_features(seed, frames)
        begin = checkpoint.model.generation_config.no_timestamps_token_id + 1
        options = DecodeOptions(
            language="en",
            temperatures=(0.0,),
            condition=condition,
            compression_ratio_limit=None,
            log_probability_limit=None,
            no_speech_limit=1.0,
            stop_repeats=False,
            quiet_cuts=False,
        )
        limits = {}
        if thresholds:  # such that about half of the windows fail either test
            heard = [window.decoded for window in ours_of_long(checkpoint, features, options)]
            unlikely = float(np.quantile([decoded.average_log_probability for decoded in heard], 0.7)) + 1e-3
            no_speech = float(np.quantile([decoded.no_speech_probability for decoded in heard], 0.4)) * 0.999
            options = replace(options, log_probability_limit=unlikely, no_speech_limit=no_speech)
            limits = {"logprob_threshold": unlikely, "no_speech_threshold": no_speech}
        theirs = checkpoint.model.generate(
            features,
            return_timestamps=True,
            return_segments=True,
            language="en",
            task="transcribe",
            condition_on_prev_tokens=condition,
            temperature=0.0,
            **limits,
        )["segments"][0]
        windows = ours_of_long(checkpoint, features, options)
        ours = [segment for window in windows for segment in window.segments]
        assert [list(segment.tokens) for segment in ours] == [segment["tokens"].tolist() for segment in theirs]
        for mine, other in zip(ours, theirs):
            assert mine.start_s == pytest.approx(min(float(other["start"]), frames / 100), abs=1e-6)
            # transformers counts steps in floating point and can lose one; ours ends with the audio
            assert mine.end_s == pytest.approx(min(float(other["end"]), frames / 100), abs=0.0201)
        skipped += sum(not window.segments for window in windows)
        windows_seen += len(windows)
        pairs += sum(len(window.segments) > 1 or window.advance < window.samples for window in windows)
        assert all(token < begin or token - begin <= 100 for segment in ours for token in segment.tokens)
    assert windows_seen > 3 * frames // 200
    assert pairs > 0, "no window was cut at a pair of timestamps"
    assert skipped > 0 or not thresholds, "no window was judged to hold no speech"


def test_a_prompt_is_heard_as_generate_hears_it():
    """The prompt's tokens are those of transformers' `get_prompt_ids`, and so are the words after it."""
    checkpoint = checkpoint_with(3)
    features = whisper.features(checkpoint.feature_extractor, [noise(3)])
    differ = 0
    for text in ("the weather", "Sent by her, in"):
        ids = checkpoint.tokenizer.get_prompt_ids(text, return_tensors="pt")
        settings = {"language": "en", "task": "transcribe", "return_timestamps": True}
        theirs = checkpoint.model.generate(features, prompt_ids=ids, force_unique_generate_call=True, **settings)[
            0
        ].tolist()
        session, model = TorchSpeechSession(checkpoint), speech_model(checkpoint)
        options = DecodeOptions(language="en", prompt=text, stop_repeats=False)
        prompts = read_prompts(model.vocabulary, model.tokens, options)
        shown = prompts.shown(prompts.first)
        session.encode_features(features)
        ours = decode_window(session, model.tokens, options, previous=shown)
        assert [model.tokens.previous, *shown] == ids.tolist()
        assert list(ours.tokens) == [token for token in theirs[len(ids) + 3 :] if token != model.tokens.end]
        differ += list(ours.tokens) != list(decode_window(session, model.tokens, options).tokens)
    assert differ, "no prompt changed a word"


def test_the_average_log_probability_is_transformers():
    checkpoint, waveform = checkpoint_with(1), noise(1)
    out = checkpoint.model.generate(
        whisper.features(checkpoint.feature_extractor, [waveform]),
        language="en",
        task="transcribe",
        return_timestamps=True,
        force_unique_generate_call=True,
        return_dict_in_generate=True,
        output_scores=True,
    )
    said = out.sequences[0, 3:]
    expected = checkpoint.model._retrieve_avg_logprobs([scores[0] for scores in out.scores], said, 0.0)
    session = TorchSpeechSession(checkpoint)
    session.encode(waveform)
    found = decode_window(session, speech_model(checkpoint).tokens, DecodeOptions(language="en", stop_repeats=False))
    assert found.average_log_probability == pytest.approx(float(expected), abs=1e-4)


def test_beams_over_a_real_cache_are_those_of_recomputing_everything():
    """Parents reorder the cache: the same search over a session that feeds whole rows anew each step."""

    class Recomputing(TorchSpeechSession):
        def start(self, rows: int = 1) -> None:
            super().start(rows)
            self.fed = np.zeros((rows, 0), np.int64)

        def step(self, tokens: np.ndarray, parents: np.ndarray | None = None) -> np.ndarray:
            self.fed = np.concatenate([self.fed if parents is None else self.fed[parents], tokens], axis=1)
            states = self._states.expand(len(self.fed), -1, -1)
            with torch.inference_mode():
                out = self._model(
                    encoder_outputs=(states,), decoder_input_ids=torch.from_numpy(self.fed), use_cache=False
                )
            return out.logits[:, -1].numpy()

    for seed in range(4):
        checkpoint = checkpoint_with(seed, positions=24)
        results = []
        for kind in (TorchSpeechSession, Recomputing):
            session = kind(checkpoint)
            session.encode(noise(seed))
            options = DecodeOptions(beam_size=4, stop_repeats=False)
            results.append(decode_window(session, speech_model(checkpoint).tokens, options))
        assert results[0].tokens == results[1].tokens
        assert results[0].average_log_probability == pytest.approx(results[1].average_log_probability, abs=1e-4)
